"""The IDE driver's lower half: one command at a time on one channel, register access by register access.

The accesses are those of Linux's libata for a controller of this kind (protocol sheet 7), so their number is what the
real thing costs. Each channel has a table of physical regions and a buffer for what cannot be reached by DMA in place.
"""

from __future__ import annotations

from partitions.child.port_io import PortIo
from vmbus_emu.loop import Loop
from vmbus_emu.memory import PAGE, Pool, Region
from vmbus_emu.protocol import ata
from vmbus_emu.protocol.ata import Command, Status
from vmbus_emu.task import DeadlinePassed, Future, sleep, within

#: Bytes of one command: what LBA28 can count.
MAX_COMMAND_BYTES = ata.MAX_SECTORS_28 * ata.SECTOR
#: Pages of I/O memory for each channel: the table, and one command's data.
PAGES = 1 + MAX_COMMAND_BYTES // PAGE
#: How data moves.
DMA, STRING, WORDS = MODES = ("dma", "string", "words")
#: After so long without an interrupt the status is looked at: it may have been lost.
_LOST_S = 5.0
#: Between two looks at a busy drive that owes no interrupt.
_LOOK_S = 0.001

_DATA_OUT = frozenset((Command.WRITE_SECTORS, Command.WRITE_SECTORS_EXT))


class CommandFailed(Exception):
    """The drive ended a command with an error: its status and error registers."""

    def __init__(self, status: int, error: int) -> None:
        super().__init__(f"status {status:#04x}, error {error:#04x}")
        self.status = status
        self.error = error


class IdeChannel:
    """The registers of channel ``index``, for one coroutine at a time. Raises ``MemoryError`` if ``pool`` has no room
    for what it needs."""

    def __init__(self, loop: Loop, ports: PortIo, pool: Pool, index: int) -> None:
        self._loop = loop
        self._ports = ports
        self._command = ata.COMMAND_PORTS[index]
        self._control = ata.CONTROL_PORTS[index]
        self._master = ata.BUS_MASTER_PORTS[index]
        page = pool.take(PAGES)
        if page < 0:
            raise MemoryError(f"no I/O memory left for IDE channel {index}")
        region: Region = pool.region
        self._table = region.view[page * PAGE : (page + 1) * PAGE]
        self._table_address = region.gpa + page * PAGE
        #: For data that does not lie where DMA and string I/O reach.
        self.bounce = region.view[(page + 1) * PAGE : (page + PAGES) * PAGE]
        self.bounce_address = self._table_address + PAGE
        self._fired: Future[None] = Future()

    def interrupt(self) -> None:
        """The channel's interrupt came."""
        self._fired.resolve(None)

    # -- registers ------------------------------------------------------------------------------------

    def _in(self, offset: int) -> Future[int]:
        return self._ports.read(self._command + offset, 1)

    def _out(self, offset: int, value: int) -> Future[None]:
        return self._ports.write(self._command + offset, 1, value)

    async def _wait_idle(self, register: int) -> None:
        while await self._ports.read(register, 1) & Status.BSY:  # after a reset, or an interrupt that was lost
            await sleep(self._loop, _LOOK_S)

    async def _expect_interrupt(self) -> None:
        """Wait for what :attr:`_fired` was renewed for. A drive that is busy for long is waited for."""
        while not self._fired.done:
            try:
                await within(self._loop, _LOST_S, self._fired)
            except DeadlinePassed:
                if not await self._ports.read(self._control, 1) & Status.BSY:
                    return

    async def _check(self) -> int:
        """Read the status, which ends the interrupt. Raises :class:`CommandFailed`."""
        status = await self._in(ata.STATUS)
        if status & (Status.ERR | Status.DF):
            raise CommandFailed(status, await self._in(ata.ERROR))
        return status

    async def _load(self, lba: int, sectors: int, extended: bool, features: int) -> None:
        """The task file but for DEVICE and COMMAND; an extended command has two bytes for each register."""
        low = (features, sectors, lba, lba >> 8, lba >> 16)
        if extended:
            high = (features >> 8, sectors >> 8, lba >> 24, lba >> 32, lba >> 40)
            for offset, value in enumerate(high, ata.FEATURES):
                await self._out(offset, value & 0xFF)
        for offset, value in enumerate(low, ata.FEATURES):
            await self._out(offset, value & 0xFF)

    @staticmethod
    def _device(drive: int, lba: int, extended: bool) -> int:
        selected = ata.DEVICE_FIXED | ata.DEVICE_LBA | (ata.DEVICE_SLAVE if drive else 0)
        return selected | (0 if extended else lba >> 24 & 0x0F)

    async def _begin(self, drive: int, command: Command, lba: int, sectors: int, extended: bool) -> None:
        """A command without DMA: eight accesses, or thirteen."""
        await self._wait_idle(self._command + ata.STATUS)
        await self._out(ata.DEVICE, self._device(drive, lba, extended))
        await self._load(lba, sectors, extended, 0)
        self._fired = Future()
        await self._out(ata.COMMAND, command)

    # -- commands -------------------------------------------------------------------------------------

    async def present(self, drive: int) -> bool:
        """Whether there is a drive: a place without one reads as zeros."""
        await self._out(ata.DEVICE, self._device(drive, 0, False))
        return await self._in(ata.STATUS) not in (0, 0xFF)

    async def non_data(self, drive: int, command: Command) -> None:
        await self._begin(drive, command, 0, 0, False)
        await self._expect_interrupt()
        await self._check()

    async def identify(self, drive: int) -> bytes:
        """The 512 bytes of IDENTIFY DEVICE."""
        await self.pio(drive, Command.IDENTIFY_DEVICE, 0, 1, False, STRING, self.bounce_address)
        return bytes(self.bounce[: ata.SECTOR])

    async def pio(
        self, drive: int, command: Command, lba: int, sectors: int, extended: bool, mode: str, address: int
    ) -> None:
        """Move ``sectors`` through the data register, to or from guest-physical ``address``, by one access for each
        word or one REP for each sector."""
        out = command in _DATA_OUT
        await self._begin(drive, command, lba, sectors, extended)
        for index in range(sectors):
            if not out or index:            # the first sector of a write is asked for without an interrupt
                await self._expect_interrupt()
            status = await self._check()
            if not status & Status.DRQ:
                raise CommandFailed(status, 0)
            self._fired = Future()
            await self._sector(out, mode, address + index * ata.SECTOR)
        if out:
            await self._expect_interrupt()
            await self._check()

    async def _sector(self, out: bool, mode: str, address: int) -> None:
        ports, data = self._ports, self._command + ata.DATA
        if mode == STRING:
            move = ports.write_string if out else ports.read_string
            if await move(data, 2, ata.WORDS_PER_SECTOR, address) != ata.WORDS_PER_SECTOR:
                raise CommandFailed(0, 0)
            return
        sector = self._bytes_at(address)
        for start in range(0, ata.SECTOR, 2):
            if out:
                await ports.write(data, 2, int.from_bytes(sector[start : start + 2], "little"))
            else:
                sector[start : start + 2] = (await ports.read(data, 2)).to_bytes(2, "little")

    def _bytes_at(self, address: int) -> memoryview:
        """Word by word only the bounce buffer is filled: the CPU could do it anywhere, and copies from there."""
        start = address - self.bounce_address
        return self.bounce[start : start + ata.SECTOR]

    async def dma(
        self, drive: int, command: Command, lba: int, sectors: int, extended: bool, to_memory: bool, address: int,
        features: int = 0,
    ) -> None:
        """Move ``sectors`` by the bus master: 26 accesses, or 31."""
        read, write, master = self._ports.read, self._ports.write, self._master
        self._fill_table(address, sectors * ata.SECTOR)
        device = self._device(drive, lba, extended)
        await self._wait_idle(self._control)                    # select the device: 4
        await self._out(ata.DEVICE, device)
        await read(self._control, 1)
        await self._wait_idle(self._control)
        await self._load(lba, sectors, extended, features)  # the task file: 7
        await self._out(ata.DEVICE, device)
        await self._wait_idle(self._command + ata.STATUS)
        await write(master + ata.BM_TABLE, 4, self._table_address)  # set up: 5
        kept = await read(master + ata.BM_COMMAND, 1) & ~(ata.BM_TO_MEMORY | ata.BM_START)
        direction = ata.BM_TO_MEMORY if to_memory else 0
        await write(master + ata.BM_COMMAND, 1, kept | direction)
        self._fired = Future()
        await self._out(ata.COMMAND, command)
        await read(self._control, 1)
        kept = await read(master + ata.BM_COMMAND, 1)           # start: 2
        await write(master + ata.BM_COMMAND, 1, kept | ata.BM_START)
        await self._expect_interrupt()                          # and the interrupt: 8
        await read(master + ata.BM_STATUS, 1)
        kept = await read(master + ata.BM_COMMAND, 1)
        await write(master + ata.BM_COMMAND, 1, kept & ~ata.BM_START)
        await read(self._control, 1)
        await self._wait_idle(self._control)
        try:
            await self._check()
        finally:
            status = await read(master + ata.BM_STATUS, 1)
            await write(master + ata.BM_STATUS, 1, status | ata.BM_ERROR | ata.BM_INTERRUPT)
        if status & ata.BM_ERROR:
            raise CommandFailed(0, 0)

    def _fill_table(self, address: int, nbytes: int) -> None:
        """The regions of ``nbytes`` at ``address``; none crosses a multiple of 64 KiB."""
        place = 0
        while nbytes:
            length = min(nbytes, ata.PRD_LIMIT - address % ata.PRD_LIMIT)
            nbytes -= length
            flags = 0 if nbytes else ata.PRD_END
            ata.PRD.pack_into(self._table, place, address, length & 0xFFFF, flags)
            place += ata.PRD.size
            address += length
