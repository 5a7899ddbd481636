"""What every placement promises a user: one body over the documented API, asked of all three architectures, and of
both transports where there are channels.

The workload cannot tell where its driver lives; so the same lines must do the same things everywhere. What differs,
who shares a process with whom, is asked in ``tests/process``.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmbus_emu.client import Machine, MachineError, NotRunning
from vmbus_emu.runfolder import BASE_VARIABLE, list_machines
from vmbus_emu.topology import TopologyErrors

PLACEMENTS = (
    {"arch": "monolithic"},
    {"arch": "microkernel"},
    {"arch": "microkernel", "transport": "ring"},
    {"arch": "disaggregated"},
    {"arch": "disaggregated", "transport": "ring"},
)
NAMES = ["-".join(placement.values()) for placement in PLACEMENTS]
MIB = 1 << 20


@contextmanager
def run_base() -> Iterator[Path]:
    """A run base of one's own, empty again at the end."""
    folder = Path(tempfile.mkdtemp(prefix="vm", dir="/tmp"))  # socket paths are short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(BASE_VARIABLE, str(folder))
        try:
            yield folder
        finally:
            left = [entry.name for entry in list_machines()]
            for name in left:
                machine = Machine.attach(name)
                machine.down()
            shutil.rmtree(folder)
        assert not left


@pytest.fixture
def base() -> Iterator[Path]:
    with run_base() as folder:
        yield folder


@pytest.fixture(scope="module", params=PLACEMENTS, ids=NAMES)
def shared(request: pytest.FixtureRequest) -> Iterator[tuple[Path, Machine]]:
    vms = [{"name": f"vm{number}", "disk": [{"ram": "4MiB"}]} for number in (1, 2, 3)]
    with run_base() as folder, Machine({"name": "lab", "vm": vms, **request.param}) as running:
        yield folder, running


@pytest.fixture
def machine(shared: tuple[Path, Machine], monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Three VMs with a disk of 4 MiB each, up; what earlier tests wrote is on the disks. None has harmed it."""
    monkeypatch.setenv(BASE_VARIABLE, str(shared[0]))
    assert shared[1].info()["state"] == "ready"
    return shared[1]


@pytest.mark.parametrize("placement", PLACEMENTS, ids=NAMES)
def test_a_machine_is_there_inside_the_with_and_gone_after_it(placement: dict[str, str], base: Path) -> None:
    with Machine({"name": "lab", **placement}) as m:
        m.vm("vm1").disk.write(0, b"hello".ljust(512))
        m.vm("vm1").disk.flush()
        assert m.vm("vm1").disk.read(0, 5) == b"hello"
        result = m.exec("vm1", "ping -c 3 -i 0.01 vm2")
        assert result.status == 0
        assert b"3 packets transmitted, 3 received, 0% packet loss" in result.stdout
        assert m.info()["arch"] == placement["arch"]
        assert m.ps(window=0)["transport"] == ("call" if placement["arch"] == "monolithic" else
                                               placement.get("transport", "zmq"))
    assert list(base.iterdir()) == []
    with pytest.raises(NotRunning):
        m.info()


def test_an_exception_inside_the_with_takes_the_machine_down_too(base: Path) -> None:
    with pytest.raises(ZeroDivisionError), Machine({"name": "lab"}):
        raise ZeroDivisionError
    assert list(base.iterdir()) == []


def test_random_writes_at_odd_places_read_back_as_a_plain_array_would(machine: Machine) -> None:
    dice = random.Random(5)
    disk = machine.vm("vm2").disk
    model = bytearray(4 * MIB)
    disk.write(0, bytes(model))
    for _ in range(20):
        length = dice.choice((1, 511, 512, 513, 4096, 70_001))
        offset = dice.randrange(len(model) - length)
        data = dice.randbytes(length)
        disk.write(offset, data)
        model[offset:offset + length] = data
        begin = max(0, offset - 100)
        assert disk.read(begin, length + 100) == model[begin:begin + length + 100]
    assert disk.sha256() == hashlib.sha256(model).hexdigest()


def test_each_vm_has_a_disk_of_its_own(machine: Machine) -> None:
    for number in (1, 2, 3):
        machine.vm(f"vm{number}").disk.write(0, bytes((number,)) * 512)
    assert [machine.vm(f"vm{number}").disk.read(0, 1) for number in (1, 2, 3)] == [b"\1", b"\2", b"\3"]


def test_discarded_blocks_read_as_zeros(machine: Machine) -> None:
    disk = machine.vm("vm1").disk
    disk.write(0, b"\xff" * 65536)
    assert machine.exec("vm1", "discard disk0 4096 8192").status == 0
    assert disk.read(0, 65536) == b"\xff" * 4096 + bytes(8192) + b"\xff" * (65536 - 12288)


def test_the_end_of_a_disk_is_an_error_and_nothing_is_written_past_it(machine: Machine) -> None:
    disk = machine.vm("vm1").disk
    disk.write(4 * MIB - 512, b"x" * 512)
    with pytest.raises(MachineError, match=r"vm1: write: disk0 ends at byte 4194304"):
        disk.write(4 * MIB - 512, b"y" * 513)
    with pytest.raises(MachineError, match=r"vm1: read: disk0 ends at byte 4194304"):
        disk.read(4 * MIB, 1)


def test_everybody_reaches_everybody(machine: Machine) -> None:
    report = machine.pingall(count=2)
    assert (report["sent"], report["received"], len(report["pairs"])) == (12, 12, 6)
    assert all(pair["ok"] and pair["rtt_ms"] > 0 for pair in report["pairs"])


def test_large_packets_arrive_and_unknown_hosts_do_not_answer(machine: Machine) -> None:
    assert machine.exec("vm3", "ping -c 1 -s 1472 vm1").status == 0
    result = machine.exec("vm3", "ping -c 1 -W 0.2 10.0.9.9")
    assert (result.status, b"100% packet loss" in result.stdout) == (1, True)
    assert machine.exec("vm3", "ping -c 1 nobody").status == 1


def test_a_guest_knows_its_devices(machine: Machine) -> None:
    listed = machine.exec("vm1", "lsblk").stdout.decode().splitlines()[1].split()
    assert (listed[0], listed[1], listed[2], int(listed[3]) >= MIB) == ("disk0", str(4 * MIB), "0", True)
    assert b"10.0.0.2/16" in machine.exec("vm2", "ip").stdout
    assert b"disk0: 8192 blocks of 512 bytes" in machine.exec("vm1", "dmesg").stdout
    assert machine.exec("vm1", "hostname").stdout == b"vm1\n"


def test_a_second_client_finds_the_machine_by_name(machine: Machine) -> None:
    other = Machine.attach("lab")
    try:
        other.vm("vm1").disk.write(0, b"from elsewhere")
        assert machine.vm("vm1").disk.read(0, 14) == b"from elsewhere"
    finally:
        other.close()


def test_null_requests_pass_through_the_whole_path(machine: Machine) -> None:
    result = machine.vm("vm1").exec("null disk0 50")
    assert (result.status, result.stdout.startswith(b"50 null requests: ")) == (0, True)


def test_what_is_wrong_with_a_topology_is_told_before_anything_starts(base: Path) -> None:
    with pytest.raises(TopologyErrors) as raised:
        Machine({"name": "Lab", "arch": "exokernel", "vm": [{"name": "vm1"}, {"name": "vm1"}]})
    assert len(raised.value.lines) == 3
    assert list(base.iterdir()) == []
