"""NVSP messages and transfer-page fields: do they have their real bytes, and does nonsense decode to ``None``?"""

import struct

import pytest

from vmbus_emu.protocol import nvsp, rndis

EXAMPLES = {
    nvsp.Init(0x60001, 0x60001): "01000000 01000600 01000600",
    nvsp.InitComplete(nvsp.NO_VERSION, 34, nvsp.Status.SUCCESS): "02000000 ffffffff 22000000 01000000",
    nvsp.NdisVersion(6, 30): "64000000 06000000 1e000000",
    nvsp.SendReceiveBuffer(0xE1E10, 0xCAFE): "65000000 101e0e00 feca",
    nvsp.ReceiveBufferComplete(1, 1, 0, 1806, 2, 3612): (
        "66000000 01000000 01000000 00000000 0e070000 02000000 1c0e0000"
    ),
    nvsp.SendBufferComplete(1, 6144): "69000000 01000000 00180000",
    nvsp.RndisPacket(0, nvsp.NO_SECTION, 0): "6b000000 00000000 ffffffff 00000000",
    nvsp.RndisPacketComplete(5): "6c000000 05000000",
    nvsp.NdisConfig(1514, 0, 8): "7d000000 ea050000 00000000 08000000 00000000",
    nvsp.Subchannel(1, 0): "85000000 01000000 00000000",
}


@pytest.mark.parametrize(("message", "wire"), EXAMPLES.items(), ids=lambda value: type(value).__name__)
def test_a_message_has_the_bytes_of_the_sheet_padded_to_forty(message, wire):
    assert nvsp.encode(message) == bytes.fromhex(wire).ljust(40, b"\0")


@pytest.mark.parametrize("row", nvsp.MESSAGES, ids=lambda row: row.name)
def test_every_row_of_the_table_survives_the_wire(row):
    message = row.fields(*range(1, len(row.fields._fields) + 1))
    assert nvsp.decode(nvsp.encode(message)) == message
    assert nvsp.decode(nvsp.encode(message)[: row.body.size]) == message, "only the bytes of the type are needed"


@pytest.mark.parametrize("row", nvsp.MESSAGES, ids=lambda row: row.name)
def test_a_message_cut_short_is_no_message(row):
    whole = nvsp.encode(row.fields(*[0] * len(row.fields._fields)))
    for size in range(row.body.size):
        assert nvsp.decode(whole[:size]) is None


def test_an_unknown_number_is_no_message_and_a_seldom_one_keeps_its_number():
    assert nvsp.decode(struct.pack("<I36x", 99)) is None
    assert nvsp.decode(struct.pack("<I36x", 135)) == nvsp.Seldom(135)


def test_the_ready_made_packet_messages_are_what_encode_makes():
    assert nvsp.decode(nvsp.DATA_PACKET) == nvsp.RndisPacket(0, nvsp.NO_SECTION, 0)
    assert nvsp.decode(nvsp.CONTROL_PACKET) == nvsp.RndisPacket(1, nvsp.NO_SECTION, 0)
    for status, wire in nvsp.COMPLETE.items():
        assert nvsp.decode(wire) == nvsp.RndisPacketComplete(status)
        assert len(wire) == 8


@pytest.mark.parametrize("row", nvsp.MESSAGES, ids=lambda row: row.name)
def test_the_padding_of_a_ring_changes_no_message(row):
    message = row.fields(*range(1, len(row.fields._fields) + 1))
    for size in (row.body.size, nvsp.MESSAGE_BYTES):
        for padding in range(8):
            assert nvsp.decode(nvsp.encode(message)[:size] + bytes(padding)) == message


def test_a_packet_from_a_section_says_which_and_how_much():
    assert nvsp.pack_in_section(7, 118) == nvsp.encode(nvsp.RndisPacket(nvsp.DATA_CHANNEL, 7, 118))


@pytest.mark.parametrize("size", [0, 14, 1514, 9216])
def test_a_frame_placed_in_a_buffer_is_the_message_that_would_be_sent(size):
    frame = bytes(range(256)) * 36
    buffer = bytearray(b"?" * 9300)
    placed = nvsp.place_frame(memoryview(buffer), 5, memoryview(frame)[:size])
    assert buffer[5 : 5 + placed] == rndis.pack_frame(frame[:size])
    assert set(buffer[:5] + buffer[5 + placed :]) == {ord("?")}


def test_one_range_is_packed_like_a_list_of_one():
    assert nvsp.pack_one_range(100, 1806, 1) == nvsp.pack_ranges([(100, 1806)], 1)
    assert nvsp.pack_one_range(100, 1806, 1)[:16].hex() == "feca0000" "01000000" "64000000" "0e070000"


def test_ranges_come_back_in_order_up_to_the_last_byte_of_the_buffer():
    ranges = [(100, 0), (44, 1806), (10, 4086)]
    for padding in range(8):
        assert nvsp.unpack_ranges(nvsp.pack_ranges(ranges, 0) + bytes(padding), 4096) == (0, ranges)


@pytest.mark.parametrize(
    ("ranges", "why"),
    [
        ([], "none at all"),
        ([(0, 0)], "an empty one"),
        ([(11, 4086)], "one byte beyond the buffer"),
        ([(0xFFFFFFFF, 0xFFFFFFFF)], "sum overflows 32 bits"),
        ([(1, 0)] * (nvsp.MAX_RANGES + 1), "too many"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(ranges, why):
    assert nvsp.unpack_ranges(nvsp.pack_ranges(ranges, 0), 4096) is None, why


def test_a_count_that_promises_more_ranges_than_there_are_is_refused():
    whole = bytearray(nvsp.pack_ranges([(1, 0)], 0))
    for count in (2, 5, 562, 0xFFFFFFFF):
        struct.pack_into("<I", whole, 4, count)
        assert nvsp.unpack_ranges(whole, 4096) is None


def test_transfer_pages_need_the_right_page_set_channel_and_message():
    good = nvsp.pack_ranges([(1, 0)], 0)
    assert nvsp.unpack_ranges(good, 4096) is not None
    for offset, value in ((0, 0xBEEF), (16, 106), (20, 2), (24, 7)):
        bad = bytearray(good)
        struct.pack_into("<H" if offset == 0 else "<I", bad, offset, value)
        assert nvsp.unpack_ranges(bad, 4096) is None, offset
    for size in range(len(good) - 24):
        assert nvsp.unpack_ranges(good[:size], 4096) is None
