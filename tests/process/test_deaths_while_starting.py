"""Deaths in the middle of a start: of management, which makes the VM, and of the parent, which it needs.

The moment is held still: by a step at which management dies (``kill --at``), or by stopping who is waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.process.test_recovery import Writing, pings
from vmbus_emu import crashpoints
from vmbus_emu.client import Machine

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

PLACES = pytest.mark.parametrize(
    ("arch", "transport"),
    [("microkernel", "zmq"), ("microkernel", "ring"), ("disaggregated", "zmq"), ("disaggregated", "ring")],
)
#: Partitions with two VMs.
LEVEL = {"microkernel": 3, "disaggregated": 5}
#: Hypercalls of management for a VM that starts in the place of a dead one, up to that for its process.
CALLS_PER_START = 6


def up(lab: Lab, arch: str, transport: str, **document: Any) -> Machine:
    """Nobody is taken for hung: what is stopped stays so."""
    vms = [{"name": f"vm{n + 1}", "disk": [{"ram": "4MiB"}], "nic": [{"switch": "s0"}]} for n in range(2)]
    return lab.up(arch, transport=transport, vm=vms, switch=[{"name": "s0"}], hang_after="never", **document)


class Start:
    """``start vm1`` on a thread and a connection of its own."""

    def __init__(self, lab: Lab) -> None:
        self._machine = lab.attach()
        self._outcome: list[Any] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome.append(self._machine.start("vm1", timeout=20))
        except Exception as error:
            self._outcome.append(error)

    @property
    def ended(self) -> bool:
        return bool(self._outcome)

    def end(self) -> Any:
        """What came of it."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self._outcome[0]


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):   # the test has killed it
            os.kill(pid, signal.SIGCONT)


def counters(lab: Lab, machine: Machine, name: str) -> dict[str, int]:
    return dict(lab.rows(machine)[name]["counters"] or {})


def replaced(lab: Lab, machine: Machine, *dead: int) -> bool:
    """All components are there, and not in one of those processes."""
    rows = lab.rows(machine).values()
    return all(row["state"] == "ready" and row["pid"] not in dead for row in rows)


def assert_only_those_died(lab: Lab, machine: Machine, before: dict[str, Any], *names: str) -> None:
    after = lab.rows(machine)
    carried = {name for name, row in before.items() if row["host"] in names}
    assert {name for name, row in before.items() if after[name]["pid"] != row["pid"]} == carried
    assert {name: after[name]["state"] for name in before} == dict.fromkeys(before, "ready")
    assert after.keys() == before.keys()


def assert_served(machine: Machine, wait: Wait) -> None:
    assert all(machine.exec(vm, "null disk0 10").status == 0 for vm in ("vm1", "vm2"))
    wait(lambda: pings(machine), "the network works")


# -- management ---------------------------------------------------------------------------------------


class Dying:
    """Management, which is to die at a step of the start that is asked for next; and the ``kill`` that follows it."""

    def __init__(self, lab: Lab, machine: Machine, step: str) -> None:
        self._at = f"{step}:1"
        self._events = machine.watch()
        self._program = lab.program("kill", "--name", machine.name, "management", "--at", step, "--json")
        self.pid = int(self._next("armed")["pid"])

    def _next(self, kind: str) -> dict[str, Any]:
        while (event := self._events.next(10)) is not None and event["event"] != kind:
            pass
        assert event is not None, kind
        return event

    def died(self) -> None:
        """It did, there and then."""
        killed, death = self._next("killed"), self._next("died")
        assert (killed["at"], killed["pid"]) == (self._at, self.pid)
        if death["component"] == "vm1":                 # the one whose place is taken
            death = self._next("died")
        assert (death["component"], death["pid"], death["signal"]) == ("management", self.pid, "SIGKILL")
        self._events.close()

    def end(self) -> None:
        """Nothing was lost by it."""
        out, errors = self._program.communicate(timeout=30)
        assert (self._program.returncode, errors) == (0, b"")
        report = json.loads(out)
        assert (len(report["kills"]), report["findings"], report["operations"]["lost"]) == (1, [], 0)


@PLACES
def test_a_vms_start_outlives_management_at_every_step(lab: Lab, wait: Wait, arch: str, transport: str) -> None:
    machine = up(lab, arch, transport)
    before = lab.rows(machine)
    writing = Writing(lab, "vm2")
    steps = crashpoints.fitting("management", arch, transport)
    assert len(steps) == 4
    for number, step in enumerate(steps, 1):
        lab.kill(machine, "vm1")
        dying = Dying(lab, machine, step)
        started = machine.start("vm1", timeout=20)
        dying.died()
        dying.end()
        assert started["incarnation"] == number + 1
        rows = lab.rows(machine)
        assert (rows["vm1"]["pid"], rows["management"]["incarnation"]) == (started["pid"], number + 1)
        assert rows["hypervisor"]["counters"]["partitions"] == LEVEL[arch], step
        if step != "start":             # then it depends on whether the question left before it died
            assert rows["management"]["counters"]["cleared_up"] == 1
    lab.note()
    writing.more(wait)
    writing.end()
    assert_only_those_died(lab, machine, before, "vm1", "management")
    assert_served(machine, wait)
    machine.down()
    assert lab.leftovers() == []


@PLACES
@pytest.mark.parametrize("policy", ["reboot", "recover"])
def test_what_is_being_started_is_not_begun_again(
    lab: Lab, wait: Wait, arch: str, transport: str, policy: str
) -> None:
    machine = up(lab, arch, transport, policy={"hypervisor": policy})
    before = lab.rows(machine)
    for number in (2, 3):
        lab.kill(machine, "vm1")
        with stopped(before["zygote"]["pid"]):
            dying = Dying(lab, machine, "start")
            start = Start(lab)
            dying.died()
            wait(lambda: lab.rows(machine)["management"]["pid"] not in (None, dying.pid), "it has a successor")  # noqa: B023
            assert lab.rows(machine)["management"]["state"] != "ready", "it waits for what is being started"
            assert not start.ended
        outcome = start.end()
        dying.end()
        assert isinstance(outcome, dict), outcome
        assert outcome["incarnation"] == number, "one process was made"
        wait(lambda: replaced(lab, machine), "management is ready")
        assert counters(lab, machine, "management")["cleared_up"] == 0
        assert counters(lab, machine, "hypervisor")["partitions"] == LEVEL[arch]
    lab.note()
    assert_only_those_died(lab, machine, before, "vm1", "management")
    assert_served(machine, wait)


@pytest.mark.parametrize("transport", ["zmq", "ring"])
def test_a_vm_that_is_restarted_by_policy_comes_back_though_management_dies_at_it(
    lab: Lab, wait: Wait, transport: str
) -> None:
    machine = up(lab, "microkernel", transport, policy={"child": "restart"})
    before = lab.rows(machine)
    for number, step in enumerate(crashpoints.fitting("management"), 1):
        dying = Dying(lab, machine, step)
        vm1 = lab.rows(machine)["vm1"]["pid"]
        os.kill(vm1, signal.SIGKILL)
        dying.died()
        dying.end()
        wait(lambda: replaced(lab, machine, vm1, dying.pid), "both are back")  # noqa: B023
        rows = lab.rows(machine)
        assert (rows["vm1"]["incarnation"], rows["management"]["incarnation"]) == (number + 1, number + 1)
        assert rows["hypervisor"]["counters"]["partitions"] == LEVEL["microkernel"], step
    lab.note()
    assert_only_those_died(lab, machine, before, "vm1", "management")
    assert_served(machine, wait)


# -- the parent ---------------------------------------------------------------------------------------


@PLACES
@pytest.mark.parametrize("policy", ["restart", "standby"])
def test_a_start_that_waits_for_a_parent_that_dies_is_done_by_the_next_one(
    lab: Lab, wait: Wait, arch: str, transport: str, policy: str
) -> None:
    machine = up(lab, arch, transport, policy={"parent": policy})
    if policy == "standby":
        wait(lambda: "parent.spare" in lab.rows(machine), "there is a spare")
    before = lab.rows(machine)
    for number in (2, 3):
        lab.kill(machine, "vm1")
        parent = lab.rows(machine)["parent"]["pid"]
        posted = counters(lab, machine, "hypervisor")["messages"]
        with stopped(parent):
            start = Start(lab)
            wait(lambda: counters(lab, machine, "hypervisor")["messages"] > posted, "the parent was asked")  # noqa: B023
            os.kill(parent, signal.SIGKILL)
        outcome = start.end()
        assert isinstance(outcome, dict), outcome
        assert outcome["incarnation"] == number
        wait(lambda: replaced(lab, machine, parent), "the parent is back")  # noqa: B023
        assert counters(lab, machine, "hypervisor")["partitions"] == LEVEL[arch]
    assert_served(machine, wait)
    lab.note()
    if policy == "restart":
        assert_only_those_died(lab, machine, before, "vm1", "parent")


@PLACES
def test_a_parent_that_never_heard_of_a_vm_is_told_when_it_runs(
    lab: Lab, wait: Wait, arch: str, transport: str
) -> None:
    machine = up(lab, arch, transport)
    before = lab.rows(machine)
    lab.kill(machine, "vm1")
    parent = before["parent"]["pid"]
    asked = counters(lab, machine, "management")["hypercalls"] + CALLS_PER_START
    with stopped(before["zygote"]["pid"]):
        start = Start(lab)
        wait(lambda: counters(lab, machine, "management")["hypercalls"] == asked, "its process was asked for")
        os.kill(parent, signal.SIGKILL)                 # the one that attached it
        wait(lambda: lab.rows(machine)["parent"]["pid"] not in (None, parent)
             and lab.rows(machine)["parent"]["state"] == "ready", "there is one that did not")
        assert not start.ended
    outcome = start.end()
    assert isinstance(outcome, dict), outcome
    lab.note()
    assert_only_those_died(lab, machine, before, "vm1", "parent")
    assert counters(lab, machine, "hypervisor")["partitions"] == LEVEL[arch]
    assert_served(machine, wait)


@PLACES
def test_management_and_the_parent_die_in_one_start(lab: Lab, wait: Wait, arch: str, transport: str) -> None:
    machine = up(lab, arch, transport)
    before = lab.rows(machine)
    lab.kill(machine, "vm1")
    parent = before["parent"]["pid"]
    dying = Dying(lab, machine, "attach")
    start = Start(lab)
    dying.died()
    os.kill(parent, signal.SIGKILL)
    outcome = start.end()
    dying.end()
    assert isinstance(outcome, dict), outcome
    wait(lambda: replaced(lab, machine, parent), "all are back")
    lab.note()
    assert_only_those_died(lab, machine, before, "vm1", "management", "parent")
    assert counters(lab, machine, "hypervisor")["partitions"] == LEVEL[arch]
    assert_served(machine, wait)


@pytest.mark.parametrize("transport", ["zmq", "ring"])
@pytest.mark.parametrize("step", ["contact:2", "connected:2", "offer:3", "open:3", "opened:3", "opened:4"])
def test_a_new_vm_negotiates_with_the_next_parent_too(lab: Lab, wait: Wait, step: str, transport: str) -> None:
    """What counts up to the last number is vm2, which negotiates anew with the parent that is armed."""
    machine = up(lab, "microkernel", transport)
    lab.kill(machine, "vm1")
    before = lab.rows(machine)
    program = lab.program("kill", "--name", "m", "parent", "--at", step, "--json")
    wait(lambda: lab.rows(machine)["parent"]["incarnation"] == 2 and replaced_but(lab, machine, "vm1"), "it is armed")
    started = lab.attach().start("vm1", timeout=20)
    out, errors = program.communicate(timeout=30)
    assert (program.returncode, errors) == (0, b"")
    assert [kill["at"] for kill in json.loads(out)["kills"]] == [None, step]
    rows = lab.rows(machine)
    assert (started["incarnation"], rows["parent"]["incarnation"]) == (2, 3)
    lab.note()
    assert_only_those_died(lab, machine, before, "vm1", "parent")
    assert rows["hypervisor"]["counters"]["partitions"] == LEVEL["microkernel"]
    assert_served(machine, wait)


def replaced_but(lab: Lab, machine: Machine, name: str) -> bool:
    return all(row["state"] == "ready" for row in lab.rows(machine).values() if row["name"] != name)


@pytest.mark.parametrize("arch", ["microkernel", "disaggregated"])
def test_a_parent_that_does_not_come_back_is_not_waited_for(lab: Lab, arch: str) -> None:
    machine = up(lab, arch, "zmq", policy={"parent": "halt"})
    lab.kill(machine, "vm1")
    parent = lab.rows(machine)["parent"]["pid"]
    os.kill(parent, signal.SIGSTOP)
    start = Start(lab)
    os.kill(parent, signal.SIGKILL)
    outcome = start.end()
    assert "vm1 did not start: attach to VMBus: OPERATION_DENIED" in str(outcome)
    assert counters(lab, machine, "hypervisor")["partitions"] == LEVEL[arch] - 1, "nothing is left of the attempt"
    assert machine.exec("vm2", "echo").status == 0
