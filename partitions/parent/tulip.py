"""A 21140-style network adapter: registers, and two rings of descriptors in the guest's memory.

The model ends in a :class:`~vmbus_emu.device.NetworkPort`, as netvsp does. What the guest has queued is sent inside the
access that tells of it; a frame that arrives is written into the guest's buffers at once. No I/O of its own.

Rings, addresses and lengths are the guest's and may change while they are read: each descriptor is copied once and
decided by the copy. A ring that leads outside the memory stops its half of the adapter with a bus error; one without
end is left after :data:`MOST_DESCRIPTORS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from partitions.parent.guest_memory import GuestMemory
from partitions.parent.serial_rom import SerialRom
from vmbus_emu.device import Buffer, NetworkPort, Status
from vmbus_emu.protocol import tulip

#: Looked at for one order, and for one frame.
MOST_DESCRIPTORS = 256

#: What registers hold after a reset, where that is not zero.
_RESET = {tulip.CSR_BUS_MODE: 0xFE000000, tulip.CSR_MODE: 0x32000000}


class _Descriptor(NamedTuple):
    address: int
    status: int
    control: int
    first: int
    second: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Of its buffers; one that is chained has only the first."""
        second = 0 if self.control & tulip.CHAINED else self.control >> tulip.SECOND_SIZE_SHIFT & tulip.SIZE_MASK
        return self.control & tulip.SIZE_MASK, second


class Tulip:
    """``interrupt(level)`` is told of the interrupt line, and told again while it stays up behind an acknowledgement:
    the line is level-triggered."""

    def __init__(self, port: NetworkPort, memory: GuestMemory, interrupt: Callable[[bool], Any]) -> None:
        self._port = port
        self._memory = memory
        self._interrupt = interrupt
        info = port.info
        self._mac = info.mac
        self._largest = info.max_frame
        self._rom = SerialRom(tulip.rom_image(info.mac, info.mtu))
        #: Frames that the adapter's guest sent and that were none, or from another address than its own.
        self.refused = 0
        self._line = False
        self._reset()
        port.connect(self._receive, self._transmit)

    def _reset(self) -> None:
        self._csr = [0] * tulip.CSRS
        for number, value in _RESET.items():
            self._csr[number] = value
        self._rx_next = self._tx_next = 0
        self._frame = bytearray()           # what the descriptors so far hold of a frame to send
        self._inside = False                # between its first and its last descriptor
        self._filter: frozenset[bytes] | None = None

    # -- registers ------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """An IN of ``size`` bytes, ``offset`` from the first port."""
        number, byte = divmod(offset, tulip.CSR_STRIDE)
        if number == tulip.CSR_ROM:
            value = self._rom.read()
        else:
            value = self._csr[number]
            if number == tulip.CSR_MISSED:
                self._csr[number] = 0
        return value >> (8 * byte) & (1 << 8 * size) - 1 if byte < 4 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """An OUT; only whole registers can be written."""
        number, byte = divmod(offset, tulip.CSR_STRIDE)
        if byte or size != 4:
            return
        csr = self._csr
        if number == tulip.CSR_BUS_MODE:
            if value & tulip.BUS_MODE_RESET:
                self._reset()
            else:
                csr[number] = value
        elif number == tulip.CSR_TX_POLL:
            self._transmit()
        elif number == tulip.CSR_RX_LIST:
            csr[number] = self._rx_next = value & ~3
        elif number == tulip.CSR_TX_LIST:
            csr[number] = self._tx_next = value & ~3
        elif number == tulip.CSR_STATUS:
            csr[number] &= ~(value & tulip.CLEARABLE)
            self._settle(again=True)
            return
        elif number == tulip.CSR_MODE:
            self._set_mode(value)
        elif number == tulip.CSR_INTERRUPTS:
            csr[number] = value
        elif number == tulip.CSR_ROM:
            self._rom.write(value)
        self._settle()                      # of CSR2 there is nothing to do: every frame looks for itself

    def _set_mode(self, value: int) -> None:
        before, self._csr[tulip.CSR_MODE] = self._csr[tulip.CSR_MODE], value
        stopped = before & ~value
        if stopped & tulip.MODE_RX:
            self._tell(tulip.RX_STOPPED)
        if stopped & tulip.MODE_TX:
            self._tell(tulip.TX_STOPPED)
        if value & ~before & tulip.MODE_TX:
            self._frame, self._inside = bytearray(), False
            self._transmit()

    def _tell(self, causes: int) -> None:
        self._csr[tulip.CSR_STATUS] |= causes

    def _settle(self, again: bool = False) -> None:
        """Set the summaries and the line. ``again``: somebody acknowledged, and must hear of what is left."""
        causes, enabled = self._csr[tulip.CSR_STATUS], self._csr[tulip.CSR_INTERRUPTS]
        causes &= ~(tulip.NORMAL | tulip.ABNORMAL)
        if causes & enabled & tulip.NORMAL_CAUSES:
            causes |= tulip.NORMAL
        if causes & enabled & tulip.ABNORMAL_CAUSES:
            causes |= tulip.ABNORMAL
        self._csr[tulip.CSR_STATUS] = causes
        line = bool(causes & enabled & (tulip.NORMAL | tulip.ABNORMAL))
        if line != self._line or (line and again):
            self._line = line
            self._interrupt(line)

    # -- rings ----------------------------------------------------------------------------------------

    def _fetch(self, address: int) -> _Descriptor | None:
        raw = self._memory.at(address, tulip.DESCRIPTOR.size)
        return None if raw is None else _Descriptor(address, *tulip.DESCRIPTOR.unpack(raw))

    def _after(self, descriptor: _Descriptor, ring: int) -> int:
        """Where the next one is; ``ring``: the register with the first one's place."""
        if descriptor.control & tulip.END_OF_RING:
            return self._csr[ring]
        if descriptor.control & tulip.CHAINED:
            return descriptor.second & ~3
        skip = self._csr[tulip.CSR_BUS_MODE] >> tulip.BUS_MODE_SKIP_SHIFT & tulip.BUS_MODE_SKIP_MASK
        return descriptor.address + tulip.DESCRIPTOR.size + 4 * skip & 0xFFFFFFFF

    def _give_back(self, descriptor: _Descriptor, status: int) -> None:
        """Last of all: with this word the driver may take what is in the buffers."""
        raw = self._memory.at(descriptor.address, tulip.STATUS_WORD.size)
        if raw is not None:
            tulip.STATUS_WORD.pack_into(raw, 0, status)

    def _fail(self, which: int, stopped: int) -> None:
        """A bus error: half of the adapter stops until the driver resets it or starts it again."""
        self._csr[tulip.CSR_MODE] &= ~which
        self._tell(tulip.BUS_ERROR | stopped)
        self._settle()

    # -- to the network -------------------------------------------------------------------------------

    def _transmit(self) -> None:
        """Send what the ring holds, up to a descriptor that is the driver's."""
        if not self._csr[tulip.CSR_MODE] & tulip.MODE_TX:
            return
        for _ in range(MOST_DESCRIPTORS):
            descriptor = self._fetch(self._tx_next)
            if descriptor is None:
                self._fail(tulip.MODE_TX, tulip.TX_STOPPED)
                return
            if not descriptor.status & tulip.OWN:
                self._tell(tulip.TX_NO_BUFFER)
                break
            if not self._take(descriptor):
                return
            self._give_back(descriptor, 0)
            self._tx_next = self._after(descriptor, tulip.CSR_TX_LIST)
            if descriptor.control & tulip.TX_INTERRUPT:
                self._tell(tulip.TX_DONE)
        self._settle()

    def _take(self, descriptor: _Descriptor) -> bool:
        """Do what one descriptor says. ``False``: not now."""
        pieces = []
        for address, size in zip((descriptor.first, descriptor.second), descriptor.sizes, strict=True):
            piece = self._memory.at(address, size) if size else memoryview(b"")
            if piece is None:
                self._fail(tulip.MODE_TX, tulip.TX_STOPPED)
                return False
            pieces.append(piece)
        if descriptor.control & tulip.TX_SETUP:
            if not descriptor.control & tulip.TX_FILTER_TYPE:
                self._filter = decoded if (decoded := tulip.decode_setup(b"".join(pieces))) else self._filter
            return True
        if descriptor.control & tulip.TX_FIRST:
            self._frame, self._inside = bytearray(), True
        before = len(self._frame)
        if self._inside and before <= self._largest:
            self._frame += b"".join(pieces)
        if descriptor.control & tulip.TX_LAST and self._inside:
            if not self._send():
                del self._frame[before:]
                return False                # the network is busy, and says when it is not
            self._inside = False
        return True

    def _send(self) -> bool:
        frame = self._frame
        if len(frame) > self._largest or frame[6:12] != self._mac:
            self.refused += 1
            return True
        status = self._port.transmit(frame)
        self.refused += status is Status.INVALID
        return status is not Status.BUSY

    # -- from the network -----------------------------------------------------------------------------

    def _receive(self, frame: Buffer) -> bool:
        """Write a frame into the guest's buffers. ``False``: there was no room, and it is lost."""
        if not self._csr[tulip.CSR_MODE] & tulip.MODE_RX:
            return False
        if not self._is_for_us(frame):
            return True
        view = memoryview(frame)
        left, taken, address = len(view), [], self._rx_next
        for _ in range(MOST_DESCRIPTORS):
            descriptor = self._fetch(address)
            if descriptor is None:
                self._fail(tulip.MODE_RX, tulip.RX_STOPPED)
                return False
            if not descriptor.status & tulip.OWN:
                break
            taken.append(descriptor)
            left -= sum(descriptor.sizes)
            address = self._after(descriptor, tulip.CSR_RX_LIST)
            if left <= 0:
                return self._write_frame(view, taken, address)
        self._csr[tulip.CSR_MISSED] = min(self._csr[tulip.CSR_MISSED] + 1, 0xFFFF)
        self._tell(tulip.RX_NO_BUFFER)
        self._settle()
        return False

    def _is_for_us(self, frame: Buffer) -> bool:
        mode, to = self._csr[tulip.CSR_MODE], bytes(frame[:6])
        if mode & tulip.MODE_PROMISCUOUS or (mode & tulip.MODE_ALL_MULTICAST and to[0] & 1):
            return True
        return self._filter is not None and to in self._filter

    def _write_frame(self, frame: memoryview, taken: list[_Descriptor], following: int) -> bool:
        length, done = len(frame), 0
        for descriptor in taken:
            for address, size in zip((descriptor.first, descriptor.second), descriptor.sizes, strict=True):
                part = frame[done : done + size]
                if not part:
                    continue
                room = self._memory.at(address, len(part))
                if room is None:
                    self._fail(tulip.MODE_RX, tulip.RX_STOPPED)
                    return False
                room[:] = part
                done += len(part)
        self._rx_next = following
        last = tulip.RX_LAST | (length + tulip.FCS_BYTES & tulip.RX_LENGTH_MASK) << tulip.RX_LENGTH_SHIFT
        multicast = tulip.RX_MULTICAST if frame[0] & 1 else 0
        for index in reversed(range(len(taken))):   # the first one last: with it the driver sees a whole frame
            status = (0 if index else tulip.RX_FIRST) | (last if index == len(taken) - 1 else 0) | multicast
            self._give_back(taken[index], status)
        self._tell(tulip.RX_DONE)
        self._settle()
        return True
