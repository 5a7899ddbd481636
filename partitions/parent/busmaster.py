"""The bus-master half of an IDE channel: eight registers, and the table of memory regions that they point at.

Protocol sheet 7. A table is the guest's: it may lie anywhere, name anything, and never end.
"""

from __future__ import annotations

from collections.abc import Sequence

from partitions.parent.guest_memory import GuestMemory
from vmbus_emu.protocol import ata


class BusMaster:
    """``command``, ``status`` and ``table`` are the registers. No I/O."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.command = 0
        self.status = 0
        self.table = 0

    def read(self, offset: int, size: int) -> int:
        raw = bytes((self.command, 0, self.status, 0)) + self.table.to_bytes(4, "little")
        return int.from_bytes(raw[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> bool:
        """Whether this was the order to start."""
        started = False
        for index, byte in enumerate(value.to_bytes(size, "little"), offset):
            if index == ata.BM_COMMAND:
                started = bool(byte & ata.BM_START) and not self.command & ata.BM_START
                self.command = byte & (ata.BM_START | ata.BM_TO_MEMORY)
                if started:
                    self.status |= ata.BM_ACTIVE
                elif not self.command & ata.BM_START:
                    self.status &= ~ata.BM_ACTIVE
            elif index == ata.BM_STATUS:
                cleared = byte & (ata.BM_ERROR | ata.BM_INTERRUPT)
                self.status = self.status & ~cleared & ~ata.BM_DRIVES_CAPABLE | byte & ata.BM_DRIVES_CAPABLE
            elif ata.BM_TABLE <= index < ata.BUS_MASTER_BLOCK:
                shift = 8 * (index - ata.BM_TABLE)
                self.table = (self.table & ~(0xFF << shift) | byte << shift) & ~3
        return started

    @property
    def started(self) -> bool:
        return bool(self.command & ata.BM_START)

    def regions(self, nbytes: int, to_memory: bool) -> Sequence[memoryview] | None:
        """The guest's memory for a transfer of ``nbytes``, as the table says. ``None``: the table is too short, names
        what is not there, or the direction is another one; the status has the error then."""
        pieces = self._walk(nbytes) if bool(self.command & ata.BM_TO_MEMORY) is to_memory else None
        if pieces is None:
            self.status = self.status & ~ata.BM_ACTIVE | ata.BM_ERROR
        return pieces

    def _walk(self, nbytes: int) -> Sequence[memoryview] | None:
        pieces: list[memoryview] = []
        left = nbytes
        for index in range(ata.MAX_PRDS):
            entry = self._memory.at(self.table + index * ata.PRD.size, ata.PRD.size)
            if entry is None:
                return None
            base, count, flags = ata.PRD.unpack(entry)
            length = min(left, (count & ~1) or ata.PRD_LIMIT)
            piece = self._memory.at(base & ~1, length)
            if piece is None:
                return None
            pieces.append(piece)
            left -= length
            if not left:
                if flags & ata.PRD_END and length == ((count & ~1) or ata.PRD_LIMIT):
                    self.status &= ~ata.BM_ACTIVE       # the table is used up; of a longer one it stays set
                return pieces
            if flags & ata.PRD_END:
                return None
        return None
