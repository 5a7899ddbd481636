"""A database on a disk: wherever the power fails, SQLite finds what was committed, and nothing else.

All writes and flushes of several transactions are recorded. Then the disk is made anew as it would be after each of
them, with and without what no flush had covered, opened, and held against what had been committed by then.
"""

from __future__ import annotations

import itertools
import random
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import apsw
import pytest

from partitions.child.blocking_disk import BlockingDisk
from partitions.child.console import CommandError
from partitions.child.extents import DatabaseDisk, Extent, NoRoom
from partitions.child.sqlite_vfs import opened
from vmbus_emu.device import BLOCK_SIZE, BlockInfo, BlockRequest, BlockStats, Op, Status
from vmbus_emu.loop import Loop
from vmbus_emu.protocol.database import LEAST_BYTES, PAGE, SECTOR, NoDatabase, Superblock, decode, laid_out

SIZE = 1 << 20


class Write(NamedTuple):
    offset: int
    data: bytes


FLUSH = Write(0, b"")


class Disk:
    """In memory; ``log`` is what was written and flushed, in order."""

    info = BlockInfo(SIZE // BLOCK_SIZE)

    def __init__(self, content: bytes = bytes(SIZE)) -> None:
        self.content = bytearray(content)
        self.log: list[Write] = []

    def allocate(self, nbytes: int) -> memoryview:
        return memoryview(bytearray(nbytes))

    def stats(self) -> BlockStats:
        return BlockStats()

    def submit(self, request: BlockRequest) -> None:
        start = request.lba * BLOCK_SIZE
        if request.op is Op.FLUSH:
            self.log.append(FLUSH)
        elif request.op is Op.WRITE:
            self.log.append(Write(start, bytes(request.buffer)))  # type: ignore[arg-type]
            self.content[start : start + request.blocks * BLOCK_SIZE] = self.log[-1].data
        else:
            request.buffer[:] = self.content[start : start + request.blocks * BLOCK_SIZE]  # type: ignore[index]
        request.finish(Status.OK)


@pytest.fixture
def blocking(loop: Loop) -> tuple[Disk, BlockingDisk]:
    disk = Disk()
    return disk, BlockingDisk(loop, disk, lambda: False)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_an_extent_is_a_file(blocking: tuple[Disk, BlockingDisk], keeps: bool, seed: int) -> None:
    room = 8 * PAGE
    disk, below = blocking
    disk.content[:] = random.Random(0).randbytes(SIZE)  # what others have left there must never be seen
    extent = Extent(below, PAGE, room, 0, keeps)
    chance, model = random.Random(seed), bytearray()
    for _ in range(300):
        at, length = chance.randrange(room), chance.choice((1, 12, 4096, 4104, 9000))
        match chance.randrange(6):
            case 0 | 1:
                data = chance.randbytes(min(length, room - at))
                extent.write(at, data)
                model.extend(bytes(max(0, at - len(model))))
                model[at : at + len(data)] = data
            case 2:
                extent.truncate(at)
                model[at:] = bytes(max(0, at - len(model)))
            case 3:
                extent.write_back()
            case 4:
                extent.write_back()
                extent = Extent(below, PAGE, room, extent.length, keeps)
            case _:
                assert extent.read(at, length) == model[at : at + length]
        assert extent.length == len(model)
    assert extent.read(0, room) == model
    outside = bytearray(random.Random(0).randbytes(SIZE))
    assert disk.content[:PAGE] == outside[:PAGE]
    assert disk.content[PAGE + room :] == outside[PAGE + room :]


def test_a_file_does_not_outgrow_its_extent(blocking: tuple[Disk, BlockingDisk]) -> None:
    extent = Extent(blocking[1], PAGE, PAGE, 0, keeps=True)
    extent.write(PAGE - 1, b"x")
    with pytest.raises(NoRoom):
        extent.write(PAGE - 1, b"xy")
    with pytest.raises(NoRoom):
        extent.truncate(PAGE + 1)


def test_the_superblock_is_found_again_and_damage_is_told() -> None:
    block = laid_out(SIZE)._replace(journal_length=4096, database_length=12345)
    assert decode(block.encode(), SIZE) == block
    for place in range(80):
        broken = bytearray(block.encode())
        broken[place] ^= 4
        with pytest.raises(NoDatabase):
            decode(bytes(broken), SIZE)
    with pytest.raises(NoDatabase, match="beyond the end"):
        decode(block.encode(), SIZE // 4)
    with pytest.raises(NoDatabase, match="too few"):
        laid_out(LEAST_BYTES - 1)
    with pytest.raises(NoDatabase, match="no database"):
        decode(bytes(SECTOR), SIZE)


@pytest.mark.parametrize("nbytes", [LEAST_BYTES, LEAST_BYTES + 512, 3 << 20, 64 << 20, 1 << 40])
def test_extents_do_not_overlap_and_fill_the_disk(nbytes: int) -> None:
    block = laid_out(nbytes)
    assert block.journal_start >= SECTOR
    assert block.journal_start + block.journal_room == block.database_start
    assert nbytes - PAGE < block.database_start + block.database_room <= nbytes
    assert decode(block.encode(), nbytes) == block


# -- power failures ---------------------------------------------------------------------------------------------------


class Committed(NamedTuple):
    """After so many entries of the disk's log the table has this content for certain."""

    entries: int
    rows: list[tuple[int, bytes]]


def transactions(disk: Disk) -> list[Committed]:
    """Some of all kinds: more rows, changed rows, fewer rows, a rollback, more pages than SQLite's cache holds."""
    loop, chance = Loop(), random.Random(1)
    committed = []
    below = BlockingDisk(loop, disk, lambda: False)
    with opened("crash", lambda: DatabaseDisk.format(below)) as connection:

        def note() -> None:
            committed.append(Committed(len(disk.log), rows(connection)))

        connection.execute("PRAGMA cache_size = 10; CREATE TABLE t (id INTEGER PRIMARY KEY, told BLOB)")
        note()
        for number in range(12):
            connection.execute("BEGIN")
            for _ in range(60 if number in (3, 9) else 3):
                place = chance.randrange(80)
                connection.execute("INSERT OR REPLACE INTO t VALUES (?, ?)", (place, chance.randbytes(900)))
            if number in (5, 10):
                connection.execute("DELETE FROM t WHERE id % 3 = ?", (number % 3,))
            connection.execute("ROLLBACK" if number == 7 else "COMMIT")
            note()
    loop.close()
    return committed


def rows(connection: apsw.Connection) -> list[tuple[int, bytes]]:
    return connection.execute("SELECT id, told FROM t ORDER BY id").fetchall()


def after(log: list[Write], cut: int) -> Iterator[bytes]:
    """The disks that may be there when the power fails after ``cut`` entries: everything; what was flushed; that and
    one of the writes since; that and all but one of them."""
    flushed = max((at for at in range(cut) if log[at] is FLUSH), default=0)
    certain = bytearray(SIZE)
    for write in log[:flushed]:
        certain[write.offset : write.offset + len(write.data)] = write.data
    pending = log[flushed:cut]
    seen = set()
    nearly_none = ([write] for write in pending)
    nearly_all = ([other for other in pending if other is not write] for write in pending)
    for kept in itertools.chain([pending, []], nearly_none, nearly_all):
        content = bytearray(certain)
        for write in kept:
            content[write.offset : write.offset + len(write.data)] = write.data
        if bytes(content) not in seen:
            seen.add(bytes(content))
            yield bytes(content)


def test_wherever_the_power_fails_sqlite_finds_what_was_committed(loop: Loop) -> None:
    disk = Disk()
    committed = transactions(disk)
    assert len(disk.log) > 80
    recovered = cuts = 0
    for cut in range(committed[0].entries, len(disk.log) + 1):
        last = max(index for index, one in enumerate(committed) if one.entries <= cut)
        allowed = [one.rows for one in committed[last : last + 2]]
        for content in after(disk.log, cut):
            cuts += 1
            mount = partial(DatabaseDisk.mount, BlockingDisk(loop, Disk(content), lambda: False))
            with opened("after", mount) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], cut
                assert rows(connection) in allowed, f"cut after {cut} of {len(disk.log)}, {last} committed"
            recovered += bool(decode(content[:SECTOR], SIZE).journal_length)
    assert cuts > len(disk.log)
    assert recovered > 20, "journals were needed"


def test_what_the_power_failure_left_is_recovered_by_another_sqlite(tmp_path: Path) -> None:
    disk = Disk()
    committed = transactions(disk)
    hot = 0
    for cut in range(committed[0].entries, len(disk.log) + 1, 3):
        *_, content = after(disk.log, cut)
        block = decode(content[:SECTOR], SIZE)
        last = max(index for index, one in enumerate(committed) if one.entries <= cut)
        hot += put(tmp_path, content, block)
        with sqlite3.connect(tmp_path / "db") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            found = connection.execute("SELECT id, told FROM t ORDER BY id").fetchall()
        connection.close()
        assert found in [one.rows for one in committed[last : last + 2]]
    assert hot > 5


def put(folder: Path, content: bytes, block: Superblock) -> bool:
    """The database and its journal as files; whether there was one."""
    journal = folder / "db-journal"
    (folder / "db").write_bytes(content[block.database_start :][: block.database_length])
    journal.unlink(missing_ok=True)
    if block.journal_length:
        journal.write_bytes(content[block.journal_start :][: block.journal_length])
    return bool(block.journal_length)


# -- SQLite's own errors ----------------------------------------------------------------------------------------------


def test_a_full_disk_is_an_error_of_the_statement_and_harms_nothing(blocking: tuple[Disk, BlockingDisk]) -> None:
    with opened("full", lambda: DatabaseDisk.format(blocking[1])) as connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, told BLOB); INSERT INTO t VALUES (1, x'00')")
        with pytest.raises(apsw.FullError):
            connection.execute("INSERT INTO t VALUES (2, zeroblob(?))", (SIZE,))
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM t").fetchall() == [(1,)]
    assert blocking[1].failure is None


def test_a_database_has_one_user(blocking: tuple[Disk, BlockingDisk]) -> None:
    with (
        opened("twice", lambda: DatabaseDisk.format(blocking[1])),
        pytest.raises(CommandError, match="in use"),
        opened("twice", lambda: DatabaseDisk.format(blocking[1])),
    ):
        pass
    with opened("twice", lambda: DatabaseDisk.mount(blocking[1])) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
