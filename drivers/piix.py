"""PIIX, an IDE controller with bus-master DMA: one command at a time, of at most 256 sectors (28-bit addressing)."""

from __future__ import annotations

from drivers.queued import QueuedDisk
from vmbus_emu.device import BLOCK_SIZE, BlockDevice
from vmbus_emu.hardware import BUILT_IN, STORAGE, Driver

LARGEST = 256 * BLOCK_SIZE


def attach(model: str, disk: BlockDevice) -> QueuedDisk:
    return QueuedDisk(disk, 1, LARGEST)


DRIVER = Driver("piix", "1.0", STORAGE, BUILT_IN["piix"][1], attach)
