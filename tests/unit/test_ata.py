"""The words of IDENTIFY DEVICE, at the places that the ATA documents give."""

from __future__ import annotations

import struct

import pytest

from vmbus_emu.protocol import ata


def words(raw: bytes) -> tuple[int, ...]:
    return struct.unpack("<256H", raw)


def test_the_words_are_where_a_driver_looks_for_them() -> None:
    raw = ata.encode_identity(0x1_2345_6789, "AB12", True)
    found = words(raw)
    assert len(raw) == 512
    assert found[0] & 0x8000 == 0                               # an ATA device
    assert found[49] & 0x0300 == 0x0300                         # LBA and DMA
    assert found[60] | found[61] << 16 == (1 << 28) - 1         # more than LBA28 can say
    assert found[83] & 0x3400 == 0x3400                         # LBA48, FLUSH CACHE, FLUSH CACHE EXT
    assert found[100] | found[101] << 16 | found[102] << 32 == 0x1_2345_6789
    assert (found[105], found[169] & 1) == (1, 1)               # TRIM, one sector of ranges
    assert found[106] == 0x6003                                 # eight logical sectors to a physical one
    assert raw[20:24] == b"BA21"                                # the first character is in the upper byte
    assert raw[510] == 0xA5
    assert sum(raw) & 0xFF == 0


def test_what_was_encoded_is_decoded() -> None:
    for blocks, serial, read_only in ((1, "", False), (1 << 40, "CONFORMANCE", True)):
        identity = ata.decode_identity(ata.encode_identity(blocks, serial, read_only))
        assert identity == ata.Identity(blocks, serial, read_only, True, True)


@pytest.mark.parametrize("spoil", [
    lambda raw: raw[:-1],
    lambda raw: bytes(512),                                     # no LBA
    lambda raw: raw[:-1] + bytes((raw[-1] ^ 1,)),               # the checksum
    lambda raw: b"\0\x80" + raw[2:510] + bytes(2),              # a packet device
])  # fmt: skip
def test_what_is_no_disk_is_none(spoil: object) -> None:
    assert ata.decode_identity(spoil(ata.encode_identity(8, "x", False))) is None  # type: ignore[operator]
