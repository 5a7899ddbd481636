"""The VMBus provider's end of one child's connection: events in, effects out, no I/O.

One :class:`Connection` per child partition, owned by the VMBus provider. Each method takes one event (a
message from the child, a request of the host, a VSP's answer) and returns the effects it has, in order; see
:mod:`vmbus_emu.vmbus.effects`. What may happen when, stands in :mod:`vmbus_emu.vmbus.channel_states`.

The owner relies on: no method raises, whatever the child or a VSP says; a device that was asked something and
does not answer holds up only a new connection, until the owner revokes its channel; memory is bounded by
:class:`~vmbus_emu.vmbus.effects.Limits`. The owner bounds its own queue of messages towards a child that
does not take them.

A relid is given when the host offers, is the lowest free one from 1, and is kept as long as the host offers
the channel, over new connections of the guest too. It is free again (:class:`~vmbus_emu.vmbus.effects.Freed`)
once the channel is revoked *and* the guest has let go of it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import assert_never

from vmbus_emu.protocol.vmbus import (
    MESSAGE_CONNECTION_ID,
    NEGOTIABLE,
    NEWEST,
    USER_DATA_BYTES,
    AllOffersDelivered,
    CloseChannel,
    GpadlBody,
    GpadlHeader,
    GpadlTeardown,
    GuestMessage,
    InitiateContact,
    Malformed,
    OpenChannel,
    RelidReleased,
    RequestOffers,
    Unload,
    UnloadResponse,
    Unsupported,
    Version,
    VersionResponse,
    decode_from_guest,
)
from vmbus_emu.vmbus.channel_book import ChannelBook
from vmbus_emu.vmbus.channel_states import LISTENS, ChannelEvent, ChannelState, ConnectionState, NextAction
from vmbus_emu.vmbus.effects import (
    Contacted,
    Disconnected,
    Effect,
    Limits,
    Offer,
    Refused,
    Send,
    Unloaded,
    VersionRefused,
)
from vmbus_emu.vmbus.gpadl_book import GpadlBook, refuse_gpadl

_DEFAULT_LIMITS = Limits()
_NO_CONTACT = InitiateContact(0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class ConnectionStats:
    """Counters since the object was made; ``version``, ``state``, ``channels``, ``gpadls`` are as of now."""

    state: str
    version: int
    connections: int
    channels: int
    gpadls: int
    received: int
    sent: int
    refused: int
    ignored: int
    late_answers: int


class Connection:
    """One child's VMBus. ``offer``, ``revoke``, ``reoffer`` are the host's; ``device_*``, ``gpadl_*`` the VSPs'."""

    def __init__(
        self,
        *,
        max_version: int = NEWEST,
        message_connection_id: int = MESSAGE_CONNECTION_ID,
        require_ring_gpadl: bool = False,
        limits: Limits = _DEFAULT_LIMITS,
        first_ticket: int = 1,
    ) -> None:
        """``require_ring_gpadl``: opening needs an accepted GPADL of that channel that can hold its rings.

        ``first_ticket``: a provider that may get answers meant for an earlier object starts higher.
        """
        self._max_version = max_version
        self._message_connection_id = message_connection_id
        self._channels = ChannelBook(limits, itertools.count(max(first_ticket, 1)), require_ring_gpadl)
        self._gpadls = self._channels.gpadls
        self._state = ConnectionState.DISCONNECTED
        self._next = NextAction.NOTHING
        self._contact = _NO_CONTACT
        self._version = 0
        self._connections = self._received = self._sent = self._refused = 0

    @property
    def state(self) -> ConnectionState:
        return self._state

    @property
    def version(self) -> int:
        """The agreed version; 0 without a connection."""
        return self._version

    @property
    def relids(self) -> tuple[int, ...]:
        """Every channel that exists here, known to the guest or not."""
        return self._channels.relids

    @property
    def has_room(self) -> bool:
        """Whether there is room for one more channel."""
        return self._channels.has_room

    def channel_state(self, relid: int) -> ChannelState | None:
        """``None``: there is no such channel (any more)."""
        return self._channels.state(relid)

    @property
    def gpadls(self) -> GpadlBook:
        """For looking at, not for changing."""
        return self._gpadls

    def stats(self) -> ConnectionStats:
        return ConnectionStats(
            state=self._state.value,
            version=self._version,
            connections=self._connections,
            channels=len(self._channels.relids),
            gpadls=len(self._gpadls),
            received=self._received,
            sent=self._sent,
            refused=self._refused,
            ignored=self._channels.ignored,
            late_answers=self._channels.late_answers + self._gpadls.late_answers,
        )

    # -- from the guest ---------------------------------------------------------------------------

    def receive(self, payload: bytes) -> list[Effect]:
        """A control message that the child posted, as it came. Any bytes."""
        self._received += 1
        message = decode_from_guest(payload, self._version or NEWEST)
        if isinstance(message, Malformed):
            return self._finish([Refused(message.reason)])
        if isinstance(message, Unsupported):
            connected = self._state in (ConnectionState.CONNECTED, ConnectionState.OFFERED)
            answer: list[Effect] = [Send(message.answer)] if message.answer and connected else []
            return self._finish([*answer, Refused(f"{message.name} is not served")])
        if type(message) not in LISTENS[self._state]:
            return self._finish([Refused(f"{type(message).__name__} while {self._state.value}")])
        return self._finish(self._handle(message))

    def _handle(self, message: GuestMessage) -> list[Effect]:
        match message:
            case InitiateContact():
                self._contact = message
                spoken = message.version in NEGOTIABLE and message.version <= self._max_version
                return self._reset(NextAction.RECONNECT if spoken else NextAction.SEND_FAILED_VERSION)
            case Unload():
                return self._reset(NextAction.SEND_UNLOAD_COMPLETE)
            case RequestOffers():
                self._state = ConnectionState.OFFERED
                return [*self._channels.offer_all(), Send(AllOffersDelivered().encode())]
            case OpenChannel():
                return self._channels.from_guest(message.relid, ChannelEvent.OPEN, message)
            case CloseChannel():
                return self._channels.from_guest(message.relid, ChannelEvent.CLOSE)
            case RelidReleased():
                return self._channels.from_guest(message.relid, ChannelEvent.RELEASED)
            case GpadlHeader():
                if not self._channels.guest_knows(message.relid):
                    return refuse_gpadl(message.relid, message.gpadl, "the channel is unknown")
                return self._gpadls.header(message)
            case GpadlBody():
                return self._gpadls.body(message)
            case GpadlTeardown():
                if not self._channels.guest_knows(message.relid):
                    return [Refused(f"GPADL_TEARDOWN for unknown relid {message.relid}")]
                return self._gpadls.teardown(message)
            case _:
                assert_never(message)

    # -- ending a connection, beginning the next --------------------------------------------------

    def disconnect(self) -> list[Effect]:
        """The host ends the connection without a word to the guest (it is gone). ``Disconnected`` follows."""
        return self._finish(self._reset(NextAction.NOTHING))

    def _reset(self, next_action: NextAction) -> list[Effect]:
        self._state = ConnectionState.DISCONNECTING
        self._next = next_action
        self._version = 0
        return self._channels.reset()

    def _go_on(self) -> list[Effect]:
        """The devices have let go of the old connection: do what was to follow."""
        self._state = ConnectionState.DISCONNECTED
        contact = self._contact
        match self._next:
            case NextAction.NOTHING:
                return [Disconnected()]
            case NextAction.SEND_UNLOAD_COMPLETE:
                return [Send(UnloadResponse().encode()), Unloaded()]
            case NextAction.SEND_FAILED_VERSION:
                return [Send(VersionResponse(0, 0, 0).encode()), VersionRefused(contact.version)]
            case NextAction.RECONNECT:
                self._state = ConnectionState.CONNECTED
                version = self._version = contact.version
                self._connections += 1
                selected = self._message_connection_id if version >= Version.V5_0 else version
                no_features = bytes(4) if version >= Version.V6_0 else b""
                return [
                    Send(VersionResponse(1, 0, selected, no_features).encode()),
                    Contacted(version, contact.target_vp, contact.sint, contact.vtl),
                ]
            case _:
                assert_never(self._next)

    # -- from the host ----------------------------------------------------------------------------

    def offer(self, offer: Offer) -> tuple[int, list[Effect]]:
        """Add a channel. The guest hears of it when it asks for offers, or at once if it has asked already.

        Returns its relid, or 0 (and a :class:`~vmbus_emu.vmbus.effects.Refused`) if there is no room, or the
        same interface, instance and sub-channel index are offered already.
        """
        relid = self._channels.add(offer)
        if isinstance(relid, str):
            return 0, self._finish([Refused(relid)])
        offered = self._state is ConnectionState.OFFERED
        return relid, self._finish(self._channels.from_host(relid, ChannelEvent.OFFER) if offered else [])

    def revoke(self, relid: int) -> list[Effect]:
        """The channel's device is gone, or has stopped by itself: nothing more is asked of it."""
        return self._finish(self._channels.from_host(relid, ChannelEvent.REVOKE))

    def reoffer(self, relid: int, user_data: bytes) -> list[Effect]:
        """The device of a revoked channel is back, with new ``user_data`` (<= 120 bytes).

        The guest hears of it as soon as it has let go of the old one; the relid stays. Only for a channel that
        is still there; for one that was freed (:class:`~vmbus_emu.vmbus.effects.Freed`), use :meth:`offer`.
        """
        if len(user_data) > USER_DATA_BYTES:
            return self._finish([Refused(f"user data of {len(user_data)} bytes")])
        return self._finish(self._channels.reoffer(relid, user_data))

    # -- from the devices -------------------------------------------------------------------------

    def device_opened(self, relid: int, ticket: int, ok: bool) -> list[Effect]:
        """The VSP's answer to :class:`~vmbus_emu.vmbus.effects.OpenDevice`."""
        event = ChannelEvent.DEVICE_OPENED if ok else ChannelEvent.DEVICE_OPEN_FAILED
        return self._finish(self._channels.answered(relid, ticket, event))

    def device_closed(self, relid: int, ticket: int) -> list[Effect]:
        """The VSP's answer to :class:`~vmbus_emu.vmbus.effects.CloseDevice`."""
        return self._finish(self._channels.answered(relid, ticket, ChannelEvent.DEVICE_CLOSED))

    def gpadl_accepted(self, relid: int, gpadl: int, ticket: int, ok: bool) -> list[Effect]:
        """The VSP's answer to :class:`~vmbus_emu.vmbus.effects.AcceptGpadl`."""
        return self._finish(self._gpadls.accepted(relid, gpadl, ticket, ok))

    def gpadl_torn_down(self, relid: int, gpadl: int, ticket: int) -> list[Effect]:
        """The VSP's answer to :class:`~vmbus_emu.vmbus.effects.TearDownGpadl`."""
        return self._finish(self._gpadls.torn_down(relid, gpadl, ticket))

    def _finish(self, effects: list[Effect]) -> list[Effect]:
        """The end of every event: go on if this was what the next connection waited for; count."""
        if self._state is ConnectionState.DISCONNECTING and self._channels.drained:
            effects += self._go_on()
        for effect in effects:
            if type(effect) is Send:
                self._sent += 1
            elif type(effect) is Refused:
                self._refused += 1
        return effects
