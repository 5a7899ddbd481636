"""Holding a guest's disks still while somebody copies their media: freeze and thaw.

First the guest's writers (:mod:`partitions.child.writers`) end their transactions and rest. Then the disks are held
still. Frozen means: what changed a medium and was under way has ended, all of it is flushed, and whatever is submitted
from now on that would change it waits at the device. Nothing fails meanwhile, and reads go on. A guest never stays
frozen for want of a word: it thaws by itself when :data:`LONGEST_S` is over, or its host is gone.

Loaded with the first freeze.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from partitions.child.commands import blockio
from partitions.child.console import CommandError
from partitions.child.writers import Writers
from vmbus_emu.device import BlockDevice, Op
from vmbus_emu.loop import Loop, Timer
from vmbus_emu.task import DeadlinePassed, Future, Task, sleep, within

#: Windows' limit for its writers.
LONGEST_S = 10.0
#: So long writers may take, in seconds; less than a host waits for a frozen guest, so that it hears who was late.
WRITERS_S = 3.0
#: Between two looks at whether what was under way has ended, in seconds.
_LOOK_S = 0.001


class Holdable(BlockDevice, Protocol):
    """What a guest's disk is."""

    def hold_writes(self) -> None: ...
    def writes_settled(self) -> bool: ...
    def release_writes(self) -> None: ...


class Quiesce:
    """A guest's disks by name, and its writers. ``log`` is the kernel's."""

    def __init__(
        self, loop: Loop, disks: Mapping[str, Holdable], writers: Writers, log: Callable[[str], Any],
        longest_s: float = LONGEST_S, writers_s: float = WRITERS_S,
    ) -> None:
        self._loop = loop
        self._disks = disks
        self._writers = writers
        self._log = log
        self._longest_s = longest_s
        self._writers_s = writers_s
        self._timer: Timer | None = None
        self._then: Callable[[bool], Any] | None = None     # of a freeze that is not complete yet
        self._round = 0
        self.frozen = False

    def freeze(self, then: Callable[[bool], Any]) -> None:
        """Hold the disks still; ``then(True)`` when they are, ``then(False)`` if that came to nothing: a writer did not
        come to rest, a disk could not be flushed, or a thaw came first."""
        if self._timer is not None:
            then(False)
            return
        self._round += 1
        self._then = then
        self._timer = self._loop.call_later(self._longest_s, self._too_long)
        Task(self._loop, self._settle(self._round, self._writers.hold()))

    async def _settle(self, number: int, quiet: Future[None]) -> None:
        try:
            await within(self._loop, self._writers_s, quiet)
            if number != self._round or self._then is None:
                return
            for disk in self._disks.values():
                disk.hold_writes()
            for disk in self._disks.values():
                while not disk.writes_settled():
                    await sleep(self._loop, _LOOK_S)
                    if number != self._round or self._then is None:
                        return
            for disk in self._disks.values():
                if not disk.info.read_only:
                    await blockio.run(self._loop, disk, Op.FLUSH)
        except DeadlinePassed:
            late = ", ".join(self._writers.busy)
            self._failed(number, f"no end of a transaction within {self._writers_s:g} s: {late}")
            return
        except CommandError as error:
            self._failed(number, str(error))
            return
        if number == self._round and self._then is not None:
            self._log("disks frozen")
            self.frozen = True
            then, self._then = self._then, None
            then(True)

    def _failed(self, number: int, why: str) -> None:
        if number == self._round and self._then is not None:
            self._log(f"freeze: {why}")
            self.thaw()

    def thaw(self) -> bool:
        """Let go again. ``False``: they were not frozen (any more), so what was copied may be anything."""
        was, self.frozen = self.frozen, False
        if self._timer is None:
            return False
        self._timer.cancel()
        self._timer = None
        for disk in self._disks.values():
            disk.release_writes()
        self._writers.release()
        self._log("disks thawed")
        then, self._then = self._then, None
        if then is not None:
            then(False)
        return was

    def _too_long(self) -> None:
        self._log(f"nobody thawed the disks within {self._longest_s:g} s")
        self.thaw()
