"""The task file of an IDE channel: what a guest reads and writes beside the data, the status, and the interrupt line.

Protocol sheet 7. Two drives share it; the device register says which one is meant. What a status is and when it
interrupts stands here; which command goes through which of them, the channel knows. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vmbus_emu.protocol import ata
from vmbus_emu.protocol.ata import Status

_READY = int(Status.DRDY | Status.DSC)


class TaskFile:
    """``present``: which of the places have a drive. ``line(level)`` is told when the interrupt line rises or falls."""

    def __init__(self, present: Sequence[bool], line: Callable[[bool], Any]) -> None:
        self._present = tuple(present)
        self._line = line
        #: FEATURES to LBA_HIGH as last written, and as written before that (LBA48).
        self._now = [0] * 6
        self._before = [0] * 6
        self._device = 0
        self._control = 0
        self._status = _READY
        self._error = 0
        self._pending = False               # INTRQ
        self._level = False
        self.sign()

    # -- for the guest ----------------------------------------------------------------------------------

    def read(self, offset: int) -> int:
        """Any register but the data register. To read the status takes the interrupt back."""
        if offset == ata.STATUS:
            self._set_pending(False)
            return self.seen_status
        if offset == ata.ERROR:
            return self._error
        if offset == ata.DEVICE:
            return self._device
        return (self._before if self._control & ata.CONTROL_HOB else self._now)[offset]

    def write(self, offset: int, value: int) -> None:
        """Any register but the data register; lost while BSY. Of a command's code nothing is kept."""
        if offset != ata.COMMAND and self._status & Status.BSY:
            return
        self._control &= ~ata.CONTROL_HOB
        if offset == ata.DEVICE:
            self._device = value & 0xFF
        elif offset != ata.COMMAND:
            self._before[offset] = self._now[offset]
            self._now[offset] = value & 0xFF

    def write_control(self, value: int) -> None:
        """The device control register. A reset begins or ends with it; :meth:`reset` is what its end does."""
        begins = bool(value & ata.CONTROL_SRST) and not self.in_reset
        self._control = value & (ata.CONTROL_HOB | ata.CONTROL_SRST | ata.CONTROL_NIEN)
        if begins:
            self._status = int(Status.BSY)
            self._pending = False
        self._settle_line()

    @property
    def seen_status(self) -> int:
        """A place without a drive does not drive the bus."""
        return self._status if self._present[self.selected] else 0

    # -- for the channel: what is asked -----------------------------------------------------------------

    @property
    def selected(self) -> int:
        """The place that the device register names."""
        return int(bool(self._device & ata.DEVICE_SLAVE))

    @property
    def in_reset(self) -> bool:
        """The guest holds it in reset."""
        return bool(self._control & ata.CONTROL_SRST)

    @property
    def occupied(self) -> bool:
        """A command is under way: there is room for none."""
        return bool(self._status & (Status.BSY | Status.DRQ))

    @property
    def has_data(self) -> bool:
        """The data register gives or takes."""
        return bool(self._status & Status.DRQ)

    @property
    def features(self) -> int:
        return self._now[ata.FEATURES]

    @property
    def count(self) -> int:
        return self._now[ata.COUNT]

    @count.setter
    def count(self, value: int) -> None:
        self._now[ata.COUNT] = value

    def place(self, extended: bool) -> tuple[int, int] | None:
        """First sector and number of sectors; ``None``: the guest wants cylinders and heads. ``extended``: LBA48."""
        if not self._device & ata.DEVICE_LBA:
            return None
        now, before = self._now, self._before
        lba = now[ata.LBA_LOW] | now[ata.LBA_MID] << 8 | now[ata.LBA_HIGH] << 16
        if extended:
            lba |= before[ata.LBA_LOW] << 24 | before[ata.LBA_MID] << 32 | before[ata.LBA_HIGH] << 40
            return lba, (now[ata.COUNT] | before[ata.COUNT] << 8) or ata.MAX_SECTORS_48
        lba |= (self._device & 0x0F) << 24
        return lba, now[ata.COUNT] or ata.MAX_SECTORS_28

    # -- for the channel: what is so --------------------------------------------------------------------

    def accept(self) -> None:
        """A command begins."""
        self._set_pending(False)
        self._error = 0
        self._status = _READY

    def work(self) -> None:
        """It takes its time."""
        self._status = int(Status.BSY | Status.DRDY)

    def ask(self) -> None:
        """The data register gives or takes, which :meth:`interrupt` may tell."""
        self._status = _READY | Status.DRQ

    def rest(self) -> None:
        """It ended without an interrupt."""
        self._status = _READY

    def done(self) -> None:
        """It ended well."""
        self._status = _READY
        self._set_pending(True)

    def fail(self, error: int, fault: int) -> None:
        """It ended with bits of the error register, and of the status."""
        self._error = int(error)
        self._status = _READY | Status.ERR | fault
        self._set_pending(True)

    def interrupt(self) -> None:
        """The guest should look."""
        self._set_pending(True)

    def sign(self) -> None:
        """What an ATA device without a fault leaves in its registers."""
        self._error = ata.DIAGNOSTIC_GOOD
        self._now = [0, 0, 1, 1, 0, 0]

    def reset(self) -> None:
        """The end of a reset."""
        self._device = 0
        self.sign()
        self._status = _READY

    # -- the interrupt line -----------------------------------------------------------------------------

    def _set_pending(self, pending: bool) -> None:
        self._pending = pending
        self._settle_line()

    def _settle_line(self) -> None:
        level = self._pending and not self._control & ata.CONTROL_NIEN
        if level != self._level:
            self._level = level
            self._line(level)
