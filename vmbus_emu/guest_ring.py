"""The guest's end of a ring channel: it describes its memory, the host works in it and answers.

A buffer that lies in the shared region is described as it is. Any other is copied into pages kept for this purpose, and
for a read back again when the answer comes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from vmbus_emu.channel import PacketHandler
from vmbus_emu.device import Buffer, Memory
from vmbus_emu.loop import Loop
from vmbus_emu.memory import PAGE, Pool, Region
from vmbus_emu.polling import Poller
from vmbus_emu.protocol.packets import COMPLETION, GPA_DIRECT
from vmbus_emu.ring import RingFault
from vmbus_emu.ring_channel import RingChannel

#: Page lists remembered in their wire form, by place and size.
_LISTS = 512


class _Copied(NamedTuple):
    """A request's data that had to be copied: its pages in the pool, and where a read is to be copied back to."""

    pool: Pool
    page: int
    pages: int
    target: Any


class GuestRing(RingChannel):
    """See the module's text."""

    def __init__(
        self, loop: Loop, poller: Poller, inbound: memoryview, outbound: memoryview, bell: int, peer_bell: int,
        region: Region, pools: tuple[Pool, ...],
    ) -> None:
        """``pools``: where copies are made, in the order in which they are tried."""
        super().__init__(loop, poller, inbound, outbound, bell, peer_bell)
        self._region = region
        self._pools = pools
        self._copied: dict[int, _Copied] = {}
        self._lists: dict[tuple[int, int], bytes] = {}

    def send(
        self, packet_type: int, flags: int, transaction_id: int, message: Buffer,
        data: Buffer | None = None, room: Buffer | None = None,
    ) -> bool:
        if self.closed:
            return False
        try:
            if packet_type != GPA_DIRECT:
                sent = self._writer.put(packet_type, flags, transaction_id, message)
            else:
                sent = self._send_direct(flags, transaction_id, message, data, room)
        except RingFault as fault:
            self.fail(str(fault))
            return False
        if self._writer.knock:
            self._knock()
        if not self.touched:  # also when there was no room: what was written before is to be seen soon
            self._poller.touch(self)
        if not self.hot and self._poller.spins:
            self._poller.heat(self)  # an answer will come
        return sent

    def _send_direct(
        self, flags: int, transaction_id: int, message: Buffer, data: Buffer | None, room: Buffer | None
    ) -> bool:
        buffer = data if data is not None else room
        assert buffer is not None
        offset = self._region.offset_of(buffer)
        if offset < 0:
            copied = self._copy(buffer, data is None)
            if copied is None:
                return False
            if not self._writer.put(
                GPA_DIRECT, flags, transaction_id, message, self._list(copied.page * PAGE, len(buffer))
            ):
                copied.pool.give(copied.page, copied.pages)
                return False
            self._copied[transaction_id] = copied
            self._reader.stop()  # the answer may come within this turn, and must not miss _completed
            self.copies += 1
            return True
        return self._writer.put(GPA_DIRECT, flags, transaction_id, message, self._list(offset, len(buffer)))

    def _list(self, offset: int, nbytes: int) -> bytes:
        known = self._lists.get((offset, nbytes))
        if known is None:
            if len(self._lists) >= _LISTS:
                self._lists.clear()
            known = self._lists[offset, nbytes] = self._region.page_list(offset, nbytes)
        return known

    def _copy(self, buffer: Buffer, reading: bool) -> _Copied | None:
        pages = (len(buffer) + PAGE - 1) // PAGE
        for pool in self._pools:
            page = pool.take(pages)
            if page >= 0:
                if not reading:
                    self._region.view[page * PAGE : page * PAGE + len(buffer)] = buffer
                return _Copied(pool, page, pages, buffer if reading else None)
        for pool in self._pools:  # other devices have pages of it: their completions concern us
            pool.waiting.add(self._pages_came_back)
        return None

    def _pages_came_back(self) -> None:
        # Not at once: who gives pages back is in the middle of something, or is the garbage collector.
        self._loop.call_soon(self._look_for_room)

    def _look_for_room(self) -> None:
        if not self.closed:
            self.on_room()

    def close(self) -> None:
        super().close()
        copied, self._copied = self._copied, {}
        for one in copied.values():
            one.pool.give(one.page, one.pages)

    def _handler(self) -> PacketHandler:
        return self._completed if self._copied else self.on_packet

    def _completed(
        self, packet_type: int, flags: int, transaction_id: int, message: bytes, data: Memory | None
    ) -> None:
        """Like ``on_packet``, where an answer may be to a request whose data was copied."""
        copied = self._copied.pop(transaction_id, None) if packet_type == COMPLETION else None
        if copied is not None:
            if copied.target is not None:
                start = copied.page * PAGE
                memoryview(copied.target)[:] = self._region.view[start : start + len(copied.target)]
            copied.pool.give(copied.page, copied.pages)
        self.on_packet(packet_type, flags, transaction_id, message, data)

    def _on_direct(self, flags: int, transaction_id: int, message: bytes, pages: bytes) -> None:
        self.fail("a GPA-direct packet from the host")

    def _rang(self, events: int) -> None:
        super()._rang(events)
        if not self.closed:
            self.on_room()  # a doorbell may mean room as well

    def _count_doorbell(self) -> None:
        self._writer.count_ring()
