"""The lifeline: the inherited socket pair between the machine and each process it powers on.

Messages are msgpack maps with a type under ``"t"``, whole (SOCK_SEQPACKET), up to :data:`MAX_MESSAGE` bytes, and
may carry descriptors. End-of-file means the other end died; for a process that is the machine, so it ends too.
The lifeline also is the box's serial port: VM consoles run over it, so that they survive the parent partition.
"""

from __future__ import annotations

import os
import socket
import stat
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack

from vmbus_emu.loop import READ, WRITE, Loop

#: The largest message. Linux's default socket buffer takes it whole.
MAX_MESSAGE = 128 * 1024
#: Descriptors per message; the kernel allows 253.
MAX_FDS = 64
#: Console data per message.
CHUNK = 32 * 1024
#: Chunks that may be under way in each direction of a console session.
WINDOW = 8

#: The type of what arrives in place of a message that is none: not msgpack, not a map, without a type.
MALFORMED = "malformed"

_IN_MEMORY = "in-memory"
#: Messages of a dead process that are still looked at: more than a socket's buffer holds.
_LAST_WORDS = 1024

Message = dict[str, Any]
Handler = Callable[[Message, list[int]], Any]


class Lifeline:
    """One end. ``handler(message, descriptors)`` owns the descriptors; ``on_end()`` is called once at end-of-file."""

    def __init__(
        self,
        loop: Loop,
        end: socket.socket,
        handler: Handler,
        on_end: Callable[[], Any],
        largest: int = 1 << 30,
    ) -> None:
        """``largest``: bytes of a message in memory that are read from this peer."""
        self._loop = loop
        self._largest = largest
        self._socket = end
        self._handler = handler
        self._on_end = on_end
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._open = True
        end.setblocking(False)
        loop.watch(end.fileno(), self._ready)

    def send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Queue a message; it leaves now if the socket has room. Descriptors stay the caller's."""
        if not self._open:
            return
        raw = msgpack.packb(message)
        if len(raw) > MAX_MESSAGE:
            self._send_in_memory(raw)
            return
        if self._waiting or not self._try(raw, fds):
            self._waiting.append((raw, [os.dup(fd) for fd in fds]))
            self._loop.watch(self._socket.fileno(), self._ready, READ | WRITE)

    def _send_in_memory(self, raw: bytes) -> None:
        """A message too large for the socket travels as a memory file (the start of a machine of 1,000 VMs)."""
        fd = os.memfd_create("lifeline")
        os.pwrite(fd, raw, 0)
        self.send({"t": _IN_MEMORY}, (fd,))
        os.close(fd)

    def _try(self, raw: bytes, fds: Sequence[int]) -> bool:
        try:
            if fds:
                socket.send_fds(self._socket, [raw], list(fds))
            else:
                self._socket.send(raw)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            pass  # the other end is gone; its end-of-file says so in its turn
        return True

    def _ready(self, events: int) -> None:
        if events & WRITE and self._waiting:
            while self._waiting and self._try(*self._waiting[0]):
                _close_all(self._waiting.popleft()[1])
            if not self._waiting and self._open:
                self._loop.watch(self._socket.fileno(), self._ready)
        for _ in range(32):
            if not self._open or not self._receive():
                return

    def _receive(self) -> bool:
        """Take one message to the handler. ``False``: there is none now."""
        try:
            raw, fds, _, _ = socket.recv_fds(self._socket, MAX_MESSAGE, MAX_FDS)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True  # the other end died with something of ours unread; what it had sent before comes now
        if not raw:
            _close_all(fds)
            self.close()
            self._on_end()
            return False
        self._handler(*self._decode(raw, fds))
        return True

    def _decode(self, raw: bytes, fds: list[int]) -> tuple[Message, list[int]]:
        """The machine reads what guests write, so anything may stand here (design: rule 12)."""
        try:
            message = msgpack.unpackb(raw)
            if isinstance(message, dict) and message.get("t") == _IN_MEMORY:
                message = msgpack.unpackb(self._read_memory(fds))
                _close_all(fds)
                fds = []
            if isinstance(message, dict) and isinstance(message.get("t"), str):
                return message, fds
        except (ValueError, TypeError, OSError, msgpack.UnpackException):
            pass
        _close_all(fds)
        return {"t": MALFORMED}, []

    def _read_memory(self, fds: list[int]) -> bytes:
        if len(fds) != 1:
            raise ValueError("a message in memory comes with one descriptor")
        file = os.fstat(fds[0])
        if not stat.S_ISREG(file.st_mode) or file.st_size > self._largest:  # other files may make us wait
            raise ValueError("no memory file, or too large")
        return os.pread(fds[0], file.st_size, 0)

    def look(self) -> None:
        """Handle what has arrived, now and not in the loop's turn."""
        self._ready(READ)

    def drain(self) -> None:
        """The other end's process is dead: take what it had sent, then close."""
        for _ in range(_LAST_WORDS):  # not for ever: somebody else may hold that end, and still talk
            if not self._open or not self._receive():
                break
        self.close()

    def take_over(self) -> socket.socket:
        """The bare socket, blocking, for an owner that leaves the loop. This object is of no use afterwards."""
        self._open = False
        self._loop.unwatch(self._socket.fileno())
        self._socket.setblocking(True)
        return self._socket

    @property
    def backlog(self) -> int:
        """Messages that wait for room in the socket."""
        return len(self._waiting)

    def close(self) -> None:
        """Close this end: the other one sees end-of-file."""
        if self._open:
            self._open = False
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            while self._waiting:
                _close_all(self._waiting.popleft()[1])


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, close-on-exec."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (near, far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_MESSAGE)
    return near, far
