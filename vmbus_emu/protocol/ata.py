"""ATA as far as a virtual IDE disk needs it: registers, commands, the words of IDENTIFY DEVICE, bus-master registers.

Protocol sheet 7, and the ATA/ATAPI and Bus Master IDE documents behind it. The guest's driver and the device model both
read these tables. Words and multi-byte registers are little-endian; sectors have 512 bytes.
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import NamedTuple

SECTOR = 512
WORDS_PER_SECTOR = SECTOR // 2

#: The command block of each channel, its control register, its bus-master registers, and its interrupt.
COMMAND_PORTS = (0x1F0, 0x170)
CONTROL_PORTS = (0x3F6, 0x376)
BUS_MASTER_PORTS = (0xFFA0, 0xFFA8)
IRQS = (14, 15)
CHANNELS = 2
DRIVES_PER_CHANNEL = 2

# Offsets in the command block. The last two have another meaning when they are written.
DATA, ERROR, COUNT, LBA_LOW, LBA_MID, LBA_HIGH, DEVICE, STATUS = range(8)
FEATURES, COMMAND = ERROR, STATUS
#: How many ports the command block and the bus-master registers of a channel have.
COMMAND_BLOCK = 8
BUS_MASTER_BLOCK = 8


class Status(enum.IntFlag):
    """The status register."""

    ERR = 0x01
    DRQ = 0x08              #: a sector is to be moved through the data register
    DSC = 0x10
    DF = 0x20               #: the device itself failed
    DRDY = 0x40
    BSY = 0x80              #: nothing else of the registers means anything


class Error(enum.IntFlag):
    """The error register, while ``ERR`` is set."""

    ABRT = 0x04             #: no such command, or not with these parameters
    IDNF = 0x10             #: a sector beyond the end
    UNC = 0x40              #: of a read: the medium failed
    WP = 0x40               #: of a write: the medium is write protected


DEVICE_SLAVE = 0x10
DEVICE_LBA = 0x40
DEVICE_FIXED = 0xA0         #: two bits that were always set once
CONTROL_NIEN = 0x02         #: no interrupts
CONTROL_SRST = 0x04         #: reset, while it is set
CONTROL_HOB = 0x80          #: reads show what was written before the last write (LBA48)


class Command(enum.IntEnum):
    """The commands that are implemented; every other one is aborted."""

    DATA_SET_MANAGEMENT = 0x06
    READ_SECTORS = 0x20
    READ_SECTORS_EXT = 0x24
    READ_DMA_EXT = 0x25
    WRITE_SECTORS = 0x30
    WRITE_SECTORS_EXT = 0x34
    WRITE_DMA_EXT = 0x35
    EXECUTE_DIAGNOSTIC = 0x90
    PACKET = 0xA0           #: aborted: these are no packet devices
    READ_DMA = 0xC8
    WRITE_DMA = 0xCA
    CHECK_POWER_MODE = 0xE5
    FLUSH_CACHE = 0xE7
    FLUSH_CACHE_EXT = 0xEA
    IDENTIFY_DEVICE = 0xEC
    SET_FEATURES = 0xEF


#: DATA SET MANAGEMENT, features register: TRIM.
TRIM = 0x01
#: SET FEATURES, features register: the write cache on and off, and the transfer mode.
SET_WRITE_CACHE, SET_NO_WRITE_CACHE, SET_TRANSFER_MODE = 0x02, 0x82, 0x03
#: What the registers hold after a reset or a diagnostic: an ATA device that found no fault.
DIAGNOSTIC_GOOD = 0x01
POWER_ACTIVE = 0xFF

MAX_SECTORS_28 = 256
MAX_SECTORS_48 = 1 << 16
LIMIT_28 = 1 << 28
LIMIT_48 = 1 << 48

# -- bus master ---------------------------------------------------------------------------------------

BM_COMMAND, BM_STATUS, BM_TABLE = 0, 2, 4
BM_START = 0x01             #: command
BM_TO_MEMORY = 0x08         #: command: the device writes to memory, which is a disk's READ
BM_ACTIVE = 0x01            #: status
BM_ERROR = 0x02             #: status, cleared by writing 1
BM_INTERRUPT = 0x04         #: status, cleared by writing 1
BM_DRIVES_CAPABLE = 0x60    #: status, for software to note

#: A physical region descriptor: base, byte count (0: 64 KiB), flags.
PRD = Struct("<IHH")
PRD_END = 0x8000
PRD_LIMIT = 1 << 16         #: bytes of one region, which may not cross a multiple of this
#: A table lies within 64 KiB.
MAX_PRDS = (1 << 16) // PRD.size

#: One range of DATA SET MANAGEMENT: LBA in the low 48 bits, sectors in the upper 16.
TRIM_RANGE = Struct("<Q")
TRIM_RANGES_PER_SECTOR = SECTOR // TRIM_RANGE.size
MAX_TRIM_SECTORS = (1 << 16) - 1
#: Sectors of ranges that one DATA SET MANAGEMENT takes, as IDENTIFY says.
MAX_TRIM_LIST = 1

# -- IDENTIFY DEVICE ----------------------------------------------------------------------------------

_WORDS = Struct("<256H")
_SERIAL, _FIRMWARE, _MODEL = (10, 10), (23, 4), (27, 20)    # first word, words
#: The first of the words that are the maker's own.
_VENDOR = 129
_VENDOR_READ_ONLY = 1
_SIGNATURE = 0xA5
MODEL = "vmbus-emu IDE disk"


class Identity(NamedTuple):
    """What a driver wants to know of a disk."""

    block_count: int
    serial: str
    read_only: bool
    lba48: bool
    trim: bool


def encode_identity(block_count: int, serial: str, read_only: bool) -> bytes:
    """512 bytes of IDENTIFY DEVICE for a disk. That it is read-only stands in a word of the maker's: ATA has no bit."""
    words = [0] * 256
    sectors_28 = min(block_count, LIMIT_28 - 1)
    cylinders = max(1, min(block_count // (16 * 63), 16383))
    words[0], words[1], words[3], words[6] = 0x0040, cylinders, 16, 63
    _put_text(words, _SERIAL, serial)
    _put_text(words, _FIRMWARE, "1")
    _put_text(words, _MODEL, MODEL)
    words[47], words[49], words[50], words[53] = 0x8001, 0x0300, 0x4000, 0x0006     # LBA and DMA
    words[60], words[61] = sectors_28 & 0xFFFF, sectors_28 >> 16
    words[63], words[64] = 0x0407, 0x0003
    words[65:69] = [120] * 4
    words[80] = 0x01F0                                                              # up to ATA8-ACS
    words[82], words[83], words[84] = 0x0020, 0x7400, 0x4000                        # write cache; LBA48, FLUSH (EXT)
    words[85], words[86], words[87] = words[82], words[83] & 0x3FFF, words[84]
    words[88] = 0x203F
    for index in range(4):
        words[100 + index] = block_count >> (16 * index) & 0xFFFF
    words[105] = MAX_TRIM_LIST
    words[106] = 0x6003                                                             # 8 sectors to a physical one
    words[_VENDOR] = _VENDOR_READ_ONLY if read_only else 0
    words[169], words[217] = TRIM, 1
    raw = bytearray(_WORDS.pack(*words))
    raw[510] = _SIGNATURE
    raw[511] = -sum(raw) & 0xFF
    return bytes(raw)


def decode_identity(raw: bytes) -> Identity | None:
    """``None`` if these are not 512 bytes of an ATA disk with LBA and DMA, or their checksum is wrong."""
    if len(raw) != SECTOR or (raw[510] == _SIGNATURE and sum(raw) & 0xFF):
        return None
    words = _WORDS.unpack(raw)
    if words[0] & 0x8000 or words[49] & 0x0300 != 0x0300:
        return None
    lba48 = bool(words[83] & 0x0400)
    count = words[60] | words[61] << 16
    if lba48:
        count = sum(words[100 + index] << (16 * index) for index in range(4))
    return Identity(
        count, _text(words, _SERIAL), bool(words[_VENDOR] & _VENDOR_READ_ONLY), lba48, bool(words[169] & TRIM)
    )


def _put_text(words: list[int], place: tuple[int, int], text: str) -> None:
    """Two characters to a word, the first in its upper byte, padded with spaces."""
    first, count = place
    raw = text.encode("ascii", "replace")[: 2 * count].ljust(2 * count)
    for index in range(count):
        words[first + index] = raw[2 * index] << 8 | raw[2 * index + 1]


def _text(words: tuple[int, ...], place: tuple[int, int]) -> str:
    first, count = place
    raw = bytes(byte for word in words[first : first + count] for byte in (word >> 8, word & 0xFF))
    return raw.decode("ascii", "replace").strip()
