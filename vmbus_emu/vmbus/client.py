"""The child's end of VMBus: calls and messages in, effects out, no I/O.

One :class:`ClientConnection` per child, owned by the child's bus driver, which posts what it is told to
(:class:`~vmbus_emu.vmbus.client_effects.Post`) and passes everything else on to the VSCs. A guest relies on:

* It never waits for ever. Every open and every GPADL operation ends in exactly one ``OpenResult``,
  ``GpadlCreated`` or ``GpadlTornDown``: the host's answer, or a failure when the channel is rescinded or
  released, the connection ends, or the parent is a new incarnation (:meth:`ClientConnection.reset`). Waiters
  hear of it before ``Rescinded``.
* The host may send anything: ``Bad`` says what was wrong, and nothing has changed. Answers to what has been
  given up meanwhile are normal, and only counted (``late``).
* A call about a channel that is gone is answered as failed, since the guest may not know yet. A call that
  breaks the guest's own order (opening twice, releasing while opening) is a bug and raises ``ValueError``.

Sequence and checks: protocol sheet 2.3, 2.5, 2.6. A little long for its public docstrings; the channels' part is in
:mod:`vmbus_emu.vmbus.client_channels` already.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from vmbus_emu.protocol.vmbus import (
    CONTACT_CONNECTION_ID,
    MAX_RELID,
    MESSAGE_CONNECTION_ID,
    NEGOTIABLE,
    USER_DATA_BYTES,
    AllOffersDelivered,
    GpadlCreated,
    GpadlTornDown,
    HostMessage,
    InitiateContact,
    Malformed,
    Message,
    OfferChannel,
    OpenChannel,
    OpenChannelResult,
    RequestOffers,
    RescindChannelOffer,
    Unload,
    UnloadResponse,
    Unsupported,
    Version,
    VersionResponse,
    contact_target,
    decode_from_host,
    version_text,
)
from vmbus_emu.vmbus import client_effects as effect
from vmbus_emu.vmbus.client_channels import ClientChannels, ClientChannelState, ClientGpadlState
from vmbus_emu.vmbus.client_effects import Bad, ClientEffect, Post
from vmbus_emu.vmbus.gpadl import Range


class ClientState(enum.Enum):
    IDLE = "idle"                #: nothing is agreed; only contact() leads on
    CONTACTING = "contacting"    #: a version was proposed
    CONNECTED = "connected"
    UNLOADING = "unloading"      #: the goodbye was posted


#: The messages that each state expects. Others are bad in CONNECTED, and elsewhere an old connection's: late.
EXPECTS: dict[ClientState, frozenset[type[Message]]] = {
    ClientState.IDLE: frozenset(),
    ClientState.CONTACTING: frozenset((VersionResponse,)),
    ClientState.CONNECTED: frozenset((
        OfferChannel, RescindChannelOffer, AllOffersDelivered, OpenChannelResult, GpadlCreated, GpadlTornDown,
    )),
    ClientState.UNLOADING: frozenset((UnloadResponse,)),
}


@dataclass(frozen=True, slots=True)
class ClientStats:
    """Counters since the object was made; ``state``, ``version``, ``channels`` and ``gpadls`` are as of now."""

    state: str
    version: int
    connections: int
    channels: int
    gpadls: int
    received: int
    posted: int
    bad: int
    late: int


class ClientConnection:
    """A child's VMBus."""

    def __init__(
        self,
        versions: Sequence[int] = NEGOTIABLE,
        *,
        max_channels: int = MAX_RELID,
        target_vp: int = 0,
        sint: int = 2,
    ) -> None:
        """``versions``: what to propose, first to last. ``target_vp``, ``sint``: where messages shall arrive."""
        if not versions:
            raise ValueError("a guest must propose at least one version")
        self._versions = tuple(versions)
        self._target_vp = target_vp
        self._sint = sint
        self._channels = ClientChannels(max_channels)
        # A response does not say what it answers. One too many belongs to a contact that was given up.
        self._unanswered = 0
        self._connections = self._received = self._posted = self._bad = self._late = 0
        self._forget(ClientState.IDLE)

    def _forget(self, state: ClientState) -> None:
        self._state = state
        self._attempt = 0
        self._version = 0
        self._offers_requested = False
        self._offers_delivered = False

    @property
    def state(self) -> ClientState:
        return self._state

    @property
    def version(self) -> int:
        """The agreed version; 0 without a connection."""
        return self._version

    @property
    def offers(self) -> tuple[OfferChannel, ...]:
        """Every channel whose device is there, by relid."""
        return self._channels.offers

    def channel_state(self, relid: int) -> ClientChannelState | None:
        """``None``: this guest knows no such channel."""
        return self._channels.state(relid)

    def gpadl_state(self, gpadl: int) -> ClientGpadlState | None:
        """``None``: this guest has no such GPADL."""
        return self._channels.gpadl_state(gpadl)

    def stats(self) -> ClientStats:
        return ClientStats(
            state=self._state.value,
            version=self._version,
            connections=self._connections,
            channels=len(self._channels),
            gpadls=self._channels.gpadl_count,
            received=self._received,
            posted=self._posted,
            bad=self._bad,
            late=self._late + self._channels.late,
        )

    # -- the connection ---------------------------------------------------------------------------

    def contact(self) -> list[ClientEffect]:
        """Begin, with the first version. A connection there may have been is given up as by :meth:`reset`."""
        effects = self.reset()
        self._state = ClientState.CONTACTING
        return effects + self._count([self._propose()])

    def contact_undeliverable(self) -> list[ClientEffect]:
        """The hypercall refused the proposal for an invalid connection id: a host older than that version."""
        if self._state is not ClientState.CONTACTING:
            return []
        self._unanswered -= 1
        return self._count(self._next_version())

    def _propose(self) -> Post:
        version = self._versions[self._attempt]
        recent = version >= Version.V5_0
        self._unanswered += 1
        message = InitiateContact(version, self._target_vp, contact_target(self._sint) if recent else 0, 0, 0)
        return Post(CONTACT_CONNECTION_ID if recent else MESSAGE_CONNECTION_ID, message.encode())

    def _next_version(self) -> list[ClientEffect]:
        self._attempt += 1
        if self._attempt < len(self._versions):
            return [self._propose()]
        self._forget(ClientState.IDLE)
        return [effect.ConnectFailed("the host speaks none of the proposed versions")]

    def request_offers(self) -> list[ClientEffect]:
        """Ask for every channel, once per connection. Nothing happens without a connection, or a second time."""
        if self._state is not ClientState.CONNECTED or self._offers_requested:
            return []
        self._offers_requested = True
        return self._count(self._channels.post(RequestOffers()))

    def unload(self) -> list[ClientEffect]:
        """Say goodbye: waiters fail, channels are forgotten; ``Unloaded`` follows (at once without a connection)."""
        if self._state is ClientState.UNLOADING:
            return []
        effects: list[ClientEffect] = []
        if self._state is ClientState.CONTACTING:
            effects.append(effect.ConnectFailed("unloaded"))
        farewell: list[ClientEffect] = [effect.Unloaded()]
        after = ClientState.IDLE
        if self._state is ClientState.CONNECTED:
            farewell = self._channels.post(Unload())
            after = ClientState.UNLOADING
        effects += self._channels.abandon_all(rescind=False)
        self._forget(after)
        return self._count(effects + farewell)

    def reset(self) -> list[ClientEffect]:
        """The parent is a new incarnation: every waiter fails, every channel is rescinded, all is forgotten."""
        effects = self._channels.abandon_all(rescind=True)
        if self._state is ClientState.CONTACTING:
            effects.append(effect.ConnectFailed("given up for a new start"))
        elif self._state is ClientState.UNLOADING:
            effects.append(effect.Unloaded())
        self._forget(ClientState.IDLE)
        return effects

    # -- channels and memory ----------------------------------------------------------------------

    def open(
        self,
        relid: int,
        ring_gpadl: int = 0,
        target_vp: int = 0,
        user_data: bytes = b"",
        *,
        downstream_page_offset: int = 0,
        open_id: int | None = None,
    ) -> list[ClientEffect]:
        """Start the channel's device; ``OpenResult`` follows. ``user_data`` has at most 120 bytes.

        ``downstream_page_offset``: the page of the GPADL where the ring towards the guest begins (sheet 3.1).
        ``open_id`` comes back in the result, and tells one open of a channel from the next; Linux uses the relid.
        """
        if len(user_data) > USER_DATA_BYTES:
            raise ValueError(f"user data of {len(user_data)} bytes, an open has room for {USER_DATA_BYTES}")
        number = relid if open_id is None else open_id
        request = OpenChannel(relid, number, ring_gpadl, target_vp, downstream_page_offset, user_data)
        return self._count(self._channels.open(request))

    def close(self, relid: int) -> list[ClientEffect]:
        """Stop the device of an open channel. There is no answer; it may be opened again at once."""
        return self._count(self._channels.close(relid))

    def create_gpadl(self, relid: int, ranges: Sequence[Range]) -> tuple[int, list[ClientEffect]]:
        """Describe memory to the channel's device: the GPADL's id; ``GpadlCreated`` follows.

        ``ValueError`` if the ranges cannot be described (:func:`~vmbus_emu.vmbus.gpadl.encode_gpadl`).
        """
        gpadl, effects = self._channels.create_gpadl(relid, ranges)
        return gpadl, self._count(effects)

    def teardown_gpadl(self, gpadl: int) -> list[ClientEffect]:
        """Take memory back; ``GpadlTornDown`` follows, at once if the device is gone."""
        return self._count(self._channels.teardown_gpadl(gpadl))

    def release(self, relid: int) -> list[ClientEffect]:
        """Forget the channel, so that its relid may be used again: after ``Rescinded``, or when it is not wanted.

        An open one is closed first. Its GPADLs go with it; waiters fail.
        """
        return self._count(self._channels.release(relid))

    # -- from the host ----------------------------------------------------------------------------

    def receive(self, payload: bytes) -> list[ClientEffect]:
        """A control message from the parent, as it came. Any bytes."""
        self._received += 1
        message = decode_from_host(payload, self._version or self._versions[self._attempt])
        if isinstance(message, Malformed):
            return self._count([Bad(message.reason)])
        if isinstance(message, Unsupported):
            return self._count([Bad(f"{message.name}, which was never asked for")])
        if type(message) in EXPECTS[self._state]:
            return self._count(self._handle(message))
        given_up = isinstance(message, VersionResponse) and self._unanswered > 0
        if given_up:
            self._unanswered -= 1
        elif self._state is ClientState.CONNECTED:
            return self._count([Bad(f"{type(message).__name__} while connected")])
        self._late += 1
        return []

    def _handle(self, message: HostMessage) -> list[ClientEffect]:
        match message:
            case VersionResponse():
                return self._version_response(message)
            case OfferChannel():
                return self._channels.offer_arrived(message)
            case RescindChannelOffer():
                return self._channels.rescinded(message)
            case AllOffersDelivered():
                if not self._offers_requested or self._offers_delivered:
                    return [Bad("ALLOFFERS_DELIVERED without a request")]
                self._offers_delivered = True
                return [effect.AllOffersDelivered()]
            case OpenChannelResult():
                return self._channels.open_result(message)
            case GpadlCreated():
                return self._channels.gpadl_created(message)
            case GpadlTornDown():
                return self._channels.gpadl_torn_down(message)
            case UnloadResponse():
                self._forget(ClientState.IDLE)
                return [effect.Unloaded()]
            case _:
                assert_never(message)

    def _version_response(self, message: VersionResponse) -> list[ClientEffect]:
        self._unanswered -= 1
        if not message.version_supported:
            return self._next_version()
        version = self._versions[self._attempt]
        fault = None
        if message.connection_state:
            fault = f"the host cannot connect (state {message.connection_state})"
        elif version < Version.V5_0 and message.selected != version:
            fault = f"the host selected {version_text(message.selected)} when asked for {version_text(version)}"
        if fault is not None:
            self._forget(ClientState.IDLE)
            return [effect.ConnectFailed(fault)]
        self._state = ClientState.CONNECTED
        self._version = version
        self._connections += 1
        if version >= Version.V5_0:
            self._channels.connection_id = message.selected
        return [effect.Connected(version)]

    def _count(self, effects: list[ClientEffect]) -> list[ClientEffect]:
        for item in effects:
            if type(item) is Post:
                self._posted += 1
            elif type(item) is Bad:
                self._bad += 1
        return effects
