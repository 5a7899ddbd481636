"""Two deaths in a row: who could have told a guest is dead too, and it must still not wait for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Lab

GONE = "the disk is gone"


TRANSPORTS = pytest.mark.parametrize("transport", ["zmq", "ring"])


@TRANSPORTS
@pytest.mark.parametrize("order", [("hypervisor", "parent"), ("parent", "hypervisor")], ids="-then-".join)
def test_without_hypervisor_and_parent_a_guest_hears_of_its_devices(
    lab: Lab, order: tuple[str, ...], transport: str
) -> None:
    machine = lab.up("microkernel", transport=transport, policy=lab.NOTHING_FOLLOWS)
    for component in order:
        lab.kill(machine, component)
    read = machine.exec("vm1", "sha256 disk0", timeout=20)
    assert (read.status, GONE in read.stderr.decode()) == (1, True)
    ping = machine.exec("vm1", "ping -c 1 vm2", timeout=20)
    assert (ping.status, "network adapter is gone" in ping.stdout.decode()) == (1, True)


@TRANSPORTS
def test_a_disaggregated_guest_keeps_the_device_whose_vsp_lives(lab: Lab, transport: str) -> None:
    machine = lab.up("disaggregated", transport=transport, policy=lab.NOTHING_FOLLOWS)
    for component in ("hypervisor", "parent", "storvsp"):
        lab.kill(machine, component)
    read = machine.exec("vm1", "sha256 disk0", timeout=20)
    assert (read.status, GONE in read.stderr.decode()) == (1, True)
    assert machine.exec("vm1", "ping -c 1 vm2", timeout=20).status == 0


@TRANSPORTS
def test_a_command_that_waits_for_its_disk_ends_when_the_last_who_could_answer_is_dead(
    lab: Lab, transport: str
) -> None:
    machine = lab.up("microkernel", transport=transport, policy=lab.NOTHING_FOLLOWS)
    lab.kill(machine, "hypervisor")
    program = lab.program("exec", "--name", "m", "vm1", "--", "null", "disk0", "100000000")
    lab.kill(machine, "parent")
    _, errors = program.communicate(timeout=30)
    assert (program.returncode, GONE in errors.decode()) == (1, True)
