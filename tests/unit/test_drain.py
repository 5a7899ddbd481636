"""drain: who is asked when, what becomes of those who do not answer, and what the command line makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from vmbus_emu.cli.drain import step_lines
from vmbus_emu.loop import Loop
from vmbus_emu.machine.drain import Drain
from vmbus_emu.machine.intake import Refused, understood

VMS = ("vm1", "vm2", "vm3")


class Line:
    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


class Process:
    def __init__(self, name: str) -> None:
        self.name = name
        self.line = Line()
        self.running = True
        self.exit_code: int | None = None

    @property
    def asked(self) -> list[str]:
        return [message["vm"] for message in self.line.sent if message["t"] == "shut_down"]


class Box:
    """A machine as a drain sees it. Killing takes effect when the test says that the process exited."""

    def __init__(self, loop: Loop, threads: bool = False, outlives_hypervisor: bool = False) -> None:
        self.processes = {name: Process(name) for name in ("hypervisor", *(() if threads else VMS))}
        self.killed: list[str] = []
        self.rebooting = False
        self.reboots: list[str] = []
        self.power = self
        self.off = False
        self.replies: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.fallen: set[str] = set()
        hosts = {vm: "hypervisor" if threads else vm for vm in VMS}
        made: Any = self
        self.drain = Drain(loop, hosts, self.fallen, outlives_hypervisor, made, made, made, self.reply)

    @property
    def running(self) -> dict[str, Process]:
        return {name: process for name, process in self.processes.items() if process.running}

    def kill(self, process: Process) -> None:
        self.killed.append(process.name)

    def reboot(self, reason: str) -> None:
        self.rebooting = True
        self.reboots.append(reason)

    def emit(self, event: str, ns: int = 0, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    def reply(self, client: bytes, message: dict[str, Any]) -> None:
        assert (client, message["id"]) == (b"c", 7)
        self.replies.append(message)

    def begin(self, grace_s: float = 10.0) -> None:
        self.drain.up()
        self.drain.begin(b"c", 7, grace_s)

    def exited(self, name: str, code: int | None = None) -> bool:
        process: Any = self.processes[name]
        process.running, process.exit_code = False, code
        return self.drain.exited(process)

    def shuts_down(self, vm: str, *unflushed: str) -> None:
        self.drain.said(vm, list(unflushed))
        self.exited(vm, 0)

    def up(self) -> dict[str, Any]:
        self.rebooting = False
        self.drain.up()
        result: dict[str, Any] = self.replies[-1]["drained"]
        return result

    @property
    def endings(self) -> list[tuple[str, str]]:
        return [(step["vm"], step["how"]) for step in self.replies if step.get("step") == "vm"]


def test_vms_are_asked_one_after_the_other_and_the_reboot_comes_last(loop: Loop) -> None:
    box = Box(loop)
    box.begin()
    for number, vm in enumerate(VMS):
        assert [box.processes[name].asked for name in VMS] == [[name] if at <= number else []
                                                               for at, name in enumerate(VMS)]
        assert box.reboots == []
        box.shuts_down(vm)
    assert (box.reboots, box.drain.off, box.drain.active) == (["drained"], set(VMS), True)
    result = box.up()
    assert [(vm["vm"], vm["how"], vm["unflushed"]) for vm in result["vms"]] == [(vm, "off", []) for vm in VMS]
    assert (result["degraded_s"], result["reboot_ms"] >= 0, box.drain.off, box.drain.active) == (
        None, True, set(), False)
    assert [event["event"] for event in box.events] == ["draining", "drained", "drained", "drained"]


def test_a_vm_that_does_not_shut_down_is_killed_and_the_next_is_asked_when_it_is_gone(loop: Loop) -> None:
    box = Box(loop)
    box.begin(0.01)
    assert loop.run_until(lambda: bool(box.killed), 5.0)
    assert (box.killed, box.processes["vm2"].asked) == (["vm1"], [])
    assert box.exited("vm1"), "no policy is followed for it"
    box.shuts_down("vm2", "disk0: the disk is gone")
    assert not box.drain.exited(Process("parent")), "that one's policy is"  # type: ignore[arg-type]
    assert box.exited("vm3", 0)
    assert box.endings == [("vm1", "killed"), ("vm2", "off"), ("vm3", "died")]
    assert box.up()["vms"][1]["unflushed"] == ["disk0: the disk is gone"]


def test_the_grace_time_of_one_that_shut_down_strikes_nobody(loop: Loop) -> None:
    box = Box(loop)
    box.begin(0.01)
    box.shuts_down("vm1")
    box.shuts_down("vm2")
    box.shuts_down("vm3")
    assert not loop.run_until(lambda: bool(box.killed), 0.05)


def test_the_dead_are_passed_over_and_threads_are_off_when_they_say_so(loop: Loop) -> None:
    box = Box(loop, threads=True)
    box.fallen.add("vm1")
    box.begin(0.01)
    assert box.processes["hypervisor"].asked == ["vm2"]
    box.drain.said("vm2", [])
    assert loop.run_until(lambda: bool(box.reboots), 5.0)
    assert box.killed == [], "a thread cannot be killed"
    assert box.endings == [("vm1", "not running"), ("vm2", "off"), ("vm3", "killed")]


def test_a_thread_that_falls_and_a_host_that_dies_end_the_wait(loop: Loop) -> None:
    box = Box(loop, threads=True)
    box.begin()
    box.drain.fell("vm1")
    assert not box.exited("hypervisor")
    assert box.endings == [("vm1", "died"), ("vm2", "died"), ("vm3", "not running")]


def test_nobody_says_for_another_vm_or_unasked_that_it_is_off(loop: Loop) -> None:
    box = Box(loop, threads=True)
    box.drain.said("vm1", [])
    box.begin()
    box.drain.said("vm2", [])
    assert box.endings == []
    box.drain.said("vm1", [])
    assert (box.endings, box.drain.off) == ([("vm1", "off")], {"vm1"})


def test_what_it_tells_of_the_time_without_a_hypervisor(loop: Loop) -> None:
    box = Box(loop, outlives_hypervisor=True)
    box.drain.up()
    box.exited("hypervisor")
    box.drain.begin(b"c", 7, 10.0)
    assert box.replies[0]["degraded_s"] >= 0
    for vm in VMS:
        box.shuts_down(vm)
    assert box.up()["degraded_s"] == box.replies[0]["degraded_s"]
    for process in box.processes.values():
        process.running = True
    box.drain.begin(b"c", 7, 10.0)
    assert box.replies[-1] == {"id": 7, "step": "draining", "vms": list(VMS), "grace_s": 10.0, "degraded_s": None}


def test_refusals(loop: Loop) -> None:
    box = Box(loop)
    with pytest.raises(Refused, match="booting"):
        box.drain.begin(b"c", 7, 10.0)
    box.begin()
    with pytest.raises(Refused, match="under way already"):
        box.drain.begin(b"c", 7, 10.0)
    halted = Box(loop)
    halted.off = True
    with pytest.raises(Refused, match="halted"):
        halted.begin()


def test_a_machine_that_halts_or_goes_down_meanwhile_ends_it_with_an_error(loop: Loop) -> None:
    box = Box(loop)
    box.begin()
    box.off = True
    for vm in VMS:
        box.exited(vm)
    assert ("halted" in box.replies[-1]["error"], box.reboots, box.drain.active) == (True, [], False)
    box = Box(loop)
    box.begin(0.01)
    box.drain.stop("the machine is taken down")
    assert box.replies[-1]["error"] == "the machine is taken down"
    assert not loop.run_until(lambda: bool(box.killed), 0.05)
    assert not box.exited("vm1")


@pytest.mark.parametrize("grace", [-1, float("nan"), float("inf"), 1e9, "1", True])
def test_a_grace_that_is_no_time_is_refused(grace: object) -> None:
    assert "grace_s" in understood({"verb": "drain", "grace_s": grace})
    assert understood({"verb": "drain", "grace_s": 0.5}) == understood({"verb": "drain"}) == ""


def test_each_vms_end_is_a_line() -> None:
    def line(how: str, ms: float, *unflushed: str) -> list[str]:
        return step_lines({"step": "vm", "vm": "vm1", "how": how, "ms": ms, "unflushed": list(unflushed)})

    assert line("off", 12.3) == ["vm1  flushed and off after 12 ms"]
    assert line("killed", 10000.4) == ["vm1  killed after 10 s: did not shut down"]
    assert line("died", 3) == ["vm1  died after 3 ms, before it had shut down"]
    assert line("not running", 0) == ["vm1  was not running"]
    assert line("off", 1500, "disk0: the disk is gone", "disk1: I/O error") == [
        "vm1  off after 1.5 s; 2 disks not flushed: disk0: the disk is gone, disk1: I/O error"]
    assert step_lines({"step": "draining", "degraded_s": None}) == step_lines({"step": "rebooting"}) == []
    assert step_lines({"step": "draining", "degraded_s": 34.21})[0].startswith("degraded for 34.2 s before: ")
