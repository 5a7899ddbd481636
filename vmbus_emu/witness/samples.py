"""Latencies in a memory file: a load in a guest writes each down as it comes, its observer reads them afterwards.

To write one costs a store into memory that was touched before (about 0.1 us); nothing is counted, sorted or printed
while something is measured. There is one writer. The file, little-endian: magic, capacity, count (u64 each), then the
latencies in ns (i64), in the order of the completions.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from array import array
from struct import Struct

_MAGIC = int.from_bytes(b"vmbussmp", "little")
_HEADER = Struct("<QQQ")
_COUNT_AT = 2
_FIRST = 3


class Samples:
    """A mapped file of latencies."""

    def __init__(self, fd: int) -> None:
        """Maps ``fd``, which stays the caller's. ``ValueError``: it holds no samples."""
        length = os.fstat(fd).st_size
        if length < _HEADER.size or length % 8:
            raise ValueError("it is no file of samples")
        self._map = mmap.mmap(fd, length)
        self._words = memoryview(self._map).cast("q")
        self._fd = -1
        magic, self.capacity, _ = _HEADER.unpack_from(self._map)
        if magic != _MAGIC or length != _HEADER.size + 8 * self.capacity:
            self.close()
            raise ValueError("it holds no samples")
        self._next = _FIRST + len(self)
        self._end = _FIRST + self.capacity

    @classmethod
    def create(cls, capacity: int) -> Samples:
        """A new file in memory, every page of it touched."""
        fd = os.memfd_create("samples", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(fd, _HEADER.size + 8 * capacity)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            os.pwrite(fd, _HEADER.pack(_MAGIC, capacity, 0), 0)
            made = cls(fd)
        except BaseException:
            os.close(fd)
            raise
        made._fd = fd
        for page in range(_FIRST, made._end, 512):
            made._words[page] = 0
        return made

    @classmethod
    def open(cls, path: str) -> Samples:
        """The file at ``path``, to write to from its beginning. ``OSError`` or ``ValueError``: there is none."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            made = cls(fd)
        finally:
            os.close(fd)
        for page in range(_FIRST, made._end, 512):  # a fault in the middle of a measurement would be measured
            made._words[page] = made._words[page]
        made._next = _FIRST
        made._words[_COUNT_AT] = 0
        return made

    @property
    def path(self) -> str:
        """Where other processes of this user find it while this one lives. Only of what :meth:`create` made."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def append(self, ns: int) -> None:
        """Write one down. What finds no room is dropped, see :attr:`full`."""
        place = self._next
        if place < self._end:
            self._words[place] = ns
        self._next = place + 1

    def settle(self) -> None:
        """The writer is done: the count is what was written, and one more if something found no room."""
        self._words[_COUNT_AT] = min(self._next - _FIRST, self.capacity + 1)

    @property
    def full(self) -> bool:
        """Whether something was dropped."""
        return bool(self._words[_COUNT_AT] > self.capacity)

    def __len__(self) -> int:
        return min(max(int(self._words[_COUNT_AT]), 0), int(self.capacity))

    def values(self) -> array[int]:
        """A copy of what was written, ns."""
        return array("q", self._words[_FIRST : _FIRST + len(self)])

    def close(self) -> None:
        """Unmap it, and close what :meth:`create` made. Idempotent."""
        self._words.release()
        self._map.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
