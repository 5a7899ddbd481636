"""A network cable between two processes: one end in a switch, the other at a VM's emulated adapter.

A VM without integration services has its network adapter in its worker, and the switch lives where netvsp does.
Between them is an inherited SOCK_SEQPACKET pair, a frame to a message. The machine makes it anew whenever one of the
two processes is; meanwhile, and when the other end does not keep up, frames are lost and counted, as on a wire.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from vmbus_emu.device import MIN_FRAME, Buffer, CountingPort, NetworkPort, PortInfo, Status
from vmbus_emu.loop import Loop

#: Frames taken out of the socket before the loop looks at anything else.
_AT_ONCE = 32


class _Wire:
    """One end of the socket pair. ``received(frame)`` owns nothing: the buffer is another one for each frame."""

    def __init__(self, loop: Loop, fd: int, largest: int, received: Callable[[bytes], Any]) -> None:
        self._loop = loop
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._largest = largest
        self._received = received
        self._open = True
        loop.watch(fd, self._ready)

    def send(self, frame: Buffer) -> bool:
        """``False``: it is lost."""
        if not self._open:
            return False
        try:
            self._socket.send(frame)
        except BlockingIOError:
            return False
        except OSError:     # the other process is dead
            self.close()
            return False
        return True

    def _ready(self, events: int) -> None:
        for _ in range(_AT_ONCE):
            if not self._open:
                return
            try:
                frame = self._socket.recv(self._largest + 1)
            except BlockingIOError:
                return
            except OSError:
                frame = b""
            if not frame:   # nobody sends an empty one
                self.close()
                return
            self._received(frame)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()


class CablePort(CountingPort):
    """The adapter's end: a :class:`~vmbus_emu.device.NetworkPort` whose switch is at the other end of the cable."""

    def __init__(self, loop: Loop, info: PortInfo) -> None:
        super().__init__(info)      # never BUSY: what finds no room is lost
        self._loop = loop
        self._wire: _Wire | None = None

    def plug(self, fd: int) -> None:
        """A new cable, in place of the old one. Takes ``fd`` over."""
        if self._wire is not None:
            self._wire.close()
        self._wire = _Wire(self._loop, fd, self._info.max_frame, self._arrived)

    def transmit(self, frame: Buffer) -> Status:
        if not MIN_FRAME <= len(frame) <= self._info.max_frame:
            return Status.INVALID
        if self._wire is not None and self._wire.send(frame):
            self._tx_frames += 1
            self._tx_bytes += len(frame)
        else:
            self._tx_drops += 1
        self._last_io = self._loop.now
        return Status.OK

    def _arrived(self, frame: bytes) -> None:
        fits = MIN_FRAME <= len(frame) <= self._info.max_frame
        if not fits or self._receiver is None or not self._receiver(frame):
            self._rx_drops += 1
            return
        self._rx_frames += 1
        self._rx_bytes += len(frame)
        self._last_io = self._loop.now


class SwitchCable:
    """The switch's end: what arrives goes into ``port``, if it comes from that port's address."""

    def __init__(self, loop: Loop, port: NetworkPort, fd: int) -> None:
        self._port = port
        self._mac = port.info.mac
        #: Frames from another address than the port's.
        self.spoofed = 0
        self._wire = _Wire(loop, fd, port.info.max_frame, self._arrived)
        port.connect(self._wire.send)

    def _arrived(self, frame: bytes) -> None:
        if frame[6:12] == self._mac:
            self._port.transmit(frame)
        else:
            self.spoofed += 1

    def close(self) -> None:
        """Pull it out. What the port delivers next is for whoever plugs in then."""
        self._wire.close()
