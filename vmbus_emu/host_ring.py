"""The VSP's end of a ring channel: it works in the memory that was granted to it.

Page lists are resolved within the region that the hypervisor granted, and nowhere else. Answers wait for a guest that
is slow to take them; until they are taken, no further requests are read from that guest.
"""

from __future__ import annotations

from collections import deque

from vmbus_emu.device import MAX_TRANSFER_BYTES, Buffer, Memory
from vmbus_emu.loop import Loop
from vmbus_emu.memory import Region
from vmbus_emu.polling import Poller
from vmbus_emu.protocol.packets import GPA_DIRECT
from vmbus_emu.ring import RingFault, page_ranges
from vmbus_emu.ring_channel import RingChannel

#: Bytes described by page lists that one channel may have moved before the others have their turn.
TURN_BYTES = 1 << 20
#: Answers that may wait for a guest to make room: all it can have asked for in one turn, many times over.
BACKLOG = 1024
#: Page lists remembered with the memory they describe.
_LISTS = 512


class HostRing(RingChannel):
    """See the module's text."""

    def __init__(
        self, loop: Loop, poller: Poller, inbound: memoryview, outbound: memoryview, bell: int, peer_bell: int,
        region: Region, max_ranges: int = 1,
    ) -> None:
        """``max_ranges``: in one page list; more fail the channel."""
        super().__init__(loop, poller, inbound, outbound, bell, peer_bell)
        self._region: Region | None = region
        self._max_ranges = max_ranges
        self._backlog: deque[tuple[int, int, int, bytes]] = deque()
        self._areas: dict[bytes, Memory] = {}
        self._turn_bytes = 0

    def send(
        self, packet_type: int, flags: int, transaction_id: int, message: Buffer,
        data: Buffer | None = None, room: Buffer | None = None,
    ) -> bool:
        assert data is None  # data stands in the guest's memory already
        if self.closed:
            return False
        if not self.touched:
            self._poller.touch(self)
        try:
            if not self._backlog and self._writer.put(packet_type, flags, transaction_id, message):
                if self._writer.knock:
                    self._knock()
                return True
        except RingFault as fault:
            self.fail(str(fault))
            return False
        if len(self._backlog) >= BACKLOG:
            return False
        self._backlog.append((packet_type, flags, transaction_id, bytes(message)))
        self.has_news = self._writer.has_room  # no request concerns us until the guest takes its answers
        return True

    def _send_backlog(self) -> bool:
        """Send what waits. ``False``: some of it still does (or the channel is closed)."""
        backlog = self._backlog
        self._poller.touch(self)
        try:
            while backlog:
                if not self._writer.put(*backlog[0]):
                    return False
                backlog.popleft()
        except RingFault as fault:
            self.fail(str(fault))
            return False
        self.has_news = self._reader.has_news
        return True

    def close(self) -> None:
        super().close()
        # Whoever still has this object shall not keep the guest's memory mapped with it.
        self._region = None
        self._areas.clear()
        self._backlog.clear()

    def drain(self) -> None:
        if self._backlog and not self._send_backlog():
            return
        self._turn_bytes = TURN_BYTES
        super().drain()

    def _on_direct(self, flags: int, transaction_id: int, message: bytes, pages: bytes) -> None:
        area = self._areas.get(pages)
        if area is None:
            area = self._resolve(pages)
            if area is None:
                return
        self._turn_bytes -= len(area)
        if self._turn_bytes <= 0:
            self._reader.stop()
        self._on_packet(GPA_DIRECT, flags, transaction_id, message, area)

    def _resolve(self, pages: bytes) -> Memory | None:
        """The memory that a page list describes; if there is none such, the channel has failed."""
        try:
            ranges = page_ranges(pages)
        except RingFault as fault:
            self.fail(str(fault))
            return None
        if len(ranges) > self._max_ranges:
            self.fail(f"a page list of {len(ranges)} ranges")
            return None
        if sum(one[0] for one in ranges) > MAX_TRANSFER_BYTES:
            self.fail("a page list of more than one transfer")
            return None
        area = None if self._region is None else self._region.resolve(ranges)
        if area is None:
            self.fail("a page list outside the granted memory")
            return None
        # The same list always means the same memory, and guests use their buffers again.
        if type(area) is memoryview:  # one in pieces is large, and a guest can think of any number
            if len(self._areas) >= _LISTS:
                self._areas.clear()
            self._areas[pages] = area
        return area
