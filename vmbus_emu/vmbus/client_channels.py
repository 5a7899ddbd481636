"""The guest's channels and GPADLs of one connection: what is open, and who waits for what.

Used by :class:`vmbus_emu.vmbus.client.ClientConnection` alone, whose docstring has the rules that the guest
relies on. A channel that was rescinded stays known until it is released; its GPADLs are forgotten at once.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from vmbus_emu.protocol.vmbus import (
    MAX_RELID,
    MESSAGE_CONNECTION_ID,
    STATUS_FAILED,
    STATUS_OK,
    CloseChannel,
    GpadlCreated,
    GpadlTeardown,
    GpadlTornDown,
    Message,
    OfferChannel,
    OpenChannel,
    OpenChannelResult,
    RelidReleased,
    RescindChannelOffer,
)
from vmbus_emu.vmbus import client_effects as effect
from vmbus_emu.vmbus.client_effects import Bad, ClientEffect, Post
from vmbus_emu.vmbus.gpadl import Range, encode_gpadl

#: The first GPADL id. They count up over all connections of a child, so a late answer is recognised by its id.
FIRST_GPADL = 0xE1E10


class ClientChannelState(enum.Enum):
    OFFERED = "offered"      #: known, not in use
    OPENING = "opening"      #: OPENCHANNEL was posted
    OPEN = "open"
    RESCINDED = "rescinded"  #: the device is gone; the guest still has to release


class ClientGpadlState(enum.Enum):
    CREATING = "creating"
    CREATED = "created"
    TEARING_DOWN = "tearing down"


@dataclass(slots=True)
class _Channel:
    offer: OfferChannel
    state: ClientChannelState = ClientChannelState.OFFERED
    open_id: int = 0
    gpadls: dict[int, ClientGpadlState] = field(default_factory=dict)


class ClientChannels:
    """What the guest knows of its channels. ``connection_id`` is where messages are posted to."""

    def __init__(self, max_channels: int) -> None:
        self._max_channels = max_channels
        self._next_gpadl = FIRST_GPADL
        self._channels: dict[int, _Channel] = {}
        self._channel_of: dict[int, _Channel] = {}  # by GPADL: TORNDOWN names no channel
        self._released: set[int] = set()  # a RESCIND may be on its way when the guest releases
        self.connection_id = MESSAGE_CONNECTION_ID
        self.late = 0

    def __len__(self) -> int:
        return len(self._channels)

    @property
    def gpadl_count(self) -> int:
        return len(self._channel_of)

    @property
    def offers(self) -> tuple[OfferChannel, ...]:
        return tuple(
            channel.offer for _, channel in sorted(self._channels.items())
            if channel.state is not ClientChannelState.RESCINDED)

    def state(self, relid: int) -> ClientChannelState | None:
        channel = self._channels.get(relid)
        return channel.state if channel is not None else None

    def gpadl_state(self, gpadl: int) -> ClientGpadlState | None:
        channel = self._channel_of.get(gpadl)
        return channel.gpadls[gpadl] if channel is not None else None

    def post(self, message: Message) -> list[ClientEffect]:
        return [Post(self.connection_id, message.encode())]

    # -- the guest's calls ------------------------------------------------------------------------

    def open(self, request: OpenChannel) -> list[ClientEffect]:
        channel = self._live(request.relid)
        if channel is None:
            return [effect.OpenResult(request.relid, STATUS_FAILED)]
        if channel.state is not ClientChannelState.OFFERED:
            raise ValueError(f"relid {request.relid} is {channel.state.value} already")
        channel.state = ClientChannelState.OPENING
        channel.open_id = request.open_id
        return self.post(request)

    def close(self, relid: int) -> list[ClientEffect]:
        channel = self._live(relid)
        if channel is None or channel.state is not ClientChannelState.OPEN:
            return []
        channel.state = ClientChannelState.OFFERED
        return self.post(CloseChannel(relid))

    def create_gpadl(self, relid: int, ranges: Sequence[Range]) -> tuple[int, list[ClientEffect]]:
        gpadl = self._next_gpadl
        payloads = encode_gpadl(relid, gpadl, ranges)
        self._next_gpadl += 1
        channel = self._live(relid)
        if channel is None:
            return gpadl, [effect.GpadlCreated(relid, gpadl, STATUS_FAILED)]
        channel.gpadls[gpadl] = ClientGpadlState.CREATING
        self._channel_of[gpadl] = channel
        return gpadl, [Post(self.connection_id, payload) for payload in payloads]

    def teardown_gpadl(self, gpadl: int) -> list[ClientEffect]:
        channel = self._channel_of.get(gpadl)
        if channel is None:
            return [effect.GpadlTornDown(gpadl)]
        if channel.gpadls[gpadl] is not ClientGpadlState.CREATED:
            raise ValueError(f"GPADL {gpadl:#x} is {channel.gpadls[gpadl].value}")
        channel.gpadls[gpadl] = ClientGpadlState.TEARING_DOWN
        return self.post(GpadlTeardown(channel.offer.relid, gpadl))

    def release(self, relid: int) -> list[ClientEffect]:
        channel = self._channels.get(relid)
        if channel is None:
            return []
        rescinded = channel.state is ClientChannelState.RESCINDED
        if channel.state is ClientChannelState.OPENING:
            raise ValueError(f"relid {relid} is opening: its result comes first")
        closing = self.close(relid)
        failed = self._abandon(channel)
        del self._channels[relid]
        if not rescinded:
            self._released.add(relid)
        return [*closing, *failed, *self.post(RelidReleased(relid))]

    def abandon_all(self, rescind: bool) -> list[ClientEffect]:
        """The connection ends: every waiter fails, and with ``rescind`` every live channel is told to be gone."""
        effects: list[ClientEffect] = []
        for relid, channel in sorted(self._channels.items()):
            live = channel.state is not ClientChannelState.RESCINDED
            effects += self._abandon(channel)
            if rescind and live:
                effects.append(effect.Rescinded(relid))
        self._channels.clear()
        self._released.clear()
        self.connection_id = MESSAGE_CONNECTION_ID
        return effects

    def _live(self, relid: int) -> _Channel | None:
        channel = self._channels.get(relid)
        return channel if channel is not None and channel.state is not ClientChannelState.RESCINDED else None

    def _abandon(self, channel: _Channel) -> list[ClientEffect]:
        """The host has, or is about to have, nothing of this channel any more: end what the guest waits for."""
        relid = channel.offer.relid
        effects: list[ClientEffect] = []
        for gpadl, state in channel.gpadls.items():
            del self._channel_of[gpadl]
            if state is ClientGpadlState.CREATING:
                effects.append(effect.GpadlCreated(relid, gpadl, STATUS_FAILED))
            elif state is ClientGpadlState.TEARING_DOWN:
                effects.append(effect.GpadlTornDown(gpadl))
        channel.gpadls.clear()
        if channel.state is ClientChannelState.OPENING:
            effects.append(effect.OpenResult(relid, STATUS_FAILED))
        channel.state = ClientChannelState.RESCINDED
        return effects

    # -- the host's messages ----------------------------------------------------------------------

    def offer_arrived(self, offer: OfferChannel) -> list[ClientEffect]:
        if not 1 <= offer.relid <= MAX_RELID:
            return [Bad(f"an offer of relid {offer.relid}")]
        if offer.relid in self._channels:
            return [Bad(f"relid {offer.relid} was offered twice")]
        if len(self._channels) >= self._max_channels:
            return [Bad(f"more than {self._max_channels} offers")]
        self._channels[offer.relid] = _Channel(offer)
        self._released.discard(offer.relid)
        return [effect.OfferArrived(offer)]

    def rescinded(self, message: RescindChannelOffer) -> list[ClientEffect]:
        if message.relid in self._released:
            self._released.remove(message.relid)
            return self._too_late()
        channel = self._live(message.relid)
        if channel is None:
            return [Bad(f"RESCIND_CHANNELOFFER of unknown relid {message.relid}")]
        return [*self._abandon(channel), effect.Rescinded(message.relid)]

    def open_result(self, message: OpenChannelResult) -> list[ClientEffect]:
        channel = self._channels.get(message.relid)
        if channel is not None and channel.state is ClientChannelState.RESCINDED:
            return self._too_late()
        if channel is None or channel.state is not ClientChannelState.OPENING or message.open_id != channel.open_id:
            return [Bad(f"OPENCHANNEL_RESULT of relid {message.relid}, which nobody opens")]
        channel.state = ClientChannelState.OPEN if message.status == STATUS_OK else ClientChannelState.OFFERED
        return [effect.OpenResult(message.relid, message.status)]

    def gpadl_created(self, message: GpadlCreated) -> list[ClientEffect]:
        channel = self._channel_of.get(message.gpadl)
        if channel is None:
            return self._unknown_gpadl("GPADL_CREATED", message.gpadl)
        waits = channel.gpadls[message.gpadl] is ClientGpadlState.CREATING
        if not waits or channel.offer.relid != message.relid:
            return [Bad(f"GPADL_CREATED of {message.gpadl:#x}, which nobody creates")]
        if message.status == STATUS_OK:
            channel.gpadls[message.gpadl] = ClientGpadlState.CREATED
        else:
            self._drop(channel, message.gpadl)
        return [effect.GpadlCreated(message.relid, message.gpadl, message.status)]

    def gpadl_torn_down(self, message: GpadlTornDown) -> list[ClientEffect]:
        channel = self._channel_of.get(message.gpadl)
        if channel is None:
            return self._unknown_gpadl("GPADL_TORNDOWN", message.gpadl)
        if channel.gpadls[message.gpadl] is not ClientGpadlState.TEARING_DOWN:
            return [Bad(f"GPADL_TORNDOWN of {message.gpadl:#x}, which nobody tears down")]
        self._drop(channel, message.gpadl)
        return [effect.GpadlTornDown(message.gpadl)]

    def _drop(self, channel: _Channel, gpadl: int) -> None:
        del channel.gpadls[gpadl]
        del self._channel_of[gpadl]

    def _unknown_gpadl(self, name: str, gpadl: int) -> list[ClientEffect]:
        """An id that was ours once is an answer that crossed a rescind or a release; any other is invented."""
        if FIRST_GPADL <= gpadl < self._next_gpadl:
            return self._too_late()
        return [Bad(f"{name} of {gpadl:#x}, which never was")]

    def _too_late(self) -> list[ClientEffect]:
        self.late += 1
        return []
