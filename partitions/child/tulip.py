"""The driver of a legacy network adapter: a guest's NIC whose other end is registers and rings in memory.

:class:`TulipNic` is a :class:`~vmbus_emu.device.NetworkPort`. A frame to send is copied into buffers of the ring, and
one register access tells the adapter; those that queue up meanwhile share the next one. What arrives is found in the
ring when the interrupt comes: one access to ask why, one to acknowledge. The address is read from the adapter's serial
ROM at the start, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from partitions.child.port_io import PortIo
from vmbus_emu.device import MIN_FRAME, Buffer, CountingPort, PortInfo, Status
from vmbus_emu.loop import Loop
from vmbus_emu.memory import PAGE, Pool
from vmbus_emu.protocol import tulip
from vmbus_emu.task import Task

#: Descriptors of each ring; a frame takes as many as it has pieces of :data:`BUFFER` bytes.
RX_RING, TX_RING = 64, 32
BUFFER = 1536
_STRIDE = 2048              # from one buffer to the next
_BUFFER_PAGES = (RX_RING + TX_RING) * _STRIDE // PAGE
#: Pages of I/O memory: the rings and a setup frame in one, then the buffers.
PAGES = 1 + _BUFFER_PAGES
_TX_PLACE = RX_RING * tulip.DESCRIPTOR.size
_SETUP_PLACE = 2048
#: An interrupt tells of every so many frames sent, and when fewer descriptors than this are left.
_INTERRUPT_EVERY, _FEW_LEFT = 16, 8

_INTERRUPTS = (
    tulip.NORMAL | tulip.ABNORMAL | tulip.TX_DONE | tulip.RX_DONE | tulip.RX_NO_BUFFER | tulip.BUS_ERROR
)


class TulipNic(CountingPort):
    """The adapter with its registers at ``base``. Raises ``MemoryError`` if ``pool`` has no room for its rings."""

    def __init__(self, loop: Loop, ports: PortIo, pool: Pool, base: int, log: Callable[[str], Any]) -> None:
        super().__init__(PortInfo(bytes(6)))    # and 1500, before :meth:`start`
        self._loop = loop
        self._ports = ports
        self._base = base
        self._log = log
        page = pool.take(PAGES)
        if page < 0:
            raise MemoryError("no I/O memory left for a network adapter")
        region = pool.region
        self._memory = region.view[page * PAGE : (page + PAGES) * PAGE]
        self._address = region.gpa + page * PAGE
        self._up = False
        self._rx_next = 0
        self._tx_next = self._tx_oldest = 0     # both counted without end; the ring's index is the rest
        self._queued = False                    # frames of which the adapter was not told
        self._telling = False
        self._fired = False
        self._serving = False
        self._broken = False
        self._starved = False

    # -- the guest's side -----------------------------------------------------------------------------


    @property
    def _outstanding(self) -> int:
        return self._tx_next - self._tx_oldest

    def transmit(self, frame: Buffer) -> Status:
        length = len(frame)
        if not MIN_FRAME <= length <= self._info.max_frame:
            return Status.INVALID
        if not self._up or self._broken:
            self._tx_drops += 1
            return Status.OK
        needed = -(-length // BUFFER)
        if self._free() < needed:
            self._starved = True
            return Status.BUSY
        view, first = memoryview(frame), self._tx_next
        for index in range(needed):
            part = view[index * BUFFER : (index + 1) * BUFFER]
            self._buffer(RX_RING + (first + index) % TX_RING)[: len(part)] = part
        for index in reversed(range(needed)):   # the first one last: with it the adapter sees a whole frame
            size = min(BUFFER, length - index * BUFFER)
            self._queue(first + index, size, index == 0, index == needed - 1)
        self._tx_next += needed
        self._tx_frames += 1
        self._tx_bytes += length
        self._last_io = self._loop.now
        self._tell()
        return Status.OK

    # -- rings ----------------------------------------------------------------------------------------

    def _buffer(self, number: int) -> memoryview:
        start = PAGE + number * _STRIDE
        return self._memory[start : start + BUFFER]

    def _buffer_address(self, number: int) -> int:
        return self._address + PAGE + number * _STRIDE

    def _status_of(self, place: int) -> int:
        status: int = tulip.STATUS_WORD.unpack_from(self._memory, place)[0]
        return status

    def _free(self) -> int:
        """Descriptors of the sending ring that are the driver's, after a look at which came back."""
        while self._tx_oldest < self._tx_next:
            if self._status_of(_TX_PLACE + self._tx_oldest % TX_RING * tulip.DESCRIPTOR.size) & tulip.OWN:
                break
            self._tx_oldest += 1
        return TX_RING - (self._tx_next - self._tx_oldest)

    def _queue(self, number: int, size: int, first: bool, last: bool) -> None:
        index = number % TX_RING
        control = size | (tulip.TX_FIRST if first else 0) | (tulip.TX_LAST if last else 0)
        few_left = TX_RING - (number + 1 - self._tx_oldest) < _FEW_LEFT
        if last and (few_left or number % _INTERRUPT_EVERY == 0):
            control |= tulip.TX_INTERRUPT
        self._describe(_TX_PLACE, TX_RING, index, control, self._buffer_address(RX_RING + index))

    def _describe(self, ring: int, length: int, index: int, control: int, address: int) -> None:
        """Fill a descriptor, and then give it to the adapter."""
        place = ring + index * tulip.DESCRIPTOR.size
        control |= tulip.END_OF_RING if index == length - 1 else 0
        tulip.DESCRIPTOR.pack_into(self._memory, place, 0, control, address, 0)
        tulip.STATUS_WORD.pack_into(self._memory, place, tulip.OWN)

    def _tell(self) -> None:
        self._queued = True
        if not self._telling:
            self._telling = True
            Task(self._loop, self._tell_all())

    async def _tell_all(self) -> None:
        while self._queued:
            self._queued = False
            await self._set(tulip.CSR_TX_POLL, 1)
            self._reclaim()
        self._telling = False

    def _reclaim(self) -> None:
        if self._free() and self._starved:
            self._starved = False
            if self._on_ready is not None:
                self._on_ready()

    # -- the adapter ----------------------------------------------------------------------------------

    async def _get(self, csr: int) -> int:
        return await self._ports.read(self._base + csr * tulip.CSR_STRIDE, 4)

    async def _set(self, csr: int, value: int) -> None:
        await self._ports.write(self._base + csr * tulip.CSR_STRIDE, 4, value)

    async def start(self) -> None:
        """Reset the adapter, learn its address, and let frames flow."""
        await self._set(tulip.CSR_BUS_MODE, tulip.BUS_MODE_RESET)
        words = [await self._rom_word(tulip.ROM_MAC_WORD + index) for index in range(tulip.ROM_MAC_WORDS)]
        mac = b"".join(word.to_bytes(2, "little") for word in words)
        self._info = PortInfo(mac, await self._rom_word(tulip.ROM_MTU_WORD))
        for index in range(RX_RING):
            self._describe(0, RX_RING, index, BUFFER, self._buffer_address(index))
        # Memory outlives its VM: what the last one had queued would be sent behind each round of ours.
        self._memory[_TX_PLACE : _TX_PLACE + TX_RING * tulip.DESCRIPTOR.size] = bytes(TX_RING * tulip.DESCRIPTOR.size)
        setup = tulip.encode_setup([mac, tulip.BROADCAST])
        self._memory[_SETUP_PLACE : _SETUP_PLACE + len(setup)] = setup
        self._describe(_TX_PLACE, TX_RING, 0, len(setup) | tulip.TX_SETUP, self._address + _SETUP_PLACE)
        self._tx_next = 1
        await self._set(tulip.CSR_RX_LIST, self._address)
        await self._set(tulip.CSR_TX_LIST, self._address + _TX_PLACE)
        await self._set(tulip.CSR_INTERRUPTS, _INTERRUPTS)
        await self._set(tulip.CSR_MODE, tulip.MODE_TX)  # which sends what is in the ring: the filter, before frames
        await self._set(tulip.CSR_MODE, tulip.MODE_TX | tulip.MODE_RX)
        self._up = True

    async def _rom_word(self, address: int) -> int:
        select = tulip.ROM_PINS | tulip.ROM_SELECT
        command = tulip.ROM_OPCODE_READ << tulip.ROM_ADDRESS_BITS | address
        await self._set(tulip.CSR_ROM, tulip.ROM_PINS)
        for bit in reversed(range(tulip.ROM_ADDRESS_BITS + 3)):
            await self._clock(select | (tulip.ROM_DATA_IN if command >> bit & 1 else 0))
        word = 0
        for _ in range(16):
            await self._clock(select)
            word = word << 1 | bool(await self._get(tulip.CSR_ROM) & tulip.ROM_DATA_OUT)
        return word

    async def _clock(self, pins: int) -> None:
        await self._set(tulip.CSR_ROM, pins)
        await self._set(tulip.CSR_ROM, pins | tulip.ROM_CLOCK)

    # -- interrupts -----------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """The adapter's interrupt came."""
        self._fired = True
        if not self._serving and not self._broken:
            self._serving = True
            Task(self._loop, self._serve())

    async def _serve(self) -> None:
        while self._fired and not self._broken:
            self._fired = False
            causes = await self._get(tulip.CSR_STATUS)
            await self._set(tulip.CSR_STATUS, causes & tulip.CLEARABLE)
            if causes & tulip.BUS_ERROR:
                self._broken = True
                self._log("the network adapter stopped with a bus error; its driver gives it up")
            if causes & (tulip.RX_DONE | tulip.RX_NO_BUFFER):
                self._take_frames()
            if causes & tulip.RX_NO_BUFFER:
                await self._set(tulip.CSR_RX_POLL, 1)
            self._reclaim()
        self._serving = False

    def _take_frames(self) -> None:
        """All whole frames in the ring, up to a descriptor that is the adapter's."""
        pieces: list[int] = []
        for _ in range(RX_RING):
            status = self._status_of(self._rx_next * tulip.DESCRIPTOR.size)
            if status & tulip.OWN:
                break
            if status & tulip.RX_FIRST:
                pieces = []
            pieces.append(self._rx_next)
            self._rx_next = (self._rx_next + 1) % RX_RING
            if status & tulip.RX_LAST:
                self._deliver(pieces, (status >> tulip.RX_LENGTH_SHIFT & tulip.RX_LENGTH_MASK) - tulip.FCS_BYTES)
                for index in pieces:
                    tulip.STATUS_WORD.pack_into(self._memory, index * tulip.DESCRIPTOR.size, tulip.OWN)

    def _deliver(self, pieces: list[int], length: int) -> None:
        if len(pieces) == 1:
            frame = self._buffer(pieces[0])[:length]
        else:
            frame = memoryview(b"".join(self._buffer(index) for index in pieces))[:length]
        if self._receiver is None or length < MIN_FRAME or not self._receiver(frame):
            self._rx_drops += 1
            return
        self._rx_frames += 1
        self._rx_bytes += length
        self._last_io = self._loop.now
