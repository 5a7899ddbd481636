"""What the client's state machine tells its owner (the child's bus driver), in order. Frozen values only."""

from __future__ import annotations

from dataclasses import dataclass

from vmbus_emu.protocol.vmbus import OfferChannel


@dataclass(frozen=True, slots=True)
class Post:
    """Post ``payload`` as a message of type 1 to ``connection_id``; wait for a free buffer, never drop."""

    connection_id: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Connected:
    version: int


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """There is no connection; ``contact`` may be tried again."""

    reason: str


@dataclass(frozen=True, slots=True)
class OfferArrived:
    offer: OfferChannel


@dataclass(frozen=True, slots=True)
class AllOffersDelivered:
    """Every channel there was at the request has arrived. More may come later."""


@dataclass(frozen=True, slots=True)
class OpenResult:
    """``status`` 0: the device runs."""

    relid: int
    status: int


@dataclass(frozen=True, slots=True)
class GpadlCreated:
    """``status`` 0: the device can use the memory. Otherwise there is no such GPADL."""

    relid: int
    gpadl: int
    status: int


@dataclass(frozen=True, slots=True)
class GpadlTornDown:
    """The memory is the guest's alone again."""

    gpadl: int


@dataclass(frozen=True, slots=True)
class Rescinded:
    """The channel's device is gone. Its waiters have been told; release the channel when done with it."""

    relid: int


@dataclass(frozen=True, slots=True)
class Unloaded:
    """The connection has ended as asked."""


@dataclass(frozen=True, slots=True)
class Bad:
    """The host broke the protocol; the message was dropped. For the log; the statistics count it."""

    reason: str


ClientEffect = (
    Post | Connected | ConnectFailed | OfferArrived | AllOffersDelivered | OpenResult | GpadlCreated | GpadlTornDown
    | Rescinded | Unloaded | Bad
)
