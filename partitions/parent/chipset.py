"""The emulated devices of one VM: an IDE controller for its disks, and a 21140 for each NIC.

Every access a guest makes comes in as a call: an IN, an OUT, or one with REP, which moves its data between the port and
the guest's memory. In the monolith the guest's thread makes that call; elsewhere the VM's worker does, for each
intercept (:mod:`partitions.parent.worker`). A port that is no device's reads as all ones, as on a bus where nobody
answers. No I/O; nothing a guest can do raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from partitions.parent.guest_memory import GuestMemory
from partitions.parent.ide import IdeController
from partitions.parent.tulip import Tulip
from vmbus_emu.device import BlockDevice, NetworkPort
from vmbus_emu.protocol import tulip

SIZES = (1, 2, 4)
#: Accesses of one REP: what is left is said in RCX, and the guest goes on with it.
MOST_REPEATS = 1 << 16


@dataclass(frozen=True, slots=True)
class ChipsetStats:
    """Accesses since it was made. A string access counts as one, and its elements apart."""

    reads: int = 0
    writes: int = 0
    string_accesses: int = 0
    string_elements: int = 0
    #: Of a port that is no device's, of no size that there is, or with memory that is not there.
    stray: int = 0
    interrupts: int = 0
    #: Frames the guest sent that were none, or from another address than its own.
    refused_frames: int = 0


class Chipset:
    """``interrupt(irq)`` is called when an interrupt line rises."""

    def __init__(
        self, disks: Sequence[BlockDevice], nics: Sequence[NetworkPort], memory: GuestMemory,
        interrupt: Callable[[int], Any],
    ) -> None:
        self._memory = memory
        self._interrupt = interrupt
        self._ide = IdeController(disks, memory, self._line)
        self._nics = [
            Tulip(port, memory, lambda level, irq=tulip.IRQS[index]: self._line(irq, level))  # type: ignore[misc]
            for index, port in enumerate(nics)
        ]
        self._reads = self._writes = self._strings = self._elements = self._stray = self._interrupts = 0

    @staticmethod
    def ports(nics: int) -> Sequence[tuple[int, int]]:
        """First and last port of every range that is to be intercepted for a VM with so many NICs."""
        ranges = list(IdeController.ports())
        if nics:
            ranges.append((tulip.BASE_PORT, tulip.BASE_PORT + nics * tulip.PORTS_PER_ADAPTER - 1))
        return ranges

    def _line(self, irq: int, level: bool) -> None:
        if level:
            self._interrupts += 1
            self._interrupt(irq)

    def read(self, port: int, size: int) -> int:
        """IN: the value, of ``size`` bytes."""
        self._reads += 1
        nothing = (1 << 8 * size) - 1 if size in SIZES else 0
        device = self._device(port)
        if device is None or size not in SIZES:
            self._stray += 1
            return nothing
        model, offset = device
        return model.read(offset, size) & nothing

    def write(self, port: int, size: int, value: int) -> None:
        """OUT."""
        self._writes += 1
        device = self._device(port)
        if device is None or size not in SIZES:
            self._stray += 1
            return
        model, offset = device
        model.write(offset, size, value & (1 << 8 * size) - 1)

    def read_string(self, port: int, size: int, count: int, address: int) -> int:
        """REP INS to guest-physical ``address``; how many elements were moved: all, or none where there is no
        memory."""
        room = self._string(port, size, count, address)
        if room is None:
            return 0
        if port in self._ide:
            room[:] = self._ide.read_string(port, size, count)
        else:
            for start in range(0, len(room), size):
                room[start : start + size] = self.read(port, size).to_bytes(size, "little")
        return count

    def write_string(self, port: int, size: int, count: int, address: int) -> int:
        """REP OUTS from guest-physical ``address``; how many elements were moved."""
        data = self._string(port, size, count, address)
        if data is None:
            return 0
        if port in self._ide:
            self._ide.write_string(port, size, bytes(data))
        else:
            for start in range(0, len(data), size):
                self.write(port, size, int.from_bytes(data[start : start + size], "little"))
        return count

    def _string(self, port: int, size: int, count: int, address: int) -> memoryview | None:
        self._strings += 1
        memory = None
        if size in SIZES and 0 <= count <= MOST_REPEATS and self._device(port) is not None:
            memory = self._memory.at(address, size * count)
        if memory is None:
            self._stray += 1
        else:
            self._elements += count
        return memory

    def _device(self, port: int) -> tuple[IdeController | Tulip, int] | None:
        """Whose port it is, and what that calls it."""
        if port in self._ide:
            return self._ide, port
        index, offset = divmod(port - tulip.BASE_PORT, tulip.PORTS_PER_ADAPTER)
        return (self._nics[index], offset) if 0 <= index < len(self._nics) else None

    def stats(self) -> ChipsetStats:
        return ChipsetStats(
            self._reads, self._writes, self._strings, self._elements, self._stray, self._interrupts,
            sum(nic.refused for nic in self._nics),
        )
