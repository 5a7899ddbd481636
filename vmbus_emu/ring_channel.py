"""A channel over two rings in memory that the guest and one VSP share (``--transport ring``).

Packets are copied once into a ring and once out of it. Data does not go through the rings at all: a GPA-direct packet
carries the page list of the guest's buffer, and the VSP's driver moves the data straight between the medium and
those pages. What the two ends share is here; :mod:`vmbus_emu.guest_ring` describes buffers and
:mod:`vmbus_emu.host_ring` finds them.

Whatever a peer writes into the shared pages, the worst that comes of it is :meth:`Channel.fail`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from vmbus_emu.channel import Channel, PacketHandler
from vmbus_emu.loop import Loop
from vmbus_emu.polling import Poller
from vmbus_emu.ring import RingFault, RingReader, RingWriter, fence

#: Packets that one channel may have handled before the others have their turn, and before what was done is settled.
TURN_PACKETS = 16
#: However often it was rung, the doorbell is silent after few reads of so much.
_BELL_BYTES = 256


def hang_up(*ends: int | None) -> None:
    """Close ends of doorbells for which there is no channel; ``None``: there is none."""
    for end in ends:
        if end is not None:
            os.close(end)


class RingChannel(Channel):
    """What both ends share. Doorbells are pipes: ``bell`` is the end we read, ``peer_bell`` the one we write."""

    shares_memory = True

    def __init__(
        self, loop: Loop, poller: Poller, inbound: memoryview, outbound: memoryview, bell: int, peer_bell: int
    ) -> None:
        """Takes both descriptors over, whatever happens. :class:`~vmbus_emu.ring.RingFault`: the rings are unusable."""
        try:
            self._reader = RingReader(inbound)
            self._writer = RingWriter(outbound)
        except RingFault:
            hang_up(bell, peer_bell)
            raise
        super().__init__()
        self._loop = loop
        self._poller = poller
        self._bell = bell
        self._peer_bell = peer_bell
        self._sent_from = self._taken_from = -1
        self.hot = self.touched = False
        self.rung = self.received = self.doorbells = self.copies = 0
        self.has_news: Callable[[], bool] = self._reader.has_news
        self.sleep = self._reader.sleep
        self.wake = self._reader.wake
        loop.watch(bell, self._rang)
        poller.add(self)

    @property
    def on_packet(self) -> PacketHandler:
        return self._on_packet

    @on_packet.setter
    def on_packet(self, handler: PacketHandler) -> None:
        self._on_packet = handler
        self._reader.stop()  # the turn that is on, if any, was begun with the old one

    # -- for the poller -----------------------------------------------------------------------------

    def _rang(self, events: int) -> None:
        self._poller.heat(self)
        self.drain()  # before the doorbell is silenced: the peer waits for its answer, not for that
        if self.closed:
            return
        try:
            rang = os.read(self._bell, _BELL_BYTES)
        except BlockingIOError:  # the peer can open the other end for reading, and was quicker
            return
        if rang:
            self.rung += 1
        else:
            self._loop.unwatch(self._bell)  # the peer has hung up; whoever watches it will say so

    def drain(self) -> None:
        """Hand over what has arrived, at most one turn's worth."""
        try:
            self.received += self._reader.read(TURN_PACKETS, self._handler(), self._on_direct)
        except RingFault as fault:
            self.fail(str(fault))
            return
        if not self.touched:
            self._poller.touch(self)

    def _handler(self) -> PacketHandler:
        return self.on_packet

    def counts(self) -> dict[str, int]:
        return {
            "packets": self.received, "bytes": self._writer.put_bytes, "doorbells": self.doorbells, "rung": self.rung,
            "copies": self.copies,
        }  # fmt: skip

    def publish(self) -> None:
        if not self.closed:
            self._sent_from = self._writer.publish()
            self._taken_from = self._reader.publish()

    def ring_peer(self) -> None:
        if self.closed:
            return
        if (self._sent_from >= 0 and self._writer.must_ring(self._sent_from)) or (
            self._taken_from >= 0 and self._reader.must_ring(self._taken_from)
        ):
            self._ring()

    def _knock(self) -> None:
        """The peer sleeps: ring before the rest of this round, which takes it long enough to wake up."""
        start = self._writer.publish()
        fence()
        if start >= 0 and self._writer.must_ring(start):
            self._ring()

    def _ring(self) -> None:
        self.doorbells += 1
        self._count_doorbell()
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # it rings already, or nobody is there
            os.write(self._peer_bell, b"\1")

    def _count_doorbell(self) -> None:
        """Only a guest keeps the ring's interrupt count."""

    def _on_direct(self, flags: int, transaction_id: int, message: bytes, pages: bytes) -> None:
        raise NotImplementedError

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._reader.stop()
            self._reader.let_go()
            self._writer.let_go()
            self._poller.remove(self)
            self._loop.unwatch(self._bell)
            os.close(self._bell)
            os.close(self._peer_bell)
