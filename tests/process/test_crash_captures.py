"""How a process of the host ended is kept, and shown: the monolith's purple screen, and what there is elsewhere."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from vmbus_emu.client import Machine
from vmbus_emu.machine.crashes import KEPT
from vmbus_emu.runfolder import RunFolder

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]


def strike(machine: Machine, component: str, fault: str) -> None:
    """A kill without an observer, whose load would strike first."""
    machine._connected().ask("kill", component=component, fault=fault)


def death(lab: Lab, machine: Machine, component: str, fault: str, then: str = "") -> dict[str, Any]:
    """The event of a component's end by a fault; ``then``: what a guest is asked, to bring it about."""
    with lab.attach().watch() as events:
        strike(machine, component, fault)
        if then:
            assert machine.exec("vm1", then).status != 0
        while True:
            event = events.next(10)
            assert event is not None, "nobody died"
            if event["event"] == "died":
                return event


def crash(lab: Lab, wait: Wait, event: dict[str, Any]) -> dict[str, Any]:
    """The capture that ``logs --crash`` shows."""
    wait((RunFolder("m").path / "crashes" / event["crash"]).exists, "the capture is written")
    found: dict[str, Any] = lab.json("logs", "--name", "m", "--crash")
    assert found["file"] == event["crash"]
    return found


def ready(machine: Machine) -> bool:
    return bool(machine.info()["state"] == "ready")


def test_a_drivers_bug_in_the_monolith_leaves_a_purple_screen(lab: Lab, wait: Wait) -> None:
    machine = lab.up("monolithic")
    event = death(lab, machine, "storvsp", "panic", "null disk0 1")
    assert (event["signal"], event["crash"]) == ("SIGABRT", "hypervisor-1.txt")
    assert event["reason"].startswith("*** HOST PANIC in vm1.disk0: DriverBug(")
    found = crash(lab, wait, event)
    assert found["screen"][0] == event["reason"]
    assert "Traceback (most recent call last):" in found["screen"]
    assert "DriverBug" in found["screen"][-1]
    header = found["header"]
    assert (header["machine"], header["component"], header["pid"], header["incarnation"], header["ended"]) == (
        "m", "hypervisor", str(event["pid"]), "1", "killed by SIGABRT")
    assert header["carried"] == "hypervisor, management, netvsp, storvsp, vm1, vm2"
    wait(lambda: ready(machine), "it has rebooted")
    lab.note()
    status, out, errors = lab.cli("logs", "--name", "m", "--crash", "storvsp")
    assert (status, errors, "\x1b" in out.decode()) == (0, "", False)
    assert event["reason"] in out.decode()
    assert lab.cli("logs", "--name", "m", "--crash", "parent")[0] == 1


def test_two_threads_that_panic_at_once_leave_one_screen(lab: Lab, wait: Wait) -> None:
    machine = lab.up("monolithic", vms=4)
    clients = [lab.attach() for _ in range(4)]
    for number, client in enumerate(clients):       # under way in all guests when the driver begins to fail
        argv = ["iobench", "-o", "read", "-n", "10000000", "disk0"]
        client._connected().send("exec", vm=f"vm{number + 1}", argv=argv)
    wait(lambda: all(lab.rows(machine)[f"vm{n}"]["counters"]["disk_reads"] for n in range(1, 5)), "all guests work")
    found = crash(lab, wait, death(lab, machine, "storvsp", "panic"))
    assert [line for line in found["screen"] if "HOST PANIC" in line] == found["screen"][:1]
    wait(lambda: ready(machine), "it has rebooted")
    lab.note()


@pytest.mark.parametrize(("fault", "ended", "screen"), [
    ("segv", "killed by SIGSEGV", "Fatal Python error: Segmentation fault"),
    ("oom", "exited with status 1", "Traceback (most recent call last):"),
    ("exit", "exited with status 3", "none: it was exited with status 3, and said nothing about that"),
    ("kill", "killed by SIGKILL", "none: it was killed by SIGKILL, and said nothing about that"),
])  # fmt: skip
def test_whatever_ends_the_monolith_is_captured(lab: Lab, wait: Wait, fault: str, ended: str, screen: str) -> None:
    machine = lab.up("monolithic")
    event = death(lab, machine, "hypervisor", fault)
    found = crash(lab, wait, event)
    assert (found["header"]["ended"], found["screen"][0]) == (ended, screen)
    if fault != "kill":
        assert found["log"] == [f"*** fault injected: {fault}"]
    wait(lambda: ready(machine), "it has rebooted")
    lab.note()


def test_kill_of_a_monolith_hints_at_it(lab: Lab) -> None:
    lab.up("monolithic")
    status, _, errors = lab.cli("kill", "--name", "m", "netvsp", "--fault", "segv")
    lab.note()
    assert (status, errors) == (0, "Try: vmbus-emu logs --crash --name m\n")


@pytest.mark.parametrize("victim", ["storvsp", "parent", "hypervisor"])
def test_in_other_placements_the_same_code_captures_the_hosts_processes(lab: Lab, wait: Wait, victim: str) -> None:
    machine = lab.up("disaggregated")
    fault = "exit" if victim == "storvsp" else "panic"
    event = death(lab, machine, victim, fault)
    found = crash(lab, wait, event)
    assert (found["header"]["component"], found["header"]["carried"]) == (victim, victim)
    assert f"*** fault injected: {fault}" in found["log"]
    assert (found["screen"][-1] == "vmbus_emu.wreck.InjectedBug: injected: nobody catches this") is (fault == "panic")
    wait(lambda: ready(machine), "it is back")
    lab.note()


def test_a_vm_is_not_captured_and_neither_is_what_a_reboot_ends(lab: Lab, wait: Wait) -> None:
    machine = lab.up("microkernel")
    lab.kill(machine, "vm1")
    assert lab.cli("logs", "--name", "m", "--crash")[0] == 1
    os.kill(lab.rows(machine)["hypervisor"]["pid"], signal.SIGKILL)
    wait(lambda: ready(machine) and lab.rows(machine)["hypervisor"]["incarnation"] == 2, "it has rebooted")
    lab.note()
    crashes = RunFolder("m").path / "crashes"
    wait(lambda: [path.name for path in crashes.glob("*")] == ["hypervisor-1.txt"], "and that is all")


def test_only_the_last_captures_are_kept(lab: Lab, wait: Wait) -> None:
    machine = lab.up("disaggregated")
    for incarnation in range(1, KEPT + 3):
        wait(lambda: lab.rows(machine)["netvsp"]["state"] == "ready"
             and lab.rows(machine)["netvsp"]["incarnation"] == incarnation, "it is back")  # noqa: B023
        strike(machine, "netvsp", "kill")
    lab.note()
    wait(lambda: lab.rows(machine)["netvsp"]["state"] == "ready", "it is back")
    crashes = RunFolder("m").path / "crashes"
    expected = {f"netvsp-{incarnation}.txt" for incarnation in range(3, KEPT + 3)}
    wait(lambda: {path.name for path in crashes.iterdir()} == expected, "the last ones are there")
    lab.note()


def test_a_vm_of_the_monolith_that_dies_alone_is_an_event(lab: Lab) -> None:
    machine = lab.up("monolithic")
    pid = lab.rows(machine)["hypervisor"]["pid"]
    event = death(lab, machine, "vm1", "panic")
    assert {key: event[key] for key in ("component", "host", "carried", "pid", "signal", "exit_code")} == {
        "component": "vm1", "host": "hypervisor", "carried": ["vm1"], "pid": pid, "signal": None, "exit_code": None}
    assert "InjectedBug" in event["reason"]
    assert "crash" not in event
    assert machine.exec("vm2", "null disk0 10").status == 0
    assert [vm["how"] for vm in machine.drain()["vms"]] == ["not running", "off"]
    lab.note()
    assert machine.exec("vm1", "null disk0 10").status == 0
