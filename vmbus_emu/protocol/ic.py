"""Integration components: the layouts of their messages and the versions they speak (protocol sheet 6).

Pure data. The host asks, the guest answers, over a channel of each component's own. A message is an in-band packet
without a completion: pipe header (8 bytes), header (20 bytes), body. Decoders are total: whatever bytes a peer sends
give a value or ``None``. Encoders raise for what does not fit its field, which is a bug of the caller. The bodies of
key-value exchange are :mod:`vmbus_emu.protocol.kvp`.

Sizes on which sources disagree (heartbeat 16 or 40 bytes, time sync 4.0 22 or 24): the shorter one is taken, the one
of OpenVMM is sent.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from vmbus_emu.protocol import guids

Buffer = bytes | bytearray | memoryview
#: Major and minor.
Version = tuple[int, int]

#: The longest message of any component, headers included.
MAX_MESSAGE_BYTES: Final = 13312

_PIPE: Final = struct.Struct("<II")
_PIPE_DATA: Final = 1
_HEADER: Final = struct.Struct("<HHHHHHIBBxx")
HEADERS_BYTES: Final = _PIPE.size + _HEADER.size


class Kind(enum.IntEnum):
    """What a message is about; of a component, its own."""

    NEGOTIATE = 0
    HEARTBEAT = 1
    KVP = 2
    SHUTDOWN = 3
    TIME_SYNC = 4
    VSS = 5


class Status(enum.IntEnum):
    """How the other side took a request."""

    OK = 0
    FAIL = 0x80004005
    NOT_SUPPORTED = 0x80070032
    NO_MORE_ITEMS = 0x80070103
    NOT_FOUND = 0x80041002


class Flag(enum.IntFlag):
    TRANSACTION = 1
    REQUEST = 2
    RESPONSE = 4


REQUEST: Final = int(Flag.TRANSACTION | Flag.REQUEST)
RESPONSE: Final = int(Flag.TRANSACTION | Flag.RESPONSE)


class Message(NamedTuple):
    """``transaction`` is one byte; ``status`` is 0 in a request."""

    framework: Version
    kind: int
    version: Version
    status: int
    transaction: int
    flags: int
    body: bytes


def encode(message: Message) -> bytes:
    """The packet's bytes. Raises ``struct.error`` for a field out of range."""
    body = message.body
    header = _HEADER.pack(
        *message.framework, message.kind, *message.version, len(body), message.status, message.transaction,
        message.flags,
    )  # fmt: skip
    return _PIPE.pack(_PIPE_DATA, _HEADER.size + len(body)) + header + body


def decode(packet: Buffer) -> Message | None:
    """The message in a packet, which may be padded behind it; ``None`` if it is not one."""
    if not HEADERS_BYTES <= len(packet) <= MAX_MESSAGE_BYTES:
        return None
    pipe_type, length = _PIPE.unpack_from(packet)
    if pipe_type != _PIPE_DATA or not _HEADER.size <= length <= len(packet) - _PIPE.size:
        return None
    fields = _HEADER.unpack_from(packet, _PIPE.size)
    frame_major, frame_minor, kind, major, minor, size, status, transaction, flags = fields
    if size > length - _HEADER.size:
        return None
    body = bytes(packet[HEADERS_BYTES : HEADERS_BYTES + size])
    return Message((frame_major, frame_minor), kind, (major, minor), status, transaction, flags, body)


# -- negotiation ----------------------------------------------------------------------------------------

_COUNTS: Final = struct.Struct("<HHI")
_VERSION: Final = struct.Struct("<HH")
#: Versions of one sort in a message; Linux looks at no more either.
MAX_VERSIONS: Final = 100


class Offered(NamedTuple):
    """Versions of the framework and of the messages, in the order in which they stand."""

    frameworks: tuple[Version, ...]
    versions: tuple[Version, ...]


def encode_versions(offered: Offered) -> bytes:
    """The body of a negotiation, of the host's offer as of the guest's choice."""
    counts = _COUNTS.pack(len(offered.frameworks), len(offered.versions), 0)
    return counts + b"".join(_VERSION.pack(*one) for one in (*offered.frameworks, *offered.versions))


def decode_versions(body: Buffer) -> Offered | None:
    if len(body) < _COUNTS.size:
        return None
    frames, messages, _ = _COUNTS.unpack_from(body)
    end = _COUNTS.size + _VERSION.size * (frames + messages)
    if frames > MAX_VERSIONS or messages > MAX_VERSIONS or len(body) < end:
        return None
    versions = tuple(_VERSION.iter_unpack(memoryview(body)[_COUNTS.size : end]))
    return Offered(versions[:frames], versions[frames:])


def choose(offered: Iterable[Version], own: Sequence[Version]) -> Version | None:
    """The newest of our ``own`` versions (newest first) that is among those ``offered``."""
    known = set(offered)
    return next((version for version in own if version in known), None)


class Component(NamedTuple):
    """One integration component. ``versions`` of its messages, newest first."""

    name: str
    kind: Kind
    interface: UUID
    versions: tuple[Version, ...]

    @property
    def instance(self) -> UUID:
        return guids.SINGLE_INSTANCES[self.interface]

    def up_to(self, newest: Version | None) -> Offered:
        """What a side speaks whose newest framework is ``newest`` (``None``: no limit), newest first. To one of the
        first generation belong the oldest messages alone."""
        if newest is None:
            return Offered(FRAMEWORKS, self.versions)
        frameworks = tuple(one for one in FRAMEWORKS if one <= newest)
        return Offered(frameworks, self.versions if frameworks == FRAMEWORKS else self.versions[-1:])


#: Newest first. All components share them.
FRAMEWORKS: Final[tuple[Version, ...]] = ((3, 0), (1, 0))

HEARTBEAT: Final = Component("heartbeat", Kind.HEARTBEAT, guids.HEARTBEAT, ((3, 0), (1, 0)))
SHUTDOWN: Final = Component("shutdown", Kind.SHUTDOWN, guids.SHUTDOWN, ((3, 2), (3, 1), (3, 0), (1, 0)))
TIME_SYNC: Final = Component("timesync", Kind.TIME_SYNC, guids.TIME_SYNC, ((4, 0), (3, 0), (1, 0)))
KVP: Final = Component("kvp", Kind.KVP, guids.KVP, ((5, 0), (4, 0), (3, 0)))
VSS: Final = Component("vss", Kind.VSS, guids.VSS, ((7, 0), (6, 0), (5, 0), (4, 0)))

COMPONENTS: Final = {one.name: one for one in (HEARTBEAT, SHUTDOWN, TIME_SYNC, KVP, VSS)}


# -- heartbeat ------------------------------------------------------------------------------------------

_BEAT: Final = struct.Struct("<QI4x")
_SEQUENCE: Final = struct.Struct("<Q")
_STATE: Final = struct.Struct("<I")


class AppState(enum.IntEnum):
    """What a guest says of its applications."""

    UNKNOWN = 0
    HEALTHY = 1
    CRITICAL = 2
    STOPPED = 3


class Beat(NamedTuple):
    sequence: int
    state: int = AppState.UNKNOWN


def encode_beat(beat: Beat) -> bytes:
    return _BEAT.pack(beat.sequence & (1 << 64) - 1, beat.state)


def decode_beat(body: Buffer) -> Beat | None:
    """One of the oldest guests says nothing of its applications."""
    if len(body) < _SEQUENCE.size:
        return None
    (sequence,) = _SEQUENCE.unpack_from(body)
    state = _STATE.unpack_from(body, _SEQUENCE.size)[0] if len(body) >= _SEQUENCE.size + _STATE.size else 0
    return Beat(sequence, state)


# -- time -----------------------------------------------------------------------------------------------

#: 1601-01-01 in units of 100 ns before 1970-01-01.
EPOCH_1601: Final = 116444736000000000
#: The first version whose samples carry the reference time.
TIME_WITH_REFERENCE: Final[Version] = (4, 0)

_TIME_3: Final = struct.Struct("<QQQB")
_TIME_4: Final = struct.Struct("<QQBBB5x")
_TIME_4_LEAST: Final = 19


class TimeFlag(enum.IntFlag):
    SYNC = 1            #: set the clock
    SAMPLE = 2          #: a sample to discipline it by


class Time(NamedTuple):
    """The host's time when the message was made, in units of 100 ns since 1601, and the guest's reference time then,
    in the same units; 0: not known (before 4.0)."""

    parent: int
    reference: int
    flags: int


def to_1601(unix_ns: int) -> int:
    return unix_ns // 100 + EPOCH_1601


def from_1601(units: int) -> int:
    """Nanoseconds since 1970."""
    return (units - EPOCH_1601) * 100


def encode_time(time: Time, version: Version) -> bytes:
    if version >= TIME_WITH_REFERENCE:
        return _TIME_4.pack(time.parent, time.reference, time.flags, 0, 0)
    return _TIME_3.pack(time.parent, 0, 0, time.flags)


def decode_time(body: Buffer, version: Version) -> Time | None:
    if version >= TIME_WITH_REFERENCE:
        if len(body) < _TIME_4_LEAST:
            return None
        padded = bytes(body[: _TIME_4.size]).ljust(_TIME_4.size, b"\0")
        parent, reference, flags, _, _ = _TIME_4.unpack(padded)
        return Time(parent, reference, flags)
    if len(body) < _TIME_3.size:
        return None
    parent, _, _, flags = _TIME_3.unpack_from(body)
    return Time(parent, 0, flags)


# -- shutdown -------------------------------------------------------------------------------------------

_SHUTDOWN: Final = struct.Struct("<III2048s")


class ShutdownFlag(enum.IntFlag):
    FORCE = 1
    RESTART = 2
    HIBERNATE = 4


class Shutdown(NamedTuple):
    """``timeout`` in seconds; ``flags`` of :class:`ShutdownFlag`."""

    reason: int
    timeout: int
    flags: int
    text: str = ""


def encode_shutdown(shutdown: Shutdown) -> bytes:
    """Text that does not fit is cut."""
    text = shutdown.text.encode("utf-16-le", "replace")[:2046]
    return _SHUTDOWN.pack(shutdown.reason, shutdown.timeout, shutdown.flags, text)


def decode_shutdown(body: Buffer) -> Shutdown | None:
    if len(body) < _SHUTDOWN.size:
        return None
    reason, timeout, flags, text = _SHUTDOWN.unpack_from(body)
    return Shutdown(reason, timeout, flags, text.decode("utf-16-le", "replace").partition("\0")[0])


# -- volume shadow copies -------------------------------------------------------------------------------

_VSS: Final = struct.Struct("<B7xI")


class VssOp(enum.IntEnum):
    CREATE = 0
    DELETE = 1
    HOT_BACKUP = 2          #: can you be copied while you run?
    DIRECT_MAPPED = 3
    BACKUP_COMPLETE = 4
    FREEZE = 5
    THAW = 6
    AUTO_RECOVER = 7
    CLUSTER_INFO = 8


class Vss(NamedTuple):
    op: int
    flags: int = 0


def encode_vss(vss: Vss) -> bytes:
    return _VSS.pack(*vss)


def decode_vss(body: Buffer) -> Vss | None:
    return Vss(*_VSS.unpack_from(body)) if len(body) >= _VSS.size else None
