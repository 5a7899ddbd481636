"""What does ``kill -9`` of a component's process take with it, who does not notice, and does ``ps`` tell the truth?

The blast radius is the placement's: whatever lived in that process is dead, everything else keeps its pid and
state. By the policies of these machines nothing is restarted but the machine's own parts, front door and zygotes.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from vmbus_emu.client import ExecResult, Machine, MachineError

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

#: (arch, what is killed, who is dead then, whether vm1's and vm2's disks and the network still work)
CASES = [
    ("microkernel", "hypervisor", {"hypervisor"}, (True, True, True)),
    ("microkernel", "management", {"management"}, (True, True, True)),
    ("microkernel", "parent", {"parent", "storvsp", "netvsp"}, (False, False, False)),
    ("microkernel", "storvsp", {"parent", "storvsp", "netvsp"}, (False, False, False)),
    ("microkernel", "netvsp", {"parent", "storvsp", "netvsp"}, (False, False, False)),
    ("microkernel", "vm1", {"vm1"}, (None, True, False)),
    ("disaggregated", "hypervisor", {"hypervisor"}, (True, True, True)),
    ("disaggregated", "management", {"management"}, (True, True, True)),
    ("disaggregated", "storvsp", {"storvsp"}, (False, False, True)),
    ("disaggregated", "netvsp", {"netvsp"}, (True, True, False)),
    ("disaggregated", "vm1", {"vm1"}, (None, True, False)),
    ("disaggregated", "parent", {"parent"}, (False, False, False)),
]


def disk_works(machine: Machine, vm: str) -> bool | None:
    """Whether a write can be read back; ``None`` if the VM is dead. A refusal must give the reason."""
    written = machine.exec(vm, "write disk0 512 still-here")
    if written.status == 137:
        return None
    if written.status:
        assert (written.status, b"the disk is gone" in written.stderr) == (1, True), written.stderr
        return False
    return machine.exec(vm, "read disk0 512 10").stdout == b"still-here"


def ping_works(machine: Machine) -> bool:
    return machine.exec("vm2", "ping -c 1 -W 0.5 vm1").status == 0


@pytest.mark.parametrize("transport", ["zmq", "ring"])
@pytest.mark.parametrize(("arch", "victim", "dead", "works"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_a_kill_takes_exactly_what_lived_in_that_process(
    lab: Lab, wait: Wait, arch: str, victim: str, dead: set[str], works: tuple[bool | None, bool, bool], transport: str
) -> None:
    machine = lab.up(arch, transport=transport, policy=lab.NOTHING_FOLLOWS)
    assert (disk_works(machine, "vm1"), disk_works(machine, "vm2"), ping_works(machine)) == (True, True, True)
    before = lab.rows(machine)
    pid = lab.kill(machine, victim)

    after = lab.rows(machine)
    assert {name for name, row in after.items() if row["state"] == "dead"} == dead
    assert {name for name, row in before.items() if row["pid"] == pid} == dead
    for name, row in after.items():
        assert (row["pid"], row["incarnation"]) == (before[name]["pid"], before[name]["incarnation"])
        expected = ("dead", "SIGKILL") if name in dead else ("ready", None)
        assert (row["state"], row["signal"], row["exit_code"]) == (*expected, None)
    assert machine.info()["state"] == "degraded"

    if victim in ("parent", "storvsp", "netvsp"):  # the news must have reached the guests, by way of the hypervisor
        wait(lambda: b"gone" in machine.exec("vm2", "dmesg").stdout, "vm2 knows")
    assert (disk_works(machine, "vm1"), disk_works(machine, "vm2"), ping_works(machine)) == works
    assert machine.exec("vm2", "echo the console lives").stdout == b"the console lives\n"
    machine.down()
    assert lab.leftovers() == []


def test_killing_the_monolith_kills_every_vm(lab: Lab) -> None:
    machine = lab.up("monolithic", policy=lab.NOTHING_FOLLOWS)
    lab.kill(machine, "vm2")  # which is a thread: its process is everybody's
    rows = lab.rows(machine)
    assert {name for name, row in rows.items() if row["state"] == "dead"} == set(rows) - {"machine"}
    assert {row["signal"] for name, row in rows.items() if name != "machine"} == {"SIGKILL"}
    assert machine.info()["state"] == "halted"
    for vm in ("vm1", "vm2"):
        result = machine.exec(vm, "echo hello")
        assert (result.status, result.stdout) == (137, b"")
        assert b"hypervisor was killed by SIGKILL" in result.stderr
    machine.down()
    assert lab.leftovers() == []


class Running:
    """A guest command under way, on a thread and a connection of its own."""

    def __init__(self, lab: Lab, wait: Wait, vm: str, command: str) -> None:
        self.result: ExecResult | None = None
        self.output = bytearray()
        self._machine = lab.attach()
        self._thread = threading.Thread(target=self._run, args=(vm, command))
        self._thread.start()
        wait(lambda: self.output, f"{command} has begun")

    def _run(self, vm: str, command: str) -> None:
        self.result = self._machine.exec(vm, command, on_stdout=self.output.extend, timeout=20)

    def end(self) -> ExecResult:
        self._thread.join(20)
        assert self.result is not None
        return self.result


@pytest.mark.parametrize("arch", ["monolithic", "microkernel", "disaggregated"])
def test_a_command_ends_with_137_when_its_vm_dies_under_it(lab: Lab, wait: Wait, arch: str) -> None:
    machine = lab.up(arch, policy=lab.NOTHING_FOLLOWS)
    command = Running(lab, wait, "vm1", "ping -i 0.05 vm2")
    lab.kill(machine, "vm1")
    result = command.end()
    assert result.status == 137
    assert b"vm1 died: " in result.stderr
    assert b"killed by SIGKILL" in result.stderr
    status, _, errors = lab.cli("exec", "--name", "m", "vm1", "--", "echo", "hello")
    assert (status, "vm1 is dead" in errors) == (137, True)


@pytest.mark.parametrize("transport", ["zmq", "ring"])
def test_a_command_that_waits_for_the_disk_fails_when_the_parent_dies_instead_of_hanging(
    lab: Lab, wait: Wait, transport: str
) -> None:
    machine = lab.up(transport=transport, policy=lab.NOTHING_FOLLOWS, hang_after="never")
    parent = lab.rows(machine)["parent"]["pid"]
    reader = lab.attach()
    results: list[ExecResult] = []
    os.kill(parent, signal.SIGSTOP)  # so that the request is outstanding when the parent dies
    reading = threading.Thread(target=lambda: results.append(reader.exec("vm1", "sha256 disk0", timeout=20)))
    reading.start()
    wait(lambda: lab.rows(machine)["vm1"]["counters"]["commands"] == 1, "it has begun")
    os.kill(parent, signal.SIGKILL)
    reading.join(20)
    assert [(result.status, b"the disk is gone" in result.stderr) for result in results] == [(1, True)]


@pytest.mark.parametrize("arch", ["monolithic", "microkernel"])
def test_the_front_door_is_replaced_and_no_vm_notices(lab: Lab, wait: Wait, arch: str) -> None:
    machine = lab.up(arch)
    before = lab.rows(machine)
    front = before["machine"]["counters"]["front_pid"]
    machine.close()
    os.kill(front, signal.SIGKILL)

    def answers() -> bool:
        try:
            return bool(machine.exec("vm1", "echo", timeout=0.2).status == 0)
        except MachineError:
            return False

    wait(answers, "the new front door answers")
    after = lab.rows(machine)
    lab.note()
    counters = after["machine"]["counters"]
    assert (counters["front_pid"] != front, counters["front_restarts"]) == (True, 1)
    assert [(row["name"], row["pid"], row["state"]) for row in after.values()] == [
        (row["name"], row["pid"], row["state"]) for row in before.values()
    ]
    machine.down()
    assert lab.leftovers() == []


@pytest.mark.parametrize("arch", ["microkernel", "disaggregated"])
def test_the_zygote_is_replaced_and_no_vm_notices(lab: Lab, wait: Wait, arch: str) -> None:
    machine = lab.up(arch)
    before = lab.rows(machine)
    os.kill(before["zygote"]["pid"], signal.SIGKILL)
    wait(lambda: lab.rows(machine)["zygote"]["incarnation"] == 2, "there is a new zygote")
    wait(lambda: lab.rows(machine)["zygote"]["state"] == "ready", "it is ready")
    after = lab.rows(machine)
    lab.note()
    assert after["zygote"]["pid"] != before["zygote"]["pid"]
    for name in set(before) - {"zygote"}:
        assert (after[name]["pid"], after[name]["state"]) == (before[name]["pid"], "ready")
    assert disk_works(machine, "vm1")
    machine.down()
    assert lab.leftovers() == []


def test_several_components_at_once_are_each_shown_dead_and_down_still_returns(lab: Lab, wait: Wait) -> None:
    machine = lab.up("disaggregated", vms=3, policy=lab.NOTHING_FOLLOWS)
    before = lab.rows(machine)
    victims = {"hypervisor", "parent", "netvsp", "vm2"}
    for name in victims:
        os.kill(before[name]["pid"], signal.SIGKILL)
    wait(lambda: {n for n, row in lab.rows(machine).items() if row["state"] == "dead"} == victims, "all are shown dead")
    assert machine.exec("vm3", "echo the console lives").status == 0
    machine.down()
    assert lab.leftovers() == []


def test_a_signal_other_than_kill_is_named_as_what_it_is(lab: Lab, wait: Wait) -> None:
    machine = lab.up()
    os.kill(lab.rows(machine)["vm1"]["pid"], signal.SIGSEGV)
    wait(lambda: lab.rows(machine)["vm1"]["state"] == "dead", "vm1 is shown dead")
    assert lab.rows(machine)["vm1"]["signal"] == "SIGSEGV"
