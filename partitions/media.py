"""The disks of a process that runs disk drivers: media in, drivers out.

The machine sends each medium's descriptor before the start; drivers are loaded by import path, so that this
process has the code of the drivers it runs and of no other. Used by the storage VSP and by the monolith.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vmbus_emu.device import BlockDevice, BlockInfo, Home
from vmbus_emu.lifeline import Message
from vmbus_emu.node import load


class Disks:
    """``drivers`` by medium name (``vm1.disk0``) once :meth:`build` was called."""

    def __init__(self) -> None:
        self._media: dict[str, tuple[int, BlockInfo]] = {}
        self.drivers: dict[str, BlockDevice] = {}

    def insert(self, message: Message, fds: Sequence[int]) -> None:
        """Take a medium from the machine; a null disk has no descriptor."""
        self._media[message["name"]] = (fds[0] if fds else -1, BlockInfo(**message["info"]))

    def build(self, disks: Sequence[Mapping[str, Any]], home_for: Callable[[str], Home]) -> None:
        """Make the driver of every disk. ``home_for(medium)`` is where its workers bring their completions."""
        for disk in disks:
            fd, info = self._media[disk["medium"]]
            self.drivers[disk["medium"]] = load(disk["driver"])(fd, info, home_for(disk["medium"]))

    def stats(self) -> dict[str, Any]:
        """Completed requests over all disks and when the last one was."""
        stats = [driver.stats() for driver in self.drivers.values()]
        return {
            "io": sum(s.completed for s in stats),
            "last_io": max((s.last_io for s in stats), default=0.0),
        }
