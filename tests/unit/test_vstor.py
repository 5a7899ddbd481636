"""The vstor packet: sizes, offsets and the handshake's tables, checked against independent unpacking."""

from __future__ import annotations

import struct

import pytest

from vmbus_emu.protocol import scsi, vstor
from vmbus_emu.protocol.vstor import Direction, NtStatus, Operation, ScsiStatus, SrbStatus, State


def test_every_payload_fits_the_packet() -> None:
    assert set(vstor.MESSAGES) == set(Operation)
    for message in vstor.MESSAGES.values():
        assert message.payload.size <= vstor.PACKET_SIZE - vstor.HEADER_SIZE
    assert vstor.MESSAGES[Operation.EXECUTE_SRB].payload.size == vstor.REQUEST_SIZE == 52


def test_an_execute_srb_has_its_fields_where_the_sheet_says() -> None:
    packet = bytes(vstor.execute_srb(scsi.read_16(0x1122334455, 8), Direction.IN, 4096))
    assert len(packet) == 64
    assert struct.unpack_from("<III", packet) == (3, 1, 0)
    request = packet[12:]
    assert struct.unpack_from("<H", request)[0] == 52
    assert request[8] == 16                     # cdb_length
    assert request[9] == 20                     # sense_info_length
    assert request[10] == 1                     # data_in: from the device
    assert struct.unpack_from("<I", request, 12)[0] == 4096
    assert request[16:32] == bytes((0x88, 0)) + (0x1122334455).to_bytes(8, "big") + (8).to_bytes(4, "big") + b"\0\0"
    assert request[38:40] == b"\xff\x20"
    assert struct.unpack_from("<I", request, 40)[0] == 0x40 | 0x100 | 2 | 8
    assert struct.unpack_from("<I", request, 44)[0] == 60


def test_the_targets_view_and_the_table_read_the_same_packet_alike() -> None:
    packet = vstor.execute_srb(scsi.write_16(5, 3), Direction.OUT, 1536)
    packet[17:20] = b"\x01\x02\x03"
    fields = vstor.decode_fields(Operation.EXECUTE_SRB, bytes(packet))
    assert fields is not None
    operation, address, cdb_length, direction, transfer, cdb = vstor.EXECUTE.unpack_from(packet)
    assert operation == Operation.EXECUTE_SRB
    assert tuple(address) == (fields["path"], fields["target"], fields["lun"]) == (1, 2, 3)
    assert (cdb_length, direction, transfer) == (
        fields["cdb_length"], fields["data_in"], fields["data_transfer_length"]
    )  # fmt: skip
    assert cdb == fields["cdb_or_sense"][:16]


def test_a_completion_comes_back_as_it_was_written() -> None:
    sense = scsi.encode_sense(scsi.LBA_OUT_OF_RANGE)
    packet = vstor.complete_srb(SrbStatus.ERROR, ScsiStatus.CHECK_CONDITION, 0, sense)
    assert len(packet) == 64
    assert packet[14] == 0x84                   # error, sense valid
    done = vstor.decode_completion(packet)
    assert done == (NtStatus.IO_DEVICE_ERROR, SrbStatus.ERROR, ScsiStatus.CHECK_CONDITION, 0, sense)
    fields = vstor.decode_fields(Operation.COMPLETE_IO, packet)
    assert fields is not None
    assert (fields["length"], fields["sense_info_length"]) == (52, 18)


@pytest.mark.parametrize("moved", [0, 512, 1 << 20])
def test_the_fast_answer_is_the_ordinary_one(moved: int) -> None:
    assert vstor.complete_good(moved) == vstor.complete_srb(SrbStatus.SUCCESS, ScsiStatus.GOOD, moved)


@pytest.mark.parametrize("size", [0, 1, 12, 48, 63, 65, 128])
def test_a_packet_of_another_size_is_none(size: int) -> None:
    packet = bytes((1,)) + bytes(size - 1) if size else b""
    assert vstor.decode_header(packet) is None
    assert vstor.decode_completion(packet) is None
    assert vstor.decode_fields(Operation.QUERY_PROPERTIES, packet) is None


def test_what_is_not_a_complete_io_is_no_completion() -> None:
    assert vstor.decode_completion(vstor.encode(Operation.ENUMERATE_BUS)) is None


def test_sense_is_read_only_when_it_is_marked_valid() -> None:
    packet = bytearray(vstor.complete_srb(SrbStatus.ERROR, ScsiStatus.CHECK_CONDITION, 0, b"\x70" * 18))
    packet[14] = SrbStatus.ERROR
    done = vstor.decode_completion(bytes(packet))
    assert done is not None
    assert done.sense == b""


def test_a_sense_length_beyond_the_union_is_cut() -> None:
    packet = bytearray(vstor.complete_srb(SrbStatus.ERROR, ScsiStatus.CHECK_CONDITION, 0, b"\x70" * 18))
    packet[21] = 255
    done = vstor.decode_completion(bytes(packet))
    assert done is not None
    assert len(done.sense) == vstor.SENSE_SIZE


def test_the_handshake_reaches_ready() -> None:
    state = State.BEGIN
    steps = (
        (Operation.BEGIN_INIT, (), State.VERSION),
        (Operation.QUERY_PROTOCOL_VERSION, (0x0602, 0), State.PROPERTIES),
        (Operation.QUERY_PROPERTIES, (), State.END),
        (Operation.END_INIT, (), State.READY),
    )
    for operation, fields, following in steps:
        state, answer = vstor.answer(state, operation, vstor.encode(operation, *fields), 1 << 20)
        header = vstor.decode_header(answer)
        assert header == (Operation.COMPLETE_IO, 0, NtStatus.SUCCESS)
        assert state is following
        if operation is Operation.QUERY_PROPERTIES:
            properties = vstor.decode_fields(operation, answer)
            assert properties == {"max_channel_count": 0, "flags": 0, "max_transfer_bytes": 1 << 20}


@pytest.mark.parametrize("version", [0x0200, 0x0402, 0x0500, 0x0603, 0x0700, 0xFFFF, 0])
def test_other_versions_are_refused_and_may_be_followed_by_a_known_one(version: int) -> None:
    packet = vstor.encode(Operation.QUERY_PROTOCOL_VERSION, version, 0)
    state, answer = vstor.answer(State.VERSION, Operation.QUERY_PROTOCOL_VERSION, packet, 512)
    assert state is State.VERSION
    assert vstor.decode_header(answer) == (1, 0, 0xC0000059)


def test_everything_out_of_order_is_refused_and_changes_nothing() -> None:
    for state in State:
        for operation in Operation:
            if operation in vstor.TRANSITIONS[state]:
                continue
            after, answer = vstor.answer(state, operation, vstor.encode(operation), 512)
            assert after is state
            assert vstor.decode_header(answer) == (1, 0, 0xC0000184), (state, operation)


@pytest.mark.parametrize("state", [State.END, State.READY])
@pytest.mark.parametrize(("count", "status"), [(0, 0), (1, 0xC000000D), (65535, 0xC000000D)])
def test_sub_channels_are_not_to_be_had(state: State, count: int, status: int) -> None:
    packet = vstor.encode(Operation.CREATE_SUB_CHANNELS, count)
    after, answer = vstor.answer(state, Operation.CREATE_SUB_CHANNELS, packet, 512)
    assert after is state
    assert vstor.decode_header(answer) == (1, 0, status)


@pytest.mark.parametrize("operation", [Operation.RESET_LUN, Operation.RESET_ADAPTER, Operation.RESET_BUS])
def test_a_reset_succeeds_and_does_nothing(operation: Operation) -> None:
    after, answer = vstor.answer(State.READY, operation, vstor.encode(operation), 512)
    assert after is State.READY
    assert vstor.decode_header(answer) == (1, 0, 0)
