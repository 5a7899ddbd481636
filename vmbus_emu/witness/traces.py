"""Points on the way of requests, written down by the processes that they pass, read by an observer afterwards.

A file in memory, made by the observer and touched before; one process writes it, with any number of threads: to take a
place and to fill it are one call of C code each. To write a record costs about 0.3 us. A record is a point, the
operation where it is known, the disk, the request's number on it, and up to three times (``time.monotonic_ns``, which
is one clock for all processes); 0 is no time. The end of the records is the first that is empty.
"""

from __future__ import annotations

import mmap
import os
import time
import zlib
from functools import partial
from struct import Struct
from typing import NamedTuple

_RECORD = Struct("<HHIQQQQ")

# On messages: the guest's request, and both ends of the channel that carries it and its completion.
#: The guest submits it, before anything is done for it.
SUBMIT = 1
#: A packet goes into the channel: begun, handed to the socket (0 on a ring), done.
SEND = 2
#: A packet comes out of it: the process began to look, the socket gave it (0 on a ring), the session has it.
RECEIVE = 3
#: The driver is called, and says that it has done it.
DRIVER, DONE = 4, 5
#: The guest is about to be called back.
COMPLETED = 6

now = time.monotonic_ns


class Record(NamedTuple):
    """``op`` is known of SUBMIT and DRIVER only."""

    point: int
    op: int
    disk: int
    number: int
    times: tuple[int, int, int]


def identity(vm: str, disk: str) -> int:
    """How a VM's disk is named in records. Not 0."""
    return zlib.crc32(f"{vm}.{disk}".encode()) or 1


class TraceFile:
    """A mapped file of records. The writer uses :attr:`take` and :attr:`put`::

        put(take(), SUBMIT, op, disk, number, now(), 0, 0)
    """

    def __init__(self, fd: int) -> None:
        """Maps ``fd``, which is taken over."""
        self._fd = fd
        length = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, length, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self._last = length - _RECORD.size  # every record that finds no room is written here
        places = iter(range(0, self._last, _RECORD.size))
        self.take = partial(next, places, self._last)
        self.put = partial(_RECORD.pack_into, self._map)

    @classmethod
    def create(cls, capacity: int) -> TraceFile:
        """A new file in memory for so many records."""
        fd = os.memfd_create("trace", os.MFD_CLOEXEC)
        os.truncate(fd, _RECORD.size * (capacity + 1))
        return cls(fd)

    @classmethod
    def open(cls, path: str) -> TraceFile:
        """The file at ``path``, to write to, its memory touched. ``OSError``: there is none."""
        made = cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        for page in range(0, made._last, mmap.PAGESIZE):  # mapped for writing, too: a fault would be measured
            made._map[page] = made._map[page]
        return made

    @property
    def path(self) -> str:
        """Where other processes of this user find it while this one lives."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @property
    def full(self) -> bool:
        """Whether something found no room."""
        return bool(_RECORD.unpack_from(self._map, self._last)[0])

    def records(self, begin: int = 0, end: int = 1 << 63) -> list[Record]:
        """What was written at a moment from ``begin`` to ``end``, in the order written."""
        found = []
        for point, op, disk, number, *times in _RECORD.iter_unpack(self._map[: self._last]):
            if not point:
                break
            if begin <= times[0] < end:
                found.append(Record(point, op, disk, number, (times[0], times[1], times[2])))
        return found

    def close(self) -> None:
        """Unmap it."""
        self._map.close()
        os.close(self._fd)
