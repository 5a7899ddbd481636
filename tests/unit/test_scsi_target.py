"""What the virtual disk says about itself, byte by byte, and how it refuses."""

from __future__ import annotations

import pytest

from partitions.parent import scsi_target
from vmbus_emu.device import BlockInfo, Op, Status
from vmbus_emu.protocol import scsi

INFO = BlockInfo(block_count=2048, serial="disk-7f")
LOCKED = BlockInfo(block_count=2048, serial="disk-7f", read_only=True)
HUGE = BlockInfo(block_count=1 << 40, serial="huge")


def cdb(*head: int) -> bytes:
    return bytes(head).ljust(16, b"\0")


def data(command: bytes, info: BlockInfo = INFO) -> bytes:
    outcome = scsi_target.control(command.ljust(16, b"\0"), info)
    assert (outcome.srb_status, outcome.scsi_status, outcome.sense) == (1, 0, b"")
    return outcome.data


def sense(outcome: scsi_target.Outcome) -> tuple[int, int, int]:
    assert (outcome.srb_status, outcome.scsi_status, outcome.data) == (4, 2, b"")
    decoded = scsi.decode_sense(outcome.sense)
    assert decoded is not None
    return tuple(decoded)


def test_inquiry_names_the_disk() -> None:
    answer = data(scsi.inquiry(96))
    assert answer[:4] == bytes((0, 0, 5, 2))
    assert len(answer) == answer[4] + 5 == 96
    assert answer[8:36] == b"VMBusEmuVirtual Disk    0001"


@pytest.mark.parametrize("allocation", [0, 5, 36, 96, 65535])
def test_inquiry_gives_no_more_than_was_allotted(allocation: int) -> None:
    assert len(data(scsi.inquiry(allocation))) == min(allocation, 96)


def test_the_list_of_pages_is_the_pages_there_are() -> None:
    answer = data(scsi.inquiry(255, 0))
    pages = answer[4 : 4 + answer[3]]
    assert list(pages) == [0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2]
    for page in pages:
        body = data(scsi.inquiry(255, page))
        assert body[1] == page
        assert len(body) == 4 + (body[2] << 8 | body[3])


def test_the_serial_number_comes_back() -> None:
    assert scsi.decode_serial(data(scsi.inquiry(255, 0x80))) == "disk-7f"


def test_the_identification_is_stable_and_differs_between_disks() -> None:
    page = data(scsi.inquiry(255, 0x83))
    assert page == data(scsi.inquiry(255, 0x83))
    assert page != data(scsi.inquiry(255, 0x83), HUGE)
    assert b"VMBusEmudisk-7f" in page
    assert page[-12:-8] == bytes((1, 3, 0, 8))
    assert page[-8] >> 4 == 3


def test_block_limits_and_provisioning() -> None:
    limits = data(scsi.inquiry(255, 0xB0))
    assert len(limits) == 64
    assert int.from_bytes(limits[6:8], "big") == 8
    assert int.from_bytes(limits[8:12], "big") == 2048
    assert int.from_bytes(limits[20:24], "big") == 0xFFFFFFFF
    assert int.from_bytes(limits[24:28], "big") == scsi.MAX_UNMAP_RANGES == 64
    assert data(scsi.inquiry(255, 0xB1))[4:6] == b"\x00\x01"
    assert data(scsi.inquiry(255, 0xB2))[5] & 0x80


@pytest.mark.parametrize("command", [scsi.inquiry(255, 0x84), cdb(0x12, 0, 0x80, 0, 255)])
def test_an_unknown_page_or_a_page_without_evpd_is_a_bad_field(command: bytes) -> None:
    assert sense(scsi_target.control(command.ljust(16, b"\0"), INFO)) == (5, 0x24, 0)


def test_read_capacity() -> None:
    assert data(cdb(0x25)) == (2047).to_bytes(4, "big") + (512).to_bytes(4, "big")
    assert data(cdb(0x25), HUGE)[:4] == b"\xff\xff\xff\xff"
    answer = data(scsi.read_capacity_16(), HUGE)
    assert len(answer) == 32
    assert scsi.decode_capacity_16(answer) == (1 << 40, 512)
    assert 512 << answer[13] == 4096
    assert answer[14] & 0x80
    assert len(data(scsi.read_capacity_16(12))) == 12


def test_mode_sense_shows_write_protection_and_no_volatile_cache() -> None:
    six = data(scsi.mode_sense_6(0x3F, 255))
    assert six[0] == len(six) - 1
    assert scsi.decode_write_protected(six) is False
    assert six[4:6] == bytes((0x08, 10))
    assert not six[6] & 0x04
    assert scsi.decode_write_protected(data(scsi.mode_sense_6(0x08, 255), LOCKED)) is True
    ten = data(cdb(0x5A, 0, 0x08, 0, 0, 0, 0, 0, 255), LOCKED)
    assert ten[0] << 8 | ten[1] == len(ten) - 2
    assert ten[3] == 0x90
    assert ten[8:] == six[4:]


def test_mode_sense_of_changeable_values_is_zero_and_of_saved_ones_refused() -> None:
    assert not any(data(scsi.mode_sense_6(0x40 | 0x08, 255))[6:])
    assert sense(scsi_target.control(scsi.mode_sense_6(0xC0 | 0x08, 255).ljust(16, b"\0"), INFO)) == (5, 0x39, 0)


@pytest.mark.parametrize("command", [cdb(0x1A, 0, 0x0A, 0, 255), cdb(0x1A, 0, 0x08, 1, 255), cdb(0x5A, 0, 0x3F, 7)])
def test_other_mode_pages_are_a_bad_field(command: bytes) -> None:
    assert sense(scsi_target.control(command, INFO)) == (5, 0x24, 0)


def test_there_is_one_lun() -> None:
    assert data(scsi.report_luns(16)) == (8).to_bytes(4, "big") + bytes(12)
    assert sense(scsi_target.control(cdb(0xA0, 0, 9, 0, 0, 0, 0, 0, 0, 16), INFO)) == (5, 0x24, 0)


def test_request_sense_has_nothing_to_tell() -> None:
    assert scsi.decode_sense(data(cdb(0x03, 0, 0, 0, 18))) == scsi.NO_SENSE
    assert sense(scsi_target.control(cdb(0x03, 1, 0, 0, 18), INFO)) == (5, 0x24, 0)


@pytest.mark.parametrize(
    "command", [cdb(0x5E), cdb(0x5F), cdb(0x2F), cdb(0x1B), cdb(0x93), cdb(0x9E, 0x12), cdb(0x9E), cdb(0xFF), cdb(0x04)]
)
def test_what_is_not_there_is_an_invalid_opcode(command: bytes) -> None:
    assert sense(scsi_target.control(command, INFO)) == (5, 0x20, 0)


def test_an_absent_lun_answers_only_a_plain_inquiry() -> None:
    answer = scsi_target.absent(cdb(0x12, 0, 0, 0, 36))
    assert (answer.srb_status, answer.data[0], len(answer.data)) == (1, 0x7F, 36)
    for command in (cdb(0x12, 1, 0x80, 0, 36), cdb(0x00), cdb(0x28), cdb(0xA0)):
        assert scsi_target.absent(command).srb_status == 0x20


def test_every_driver_status_has_its_scsi_words() -> None:
    for status in Status:
        for op in Op:
            outcome = scsi_target.from_status(status, op)
            assert (outcome == scsi_target.GOOD) == (status is Status.OK)
    assert sense(scsi_target.from_status(Status.OUT_OF_RANGE, Op.READ)) == (5, 0x21, 0)
    assert sense(scsi_target.from_status(Status.READ_ONLY, Op.WRITE)) == (7, 0x27, 0)
    assert sense(scsi_target.from_status(Status.IO_ERROR, Op.READ)) == (3, 0x11, 0)
    assert sense(scsi_target.from_status(Status.IO_ERROR, Op.WRITE)) == (3, 0x0C, 0)


@pytest.mark.parametrize("blocks", [0, 1, 0xFFFFFFFF, 0x1_0000_0000, 3 * 0xFFFFFFFF + 5])
def test_an_unmap_list_comes_back_as_it_was_written(blocks: int) -> None:
    ranges = scsi.decode_unmap_list(scsi.encode_unmap_list(77, blocks))
    assert ranges is not None
    assert sum(count for _, count in ranges) == blocks
    position = 77
    for lba, count in ranges:
        assert lba == position
        position += count


@pytest.mark.parametrize(
    "parameters",
    [
        b"",
        bytes(7),
        bytes.fromhex("0006000000000000")[:4],
        bytes.fromhex("0016001000000000") + bytes(15),          # a descriptor cut short
        bytes.fromhex("0015000f00000000") + bytes(15),          # not whole descriptors
        bytes.fromhex("0017001000000000") + bytes(16),          # the two lengths disagree
        bytes.fromhex("fff6fff000000000") + bytes(16),          # more than is there
    ],
)
def test_an_unmap_list_whose_lengths_do_not_fit_is_none(parameters: bytes) -> None:
    assert scsi.decode_unmap_list(parameters) is None


@pytest.mark.parametrize("data", [b"", bytes(13), b"\x72" + bytes(17), b"\x00" * 18])
def test_what_is_not_fixed_format_sense_is_none(data: bytes) -> None:
    assert scsi.decode_sense(data) is None
