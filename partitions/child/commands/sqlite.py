"""``sqlitebench``: transactions of an SQLite database on one disk, each durable when it is acknowledged; and
``sqlitecheck``, which looks at what is there.

A transaction inserts a row of about 200 bytes that an index covers, and counts itself in another table, as a service
that logs events would. Afterwards the database is looked at as SQLite looks at it, and its rows are counted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic_ns
from typing import TYPE_CHECKING

from partitions.child.blocking_disk import BlockingDisk, DiskFailure
from partitions.child.commands.blockio import REASONS
from partitions.child.commands.macro import Asked, asked
from partitions.child.commands.options import disk as device_named
from partitions.child.console import CommandError, Session, Usage
from partitions.child.extents import DatabaseDisk
from vmbus_emu.device import BlockDevice
from vmbus_emu.protocol.database import NoDatabase, is_hot
from vmbus_emu.task import Future

if TYPE_CHECKING:
    from apsw import Connection

    from partitions.child.writers import Writer

#: Rows that are kept; each further one replaces the oldest, so the disk is never full.
ROWS = 20_000
_TEXT = 200
_SCHEMA = """
CREATE TABLE event (id INTEGER PRIMARY KEY, subject INTEGER NOT NULL, told TEXT NOT NULL);
CREATE INDEX event_subject ON event (subject);
CREATE TABLE counter (id INTEGER PRIMARY KEY, commits INTEGER NOT NULL);
INSERT INTO counter VALUES (1, 0);
"""
_INSERT = "INSERT OR REPLACE INTO event VALUES (?, ?, ?)"
_COUNT = "UPDATE counter SET commits = commits + 1 WHERE id = 1"


async def sqlitebench(session: Session, arguments: list[str]) -> int:
    wanted = asked(session, arguments, most_depth=1)
    with _used(session, wanted.device) as (name, disk):
        from partitions.child.sqlite_vfs import opened

        with session.guest.services.writers.joined("sqlitebench") as writer:
            await writer.rest()
            with opened(name, lambda: DatabaseDisk.format(disk)) as connection:
                commits, seconds_ns = await _load(session, wanted, writer, connection)
        with opened(name, lambda: DatabaseDisk.mount(disk)) as connection:  # from the disk, and not from SQLite's cache
            wrong = _wrong(connection, commits)
    if wrong:
        raise CommandError(f"{name}: {wrong}")
    await session.print(wanted.report(commits, seconds_ns))
    return 0


async def sqlitecheck(session: Session, arguments: list[str]) -> int:
    if len(arguments) != 1:
        raise Usage("it takes one disk")
    with _used(session, device_named(session, arguments[0])) as (name, disk):
        from partitions.child.sqlite_vfs import opened

        with session.guest.services.writers.joined("sqlitecheck") as writer:
            await writer.rest()
            mounted = DatabaseDisk.mount(disk)
            interrupted = is_hot(mounted.journal.read(0, 1))    # SQLite rolls it back with the first statement
            with opened(name, lambda: mounted) as connection:
                ((commits,),) = connection.execute("SELECT commits FROM counter").fetchall()
                assert isinstance(commits, int)
                wrong = _wrong(connection, commits)
    if wrong:
        raise CommandError(f"{name}: {wrong}")
    rolled_back = ", one rolled back by its journal" if interrupted else ""
    await session.print(f"ok: {commits} transactions{rolled_back}")
    return 0


@contextmanager
def _used(session: Session, device: BlockDevice) -> Iterator[tuple[str, BlockingDisk]]:
    """A disk that SQLite uses, and its name in this process. What goes wrong there is a :class:`CommandError`."""
    try:
        import apsw
    except ModuleNotFoundError:
        raise CommandError("SQLite needs the package apsw; pip install 'vmbus-emu[macro]'") from None
    guest = session.guest
    name = next(f"{guest.name}.{disk}" for disk, other in guest.disks.items() if other is device)
    disk = BlockingDisk(guest.loop, device, lambda: session.cancelled)
    try:
        yield name, disk
    except BaseException as error:
        failure = disk.failure or error     # SQLite may have made something of its own of what the disk met
        if isinstance(failure, DiskFailure):
            raise CommandError(f"{name}: {failure.op.name.lower()}: {REASONS[failure.status]}") from None
        if isinstance(failure, apsw.Error | NoDatabase):
            raise CommandError(f"{name}: {failure}") from None
        raise failure from None


async def _load(session: Session, wanted: Asked, writer: Writer, connection: Connection) -> tuple[int, int]:
    """Transactions, one after the other; how many, and how long they took, in ns."""
    execute, record, call_soon = connection.execute, wanted.record, session.guest.loop.call_soon
    execute(_SCHEMA)
    chance = random.Random(1)
    text = chance.randbytes(2048).hex()
    commits = 0
    begun = monotonic_ns()
    end = begun + wanted.duration_ns
    while (start := monotonic_ns()) < end:
        at = chance.randrange(len(text) - _TEXT)
        execute("BEGIN IMMEDIATE")
        execute(_INSERT, (commits % ROWS, chance.randrange(1000), text[at : at + _TEXT]))
        execute(_COUNT)
        execute("COMMIT")
        record(monotonic_ns() - start)
        commits += 1
        turn: Future[None] = Future()   # the guest does what else there is to do
        call_soon(turn.resolve, None)
        await turn
        await writer.rest()
    return commits, monotonic_ns() - begun


def _wrong(connection: Connection, commits: int) -> str:
    """What of the database is not as ``commits`` transactions must have left it; empty: nothing."""
    told = " ".join(str(value) for (value,) in connection.execute("PRAGMA integrity_check"))
    if told != "ok":
        return f"integrity_check: {told}"
    ((rows,),) = connection.execute("SELECT count(*) FROM event").fetchall()
    ((counted,),) = connection.execute("SELECT commits FROM counter").fetchall()
    if (rows, counted) != (min(commits, ROWS), commits):
        return f"{commits} transactions were committed, and {rows} rows and a count of {counted} are there"
    return ""
