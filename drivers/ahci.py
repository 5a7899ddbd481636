"""AHCI: 32 slots per port, and of each command a table of page-sized pieces that Linux makes 168 entries long."""

from __future__ import annotations

from drivers.queued import QueuedDisk
from vmbus_emu.device import BlockDevice
from vmbus_emu.hardware import BUILT_IN, STORAGE, Driver

SLOTS = 32
LARGEST = 168 * 4096


def attach(model: str, disk: BlockDevice) -> QueuedDisk:
    return QueuedDisk(disk, SLOTS, LARGEST)


DRIVER = Driver("ahci", "1.0", STORAGE, BUILT_IN["ahci"][1], attach)
