"""Holding a guest's disks still while somebody copies their media: freeze and thaw.

Frozen means: what changed a medium and was under way has ended, all of it is flushed, and whatever is submitted from
now on that would change it waits at the device. Nothing fails meanwhile, and reads go on. A guest never stays frozen
for want of a word: it thaws by itself when :data:`LONGEST_S` is over, or its host is gone.

Loaded with the first freeze.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from partitions.child.commands import blockio
from partitions.child.console import CommandError
from vmbus_emu.device import BlockDevice, Op
from vmbus_emu.loop import Loop, Timer
from vmbus_emu.task import Task, sleep

#: Windows' limit for its writers.
LONGEST_S = 10.0
#: Between two looks at whether what was under way has ended, in seconds.
_LOOK_S = 0.001


class Holdable(BlockDevice, Protocol):
    """What a guest's disk is."""

    def hold_writes(self) -> None: ...
    def writes_settled(self) -> bool: ...
    def release_writes(self) -> None: ...


class Quiesce:
    """A guest's disks by name. ``log`` is the kernel's."""

    def __init__(
        self, loop: Loop, disks: Mapping[str, Holdable], log: Callable[[str], Any], longest_s: float = LONGEST_S
    ) -> None:
        self._loop = loop
        self._disks = disks
        self._log = log
        self._longest_s = longest_s
        self._timer: Timer | None = None
        self._then: Callable[[bool], Any] | None = None     # of a freeze that is not complete yet
        self._round = 0
        self.frozen = False

    def freeze(self, then: Callable[[bool], Any]) -> None:
        """Hold the disks still; ``then(True)`` when they are, ``then(False)`` if that came to nothing: a disk could not
        be flushed, or a thaw came first."""
        if self._timer is not None:
            then(False)
            return
        self._round += 1
        self._then = then
        self._timer = self._loop.call_later(self._longest_s, self._too_long)
        for disk in self._disks.values():
            disk.hold_writes()
        Task(self._loop, self._settle(self._round))

    async def _settle(self, number: int) -> None:
        try:
            for disk in self._disks.values():
                while not disk.writes_settled():
                    await sleep(self._loop, _LOOK_S)
                    if number != self._round or self._then is None:
                        return
            for disk in self._disks.values():
                if not disk.info.read_only:
                    await blockio.run(self._loop, disk, Op.FLUSH)
        except CommandError as error:
            self._log(f"freeze: {error}")
            if number == self._round:
                self.thaw()
            return
        if number == self._round and self._then is not None:
            self._log("disks frozen")
            self.frozen = True
            then, self._then = self._then, None
            then(True)

    def thaw(self) -> bool:
        """Let go again. ``False``: they were not frozen (any more), so what was copied may be anything."""
        was, self.frozen = self.frozen, False
        if self._timer is None:
            return False
        self._timer.cancel()
        self._timer = None
        for disk in self._disks.values():
            disk.release_writes()
        self._log("disks thawed")
        then, self._then = self._then, None
        if then is not None:
            then(False)
        return was

    def _too_long(self) -> None:
        self._log(f"nobody thawed the disks within {self._longest_s:g} s")
        self.thaw()
