"""SCSI as far as a virtual disk needs it: opcodes, CDBs written and read, sense data.

The guest's side builds CDBs, the target's side reads them (protocol sheet 5.4, 5.5). Everything inside a
CDB, a parameter list or a data page is big-endian. Readers return ``None`` for bytes that make no sense;
nothing here raises for what a peer sent. LBAs and counts are in logical blocks.
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import NamedTuple


class Opcode(enum.IntEnum):
    """The first byte of a CDB."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    INQUIRY = 0x12
    MODE_SENSE_6 = 0x1A
    START_STOP_UNIT = 0x1B
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    VERIFY_10 = 0x2F
    SYNCHRONIZE_CACHE_10 = 0x35
    UNMAP = 0x42
    MODE_SENSE_10 = 0x5A
    PERSISTENT_RESERVE_IN = 0x5E
    PERSISTENT_RESERVE_OUT = 0x5F
    READ_16 = 0x88
    WRITE_16 = 0x8A
    SYNCHRONIZE_CACHE_16 = 0x91
    WRITE_SAME_16 = 0x93
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0
    READ_12 = 0xA8
    WRITE_12 = 0xAA


#: SERVICE ACTION IN(16), low five bits of byte 1.
SERVICE_ACTION_MASK = 0x1F
READ_CAPACITY_16 = 0x10
GET_LBA_STATUS = 0x12

#: Bytes of a CDB by the three high bits of its opcode; 0: no fixed length (reserved or vendor specific).
CDB_LENGTHS = (6, 10, 10, 0, 16, 12, 0, 0)

FUA = 0x08              #: READ/WRITE byte 1: this write is to be durable when it completes
EVPD = 0x01             #: INQUIRY byte 1: a vital product data page is wanted

#: Device type byte of an INQUIRY: a disk; and "no device of this type here".
TYPE_DISK = 0x00
TYPE_ABSENT = 0x7F

VPD_SUPPORTED_PAGES = 0x00
VPD_SERIAL_NUMBER = 0x80
VPD_IDENTIFICATION = 0x83
VPD_BLOCK_LIMITS = 0xB0
VPD_CHARACTERISTICS = 0xB1
VPD_PROVISIONING = 0xB2

MODE_PAGE_CACHING = 0x08
MODE_PAGE_ALL = 0x3F
WRITE_PROTECTED = 0x80  #: mode header, device-specific byte

# -- sense data -------------------------------------------------------------------------------------------


class Sense(NamedTuple):
    """Why a command ended in CHECK CONDITION: key, additional code, qualifier."""

    key: int
    asc: int
    ascq: int


NO_SENSE = Sense(0, 0, 0)
WRITE_ERROR = Sense(3, 0x0C, 0)
READ_ERROR = Sense(3, 0x11, 0)
INVALID_OPCODE = Sense(5, 0x20, 0)
LBA_OUT_OF_RANGE = Sense(5, 0x21, 0)
INVALID_FIELD_IN_CDB = Sense(5, 0x24, 0)
INVALID_PARAMETER_LIST = Sense(5, 0x26, 0)
SAVING_NOT_SUPPORTED = Sense(5, 0x39, 0)
IS_WRITE_PROTECTED = Sense(7, 0x27, 0)

SENSE_LENGTH = 18
_SENSE = Struct(">BxB4xB4xBB4x")
_FIXED_FORMAT = 0x70


def encode_sense(sense: Sense) -> bytes:
    """Fixed-format sense data, 18 bytes."""
    return _SENSE.pack(_FIXED_FORMAT, sense.key, SENSE_LENGTH - 8, sense.asc, sense.ascq)


def decode_sense(data: bytes) -> Sense | None:
    """Fixed-format sense data of at least 14 bytes; ``None`` for anything else."""
    if len(data) < 14 or data[0] & 0x7E != _FIXED_FORMAT:
        return None
    return Sense(data[2] & 0x0F, data[12], data[13])


# -- reading and writing blocks ---------------------------------------------------------------------------

#: READ and WRITE by opcode: what ``unpack_from(cdb)`` gives is ``flags, lba, blocks``.
_TRANSFER_10 = Struct(">xBIxHx")
_TRANSFER_12 = Struct(">xBIIxx")
_TRANSFER_16 = Struct(">xBQIxx")
TRANSFER_FIELDS: dict[int, Struct] = {
    Opcode.READ_10: _TRANSFER_10,
    Opcode.WRITE_10: _TRANSFER_10,
    Opcode.READ_12: _TRANSFER_12,
    Opcode.WRITE_12: _TRANSFER_12,
    Opcode.READ_16: _TRANSFER_16,
    Opcode.WRITE_16: _TRANSFER_16,
}

#: LBA and block count of a READ(16) or WRITE(16), for patching a prepared CDB at this offset.
TRANSFER_16 = Struct(">QI")
TRANSFER_16_OFFSET = 2


def read_16(lba: int, blocks: int) -> bytes:
    return _cdb_16(Opcode.READ_16, 0, lba, blocks)


def write_16(lba: int, blocks: int, fua: bool = False) -> bytes:
    return _cdb_16(Opcode.WRITE_16, FUA if fua else 0, lba, blocks)


def synchronize_cache_16() -> bytes:
    """The whole disk: zero blocks from LBA 0 mean "to the end"."""
    return _cdb_16(Opcode.SYNCHRONIZE_CACHE_16, 0, 0, 0)


def _cdb_16(opcode: Opcode, flags: int, lba: int, blocks: int) -> bytes:
    return Struct(">BBQIxx").pack(opcode, flags, lba, blocks)


def test_unit_ready() -> bytes:
    return bytes(6)


test_unit_ready.__test__ = False  # type: ignore[attr-defined]  # a SCSI command, not a test to collect

# -- asking what the disk is ------------------------------------------------------------------------------

_INQUIRY = Struct(">BBBHx")
_READ_CAPACITY_16 = Struct(">BB8xIxx")
_MODE_SENSE_6 = Struct(">BxBxBx")
_REPORT_LUNS = Struct(">B5xIxx")


def inquiry(allocation: int, page: int | None = None) -> bytes:
    """The standard data, or a vital product data page."""
    if page is None:
        return _INQUIRY.pack(Opcode.INQUIRY, 0, 0, allocation)
    return _INQUIRY.pack(Opcode.INQUIRY, EVPD, page, allocation)


def read_capacity_16(allocation: int = 32) -> bytes:
    return _READ_CAPACITY_16.pack(Opcode.SERVICE_ACTION_IN_16, READ_CAPACITY_16, allocation)


def mode_sense_6(page: int, allocation: int) -> bytes:
    return _MODE_SENSE_6.pack(Opcode.MODE_SENSE_6, page, allocation)


def report_luns(allocation: int) -> bytes:
    return _REPORT_LUNS.pack(Opcode.REPORT_LUNS, allocation)


_CAPACITY_16 = Struct(">QI")


def decode_capacity_16(data: bytes) -> tuple[int, int] | None:
    """``(block_count, block_size)`` from READ CAPACITY(16) data; ``None`` if it is too short."""
    if len(data) < _CAPACITY_16.size:
        return None
    last, size = _CAPACITY_16.unpack_from(data)
    return last + 1, size


def decode_write_protected(mode_data: bytes) -> bool | None:
    """The write-protect bit of MODE SENSE(6) data; ``None`` if it is too short."""
    return bool(mode_data[2] & WRITE_PROTECTED) if len(mode_data) >= 4 else None


def decode_serial(page: bytes) -> str | None:
    """The serial number of VPD page 80; ``None`` if that is not what ``page`` is."""
    if len(page) < 4 or page[1] != VPD_SERIAL_NUMBER:
        return None
    length = page[2] << 8 | page[3]
    if len(page) < 4 + length:
        return None
    return page[4 : 4 + length].decode("ascii", "replace").strip()


# -- unmap ------------------------------------------------------------------------------------------------

_UNMAP_CDB = Struct(">BB5xHx")
_UNMAP_LENGTH_OFFSET = 7
_UNMAP_HEADER = Struct(">HH4x")
_UNMAP_RANGE = Struct(">QI4x")
#: What a disk here takes in one UNMAP: a driver may have to work them off at once, and others wait meanwhile.
MAX_UNMAP_RANGES = 64
#: Blocks one range can name.
MAX_UNMAP_BLOCKS = 0xFFFF_FFFF
UNMAP_ANCHOR = 0x01


def unmap(list_length: int) -> bytes:
    """``list_length``: bytes of the parameter list that goes with it, at most 65535."""
    return _UNMAP_CDB.pack(Opcode.UNMAP, 0, list_length)


def unmap_list_length(cdb: bytes) -> int:
    return cdb[_UNMAP_LENGTH_OFFSET] << 8 | cdb[_UNMAP_LENGTH_OFFSET + 1]


def encode_unmap_list(lba: int, blocks: int) -> bytes:
    """The parameter list that names ``blocks`` blocks from ``lba``: no more than all ranges together can.

    No blocks are one empty range, so that the target can judge ``lba`` all the same.
    """
    ranges = b"".join(
        _UNMAP_RANGE.pack(lba + done, min(MAX_UNMAP_BLOCKS, blocks - done))
        for done in range(0, max(blocks, 1), MAX_UNMAP_BLOCKS)
    )
    return _UNMAP_HEADER.pack(_UNMAP_HEADER.size - 2 + len(ranges), len(ranges)) + ranges


def decode_unmap_list(data: bytes | memoryview) -> list[tuple[int, int]] | None:
    """``(lba, blocks)`` of every range, empty ones too; ``None`` if the lengths do not fit together."""
    if len(data) < _UNMAP_HEADER.size:
        return None
    total, descriptors = _UNMAP_HEADER.unpack_from(data)
    if descriptors % _UNMAP_RANGE.size or total != _UNMAP_HEADER.size - 2 + descriptors:
        return None
    if _UNMAP_HEADER.size + descriptors > len(data):
        return None
    body = data[_UNMAP_HEADER.size : _UNMAP_HEADER.size + descriptors]
    return list(_UNMAP_RANGE.iter_unpack(body))
