"""The cable of a physical NIC: a socket of the machine's, and the path of the one at its far end, another machine's.

A frame is a datagram. Nobody at the far end is a lost frame, as with a cable that is plugged in on one side. The socket
belongs to the machine, so what arrives while this process is replaced waits in it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from vmbus_emu.loop import Loop

#: Bytes of the longest frame that is looked at.
LONGEST = 16384
#: Frames taken in one round of the loop, for others have a turn, too.
BATCH = 64
#: The kernel does not say when a far socket has room again, so it is tried after so many seconds.
_AGAIN_S = 0.001


class Cable:
    """A :class:`~vmbus_emu.hardware.Wire`. ``arrived(frame)`` is called on ``loop`` for each frame."""

    def __init__(self, loop: Loop, fd: int, far: str, arrived: Callable[[bytes], Any]) -> None:
        self._loop = loop
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._far = far
        self._arrived = arrived
        self._full = False
        self.on_room: Callable[[], Any] = lambda: None
        #: Frames that came and went, and those that nobody was there for, or that came from elsewhere.
        self.received = self.sent = self.lost = 0
        loop.watch(fd, self._ready)

    def send(self, frame: bytes) -> bool:
        """On any thread of the NIC's owner, under its lock."""
        try:
            self._socket.sendto(frame, self._far)
            self.sent += 1
        except BlockingIOError:
            if not self._full:
                self._full = True
                self._loop.call_soon_threadsafe(self._loop.call_later, _AGAIN_S, self._room)
            return False
        except OSError:
            self.lost += 1
        return True

    def _room(self) -> None:
        self._full = False
        self.on_room()

    def _ready(self, events: int) -> None:
        for _ in range(BATCH):
            try:
                frame, sender = self._socket.recvfrom(LONGEST)
            except OSError:
                return
            if sender == self._far:
                self.received += 1
                self._arrived(frame)
            else:
                self.lost += 1
