"""The disks of a process that runs disk drivers: media in, drivers out.

The machine sends each medium's descriptor before the start; drivers are loaded by import path, so that this
process has the code of the drivers it runs and of no other. Used by the storage VSP and by the monolith.
"""

from __future__ import annotations

import os
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
        """Take a medium from the machine; a null disk has no descriptor. It may come twice: before its VM is known
        here, and with all the others."""
        name = message["name"]
        superfluous = fds
        if name not in self.drivers:
            superfluous = [fd for fd, _ in [self._media.pop(name, (-1, None))] if fd >= 0]
            self._media[name] = (fds[0] if fds else -1, BlockInfo(**message["info"]))
        for fd in superfluous:
            os.close(fd)

    def build(self, disks: Sequence[Mapping[str, Any]], home_for: Callable[[str], Home]) -> None:
        """Make the driver of every disk. ``home_for(medium)`` is where its workers bring their completions."""
        for disk in disks:
            fd, info = self._media[disk["medium"]]
            self.drivers[disk["medium"]] = load(disk["driver"])(fd, info, home_for(disk["medium"]))

    def take_out(self, medium: str) -> Callable[[], None]:
        """Forget a medium; what is returned lets go of it, and is called when its driver has nothing outstanding."""
        driver = self.drivers.pop(medium)
        fd, _ = self._media.pop(medium)

        def let_go() -> None:
            close = getattr(driver, "close", None)  # of those that have workers
            if close is not None:
                close()
            if fd >= 0:
                os.close(fd)

        return let_go

    def stats(self) -> dict[str, Any]:
        """Completed requests over all disks and when the last one was."""
        stats = [driver.stats() for driver in self.drivers.values()]
        return {
            "io": sum(s.completed for s in stats),
            "last_io": max((s.last_io for s in stats), default=0.0),
        }
