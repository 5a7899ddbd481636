"""What channels count: packets that arrived, bytes that were put in, and that nothing is forgotten with a channel."""

from __future__ import annotations

from tests.rings import SharedMemory
from vmbus_emu.channel import Channel, ChannelCounters
from vmbus_emu.memory import PAGE
from vmbus_emu.protocol.packets import IN_BAND
from vmbus_emu.ring import RingReader, RingWriter, reset

_DESCRIPTOR, _TRAILER = 16, 8


class Counting(Channel):
    def __init__(self, packets: int) -> None:
        super().__init__()
        self.packets = packets

    def counts(self) -> dict[str, int]:
        return {"packets": self.packets, "bytes": 10 * self.packets}


def test_channels_that_were_closed_still_count() -> None:
    counters = ChannelCounters(lambda: {"missed_doorbells": 0})
    first, second = Counting(3), Counting(4)
    counters.add(first)
    assert counters.counters() == {"packets": 3, "bytes": 30, "missed_doorbells": 0}
    first.close()
    counters.add(second)
    assert counters.counters() == {"packets": 7, "bytes": 70, "missed_doorbells": 0}
    second.packets = 5
    second.close()
    counters.add(Counting(0))
    assert counters.counters() == {"packets": 8, "bytes": 80, "missed_doorbells": 0}
    assert ChannelCounters().counters() == {}


def test_a_ring_counts_the_bytes_of_all_its_laps() -> None:
    memory = SharedMemory(2)
    ring = memory.guest.ring(range(2))
    reset(ring)
    writer, reader = RingWriter(ring), RingReader(memory.host.ring(range(2)))
    taken: list[bytes] = []
    count = 200     # of 40 bytes and the frame, in a ring of 4 KiB: some laps
    for _ in range(count):
        assert writer.put(IN_BAND, 0, 1, bytes(40))
        writer.publish()
        reader.read(1, lambda kind, flags, number, message, data: taken.append(message), lambda *direct: None)
        reader.publish()
    assert len(taken) == count
    assert writer.put_bytes == count * (_DESCRIPTOR + 40 + _TRAILER) > 2 * PAGE
