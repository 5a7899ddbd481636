"""The VMs' serial consoles: bytes in both directions, several sessions at once, bounded by who reads."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import psutil
import pytest

from vmbus_emu.client import Machine, MachineError

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

PLACEMENTS = ("monolithic", "microkernel", "disaggregated")
MIB = 1 << 20


def big_disks(size: str) -> list[dict[str, object]]:
    return [{"name": name, "disk": [{"ram": size}]} for name in ("vm1", "vm2")]


@pytest.mark.parametrize("arch", PLACEMENTS)
def test_8_mib_of_bytes_go_in_and_come_out_unchanged(lab: Lab, arch: str) -> None:
    lab.up(arch, vm=big_disks("8MiB"))
    data = random.Random(3).randbytes(8 * MIB)
    status, out, errors = lab.cli("exec", "--name", "m", "vm1", "--", "dd", "if=-", "of=disk0", "bs=64k", stdin=data)
    assert (status, out) == (0, b""), errors
    assert errors.startswith(f"{8 * MIB} bytes copied")
    status, out, errors = lab.cli("exec", "--name", "m", "vm1", "--", "dd", "if=disk0", "of=-", "bs=1M")
    assert (status, out == data) == (0, True), errors


@pytest.mark.parametrize("arch", ["monolithic", "microkernel"])
def test_two_sessions_carry_8_mib_both_ways_at_once(lab: Lab, arch: str) -> None:
    lab.up(arch)
    echoed: dict[int, bytes] = {}

    def echo(number: int, machine: Machine, data: bytes) -> None:
        echoed[number] = machine.exec("vm1", "cat", stdin=data, timeout=60).stdout

    sent = [random.Random(number).randbytes(8 * MIB) for number in range(2)]
    threads = [threading.Thread(target=echo, args=(n, lab.attach(), data)) for n, data in enumerate(sent)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [echoed.get(number) == data for number, data in enumerate(sent)] == [True, True]


@pytest.mark.parametrize("arch", PLACEMENTS)
def test_a_reader_that_stops_reading_stops_the_writer_and_grows_nobodys_memory(
    lab: Lab, wait: Wait, arch: str
) -> None:
    machine = lab.up(arch, vm=big_disks("64MiB"))
    machine.exec("vm1", "dd if=disk0 of=- bs=1M count=1")  # everybody has the buffers that a read takes
    rows = lab.rows(machine)
    counters = rows["machine"]["counters"]
    carriers = {name: rows[name]["pid"] for name in ("machine", "hypervisor", "vm1")} | {"front": counters["front_pid"]}
    before = {name: private_bytes(pid) for name, pid in carriers.items()}
    reads_before = rows["vm1"]["counters"]["disk_reads"]
    program = lab.program("exec", "--name", "m", "vm1", "--", "dd", "if=disk0", "of=-", "bs=1M")
    assert program.stdout is not None
    assert program.stdout.read(1) == b"\0"  # it has begun; from here on nobody reads

    seen: list[int] = []

    def stalled() -> bool:
        """Ten looks in a row show the same number of requests."""
        seen.append(lab.rows(machine)["vm1"]["counters"]["disk_reads"] - reads_before)
        return len(seen) > 10 and len(set(seen[-10:])) == 1

    wait(stalled, "the guest waits for its reader")
    assert 0 < seen[-1] < 32  # requests of 256 KiB; the whole disk would be 256 of them
    grown = {name: private_bytes(pid) - before[name] for name, pid in carriers.items()}
    assert max(grown.values()) < 8 * MIB, grown
    assert machine.exec("vm1", "echo other sessions go on").status == 0
    out, _ = program.communicate(timeout=30)
    assert (program.returncode, len(out) + 1) == (0, 64 * MIB)


def private_bytes(pid: int) -> int:
    return int(psutil.Process(pid).memory_full_info().uss)


@pytest.mark.parametrize("arch", ["monolithic", "microkernel"])
def test_a_writer_nobody_listens_to_is_held_back_too(lab: Lab, arch: str) -> None:
    machine = lab.up(arch)
    rows = lab.rows(machine)
    before = private_bytes(rows["vm1"]["pid"])
    result = machine.exec("vm1", "sleep 0.5", stdin=bytes(32 * MIB))
    assert result.status == 0
    assert private_bytes(rows["vm1"]["pid"]) - before < 4 * MIB


@pytest.mark.parametrize("arch", PLACEMENTS)
def test_the_guest_commands_own_status_and_streams_arrive(lab: Lab, arch: str) -> None:
    machine = lab.up(arch)
    for command, status, out, error in [
        ("true", 0, b"", b""),
        ("false", 1, b"", b""),
        ("echo a  'b c'", 0, b"a b c\n", b""),
        ("no-such", 127, b"", b"no-such: no such command"),
        ("sleep", 2, b"", b"sleep: it takes"),
        ("sha256 disk9", 1, b"", b"disk9"),
        ("read disk0 4194304 1", 1, b"", b"ends at byte 4194304"),
    ]:
        result = machine.exec("vm1", command)
        assert (result.status, result.stdout) == (status, out), command
        assert error in result.stderr
        assert bool(error) == bool(result.stderr)


def test_exec_of_the_program_has_the_statuses_of_the_contract(lab: Lab) -> None:
    lab.up()
    for command, status, error in [
        (["vm1", "--", "true"], 0, ""),
        (["vm1", "--", "false"], 1, ""),
        (["vm1", "--", "no-such"], 127, "no such command"),
        (["vm1", "--", "sleep", "soon"], 2, "usage: sleep SECONDS"),
        (["vm1"], 2, "Missing argument"),
        (["vm9", "--", "true"], 1, '"m" has no VM "vm9"; one of vm1, vm2'),
    ]:
        got, out, errors = lab.cli("exec", "--name", "m", *command)
        assert (got, out) == (status, b""), command
        assert error in errors
        assert bool(error) == bool(errors)


def test_every_command_explains_itself_with_status_0(lab: Lab) -> None:
    machine = lab.up()
    listed = machine.exec("vm1", "help").stdout.decode().split("\n\n")[0].splitlines()
    names = [line.split()[0] for line in listed]
    assert {"ping", "sha256", "dd", "write", "dmesg", "lsvmbus"} <= set(names)
    for name in names:
        result = machine.exec("vm1", f"{name} --help")
        assert (result.status, result.stdout.startswith(f"usage: {name}".encode())) == (0, True)


def test_the_api_refuses_an_unknown_vm_and_names_those_there_are(lab: Lab) -> None:
    with pytest.raises(MachineError, match="no VM 'vm9'") as raised:
        lab.up().exec("vm9", "true")
    assert raised.value.hint == "the VMs are: vm1, vm2"
