"""What a virtual disk says about itself: INQUIRY and mode pages, capacity, LUN list, as bytes.

Pure functions of a :class:`~vmbus_emu.device.BlockInfo`; called by :mod:`partitions.parent.scsi_target`, which
cuts the result to the length the guest allotted. Layouts: protocol sheet 5.5, and SPC/SBC for the pages.
"""

from __future__ import annotations

import hashlib
from struct import Struct

from vmbus_emu.device import BLOCK_SIZE, PHYSICAL_BLOCK_SIZE, BlockInfo
from vmbus_emu.protocol import scsi

VENDOR = b"VMBusEmu"
PRODUCT = b"Virtual Disk    "
REVISION = b"0001"

_PHYSICAL_PER_LOGICAL = PHYSICAL_BLOCK_SIZE // BLOCK_SIZE
_PHYSICAL_EXPONENT = _PHYSICAL_PER_LOGICAL.bit_length() - 1

# -- INQUIRY -------------------------------------------------------------------------------------------------

_STANDARD_LENGTH = 96
_SPC_3 = 5
_RESPONSE_FORMAT = 2
_COMMAND_QUEUEING = 0x02


def standard_inquiry(device_type: int) -> bytes:
    """96 bytes. ``device_type`` 0x7F says that there is nothing at this address."""
    head = bytes((device_type, 0, _SPC_3, _RESPONSE_FORMAT, _STANDARD_LENGTH - 5, 0, 0, _COMMAND_QUEUEING))
    return (head + VENDOR + PRODUCT + REVISION).ljust(_STANDARD_LENGTH, b"\0")


def _supported_pages(info: BlockInfo) -> bytes:
    return bytes(sorted(VPD_PAGES))


def _serial_number(info: BlockInfo) -> bytes:
    return info.serial.encode("ascii", "replace")


def _identification(info: BlockInfo) -> bytes:
    """Two names of the LUN: vendor and serial as text, and a locally assigned 64-bit NAA made from them."""
    text = VENDOR + _serial_number(info)[:240]
    number = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
    naa = (number >> 4 | 0x3 << 60).to_bytes(8, "big")  # the top four bits: 3, locally assigned
    return bytes((0x02, 0x01, 0, len(text))) + text + bytes((0x01, 0x03, 0, len(naa))) + naa


_BLOCK_LIMITS = Struct(">BBHIIIIIII28x")


def _block_limits(info: BlockInfo) -> bytes:
    longest = info.max_transfer_bytes // BLOCK_SIZE
    return _BLOCK_LIMITS.pack(
        0, 0, _PHYSICAL_PER_LOGICAL, longest, longest, 0,
        scsi.MAX_UNMAP_BLOCKS, scsi.MAX_UNMAP_RANGES, _PHYSICAL_PER_LOGICAL, 0,
    )  # fmt: skip


def _characteristics(info: BlockInfo) -> bytes:
    return bytes((0, 1)).ljust(60, b"\0")  # rotation rate 1: it does not rotate


_CAN_UNMAP = 0x80
_UNMAPPED_READS_ZERO = 0x04
_THIN = 2


def _provisioning(info: BlockInfo) -> bytes:
    return bytes((0, _CAN_UNMAP | _UNMAPPED_READS_ZERO, _THIN, 0))


VPD_PAGES = {
    scsi.VPD_SUPPORTED_PAGES: _supported_pages,
    scsi.VPD_SERIAL_NUMBER: _serial_number,
    scsi.VPD_IDENTIFICATION: _identification,
    scsi.VPD_BLOCK_LIMITS: _block_limits,
    scsi.VPD_CHARACTERISTICS: _characteristics,
    scsi.VPD_PROVISIONING: _provisioning,
}


def vpd_page(page: int, info: BlockInfo) -> bytes | None:
    """A vital product data page with its header; ``None`` for a page that this disk does not have."""
    content = VPD_PAGES.get(page)
    if content is None:
        return None
    body = content(info)
    return bytes((scsi.TYPE_DISK, page, len(body) >> 8, len(body) & 0xFF)) + body


# -- capacity ------------------------------------------------------------------------------------------------

_CAPACITY_10 = Struct(">II")
_CAPACITY_16 = Struct(">QIBBH16x")
_PROVISIONED_AND_ZERO = 0xC000  # LBPME, LBPRZ


def capacity_10(info: BlockInfo) -> bytes:
    """8 bytes; a disk too large for 32 bits says 0xFFFFFFFF, which means "ask READ CAPACITY(16)"."""
    return _CAPACITY_10.pack(min(max(info.block_count - 1, 0), 0xFFFF_FFFF), BLOCK_SIZE)


def capacity_16(info: BlockInfo) -> bytes:
    """32 bytes."""
    return _CAPACITY_16.pack(max(info.block_count - 1, 0), BLOCK_SIZE, 0, _PHYSICAL_EXPONENT, _PROVISIONED_AND_ZERO)


# -- mode pages ----------------------------------------------------------------------------------------------

_FUA_UNDERSTOOD = 0x10
#: Write cache enable stays 0: an acknowledged write is in the kernel, no driver keeps a volatile cache.
_CACHING = bytes((scsi.MODE_PAGE_CACHING, 10)).ljust(12, b"\0")
MODE_PAGES = {scsi.MODE_PAGE_CACHING: _CACHING, scsi.MODE_PAGE_ALL: _CACHING}


def mode_data(page: int, info: BlockInfo, *, long_header: bool, changeable: bool) -> bytes | None:
    """MODE SENSE(6) or (10) data without block descriptors; ``None`` for an unknown page.

    ``changeable``: a mask of what could be changed is wanted instead of the values. It is nothing.
    """
    body = MODE_PAGES.get(page)
    if body is None:
        return None
    if changeable:
        body = body[:2].ljust(len(body), b"\0")
    specific = _FUA_UNDERSTOOD | (scsi.WRITE_PROTECTED if info.read_only else 0)
    if long_header:
        return bytes((0, 6 + len(body), 0, specific, 0, 0, 0, 0)) + body
    return bytes((3 + len(body), 0, specific, 0)) + body


# -- LUNs ----------------------------------------------------------------------------------------------------


def lun_list() -> bytes:
    """REPORT LUNS data: there is one, number 0."""
    return Struct(">I4xQ").pack(8, 0)
