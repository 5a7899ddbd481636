"""The IDE driver: a guest's disk whose other end is registers.

:class:`IdeDisk` is a :class:`~vmbus_emu.device.BlockDevice`. The two drives of a channel share its registers, so their
requests stand in one line: one command at a time, whatever is outstanding above. A request is as many commands as its
length needs. How data moves is a property of the disk (:attr:`IdeDisk.mode`): by DMA, by a REP for each sector, or word
by word.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from partitions.child.ide_channel import DMA, MAX_COMMAND_BYTES, MODES, STRING, WORDS, CommandFailed, IdeChannel
from partitions.child.port_io import PortIo
from vmbus_emu.device import (
    BLOCK_SIZE,
    FLUSH,
    NULL,
    OK,
    READ,
    UNMAP,
    WRITE,
    BlockInfo,
    BlockRequest,
    BlockStats,
    Op,
    Scatter,
    Status,
    request_fault,
)
from vmbus_emu.loop import Loop
from vmbus_emu.memory import Pool
from vmbus_emu.protocol import ata
from vmbus_emu.protocol.ata import Command, Error
from vmbus_emu.task import Task

__all__ = ("DMA", "MODES", "STRING", "WORDS", "IdeBus", "IdeDisk")

MAX_COMMAND_BLOCKS = MAX_COMMAND_BYTES // BLOCK_SIZE
_KNOWN = frozenset(Op)
_DMA = {READ: (Command.READ_DMA, Command.READ_DMA_EXT), WRITE: (Command.WRITE_DMA, Command.WRITE_DMA_EXT)}
_PIO = {
    READ: (Command.READ_SECTORS, Command.READ_SECTORS_EXT), WRITE: (Command.WRITE_SECTORS, Command.WRITE_SECTORS_EXT),
}  # fmt: skip


class IdeBus:
    """The controller's two channels, and the disks on them."""

    def __init__(self, loop: Loop, ports: PortIo, pool: Pool, log: Callable[[str], Any]) -> None:
        self._loop = loop
        self._pool = pool
        self._log = log
        self._ports = ports
        self._lines: dict[int, _Line] = {}

    async def find(self, names: list[str]) -> dict[str, IdeDisk]:
        """Identify the drives at the first places, one for each name. A place without a drive is left out."""
        disks: dict[str, IdeDisk] = {}
        for index, name in enumerate(names):
            number, drive = divmod(index, ata.DRIVES_PER_CHANNEL)
            line = self._lines.get(number)
            if line is None:
                line = self._lines[number] = _Line(
                    self._loop, IdeChannel(self._loop, self._ports, self._pool, number), self._log
                )
            identity = None
            if await line.channel.present(drive):
                identity = ata.decode_identity(await line.channel.identify(drive))
            if identity is None:
                self._log(f"{name}: nothing answers as drive {drive} of IDE channel {number}")
                continue
            disks[name] = IdeDisk(line, drive, identity, self._pool)
        return disks

    def interrupt(self, irq: int) -> None:
        """An interrupt came; others than the controller's are not for here."""
        if irq in ata.IRQS:
            line = self._lines.get(ata.IRQS.index(irq))
            if line is not None:
                line.channel.interrupt()


class _Line:
    """The requests of a channel's drives, in one line."""

    def __init__(self, loop: Loop, channel: IdeChannel, log: Callable[[str], Any]) -> None:
        self.loop = loop
        self.channel = channel
        self.log = log
        self._waiting: deque[tuple[IdeDisk, BlockRequest]] = deque()
        self._serving = False

    def append(self, disk: IdeDisk, request: BlockRequest) -> None:
        self._waiting.append((disk, request))
        if not self._serving:
            self._serving = True
            Task(self.loop, self._serve())

    async def _serve(self) -> None:
        while self._waiting:
            disk, request = self._waiting.popleft()
            disk.complete(request, await disk.carry_out(request))
        self._serving = False


class IdeDisk:
    """One drive as a block device."""

    def __init__(self, line: _Line, drive: int, identity: ata.Identity, pool: Pool) -> None:
        self._line = line
        self._channel = line.channel
        self._drive = drive
        self._identity = identity
        self._pool = pool
        self._info = BlockInfo(identity.block_count, identity.read_only, identity.serial)
        #: How data moves: ``dma``, ``string`` or ``words``.
        self.mode = DMA
        self._completed = [0] * len(Op)
        self._moved = [0] * len(Op)
        self._errors = self._outstanding = 0
        self._last_io = 0.0

    @property
    def info(self) -> BlockInfo:
        return self._info

    def allocate(self, nbytes: int) -> memoryview:
        return self._pool.allocate(nbytes) or memoryview(bytearray(nbytes))

    def submit(self, request: BlockRequest) -> None:
        fault = self._fault(request)
        self._outstanding += 1
        if fault is None and self._outstanding > self._info.queue_depth:
            fault = Status.BUSY
        if fault is not None:
            self.complete(request, fault)
        elif request.op in (READ, WRITE, UNMAP) and not request.blocks:
            self.complete(request, OK)      # zero sectors are 256 in a task file
        else:
            self._line.append(self, request)

    def _fault(self, request: BlockRequest) -> Status | None:
        if request.op not in _KNOWN:
            return Status.UNSUPPORTED
        fault = request_fault(request, self._info)
        if fault is None and request.op in (READ, WRITE) and type(request.buffer) is Scatter:
            return Status.INVALID
        if fault is None and request.op is READ and memoryview(request.buffer).readonly:  # type: ignore[arg-type]
            return Status.INVALID
        return fault

    def complete(self, request: BlockRequest, status: Status) -> None:
        """Called by the line, once for each request."""
        self._outstanding -= 1
        if request.op in _KNOWN:
            self._completed[request.op] += 1
            if status is OK:
                self._moved[request.op] += request.blocks * BLOCK_SIZE
        self._errors += status is not OK
        self._last_io = self._line.loop.now
        request.finish(status)

    def stats(self) -> BlockStats:
        done = self._completed
        return BlockStats(
            reads=done[READ], writes=done[WRITE], flushes=done[FLUSH], other=done[NULL] + done[UNMAP],
            read_bytes=self._moved[READ], written_bytes=self._moved[WRITE], errors=self._errors,
            outstanding=self._outstanding, last_io=self._last_io,
        )  # fmt: skip

    # -- commands -------------------------------------------------------------------------------------

    async def carry_out(self, request: BlockRequest) -> Status:
        """Do what a request asks for, as commands; how it ended. On the line's turn only."""
        try:
            if request.op is NULL:
                await self._channel.non_data(self._drive, Command.CHECK_POWER_MODE)
            elif request.op is FLUSH:
                command = Command.FLUSH_CACHE_EXT if self._identity.lba48 else Command.FLUSH_CACHE
                await self._channel.non_data(self._drive, command)
            elif request.op is UNMAP:
                await self._unmap(request.lba, request.blocks)
            else:
                await self._transfer(request)
        except CommandFailed as failed:
            return _status(failed, request.op)
        return OK

    async def _transfer(self, request: BlockRequest) -> None:
        buffer = memoryview(request.buffer)  # type: ignore[arg-type]  # _fault saw its type
        for start in range(0, request.blocks, MAX_COMMAND_BLOCKS):
            blocks = min(MAX_COMMAND_BLOCKS, request.blocks - start)
            part = buffer[start * BLOCK_SIZE : (start + blocks) * BLOCK_SIZE]
            await self._one_command(Op(request.op), request.lba + start, blocks, part)

    async def _one_command(self, op: Op, lba: int, blocks: int, part: memoryview) -> None:
        channel, extended = self._channel, lba + blocks > ata.LIMIT_28
        offset = -1 if self.mode == WORDS else self._pool.region.offset_of(part)
        in_place = offset >= 0 and offset % 2 == 0
        address = self._pool.region.gpa + offset if in_place else channel.bounce_address
        if op is WRITE and not in_place:
            channel.bounce[: len(part)] = part
        if self.mode == DMA:
            command = _DMA[op][extended]
            await channel.dma(self._drive, command, lba, blocks, extended, op is READ, address)
        else:
            await channel.pio(self._drive, _PIO[op][extended], lba, blocks, extended, self.mode, address)
        if op is READ and not in_place:
            part[:] = channel.bounce[: len(part)]

    async def _unmap(self, lba: int, blocks: int) -> None:
        if not self._identity.trim:
            raise CommandFailed(0, Error.ABRT)
        while blocks:
            ranges = b""
            while blocks and len(ranges) < ata.SECTOR:
                count = min(blocks, ata.MAX_TRIM_SECTORS)
                ranges += ata.TRIM_RANGE.pack(lba | count << 48)
                lba, blocks = lba + count, blocks - count
            channel = self._channel
            channel.bounce[: ata.SECTOR] = ranges.ljust(ata.SECTOR, b"\0")
            await channel.dma(
                self._drive, Command.DATA_SET_MANAGEMENT, 0, ata.MAX_TRIM_LIST, False, False, channel.bounce_address,
                ata.TRIM,
            )  # fmt: skip


def _status(failed: CommandFailed, op: int) -> Status:
    """A drive's error in the device's words. One bit means two things, by the direction."""
    if failed.error & Error.IDNF:
        return Status.OUT_OF_RANGE
    if op in (WRITE, UNMAP) and failed.error & Error.WP:
        return Status.READ_ONLY
    if failed.error & Error.ABRT and not failed.status & ata.Status.DF:
        return Status.UNSUPPORTED
    return Status.IO_ERROR
