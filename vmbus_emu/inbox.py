"""Descriptors that the hypervisor hands to a process: of granted memory, and of doorbells.

They arrive over an inherited SOCK_SEQPACKET pair, one descriptor per message, which is one of these msgpack maps:

- ``{"t": "memory", "owner", "gpa", "pages", "access"}``: a region of another partition's I/O memory;
- ``{"t": "doorbell", "port"}``: the pipe's end that is readable when this partition's doorbell port was rung;
- ``{"t": "doorbell", "connection"}``: the end to write to, to ring a port this partition is connected to.

The hypervisor sends before it answers the call that made it send. So whoever knows of the answer finds the
descriptor here, and never has to wait for it.
"""

from __future__ import annotations

import os
import socket

import msgpack

from vmbus_emu.loop import Loop

_MAX_MESSAGE = 256
#: Room for more than the one descriptor a message has, so that a message with too many can be told and closed.
_MAX_FDS = 8

_Key = tuple[str, int, int]


class DescriptorInbox:
    """Keeps what arrived until it is taken; a ``take_*`` gives a descriptor away, and its caller closes it."""

    def __init__(self, loop: Loop, end: socket.socket) -> None:
        """``end`` belongs to the inbox from now on."""
        self._loop = loop
        self._socket = end
        self._open = True
        self._kept: dict[_Key, int] = {}
        #: Messages that were none of the above; their descriptors are closed.
        self.malformed = 0
        end.setblocking(False)
        # Taking would drain the socket by itself; watched, it does not fill up with what nobody takes.
        loop.watch(end.fileno(), self._ready)

    def take_memory(self, owner: int, gpa: int) -> int | None:
        """The descriptor of partition ``owner``'s region at guest-physical address ``gpa``."""
        return self._take(("memory", owner, gpa))

    def take_port(self, number: int) -> int | None:
        """The descriptor that is readable when our doorbell port ``number`` was rung."""
        return self._take(("port", number, 0))

    def take_connection(self, number: int) -> int | None:
        """The descriptor to write to for ringing through our connection ``number``."""
        return self._take(("connection", number, 0))

    def _take(self, key: _Key) -> int | None:
        self._drain()
        return self._kept.pop(key, None)

    def _ready(self, events: int) -> None:
        self._drain()

    def _drain(self) -> None:
        while self._open:
            try:
                raw, fds, flags, _ = socket.recv_fds(self._socket, _MAX_MESSAGE, _MAX_FDS)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # the hypervisor died with something of ours unread; what it had sent before comes now
            key = None if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) else _key(raw)
            if key is not None and len(fds) == 1:
                self._keep(key, fds[0])
                continue
            for fd in fds:
                os.close(fd)
            if raw:
                self.malformed += 1
            else:
                self._hang_up()

    def _keep(self, key: _Key, fd: int) -> None:
        older = self._kept.get(key)
        if older is not None:  # of a grant that was widened, or of a port whose number is used again
            os.close(older)
        self._kept[key] = fd

    def _hang_up(self) -> None:
        """Nothing more comes; what is kept can still be taken."""
        self._open = False
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()

    def close(self) -> None:
        """Close the socket and every descriptor that nobody took."""
        if self._open:
            self._hang_up()
        while self._kept:
            os.close(self._kept.popitem()[1])


def _key(raw: bytes) -> _Key | None:
    try:
        message = msgpack.unpackb(raw)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
    match message:
        case {"t": "memory", "owner": int(owner), "gpa": int(gpa), "pages": int(), "access": int()}:
            return "memory", owner, gpa
        case {"t": "doorbell", "port": int(number)}:
            return "port", number, 0
        case {"t": "doorbell", "connection": int(number)}:
            return "connection", number, 0
    return None
