"""A VMBus channel's data path: packets with a type, flags, a transaction id, a device message, and data.

The VSC and the VSP of a device see only :class:`Channel`. What carries the packets is a transport:

* :class:`ZmqChannel`, one ZeroMQ PAIR over a socket file per channel and incarnation. A packet is one
  frame, msgpack ``[packet_type, flags, transaction_id, device message in its real bytes]``, and a second
  frame with the data if there is any. No memory is shared.
* :class:`~vmbus_emu.ring_channel.RingChannel`, two rings in shared memory with doorbells; data stays where it is.
* :func:`channel_pair`, two ends in one process, for tests and for looking at a protocol in isolation.

A *protocol error* is not a bug: what a peer sent wrong closes this channel, with a reason
(:meth:`Channel.fail`), and touches nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgpack
import zmq

from vmbus_emu.device import MAX_TRANSFER_BYTES, Buffer, Memory
from vmbus_emu.loop import Loop
from vmbus_emu.protocol.packets import COMPLETION_REQUESTED, MAX_MESSAGE_BYTES, PACKET_TYPES
from vmbus_emu.zmqport import Context, ZmqPort, peer_pid

#: The largest packet a peer may send: one transfer and room for its headers.
MAX_PACKET_BYTES = MAX_TRANSFER_BYTES + 4096
#: Messages libzmq may queue per direction: every outstanding request and completion fits.
_QUEUE = 512

#: ``handler(packet_type, flags, transaction_id, message, data)``; the buffers are valid during the call,
#: and for as long as they are referenced. Shared memory may change under the reader at any time.
PacketHandler = Callable[[int, int, int, bytes, Memory | None], Any]


class Channel:
    """One end of a channel. The owner sets ``on_packet`` and ``on_failed`` before anything can arrive.

    How data travels depends on ``shares_memory``. Without it, ``data`` is carried along and arrives as ``data``: with a
    request to be written, with the completion of a read. With it, a GPA-direct request describes the guest's buffer
    (``data`` to be written, or ``room`` for what is read), arrives with that very memory as ``data``, and the
    completion carries none: the server has read or filled it in place.
    """

    shares_memory = False

    def __init__(self) -> None:
        self.on_packet: PacketHandler = lambda *packet: None
        #: Called once with the reason when the peer broke the protocol; the owner revokes or gives up.
        self.on_failed: Callable[[str], Any] = lambda reason: None
        #: Called when there may be room again after :meth:`send` found none.
        self.on_room: Callable[[], Any] = lambda: None
        self.failed: str | None = None
        self.closed = False

    def send(
        self, packet_type: int, flags: int, transaction_id: int, message: Buffer,
        data: Buffer | None = None, room: Buffer | None = None,
    ) -> bool:
        """Queue one packet; ``message`` has been copied on return, ``data`` belongs to the channel until the answer.
        ``False``: there is no room (or nobody there); nothing was sent."""
        raise NotImplementedError

    def fail(self, reason: str) -> None:
        """The peer sent something it must not: stop listening and tell the owner why, once."""
        if self.failed is None and not self.closed:
            self.failed = reason
            self.close()
            self.on_failed(reason)

    def counts(self) -> dict[str, int]:
        """What this end has seen and done so far: ``packets`` that arrived, ``bytes`` that it put in. On rings also
        ``doorbells`` that it rang, and how often it was ``rung``, and requests whose data needed ``copies``."""
        return {}

    def close(self) -> None:
        """Stop sending and receiving. Idempotent."""
        self.closed = True


class ZmqChannel(Channel):
    """A channel over a ZeroMQ PAIR socket. The VSP's end binds, the VSC's end connects."""

    def __init__(self, loop: Loop, context: Context, peer: int | None = None) -> None:
        """``peer``: the only pid this end listens to; ``None`` accepts whoever answers at the name it connects to."""
        super().__init__()
        self._peer = peer
        self._packets = self._bytes = 0
        self._pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
        self._port = ZmqPort(
            loop, context, zmq.PAIR, self._received, max_message=MAX_PACKET_BYTES, queue=_QUEUE
        )

    def bind(self, path: str) -> None:
        self._port.bind(path)

    def connect(self, path: str) -> None:
        self._port.connect(path)

    def send(
        self, packet_type: int, flags: int, transaction_id: int, message: Buffer,
        data: Buffer | None = None, room: Buffer | None = None,
    ) -> bool:
        if self.closed:
            return False
        head = self._pack((packet_type, flags, transaction_id, message))
        if data is None:
            sent, nbytes = self._port.send(head), len(head)
        else:
            sent, nbytes = self._port.send(head, data), len(head) + len(data)
        if sent:
            self._bytes += nbytes
        return sent

    def _received(self, frames: list[zmq.Frame]) -> None:
        if self._peer is not None and peer_pid(frames[0]) != self._peer:
            self.fail(f"pid {peer_pid(frames[0])} spoke on a channel of pid {self._peer}")
            return
        packet = decode_packet(frames[0].buffer)
        if packet is None or len(frames) > 2:
            self.fail("malformed packet")
            return
        self._packets += 1
        self.on_packet(*packet, frames[1].buffer if len(frames) == 2 else None)

    def counts(self) -> dict[str, int]:
        return {"packets": self._packets, "bytes": self._bytes}

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._port.close()


class ChannelCounters:
    """What the channels of one owner have done, those closed since included. For ``ps``."""

    def __init__(self, also: Callable[[], dict[str, int]] = dict) -> None:
        """``also``: what is counted beside the channels."""
        self._also = also
        self._channels: list[Channel] = []
        self._before: dict[str, int] = {}

    def add(self, channel: Channel) -> None:
        self._before = self._sum([one for one in self._channels if one.closed])
        self._channels = [one for one in self._channels if not one.closed]
        self._channels.append(channel)

    def _sum(self, channels: list[Channel]) -> dict[str, int]:
        totals = dict(self._before)
        for channel in channels:
            for name, value in channel.counts().items():
                totals[name] = totals.get(name, 0) + value
        return totals

    def counters(self) -> dict[str, int]:
        """The sums of :meth:`Channel.counts`, and the rest."""
        return self._sum(self._channels) | self._also()


def decode_packet(head: Buffer) -> tuple[int, int, int, bytes] | None:
    """``(packet_type, flags, transaction_id, message)`` of a packet's first frame; ``None`` if it is not one."""
    if len(head) > MAX_MESSAGE_BYTES:
        return None
    try:
        packet = msgpack.unpackb(head, use_list=False, raw=False)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
    if type(packet) is not tuple or len(packet) != 4:
        return None
    packet_type, flags, transaction_id, message = packet
    if type(packet_type) is not int or packet_type not in PACKET_TYPES or type(message) is not bytes:
        return None
    if type(flags) is not int or type(transaction_id) is not int:
        return None
    if flags & ~COMPLETION_REQUESTED or not 0 <= transaction_id < 1 << 64:
        return None
    return packet_type, flags, transaction_id, message


class MemoryChannel(Channel):
    """One end of :func:`channel_pair`. Packets wait in a queue until :meth:`deliver`; data is copied, as on a wire."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.peer: MemoryChannel = self
        self.inbox: deque[tuple[int, int, int, bytes, Buffer | None]] = deque()
        self._room = room

    def send(
        self, packet_type: int, flags: int, transaction_id: int, message: Buffer,
        data: Buffer | None = None, room: Buffer | None = None,
    ) -> bool:
        if self.closed or self.peer.closed or len(self.peer.inbox) >= self._room:
            return False
        self.peer.inbox.append(
            (packet_type, flags, transaction_id, bytes(message), None if data is None else bytes(data))
        )
        return True

    def deliver(self) -> int:
        """Hand everything that waits at this end to ``on_packet``; the number of packets."""
        count = 0
        while self.inbox and not self.closed:
            self.on_packet(*self.inbox.popleft())
            count += 1
        return count


def channel_pair(room: int = _QUEUE) -> tuple[MemoryChannel, MemoryChannel]:
    """Two connected ends in one process. ``room``: packets per direction before ``send`` refuses."""
    near, far = MemoryChannel(room), MemoryChannel(room)
    near.peer, far.peer = far, near
    return near, far


def deliver_all(*ends: MemoryChannel) -> None:
    """Deliver at all ends until nothing moves."""
    while sum(end.deliver() for end in ends):
        pass
