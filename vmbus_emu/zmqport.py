"""A ZeroMQ socket on a :class:`~vmbus_emu.loop.Loop`: drained when readable, never blocking, always bounded.

Every socket of the project is made here, because each needs the same four settings: no lingering (a dead
peer would hold up the exit), a size limit (the default is none), a bounded queue, and no blocking send (a
PAIR whose peer is dead blocks for ever).

Who the peer is, is the kernel's word: libzmq attaches the connecting process's ``uid:gid:pid`` to every
frame that arrives over ``ipc://``. :func:`peer_pid` reads it. Routing ids can be claimed freely and are
never used as an identity.

The classes are those of ``zmq.backend``, the layer below ``zmq.Socket`` that does the work. What the upper one adds
(options as attributes, draft send flags, tracking) is not needed here, and costs 0.2 us per send and
a quarter of a megabyte in every VM (docs/decisions/0010-the-backend-of-pyzmq.md).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import zmq
from zmq.backend import Context, Socket

from vmbus_emu.loop import Loop

__all__ = ["Context", "Handler", "ZmqPort", "peer_pid"]

#: Frames drained from one socket before the others get their turn.
BUDGET = 32
#: Below this a copy is cheaper than libzmq's bookkeeping for a borrowed buffer.
COPY_BELOW = 64 * 1024

Buffer = bytes | bytearray | memoryview  # as in device, which the hypervisor's process must not load
# As plain numbers: arithmetic on enum flags takes half a microsecond, and this is every packet's way.
_LAST = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK) | int(zmq.SNDMORE)

Handler = Callable[[list[zmq.Frame]], Any]


def peer_pid(frame: zmq.Frame) -> int:
    """The pid that connected the other end, from the kernel; 0 when it is not known."""
    try:
        return int(str(frame.get("Peer-Address")).rsplit(":", 1)[1])
    except (zmq.ZMQError, IndexError, ValueError):
        return 0


class ZmqPort:
    """One socket. ``handler`` gets each complete message as its list of frames."""

    def __init__(
        self,
        loop: Loop,
        context: Context,
        kind: int,
        handler: Handler,
        *,
        max_message: int,
        queue: int = 1000,
    ) -> None:
        self._loop = loop
        self._handler = handler
        self._marked = False
        self._closed = False
        self._file = ""
        self._context = context
        socket = self._socket = Socket(context, kind)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.MAXMSGSIZE, max_message)
        socket.set(zmq.SNDHWM, queue)
        socket.set(zmq.RCVHWM, queue)
        socket.set(zmq.RECONNECT_IVL, -1)  # a lost peer is a new incarnation, with a new name
        if kind == zmq.ROUTER:
            socket.set(zmq.ROUTER_MANDATORY, 1)
        self._fd = int(socket.get(zmq.FD))

    def bind(self, path: str) -> None:
        """Listen at a socket file. Raises ``zmq.ZMQError`` if the path is taken or too long (107 bytes)."""
        self._socket.bind("ipc://" + path)
        self._file = path
        self._watch()

    def connect(self, path: str) -> None:
        """Connect to a socket file; returns at once, the connection comes up behind it."""
        self._socket.connect("ipc://" + path)
        self._watch()

    def _watch(self) -> None:
        self._loop.watch(self._fd, self._readable)
        self._mark()

    def _mark(self) -> None:
        if not self._marked:
            self._marked = True
            self._loop.mark(self._pump)

    def send(self, *frames: Buffer) -> bool:
        """Send one message of several frames. ``False``: no room, or the peer is gone; nothing was sent."""
        socket = self._socket
        last = len(frames) - 1
        try:
            for index, frame in enumerate(frames):
                flags = _LAST if index == last else _MORE
                if len(frame) < COPY_BELOW:
                    socket.send(frame, flags)
                else:
                    socket.send(frame, flags, copy=False)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                self._mark()  # one that fails eats the edge, too
                return False  # the first frame decides for the whole message, so nothing is left half sent
            raise
        if not self._marked:  # the send may have eaten the edge of an arriving message
            self._marked = True
            self._loop.mark(self._pump)
        return True

    def _readable(self, events: int) -> None:
        if not self._marked:
            self._pump()

    def _pump(self) -> None:
        self._marked = False
        if self._closed:
            return
        receive = self._socket.recv
        flags = _LAST
        for _ in range(BUDGET):
            try:
                frame = receive(flags, copy=False)
            except zmq.Again:
                return
            frames = [frame]
            while frame.more:
                frame = receive(flags, copy=False)
                frames.append(frame)
            self._handler(frames)
            if self._closed:
                return
        self._mark()

    def close(self) -> None:
        """Close the socket, and remove the socket file of a bound one, which libzmq leaves."""
        if not self._closed:
            self._closed = True
            self._loop.unwatch(self._fd)
            self._socket.close(0)
            self._remove_file()

    def _remove_file(self) -> None:
        if self._file:
            with contextlib.suppress(FileNotFoundError):  # the machine sweeps, too
                os.unlink(self._file)

    def flush_and_close(self, longest: float) -> None:
        """Close the socket when what was sent has left, or after ``longest`` seconds; ends the whole context."""
        self._closed = True
        self._loop.unwatch(self._fd)
        self._socket.close(int(longest * 1000))
        self._remove_file()
        self._context.term()
