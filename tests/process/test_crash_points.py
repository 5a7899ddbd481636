"""Death at every step of the work there is: fetch, submit, complete, signal, and of every negotiation. All recover.

The steps are those of the table (:mod:`vmbus_emu.crashpoints`), so a new one is tested without a word here. One machine
goes through all steps of a component under writes, and is judged at the end.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest

from vmbus_emu import crashpoints
from vmbus_emu.client import Machine, MachineError
from vmbus_emu.client.door import Door
from vmbus_emu.client.run import Run
from vmbus_emu.runfolder import RunFolder

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

PLACES = [("microkernel", "zmq"), ("microkernel", "ring"), ("disaggregated", "zmq"), ("disaggregated", "ring")]
#: Longer than any of these takes: the loads are ended.
LOAD_S = 30.0
KILL_S = 10.0


def up(lab: Lab, arch: str, transport: str = "zmq", **document: Any) -> Machine:
    vms = [{"name": f"vm{n + 1}", "disk": [{"ram": "4MiB"}], "nic": [{"switch": "s0"}]} for n in range(2)]
    chosen = {} if arch == "monolithic" else {"transport": transport}
    return lab.up(arch, vm=vms, switch=[{"name": "s0"}], **chosen, **document)


def die_at(component: str, steps: Iterable[str], fault: str = "kill") -> dict[str, Any]:
    """Kill ``component`` at each step in turn while every VM writes; the run, judged."""
    folder = RunFolder("m")
    run = Run(folder, Door(folder))
    try:
        run.prepare(overwrite=False)
        run.begin(LOAD_S)
        for step in steps:
            kill = run.kill(component, fault, KILL_S, start=False, at=step)
            assert (kill["component"], kill["at"], kill["fault"], kill["missing"]) == (component, step, fault, []), step
        run.finish(cancel=True, timeout=0)
        return run.result()
    finally:
        run.close()


def assert_nothing_lost(run: dict[str, Any]) -> None:
    counts = run["operations"]
    assert (run["findings"], counts["lost"], counts["unexpected"], counts["duplicated"]) == ([], 0, 0, 0)
    assert counts["failed"] == 0
    # What was under way when the loads were ended may be on the disk without an answer, and nothing else.
    assert counts["attempted"] - counts["acknowledged"] <= 2 * 64
    assert counts["acknowledged"] > 100
    assert all(vm["survived"] for vm in run["vms"].values())
    assert all(kill["first_reply_ms"] for kill in run["kills"])


@pytest.mark.parametrize(("arch", "transport"), PLACES)
@pytest.mark.parametrize("component", ["storvsp", "netvsp", "parent"])
def test_at_every_step_it_dies_there_and_nothing_is_lost(
    lab: Lab, arch: str, transport: str, component: str
) -> None:
    machine = up(lab, arch, transport)
    steps = crashpoints.fitting(component, arch, transport)
    incarnation = lab.rows(machine)[component]["incarnation"]
    run = die_at(component, [f"{step}:1" for step in steps])
    assert_nothing_lost(run)
    deaths = {event["pid"]: event for event in run["events"] if event["event"] == "died"}
    for kill in run["kills"]:
        assert deaths[kill["pid"]]["signal"] == "SIGKILL"
        assert deaths[kill["pid"]]["ns"] > kill["killed_ns"]
    # A step of negotiation takes two: the one that served, and the one that was to take its place.
    twice = sum(crashpoints.STEPS[step].next for step in steps)
    assert len(run["kills"]) == len(deaths) == len(steps) + twice
    assert [kill["at"] for kill in run["kills"] if kill["at"]] == [f"{step}:1" for step in steps]
    assert lab.rows(machine)[component]["incarnation"] == incarnation + len(steps) + twice


@pytest.mark.parametrize(("arch", "transport", "component", "numbers"), [
    ("microkernel", "zmq", "parent", range(2, 38, 4)),
    ("microkernel", "ring", "parent", range(3, 66, 7)),
    ("disaggregated", "zmq", "storvsp", range(2, 22, 3)),
    ("disaggregated", "ring", "storvsp", range(3, 24, 3)),
    ("disaggregated", "zmq", "parent", range(3, 58, 8)),
    ("disaggregated", "ring", "netvsp", range(2, 36, 5)),
])  # fmt: skip
def test_a_negotiation_may_end_anywhere(
    lab: Lab, arch: str, transport: str, component: str, numbers: range
) -> None:
    up(lab, arch, transport)
    assert_nothing_lost(die_at(component, [f"negotiate:{number}" for number in numbers]))


@pytest.mark.parametrize("component", ["storvsp", "parent"])
def test_a_spare_that_takes_over_may_die_at_it(lab: Lab, component: str) -> None:
    up(lab, "disaggregated", "ring", policy={component: "standby"})
    assert_nothing_lost(die_at(component, [f"{step}:1" for step in ("offer", "open", "negotiate")]))


@pytest.mark.parametrize("fault", ["exit", "segv", "panic"])
def test_it_may_die_there_of_something_else(lab: Lab, fault: str) -> None:
    up(lab, "disaggregated", "ring")
    run = die_at("storvsp", ["complete:20", "opened:2"], fault)
    assert_nothing_lost(run)
    ends = [(event["signal"], event["exit_code"]) for event in run["events"] if event["event"] == "died"]
    ending = {"exit": (None, 3), "segv": ("SIGSEGV", None), "panic": (None, 1)}[fault]
    assert ends == [ending, ("SIGKILL", None), ending]


@pytest.mark.parametrize("step", ["hypercall:1", "execute:2", "reply:3"])
def test_the_hypervisor_dies_in_a_call_that_another_ones_recovery_makes(lab: Lab, step: str) -> None:
    machine = up(lab, "disaggregated")
    rows = lab.rows(machine)
    with machine.watch() as events:
        program = lab.program("kill", "--name", "m", "hypervisor", "--at", step, "--json")
        while (event := events.next(10)) is not None and event["event"] != "armed":
            pass
        assert event is not None
        assert (event["component"], event["at"], event["pid"]) == ("hypervisor", step, rows["hypervisor"]["pid"])
        os.kill(rows["storvsp"]["pid"], signal.SIGKILL)
    out, errors = program.communicate(timeout=30)
    lab.note()
    report = json.loads(out)
    assert (program.returncode, report["findings"], errors) == (0, [], b"")
    (kill,) = report["kills"]
    assert (kill["component"], kill["pid"], kill["at"]) == ("hypervisor", rows["hypervisor"]["pid"], step)
    assert all(machine.exec(vm, "null disk0 10").status == 0 for vm in ("vm1", "vm2"))


class Caller:
    """Each time that the hypervisor is armed, so many, ``victim`` is killed: its replacement makes the calls."""

    def __init__(self, lab: Lab, machine: Machine, victim: str, times: int) -> None:
        self._lab = lab
        self._machine = lab.attach()
        self._victim = victim
        self._times = times
        self._watching = machine.watch()
        self.killed: list[int] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while len(self.killed) < self._times and (event := self._watching.next(LOAD_S)) is not None:
            if event["event"] == "armed":
                self.killed.append(self._lab.rows(self._machine)[self._victim]["pid"])
                os.kill(self.killed[-1], signal.SIGKILL)

    def end(self) -> list[int]:
        """Whom it killed."""
        self._thread.join(LOAD_S)
        assert not self._thread.is_alive()
        self._watching.close()
        return self.killed


@pytest.mark.parametrize(("arch", "transport", "victim", "calls"), [
    ("microkernel", "zmq", "parent", 30), ("microkernel", "ring", "parent", 40), ("microkernel", "ring", "vm1", 30),
    ("disaggregated", "zmq", "storvsp", 12), ("disaggregated", "ring", "storvsp", 24),
    ("disaggregated", "zmq", "parent", 30), ("disaggregated", "ring", "netvsp", 24),
])  # fmt: skip
@pytest.mark.parametrize("step", crashpoints.fitting("hypervisor"))
def test_a_hypervisor_that_is_recovered_may_die_in_any_call(
    lab: Lab, wait: Wait, arch: str, transport: str, victim: str, calls: int, step: str
) -> None:
    """``calls``: fewer than there are from the victim's death until all is served again."""
    machine = up(lab, arch, transport, policy={"hypervisor": "recover", "child": "restart"})
    before = lab.rows(machine)
    steps = [f"{step}:{number}" for number in range(1, calls + 1, calls // 6)]
    caller = Caller(lab, machine, victim, len(steps))
    run = die_at("hypervisor", steps)
    killed = caller.end()
    dead = [event["pid"] for event in run["events"] if event["event"] == "died"]
    assert sorted(dead) == sorted([*killed, *(kill["pid"] for kill in run["kills"])])
    assert len(dead) == 2 * len(steps)
    assert [event for event in run["events"] if event["event"] == "rebooting"] == []
    counts = run["operations"]
    assert (run["findings"], counts["lost"], counts["unexpected"], counts["duplicated"]) == ([], 0, 0, 0)
    if victim != "vm1":                 # whose requests died with it
        assert_nothing_lost(run)
    wait(lambda: all(row["state"] == "ready" for row in lab.rows(machine).values()), "all are back")
    after = lab.rows(machine)
    gone = {name for name, row in before.items() if row["host"] in ("hypervisor", before[victim]["host"])}
    assert {name for name, row in after.items() if row["pid"] != before[name]["pid"]} == gone
    assert {after[name]["incarnation"] for name in gone} == {1 + len(steps)}
    assert after["hypervisor"]["counters"]["partitions"] == before["hypervisor"]["counters"]["partitions"]
    assert all(machine.exec(vm, "null disk0 10").status == 0 for vm in ("vm1", "vm2"))
    lab.note()


def test_what_nobody_comes_to_is_said_and_does_not_stay_armed(lab: Lab) -> None:
    machine = up(lab, "disaggregated")
    before = lab.rows(machine)["storvsp"]
    status, out, errors = lab.cli("kill", "--name", "m", "storvsp", "--at", "fetch:1000000", "--timeout", "0.4")
    assert (status, out, errors.count("\n")) == (1, b"", 1)
    assert "storvsp did not come to fetch:1000000 within 0.4 s; is there I/O?" in errors
    with pytest.raises(MachineError, match="did not come to negotiate:9999") as late:
        machine.kill("storvsp", timeout=0.6, at="negotiate:9999")
    assert "negotiated with fewer steps" in late.value.hint
    after = lab.rows(machine)["storvsp"]
    assert (after["incarnation"], after["state"]) == (before["incarnation"] + 1, "ready")
    assert machine.exec("vm1", "null disk0 2000").status == 0
    assert lab.rows(machine)["storvsp"]["pid"] == after["pid"]


def test_a_step_that_is_not_there_is_one_line_before_anything_is_killed(lab: Lab) -> None:
    machine = up(lab, "microkernel", policy={"parent": "halt"})
    before = lab.rows(machine)
    for words, said in [
        (["storvsp", "--at", "hello"], "storvsp cannot die at hello: in the microkernel placement"),
        (["storvsp", "--at", "gpadl"], "storvsp cannot die at gpadl: on zmq"),
        (["parent", "--at", "open"], "nothing would take its place"),
    ]:
        status, out, errors = lab.cli("kill", "--name", "m", *words)
        assert (status, out, errors.count("\n"), said in errors) == (1, b"", 1, True), errors
    assert {name: row["pid"] for name, row in lab.rows(machine).items()} == {
        name: row["pid"] for name, row in before.items()
    }
