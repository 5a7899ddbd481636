"""The guest's larger loads: what they do, and what they find out about a disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import pytest

from partitions.child.commands import fileserver
from tests.waiting_guests import Bench, Disk
from vmbus_emu.device import BLOCK_SIZE, BlockInfo, BlockRequest, Op, Status

LOADS = ("sqlitebench", "kvlog", "fileserver")


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


# -- what they do -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", LOADS)
def test_a_load_says_how_much_it_did(bench: Bench, load: str) -> None:
    status, told = bench.run(load, "-T", "0.05", "disk0")
    assert status == 0, told
    assert json.loads(told)["requests"] > 5
    assert json.loads(told)["seconds"] >= 0.05
    assert bench.disks["disk1"].requests == 0


@pytest.mark.parametrize("load", LOADS)
def test_a_load_finds_room_on_a_disk_that_others_use_too(bench: Bench, load: str) -> None:
    disk = bench.disks["disk0"]
    disk.depth = 1
    busy = bench.start("iobench", "-o", "read", "-d", "1", "-T", "0.3", "disk0")
    status, told = bench.run(load, "-T", "0.1", "disk0")
    assert status == 0, told
    bench.end(busy)
    assert disk.refused


def test_a_file_server_keeps_its_depth_and_never_overlaps_a_write(bench: Bench) -> None:
    disk, most = bench.disks["disk0"], 0

    def look(request: BlockRequest) -> None:
        nonlocal most
        under_way = [one for one in (request, *disk.pending) if one.op in (Op.READ, Op.WRITE)]
        most = max(most, len(under_way))

    submit = disk.submit

    def checked(request: BlockRequest) -> None:
        look(request)
        for other in disk.pending:
            apart = request.lba + request.blocks <= other.lba or other.lba + other.blocks <= request.lba
            assert apart or Op.WRITE not in (request.op, other.op)
        submit(request)

    disk.submit = checked  # type: ignore[method-assign]
    status, told = bench.run("fileserver", "-d", "16", "-T", "0.1", "disk0")
    assert status == 0, told
    assert most >= 10


def test_wishes_are_the_mix_they_say() -> None:
    made = fileserver.wishes(1024)
    ops = [next(made).op for _ in range(20_000)]
    shares = [ops.count(op) / len(ops) for op in (Op.READ, Op.WRITE, Op.FLUSH)]
    assert shares == pytest.approx([0.70, 0.25, 0.05], abs=0.02)


# -- what they find out -----------------------------------------------------------------------------------------------


def lost(disk: Disk, request: BlockRequest) -> Status:
    """Acknowledged and not done."""
    return Status.OK


def flipped(disk: Disk, request: BlockRequest) -> Status:
    """Done, but for one bit."""
    status = disk.done(request)
    disk.content[request.lba * BLOCK_SIZE + request.blocks * BLOCK_SIZE // 2] ^= 16
    return status


@pytest.mark.parametrize("how", [lost, flipped])
@pytest.mark.parametrize("load", ["kvlog", "fileserver"])
@pytest.mark.parametrize("first", [1, 30])
def test_lies_of_the_disk_are_found_out(
    bench: Bench, load: str, how: Callable[[Disk, BlockRequest], Status], first: int
) -> None:
    disk = bench.disks["disk0"]

    def lie(request: BlockRequest) -> Status | None:
        """Of the writes from the first, every fifth."""
        told = request.op is Op.WRITE and disk.writes >= first and disk.writes % 5 == 1
        disk.writes += told
        return how(disk, request) if told else None

    disk.lie = lie
    status, told = bench.run(load, "-T", "0.1", "disk0")
    assert status == 1
    assert "the log" in told or "something else" in told


def test_commits_that_never_reach_the_disk_are_found_out(bench: Bench) -> None:
    disk = bench.disks["disk0"]
    disk.lie = lambda request: Status.OK if request.op is Op.WRITE and disk.requests > 80 else None
    status, told = bench.run("sqlitebench", "-T", "0.1", "disk0")
    assert status == 1
    assert "vm1.disk0: " in told


@pytest.mark.parametrize("load", LOADS)
def test_a_failing_disk_ends_the_command_with_its_reason_and_not_the_guest(bench: Bench, load: str) -> None:
    disk = bench.disks["disk0"]
    disk.lie = lambda request: Status.IO_ERROR if disk.requests > 90 else None
    status, told = bench.run(load, "-T", "5", "disk0")
    assert (status, told.count("\n")) == (1, 1)
    assert "I/O error" in told
    disk.lie = lambda request: None
    assert bench.run(load, "-T", "0.02", "disk0")[0] == 0


def test_without_apsw_it_says_what_to_install(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apsw", None)
    status, told = bench.run("sqlitebench", "disk0")
    assert status == 1
    assert "pip install 'vmbus-emu[macro]'" in told


@pytest.mark.parametrize("words", [(), ("disk0", "disk1"), ("-d", "2", "disk0"), ("-x", "disk0")])
def test_wrong_usage(bench: Bench, words: tuple[str, ...]) -> None:
    assert bench.run("sqlitebench", *words)[0] == 2


def test_disks_that_are_too_small_are_refused(bench: Bench) -> None:
    for load in LOADS:
        bench.disks["disk0"].info = BlockInfo(4)  # type: ignore[misc]
        status, told = bench.run(load, "disk0")
        assert status == 1
        assert "too few" in told
