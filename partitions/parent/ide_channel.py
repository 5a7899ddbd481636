"""One IDE channel: the task file, two drives, and the commands that move sectors between them and the guest.

The model ends in a :class:`~vmbus_emu.device.BlockDevice` per drive, where storvsp ends too. Register accesses come in
as calls and return at once; what the medium takes its time for shows as BSY, and its end as an interrupt. No I/O here.

A guest can write anything at any time. What a command is about is fixed when it is given (its drive, its place, its
length) and never looked at again in the registers: selecting another drive during a transfer changes nothing about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from partitions.parent.busmaster import BusMaster
from partitions.parent.guest_memory import GuestMemory
from vmbus_emu.device import BlockDevice, BlockRequest, Memory, Op, Scatter
from vmbus_emu.device import Status as Done
from vmbus_emu.protocol import ata
from vmbus_emu.protocol.ata import Command, Error, Status

_READY = int(Status.DRDY | Status.DSC)
#: Sectors that PIO reads from the medium at once.
_PIO_AHEAD = 256
#: How a command ends by how the medium's request did; a WRITE or UNMAP and a READ share a bit.
_ERRORS = {Done.OUT_OF_RANGE: Error.IDNF, Done.READ_ONLY: Error.WP, Done.UNSUPPORTED: Error.ABRT}

_EXTENDED = frozenset((
    Command.READ_SECTORS_EXT, Command.WRITE_SECTORS_EXT, Command.READ_DMA_EXT, Command.WRITE_DMA_EXT,
))  # fmt: skip


@dataclass(slots=True)
class _Transfer:
    """A command under way. ``sectors`` are left to be moved, from ``lba`` on."""

    drive: BlockDevice
    op: Op
    lba: int = 0
    sectors: int = 0
    #: The guest's memory, for DMA that has started; ``moved`` bytes of it are done.
    pieces: Sequence[memoryview] = ()
    moved: int = 0
    #: For TRIM, the ranges left to be unmapped.
    ranges: Iterator[tuple[int, int]] = field(default_factory=lambda: iter(()))


class IdeChannel:
    """``interrupt(level)`` is told when the interrupt line rises or falls."""

    def __init__(
        self, drives: Sequence[BlockDevice | None], memory: GuestMemory, interrupt: Callable[[bool], Any]
    ) -> None:
        self._drives = tuple(drives)
        self._interrupt = interrupt
        self.busmaster = BusMaster(memory)
        #: FEATURES to LBA_HIGH as last written, and as written before that (LBA48).
        self._now = [0] * 6
        self._before = [0] * 6
        self._device = 0
        self._control = 0
        self._status = _READY
        self._error = ata.DIAGNOSTIC_GOOD
        self._pending = False               # INTRQ
        self._line = False
        self._buffer = memoryview(b"")      # what the data register gives, or takes
        self._position = 0
        self._transfer: _Transfer | None = None
        self._awaits_dma = False
        self._outstanding = False           # a request is with the medium
        self._sign()
        self._commands: dict[int, Callable[[BlockDevice, int], None]] = {
            Command.READ_SECTORS: self._read_sectors,
            Command.READ_SECTORS | 1: self._read_sectors,           # "without retries", long the same
            Command.READ_SECTORS_EXT: self._read_sectors,
            Command.WRITE_SECTORS: self._write_sectors,
            Command.WRITE_SECTORS | 1: self._write_sectors,
            Command.WRITE_SECTORS_EXT: self._write_sectors,
            Command.READ_DMA: self._read_dma,
            Command.READ_DMA | 1: self._read_dma,
            Command.READ_DMA_EXT: self._read_dma,
            Command.WRITE_DMA: self._write_dma,
            Command.WRITE_DMA | 1: self._write_dma,
            Command.WRITE_DMA_EXT: self._write_dma,
            Command.DATA_SET_MANAGEMENT: self._trim,
            Command.IDENTIFY_DEVICE: self._identify,
            Command.FLUSH_CACHE: self._flush,
            Command.FLUSH_CACHE_EXT: self._flush,
            Command.CHECK_POWER_MODE: self._check_power,
            Command.SET_FEATURES: self._set_features,
        }

    # -- registers ------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """The command block. All accesses but those of the data register are bytes."""
        if offset == ata.DATA:
            return int.from_bytes(self.read_data(size), "little")
        if offset == ata.STATUS:
            self._set_pending(False)
            return self._seen_status
        if offset == ata.ERROR:
            return self._error
        if offset == ata.DEVICE:
            return self._device
        return (self._before if self._control & ata.CONTROL_HOB else self._now)[offset]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == ata.DATA:
            self.write_data(value.to_bytes(size, "little"))
        elif offset == ata.COMMAND:
            self._control &= ~ata.CONTROL_HOB
            self._command(value & 0xFF)
        elif not self._status & Status.BSY:
            self._control &= ~ata.CONTROL_HOB
            if offset == ata.DEVICE:
                self._device = value & 0xFF
            else:
                self._before[offset] = self._now[offset]
                self._now[offset] = value & 0xFF

    def read_alternate_status(self) -> int:
        return self._seen_status

    def write_control(self, value: int) -> None:
        reset, was = bool(value & ata.CONTROL_SRST), bool(self._control & ata.CONTROL_SRST)
        self._control = value & (ata.CONTROL_HOB | ata.CONTROL_SRST | ata.CONTROL_NIEN)
        if reset and not was:
            self._status = int(Status.BSY)
            self._buffer, self._position = memoryview(b""), 0
            self._awaits_dma = False
            self._transfer = None
            self._pending = False
        elif was and not reset and not self._outstanding:
            self._reset()
        self._settle_line()

    @property
    def _seen_status(self) -> int:
        """A place without a drive does not drive the bus."""
        return self._status if self._drives[self._selected] is not None else 0

    @property
    def _selected(self) -> int:
        return int(bool(self._device & ata.DEVICE_SLAVE))

    def _reset(self) -> None:
        """The end of a reset: it waits for what was under way, which would change the guest's memory later."""
        self._transfer = None
        self._device = 0
        self._sign()
        self._status = _READY

    def _sign(self) -> None:
        """What an ATA device without a fault leaves in its registers."""
        self._error = ata.DIAGNOSTIC_GOOD
        self._now = [0, 0, 1, 1, 0, 0]

    # -- the interrupt ----------------------------------------------------------------------------------

    def _set_pending(self, pending: bool) -> None:
        self._pending = pending
        self._settle_line()

    def _settle_line(self) -> None:
        line = self._pending and not self._control & ata.CONTROL_NIEN
        if line != self._line:
            self._line = line
            if line:
                self.busmaster.status |= ata.BM_INTERRUPT
            self._interrupt(line)

    # -- commands ---------------------------------------------------------------------------------------

    def _command(self, code: int) -> None:
        drive = self._drives[self._selected]
        if drive is None or self._status & (Status.BSY | Status.DRQ):
            return
        self._set_pending(False)
        self._error = 0
        self._status = _READY
        self._transfer = None
        if code == Command.EXECUTE_DIAGNOSTIC:
            self._sign()
            self._done()
            return
        handler = self._commands.get(code)
        if handler is None:
            self._fail(Error.ABRT)
        else:
            handler(drive, code)

    def _done(self) -> None:
        self._transfer = None
        self._status = _READY
        self._set_pending(True)

    def _fail(self, error: int, fault: int = 0) -> None:
        self._transfer = None
        self._awaits_dma = False
        self._buffer = memoryview(b"")
        self._error = int(error)
        self._status = _READY | Status.ERR | fault
        self._set_pending(True)

    def _place(self, drive: BlockDevice, code: int, op: Op) -> _Transfer | None:
        """Where and how much, out of the registers; ``None``: the guest wants cylinders and heads."""
        if not self._device & ata.DEVICE_LBA:
            self._fail(Error.ABRT)
            return None
        now, before = self._now, self._before
        lba = now[ata.LBA_LOW] | now[ata.LBA_MID] << 8 | now[ata.LBA_HIGH] << 16
        if code in _EXTENDED:
            lba |= before[ata.LBA_LOW] << 24 | before[ata.LBA_MID] << 32 | before[ata.LBA_HIGH] << 40
            sectors = (now[ata.COUNT] | before[ata.COUNT] << 8) or ata.MAX_SECTORS_48
        else:
            lba |= (self._device & 0x0F) << 24
            sectors = now[ata.COUNT] or ata.MAX_SECTORS_28
        return _Transfer(drive, op, lba, sectors)

    def _submit(
        self, transfer: _Transfer, op: Op, lba: int, blocks: int, buffer: Memory | None,
        good: Callable[[_Transfer], None],
    ) -> None:
        """Hand a request to the medium, and go on with ``good`` when that is done."""

        def done(request: BlockRequest) -> None:
            self._outstanding = False
            if self._control & ata.CONTROL_SRST:
                return                      # the reset ends when the guest says so
            if self._transfer is not transfer:
                self._reset()               # it has said so, and waited for this
            elif request.status is Done.OK:
                good(transfer)
            elif request.status is Done.IO_ERROR and op is Op.READ:
                self._fail(Error.UNC)
            else:
                assert request.status is not None
                known = request.status in _ERRORS
                self._fail(_ERRORS[request.status] if known else Error.ABRT, 0 if known else Status.DF)

        self._transfer = transfer
        self._status = int(Status.BSY | Status.DRDY)
        self._outstanding = True
        transfer.drive.submit(BlockRequest(op, lba, blocks, buffer, done))

    def _flush(self, drive: BlockDevice, code: int) -> None:
        self._submit(_Transfer(drive, Op.FLUSH), Op.FLUSH, 0, 0, None, lambda transfer: self._done())

    def _check_power(self, drive: BlockDevice, code: int) -> None:
        def active(transfer: _Transfer) -> None:
            self._now[ata.COUNT] = ata.POWER_ACTIVE
            self._done()

        self._submit(_Transfer(drive, Op.READY), Op.READY, 0, 0, None, active)

    def _set_features(self, drive: BlockDevice, code: int) -> None:
        known = (ata.SET_WRITE_CACHE, ata.SET_NO_WRITE_CACHE, ata.SET_TRANSFER_MODE)
        if self._now[ata.FEATURES] in known:
            self._done()
        else:
            self._fail(Error.ABRT)

    def _identify(self, drive: BlockDevice, code: int) -> None:
        info = drive.info
        self._transfer = _Transfer(drive, Op.READ)
        self._offer(memoryview(ata.encode_identity(info.block_count, info.serial, info.read_only)))

    # -- PIO: one sector at a time through the data register --------------------------------------------

    def read_data(self, nbytes: int) -> bytes:
        """``nbytes`` of what the data register gives; zeros where there is nothing."""
        taken = b""
        while len(taken) < nbytes and self._reads:
            step = min(nbytes - len(taken), ata.SECTOR - self._position % ata.SECTOR)
            taken += self._buffer[self._position : self._position + step]
            self._position += step
            if self._position % ata.SECTOR == 0:
                self._sector_read()
        return taken.ljust(nbytes, b"\0")

    def write_data(self, data: bytes) -> None:
        """Bytes for the data register; what nobody waits for is lost."""
        view = memoryview(data)
        while view and self._writes:
            step = min(len(view), ata.SECTOR - self._position)
            self._buffer[self._position : self._position + step] = view[:step]
            self._position += step
            view = view[step:]
            if self._position == ata.SECTOR:
                self._sector_written()

    @property
    def _reads(self) -> bool:
        return bool(self._status & Status.DRQ) and self._transfer is not None and self._transfer.op is Op.READ

    @property
    def _writes(self) -> bool:
        return bool(self._status & Status.DRQ) and self._transfer is not None and self._transfer.op is Op.WRITE

    def _read_sectors(self, drive: BlockDevice, code: int) -> None:
        transfer = self._place(drive, code, Op.READ)
        if transfer is not None:
            self._read_ahead(transfer)

    def _read_ahead(self, transfer: _Transfer) -> None:
        sectors = min(transfer.sectors, _PIO_AHEAD)
        buffer = memoryview(bytearray(sectors * ata.SECTOR))

        def good(transfer: _Transfer) -> None:
            transfer.lba += sectors
            transfer.sectors -= sectors
            self._offer(buffer)

        self._submit(transfer, Op.READ, transfer.lba, sectors, buffer, good)

    def _offer(self, buffer: memoryview) -> None:
        self._buffer, self._position = buffer, 0
        self._status = _READY | Status.DRQ
        self._set_pending(True)

    def _sector_read(self) -> None:
        transfer = self._transfer
        assert transfer is not None
        if self._position < len(self._buffer):
            self._set_pending(True)
        elif transfer.sectors:
            self._read_ahead(transfer)
        else:
            self._transfer = None
            self._status = _READY

    def _write_sectors(self, drive: BlockDevice, code: int) -> None:
        self._transfer = self._place(drive, code, Op.WRITE)
        if self._transfer is not None:      # the first sector is asked for without an interrupt
            self._await_sector()

    def _await_sector(self) -> None:
        self._buffer, self._position = memoryview(bytearray(ata.SECTOR)), 0
        self._status = _READY | Status.DRQ

    def _sector_written(self) -> None:
        transfer = self._transfer
        assert transfer is not None

        def good(transfer: _Transfer) -> None:
            transfer.lba += 1
            transfer.sectors -= 1
            if not transfer.sectors:
                self._done()
                return
            self._await_sector()
            self._set_pending(True)

        self._submit(transfer, Op.WRITE, transfer.lba, 1, self._buffer, good)

    # -- DMA: the guest's memory, by the bus master's table ---------------------------------------------

    def _read_dma(self, drive: BlockDevice, code: int) -> None:
        self._await_dma(self._place(drive, code, Op.READ))

    def _write_dma(self, drive: BlockDevice, code: int) -> None:
        self._await_dma(self._place(drive, code, Op.WRITE))

    def _trim(self, drive: BlockDevice, code: int) -> None:
        if not self._now[ata.FEATURES] & ata.TRIM or self._now[ata.COUNT] != ata.MAX_TRIM_LIST:
            self._fail(Error.ABRT)
            return
        self._await_dma(_Transfer(drive, Op.UNMAP, sectors=ata.MAX_TRIM_LIST))

    def _await_dma(self, transfer: _Transfer | None) -> None:
        if transfer is None:
            return
        self._transfer = transfer
        self._status = int(Status.BSY | Status.DRDY)
        self._awaits_dma = True
        if self.busmaster.started:
            self.start_dma()

    def start_dma(self) -> None:
        """The bus master was started, or the command came after that."""
        transfer = self._transfer
        if not self._awaits_dma or transfer is None:
            return
        self._awaits_dma = False
        pieces = self.busmaster.regions(transfer.sectors * ata.SECTOR, transfer.op is Op.READ)
        if pieces is None:
            self._fail(Error.ABRT)
        elif transfer.op is Op.UNMAP:
            transfer.ranges = _trim_ranges(b"".join(pieces))
            self._next_range(transfer)
        else:
            transfer.pieces = pieces
            self._move(transfer)

    def _move(self, transfer: _Transfer) -> None:
        sectors = min(transfer.sectors, transfer.drive.info.max_transfer_bytes // ata.SECTOR)
        buffer = _cut(transfer.pieces, transfer.moved, sectors * ata.SECTOR)

        def good(transfer: _Transfer) -> None:
            transfer.lba += sectors
            transfer.sectors -= sectors
            transfer.moved += sectors * ata.SECTOR
            if transfer.sectors:
                self._move(transfer)
            else:
                self._done()

        self._submit(transfer, transfer.op, transfer.lba, sectors, buffer, good)

    def _next_range(self, transfer: _Transfer) -> None:
        lba, sectors = next(transfer.ranges, (0, 0))
        if sectors:
            self._submit(transfer, Op.UNMAP, lba, sectors, None, self._next_range)
        else:
            self._done()


def _trim_ranges(raw: bytes) -> Iterator[tuple[int, int]]:
    """LBA and sectors of each range; those of no sectors are padding."""
    for (entry,) in ata.TRIM_RANGE.iter_unpack(raw):
        lba, sectors = entry & (1 << 48) - 1, entry >> 48
        if sectors:
            yield lba, sectors


def _cut(pieces: Sequence[memoryview], start: int, nbytes: int) -> Memory:
    """``nbytes`` of the memory in ``pieces``, from its byte ``start`` on."""
    found = []
    for piece in pieces:
        if start < len(piece) and nbytes:
            found.append(piece[start : start + nbytes])
            nbytes -= len(found[-1])
        start = max(0, start - len(piece))
    return found[0] if len(found) == 1 else Scatter(found)
