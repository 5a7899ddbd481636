"""Integration components' messages: do they have their real bytes, and does nonsense decode to ``None``?"""

from __future__ import annotations

import struct

import pytest

from vmbus_emu.protocol import guids, ic, kvp
from vmbus_emu.protocol.ic import Beat, Kind, Message, Offered, Shutdown, Status, Time, Vss, VssOp
from vmbus_emu.protocol.kvp import Item, Op, Pool, Request


def test_a_message_is_a_pipe_header_a_header_and_a_body() -> None:
    message = Message((3, 0), Kind.HEARTBEAT, (3, 1), Status.FAIL, 7, ic.RESPONSE, b"\xaa\xbb")
    wire = bytes.fromhex(
        "01000000 16000000"                 # pipe: data, 22 bytes
        "0300 0000 0100 0300 0100 0200"     # framework 3.0, heartbeat, version 3.1, 2 bytes of body
        "05400080 07 05 0000 aabb"          # status, transaction, flags
    )
    assert ic.encode(message) == wire
    assert ic.decode(wire) == message
    assert ic.decode(wire + bytes(5)) == message, "a ring pads"


@pytest.mark.parametrize("wire", [
    b"", bytes(27), bytes(28),
    struct.pack("<II", 2, 20) + bytes(20),                                  # not a data pipe
    struct.pack("<II", 1, 19) + bytes(20),                                  # shorter than the header
    struct.pack("<II", 1, 21) + bytes(20),                                  # longer than the packet
    struct.pack("<II", 1, 22) + bytes(10) + b"\x03\0" + bytes(10),          # body longer than the pipe says
    struct.pack("<II", 1, 20) + bytes(14000),
])  # fmt: skip
def test_what_is_no_message_decodes_to_none(wire: bytes) -> None:
    assert ic.decode(wire) is None


def test_versions_are_counted_and_listed() -> None:
    body = bytes.fromhex("0200 0100 00000000 03000000 01000000 04000100")
    assert ic.encode_versions(Offered(((3, 0), (1, 0)), ((4, 1),))) == body
    assert ic.decode_versions(body) == Offered(((3, 0), (1, 0)), ((4, 1),))
    assert ic.decode_versions(body[:-1]) is None
    assert ic.decode_versions(struct.pack("<HHI", 101, 0, 0) + bytes(500)) is None
    assert ic.decode_versions(bytes(7)) is None
    assert ic.decode_versions(bytes(8)) == Offered((), ())


def test_the_newest_common_version_is_chosen() -> None:
    assert ic.choose([(1, 0), (3, 0), (9, 9)], [(4, 0), (3, 0), (1, 0)]) == (3, 0)
    assert ic.choose([(9, 9)], [(4, 0)]) is None


def test_every_component_has_its_ids_and_the_versions_of_the_sheet() -> None:
    listed = {one.name: (one.kind, one.interface, one.instance) for one in ic.COMPONENTS.values()}
    assert {kind for kind, _, _ in listed.values()} == set(Kind) - {Kind.NEGOTIATE}
    assert listed["vss"] == (Kind.VSS, guids.VSS, guids.SINGLE_INSTANCES[guids.VSS])
    assert ic.TIME_SYNC.versions == ((4, 0), (3, 0), (1, 0))
    assert ic.SHUTDOWN.versions == ((3, 2), (3, 1), (3, 0), (1, 0))
    assert ic.KVP.up_to(None) == Offered(((3, 0), (1, 0)), ((5, 0), (4, 0), (3, 0)))
    assert ic.KVP.up_to((1, 0)) == Offered(((1, 0),), ((3, 0),))


def test_a_heartbeat_is_a_sequence_number_and_a_state() -> None:
    wire = bytes.fromhex("0800000000000000 01000000 00000000")
    assert ic.encode_beat(Beat(8, 1)) == wire
    assert ic.decode_beat(wire) == Beat(8, 1)
    assert ic.decode_beat(wire.ljust(40, b"\0")) == Beat(8, 1), "as Linux has it"
    assert ic.decode_beat(wire[:8]) == Beat(8, 0)
    assert ic.decode_beat(wire[:7]) is None


def test_a_time_has_the_layout_of_its_version() -> None:
    time = Time(ic.to_1601(1_000_000_000), 0x0102, 2)
    assert ic.to_1601(0) == 116444736000000000
    assert ic.from_1601(time.parent) == 1_000_000_000
    four = struct.pack("<QQBBB5x", time.parent, 0x0102, 2, 0, 0)
    assert ic.encode_time(time, (4, 0)) == four
    assert len(four) == 24
    assert ic.decode_time(four, (4, 0)) == time
    assert ic.decode_time(four[:22], (4, 0)) == time, "as Linux has it"
    assert ic.decode_time(four[:18], (4, 0)) is None
    three = struct.pack("<QQQB", time.parent, 0, 0, 2)
    assert ic.encode_time(time, (3, 0)) == three
    assert ic.decode_time(three, (3, 0)) == time._replace(reference=0)
    assert ic.decode_time(three[:24], (1, 0)) is None


def test_a_shutdown_has_2060_bytes() -> None:
    wire = ic.encode_shutdown(Shutdown(1, 10, 1, "bye"))
    assert wire[:18] == bytes.fromhex("01000000 0a000000 01000000 6200 7900 6500")
    assert len(wire) == 2060
    assert ic.decode_shutdown(wire) == Shutdown(1, 10, 1, "bye")
    assert ic.decode_shutdown(wire[:-1]) is None
    assert len(ic.encode_shutdown(Shutdown(0, 0, 0, "x" * 5000))) == 2060


def test_a_vss_message_is_an_operation_and_flags() -> None:
    wire = bytes.fromhex("05 00000000000000 02000000")
    assert ic.encode_vss(Vss(VssOp.FREEZE, 2)) == wire
    assert ic.decode_vss(wire) == Vss(5, 2)
    assert ic.decode_vss(wire[:-1]) is None


def test_a_key_and_a_value_stand_in_fields_of_fixed_size() -> None:
    wire = kvp.encode(Request(Op.SET, Pool.EXTERNAL, 0, Item("a", "bc")))
    assert wire[:20] == bytes.fromhex("01 00 0000 01000000 04000000 06000000 6100 0000")
    assert wire[16 + 512 :][:8] == bytes.fromhex("6200 6300 0000 0000")
    assert len(wire) == 4 + 12 + 512 + 2048
    assert kvp.decode(wire) == Request(Op.SET, Pool.EXTERNAL, 0, Item("a", "bc"))


@pytest.mark.parametrize("request_", [
    Request(Op.GET, Pool.GUEST, 0, Item("schlüssel", "wert")),
    Request(Op.DELETE, Pool.EXTERNAL, 0, Item("k")),
    Request(Op.ENUMERATE, Pool.AUTO, 12, Item("k", "v")),
    Request(Op.SET, Pool.EXTERNAL, 0, Item("k" * 255, "v" * 1023)),
])  # fmt: skip
def test_a_request_survives_the_wire(request_: Request) -> None:
    wire = kvp.encode(request_)
    assert kvp.decode(wire) == request_
    assert kvp.decode(wire[:-1]) is None


def test_numbers_are_read_as_text_and_sizes_beyond_their_fields_are_refused() -> None:
    def value(kind: int, key_size: int, value_size: int, raw: bytes) -> bytes:
        return struct.pack("<BBxxIII512s2048s", 0, 1, kind, key_size, value_size, "k".encode("utf-16-le"), raw)

    assert kvp.decode(value(4, 4, 4, b"\x07\0\0\0\xff")) == Request(0, 1, 0, Item("k", "7"))
    assert kvp.decode(value(11, 4, 8, b"\x07" + bytes(7))) == Request(0, 1, 0, Item("k", "7"))
    assert kvp.decode(value(8, 4, 8, b"\x07" + bytes(7))) == Request(0, 1, 0, Item("k", "7"))
    for sizes in ((514, 2), (3, 2), (2, 2050), (2, 1)):
        assert kvp.decode(value(1, *sizes, b"")) is None
    assert kvp.decode(value(1, 4, 4, b"\x00\xd8\x41\0")) == Request(0, 1, 0, Item("k", "\ufffdA"))


def test_operations_on_addresses_are_known_and_others_are_not() -> None:
    assert kvp.decode(bytes((4, 0, 0, 0))) == Request(Op.GET_IP, 0)
    assert kvp.decode(bytes((6, 0, 0, 0)) + bytes(3000)) is None
    assert kvp.decode(b"\0\0\0") is None


@pytest.mark.parametrize(("item", "ok"), [
    (Item("k" * 255, "v" * 1023), True), (Item("k" * 256), False), (Item("k", "v" * 1024), False), (Item(""), False),
    (Item("a\0b"), False), (Item("k", "\ud800"), False), (Item("\U0001f600" * 127), True),
    (Item("\U0001f600" * 128), False),
])  # fmt: skip
def test_what_fits_is_what_can_be_encoded(item: Item, ok: bool) -> None:
    assert kvp.fits(item) is ok
    if ok:
        assert kvp.decode(kvp.encode(Request(Op.SET, 0, 0, item))) == Request(Op.SET, 0, 0, item)
