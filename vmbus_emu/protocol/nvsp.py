"""NVSP, the protocol between netvsc and netvsp: which numbers and fields its messages have (protocol sheet 4.1, 4.2).

Pure data. Both ends use it; it knows no state and does no I/O. A message is a named tuple of its fields;
:data:`MESSAGES` says which number and layout belong to it. :func:`decode` is total: whatever bytes a peer
sends give a message or ``None``.

Every message but the short completion of a data packet is sent as 40 bytes, on every version, as Linux does.
A receiver uses only the bytes that the type needs.

The per-packet messages (107, 108) have ready-made bytes here, so that a frame costs one ``pack``.
"""

from __future__ import annotations

import enum
import struct
from typing import Any, Final, NamedTuple

from vmbus_emu.protocol import rndis

Buffer = bytes | bytearray | memoryview

MESSAGE_BYTES: Final = 40

#: Newest first: the order in which a guest tries them. Version 1 differs in INIT_COMPLETE and is not spoken.
VERSIONS: Final = (0x60001, 0x60000, 0x50000, 0x40000, 0x30002)
#: What INIT_COMPLETE says where version 1 said the version it chose.
NO_VERSION: Final = 0xFFFFFFFF
MAX_MDL_CHAIN: Final = 34

RECEIVE_BUFFER_ID: Final = 0xCAFE
SEND_BUFFER_ID: Final = 0
SECTION_BYTES: Final = 6144
#: ``section_index`` of a SEND_RNDIS_PKT whose bytes are not in the send buffer.
NO_SECTION: Final = 0xFFFFFFFF
#: The largest receive buffer a guest may lend (protocol sheet 4.2).
MAX_RECEIVE_BUFFER: Final = 31 << 20
#: Frame bytes (header included) that SEND_NDIS_CONFIG may ask for.
MIN_CONFIG_MTU, MAX_CONFIG_MTU = 1514, 9216

DATA_CHANNEL: Final = 0
CONTROL_CHANNEL: Final = 1

SUBCHANNEL_ALLOCATE: Final = 1


class Status(enum.IntEnum):
    """Outcome in every NVSP completion."""

    NONE = 0
    SUCCESS = 1
    FAIL = 2
    TOO_NEW = 3
    TOO_OLD = 4
    INVALID_RNDIS = 5
    BUSY = 6
    UNSUPPORTED = 7


class Init(NamedTuple):
    minimum: int
    maximum: int


class InitComplete(NamedTuple):
    negotiated: int
    max_mdl_chain: int
    status: int


class NdisVersion(NamedTuple):
    major: int
    minor: int


class SendReceiveBuffer(NamedTuple):
    gpadl: int
    buffer_id: int


class ReceiveBufferComplete(NamedTuple):
    """One section: ``suballocations`` of ``suballocation_bytes`` each, from ``offset`` on, ending before ``end``."""

    status: int
    sections: int = 0
    offset: int = 0
    suballocation_bytes: int = 0
    suballocations: int = 0
    end: int = 0


class RevokeReceiveBuffer(NamedTuple):
    buffer_id: int


class SendSendBuffer(NamedTuple):
    gpadl: int
    buffer_id: int


class SendBufferComplete(NamedTuple):
    status: int
    section_bytes: int = 0


class RevokeSendBuffer(NamedTuple):
    buffer_id: int


class RndisPacket(NamedTuple):
    channel_type: int
    section_index: int
    section_bytes: int


class RndisPacketComplete(NamedTuple):
    status: int


class NdisConfig(NamedTuple):
    """``mtu`` includes the Ethernet header (1514 for an IP MTU of 1500)."""

    mtu: int
    reserved: int
    capabilities: int


class VfAssociation(NamedTuple):
    allocated: int
    serial: int


class SwitchDataPath(NamedTuple):
    active: int


class Subchannel(NamedTuple):
    """Request: (operation, wanted). Reply, same number: (status, granted)."""

    operation: int
    channels: int


class IndirectionTable(NamedTuple):
    entries: int
    table_offset: int


class Seldom(NamedTuple):
    """A type that exists but is not spoken here (OID_QUERY_EX, PD_API, PD_POST_BATCH)."""

    number: int


Message = (
    Init | InitComplete | NdisVersion | SendReceiveBuffer | ReceiveBufferComplete | RevokeReceiveBuffer
    | SendSendBuffer | SendBufferComplete | RevokeSendBuffer | RndisPacket | RndisPacketComplete | NdisConfig
    | VfAssociation | SwitchDataPath | Subchannel | IndirectionTable | Seldom
)


class Layout(NamedTuple):
    """One row of the table: the number at offset 0, the name in the sheet, the fields, their layout from offset 4."""

    number: int
    name: str
    fields: Any
    body: struct.Struct


def _row(number: int, name: str, fields: Any, body: str) -> Layout:
    return Layout(number, name, fields, struct.Struct("<4x" + body))


MESSAGES: Final = (
    _row(1, "INIT", Init, "II"),
    _row(2, "INIT_COMPLETE", InitComplete, "III"),
    _row(100, "SEND_NDIS_VERSION", NdisVersion, "II"),
    _row(101, "SEND_RECV_BUF", SendReceiveBuffer, "IH"),
    _row(102, "SEND_RECV_BUF_COMPLETE", ReceiveBufferComplete, "IIIIII"),
    _row(103, "REVOKE_RECV_BUF", RevokeReceiveBuffer, "H"),
    _row(104, "SEND_SEND_BUF", SendSendBuffer, "IH"),
    _row(105, "SEND_SEND_BUF_COMPLETE", SendBufferComplete, "II"),
    _row(106, "REVOKE_SEND_BUF", RevokeSendBuffer, "H"),
    _row(107, "SEND_RNDIS_PKT", RndisPacket, "III"),
    _row(108, "SEND_RNDIS_PKT_COMPLETE", RndisPacketComplete, "I"),
    _row(125, "SEND_NDIS_CONFIG", NdisConfig, "IIQ"),
    _row(128, "SEND_VF_ASSOCIATION", VfAssociation, "II"),
    _row(129, "SWITCH_DATA_PATH", SwitchDataPath, "I"),
    _row(133, "SUBCHANNEL", Subchannel, "II"),
    _row(134, "SEND_INDIRECTION_TABLE", IndirectionTable, "II"),
)
_SELDOM: Final = frozenset((131, 132, 135, 136))
_BY_NUMBER: Final = {row.number: row for row in MESSAGES}
_BY_FIELDS: Final = {row.fields: row for row in MESSAGES}
_NUMBER: Final = struct.Struct("<I")


def encode(message: Message) -> bytes:
    """The 40 bytes of ``message``. ``message`` must be of the table; fields out of range are a bug and raise."""
    row = _BY_FIELDS[type(message)]
    out = bytearray(MESSAGE_BYTES)
    row.body.pack_into(out, 0, *message)
    _NUMBER.pack_into(out, 0, row.number)
    return bytes(out)


def decode(message: Buffer) -> Message | None:
    """The message in these bytes; ``None`` if they are too short for their type or the type does not exist."""
    if len(message) < 4:
        return None
    number = _NUMBER.unpack_from(message)[0]
    row = _BY_NUMBER.get(number)
    if row is None:
        return Seldom(number) if number in _SELDOM else None
    if len(message) < row.body.size:
        return None
    fields: Message = row.fields(*row.body.unpack_from(message))
    return fields


# -- the per-packet messages ----------------------------------------------------------------------------

RNDIS_PACKET: Final = 107
RNDIS_PACKET_COMPLETE: Final = 108

#: number, channel type, section index, section bytes: what is read of every packet.
PACKET_HEAD: Final = struct.Struct("<IIII")
#: number, status: the short form of SEND_RNDIS_PKT_COMPLETE.
COMPLETE_HEAD: Final = struct.Struct("<II")

#: SEND_RNDIS_PKT of a data (control) message whose bytes are not in the send buffer.
DATA_PACKET: Final = encode(RndisPacket(DATA_CHANNEL, NO_SECTION, 0))
CONTROL_PACKET: Final = encode(RndisPacket(CONTROL_CHANNEL, NO_SECTION, 0))
#: SEND_RNDIS_PKT_COMPLETE by status.
COMPLETE: Final = {status: COMPLETE_HEAD.pack(RNDIS_PACKET_COMPLETE, status) for status in Status}

_IN_SECTION: Final = struct.Struct("<IIII24x")
_HEADER_BYTES: Final = rndis.PACKET_HEADER_BYTES
_HEADER_BODY: Final = rndis.PACKET_HEADER_BYTES - rndis.HEADER.size


def pack_in_section(section: int, nbytes: int) -> bytes:
    """SEND_RNDIS_PKT of a data message of ``nbytes`` that stands in this section of the send buffer."""
    return _IN_SECTION.pack(RNDIS_PACKET, DATA_CHANNEL, section, nbytes)


def place_frame(memory: memoryview, at: int, frame: Buffer) -> int:
    """Write the message of :func:`rndis.pack_frame` into a lent buffer, from byte ``at`` on; its length.

    The frame is copied once. There must be room for it.
    """
    length = len(frame)
    total = _HEADER_BYTES + length
    rndis.PACKET_HEADER.pack_into(memory, at, rndis.PACKET, total, _HEADER_BODY, length, 0, 0, 0, 0, 0, 0, 0)
    memory[at + _HEADER_BYTES : at + total] = frame
    return total


# -- transfer pages (protocol sheet 3.3) ----------------------------------------------------------------
#
# On the ring these fields follow the 16-byte packet descriptor and the payload follows them. Where a
# channel carries no descriptor bytes, the same fields stand in front of the NVSP message, unchanged.

_PAGES_HEAD: Final = struct.Struct("<HBBI")
_RANGE: Final = struct.Struct("<II")
_ONE_RANGE: Final = struct.Struct("<HBBIIIIIII24x")
#: Ranges in one packet, at most (562 with receive-side coalescing).
MAX_RANGES: Final = 562


def pack_one_range(byte_count: int, byte_offset: int, channel_type: int) -> bytes:
    """The transfer-page fields of one range and its SEND_RNDIS_PKT, 56 bytes: what carries one frame to a guest."""
    return _ONE_RANGE.pack(
        RECEIVE_BUFFER_ID, 0, 0, 1, byte_count, byte_offset, RNDIS_PACKET, channel_type, NO_SECTION, 0
    )


def pack_ranges(ranges: list[tuple[int, int]], channel_type: int) -> bytes:
    """Like :func:`pack_one_range` for several ranges ``(byte_count, byte_offset)``."""
    return b"".join((
        _PAGES_HEAD.pack(RECEIVE_BUFFER_ID, 0, 0, len(ranges)),
        *(_RANGE.pack(*one) for one in ranges),
        encode(RndisPacket(channel_type, NO_SECTION, 0)),
    ))


def unpack_ranges(message: Buffer, buffer_bytes: int) -> tuple[int, list[tuple[int, int]]] | None:
    """``(channel type, ranges)`` of a transfer-page message, each range not empty and inside the receive buffer
    of ``buffer_bytes``; ``None`` if anything about it is wrong (invariant 18)."""
    if len(message) < _PAGES_HEAD.size:
        return None
    buffer_id, _, _, count = _PAGES_HEAD.unpack_from(message)
    end = _PAGES_HEAD.size + _RANGE.size * count
    if buffer_id != RECEIVE_BUFFER_ID or not 1 <= count <= MAX_RANGES or len(message) < end + PACKET_HEAD.size:
        return None
    ranges = list(_RANGE.iter_unpack(memoryview(message)[_PAGES_HEAD.size : end]))
    for byte_count, byte_offset in ranges:
        if byte_count == 0 or byte_offset + byte_count > buffer_bytes:
            return None
    number, channel_type, section_index, _ = PACKET_HEAD.unpack_from(message, end)
    if number != RNDIS_PACKET or section_index != NO_SECTION or channel_type > CONTROL_CHANNEL:
        return None
    return channel_type, ranges
