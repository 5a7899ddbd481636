"""The ledger: changes of the hypervisor's tables in a memory file that outlives its process.

The machine holds the file too. It has a header and two halves, of which one is in use: a journal of records, each the
changes of one event. A full half is left for the other one, which begins with a snapshot; so the file has a bound.

Only the death of a process is survived here, at any instruction. So memory keeps what was stored before, in the order
of the program, and one aligned store is the point at which something becomes true:

- a record, by its length. It is stored last, over the zero that ends the journal; the next zero lies behind the record
  already. A CRC besides, which starts from the half's generation, tells what is torn or left over from an earlier use;
- the other half, by the generation in the header: even is the first half, odd the second.

Layout, in the machine's byte order. Header, u64 each: magic, generation, then offset and size of both halves. Record,
at a multiple of 8: length u32, CRC32 u32, a msgpack array of changes.
"""

from __future__ import annotations

import mmap
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgpack

from vmbus_emu.hypervisor.changes import Change

HALF = 4 << 20
_HEADER = 4096
_MAGIC = 0x31_52_45_47_44_45_4C_48  # "HLEDGER1"
_GENERATION = 1
_RECORD = 8
#: Changes of a snapshot in one record.
_CHUNK = 256


class LedgerBroken(Exception):
    """Somebody else wrote into the file: no death leaves it like that."""


class Ledger:
    """``fd`` stays the caller's. ``keep``: go on with what the file holds; if that is nothing yet, it begins empty.
    Raises :class:`LedgerBroken`.

    The file is grown as needed, so it must not be sealed against that. ``half``: bytes of a new ledger's halves, a
    multiple of 4096.
    """

    def __init__(self, fd: int, *, keep: bool, half: int = HALF) -> None:
        self._fd = fd
        self._pack = msgpack.Packer(autoreset=True).pack
        magic = os.pread(fd, 8, 0)
        kept = keep and magic == _MAGIC.to_bytes(8, sys.byteorder)
        if keep and not kept and any(magic):
            raise LedgerBroken("the ledger's header was overwritten")
        if not kept:
            os.ftruncate(fd, max(os.fstat(fd).st_size, _HEADER + 2 * half))
        self._map()
        if not kept:
            self._format(half)
        self._generation = self._header[_GENERATION]
        self._end, size = self._half(self._generation)
        self._limit = self._end + size
        if self._end < _HEADER or self._limit > len(self._bytes) or self._end % 8:
            raise LedgerBroken("the ledger's header says that it lies outside its file")
        for end, _ in self._records():
            self._end = end
        self._words[self._end >> 2] = 0

    def _map(self) -> None:
        self._file = mmap.mmap(self._fd, 0)
        self._bytes = memoryview(self._file)
        self._words = self._bytes.cast("I")
        self._header = self._bytes[:_HEADER].cast("Q")

    def _unmap(self) -> None:
        for view in (self._header, self._words, self._bytes):
            view.release()
        self._file.close()

    def _format(self, half: int) -> None:
        self._header[0] = 0
        self._header[_GENERATION] = 0
        for slot, offset in enumerate((_HEADER, _HEADER + half)):
            self._header[2 + 2 * slot] = offset
            self._header[3 + 2 * slot] = half
        self._words[_HEADER >> 2] = 0
        self._header[0] = _MAGIC

    def _half(self, generation: int) -> tuple[int, int]:
        slot = generation & 1
        return self._header[2 + 2 * slot], self._header[3 + 2 * slot]

    # -- reading ------------------------------------------------------------------------------------

    def changes(self) -> Iterator[Change]:
        """What was written, in its order, up to the first record that is not whole."""
        for _, payload in self._records():
            yield from msgpack.unpackb(payload, use_list=False)

    def _records(self) -> Iterator[tuple[int, bytes]]:
        """Where each record ends, and what it holds."""
        offset, size = self._half(self._generation)
        limit = offset + size
        while offset + _RECORD <= limit:
            length = self._words[offset >> 2]
            begin = offset + _RECORD
            if not length or begin + length > limit - _RECORD:
                return
            payload = bytes(self._bytes[begin:begin + length])
            if zlib.crc32(payload, self._generation & 0xFFFFFFFF) != self._words[(offset >> 2) + 1]:
                return
            offset = begin + _aligned(length)
            yield offset, payload

    # -- writing ------------------------------------------------------------------------------------

    def append(self, changes: Sequence[Change], snapshot: Callable[[], Iterable[Change]]) -> None:
        """Write the changes of one event down: all of them are there after a death, or none.

        ``snapshot`` is asked when the half is full. It includes these changes already.
        """
        payload = self._pack(changes)
        if self._end + 3 * _RECORD + len(payload) > self._limit:
            self._compact(snapshot())
        else:
            self._put(payload)

    def _put(self, payload: bytes) -> None:
        offset, words = self._end, self._words
        begin = offset + _RECORD
        end = begin + _aligned(len(payload))
        self._bytes[begin:begin + len(payload)] = payload
        words[end >> 2] = 0
        words[(offset >> 2) + 1] = zlib.crc32(payload, self._generation & 0xFFFFFFFF)
        words[offset >> 2] = len(payload)
        self._end = end

    def _compact(self, changes: Iterable[Change]) -> None:
        """Go on in the other half. It is made larger, if the snapshot alone would fill half of it."""
        whole = list(changes)
        records = [self._pack(whole[begin:begin + _CHUNK]) for begin in range(0, len(whole), _CHUNK)]
        need = sum(_RECORD + _aligned(len(record)) for record in records)
        generation = self._generation + 1
        _, size = self._half(generation)
        while need > size // 2:
            size *= 2
        if size > self._half(generation)[1]:
            self._move(generation, size)
        self._generation = generation
        self._end, size = self._half(generation)
        self._limit = self._end + size
        self._words[self._end >> 2] = 0
        for record in records:
            self._put(record)
        self._header[_GENERATION] = generation

    def _move(self, generation: int, size: int) -> None:
        """Give the half that is not in use ``size`` bytes, behind everything. Its old ones are not used any more."""
        offset = max(sum(self._half(0)), sum(self._half(1)))
        os.ftruncate(self._fd, offset + size)
        self._unmap()
        self._map()
        slot = generation & 1
        self._header[2 + 2 * slot] = offset
        self._header[3 + 2 * slot] = size

    def close(self) -> None:
        self._unmap()


def _aligned(length: int) -> int:
    return (length + 7) & ~7
