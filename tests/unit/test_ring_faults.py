"""What a peer must not do to a ring, and that all that comes of it is a :class:`RingFault` (protocol sheet 8, 1 to 8).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.rings import GPA, SharedMemory
from vmbus_emu.memory import PAGE
from vmbus_emu.protocol.packets import COMPLETION, GPA_DIRECT, IN_BAND, MAX_MESSAGE_BYTES, TRANSFER_PAGES
from vmbus_emu.ring import RingFault, RingReader, RingWriter, page_ranges

SIZE = 8 * PAGE
PFN = GPA // PAGE
WRITE_INDEX, READ_INDEX = 0, 4
BAD_INDEXES = (1, 4, 7, SIZE - 1, SIZE, SIZE + 8, 1 << 31, 0xFFFF_FFF8, 0xFFFF_FFFF)


class Ring(NamedTuple):
    pages: memoryview       #: the pages, each once
    mapped: memoryview

    def set(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self.pages, offset, value)

    def get(self, offset: int) -> int:
        return int(struct.unpack_from("<I", self.pages, offset)[0])

    def place(self, raw: bytes, written: int | None = None) -> None:
        self.pages[PAGE : PAGE + len(raw)] = raw
        self.set(WRITE_INDEX, len(raw) if written is None else written)


@pytest.fixture
def ring() -> Iterator[Ring]:
    memory = SharedMemory(1 + SIZE // PAGE)
    yield Ring(memory.host.view, memory.guest.ring(range(1 + SIZE // PAGE)))
    memory.close()


def take(reader: RingReader) -> tuple[Any, ...] | None:
    taken: list[tuple[Any, ...]] = []
    reader.read(1, lambda *packet: taken.append(packet), lambda *direct: taken.append((page_ranges(direct[3]),)))
    return taken[0] if taken else None


def packet(kind: int = IN_BAND, start: int = 2, length: int = 4, flags: int = 0, rest: bytes = bytes(24)) -> bytes:
    """``start`` and ``length`` in qwords, ``rest``: all behind the descriptor."""
    return struct.pack("<HHHHQ", kind, start, length, flags, 77) + rest


def direct(between: bytes, message: bytes = bytes(8)) -> bytes:
    start = 2 + len(between) // 8
    return packet(GPA_DIRECT, start, start + len(message) // 8, 0, between + message + bytes(8))


def ranges(count: int, *words: int) -> bytes:
    """``words``: pairs of byte count and offset, or -page number."""
    out = struct.pack("<II", 0, count)
    for word in words:
        out += struct.pack("<Q", -word) if word < 0 else struct.pack("<I", word)
    return out


# -- indexes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", BAD_INDEXES)
def test_an_end_is_not_built_on_a_bad_index(ring: Ring, index: int) -> None:
    ring.set(WRITE_INDEX, index)
    with pytest.raises(RingFault, match="write_index"):
        RingWriter(ring.mapped)
    ring.set(READ_INDEX, index)
    with pytest.raises(RingFault, match="read_index"):
        RingReader(ring.mapped)


def test_a_ring_without_data_pages_is_none(ring: Ring) -> None:
    for end in RingWriter, RingReader:
        with pytest.raises(RingFault):
            end(ring.mapped[:PAGE])


@pytest.mark.parametrize("index", BAD_INDEXES)
def test_a_bad_write_index_is_a_fault_and_is_not_mended(ring: Ring, index: int) -> None:
    reader = RingReader(ring.mapped)
    ring.place(packet() * 2, index)
    assert reader.has_news()
    with pytest.raises(RingFault, match="write_index"):
        take(reader)
    assert ring.get(WRITE_INDEX) == index


@pytest.mark.parametrize("index", BAD_INDEXES)
def test_a_bad_read_index_is_a_fault_once_room_is_looked_for(ring: Ring, index: int) -> None:
    writer = RingWriter(ring.mapped)
    ring.set(READ_INDEX, index)
    with pytest.raises(RingFault, match="read_index"):
        writer.put(IN_BAND, 0, 1, b"")


@pytest.mark.parametrize("index", BAD_INDEXES)
def test_signalling_bears_any_index(ring: Ring, index: int) -> None:
    """Whether to ring is decided on what the peer wrote last: a wrong answer harms only the peer."""
    writer, reader = RingWriter(ring.mapped), RingReader(ring.mapped)
    ring.set(READ_INDEX, index)
    ring.set(WRITE_INDEX, index)
    for pending in 0, 8, SIZE, 0xFFFF_FFFF:
        ring.set(12, pending)
        assert writer.must_ring(0) in (False, True)
        assert reader.must_ring(0) in (False, True)


def test_each_end_keeps_its_own_index_privately(ring: Ring) -> None:
    writer, reader = RingWriter(ring.mapped), RingReader(ring.mapped)
    assert writer.put(IN_BAND, 0, 1, b"12345678")
    writer.publish()
    assert take(reader) is not None
    reader.publish()
    ring.set(READ_INDEX, 4096)      # by the writer, behind the reader's back
    assert take(reader) is None
    ring.set(READ_INDEX, 32)
    ring.set(WRITE_INDEX, 4096)     # by the reader, behind the writer's back
    assert writer.put(IN_BAND, 0, 2, b"12345678")
    assert writer.publish() == 32
    assert ring.get(WRITE_INDEX) == 64
    assert take(reader) == (IN_BAND, 0, 2, b"12345678", None)
    reader.publish()
    assert ring.get(READ_INDEX) == 64


# -- packets -----------------------------------------------------------------------------------------------------

#: What is written, and up to where.
BAD_PACKETS: dict[str, tuple[bytes, int]] = {
    **{f"type {kind}": (packet(kind), 40) for kind in (0, 1, 2, 3, 4, 5, 8, 0xA, 0xC, 0xD, 0xE, 0xFFFF)},
    **{f"flags {flags}": (packet(flags=flags), 40) for flags in (2, 3, 0x8000, 0xFFFF)},
    "payload inside the descriptor": (packet(start=1), 40),
    "payload before the packet": (packet(start=0), 40),
    "payload behind the packet": (packet(start=5), 40),
    "payload far behind": (packet(start=0xFFFF), 40),
    "shorter than its descriptor": (packet(start=2, length=1), 40),
    "no length": (packet(start=0, length=0), 40),
    "longer than what is written": (packet(length=0xFFFF), 40),
    "trailer not written": (packet(), 32),
    "a qword": (packet(), 8),
    "a descriptor without a trailer": (packet(length=2), 16),
    "a message too long": (
        packet(length=2 + (MAX_MESSAGE_BYTES + 8) // 8, rest=bytes(MAX_MESSAGE_BYTES + 16)), MAX_MESSAGE_BYTES + 32
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_PACKETS)
def test_a_malformed_packet_is_a_fault(ring: Ring, what: str) -> None:
    raw, written = BAD_PACKETS[what]
    ring.place(raw, written)
    with pytest.raises(RingFault):
        take(RingReader(ring.mapped))


@pytest.mark.parametrize("kind", [IN_BAND, COMPLETION])
def test_a_descriptor_that_was_good_is_checked_against_what_is_written(ring: Ring, kind: int) -> None:
    """The same descriptor again, of whose packet less is there this time."""
    ring.place(packet(kind) + packet(kind), 72)
    reader = RingReader(ring.mapped)
    assert take(reader) is not None
    with pytest.raises(RingFault):
        take(reader)


@pytest.mark.parametrize("kind", [IN_BAND, COMPLETION])
def test_the_largest_message(ring: Ring, kind: int) -> None:
    ring.place(packet(kind, length=2 + MAX_MESSAGE_BYTES // 8, rest=b"x" * MAX_MESSAGE_BYTES + bytes(8)))
    assert take(RingReader(ring.mapped)) == (kind, 0, 77, b"x" * MAX_MESSAGE_BYTES, None)


BAD_RANGES: dict[str, bytes] = {
    "no header": b"",
    "no ranges": ranges(0),
    "no ranges, but the bytes of one": ranges(0, 8, 0, -PFN),
    "a range that is not there": ranges(1),
    "fewer ranges than counted": ranges(2, 8, 0, -PFN),
    "as many ranges as can be counted": ranges(0xFFFF_FFFF, 8, 0, -PFN),
    "a count whose product with 16 overflows": ranges(0x1000_0001, 8, 0, -PFN),
    "a range of no bytes": ranges(1, 0, 0, -PFN),
    "an offset of a page": ranges(1, 8, PAGE, -PFN),
    "an offset of 4 GiB less one": ranges(1, 8, 0xFFFF_FFFF, -PFN),
    "bytes and offset that overflow": ranges(1, 0xFFFF_FFFF, 1, -PFN),
    "rounding that overflows": ranges(1, 0xFFFF_F002, 0, -PFN),
    "no page number": ranges(1, 8, 0),
    "a page number too few": ranges(1, PAGE, 1, -PFN),
    "a page number too many": ranges(1, PAGE, 0, -PFN, -PFN),
    "a second range without page numbers": ranges(2, 8, 0, -PFN, 8, 0),
    "a second range that is cut off": ranges(2, PAGE, 1, -PFN, -PFN, -PFN),
}


@pytest.mark.parametrize("what", BAD_RANGES)
def test_a_malformed_page_list_is_a_fault(ring: Ring, what: str) -> None:
    ring.place(direct(BAD_RANGES[what]))
    with pytest.raises(RingFault):
        take(RingReader(ring.mapped))


def test_a_page_list_does_not_reach_into_the_payload(ring: Ring) -> None:
    raw = direct(ranges(1, PAGE, 1, -PFN), struct.pack("<Q", PFN + 1))
    ring.place(raw)
    with pytest.raises(RingFault):
        take(RingReader(ring.mapped))


@pytest.mark.parametrize("kind", [TRANSFER_PAGES, GPA_DIRECT])
@pytest.mark.parametrize("start", [2, 3])
def test_room_for_the_ranges_header(ring: Ring, kind: int, start: int) -> None:
    """Both kinds have 24 bytes at least in front of their payload (rule 5)."""
    ring.place(packet(kind, start, 4, 1))
    if kind == TRANSFER_PAGES and start == 3:
        assert take(RingReader(ring.mapped)) == (kind, 1, 77, bytes(16), None)
    else:
        with pytest.raises(RingFault):
            take(RingReader(ring.mapped))


def test_a_descriptor_that_changes_between_two_looks_is_one_of_them_or_a_fault(ring: Ring) -> None:
    """A second packet, of another shape, is written over the first while the reader makes up its mind."""
    short, long = packet(length=3, rest=b"s" * 16), packet(length=5, rest=b"l" * 32)
    reader = RingReader(ring.mapped)
    learn = reader._learn

    def changed(at: int, left: int) -> Any:
        shape = learn(at, left)
        ring.pages[PAGE : PAGE + len(long)] = long
        return shape

    reader._learn = changed  # type: ignore[method-assign]
    ring.place(short, 32)
    with pytest.raises(RingFault):
        take(reader)
