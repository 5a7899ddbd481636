"""VMBus control messages: every byte where protocol sheet 2.1 and 2.2 want it, and no bytes that raise."""

from __future__ import annotations

import random
import uuid

import pytest

from vmbus_emu.protocol import guids
from vmbus_emu.protocol.vmbus import (
    MAX_MESSAGE_BYTES,
    MESSAGES,
    NEGOTIABLE,
    NEWEST,
    AllOffersDelivered,
    CloseChannel,
    Direction,
    GpadlBody,
    GpadlCreated,
    GpadlHeader,
    GpadlTeardown,
    GpadlTornDown,
    InitiateContact,
    Malformed,
    Message,
    OfferChannel,
    OpenChannel,
    OpenChannelResult,
    RelidReleased,
    RequestOffers,
    RescindChannelOffer,
    Unload,
    UnloadResponse,
    Unsupported,
    Version,
    VersionResponse,
    contact_target,
    decode_from_guest,
    decode_from_host,
    version_text,
)
from vmbus_emu.vmbus.gpadl import (
    Range,
    RangeCollector,
    contiguous,
    decode_ranges,
    encode_gpadl,
    ring_fault,
)

# Number, direction, size, first version: protocol sheet 2.1, typed in by hand.
SHEET = """
1 H 196 0.13|2 H 12 0.13|3 G 8 0.13|4 H 8 0.13|5 G 148 0.13|6 H 20 0.13|7 G 12 0.13|8 G 20 0.13|9 G 16 0.13|10 H 20 0.13
11 G 16 0.13|12 H 12 0.13|13 G 12 0.13|14 G 40 0.13|15 H 16 0.13|16 G 8 0.13|17 H 8 1.1|18 G 28 4.0|19 G 20 4.0
20 H 12 4.0|21 G 40 4.0|22 G 16 4.1|23 H 44 4.1|24 H 16 5.3|25 G 24 6.0|26 H 9 6.0|27 G 8 6.0|28 H 8 6.0|29 G 8 6.0
"""
UNSUPPORTED = set(range(18, 30))

OFFER = OfferChannel(
    interface=guids.SCSI.bytes_le, instance=bytes(range(16)), flags=0x2010, mmio_megabytes=0x1122,
    user_data=b"endpoint", sub_channel_index=0x3344, mmio_megabytes_optional=0x5566, relid=0x789,
    monitor_id=0xFF, monitor_allocated=1, is_dedicated_interrupt=1, connection_id=0x10789,
)
OFFER_HEX = (
    "01000000 00000000"
    "d96361ba a104 294d b605 72e2ffb1dc7f"  # @8: the GUID in mixed order
    "000102030405060708090a0b0c0d0e0f"      # @24
    + "00" * 16                             # @40: nobody reads these
    + "1020 2211"                           # @56: flags, mmio
    + b"endpoint".hex() + "00" * 112        # @60
    + "4433 6655"                           # @180
    + "89070000 ff 01 0100 89070100"        # @184
)
LAYOUTS: list[tuple[Message, str]] = [
    (OFFER, OFFER_HEX),
    (RescindChannelOffer(0x203), "02000000 00000000 03020000"),
    (RequestOffers(), "03000000 00000000"),
    (AllOffersDelivered(), "04000000 00000000"),
    (OpenChannel(1, 2, 0xE1E10, 3, 8, b"ab"),
     "05000000 00000000 01000000 02000000 101e0e00 03000000 08000000 6162" + "00" * 118),
    (OpenChannelResult(1, 2, 0x8000FFFF), "06000000 00000000 01000000 02000000 ffff0080"),
    (CloseChannel(9), "07000000 00000000 09000000"),
    (GpadlHeader(1, 0xE1E10, 16, 1, bytes.fromhex("0010000000000000 0500000000000000")),
     "08000000 00000000 01000000 101e0e00 1000 0100 00100000 00000000 05000000 00000000"),
    (GpadlBody(0, 0xE1E10, bytes.fromhex("0700000000000000")),
     "09000000 00000000 00000000 101e0e00 07000000 00000000"),
    (GpadlCreated(1, 0xE1E10, 0), "0a000000 00000000 01000000 101e0e00 00000000"),
    (GpadlTeardown(1, 0xE1E10), "0b000000 00000000 01000000 101e0e00"),
    (GpadlTornDown(0xE1E10), "0c000000 00000000 101e0e00"),
    (RelidReleased(2047), "0d000000 00000000 ff070000"),
    (InitiateContact(Version.V6_0, 4, contact_target(2, 1, 0x8), 0x1000, 0x2000),
     "0e000000 00000000 00000600 04000000 02 01 0000 08000000 0010000000000000 0020000000000000"),
    (VersionResponse(1, 0, Version.V3_0), "0f000000 00000000 01 00 0000 00000300"),
    (VersionResponse(1, 2, 1, bytes(4)), "0f000000 00000000 01 02 0000 01000000 00000000"),
    (Unload(), "10000000 00000000"),
    (UnloadResponse(), "11000000 00000000"),
]


def decode(payload: bytes, version: int = NEWEST) -> object:
    """By whichever side receives this type."""
    row = next(row for row in MESSAGES if row.number == payload[0])
    host = row.direction is Direction.HOST_TO_GUEST
    return decode_from_host(payload, version) if host else decode_from_guest(payload, version)


def legal(number: int) -> bytes:
    """The smallest message of a type."""
    row = next(row for row in MESSAGES if row.number == number)
    return number.to_bytes(4, "little") + bytes(row.size - 4)


def test_table_is_the_sheets() -> None:
    rows = [cell.split() for cell in SHEET.replace("\n", "|").split("|") if cell]
    table = [[str(row.number), row.direction.value, str(row.size), version_text(row.since)] for row in MESSAGES]
    assert table == rows
    assert {row.number for row in MESSAGES if not row.supported} == UNSUPPORTED
    assert len({row.name for row in MESSAGES}) == 29


def test_layouts_have_the_sizes_of_the_table() -> None:
    for row in MESSAGES:
        if row.supported:
            assert row.layout.size == row.size, row.name


def test_every_supported_message_has_a_layout_test() -> None:
    assert {type(message) for message, _ in LAYOUTS} == {row.message for row in MESSAGES if row.supported}


@pytest.mark.parametrize(("message", "expected"), LAYOUTS, ids=lambda value: type(value).__name__)
def test_bytes_are_where_the_sheet_wants_them(message: Message, expected: str) -> None:
    payload = message.encode()
    assert payload.hex() == expected.replace(" ", "")
    decoded = decode(payload)
    assert type(decoded) is type(message)
    assert decoded.encode() == payload


def test_offer_reads_back_with_its_guids_and_padded_user_data() -> None:
    decoded = decode(OFFER.encode())
    assert isinstance(decoded, OfferChannel)
    assert decoded.interface_guid == guids.SCSI
    assert decoded.instance_guid == uuid.UUID(bytes_le=bytes(range(16)))
    assert decoded.user_data == b"endpoint".ljust(120, b"\0")
    assert (decoded.relid, decoded.connection_id, decoded.sub_channel_index) == (0x789, 0x10789, 0x3344)


def test_contact_fields_exist_only_in_versions_that_have_them() -> None:
    target = contact_target(5, 2, 0x40)
    fields = {
        version: (message.sint, message.vtl, message.feature_flags)
        for version in (Version.V4_1, Version.V5_0, Version.V5_1, Version.V6_0)
        for message in [InitiateContact(version, 0, target, 0, 0)]
    }
    assert fields == {
        Version.V4_1: (2, 0, 0), Version.V5_0: (5, 0, 0), Version.V5_1: (5, 2, 0), Version.V6_0: (5, 2, 0x40),
    }


@pytest.mark.parametrize("row", MESSAGES, ids=lambda row: row.name)
def test_minimum_size_direction_and_version_are_required(row: object) -> None:
    assert isinstance(row, type(MESSAGES[0]))
    payload = legal(row.number)
    assert not isinstance(decode(payload), Malformed)
    assert isinstance(decode(payload[:-1]), Malformed)
    wrong = decode_from_guest if row.direction is Direction.HOST_TO_GUEST else decode_from_host
    assert isinstance(wrong(payload, NEWEST), Malformed)
    older = [version for version in Version if version < row.since]
    for version in older:
        assert isinstance(decode(payload, version), Malformed)
    assert not isinstance(decode(payload, row.since), Malformed)


@pytest.mark.parametrize("number", [row.number for row in MESSAGES if row.supported and not row.tail])
def test_trailing_bytes_are_tolerated(number: int) -> None:
    payload = legal(number)
    assert decode(payload + b"\xAA" * (MAX_MESSAGE_BYTES - len(payload))) == decode(payload)


def test_header_padding_is_ignored() -> None:
    assert decode(bytes.fromhex("07000000 ffffffff 09000000")) == CloseChannel(9)


@pytest.mark.parametrize("payload", [
    b"", b"\x03", b"\x03" + bytes(6), bytes(8), b"\x1e" + bytes(200), b"\xff" * 240, b"\x03" + bytes(240),
])
def test_what_is_no_message_is_a_value(payload: bytes) -> None:
    for receive in (decode_from_guest, decode_from_host):
        assert isinstance(receive(payload, NEWEST), Malformed)


def test_unsupported_messages_are_refused_as_the_protocol_has_it() -> None:
    modify = bytes.fromhex("16000000 00000000 07000000 01000000")
    assert decode(modify, Version.V5_3) == Unsupported(
        "MODIFYCHANNEL", bytes.fromhex("18000000 00000000 07000000 ffff0080"))
    assert decode(modify, Version.V5_2) == Unsupported("MODIFYCHANNEL", b"")
    ids = bytes(range(32))
    connect = bytes.fromhex("15000000 00000000") + ids
    assert decode(connect, Version.V4_1) == Unsupported(
        "TL_CONNECT_REQUEST", bytes.fromhex("17000000 00000000") + ids + bytes.fromhex("360200c0"))
    assert decode(connect, Version.V4_0) == Unsupported("TL_CONNECT_REQUEST", b"")
    assert decode(legal(27)) == Unsupported("PAUSE", b"")


def test_a_refusal_is_a_message_of_its_own_row() -> None:
    refusals = [row.refusal for row in MESSAGES if row.refusal is not None]
    assert len(refusals) == 2
    for refusal in refusals:
        row = MESSAGES[refusal.number - 1]
        assert len(refusal.encode(bytes(240))) == row.size
        assert row.direction is Direction.HOST_TO_GUEST
        assert refusal.since >= row.since


def test_negotiable_versions_run_from_the_newest_to_win8() -> None:
    assert [version_text(version) for version in NEGOTIABLE] == [
        "6.0", "5.3", "5.2", "5.1", "5.0", "4.1", "4.0", "3.0", "2.4"]


# -- GUIDs ----------------------------------------------------------------------------------------


def test_guids_have_names() -> None:
    assert guids.interface_name(guids.NETWORK) == "Synthetic network adapter"
    assert guids.interface_name(uuid.UUID("00000016-facb-11e6-bd58-64006a7986d3")) == "Socket service, port 22"
    assert guids.interface_name(uuid.UUID(int=7)) == "Unknown"
    assert len(set(guids.INTERFACE_NAMES.values())) == len(guids.INTERFACE_NAMES) == 19
    assert set(guids.SINGLE_INSTANCES) <= set(guids.INTERFACE_NAMES)
    assert len(set(guids.SINGLE_INSTANCES.values())) == 10


def test_guid_goes_over_the_wire_in_mixed_order() -> None:
    assert guids.NETWORK.bytes_le.hex() == "635161f83edfc546913ff2d2f965ed0e"


# -- GPADLs ---------------------------------------------------------------------------------------


def collect(messages: list[bytes]) -> tuple[Range, ...] | str:
    header = decode_from_guest(messages[0], NEWEST)
    assert isinstance(header, GpadlHeader)
    collector = RangeCollector(header)
    for payload in messages[1:]:
        assert not collector.complete
        body = decode_from_guest(payload, NEWEST)
        assert isinstance(body, GpadlBody)
        collector.add(body.pfns)
    assert collector.complete
    return collector.ranges()


@pytest.mark.parametrize(("pages", "sizes"), [
    (1, [36]), (26, [236]), (27, [236, 24]), (54, [236, 240]), (55, [236, 240, 24]), (256, [236] + [240] * 8 + [64]),
])
def test_gpadl_fills_its_messages_to_the_last_qword(pages: int, sizes: list[int]) -> None:
    whole = contiguous(0x1000, pages * 4096)
    messages = encode_gpadl(5, 0xE1E10, [whole])
    assert [len(message) for message in messages] == sizes
    assert collect(messages) == (whole,)


def test_gpadl_of_several_ranges_survives_its_cuts() -> None:
    rng = random.Random(7)
    for _ in range(50):
        ranges = tuple(
            contiguous(rng.randrange(1 << 40), rng.randrange(1, 40 * 4096), rng.randrange(4096))
            for _ in range(rng.randrange(1, 9)))
        assert collect(encode_gpadl(1, 2, ranges)) == ranges


def test_unaligned_range_counts_every_page_it_touches() -> None:
    assert len(contiguous(0, 1, 4095).pfns) == 1
    assert len(contiguous(0, 2, 4095).pfns) == 2
    assert len(contiguous(0, 4096, 1).pfns) == 2


@pytest.mark.parametrize(("data", "count"), [
    ("", 0), ("", 1), ("0010000000000000 0500000000000000", 0), ("0010000000000000 0500000000000000", 2),
    ("0000000000000000 0500000000000000", 1),      # no byte
    ("0010000000100000 0500000000000000", 1),      # offset 4096
    ("ffffffffff0f0000 0500000000000000", 1),      # beyond 32 bits
    ("0110000000000000 0500000000000000", 1),      # two pages, one number
    ("0010000000000000 0000000000001000", 1),      # a page number of 53 bits
    ("0010000000000000 ffffffffffffffff", 1),
    ("0010000000000000 0500000000000000", 65535),
    ("0020000000000000 0500000000000000 0600000000000000 00100000", 2),
])
def test_bad_ranges_are_a_reason(data: str, count: int) -> None:
    assert isinstance(decode_ranges(bytes.fromhex(data), count), str)


def test_qwords_after_the_last_range_are_ignored() -> None:
    data = bytes.fromhex("0010000000000000 0500000000000000") + b"\xff" * 24
    assert decode_ranges(data, 1) == (Range(4096, 0, (5,)),)


def test_collector_takes_no_more_than_was_announced() -> None:
    qword = (5).to_bytes(8, "little")
    start = bytes.fromhex("0020000000000000") + qword + b"\x01\x02\x03"
    collector = RangeCollector(GpadlHeader(1, 2, 24 + 7, 1, start))
    assert not collector.complete
    collector.add(b"\x06" + bytes(6))  # no whole qword
    assert not collector.complete
    collector.add((6).to_bytes(8, "little") + b"\xff" * 216)
    assert collector.complete
    collector.add(b"\xff" * 224)
    assert collector.ranges() == (Range(8192, 0, (5, 6)),)


@pytest.mark.parametrize(("size", "count"), [(0, 0), (16, 0), (0, 1), (15, 1), (16, 2), (65535, 65535)])
def test_announcement_that_cannot_be_is_known_from_the_header(size: int, count: int) -> None:
    assert RangeCollector(GpadlHeader(1, 2, size, count, bytes(216))).fault is not None


@pytest.mark.parametrize("ranges", [
    [], [Range(0, 0, ())], [Range(4096, 4096, (1, 2))], [Range(4096, 0, (1, 2))], [contiguous(0, 8191 * 4096)],
])
def test_what_cannot_be_described_is_the_callers_error(ranges: list[Range]) -> None:
    with pytest.raises(ValueError):
        encode_gpadl(1, 2, ranges)


@pytest.mark.parametrize(("ranges", "split", "fits"), [
    ((contiguous(0, 4 * 4096),), 2, True),
    ((contiguous(0, 9 * 4096),), 7, True),
    ((contiguous(0, 9 * 4096),), 8, False),
    ((contiguous(0, 3 * 4096),), 2, False),
    ((contiguous(0, 4 * 4096),), 1, False),
    ((contiguous(0, 4 * 4096),), 0, False),
    ((contiguous(0, 4 * 4096),), 0xFFFFFFFF, False),
    ((contiguous(0, 4 * 4096, 8),), 2, False),
    ((contiguous(0, 5 * 4096 - 1),), 2, False),
    ((contiguous(0, 4 * 4096), contiguous(9, 4096)), 2, False),
    ((), 2, False),
])
def test_rings_need_one_aligned_range_with_two_pages_each(ranges: tuple[Range, ...], split: int, fits: bool) -> None:
    assert (ring_fault(ranges, split) is None) is fits
