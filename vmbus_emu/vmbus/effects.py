"""What the server's state machines ask their owner to do, and the settings they take. Frozen values only.

The owner (the VMBus provider) carries effects out in the order of the list. Each request to a device carries
a ``ticket``, a number that is used once; the owner hands it back with the device's answer, and an answer
whose ticket is not the awaited one is recognised as late (protocol sheet 8, item 15).
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from vmbus_emu.protocol.vmbus import USER_DATA_BYTES, OpenChannel
from vmbus_emu.vmbus.gpadl import Ranges


@dataclass(frozen=True, slots=True)
class Offer:
    """A device channel as its VSP describes it. ``ValueError`` if ``user_data`` exceeds 120 bytes.

    ``connection_id`` is the event connection that the guest shall signal; ``flags`` are the offer flags of
    sheet 2.2. ``sub_channel_index`` is 0 for a device's primary channel.
    """

    interface: UUID
    instance: UUID
    user_data: bytes = b""
    flags: int = 0
    connection_id: int = 0
    sub_channel_index: int = 0

    def __post_init__(self) -> None:
        if len(self.user_data) > USER_DATA_BYTES:
            raise ValueError(f"user data of {len(self.user_data)} bytes, an offer has room for {USER_DATA_BYTES}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one guest may make the server keep. One more is refused, never queued."""

    channels: int = 64
    gpadls_per_channel: int = 64
    #: Qwords of ranges over all GPADLs of the connection, unfinished ones included. 65,536 pages are 256 MiB.
    gpadl_qwords: int = 1 << 16


@dataclass(frozen=True, slots=True)
class Send:
    """Post ``payload`` to the child, in order with every earlier one; wait for a free buffer, never drop."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class OpenDevice:
    """Ask the channel's VSP to open; answer with ``device_opened``."""

    relid: int
    ticket: int
    request: OpenChannel


@dataclass(frozen=True, slots=True)
class CloseDevice:
    """Ask the channel's VSP to close; answer with ``device_closed``."""

    relid: int
    ticket: int


@dataclass(frozen=True, slots=True)
class AcceptGpadl:
    """Ask the channel's VSP to map guest memory; answer with ``gpadl_accepted``."""

    relid: int
    gpadl: int
    ticket: int
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class TearDownGpadl:
    """Ask the channel's VSP to let go of guest memory; answer with ``gpadl_torn_down`` once nothing uses it."""

    relid: int
    gpadl: int
    ticket: int


@dataclass(frozen=True, slots=True)
class Freed:
    """The channel no longer exists here; its relid may name another one soon. Use ``offer`` to bring it back."""

    relid: int


@dataclass(frozen=True, slots=True)
class Contacted:
    """A new connection stands. The guest wants messages on ``sint`` of VP ``target_vp``, in ``vtl``."""

    version: int
    target_vp: int
    sint: int
    vtl: int


@dataclass(frozen=True, slots=True)
class VersionRefused:
    """The guest asked for a version that we do not speak, and has been told so."""

    version: int


@dataclass(frozen=True, slots=True)
class Unloaded:
    """The guest has ended the connection; every device has let go."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The host has ended the connection (``disconnect``); every device has let go."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Something was dropped or refused, and nothing changed by it. For the log; the statistics count it."""

    reason: str


Effect = (
    Send | OpenDevice | CloseDevice | AcceptGpadl | TearDownGpadl | Freed | Contacted | VersionRefused | Unloaded
    | Disconnected | Refused
)
