"""What one ATA command is about, fixed when it is given (its drive, its place, the guest's memory if it is DMA), and
how it ends when the medium fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vmbus_emu.device import BlockDevice, Memory, Op, Scatter
from vmbus_emu.device import Status as Done
from vmbus_emu.protocol import ata
from vmbus_emu.protocol.ata import Error, Status

#: Of what a medium can say, this has a bit of its own; a WRITE or UNMAP and a READ share one.
_ERRORS = {Done.OUT_OF_RANGE: Error.IDNF, Done.READ_ONLY: Error.WP, Done.UNSUPPORTED: Error.ABRT}


@dataclass(slots=True)
class Transfer:
    """A command under way. ``sectors`` are left to be moved, from ``lba`` on."""

    drive: BlockDevice
    op: Op
    lba: int = 0
    sectors: int = 0
    #: The guest's memory, for DMA that has started; ``moved`` bytes of the transfer are done.
    pieces: Sequence[memoryview] = ()
    moved: int = 0
    #: For TRIM, the ranges left to be unmapped.
    ranges: Iterator[tuple[int, int]] = field(default_factory=lambda: iter(()))

    def advance(self, sectors: int) -> None:
        """So many more were moved."""
        self.lba += sectors
        self.sectors -= sectors
        self.moved += sectors * ata.SECTOR

    def memory(self, sectors: int) -> Memory:
        """Of the guest's, for the next ``sectors``."""
        start, nbytes = self.moved, sectors * ata.SECTOR
        found = []
        for piece in self.pieces:
            if start < len(piece) and nbytes:
                found.append(piece[start : start + nbytes])
                nbytes -= len(found[-1])
            start = max(0, start - len(piece))
        return found[0] if len(found) == 1 else Scatter(found)


def trim_ranges(raw: bytes) -> Iterator[tuple[int, int]]:
    """LBA and sectors of each range; those of no sectors are padding."""
    for (entry,) in ata.TRIM_RANGE.iter_unpack(raw):
        lba, sectors = entry & (1 << 48) - 1, entry >> 48
        if sectors:
            yield lba, sectors


def error_of(op: Op, status: Done) -> tuple[int, int]:
    """What of the error register, and what more of the status, a request tells that ended with ``status``, not OK."""
    if status is Done.IO_ERROR and op is Op.READ:
        return int(Error.UNC), 0
    if status in _ERRORS:
        return int(_ERRORS[status]), 0
    return int(Error.ABRT), int(Status.DF)
