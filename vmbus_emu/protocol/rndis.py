"""RNDIS, the messages inside NVSP: which numbers and fields they have (protocol sheet 4.3).

Pure data, used by both ends; no state, no I/O. A control message is a named tuple of its fields and, where
its type has an information buffer, ``info``. Lengths and offsets of information buffers are computed when
encoding and checked when decoding, and do not appear in the tuples. :func:`decode` and :func:`frames` are
total: any bytes give a result or ``None``.

Units: lengths in bytes, link speed in 100 bit/s, offsets relative to the byte after the 8-byte header.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

Buffer = bytes | bytearray | memoryview

HEADER: Final = struct.Struct("<II")
#: More than any control message of this table needs; a longer one is refused.
MAX_CONTROL_BYTES: Final = 4096

# Statuses
SUCCESS: Final = 0
FAILURE: Final = 0xC0000001
NOT_SUPPORTED: Final = 0xC00000BB
INVALID_DATA: Final = 0xC0010015
MEDIA_CONNECT: Final = 0x4001000B
MEDIA_DISCONNECT: Final = 0x4001000C
LINK_SPEED_CHANGE: Final = 0x40010013

# Object identifiers
OID_SUPPORTED_LIST: Final = 0x00010101
OID_HARDWARE_STATUS: Final = 0x00010102
OID_MAXIMUM_FRAME_SIZE: Final = 0x00010106      # without the Ethernet header: the MTU
OID_LINK_SPEED: Final = 0x00010107
OID_PACKET_FILTER: Final = 0x0001010E
OID_MAXIMUM_TOTAL_SIZE: Final = 0x00010111      # with the Ethernet header
OID_MEDIA_CONNECT: Final = 0x00010114           # 0 connected, 1 disconnected
OID_RSS_CAPABILITIES: Final = 0x00010203
OID_RSS_PARAMETERS: Final = 0x00010204
OID_RNDIS_CONFIG_PARAMETER: Final = 0x0001021B
OID_PERMANENT_MAC: Final = 0x01010101
OID_CURRENT_MAC: Final = 0x01010102
OID_OFFLOAD_PARAMETERS: Final = 0xFC01020C

# Packet filter bits
FILTER_DIRECTED: Final = 0x01
FILTER_MULTICAST: Final = 0x02
FILTER_ALL_MULTICAST: Final = 0x04
FILTER_BROADCAST: Final = 0x08
FILTER_PROMISCUOUS: Final = 0x20
FILTER_KNOWN: Final = 0x2F

VERSION: Final = (1, 0)
MAX_TRANSFER_SIZE: Final = 0xEFFFFFFF
#: RNDIS PACKET messages one NVSP packet may carry, concatenated.
MAX_PACKETS: Final = 8
#: Advertised in INITIALIZE_COMPLETE: 2**3 = 8 bytes.
ALIGNMENT_FACTOR: Final = 3
CONNECTIONLESS: Final = 1
MEDIUM_802_3: Final = 0


class Initialize(NamedTuple):
    request_id: int
    major: int
    minor: int
    max_transfer_size: int


class InitializeComplete(NamedTuple):
    request_id: int
    status: int
    major: int
    minor: int
    device_flags: int
    medium: int
    max_packets: int
    max_transfer_size: int
    alignment_factor: int
    af_list_offset: int = 0
    af_list_size: int = 0


class Halt(NamedTuple):
    request_id: int


class Query(NamedTuple):
    request_id: int
    oid: int
    vc_handle: int = 0
    info: bytes = b""


class QueryComplete(NamedTuple):
    request_id: int
    status: int
    info: bytes = b""


class Set(NamedTuple):
    request_id: int
    oid: int
    vc_handle: int = 0
    info: bytes = b""


class SetComplete(NamedTuple):
    request_id: int
    status: int


class SetEx(NamedTuple):
    """As :class:`Set`, but answered with a :class:`QueryComplete`-shaped message."""

    request_id: int
    oid: int
    vc_handle: int = 0
    info: bytes = b""


class SetExComplete(NamedTuple):
    request_id: int
    status: int
    info: bytes = b""


class Reset(NamedTuple):
    reserved: int


class ResetComplete(NamedTuple):
    status: int
    addressing_reset: int


class Indicate(NamedTuple):
    status: int
    info: bytes = b""


class Keepalive(NamedTuple):
    request_id: int


class KeepaliveComplete(NamedTuple):
    request_id: int
    status: int


Message = (
    Initialize | InitializeComplete | Halt | Query | QueryComplete | Set | SetComplete | SetEx | SetExComplete
    | Reset | ResetComplete | Indicate | Keepalive | KeepaliveComplete
)


class Layout(NamedTuple):
    """One row of the table. ``body`` starts at offset 8. ``info_at`` is the index, among the body's words, of the
    information buffer's length; its offset is the word after it. ``None``: the type has no such buffer."""

    number: int
    name: str
    fields: Any
    body: struct.Struct
    info_at: int | None


def _row(number: int, name: str, fields: Any, words: int, info_at: int | None = None) -> Layout:
    return Layout(number, name, fields, struct.Struct(f"<{words}I"), info_at)


_COMPLETE: Final = 0x80000000
#: Control messages. PACKET (1) is not here: it is the data path, below.
MESSAGES: Final = (
    _row(2, "INITIALIZE", Initialize, 4),
    _row(2 | _COMPLETE, "INITIALIZE_COMPLETE", InitializeComplete, 11),
    _row(3, "HALT", Halt, 1),
    _row(4, "QUERY", Query, 5, info_at=2),
    _row(4 | _COMPLETE, "QUERY_COMPLETE", QueryComplete, 4, info_at=2),
    _row(5, "SET", Set, 5, info_at=2),
    _row(5 | _COMPLETE, "SET_COMPLETE", SetComplete, 2),
    _row(6, "RESET", Reset, 1),
    _row(6 | _COMPLETE, "RESET_COMPLETE", ResetComplete, 2),
    _row(7, "INDICATE", Indicate, 3, info_at=1),
    _row(8, "KEEPALIVE", Keepalive, 1),
    _row(8 | _COMPLETE, "KEEPALIVE_COMPLETE", KeepaliveComplete, 2),
    _row(9, "SET_EX", SetEx, 5, info_at=2),
    _row(9 | _COMPLETE, "SET_EX_COMPLETE", SetExComplete, 4, info_at=2),
)
_BY_NUMBER: Final = {row.number: row for row in MESSAGES}
_BY_FIELDS: Final = {row.fields: row for row in MESSAGES}


def encode(message: Message) -> bytes:
    """The bytes of a control message, its information buffer behind the fixed part."""
    row = _BY_FIELDS[type(message)]
    words: list[Any] = list(message)
    info = b""
    if row.info_at is not None:
        info = words.pop()
        words[row.info_at : row.info_at] = (len(info), row.body.size if info else 0)
    body = row.body.pack(*words)
    return HEADER.pack(row.number, HEADER.size + len(body) + len(info)) + body + info


def decode(message: Buffer) -> Message | None:
    """The control message in these bytes (exactly one; trailing padding is ignored); ``None`` if it is malformed,
    too long, or of a type that is not in the table."""
    if not HEADER.size <= len(message) <= MAX_CONTROL_BYTES:
        return None
    number, length = HEADER.unpack_from(message)
    row = _BY_NUMBER.get(number)
    if row is None or not HEADER.size + row.body.size <= length <= len(message):
        return None
    words: list[Any] = list(row.body.unpack_from(message, HEADER.size))
    if row.info_at is not None:
        info = b""
        info_length, info_offset = words[row.info_at : row.info_at + 2]
        if info_length:
            start = HEADER.size + info_offset
            if info_offset < row.body.size or start + info_length > length:
                return None
            info = bytes(message[start : start + info_length])
        del words[row.info_at : row.info_at + 2]
        words.append(info)
    fields: Message = row.fields(*words)
    return fields


# -- the data path --------------------------------------------------------------------------------------

PACKET: Final = 1
#: type, length, data offset, data length, out-of-band offset, length, count, per-packet-info offset, length,
#: virtual circuit, reserved: 44 bytes.
PACKET_HEADER: Final = struct.Struct("<11I")
PACKET_HEADER_BYTES: Final = PACKET_HEADER.size
_PACKET_BODY: Final = PACKET_HEADER_BYTES - HEADER.size
_INFO: Final = struct.Struct("<III")


def pack_frame(frame: Buffer) -> bytes:
    """A PACKET message with ``frame`` in it and no per-packet information: 44 bytes and the frame."""
    length = len(frame)
    header = PACKET_HEADER.pack(PACKET, PACKET_HEADER_BYTES + length, _PACKET_BODY, length, 0, 0, 0, 0, 0, 0, 0)
    return b"".join((header, frame))


def frames(message: Buffer) -> list[memoryview] | None:
    """The frames of one to :data:`MAX_PACKETS` concatenated PACKET messages, as views; ``None`` if any of them
    is wrong (invariant 20). A frame may be empty here: its size is the port's business."""
    view = memoryview(message)
    found: list[memoryview] = []
    start, end = 0, len(view)
    while start < end:
        if end - start < PACKET_HEADER_BYTES or len(found) == MAX_PACKETS:
            return None
        (number, length, data_offset, data_length, oob_offset, oob_length, oob_count,
         info_offset, info_length, _, _) = PACKET_HEADER.unpack_from(view, start)
        if number != PACKET or not PACKET_HEADER_BYTES <= length <= end - start:
            return None
        body = length - HEADER.size
        if data_offset < _PACKET_BODY or data_offset + data_length > body or oob_offset or oob_length or oob_count:
            return None
        if info_length and not _infos_fit(view, start + HEADER.size, info_offset, info_length, data_offset):
            return None
        first = start + HEADER.size + data_offset
        found.append(view[first : first + data_length])
        start += length
    return found or None


def _infos_fit(view: memoryview, body: int, offset: int, length: int, limit: int) -> bool:
    """Whether the per-packet information lies between the fixed part and the data and is whole entries."""
    end = offset + length
    if offset < _PACKET_BODY or end > limit:
        return False
    while offset < end:
        if end - offset < _INFO.size:
            return False
        size, _, data_offset = _INFO.unpack_from(view, body + offset)
        if size < _INFO.size or size > end - offset or not _INFO.size <= data_offset <= size:
            return False
        offset += size
    return True
