"""Processes that live and do not answer: who is replaced, who is only shown, and who must be left alone.

Times are not held against figures here, but for one: nobody hangs before half of the bound has passed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from vmbus_emu.client import Machine
from vmbus_emu.client.door import Door
from vmbus_emu.procfs import first_thread
from vmbus_emu.runfolder import RunFolder

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

BOUND_MS = 500
PLACES = [("microkernel", "zmq"), ("microkernel", "ring"), ("disaggregated", "zmq"), ("disaggregated", "ring")]


def stop(pid: int) -> int:
    os.kill(pid, signal.SIGSTOP)
    return pid


def pids(lab: Lab, machine: Machine) -> dict[str, int]:
    rows = lab.rows(machine)
    return {name: row["pid"] for name, row in rows.items()} | {"front": rows["machine"]["counters"]["front_pid"]}


def past(machine: Machine) -> list[dict[str, Any]]:
    """The machine's events so far."""
    with machine.watch(past=True) as events:
        found = []
        while (event := events.next(0.05)) is not None:
            found.append(event)
    return found


def hangs(machine: Machine) -> list[tuple[str, int, str]]:
    """Who hung, by its pid, and why."""
    return [(one["component"], one["pid"], one["reason"]) for one in past(machine) if one["event"] == "hung"]


def let_pass(seconds: float) -> None:
    """Time is what is tested: nothing may happen in it."""
    threading.Event().wait(seconds)


# -- who is replaced ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "why"), [("stop", "it is stopped"), ("hang", "it sleeps")])
@pytest.mark.parametrize(("arch", "transport"), PLACES)
def test_a_storvsp_that_hangs_under_writes_is_replaced_and_nothing_is_lost(
    lab: Lab, arch: str, transport: str, fault: str, why: str
) -> None:
    machine = lab.up(arch, transport=transport)
    run = machine.chaos("storvsp", 0.8, 0.8, seed=5, fault=fault)
    lab.note()
    assert (run["findings"], run["operations"]["lost"]) == ([], 0)
    assert run["operations"]["acknowledged"] > 200
    assert len(run["kills"]) >= 1
    events = {(one["event"], one.get("pid")): one for one in run["events"]}
    for kill in run["kills"]:
        hung, died = events["hung", kill["pid"]], events["died", kill["pid"]]
        assert (hung["component"], hung["reason"], died["signal"]) == (kill["host"], why, "SIGKILL")
        assert hung["ns"] <= died["ns"]
        assert kill["detect_ms"] >= BOUND_MS / 2 - 1
        assert kill["first_reply_ms"] > kill["detect_ms"]


@pytest.mark.parametrize(("arch", "victim", "fault"), [
    ("microkernel", "hypervisor", "stop"), ("disaggregated", "hypervisor", "hang"),
    ("monolithic", "hypervisor", "stop"), ("monolithic", "hypervisor", "hang"),
])
def test_a_hypervisor_or_a_monolith_that_hangs_is_followed_by_its_policy(
    lab: Lab, arch: str, victim: str, fault: str
) -> None:
    machine = lab.up(arch)
    run = machine.kill(victim, fault)
    lab.note()
    assert run["findings"] == []
    told = [one["event"] for one in run["events"] if one["event"] in ("hung", "rebooting", "up")]
    assert told == ["hung", "rebooting", "up"]
    assert machine.exec("vm1", "null disk0 10").status == 0


@pytest.mark.parametrize("victim", ["storvsp", "netvsp"])
def test_a_driver_that_hangs_on_a_vms_thread_takes_the_monolith_along(lab: Lab, victim: str) -> None:
    machine = lab.up("monolithic")
    pid = lab.rows(machine)["hypervisor"]["pid"]
    run = machine.kill(victim, "hang")
    lab.note()
    assert run["findings"] == []
    (hung,) = (one for one in run["events"] if one["event"] == "hung")
    assert (hung["component"], hung["pid"], hung["reason"]) == ("hypervisor", pid, "it sleeps in a driver")
    told = [one["event"] for one in run["events"] if one["event"] in ("hung", "died", "rebooting", "up")]
    assert told == ["hung", "died", "rebooting", "up"]
    assert run["kills"][0]["detect_ms"] >= BOUND_MS / 2 - 1
    assert not any(vm["survived"] for vm in run["vms"].values())
    assert machine.exec("vm1", "null disk0 10").status == 0


def test_a_driver_that_computes_for_ever_on_a_vms_thread_hangs_in_the_end(lab: Lab) -> None:
    machine = lab.up("monolithic", vms=1, hang_after="100ms")    # of two, each would wait for the interpreter, too
    run = machine.kill("storvsp", "hang=busy", timeout=60)
    lab.note()
    assert run["findings"] == []
    (hung,) = (one for one in run["events"] if one["event"] == "hung")
    assert (hung["component"], hung["reason"]) == ("hypervisor", "it computes in a driver")
    assert run["kills"][0]["detect_ms"] >= 1900     # two seconds of CPU time
    assert machine.exec("vm1", "null disk0 10", timeout=20).status == 0


@pytest.mark.parametrize("victim", ["parent", "management", "netvsp"])
def test_whoever_hangs_comes_back(lab: Lab, wait: Wait, victim: str) -> None:
    machine = lab.up("disaggregated")
    pid = stop(lab.rows(machine)[victim]["pid"])
    wait(lambda: lab.rows(machine)[victim]["pid"] != pid
         and lab.rows(machine)[victim]["state"] == "ready", f"{victim} is back")
    lab.note()
    assert hangs(machine) == [(victim, pid, "it is stopped")]
    assert machine.exec("vm1", "null disk0 10", timeout=20).status == 0


def test_a_spare_that_hangs_is_replaced_and_nobody_notices(lab: Lab, wait: Wait) -> None:
    machine = lab.up("disaggregated", policy={"storvsp": "standby"})
    wait(lambda: "storvsp.spare" in lab.rows(machine), "there is a spare")
    before = lab.rows(machine)
    pid = stop(before["storvsp.spare"]["pid"])
    wait(lambda: lab.rows(machine).get("storvsp.spare", before["storvsp.spare"])["pid"] != pid, "there is another")
    lab.note()
    assert hangs(machine) == [("storvsp.spare", pid, "it is stopped")]
    assert lab.rows(machine)["storvsp"]["pid"] == before["storvsp"]["pid"]


def test_a_stopped_zygote_does_not_keep_what_it_should_bear_from_coming_back(lab: Lab, wait: Wait) -> None:
    machine = lab.up("microkernel")
    rows = lab.rows(machine)
    zygote = stop(rows["zygote.parent"]["pid"])
    os.kill(rows["parent"]["pid"], signal.SIGKILL)
    wait(lambda: lab.rows(machine)["parent"]["pid"] != rows["parent"]["pid"]
         and lab.rows(machine)["parent"]["state"] == "ready", "the parent is back")
    lab.note()
    assert hangs(machine) == [("zygote.parent", zygote, "it is stopped")]
    assert machine.exec("vm1", "null disk0 10", timeout=20).status == 0


def test_a_stopped_zygote_of_which_nobody_wants_anything_is_replaced_too(lab: Lab, wait: Wait) -> None:
    machine = lab.up("microkernel")
    zygote = stop(lab.rows(machine)["zygote"]["pid"])
    wait(lambda: lab.rows(machine)["zygote"]["pid"] != zygote and lab.rows(machine)["zygote"]["state"] == "ready",
         "there is another zygote")
    os.kill(lab.rows(machine)["vm1"]["pid"], signal.SIGKILL)
    wait(lambda: lab.rows(machine)["vm1"]["state"] == "dead", "vm1 is dead")
    machine.start("vm1")
    lab.note()
    assert machine.exec("vm1", "echo").status == 0


def test_a_front_door_that_is_stopped_is_replaced_and_a_reader_does_not_even_notice(lab: Lab) -> None:
    machine = lab.up("microkernel")
    front = stop(pids(lab, machine)["front"])
    after = pids(lab, machine)
    lab.note()
    assert after["front"] != front
    assert hangs(machine) == [("front", front, "it is stopped")]


def test_who_computes_for_ever_is_slow_and_in_the_end_hangs(lab: Lab) -> None:
    machine = lab.up("disaggregated", hang_after="50ms")
    run = machine.kill("storvsp", "hang=busy", timeout=60)
    lab.note()
    assert run["findings"] == []
    (hung,) = (one for one in run["events"] if one["event"] == "hung")
    assert (hung["component"], hung["reason"]) == ("storvsp", "it computes")
    assert run["kills"][0]["detect_ms"] >= 900      # a second of CPU time
    assert machine.exec("vm1", "null disk0 10", timeout=20).status == 0


# -- who is left alone ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["microkernel", "disaggregated", "monolithic"])
def test_stopping_and_continuing_the_machine_kills_nobody(lab: Lab, wait: Wait, arch: str) -> None:
    machine = lab.up(arch, hang_after="200ms")
    before = pids(lab, machine)
    for _ in range(3):
        stop(before["machine"])
        let_pass(0.5)
        os.kill(before["machine"], signal.SIGCONT)
        assert pids(lab, machine) == before
    let_pass(0.4)
    assert (pids(lab, machine), hangs(machine)) == (before, [])
    victim = "storvsp"                              # and it has not stopped watching
    stop(before[victim])
    wait(lambda: lab.rows(machine)[victim]["pid"] != before[victim], "storvsp is replaced")
    lab.note()


def test_everybody_may_be_stopped_together_with_the_machine(lab: Lab) -> None:
    machine = lab.up("disaggregated", hang_after="200ms")
    before = pids(lab, machine)
    for pid in (before["machine"], *before.values()):       # the machine first, and last
        stop(pid)
    let_pass(0.5)
    for pid in reversed(before.values()):
        os.kill(pid, signal.SIGCONT)
    let_pass(0.4)
    assert (pids(lab, machine), hangs(machine)) == (before, [])


@pytest.mark.parametrize("transport", ["zmq", "ring"])
def test_a_stopped_vm_is_shown_as_hung_never_killed_and_ready_when_it_goes_on(
    lab: Lab, wait: Wait, transport: str
) -> None:
    machine = lab.up("microkernel", transport=transport, hang_after="100ms")
    pid = stop(lab.rows(machine)["vm1"]["pid"])
    rows = lab.rows(machine)
    assert {name: row["state"] for name, row in rows.items() if row["state"] != "ready"} == {"vm1": "hung"}
    status, out, _ = lab.cli("ps", "--name", "m")
    (line,) = (line for line in out.decode().splitlines() if line.startswith("vm1 "))
    assert (status, line.split()[4]) == (0, "hung")
    assert machine.exec("vm2", "null disk0 10").status == 0
    os.kill(pid, signal.SIGCONT)
    wait(lambda: lab.rows(machine)["vm1"]["state"] == "ready", "vm1 is ready")
    assert (lab.rows(machine)["vm1"]["pid"], hangs(machine)) == (pid, [])
    assert machine.exec("vm1", "null disk0 10").status == 0


@pytest.mark.parametrize("fault", ["hang", "hang=busy"])
def test_a_vm_of_the_monolith_that_hangs_by_its_own_fault_hangs_alone(lab: Lab, wait: Wait, fault: str) -> None:
    machine = lab.up("monolithic", hang_after="100ms")
    before = pids(lab, machine)
    process = psutil.Process(before["hypervisor"])
    used = process.cpu_times().user
    with contextlib.closing(Door(RunFolder("m"))) as door:
        assert door.ask("kill", component="vm1", fault=fault)["killed"]["host"] == "hypervisor"
    assert machine.exec("vm1", "echo", timeout=0.5).status == 124
    if fault == "hang=busy":                        # a driver would hang after two seconds of CPU time
        wait(lambda: process.cpu_times().user >= used + 2.5, "vm1 has computed for long", 30)
    assert machine.exec("vm2", "null disk0 10", timeout=20).status == 0
    assert (pids(lab, machine), hangs(machine)) == (before, [])


def test_a_busy_driver_of_the_monolith_is_not_taken_for_one_that_hangs(lab: Lab) -> None:
    machine = lab.up("monolithic", hang_after="100ms", vm=[{"name": "vm1", "disk": [{"ram": "64MiB"}]}])
    before = pids(lab, machine)
    process = psutil.Process(before["hypervisor"])
    until = sum(process.cpu_times()[:2]) + 3        # more than one call may take
    while sum(process.cpu_times()[:2]) < until:
        assert machine.exec("vm1", "iobench -o read -b 1M -d 8 -n 2000 disk0", timeout=60).status == 0
    assert (pids(lab, machine), hangs(machine)) == (before, [])


def test_a_bound_of_never_kills_nobody_and_ps_still_tells(lab: Lab, wait: Wait) -> None:
    status, _, errors = lab.cli("up", "--name", "m", "--arch", "disaggregated", "--hang-after", "never")
    lab.note()
    assert status == 0, errors
    machine = lab.attach()
    pid = stop(lab.rows(machine)["netvsp"]["pid"])
    let_pass(1.0)
    assert (lab.rows(machine)["netvsp"]["state"], hangs(machine)) == ("hung", [])
    os.kill(pid, signal.SIGCONT)
    wait(lambda: lab.rows(machine)["netvsp"]["state"] == "ready", "netvsp goes on")
    assert lab.rows(machine)["netvsp"]["pid"] == pid


def test_a_short_stop_is_no_hang(lab: Lab) -> None:
    machine = lab.up("disaggregated", hang_after="4s")
    before = pids(lab, machine)
    stop(before["storvsp"])
    let_pass(0.5)
    os.kill(before["storvsp"], signal.SIGCONT)
    assert machine.exec("vm1", "null disk0 10").status == 0
    assert (pids(lab, machine), hangs(machine)) == (before, [])


# -- what the kernel says -------------------------------------------------------------------------------


def test_a_thread_that_sleeps_does_not_switch_and_one_that_computes_uses_time(wait: Wait) -> None:
    code = "import os\nos.read(0, 1)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        try:
            def state() -> str:
                seen = first_thread(process.pid)
                return seen.state if seen else ""

            wait(lambda: state() == "S" and os.path.exists(f"/proc/{process.pid}/fd/0"), "it reads")
            before = None
            while before is None or before != first_thread(process.pid):    # the interpreter has started
                before = first_thread(process.pid)
                let_pass(0.05)
            assert process.stdin is not None
            process.stdin.write(b"x")
            process.stdin.flush()
            wait(lambda: (now := first_thread(process.pid)) is not None and now.ticks > before.ticks + 5, "it computes")
            now = first_thread(process.pid)
            assert now is not None
            assert now.switches > before.switches
            stop(process.pid)
            wait(lambda: state() == "T", "it is stopped")
        finally:
            process.kill()
        wait(lambda: first_thread(process.pid) is None, "it is dead, and not reaped yet")
    assert first_thread(process.pid) is None
