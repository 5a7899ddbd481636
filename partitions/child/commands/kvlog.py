"""``kvlog``: a key-value store that is a log. A put appends a record and flushes; where each key's last record lies is
known in memory. Afterwards the log is read back from the disk: every record must be whole and in its place, and the
last one of each key must be the value that was put.

On the disk: the records from its first byte, one behind the other, whole sectors being written. A record is a header
(CRC-32 of what follows in it, the log's number, the record's, lengths of key and value), the key and the value. The
log ends where a record is not of this log's number or not the next one.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from time import monotonic_ns, time_ns
from typing import Any

from partitions.child import busy
from partitions.child.commands import blockio
from partitions.child.commands.blockio import REASONS
from partitions.child.commands.macro import asked
from partitions.child.console import CommandError, Session
from partitions.child.writers import Writer
from vmbus_emu.device import BLOCK_SIZE, FLUSH, OK, WRITE, BlockDevice, BlockRequest, Status
from vmbus_emu.loop import Loop
from vmbus_emu.task import Future

KEYS = 1000
_LEAST_VALUE, _MOST_VALUE = 100, 1000
_HEADER = struct.Struct("<IIQHH")   # CRC, log, record, key length, value length
_CRC = struct.Struct("<I")
_NOISE = random.Random(3).randbytes(1 << 16)


class LogStore:
    """Puts on ``device``, one at a time; each is on the medium when it is acknowledged."""

    def __init__(self, loop: Loop, device: BlockDevice) -> None:
        self._loop = loop
        self._device = device
        self.number = time_ns() & 0xFFFFFFFF     # what an earlier log left is not of this one
        self.records = 0
        self.length = 0
        #: Key to byte offset and length of its last record.
        self.index: dict[bytes, tuple[int, int]] = {}
        self._tail = b""                        # of the last sector, what is in use
        self._room = device.allocate(_most_sectors() * BLOCK_SIZE)

    @property
    def full(self) -> bool:
        """Whether there may be no room for one more record."""
        return self.length + len(self._room) > self._device.info.size_bytes

    def put(self, key: bytes, value: bytes, done: Callable[[Status], Any]) -> None:
        """``done`` is called when the record is durable, or with why it is not."""
        body = _HEADER.pack(0, self.number, self.records, len(key), len(value))[_CRC.size :] + key + value
        record = _CRC.pack(zlib.crc32(body)) + body
        start = self.length - len(self._tail)
        data = self._tail + record
        blocks = -(-len(data) // BLOCK_SIZE)
        view = self._room[: blocks * BLOCK_SIZE]
        view[: len(data)] = data
        view[len(data) :] = bytes(len(view) - len(data))
        self.index[key] = self.length, len(record)
        self.records += 1
        self.length += len(record)
        self._tail = data[len(data) - len(data) % BLOCK_SIZE :]

        def written(request: BlockRequest) -> None:
            if request.status is OK:
                busy.submit(self._loop, self._device, FLUSH, 0, 0, None, lambda request: done(_status(request)))
            else:
                done(_status(request))

        busy.submit(self._loop, self._device, WRITE, start // BLOCK_SIZE, blocks, view, written)


class Puts:
    """One put after the other on ``store`` for ``duration_ns``, or until it is full. ``writer`` rests between two."""

    def __init__(
        self, loop: Loop, store: LogStore, writer: Writer, duration_ns: int, record: Callable[[int], Any]
    ) -> None:
        self._loop = loop
        self._store = store
        self._writer = writer
        self._record = record
        self._chance = random.Random(1)
        self._begun = self._from = monotonic_ns()
        self._end = self._begun + duration_ns
        self.seconds_ns = 0
        self.finished: Future[Status] = Future()

    def next(self) -> None:
        if self._writer.held:
            self._writer.rest().then(lambda thawed: self._loop.call_soon(self.next))
            return
        self._from = now = monotonic_ns()
        if now >= self._end or self._store.full:
            self.seconds_ns = now - self._begun
            self.finished.resolve(OK)
            return
        self._store.put(key(self._chance.randrange(KEYS)), value(self._store.records), self._done)

    def stop(self) -> None:
        """Put nothing more."""
        self._end = 0

    def _done(self, status: Status) -> None:
        if status is not OK:
            self.finished.resolve(status)
            return
        self._record(monotonic_ns() - self._from)
        self._loop.call_soon(self.next)     # not from here: the completion may have come inside ``submit``


def key(number: int) -> bytes:
    return b"key-%06d" % number


def value(record: int) -> bytes:
    """What the log's ``record`` holds."""
    length = _LEAST_VALUE + record * 7919 % (_MOST_VALUE - _LEAST_VALUE)
    start = record * 104729 % (len(_NOISE) - length)
    return _NOISE[start : start + length]


def _status(request: BlockRequest) -> Status:
    assert request.status is not None
    return request.status


def _most_sectors() -> int:
    longest = BLOCK_SIZE - 1 + _HEADER.size + len(key(0)) + _MOST_VALUE
    return -(-longest // BLOCK_SIZE)


async def found(loop: Loop, store: LogStore, device: BlockDevice) -> tuple[int, dict[bytes, tuple[int, int]]]:
    """The log as it is on the disk: how many records, and the index made anew. Raises :class:`CommandError` where a
    record's content is not what was put there."""
    records = offset = 0
    index: dict[bytes, tuple[int, int]] = {}
    async for record in _records(loop, device, store.number):
        _, _, _, key_length, _ = _HEADER.unpack_from(record)
        if record[_HEADER.size + key_length :] != value(records):
            raise CommandError(f"record {records} of the log holds another value than was put")
        index[record[_HEADER.size : _HEADER.size + key_length]] = offset, len(record)
        records += 1
        offset += len(record)
    return records, index


async def _records(loop: Loop, device: BlockDevice, number: int) -> AsyncIterator[bytes]:
    expected = 0
    have = b""
    async for piece in blockio.read_blocks(loop, device, 0, device.info.block_count):
        have += bytes(piece)
        at = 0
        while at + _HEADER.size <= len(have):
            crc, log, record, key_length, value_length = _HEADER.unpack_from(have, at)
            end = at + _HEADER.size + key_length + value_length
            if (log, record) != (number, expected):
                return
            if end > len(have):
                break
            if zlib.crc32(have[at + _CRC.size : end]) != crc:
                return
            yield have[at:end]
            expected += 1
            at = end
        have = have[at:]


async def kvlog(session: Session, arguments: list[str]) -> int:
    wanted = asked(session, arguments, most_depth=1)
    loop, device = session.guest.loop, wanted.device
    if device.info.size_bytes < 2 * _most_sectors() * BLOCK_SIZE:
        raise CommandError(f"{device.info.size_bytes} bytes are too few for a log")
    store = LogStore(loop, device)
    with session.guest.services.writers.joined("kvlog") as writer:
        puts = Puts(loop, store, writer, wanted.duration_ns, wanted.record)
        puts.next()
        try:
            status = await puts.finished
        finally:
            puts.stop()
    if status is not OK:
        raise CommandError(f"put: {REASONS[status]}")
    records, index = await found(loop, store, device)
    if (records, index) != (store.records, store.index):
        raise CommandError(f"{store.records} puts were acknowledged, and the log holds {records}")
    await session.print(wanted.report(records, puts.seconds_ns))
    return 0
