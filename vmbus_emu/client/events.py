"""A machine's events as they happen, on a door of their own (:mod:`vmbus_emu.machine.events` lists them)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vmbus_emu.client.errors import DEADLINE_S, STOPPED_S, Forgotten, MachineError, Stopped, checked

if TYPE_CHECKING:
    from vmbus_emu.client.door import Door

Event = dict[str, Any]


class EventStream:
    """The events from the moment it was made, in their order; with ``past`` those before that the machine still has.

    It ends when the machine does. Takes the door over, and closes it (:meth:`close`, or leaving a ``with`` block).
    """

    def __init__(self, door: Door, past: bool = False) -> None:
        """Raises :class:`MachineError` when the machine does not answer."""
        self._door = door
        self._ended = False
        try:
            self._subscribe(past)
        except BaseException:
            self.close()
            raise

    def _subscribe(self, past: bool) -> None:
        number = self._door.send("watch", past=past)
        deadline = time.monotonic() + DEADLINE_S
        while (reply := self._door.receive(deadline, patience=STOPPED_S)) is not None:
            if reply.get("id") == number:
                checked(reply)
                return
        raise self._door.silence(DEADLINE_S)

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event = self.next(None)
        if event is None:
            raise StopIteration
        return event

    def next(self, timeout: float | None) -> Event | None:
        """The next event; ``None`` when there was none for ``timeout`` seconds, or the machine has ended.

        Raises :class:`MachineError` when the machine has been stopped by a signal for long, or when this was not asked
        for so long that the machine keeps no more events for it.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._ended:
            try:
                reply = self._door.receive(deadline)
            except (Stopped, Forgotten):
                raise
            except MachineError:
                self.close()
                return None
            if reply is None:
                return None
            if "event" in reply:
                return dict(reply["event"])
        return None

    @property
    def ended(self) -> bool:
        """Whether the machine has ended, or this was closed."""
        return self._ended

    def close(self) -> None:
        """Idempotent."""
        if not self._ended:
            self._ended = True
            self._door.close()
