"""MegaRAID: no command crosses a stripe of 64 KiB, and 254 commands may be with the controller at a time."""

from __future__ import annotations

from drivers.queued import QueuedDisk
from vmbus_emu.device import BlockDevice
from vmbus_emu.hardware import STORAGE, Driver

SLOTS = 254
STRIPE = 64 * 1024


def attach(model: str, disk: BlockDevice) -> QueuedDisk:
    """The disk as the controller carries its requests; called for each disk that hangs on it."""
    return QueuedDisk(disk, SLOTS, STRIPE, stripe=STRIPE)


DRIVER = Driver("megaraid", "1.0", STORAGE, ("1000:005d", "1000:0016"), attach)
