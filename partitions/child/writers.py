"""Writers, as VSS calls them: programs of a guest that bring what they keep on its disks to a consistent state by
themselves before the disks are held still.

A writer is asked while its disks still work. It ends the transaction that it is in, says so by resting, and begins none
until the thaw. What is no writer is caught at the disk, wherever it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vmbus_emu.task import Future


class Writer:
    """One of them. Before every transaction it waits for :meth:`rest`."""

    def __init__(self, writers: Writers, name: str) -> None:
        self._writers = writers
        self.name = name
        self.resting = False

    @property
    def held(self) -> bool:
        """Whether it is to rest."""
        return self._writers.held

    def rest(self) -> Future[None]:
        """What it keeps is consistent, and stays so until this resolves: at the thaw, or at once if nothing is held."""
        self.resting = self.held
        self._writers.look()
        return self._writers.thawed


class Writers:
    """Those of one guest."""

    def __init__(self) -> None:
        self.held = False
        #: Resolves at the end of the hold.
        self.thawed: Future[None] = Future()
        self.thawed.resolve(None)
        self._writers: list[Writer] = []
        self._quiet: Future[None] = Future()

    @contextmanager
    def joined(self, name: str) -> Iterator[Writer]:
        """``name`` is for the log. Who leaves is not waited for any more."""
        writer = Writer(self, name)
        self._writers.append(writer)
        try:
            yield writer
        finally:
            self._writers.remove(writer)
            self.look()

    def hold(self) -> Future[None]:
        """Ask all of them; resolves when all rest, at once if there is none, or when it is over."""
        self.held = True
        self.thawed, self._quiet = Future(), Future()
        self.look()
        return self._quiet

    def release(self) -> None:
        """The end of that: they go on."""
        self.held = False
        for writer in self._writers:
            writer.resting = False
        self._quiet.resolve(None)
        self.thawed.resolve(None)

    def look(self) -> None:
        """Somebody rests, or has left."""
        if self.held and not self.busy:
            self._quiet.resolve(None)

    @property
    def busy(self) -> list[str]:
        """The names of those that do not rest yet."""
        return [writer.name for writer in self._writers if not writer.resting]
