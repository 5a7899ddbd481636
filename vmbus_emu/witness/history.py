"""The history of a load's operations, in a memory file that outlives whoever writes it.

The observer makes the file (:meth:`History.create`) and names it to the writer by its path under ``/proc``; the writer
opens and maps it. There is one writer per history, and one history per writer.

The file, little-endian: a header of 64 bytes (magic, capacity u32, bytes per record u32, first sequence u64, count u64,
full u32), then records of 64 bytes: kind, status, completions, seen (u8), blocks, tries (u16), planned, submitted,
completed (u64, ns of CLOCK_MONOTONIC, 0: not), sequence, lba, observed (u64), writer, observed writer (u32).

A record is whole before it is counted, and it is counted before its request is submitted: what a writer that died had
attempted is there. A completion's fields follow when it comes, the time last, so a record with a time of completion
has all of them. A full history takes no more and says so; nothing is ever overwritten.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from struct import Struct
from typing import Any, NamedTuple

from vmbus_emu.device import Buffer, Op, Status
from vmbus_emu.witness import stamp
from vmbus_emu.witness.stamp import Stamp, State

#: Kinds of operations. PART: what a READ that found several things found in some of its sectors.
READ, WRITE, FLUSH, REQUEST, PART = int(Op.READ), int(Op.WRITE), int(Op.FLUSH), 16, 17
KINDS = {READ: "read", WRITE: "write", FLUSH: "flush", REQUEST: "request", PART: "part"}
#: What a read found in its sectors: the same in all of them (a state of :mod:`stamp`, or a whole stamp that belongs
#: elsewhere), or several things, which the PARTs before its completion tell apart.
EMPTY, WHOLE, TORN, MISPLACED, MIXED, UNSEEN = stamp.EMPTY, stamp.WHOLE, stamp.TORN, 3, 4, 255
#: The status of what has not completed.
PENDING = 255

_MAGIC = b"vmbushis"
_HEADER = Struct("<8sIIQQI")
_HEADER_BYTES = RECORD_BYTES = 64
_COUNT_AT, _FULL_AT = 24, 32
_RECORD = Struct("<BBBBHHQQQQQQII")
_STATUS_AT, _COMPLETIONS_AT, _SEEN_AT, _TRIES_AT = 1, 2, 3, 6
_COMPLETED_AT, _OBSERVED_AT, _OBSERVED_WRITER_AT = 24, 48, 60
_U16, _U32, _U64 = Struct("<H"), Struct("<I"), Struct("<Q")
_put16, _put32, _put64 = _U16.pack_into, _U32.pack_into, _U64.pack_into
_put_record = _RECORD.pack_into
_OK, _BUSY = int(Status.OK), int(Status.BUSY)
_SCHEMA = 1


class Operation(NamedTuple):
    """One record. ``observed`` and ``observed_writer`` are the stamp's that a READ or PART found, if WHOLE."""

    kind: int
    status: int                 #: of :class:`~vmbus_emu.device.Status`, or PENDING
    completions: int            #: how often it completed
    seen: int
    blocks: int
    tries: int                  #: 1, and one more for each BUSY before, or for each frame that was not answered in time
    planned_ns: int
    submitted_ns: int
    completed_ns: int
    sequence: int
    lba: int
    observed: int
    writer: int
    observed_writer: int

    @property
    def acknowledged(self) -> bool:
        return self.completed_ns != 0 and self.status == _OK

    @property
    def refused(self) -> bool:
        """It was BUSY. Another operation, of the same planned time, is the next try."""
        return self.completed_ns != 0 and self.status == _BUSY

    @property
    def failed(self) -> bool:
        return self.completed_ns != 0 and self.status not in (_OK, _BUSY)


class History:
    """A mapped history file."""

    def __init__(self, fd: int) -> None:
        """Maps the history in ``fd``, which stays the caller's. ``ValueError``: there is none."""
        length = os.fstat(fd).st_size
        if length < _HEADER_BYTES:
            raise ValueError("it is too short for a history")
        self._map = mmap.mmap(fd, length)
        self._fd = -1
        self.capacity: int
        self.first: int
        magic, self.capacity, record, self.first, _, _ = _HEADER.unpack_from(self._map)
        if magic != _MAGIC or record != RECORD_BYTES or length != _HEADER_BYTES + self.capacity * RECORD_BYTES:
            self._map.close()
            raise ValueError("it is not a history")
        self._count = len(self)

    @classmethod
    def create(cls, capacity: int, first: int = 1) -> History:
        """A new one in memory, for at most ``capacity`` records, sequences from ``first`` on.

        A writer's later histories of the same disk must begin behind its earlier ones' sequences.
        """
        fd = os.memfd_create("history", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(fd, _HEADER_BYTES + capacity * RECORD_BYTES)
            # Who maps it would be killed by touching what somebody else has cut off.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            os.pwrite(fd, _HEADER.pack(_MAGIC, capacity, RECORD_BYTES, first, 0, 0), 0)
            made = cls(fd)
        except BaseException:
            os.close(fd)
            raise
        made._fd = fd
        return made

    @classmethod
    def open(cls, path: str) -> History:
        """The one at ``path``, to write to. ``OSError`` or ``ValueError``: there is none."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls(fd)
        finally:
            os.close(fd)  # what is mapped stays mapped

    @property
    def path(self) -> str:
        """Where other processes of this user find it while this one lives. Only of what :meth:`create` made."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @property
    def full(self) -> bool:
        """Whether something was not recorded for want of room."""
        return bool(_U32.unpack_from(self._map, _FULL_AT)[0])

    def __len__(self) -> int:
        return min(int(_U64.unpack_from(self._map, _COUNT_AT)[0]), self.capacity)

    def __iter__(self) -> Iterator[Operation]:
        """The operations, in the order in which they were submitted, as they are now."""
        for index in range(len(self)):
            yield Operation._make(_RECORD.unpack_from(self._map, _HEADER_BYTES + index * RECORD_BYTES))

    def close(self) -> None:
        """Unmap it, and close what :meth:`create` made. Idempotent."""
        self._map.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # -- for its writer ---------------------------------------------------------------------------

    @property
    def next_sequence(self) -> int:
        """For the next operation. Unique in this history, and rising."""
        return self.first + self._count

    def append(
        self, kind: int, writer: int, lba: int, blocks: int, planned_ns: int, submitted_ns: int, tries: int = 1
    ) -> int:
        """Record an attempt of sequence :attr:`next_sequence` before it is made. Its number, or -1: full."""
        return self._add(
            (kind, PENDING, 0, UNSEEN, blocks, min(tries, 0xFFFF), planned_ns, submitted_ns, 0, self.next_sequence, lba,
             0, writer, 0)
        )  # fmt: skip

    def _add(self, fields: tuple[int, ...]) -> int:
        index = self._count
        if index >= self.capacity:
            _put32(self._map, _FULL_AT, 1)
            return -1
        _put_record(self._map, _HEADER_BYTES + index * RECORD_BYTES, *fields)
        self._count = index + 1
        _put64(self._map, _COUNT_AT, self._count)
        return index

    def retry(self, record: int) -> None:
        """A frame of the operation was not answered in time."""
        at = _HEADER_BYTES + record * RECORD_BYTES + _TRIES_AT
        (tries,) = _U16.unpack_from(self._map, at)
        _put16(self._map, at, min(tries + 1, 0xFFFF))

    def complete(self, record: int, status: int, completed_ns: int) -> None:
        """The operation completed for the first time."""
        at = _HEADER_BYTES + record * RECORD_BYTES
        self.count_completion(record)
        self._map[at + _STATUS_AT] = status
        _put64(self._map, at + _COMPLETED_AT, completed_ns)

    def count_completion(self, record: int) -> None:
        """A completion came, and if it is not the first of its operation, that is all that is recorded of it."""
        at = _HEADER_BYTES + record * RECORD_BYTES + _COMPLETIONS_AT
        self._map[at] = min(self._map[at] + 1, 255)

    def observe(self, record: int, content: Buffer, completed_ns: int) -> None:
        """What a READ found. Call it before :meth:`complete`, with the same time."""
        at = _HEADER_BYTES + record * RECORD_BYTES
        fields = _RECORD.unpack_from(self._map, at)
        lba = fields[10]
        found = [_found(state, lba + index) for index, state in enumerate(stamp.read_all(content))]
        seen, observed, writer = found[0] if found else (UNSEEN, 0, 0)
        if any(one != found[0] for one in found):
            self._observe_parts(fields, found, completed_ns)
            seen = MIXED
        _put64(self._map, at + _OBSERVED_AT, observed)
        _put32(self._map, at + _OBSERVED_WRITER_AT, writer)
        self._map[at + _SEEN_AT] = seen

    def _observe_parts(self, fields: tuple[int, ...], found: list[tuple[int, int, int]], completed_ns: int) -> None:
        _, _, _, _, _, _, planned, submitted, _, sequence, lba, _, own, _ = fields
        begin = 0
        for end in range(1, len(found) + 1):
            if end == len(found) or found[end] != found[begin]:
                seen, observed, writer = found[begin]
                self._add((PART, _OK, 1, seen, end - begin, 1, planned, submitted, completed_ns, sequence, lba + begin,
                           observed, own, writer))
                begin = end


def _found(state: State, lba: int) -> tuple[int, int, int]:
    """``(seen, sequence, writer)`` of what was read at ``lba``."""
    if state is None:
        return EMPTY, 0, 0
    if not isinstance(state, Stamp):
        return TORN, state.claims.sequence, state.claims.writer
    return WHOLE if state.lba == lba else MISPLACED, state.sequence, state.writer


# -- for files ----------------------------------------------------------------------------------------------------


class Recorded(NamedTuple):
    """A history that was kept."""

    full: bool
    operations: list[Operation]


def dump(history: History) -> dict[str, Any]:
    """All of it, for JSON."""
    return {"schema": _SCHEMA, "fields": list(Operation._fields), "full": history.full,
            "operations": [list(operation) for operation in history]}


def load(data: Any) -> Recorded:
    """What :func:`dump` made. ``ValueError``: it did not make that."""
    match data:
        case {"schema": int(schema), "fields": list(fields), "full": bool(full), "operations": list(rows)}:
            pass
        case _:
            raise ValueError("it is not a history")
    if schema != _SCHEMA or fields != list(Operation._fields):
        raise ValueError(f"its schema is {schema}; this version reads {_SCHEMA}")
    for number, row in enumerate(rows):
        if type(row) is not list or len(row) != len(fields) or any(type(n) is not int or n < 0 for n in row):
            raise ValueError(f"operation {number} is not one")
        if row[0] not in KINDS:
            raise ValueError(f"operation {number} is of no known kind")
    return Recorded(full, [Operation._make(row) for row in rows])
