"""The disks of a process that runs disk drivers: media in, drivers out.

The machine sends each medium's descriptor before the start; drivers are loaded by import path, so that this
process has the code of the drivers it runs and of no other. Used by the storage VSP and by the monolith.

A disk is two drivers, one above the other: that of the medium, and that of the controller which it hangs on. The
first has the data, the second decides how it is asked for, and can be replaced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from partitions.driver_store import DriverFailed, DriverStore
from vmbus_emu.device import BlockDevice, BlockInfo, Home
from vmbus_emu.lifeline import Message
from vmbus_emu.node import load

#: What a disk is behind a controller without a driver.
_ABSENT = "drivers.absent:AbsentDisk"


class Disks:
    """``drivers`` by medium name (``vm1.disk0``) once :meth:`build` was called."""

    def __init__(self, log: Callable[[str], Any]) -> None:
        self._log = log
        self._media: dict[str, tuple[int, BlockInfo]] = {}
        self._bare: dict[str, BlockDevice] = {}
        self.drivers: dict[str, BlockDevice] = {}
        self.controllers: dict[str, str] = {}       # by medium
        self.store = DriverStore({})

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
        complaints = set()
        for disk in disks:
            medium = disk["medium"]
            fd, info = self._media[medium]
            self._bare[medium] = load(disk["driver"])(fd, info, home_for(medium))
            self.controllers[medium] = disk["controller"]
            try:
                self.drivers[medium] = self.attached(medium)
            except DriverFailed as failed:
                self.drivers[medium] = load(_ABSENT)(info)
                complaints.add(str(failed))
        for complaint in sorted(complaints):
            self._log(complaint)

    def attached(self, medium: str) -> BlockDevice:
        """The disk behind its controller's driver, as that is chosen now. Raises :class:`DriverFailed`."""
        controller, bare = self.controllers[medium], self._bare[medium]
        driver = self.store.driver(controller)
        try:
            made: BlockDevice = driver.attach(self.store.devices[controller]["model"], bare)
            changed = made.info != bare.info
        except Exception as error:
            raise DriverFailed(f"hw.{controller}: driver {driver.name} cannot drive {medium}: {error!r}") from error
        if changed:
            raise DriverFailed(f"hw.{controller}: driver {driver.name} makes another disk of {medium}")
        return made

    def take_out(self, medium: str) -> Callable[[], None]:
        """Forget a medium; what is returned lets go of it, and is called when its driver has nothing outstanding."""
        del self.drivers[medium], self.controllers[medium]
        bare = self._bare.pop(medium)
        fd, _ = self._media.pop(medium)

        def let_go() -> None:
            close = getattr(bare, "close", None)  # of those that have workers
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
