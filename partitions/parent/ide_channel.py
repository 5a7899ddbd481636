"""One IDE channel: two drives, and the commands that move sectors between them and the guest.

The model ends in a :class:`~vmbus_emu.device.BlockDevice` per drive, where storvsp ends too. Register accesses come in
as calls and return at once; what the medium takes its time for shows as BSY, and its end as an interrupt. No I/O here.

A guest can write anything at any time. What a command is about is fixed when it is given (its drive, its place, its
length) and never looked at again in the registers: selecting another drive during a transfer changes nothing about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from partitions.parent.busmaster import BusMaster
from partitions.parent.guest_memory import GuestMemory
from partitions.parent.ide_taskfile import TaskFile
from partitions.parent.ide_transfer import Transfer, error_of, trim_ranges
from vmbus_emu.device import BlockDevice, BlockRequest, Memory, Op, Status
from vmbus_emu.protocol import ata
from vmbus_emu.protocol.ata import Command, Error

#: Sectors that PIO reads from the medium at once.
_PIO_AHEAD = 256

_EXTENDED = frozenset((
    Command.READ_SECTORS_EXT, Command.WRITE_SECTORS_EXT, Command.READ_DMA_EXT, Command.WRITE_DMA_EXT,
))  # fmt: skip


class IdeChannel:
    """``interrupt(level)`` is told when the interrupt line rises or falls."""

    def __init__(
        self, drives: Sequence[BlockDevice | None], memory: GuestMemory, interrupt: Callable[[bool], Any]
    ) -> None:
        self._drives = tuple(drives)
        self._interrupt = interrupt
        self.busmaster = BusMaster(memory)
        self._registers = TaskFile([drive is not None for drive in drives], self._settle)
        self._buffer = memoryview(b"")      # what the data register gives, or takes
        self._position = 0
        self._transfer: Transfer | None = None
        self._awaits_dma = False
        self._outstanding = False           # a request is with the medium
        handlers: Sequence[tuple[Callable[[BlockDevice, int], None], Sequence[int]]] = (
            # A command and the same "without retries" have long been one.
            (self._read_sectors, (Command.READ_SECTORS, Command.READ_SECTORS | 1, Command.READ_SECTORS_EXT)),
            (self._write_sectors, (Command.WRITE_SECTORS, Command.WRITE_SECTORS | 1, Command.WRITE_SECTORS_EXT)),
            (self._read_dma, (Command.READ_DMA, Command.READ_DMA | 1, Command.READ_DMA_EXT)),
            (self._write_dma, (Command.WRITE_DMA, Command.WRITE_DMA | 1, Command.WRITE_DMA_EXT)),
            (self._trim, (Command.DATA_SET_MANAGEMENT,)),
            (self._identify, (Command.IDENTIFY_DEVICE,)),
            (self._flush, (Command.FLUSH_CACHE, Command.FLUSH_CACHE_EXT)),
            (self._check_power, (Command.CHECK_POWER_MODE,)),
            (self._set_features, (Command.SET_FEATURES,)),
        )
        self._commands = {code: handler for handler, codes in handlers for code in codes}

    # -- registers ------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """The command block. All accesses but those of the data register are bytes."""
        if offset == ata.DATA:
            return int.from_bytes(self.read_data(size), "little")
        return self._registers.read(offset)

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == ata.DATA:
            self.write_data(value.to_bytes(size, "little"))
            return
        self._registers.write(offset, value)
        if offset == ata.COMMAND:
            self._command(value & 0xFF)

    def read_alternate_status(self) -> int:
        return self._registers.seen_status

    def write_control(self, value: int) -> None:
        was = self._registers.in_reset
        if value & ata.CONTROL_SRST and not was:
            self._buffer, self._position = memoryview(b""), 0
            self._awaits_dma = False
            self._transfer = None
        self._registers.write_control(value)
        if was and not self._registers.in_reset and not self._outstanding:
            self._reset()

    def _reset(self) -> None:
        """The end of a reset: it waits for what was under way, which would change the guest's memory later."""
        self._transfer = None
        self._registers.reset()

    def _settle(self, line: bool) -> None:
        if line:
            self.busmaster.status |= ata.BM_INTERRUPT
        self._interrupt(line)

    # -- commands ---------------------------------------------------------------------------------------

    def _command(self, code: int) -> None:
        drive = self._drives[self._registers.selected]
        if drive is None or self._registers.occupied:
            return
        self._registers.accept()
        self._transfer = None
        if code == Command.EXECUTE_DIAGNOSTIC:
            self._registers.sign()
            self._done()
            return
        handler = self._commands.get(code)
        if handler is None:
            self._fail(Error.ABRT)
        else:
            handler(drive, code)

    def _done(self) -> None:
        self._transfer = None
        self._registers.done()

    def _fail(self, error: int, fault: int = 0) -> None:
        self._transfer = None
        self._awaits_dma = False
        self._buffer = memoryview(b"")
        self._registers.fail(error, fault)

    def _place(self, drive: BlockDevice, code: int, op: Op) -> Transfer | None:
        """Where and how much, out of the registers. ``None``: the guest wants cylinders and heads, and is told so."""
        place = self._registers.place(code in _EXTENDED)
        if place is None:
            self._fail(Error.ABRT)
            return None
        return Transfer(drive, op, *place)

    def _submit(
        self, transfer: Transfer, op: Op, lba: int, blocks: int, buffer: Memory | None,
        good: Callable[[Transfer], None],
    ) -> None:
        """Hand a request to the medium, and go on with ``good`` when that is done."""

        def done(request: BlockRequest) -> None:
            self._outstanding = False
            if self._registers.in_reset:
                return                      # the reset ends when the guest says so
            if self._transfer is not transfer:
                self._reset()               # it has said so, and waited for this
            elif request.status is Status.OK:
                good(transfer)
            else:
                assert request.status is not None
                self._fail(*error_of(op, request.status))

        self._transfer = transfer
        self._registers.work()
        self._outstanding = True
        transfer.drive.submit(BlockRequest(op, lba, blocks, buffer, done))

    def _flush(self, drive: BlockDevice, code: int) -> None:
        self._submit(Transfer(drive, Op.FLUSH), Op.FLUSH, 0, 0, None, lambda transfer: self._done())

    def _check_power(self, drive: BlockDevice, code: int) -> None:
        def active(transfer: Transfer) -> None:
            self._registers.count = ata.POWER_ACTIVE
            self._done()

        self._submit(Transfer(drive, Op.READY), Op.READY, 0, 0, None, active)

    def _set_features(self, drive: BlockDevice, code: int) -> None:
        known = (ata.SET_WRITE_CACHE, ata.SET_NO_WRITE_CACHE, ata.SET_TRANSFER_MODE)
        if self._registers.features in known:
            self._done()
        else:
            self._fail(Error.ABRT)

    def _identify(self, drive: BlockDevice, code: int) -> None:
        info = drive.info
        self._transfer = Transfer(drive, Op.READ)
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
        return self._registers.has_data and self._transfer is not None and self._transfer.op is Op.READ

    @property
    def _writes(self) -> bool:
        return self._registers.has_data and self._transfer is not None and self._transfer.op is Op.WRITE

    def _read_sectors(self, drive: BlockDevice, code: int) -> None:
        transfer = self._place(drive, code, Op.READ)
        if transfer is not None:
            self._read_ahead(transfer)

    def _read_ahead(self, transfer: Transfer) -> None:
        sectors = min(transfer.sectors, _PIO_AHEAD)
        buffer = memoryview(bytearray(sectors * ata.SECTOR))

        def good(transfer: Transfer) -> None:
            transfer.advance(sectors)
            self._offer(buffer)

        self._submit(transfer, Op.READ, transfer.lba, sectors, buffer, good)

    def _offer(self, buffer: memoryview) -> None:
        self._buffer, self._position = buffer, 0
        self._registers.ask()
        self._registers.interrupt()

    def _sector_read(self) -> None:
        transfer = self._transfer
        assert transfer is not None
        if self._position < len(self._buffer):
            self._registers.interrupt()
        elif transfer.sectors:
            self._read_ahead(transfer)
        else:
            self._transfer = None
            self._registers.rest()

    def _write_sectors(self, drive: BlockDevice, code: int) -> None:
        self._transfer = self._place(drive, code, Op.WRITE)
        if self._transfer is not None:      # the first sector is asked for without an interrupt
            self._await_sector()

    def _await_sector(self) -> None:
        self._buffer, self._position = memoryview(bytearray(ata.SECTOR)), 0
        self._registers.ask()

    def _sector_written(self) -> None:
        transfer = self._transfer
        assert transfer is not None

        def good(transfer: Transfer) -> None:
            transfer.advance(1)
            if not transfer.sectors:
                self._done()
                return
            self._await_sector()
            self._registers.interrupt()

        self._submit(transfer, Op.WRITE, transfer.lba, 1, self._buffer, good)

    # -- DMA: the guest's memory, by the bus master's table ---------------------------------------------

    def _read_dma(self, drive: BlockDevice, code: int) -> None:
        self._await_dma(self._place(drive, code, Op.READ))

    def _write_dma(self, drive: BlockDevice, code: int) -> None:
        self._await_dma(self._place(drive, code, Op.WRITE))

    def _trim(self, drive: BlockDevice, code: int) -> None:
        if not self._registers.features & ata.TRIM or self._registers.count != ata.MAX_TRIM_LIST:
            self._fail(Error.ABRT)
            return
        self._await_dma(Transfer(drive, Op.UNMAP, sectors=ata.MAX_TRIM_LIST))

    def _await_dma(self, transfer: Transfer | None) -> None:
        if transfer is None:
            return
        self._transfer = transfer
        self._registers.work()
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
            transfer.ranges = trim_ranges(b"".join(pieces))
            self._next_range(transfer)
        else:
            transfer.pieces = pieces
            self._move(transfer)

    def _move(self, transfer: Transfer) -> None:
        sectors = min(transfer.sectors, transfer.drive.info.max_transfer_bytes // ata.SECTOR)
        buffer = transfer.memory(sectors)

        def good(transfer: Transfer) -> None:
            transfer.advance(sectors)
            if transfer.sectors:
                self._move(transfer)
            else:
                self._done()

        self._submit(transfer, transfer.op, transfer.lba, sectors, buffer, good)

    def _next_range(self, transfer: Transfer) -> None:
        lba, sectors = next(transfer.ranges, (0, 0))
        if sectors:
            self._submit(transfer, Op.UNMAP, lba, sectors, None, self._next_range)
        else:
            self._done()
