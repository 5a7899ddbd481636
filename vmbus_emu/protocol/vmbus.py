"""VMBus control messages: one table of all 29 types, and the codec that follows from it.

Each message is the payload of one SynIC message of type 1 (host to guest) or of one PostMessage of type 1
(guest to host): at most 240 bytes, little-endian, beginning with an 8-byte header (type u32, zero u32).
The numbers and layouts are those of protocol sheet sections 2.1 to 2.3.

Anyone may call this; it holds no state. A frozen dataclass per supported message has ``encode()``;
:func:`decode_from_guest` and :func:`decode_from_host` turn bytes into one of them, or into a value that says
what is wrong (:class:`Malformed`) or that this is a message we know and do not serve (:class:`Unsupported`,
which also knows the refusal to answer with, if the protocol has one). They never raise, whatever the bytes.

GUIDs are held as their 16 wire bytes; fixed byte fields are padded with zeros. The file is long because the
table and the classes of its rows belong side by side.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, fields
from typing import Any, cast
from uuid import UUID

#: Bytes of the largest control message.
MAX_MESSAGE_BYTES = 240
HEADER_BYTES = 8
USER_DATA_BYTES = 120
#: The SynIC message type that carries VMBus control messages (sheet 1.6).
SYNIC_MESSAGE_TYPE = 1
#: Connections that a guest posts to: INITIATE_CONTACT from 5.0, and everything else unless told otherwise (sheet 1.6).
CONTACT_CONNECTION_ID = 4
MESSAGE_CONNECTION_ID = 1
#: relids are 1..2047; 0 is no channel.
MAX_RELID = 2047
#: OPENCHANNEL's ``target_vp`` for "no interrupts".
NO_INTERRUPTS = 0xFFFFFFFF

STATUS_OK = 0
#: The one failure status we write (sheet 2.2). Any nonzero status is a failure.
STATUS_FAILED = 0x8000FFFF
STATUS_CONNECTION_REFUSED = 0xC0000236


class Version(enum.IntEnum):
    """Protocol versions, ``major << 16 | minor`` (sheet 2.3). What each adds stands beside it."""

    V0_13 = 0x0000000D  #: WS2008: baseline, shared interrupt bitmap
    V1_1 = 0x00010001   #: Win7: a connection id per offer
    V2_4 = 0x00020004   #: Win8: dedicated interrupts both ways, sub-channels, failure codes in VERSION_RESPONSE
    V3_0 = 0x00030000   #: Win8.1: target VP honoured, safe UNLOAD
    V4_0 = 0x00040000   #: Win10: hvsock, reserved channels
    V4_1 = 0x00040001   #: RS3: MODIFYCHANNEL, TL_CONNECT_RESULT
    V5_0 = 0x00050000   #: SINT in the contact, message connection id in the response
    V5_1 = 0x00050001   #: RS4: VTL in the contact
    V5_2 = 0x00050002   #: RS5: silo id
    V5_3 = 0x00050003   #: Iron: MODIFYCHANNEL_RESPONSE
    V6_0 = 0x00060000   #: Copper: feature flags


NEWEST = Version.V6_0
#: What we negotiate, newest first: all from Win8 on. Older ones need the shared interrupt page.
NEGOTIABLE = tuple(sorted((version for version in Version if version >= Version.V2_4), reverse=True))


def version_text(version: int) -> str:
    """``major.minor`` of any 32-bit version number."""
    return f"{version >> 16}.{version & 0xFFFF}"


class Direction(enum.Enum):
    GUEST_TO_HOST = "G"
    HOST_TO_GUEST = "H"


class Message:
    """Base of the message classes: fields in wire order; the layout is the class's row in :data:`MESSAGES`."""

    __slots__ = ()

    def encode(self) -> bytes:
        """The message's bytes, header included. ``struct.error`` if a field does not fit: a bug of the sender."""
        row = _ROW_OF[type(self)]
        values = [getattr(self, name) for name in row.fields]
        tail = values.pop() if row.tail else b""
        return row.layout.pack(row.number, *values) + tail


@dataclass(frozen=True, slots=True)
class OfferChannel(Message):
    """1: here is a channel. ``relid`` names it from now on; ``user_data`` belongs to the device (120 bytes)."""

    interface: bytes
    instance: bytes
    flags: int
    mmio_megabytes: int
    user_data: bytes
    sub_channel_index: int
    mmio_megabytes_optional: int
    relid: int
    monitor_id: int
    monitor_allocated: int
    is_dedicated_interrupt: int
    connection_id: int

    @property
    def interface_guid(self) -> UUID:
        return UUID(bytes_le=self.interface)

    @property
    def instance_guid(self) -> UUID:
        return UUID(bytes_le=self.instance)


#: ``OfferChannel.monitor_id`` of a channel without monitored notification.
NO_MONITOR = 0xFF


@dataclass(frozen=True, slots=True)
class RescindChannelOffer(Message):
    """2: the device behind ``relid`` is gone. The guest cleans up and answers RELID_RELEASED."""

    relid: int


@dataclass(frozen=True, slots=True)
class RequestOffers(Message):
    """3: tell me every channel there is; once per connection."""


@dataclass(frozen=True, slots=True)
class AllOffersDelivered(Message):
    """4: that was every channel there is now."""


@dataclass(frozen=True, slots=True)
class OpenChannel(Message):
    """5: start the device. ``ring_gpadl`` holds both rings; the host's begins at page ``downstream_page_offset``."""

    relid: int
    open_id: int
    ring_gpadl: int
    target_vp: int
    downstream_page_offset: int
    user_data: bytes


@dataclass(frozen=True, slots=True)
class OpenChannelResult(Message):
    """6: the answer to OPENCHANNEL; ``status`` 0 is success."""

    relid: int
    open_id: int
    status: int


@dataclass(frozen=True, slots=True)
class CloseChannel(Message):
    """7: stop the device. There is no answer."""

    relid: int


@dataclass(frozen=True, slots=True)
class GpadlHeader(Message):
    """8: begin to describe guest memory. ``range_bytes`` announces the size of all ranges, bodies included."""

    relid: int
    gpadl: int
    range_bytes: int
    range_count: int
    ranges: bytes


@dataclass(frozen=True, slots=True)
class GpadlBody(Message):
    """9: the continuation of the ranges. It names no channel, so the id must be unique while bodies are missing."""

    number: int
    gpadl: int
    pfns: bytes


@dataclass(frozen=True, slots=True)
class GpadlCreated(Message):
    """10: the answer to a complete GPADL; ``status`` 0 is success."""

    relid: int
    gpadl: int
    status: int


@dataclass(frozen=True, slots=True)
class GpadlTeardown(Message):
    """11: stop using this memory."""

    relid: int
    gpadl: int


@dataclass(frozen=True, slots=True)
class GpadlTornDown(Message):
    """12: the memory is the guest's alone again. It names no channel."""

    gpadl: int


@dataclass(frozen=True, slots=True)
class RelidReleased(Message):
    """13: the guest has forgotten this channel; the id may be used again."""

    relid: int


@dataclass(frozen=True, slots=True)
class InitiateContact(Message):
    """14: begin a connection. ``target`` is the interrupt page below 5.0, and the properties' fields from 5.0 on."""

    version: int
    target_vp: int
    target: int
    monitor_page_1: int
    monitor_page_2: int

    @property
    def sint(self) -> int:
        """The SINT that messages shall arrive at; always 2 below 5.0."""
        return self.target & 0xFF if self.version >= Version.V5_0 else 2

    @property
    def vtl(self) -> int:
        return self.target >> 8 & 0xFF if self.version >= Version.V5_1 else 0

    @property
    def feature_flags(self) -> int:
        return self.target >> 32 if self.version >= Version.V6_0 else 0


def contact_target(sint: int, vtl: int = 0, feature_flags: int = 0) -> int:
    """``InitiateContact.target`` from 5.0 on."""
    return sint | vtl << 8 | feature_flags << 32


@dataclass(frozen=True, slots=True)
class VersionResponse(Message):
    """15: the answer to INITIATE_CONTACT. ``selected``: the message connection id from 5.0, else the version.

    ``tail`` begins with the granted feature flags (u32) from 6.0 on; it is empty below, and in a refusal.
    """

    version_supported: int
    connection_state: int
    selected: int
    tail: bytes = b""

    @property
    def feature_flags(self) -> int:
        return int.from_bytes(self.tail[:4], "little")


@dataclass(frozen=True, slots=True)
class Unload(Message):
    """16: end the connection."""


@dataclass(frozen=True, slots=True)
class UnloadResponse(Message):
    """17: the connection has ended; nothing of it is in use any more."""


GuestMessage = (
    RequestOffers | OpenChannel | CloseChannel | GpadlHeader | GpadlBody | GpadlTeardown | RelidReleased
    | InitiateContact | Unload
)
HostMessage = (
    OfferChannel | RescindChannelOffer | AllOffersDelivered | OpenChannelResult | GpadlCreated | GpadlTornDown
    | VersionResponse | UnloadResponse
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """How to say no to a message we do not serve: type ``number``, the request's first bytes, a status u32."""

    number: int
    since: Version
    copied_bytes: int
    status: int

    def encode(self, request: bytes) -> bytes:
        named = request[HEADER_BYTES:HEADER_BYTES + self.copied_bytes]
        return struct.pack("<I4x", self.number) + named + struct.pack("<I", self.status)


class MessageType:
    """One row of :data:`MESSAGES`. ``size`` is the smallest legal one in bytes; ``message`` is None if unsupported."""

    __slots__ = ("direction", "fields", "layout", "message", "name", "number", "refusal", "since", "size", "tail")

    def __init__(
        self,
        number: int,
        name: str,
        direction: Direction,
        size: int,
        since: Version,
        message: type[Message] | None = None,
        layout: str = "",
        *,
        tail: bool = False,
        refusal: Refusal | None = None,
    ) -> None:
        """``tail``: the message's last field is whatever follows ``layout``."""
        self.number = number
        self.name = name
        self.direction = direction
        self.size = size
        self.since = since
        self.message = message
        self.layout = struct.Struct("<I4x" + layout)
        self.tail = tail
        self.refusal = refusal
        self.fields = tuple(field.name for field in fields(cast(Any, message))) if message is not None else ()

    @property
    def supported(self) -> bool:
        return self.message is not None


_G, _H = Direction.GUEST_TO_HOST, Direction.HOST_TO_GUEST
_ALL = Version.V0_13
# Larger forms exist with feature flags that we never grant: 5 (156 bytes), 14 (56), 15 (40). They are the
# same messages with trailing bytes, which a receiver tolerates. 21 has 56 bytes from 5.2 on.
MESSAGES = (
    MessageType(1, "OFFERCHANNEL", _H, 196, _ALL, OfferChannel, "16s16s16xHH120sHHIBBHI"),
    MessageType(2, "RESCIND_CHANNELOFFER", _H, 12, _ALL, RescindChannelOffer, "I"),
    MessageType(3, "REQUESTOFFERS", _G, 8, _ALL, RequestOffers),
    MessageType(4, "ALLOFFERS_DELIVERED", _H, 8, _ALL, AllOffersDelivered),
    MessageType(5, "OPENCHANNEL", _G, 148, _ALL, OpenChannel, "IIIII120s"),
    MessageType(6, "OPENCHANNEL_RESULT", _H, 20, _ALL, OpenChannelResult, "III"),
    MessageType(7, "CLOSECHANNEL", _G, 12, _ALL, CloseChannel, "I"),
    MessageType(8, "GPADL_HEADER", _G, 20, _ALL, GpadlHeader, "IIHH", tail=True),
    MessageType(9, "GPADL_BODY", _G, 16, _ALL, GpadlBody, "II", tail=True),
    MessageType(10, "GPADL_CREATED", _H, 20, _ALL, GpadlCreated, "III"),
    MessageType(11, "GPADL_TEARDOWN", _G, 16, _ALL, GpadlTeardown, "II"),
    MessageType(12, "GPADL_TORNDOWN", _H, 12, _ALL, GpadlTornDown, "I"),
    MessageType(13, "RELID_RELEASED", _G, 12, _ALL, RelidReleased, "I"),
    MessageType(14, "INITIATE_CONTACT", _G, 40, _ALL, InitiateContact, "IIQQQ"),
    MessageType(15, "VERSION_RESPONSE", _H, 16, _ALL, VersionResponse, "BB2xI", tail=True),
    MessageType(16, "UNLOAD", _G, 8, _ALL, Unload),
    MessageType(17, "UNLOAD_RESPONSE", _H, 8, Version.V1_1, UnloadResponse),
    MessageType(18, "OPEN_RESERVED_CHANNEL", _G, 28, Version.V4_0),
    MessageType(19, "CLOSE_RESERVED_CHANNEL", _G, 20, Version.V4_0),
    MessageType(20, "CLOSE_RESERVED_RESPONSE", _H, 12, Version.V4_0),
    MessageType(21, "TL_CONNECT_REQUEST", _G, 40, Version.V4_0,
                refusal=Refusal(23, Version.V4_1, 32, STATUS_CONNECTION_REFUSED)),
    MessageType(22, "MODIFYCHANNEL", _G, 16, Version.V4_1, refusal=Refusal(24, Version.V5_3, 4, STATUS_FAILED)),
    MessageType(23, "TL_CONNECT_RESULT", _H, 44, Version.V4_1),
    MessageType(24, "MODIFYCHANNEL_RESPONSE", _H, 16, Version.V5_3),
    MessageType(25, "MODIFY_CONNECTION", _G, 24, Version.V6_0),
    MessageType(26, "MODIFY_CONNECTION_RESPONSE", _H, 9, Version.V6_0),
    MessageType(27, "PAUSE", _G, 8, Version.V6_0),
    MessageType(28, "PAUSE_RESPONSE", _H, 8, Version.V6_0),
    MessageType(29, "RESUME", _G, 8, Version.V6_0),
)
_BY_NUMBER = {row.number: row for row in MESSAGES}
_ROW_OF = {row.message: row for row in MESSAGES if row.message is not None}


@dataclass(frozen=True, slots=True)
class Malformed:
    """These bytes are not a message that the sender may send."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A legal message of a kind that we do not serve."""

    name: str
    #: What to answer; empty: the protocol has no answer, or had none yet in this version.
    answer: bytes


def decode_from_guest(payload: bytes, version: int) -> GuestMessage | Unsupported | Malformed:
    """What a guest sent on a connection of ``version``. Trailing bytes are tolerated (sheet 2)."""
    return cast("GuestMessage | Unsupported | Malformed", _decode(payload, Direction.GUEST_TO_HOST, version))


def decode_from_host(payload: bytes, version: int) -> HostMessage | Unsupported | Malformed:
    """What a host sent on a connection of ``version``."""
    return cast("HostMessage | Unsupported | Malformed", _decode(payload, Direction.HOST_TO_GUEST, version))


def _decode(payload: bytes, direction: Direction, version: int) -> Message | Unsupported | Malformed:
    size = len(payload)
    if not HEADER_BYTES <= size <= MAX_MESSAGE_BYTES:
        return Malformed(f"a message of {size} bytes")
    number = int.from_bytes(payload[:4], "little")
    row = _BY_NUMBER.get(number)
    if row is None:
        return Malformed(f"unknown message type {number}")
    if row.direction is not direction:
        return Malformed(f"{row.name} in the wrong direction")
    if size < row.size:
        return Malformed(f"{row.name} of {size} bytes, at least {row.size} needed")
    if version < row.since:
        return Malformed(f"{row.name} exists since {version_text(row.since)}, this is {version_text(version)}")
    if row.message is None:
        refusal = row.refusal
        return Unsupported(row.name, refusal.encode(payload) if refusal and version >= refusal.since else b"")
    values = row.layout.unpack_from(payload)[1:]
    if row.tail:
        values += (bytes(payload[row.layout.size:]),)
    return row.message(*values)
