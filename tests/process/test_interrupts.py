"""Is an interrupted ``up`` as if it had never been, and does Ctrl-C of ``exec`` reach the command in the guest?"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from vmbus_emu.client.starter import recorded_processes
from vmbus_emu.runfolder import RunFolder

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

#: How far ``up`` has come when it is interrupted: the number of recorded processes; -1: nothing is there yet but
#: the machine's own process, which has the lock.
MOMENTS = (-1, 1, 4, 8)
INTERRUPTED = 130


def interrupt_up(lab: Lab, wait: Wait, arch: str, moment: int, number: int) -> tuple[int, str]:
    """Send the client of an ``up`` a signal at that moment; its status and standard error."""
    program = lab.program("up", "--name", "m", "--arch", arch, "--vms", "24")
    folder = RunFolder("m")
    wait(lambda: folder.holder() is not None and len(recorded_processes(folder)) >= moment, f"{moment} processes")
    assert program.poll() is None, "up was over before it could be interrupted"
    lab.note()
    program.send_signal(number)
    _, errors = program.communicate(timeout=20)
    return program.returncode, errors.decode()


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_during_up_leaves_nothing(lab: Lab, wait: Wait, moment: int) -> None:
    status, errors = interrupt_up(lab, wait, "disaggregated", moment, signal.SIGINT)
    assert (status, "Traceback" in errors) == (INTERRUPTED, False)
    assert lab.leftovers() == []  # at once: the client returns when its machine has gone


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_client_killed_during_up_leaves_nothing(lab: Lab, wait: Wait, moment: int) -> None:
    status, _ = interrupt_up(lab, wait, "disaggregated", moment, signal.SIGKILL)
    assert status == -signal.SIGKILL
    wait(lambda: lab.leftovers() == [], "the machine takes itself down")


def test_ctrl_c_during_up_of_a_monolith_leaves_nothing(lab: Lab, wait: Wait) -> None:
    status, _ = interrupt_up(lab, wait, "monolithic", 1, signal.SIGINT)
    assert status == INTERRUPTED
    assert lab.leftovers() == []


def test_the_name_is_free_at_once_after_an_interrupted_up(lab: Lab, wait: Wait) -> None:
    interrupt_up(lab, wait, "microkernel", 4, signal.SIGINT)
    assert lab.up().exec("vm1", "echo hello").stdout == b"hello\n"


def client_goes(lab: Lab, wait: Wait, arch: str, how: signal.Signals) -> int:
    """Signal the client of a guest command that needs no reader, and wait for the command to end; its status."""
    machine = lab.up(arch)
    program = lab.program("exec", "--name", "m", "vm1", "--", "ping", "-q", "-i", "0.01", "vm2")
    assert program.stdout is not None
    assert program.stdout.readline().startswith(b"PING vm2")
    program.send_signal(how)
    program.communicate(timeout=20)

    def quiet() -> bool:
        """No frame leaves vm1 for ten times the interval of its pings."""
        return vm1(machine.ps(window=0.1))["io_per_s"] == 0 == vm1(machine.ps(window=0.1))["io_per_s"]

    wait(quiet, "the guest has stopped pinging")
    assert machine.exec("vm1", "echo hello").stdout == b"hello\n"
    return program.returncode


@pytest.mark.parametrize("arch", ["monolithic", "microkernel"])
def test_ctrl_c_of_exec_cancels_the_guest_command(lab: Lab, wait: Wait, arch: str) -> None:
    assert client_goes(lab, wait, arch, signal.SIGINT) == INTERRUPTED


@pytest.mark.parametrize("arch", ["monolithic", "microkernel"])
def test_a_killed_client_of_exec_takes_its_silent_guest_command_with_it(lab: Lab, wait: Wait, arch: str) -> None:
    assert client_goes(lab, wait, arch, signal.SIGKILL) == -signal.SIGKILL


def vm1(report: dict[str, object]) -> dict[str, object]:
    partitions = report["partitions"]
    assert isinstance(partitions, list)
    (row,) = (row for row in partitions if row["name"] == "vm1")
    return dict(row)


@pytest.mark.parametrize("arch", ["monolithic", "microkernel", "disaggregated"])
def test_a_command_past_its_deadline_ends_with_124_and_the_vm_lives_on(lab: Lab, arch: str) -> None:
    machine = lab.up(arch)
    assert lab.cli("exec", "--name", "m", "--timeout", "0.2", "vm1", "--", "sleep", "60")[0] == 124
    result = machine.exec("vm1", "ping -i 0.05 vm2", timeout=0.3)
    assert result.status == 124
    assert result.stdout.startswith(b"PING vm2")
    assert machine.exec("vm1", "echo hello").stdout == b"hello\n"
