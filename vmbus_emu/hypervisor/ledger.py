"""The ledger: changes of the hypervisor's tables in a memory file that outlives its process.

The machine holds the file too. It has a header and two halves, of which one is in use: a journal of records, each the
changes of one event. A full half is left for the other one, which begins with a snapshot; so the file has a bound.

It is written with ``pwrite`` and never mapped: what is not in the address space, a wild write does not find.

Only the death of a process is survived here, at any instruction. So the file keeps what was written before, in the
order of the program, and one write of at most 8 aligned bytes is the point at which something becomes true:

- a record, by its length. It is written last, over the zero that ends the journal; the next zero lies behind the record
  already. A CRC besides, which starts from the half's generation, tells what is torn or left over from an earlier use;
- the other half, by the generation in the header: even is the first half, odd the second.

Layout, in the machine's byte order. Header, u64 each: magic, generation, then offset and size of both halves. Record,
at a multiple of 8: length u32, CRC32 u32, a msgpack array of changes.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgpack

from vmbus_emu.hypervisor.changes import Change

HALF = 4 << 20
_HEADER_BYTES = 4096
_MAGIC = 0x31_52_45_47_44_45_4C_48  # "HLEDGER1"
_HEADER = struct.Struct("=6Q")
_U64 = struct.Struct("=Q")
_U32 = struct.Struct("=I")
_RECORD = struct.Struct("=II")
_END = bytes(_RECORD.size)
#: Changes of a snapshot in one record.
_CHUNK = 256
#: Bytes of the journal read at a time.
_PIECE = 1 << 16


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
        magic = os.pread(fd, _U64.size, 0)
        if not keep or not any(magic):
            self._format(half)
        elif magic != _U64.pack(_MAGIC):
            raise LedgerBroken("the ledger's header was overwritten")
        _, self._generation, *halves = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
        self._halves = [(halves[0], halves[1]), (halves[2], halves[3])]
        self._end, size = self._half(self._generation)
        self._limit = self._end + size
        if self._end < _HEADER_BYTES or self._limit > os.fstat(fd).st_size or self._end % 8:
            raise LedgerBroken("the ledger's header says that it lies outside its file")
        for end, _ in self._records():
            self._end = end
        os.pwrite(fd, _END, self._end)

    def _format(self, half: int) -> None:
        os.ftruncate(self._fd, max(os.fstat(self._fd).st_size, _HEADER_BYTES + 2 * half))
        os.pwrite(self._fd, bytes(_U64.size), 0)
        halves = _HEADER_BYTES, half, _HEADER_BYTES + half, half
        os.pwrite(self._fd, _HEADER.pack(0, 0, *halves), 0)
        os.pwrite(self._fd, _END, _HEADER_BYTES)
        os.pwrite(self._fd, _U64.pack(_MAGIC), 0)

    def _half(self, generation: int) -> tuple[int, int]:
        """Where the half of a generation begins, and its bytes."""
        return self._halves[generation & 1]

    # -- reading ------------------------------------------------------------------------------------

    def changes(self) -> Iterator[Change]:
        """What was written, in its order, up to the first record that is not whole."""
        for _, payload in self._records():
            yield from msgpack.unpackb(payload, use_list=False)

    def _records(self) -> Iterator[tuple[int, bytes]]:
        """Where each record ends, and what it holds."""
        offset, size = self._half(self._generation)
        limit = offset + size
        piece, at = b"", offset

        def read(begin: int, nbytes: int) -> bytes:
            nonlocal piece, at
            if begin < at or begin + nbytes > at + len(piece):
                piece, at = os.pread(self._fd, max(nbytes, _PIECE), begin), begin
            return piece[begin - at:begin - at + nbytes]

        while offset + _RECORD.size <= limit:
            length, crc = _RECORD.unpack(read(offset, _RECORD.size))
            begin = offset + _RECORD.size
            if not length or begin + length > limit - _RECORD.size:
                return
            payload = read(begin, length)
            if zlib.crc32(payload, self._generation & 0xFFFFFFFF) != crc:
                return
            offset = begin + _aligned(length)
            yield offset, payload

    # -- writing ------------------------------------------------------------------------------------

    def append(self, changes: Sequence[Change], snapshot: Callable[[], Iterable[Change]]) -> None:
        """Write the changes of one event down: all of them are there after a death, or none.

        ``snapshot`` is asked when the half is full. It includes these changes already.
        """
        payload = self._pack(changes)
        if self._end + 3 * _RECORD.size + len(payload) > self._limit:
            self._compact(snapshot())
        else:
            self._put(payload)

    def _put(self, payload: bytes) -> None:
        offset, length = self._end, len(payload)
        crc = zlib.crc32(payload, self._generation & 0xFFFFFFFF)
        padding = bytes(_aligned(length) - length)
        os.pwrite(self._fd, b"".join((_RECORD.pack(0, crc), payload, padding, _END)), offset)
        os.pwrite(self._fd, _U32.pack(length), offset)
        self._end = offset + _RECORD.size + _aligned(length)

    def _compact(self, changes: Iterable[Change]) -> None:
        """Go on in the other half. It is made larger, if the snapshot alone would fill half of it."""
        whole = list(changes)
        records = [self._pack(whole[begin:begin + _CHUNK]) for begin in range(0, len(whole), _CHUNK)]
        need = sum(_RECORD.size + _aligned(len(record)) for record in records)
        generation = self._generation + 1
        _, size = self._half(generation)
        while need > size // 2:
            size *= 2
        if size > self._half(generation)[1]:
            self._move(generation, size)
        self._generation = generation
        self._end, size = self._half(generation)
        self._limit = self._end + size
        os.pwrite(self._fd, _END, self._end)
        for record in records:
            self._put(record)
        os.pwrite(self._fd, _U64.pack(generation), _U64.size)

    def _move(self, generation: int, size: int) -> None:
        """Give the half that is not in use ``size`` bytes, behind everything. Its old ones are not used any more."""
        offset = max(sum(half) for half in self._halves)
        os.ftruncate(self._fd, offset + size)
        slot = generation & 1
        self._halves[slot] = offset, size
        os.pwrite(self._fd, struct.pack("=2Q", offset, size), (2 + 2 * slot) * _U64.size)


def _aligned(length: int) -> int:
    return (length + 7) & ~7
