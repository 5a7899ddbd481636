"""RNDIS messages: do they have their real bytes, and is every length and offset of a peer checked?"""

import struct

import pytest

from partitions.parent.rndis_device import LINK_SPEED, OIDS, Fault, RndisDevice, State
from vmbus_emu.device import PortInfo
from vmbus_emu.protocol import rndis

MAC = bytes.fromhex("00155d000001")
FRAME = bytes(range(64))


def words(*values):
    return struct.pack(f"<{len(values)}I", *values)


# -- control messages -----------------------------------------------------------------------------------


def test_query_and_its_completion_have_the_bytes_of_the_sheet():
    assert rndis.encode(rndis.Query(7, 0x01010101)) == words(4, 28, 7, 0x01010101, 0, 0, 0)
    reply = rndis.encode(rndis.QueryComplete(7, 0, MAC))
    assert reply == words(0x80000004, 30, 7, 0, 6, 16) + MAC


def test_set_puts_its_information_twenty_bytes_after_the_header():
    assert rndis.encode(rndis.Set(9, 0x0001010E, info=words(11))) == words(5, 32, 9, 0x0001010E, 4, 20, 0, 11)


def test_initialize_and_its_completion_have_24_and_52_bytes():
    assert len(rndis.encode(rndis.Initialize(1, 1, 0, 0x4000))) == 24
    complete = rndis.InitializeComplete(1, 0, 1, 0, 1, 0, 8, 0xEFFFFFFF, 3)
    assert rndis.encode(complete) == words(0x80000002, 52, 1, 0, 1, 0, 1, 0, 8, 0xEFFFFFFF, 3, 0, 0)


@pytest.mark.parametrize("row", rndis.MESSAGES, ids=lambda row: row.name)
def test_every_row_of_the_table_survives_the_wire(row):
    fields = len(row.fields._fields)
    values = list(range(1, fields + 1))
    if row.info_at is not None:
        values[-1] = b"information"
    message = row.fields(*values)
    wire = rndis.encode(message)
    assert rndis.decode(wire) == message
    assert rndis.decode(wire + b"padding") == message
    for size in range(len(wire)):
        assert rndis.decode(wire[:size]) is None, "cut short"


@pytest.mark.parametrize(
    ("length", "offset"),
    [(5, 20), (4, 21), (4, 0), (4, 19), (4, 0xFFFFFFFF), (0xFFFFFFFF, 20), (0xFFFFFFFC, 0xFFFFFFFC)],
)
def test_information_outside_its_message_is_refused(length, offset):
    assert rndis.decode(words(5, 32, 9, 0x0001010E, length, offset, 0, 11)) is None


def test_lengths_that_lie_are_refused():
    good = bytearray(rndis.encode(rndis.Halt(1)))
    for length in (0, 7, 8, 11, 13, 0xFFFFFFFF):
        struct.pack_into("<I", good, 4, length)
        assert rndis.decode(good) is None, length
    assert rndis.decode(words(0x77, 12, 0)) is None
    assert rndis.decode(bytes(rndis.MAX_CONTROL_BYTES + 1)) is None


# -- data messages --------------------------------------------------------------------------------------


def packet(frame=FRAME, *, length=None, data_offset=36, data_length=None, oob=(0, 0, 0), info=b"", info_offset=36,
           info_length=None):
    """A PACKET message whose every field can be made wrong."""
    total = 44 + len(info) + len(frame) if length is None else length
    header = words(
        1, total, data_offset + len(info), len(frame) if data_length is None else data_length, *oob,
        info_offset, len(info) if info_length is None else info_length, 0, 0,
    )
    return header + info + frame


def test_a_frame_costs_44_bytes_of_header():
    wire = rndis.pack_frame(FRAME)
    assert wire == words(1, 44 + 64, 36, 64, 0, 0, 0, 0, 0, 0, 0) + FRAME
    assert rndis.frames(wire) == [FRAME]


def test_up_to_eight_messages_may_be_concatenated():
    assert rndis.frames(packet() * 8) == [FRAME] * 8
    assert rndis.frames(packet() * 9) is None
    assert rndis.frames(b"") is None


def test_per_packet_information_is_skipped():
    info = words(16, 0, 12, 0x12) + words(16, 6, 12, 5)
    assert rndis.frames(packet(info=info)) == [FRAME]


@pytest.mark.parametrize(
    "wire",
    [
        packet(length=43), packet(length=8), packet(length=0), packet(length=109), packet(length=0xFFFFFFFF),
        packet(data_offset=35), packet(data_offset=0), packet(data_offset=37), packet(data_offset=0xFFFFFFFF),
        packet(data_length=65), packet(data_length=0xFFFFFFFF), packet(data_length=0xFFFFFFDC),
        packet(oob=(36, 0, 0)), packet(oob=(0, 4, 0)), packet(oob=(0, 0, 1)),
        packet(info=words(8, 0, 12, 0)),               # an entry smaller than its own header
        packet(info=words(0, 0, 12, 0)),               # an entry of no size would loop for ever
        packet(info=words(20, 0, 12, 0)),              # an entry that ends beyond the information
        packet(info=words(16, 0, 17, 0)),              # data of an entry beyond it
        packet(info=words(16, 0, 12, 0), info_length=20),
        packet(info=words(16, 0, 12, 0), info_length=12, info_offset=0),
        packet(info_length=12), packet(info_length=0xFFFFFFFF), packet(info_length=1, info_offset=0xFFFFFFFF),
        words(5, 44) + bytes(36), packet()[:43], packet()[:-1], packet() + b"\0", packet() + packet(length=10),
    ],
)
def test_a_data_message_with_one_wrong_field_is_refused_whole(wire):
    assert rndis.frames(wire) is None


# -- the device -----------------------------------------------------------------------------------------


@pytest.fixture
def device():
    made = RndisDevice(PortInfo(MAC, 1500))
    made.answer(rndis.encode(rndis.Initialize(1, 1, 0, 0x4000)))
    return made


def query(device, oid):
    reply = rndis.decode(device.answer(rndis.encode(rndis.Query(3, oid))))
    assert isinstance(reply, rndis.QueryComplete)
    assert reply.request_id == 3
    return reply


def test_every_oid_of_the_supported_list_is_answered(device):
    listed = struct.unpack(f"<{len(OIDS)}I", query(device, rndis.OID_SUPPORTED_LIST).info)
    assert sorted(listed) == sorted(OIDS)
    for oid in listed:
        assert query(device, oid).status == rndis.SUCCESS
    assert query(device, rndis.OID_CURRENT_MAC).info == MAC
    assert query(device, rndis.OID_MAXIMUM_FRAME_SIZE).info == words(1500)
    assert query(device, rndis.OID_MAXIMUM_TOTAL_SIZE).info == words(1514)
    assert query(device, rndis.OID_LINK_SPEED).info == words(LINK_SPEED)


@pytest.mark.parametrize("oid", [rndis.OID_RSS_CAPABILITIES, rndis.OID_OFFLOAD_PARAMETERS, 0, 0xFFFFFFFF])
def test_what_is_not_offered_is_not_supported(device, oid):
    assert query(device, oid).status == rndis.NOT_SUPPORTED
    reply = rndis.decode(device.answer(rndis.encode(rndis.Set(4, oid, info=b"\1\0\0\0"))))
    assert reply == rndis.SetComplete(4, rndis.NOT_SUPPORTED)


def test_the_first_filter_opens_the_device_and_decides_what_it_wants(device):
    def wanted(bits):
        assert device.answer(rndis.encode(rndis.Set(5, rndis.OID_PACKET_FILTER, info=words(bits)))) == rndis.encode(
            rndis.SetComplete(5, rndis.SUCCESS)
        )
        targets = {"own": MAC, "other": b"\x02" * 6, "group": b"\x01\0\x5e\0\0\1", "all": b"\xff" * 6}
        return {name for name, target in targets.items() if device.wants(target + bytes(8))}

    assert device.state is State.INITIALIZED
    assert wanted(0) == set()
    assert device.state is State.INITIALIZED
    assert wanted(1) == {"own"}
    assert device.state is State.OPEN
    assert wanted(2) == {"group"}
    assert wanted(8) == {"all"}
    assert wanted(0x20) == {"own", "other", "group", "all"}
    assert wanted(0) == set()
    assert device.state is State.OPEN


@pytest.mark.parametrize(("info", "status"), [
    (b"", rndis.INVALID_DATA), (b"\1", rndis.INVALID_DATA), (bytes(5), rndis.INVALID_DATA),
    (words(0x80000001), rndis.NOT_SUPPORTED),
])
def test_a_filter_that_is_none_is_refused(device, info, status):
    reply = rndis.decode(device.answer(rndis.encode(rndis.Set(5, rndis.OID_PACKET_FILTER, info=info))))
    assert reply == rndis.SetComplete(5, status)
    assert device.filter == 0


def test_order_is_kept():
    fresh = RndisDevice(PortInfo(MAC))
    assert fresh.answer(rndis.encode(rndis.Query(1, rndis.OID_LINK_SPEED))).fatal
    assert fresh.answer(b"nonsense") == Fault("malformed RNDIS control message", fatal=False)
    wrong = rndis.decode(fresh.answer(rndis.encode(rndis.Initialize(1, 2, 0, 0x4000))))
    assert wrong.status == rndis.FAILURE
    assert fresh.state is State.IDLE
    assert rndis.decode(fresh.answer(rndis.encode(rndis.Initialize(1, 1, 0, 0x4000)))).status == rndis.SUCCESS
    assert fresh.answer(rndis.encode(rndis.Initialize(1, 1, 0, 0x4000))).fatal
    assert fresh.answer(rndis.encode(rndis.SetComplete(1, 0))).fatal
    assert rndis.decode(fresh.answer(rndis.encode(rndis.Keepalive(4)))) == rndis.KeepaliveComplete(4, 0)
    assert fresh.answer(rndis.encode(rndis.Halt(1))) is None
    assert fresh.state is State.IDLE
