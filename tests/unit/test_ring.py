"""One ring, byte by byte: what stands here comes from protocol sheet 3 and 8, not from the code.

Long, because the layout is one: both ends, every kind of packet, every rule about room and doorbells.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.rings import GPA, SharedMemory
from vmbus_emu.memory import PAGE
from vmbus_emu.protocol.packets import COMPLETION, GPA_DIRECT, IN_BAND, TRANSFER_PAGES
from vmbus_emu.ring import RingFault, RingReader, RingWriter, fence, page_ranges, reset

SIZE = PAGE                     # of the data area in most tests: one page
PFN = GPA // PAGE
# Byte offsets of the control page's fields (3.2).
WRITE_INDEX, READ_INDEX, MASK, PENDING, FEATURES, COUNT = 0, 4, 8, 12, 64, 4088


class Ring(NamedTuple):
    """A ring as its writer and its reader have it mapped, and the pages themselves, each once."""

    pages: memoryview
    writing: memoryview
    reading: memoryview

    def word(self, offset: int) -> int:
        return int(struct.unpack_from("<I", self.pages, offset)[0])

    def set(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self.pages, offset, value)

    def start_at(self, index: int) -> None:
        """An empty ring whose next packet begins at ``index``."""
        self.set(WRITE_INDEX, index)
        self.set(READ_INDEX, index)

    def data(self, at: int, nbytes: int) -> bytes:
        """Bytes of the data area, wrapped one by one."""
        return bytes(self.pages[PAGE + (at + n) % SIZE] for n in range(nbytes))

    def place(self, raw: bytes, at: int = 0) -> None:
        """What a writer would have done: the bytes, wrapped one by one, then the index."""
        for n, byte in enumerate(raw):
            self.pages[PAGE + (at + n) % SIZE] = byte
        self.set(WRITE_INDEX, (at + len(raw)) % SIZE)


@pytest.fixture
def ring() -> Iterator[Ring]:
    memory = SharedMemory(2)
    yield Ring(memory.host.view, memory.guest.ring((0, 1)), memory.host.ring((0, 1)))
    memory.close()


def packet(packet_type: int, transaction_id: int, between: bytes, message: bytes, flags: int = 0, at: int = 0) -> bytes:
    """A packet as 3.3 has it: descriptor, variable descriptor, payload, padding, trailer."""
    body = between + message
    body += bytes(-len(body) % 8)
    descriptor = struct.pack(
        "<HHHHQ", packet_type, (16 + len(between)) // 8, (16 + len(body)) // 8, flags, transaction_id
    )
    return descriptor + body + struct.pack("<II", 0, at)


def take(reader: RingReader) -> tuple[Any, ...] | None:
    """The next packet: type, flags, transaction id, message, and the ranges of a GPA-direct one."""
    taken: list[tuple[Any, ...]] = []
    count = reader.read(
        1, lambda *packet: taken.append(packet),
        lambda flags, number, message, pages: taken.append((GPA_DIRECT, flags, number, message, page_ranges(pages))),
    )  # fmt: skip
    assert count == len(taken)
    return taken[0] if taken else None


def gpa_ranges(*ranges: tuple[int, int, tuple[int, ...]], reserved: int = 0, count: int | None = None) -> bytes:
    """The variable descriptor of a GPA-direct packet: ``(byte_count, byte_offset, page numbers)``."""
    out = struct.pack("<II", reserved, len(ranges) if count is None else count)
    for byte_count, byte_offset, pfns in ranges:
        out += struct.pack(f"<II{len(pfns)}Q", byte_count, byte_offset, *pfns)
    return out


def transfer_ranges(*ranges: tuple[int, int], pageset: int = 0xCAFE, owns: int = 0) -> bytes:
    out = struct.pack("<HBBI", pageset, owns, 0, len(ranges))
    return out + b"".join(struct.pack("<II", *one) for one in ranges)


# -- the control page --------------------------------------------------------------------------------------------


def test_every_field_of_the_control_page_stands_where_the_sheet_says(ring: Ring) -> None:
    expected = bytearray(PAGE)

    def check(what: str, layout: str, offset: int, value: int) -> None:
        struct.pack_into(layout, expected, offset, value)
        assert bytes(ring.pages[:PAGE]) == expected, what

    writer = RingWriter(ring.writing)
    check("feature bit 0, by the writer", "<I", FEATURES, 1)
    reader = RingReader(ring.reading)
    check("masked from the start", "<I", MASK, 1)
    assert writer.put(IN_BAND, 0, 1, bytes(SIZE - 200))
    writer.publish()
    check("write index", "<I", WRITE_INDEX, SIZE - 200 + 24)
    assert not writer.put(IN_BAND, 0, 2, bytes(300))
    check("bytes wanted, as a packet has them", "<I", PENDING, 16 + 304 + 8)
    assert take(reader) is not None
    check("nothing before publish", "<I", READ_INDEX, 0)
    reader.publish()
    check("read index", "<I", READ_INDEX, SIZE - 200 + 24)
    reader.sleep()
    check("doorbell wanted", "<I", MASK, 0)
    reader.wake()
    check("doorbell not wanted", "<I", MASK, 1)
    for count in 1, 2:
        writer.count_ring()
        check("interrupt count", "<Q", COUNT, count)
    assert writer.put(IN_BAND, 0, 2, bytes(300))
    writer.publish()
    struct.pack_into("<I", expected, PENDING, 0)
    check("no longer wanted, and wrapped", "<I", WRITE_INDEX, SIZE - 200 + 24 + 328 - SIZE)


def test_the_interrupt_count_wraps(ring: Ring) -> None:
    writer = RingWriter(ring.writing)
    struct.pack_into("<Q", ring.pages, COUNT, (1 << 64) - 1)
    writer.count_ring()
    assert struct.unpack_from("<Q", ring.pages, COUNT) == (0,)


def test_a_fresh_ring_has_a_zero_control_page(ring: Ring) -> None:
    ring.pages[:] = b"\xaa" * len(ring.pages)
    reset(ring.writing)
    assert bytes(ring.pages[:PAGE]) == bytes(PAGE)
    assert bytes(ring.pages[PAGE:]) == b"\xaa" * SIZE


def test_a_writer_begins_without_a_wish_for_room(ring: Ring) -> None:
    """The outgoing side sets pending_send_sz = 0 (3.2); what the peer left there would ring for nothing."""
    ring.set(PENDING, 64)
    RingWriter(ring.writing)
    assert ring.word(PENDING) == 0


# -- packets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 40, 1024, 3000])
@pytest.mark.parametrize(("packet_type", "flags"), [(IN_BAND, 0), (IN_BAND, 1), (COMPLETION, 0)])
def test_in_band_and_completion_packets(ring: Ring, packet_type: int, flags: int, length: int) -> None:
    message = bytes(n % 251 + 1 for n in range(length))
    expected = packet(packet_type, 0x1122334455667788, b"", message, flags)
    ring.pages[PAGE:] = b"\xee" * SIZE  # padding is written, not inherited
    writer, reader = RingWriter(ring.writing), RingReader(ring.reading)
    assert writer.put(packet_type, flags, 0x1122334455667788, message)
    assert writer.publish() == 0
    assert ring.word(WRITE_INDEX) == len(expected)
    assert ring.data(0, len(expected)) == expected
    padded = message + bytes(-length % 8)
    assert take(reader) == (packet_type, flags, 0x1122334455667788, padded, None)
    assert take(reader) is None


def test_the_types_have_the_sheets_numbers() -> None:
    assert (IN_BAND, TRANSFER_PAGES, GPA_DIRECT, COMPLETION) == (6, 7, 9, 0xB)


def test_a_gpa_direct_packet_with_one_range(ring: Ring) -> None:
    memory = SharedMemory(8)
    between = gpa_ranges((5000, 100, (PFN + 3, PFN + 4)))
    assert memory.guest.page_list(3 * PAGE + 100, 5000) == between
    memory.close()
    writer, reader = RingWriter(ring.writing), RingReader(ring.reading)
    assert writer.put(GPA_DIRECT, 1, 7, b"message!!", between)
    writer.publish()
    expected = packet(GPA_DIRECT, 7, between, b"message!!", flags=1)
    assert ring.data(0, len(expected)) == expected
    assert expected[2:4] == b"\x06\0"  # the payload begins behind descriptor, header, range and two page numbers
    ranges = [(5000, 100, struct.pack("<2Q", PFN + 3, PFN + 4))]
    assert take(reader) == (GPA_DIRECT, 1, 7, b"message!!" + bytes(7), ranges)


def test_a_gpa_direct_packet_with_several_ranges_and_scattered_pages(ring: Ring) -> None:
    wide = (3 * PAGE, 8, (PFN + 9, PFN + 1, 0xFFFF_FFFF_FFFF_FFFF, PFN))
    between = gpa_ranges((1, PAGE - 1, (PFN,)), wide, (PAGE, 0, (PFN + 2,)), reserved=0xDEADBEEF)
    ring.place(packet(GPA_DIRECT, 3, between, b"12345678"))
    taken = take(RingReader(ring.reading))
    assert taken is not None
    assert taken[3:] == (
        b"12345678",
        [
            (1, PAGE - 1, struct.pack("<Q", PFN)),
            (3 * PAGE, 8, struct.pack("<4Q", *wide[2])),
            (PAGE, 0, struct.pack("<Q", PFN + 2)),
        ],
    )


def test_a_transfer_page_packet_hands_its_fields_over_in_front_of_the_message(ring: Ring) -> None:
    fields = transfer_ranges((100, 0), (60, 4096))
    writer, reader = RingWriter(ring.writing), RingReader(ring.reading)
    assert writer.put(TRANSFER_PAGES, 1, 5, fields + b"nvsp-msg")
    writer.publish()
    expected = packet(TRANSFER_PAGES, 5, fields, b"nvsp-msg", flags=1)
    assert ring.data(0, len(expected)) == expected
    assert take(reader) == (TRANSFER_PAGES, 1, 5, fields + b"nvsp-msg", None)


def test_transfer_page_packets_of_one_length_and_different_ranges(ring: Ring) -> None:
    writer, reader = RingWriter(ring.writing), RingReader(ring.reading)
    one, two = transfer_ranges((100, 0)) + bytes(16), transfer_ranges((100, 0), (60, 4096)) + bytes(8)
    assert len(one) == len(two)
    for number, message in enumerate((one, two, one)):
        assert writer.put(TRANSFER_PAGES, 1, number, message)
        at = writer.publish()
        assert ring.data(at + 2, 2) == (b"\x05\0" if message is two else b"\x04\0")  # where the payload begins
        assert take(reader) == (TRANSFER_PAGES, 1, number, message, None)


def test_a_turn_ends_after_so_many_packets_or_when_its_handler_says_so(ring: Ring) -> None:
    writer, reader = RingWriter(ring.writing), RingReader(ring.reading)
    seen: list[int] = []

    def handled(kind: int, flags: int, number: int, message: bytes, data: None) -> None:
        seen.append(number)
        if number in (5, 6):
            reader.stop()

    for number in range(10):
        assert writer.put(IN_BAND, 0, number, b"")
    writer.publish()
    turns = []
    while reader.has_news():
        turns.append(reader.read(4, handled, lambda *packet: None))
    assert turns == [4, 2, 1, 3]
    assert seen == list(range(10))
    assert reader.read(4, handled, lambda *packet: None) == 0


def test_packets_before_a_fault_are_handed_over(ring: Ring) -> None:
    good = packet(IN_BAND, 1, b"", b"12345678")
    ring.place(good + good + packet(0, 3, b"", b""))
    reader, seen = RingReader(ring.reading), []
    with pytest.raises(RingFault):
        reader.read(32, lambda *packet: seen.append(packet[2]), lambda *packet: None)
    assert seen == [1, 1]


def test_a_payload_may_begin_anywhere_behind_the_descriptor(ring: Ring) -> None:
    ring.place(packet(IN_BAND, 1, b"skipped!", b"payload!"))
    assert take(RingReader(ring.reading)) == (IN_BAND, 0, 1, b"payload!", None)


def test_a_trailer_is_skipped_unread(ring: Ring) -> None:
    first = packet(IN_BAND, 1, b"", b"12345678")[:-8] + b"\xff" * 8
    ring.place(first + packet(IN_BAND, 2, b"", b"", at=len(first)))
    reader = RingReader(ring.reading)
    assert [take(reader), take(reader)] == [(IN_BAND, 0, 1, b"12345678", None), (IN_BAND, 0, 2, b"", None)]


def test_a_message_may_be_any_buffer(ring: Ring) -> None:
    writer, reader = RingWriter(ring.writing), RingReader(ring.reading)
    for message in (b"12345678", bytearray(b"12345678"), memoryview(b"12345678")):
        assert writer.put(IN_BAND, 0, 1, message)
        writer.publish()
        assert take(reader) == (IN_BAND, 0, 1, b"12345678", None)


def test_more_shapes_than_are_remembered(ring: Ring) -> None:
    writer, reader = RingWriter(ring.writing), RingReader(ring.reading)
    for length in [*range(0, 3200, 8), *range(3200, 0, -8)]:
        message = bytes([length % 251]) * length
        assert writer.put(IN_BAND, 0, length, message)
        writer.publish()
        assert take(reader) == (IN_BAND, 0, length, message, None)
        reader.publish()


# -- wrapping ----------------------------------------------------------------------------------------------------

#: Where a packet of 16 + 32 + 8 bytes begins, and what the end of the data area then cuts.
SEAMS = {"descriptor": 8, "behind the descriptor": 16, "payload": 24, "behind the payload": 48, "nothing": 56}


@pytest.mark.parametrize("seam", SEAMS)
def test_a_packet_wraps_byte_by_byte(ring: Ring, seam: str) -> None:
    at, message = SIZE - SEAMS[seam], bytes(range(100, 132))
    ring.start_at(at)
    writer, reader = RingWriter(ring.writing), RingReader(ring.reading)
    assert writer.put(IN_BAND, 1, 9, message)
    assert writer.publish() == at
    expected = packet(IN_BAND, 9, b"", message, flags=1, at=at)
    assert ring.data(at, len(expected)) == expected
    assert ring.word(WRITE_INDEX) == (at + len(expected)) % SIZE
    assert take(reader) == (IN_BAND, 1, 9, message, None)
    reader.publish()
    assert ring.word(READ_INDEX) == ring.word(WRITE_INDEX)


@pytest.mark.parametrize("back", range(8, 72, 8))
def test_a_wrapped_page_list_is_read_in_one_piece(ring: Ring, back: int) -> None:
    at, between = SIZE - back, gpa_ranges((2 * PAGE, 0, (PFN + 5, PFN + 2)))
    ring.start_at(at)
    ring.place(packet(GPA_DIRECT, 9, between, b"request!", at=at), at)
    ranges = [(2 * PAGE, 0, struct.pack("<2Q", PFN + 5, PFN + 2))]
    assert take(RingReader(ring.reading)) == (GPA_DIRECT, 0, 9, b"request!", ranges)


# -- who sees what, and when ------------------------------------------------------------------------------------


def test_a_batch_is_seen_when_it_is_published_or_by_a_reader_that_has_nothing_else(ring: Ring) -> None:
    writer = RingWriter(ring.writing)
    seen = []
    for number in range(3):
        assert writer.put(IN_BAND, 0, number, b"")
        seen.append(ring.word(WRITE_INDEX))
    assert seen in ([0, 0, 0], [24, 24, 24])
    assert writer.publish() == 0
    assert ring.word(WRITE_INDEX) == 72


# -- room --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 8, SIZE - 8])
def test_a_ring_never_becomes_completely_full(ring: Ring, start: int) -> None:
    ring.start_at(start)
    writer, reader = RingWriter(ring.writing), RingReader(ring.reading)
    count = 0
    while writer.put(IN_BAND, 0, count, b""):
        count += 1
    writer.publish()
    assert count == (SIZE - 8) // 24  # free is size - used - 8 (3.4)
    assert ring.word(WRITE_INDEX) == (start + count * 24) % SIZE
    assert [packet[2] for packet in iter(lambda: take(reader), None)] == list(range(count))


def test_the_last_byte_that_may_be_used_is_used(ring: Ring) -> None:
    writer = RingWriter(ring.writing)
    assert writer.put(IN_BAND, 0, 1, bytes(1000))                       # 1024 bytes
    assert not writer.put(IN_BAND, 0, 2, bytes(SIZE - 1024 - 24))       # all the rest: the ring would look empty
    assert writer.put(IN_BAND, 0, 2, bytes(SIZE - 1024 - 8 - 24))
    writer.publish()
    assert ring.word(WRITE_INDEX) == SIZE - 8


def test_a_packet_that_can_never_fit_is_not_waited_for(ring: Ring) -> None:
    """No amount of reading makes room for it, so to ask for a doorbell is to wait for ever."""
    writer = RingWriter(ring.writing)
    with pytest.raises(RingFault):
        writer.put(IN_BAND, 0, 1, bytes(SIZE))


def test_a_writer_that_found_no_room_looks_again_before_it_waits(ring: Ring) -> None:
    """The reader made room after the first look and before it could see the question."""
    writer, reader = RingWriter(ring.writing), RingReader(ring.reading)
    assert writer.put(IN_BAND, 0, 1, bytes(4000))
    writer.publish()
    assert take(reader) is not None
    looks: list[int] = []
    room = writer._room

    def made_between() -> int:
        looks.append(ring.word(PENDING))
        free = room()
        if len(looks) == 1:
            reader.publish()
        return free

    writer._room = made_between  # type: ignore[method-assign]
    assert writer.put(IN_BAND, 0, 2, bytes(1000))
    assert looks == [0, 1024]
    assert ring.word(PENDING) == 0


def test_a_writer_sees_that_room_was_made(ring: Ring) -> None:
    writer, reader = RingWriter(ring.writing), RingReader(ring.reading)
    assert writer.put(IN_BAND, 0, 1, bytes(4000))
    assert not writer.put(IN_BAND, 0, 2, bytes(1000))
    writer.publish()
    assert not writer.has_room()
    assert take(reader) is not None
    reader.publish()
    assert writer.has_room()
    assert writer.put(IN_BAND, 0, 2, bytes(1000))


# -- who must be rung --------------------------------------------------------------------------------------------

WRITER_RINGS = [
    # mask, where in three packets of 24 bytes from 48 on the reader stands, rings: only if it wants to be rung, had
    # nothing before the batch, and has not taken all of it
    (0, 48, True),
    (1, 48, False),
    (0xFFFF_FFFF, 48, False),
    (0, 72, True),
    (1, 72, False),
    (0, 96, True),
    (0, 120, False),
    (1, 120, False),
    (0, 24, False),
    (0, 0, False),
    (0, 128, False),
]


@pytest.mark.parametrize("wrapped", [0, SIZE - 96])
@pytest.mark.parametrize(("mask", "read", "rings"), WRITER_RINGS)
def test_a_writer_rings_a_reader_that_had_nothing(ring: Ring, mask: int, read: int, rings: bool, wrapped: int) -> None:
    """From empty to not empty (3.5), in the wider form: the reader may have seen the beginning of a batch already."""
    ring.set(WRITE_INDEX, (wrapped + 48) % SIZE)
    ring.set(READ_INDEX, (wrapped + min(read, 48)) % SIZE)
    writer = RingWriter(ring.writing)
    for number in range(3):
        assert writer.put(IN_BAND, 0, number, b"")
    start = writer.publish()
    assert start == (wrapped + 48) % SIZE
    assert ring.word(WRITE_INDEX) == (wrapped + 120) % SIZE
    ring.set(MASK, mask)
    ring.set(READ_INDEX, (wrapped + read) % SIZE)
    assert writer.must_ring(start) is rings
    assert writer.publish() == -1


@pytest.mark.parametrize("start", [0, SIZE - 400])
def test_a_reader_rings_whenever_either_rule_for_room_says_so(ring: Ring, start: int) -> None:
    """ov rings iff F0 < P and F1 >= P, with P a multiple of 8 and 8 bytes never free; Linux iff F0 <= P and F1 > P,
    with those 8 bytes counted (3.5). What neither can mean is not rung for."""
    ring.start_at(start)
    writer, reader = RingWriter(ring.writing), RingReader(ring.reading)
    for length in (176, 976, 1976):     # 200, 1000, 2000 bytes
        assert writer.put(IN_BAND, 0, 1, bytes(length))
    writer.publish()
    assert take(reader) is not None
    reader.publish()                    # before the batch 3000 bytes are used
    assert take(reader) is not None
    before = reader.publish()           # after it 2000
    outcomes = set()
    for pending in range(1, SIZE):
        ring.set(PENDING, pending)
        rings = reader.must_ring(before)
        outcomes.add(rings)
        rounded = pending & ~7
        openvmm = SIZE - 3000 - 8 < rounded <= SIZE - 2000 - 8
        linux = SIZE - 3000 <= pending < SIZE - 2000
        assert rings or not (openvmm or linux), pending
        assert not rings or SIZE - 3000 - 8 <= pending <= SIZE - 2000, pending
    assert outcomes == {True, False}


@pytest.mark.parametrize(("pending", "features", "rings"), [
    (100, 1, True), (100, 3, True), (0, 1, False), (100, 0, False), (100, 2, False), (0xFFFF_FFFF, 1, False),
])  # fmt: skip
def test_a_reader_rings_only_who_promised_to_wait(ring: Ring, pending: int, features: int, rings: bool) -> None:
    writer, reader = RingWriter(ring.writing), RingReader(ring.reading)
    assert writer.put(IN_BAND, 0, 1, bytes(SIZE - 8 - 24))
    writer.publish()
    assert take(reader) is not None
    ring.set(PENDING, pending)
    ring.set(FEATURES, features)
    for mask in 0, 1:  # room is not data: the mask says nothing about it
        ring.set(MASK, mask)
        assert reader.must_ring(max(reader.publish(), 0)) is rings


@pytest.mark.parametrize("nbytes", [64, 40])  # packets of 88 bytes; and of 64: exactly one ring of them
def test_a_batch_longer_than_the_ring_wakes_the_reader(ring: Ring, nbytes: int) -> None:
    """The reader takes packets while the batch is written, and sleeps before its end: so it must be rung."""
    writer, reader = RingWriter(ring.writing), RingReader(ring.reading)
    total = nbytes + 24
    taken: list[int] = []

    def drain() -> None:
        reader.read(1 << 20, lambda kind, flags, tid, message, data: taken.append(tid), lambda *direct: None)
        reader.publish()

    count = -(-reader.size // total)
    for number in range(count - 1):
        assert writer.put(IN_BAND, 0, number, bytes(nbytes))
        if writer.words[1] != writer.words[0]:
            drain()  # it is awake: no doorbell is due
    reader.sleep()
    fence()
    drain()
    assert not reader.has_news()
    assert writer.put(IN_BAND, 0, count - 1, bytes(nbytes))
    assert writer.knock
    start = writer.publish()
    fence()
    assert reader.has_news()
    assert start >= 0
    assert writer.must_ring(start)
