"""NVMe: as many commands at a time as a disk here takes, and as large. So a disk behind it is the disk itself."""

from __future__ import annotations

from vmbus_emu.device import BlockDevice
from vmbus_emu.hardware import BUILT_IN, STORAGE, Driver


def attach(model: str, disk: BlockDevice) -> BlockDevice:
    """A queue of 64 entries and transfers of 1 MiB, the limits of every disk of this package, need no machinery."""
    return disk


DRIVER = Driver("nvme", "1.0", STORAGE, BUILT_IN["nvme"][1], attach)
