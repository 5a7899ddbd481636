"""An IDE controller with two channels of two drives: which port is which register, and which interrupt whose.

The registers stand at their places in every PC (protocol sheet 7), the bus-master registers where Hyper-V's PCI
8086:7111 has them. No I/O; nothing a guest can write raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from partitions.parent.guest_memory import GuestMemory
from partitions.parent.ide_channel import IdeChannel
from vmbus_emu.device import BlockDevice
from vmbus_emu.protocol import ata

MAX_DRIVES = ata.CHANNELS * ata.DRIVES_PER_CHANNEL


class IdeController:
    """``drives``: in the order primary master, primary slave, secondary master, secondary slave; none after the last.
    ``interrupt(irq, level)`` is told of every rise and fall of an interrupt line."""

    def __init__(
        self, drives: Sequence[BlockDevice], memory: GuestMemory, interrupt: Callable[[int, bool], Any]
    ) -> None:
        places = [*drives, *[None] * (MAX_DRIVES - len(drives))]
        self._channels = [
            IdeChannel(places[2 * index : 2 * index + 2], memory, partial(interrupt, ata.IRQS[index]))
            for index in range(ata.CHANNELS)
        ]
        #: Port -> its channel, the register block (command, control, bus master), and the offset there.
        self._places: Mapping[int, tuple[IdeChannel, str, int]] = {
            port + offset: (channel, block, offset)
            for index, channel in enumerate(self._channels)
            for block, port, count in (
                ("command", ata.COMMAND_PORTS[index], ata.COMMAND_BLOCK),
                ("control", ata.CONTROL_PORTS[index], 1),
                ("busmaster", ata.BUS_MASTER_PORTS[index], ata.BUS_MASTER_BLOCK),
            )
            for offset in range(count)
        }

    @staticmethod
    def ports() -> Sequence[tuple[int, int]]:
        """First and last port of every range that the controller answers to."""
        blocks = [(port, ata.COMMAND_BLOCK) for port in ata.COMMAND_PORTS]
        blocks += [(port, 1) for port in ata.CONTROL_PORTS]
        blocks += [(port, ata.BUS_MASTER_BLOCK) for port in ata.BUS_MASTER_PORTS]
        return [(port, port + count - 1) for port, count in blocks]

    def __contains__(self, port: int) -> bool:
        return port in self._places

    def read(self, port: int, size: int) -> int:
        """An IN of ``size`` bytes (1, 2 or 4)."""
        channel, block, offset = self._places[port]
        if block == "command":
            return channel.read(offset, size)
        return channel.read_alternate_status() if block == "control" else channel.busmaster.read(offset, size)

    def write(self, port: int, size: int, value: int) -> None:
        """An OUT of ``size`` bytes; ``value`` has no more."""
        channel, block, offset = self._places[port]
        if block == "command":
            channel.write(offset, size, value)
        elif block == "control":
            channel.write_control(value & 0xFF)
        elif channel.busmaster.write(offset, size, value):
            channel.start_dma()

    def read_string(self, port: int, size: int, count: int) -> bytes:
        """A REP INS: ``count`` accesses of ``size`` bytes to one port."""
        channel, block, offset = self._places[port]
        if block == "command" and offset == ata.DATA:
            return channel.read_data(size * count)
        return b"".join(self.read(port, size).to_bytes(size, "little") for _ in range(count))

    def write_string(self, port: int, size: int, data: bytes) -> None:
        """A REP OUTS of all of ``data``."""
        channel, block, offset = self._places[port]
        if block == "command" and offset == ata.DATA:
            channel.write_data(data)
            return
        for start in range(0, len(data), size):
            self.write(port, size, int.from_bytes(data[start : start + size], "little"))
