"""GPADLs on the wire: page ranges to messages and back, and what makes a GPADL fit to hold rings.

A GPADL ("guest physical address descriptor list") describes guest memory as ranges; a range is an offset
into its first page, a length, and the number of every page it touches. It travels in one header and as
many bodies as it needs (protocol sheet 2.2). Both sides use this; nothing here keeps state but
:class:`RangeCollector`, whose memory is bounded by the 16-bit length that a header can announce.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from vmbus_emu.protocol.vmbus import GpadlBody, GpadlHeader

PAGE_BYTES = 4096
QWORD = 8
#: Qwords of ranges in one header, and in one body: what 240 bytes have room for.
HEADER_QWORDS = 27
BODY_QWORDS = 28
#: A page number beyond this would be an address beyond 64 bits.
MAX_PFN = (1 << 52) - 1
_MAX_RANGE_BYTES = 0xFFFF
_MIN_RANGE_BYTES = 2 * QWORD
_RANGE = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Range:
    """``byte_count`` bytes from ``byte_offset`` into page ``pfns[0]`` on; one entry per page touched, in order."""

    byte_count: int
    byte_offset: int
    pfns: tuple[int, ...]


Ranges = tuple[Range, ...]


def contiguous(first_pfn: int, byte_count: int, byte_offset: int = 0) -> Range:
    """A range of adjacent pages."""
    return Range(byte_count, byte_offset, tuple(range(first_pfn, first_pfn + page_count(byte_count, byte_offset))))


def page_count(byte_count: int, byte_offset: int) -> int:
    """The pages that a range touches."""
    return (byte_offset + byte_count + PAGE_BYTES - 1) // PAGE_BYTES


def range_fault(byte_count: int, byte_offset: int) -> str | None:
    """What is wrong with a range's extent (protocol sheet 8, item 8), or ``None``."""
    if byte_count < 1:
        return "an empty range"
    if not 0 <= byte_offset < PAGE_BYTES:
        return f"a byte offset of {byte_offset}"
    if byte_offset + byte_count >= 1 << 32:
        return "a range beyond 32 bits"
    return None


def encode_gpadl(relid: int, gpadl: int, ranges: Sequence[Range]) -> list[bytes]:
    """The messages that create a GPADL: one header, then bodies, each at most 240 bytes.

    ``ValueError`` if a range is not one, or if all together exceed 65535 bytes (about 8,190 pages).
    """
    parts = []
    for item in ranges:
        fault = range_fault(item.byte_count, item.byte_offset)
        if fault is None and len(item.pfns) != page_count(item.byte_count, item.byte_offset):
            fault = f"{len(item.pfns)} page numbers for {page_count(item.byte_count, item.byte_offset)} pages"
        if fault is not None:
            raise ValueError(f"not a range: {fault}")
        parts.append(_RANGE.pack(item.byte_count, item.byte_offset) + struct.pack(f"<{len(item.pfns)}Q", *item.pfns))
    data = b"".join(parts)
    if not 0 < len(data) <= _MAX_RANGE_BYTES:
        raise ValueError(f"the ranges of a GPADL take 1 to {_MAX_RANGE_BYTES} bytes, not {len(data)}")
    head, step = HEADER_QWORDS * QWORD, BODY_QWORDS * QWORD
    messages = [GpadlHeader(relid, gpadl, len(data), len(parts), data[:head]).encode()]
    messages.extend(GpadlBody(0, gpadl, data[at:at + step]).encode() for at in range(head, len(data), step))
    return messages


def decode_ranges(data: bytes, count: int) -> Ranges | str:
    """``count`` ranges from their wire form, or what is wrong with them. Bytes after the last are ignored."""
    if count < 1:
        return "no range"
    if count * _MIN_RANGE_BYTES > len(data):
        return f"{count} ranges in {len(data)} bytes"
    ranges = []
    at = 0
    for _ in range(count):
        if at + _RANGE.size > len(data):
            return "a range is cut off"
        byte_count, byte_offset = _RANGE.unpack_from(data, at)
        fault = range_fault(byte_count, byte_offset)
        if fault is not None:
            return fault
        at += _RANGE.size
        pages = page_count(byte_count, byte_offset)
        if at + pages * QWORD > len(data):
            return f"page numbers missing of {pages}"
        pfns = struct.unpack_from(f"<{pages}Q", data, at)
        if max(pfns) > MAX_PFN:
            return "a page number beyond the address space"
        at += pages * QWORD
        ranges.append(Range(byte_count, byte_offset, pfns))
    return tuple(ranges)


class RangeCollector:
    """Puts the ranges of one GPADL together. What comes beyond the announced length is ignored (sheet 8, item 9)."""

    __slots__ = ("_count", "_data", "_needed")

    def __init__(self, header: GpadlHeader) -> None:
        self._needed = header.range_bytes // QWORD * QWORD
        self._count = header.range_count
        self._data = bytearray()
        self.add(header.ranges)

    @property
    def fault(self) -> str | None:
        """Why this can never become a GPADL, known from the announcement alone; ``None`` if it can."""
        if self._count < 1:
            return "no range"
        if self._count * _MIN_RANGE_BYTES > self._needed:
            return f"{self._count} ranges in {self._needed} bytes"
        return None

    @property
    def qwords(self) -> int:
        """The announced size in qwords: an upper bound of the pages."""
        return self._needed // QWORD

    @property
    def complete(self) -> bool:
        return len(self._data) == self._needed

    def add(self, data: bytes) -> None:
        """Append whole qwords, up to the announced length."""
        room = self._needed - len(self._data)
        self._data += data[:min(room, len(data) // QWORD * QWORD)]

    def ranges(self) -> Ranges | str:
        """The ranges of a complete GPADL, or what is wrong with them."""
        return decode_ranges(bytes(self._data), self._count)


def ring_fault(ranges: Ranges, downstream_page_offset: int) -> str | None:
    """Why a GPADL cannot hold a channel's two rings (protocol sheet 3.1), or ``None`` if it can.

    Each ring needs a control page and at least one data page.
    """
    if len(ranges) != 1:
        return "the rings need exactly one range"
    only = ranges[0]
    if only.byte_offset or only.byte_count % PAGE_BYTES:
        return "the rings' range is not page-aligned"
    if downstream_page_offset < 2 or len(only.pfns) < downstream_page_offset + 2:
        return f"{len(only.pfns)} pages split at {downstream_page_offset} are not two rings"
    return None
