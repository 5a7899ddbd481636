"""The server's channels of one child: gives out relids and walks each channel through its states.

Used by :class:`vmbus_emu.vmbus.server.Connection` alone. An event for a channel is looked up in
:data:`~vmbus_emu.vmbus.channel_states.CHANNEL_STEPS`; what is not there changes nothing. Channels outlive the
guest's connections: a reset takes them back from the guest, the next connection is offered them again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import assert_never

from vmbus_emu.protocol.vmbus import (
    MAX_RELID,
    NO_MONITOR,
    STATUS_FAILED,
    STATUS_OK,
    OfferChannel,
    OpenChannel,
    OpenChannelResult,
    RescindChannelOffer,
)
from vmbus_emu.vmbus.channel_states import CHANNEL_STEPS, GUEST_KNOWS, ChannelAction, ChannelEvent, ChannelState
from vmbus_emu.vmbus.effects import CloseDevice, Effect, Freed, Limits, Offer, OpenDevice, Refused, Send
from vmbus_emu.vmbus.gpadl import ring_fault
from vmbus_emu.vmbus.gpadl_book import GpadlBook

#: After these the device owes no answer to what it was asked before (a following action may ask anew).
_ENDS_QUESTION = frozenset((
    ChannelEvent.DEVICE_OPENED, ChannelEvent.DEVICE_OPEN_FAILED, ChannelEvent.DEVICE_CLOSED, ChannelEvent.REVOKE,
))


@dataclass(slots=True)
class _Channel:
    relid: int
    offer: Offer
    order: int
    state: ChannelState = ChannelState.CLIENT_RELEASED
    request: OpenChannel | None = None
    ticket: int = 0  #: of the question the device owes an answer to; 0: none


class ChannelBook:
    """All channels of one child, by relid, and their GPADLs."""

    def __init__(self, limits: Limits, tickets: Iterator[int], require_ring_gpadl: bool) -> None:
        self._limits = limits
        self._tickets = tickets
        self._require_ring_gpadl = require_ring_gpadl
        self._orders = itertools.count()
        self._channels: dict[int, _Channel] = {}
        self.gpadls = GpadlBook(limits, tickets)
        self.ignored = 0
        self.late_answers = 0

    @property
    def relids(self) -> tuple[int, ...]:
        return tuple(sorted(self._channels))

    def state(self, relid: int) -> ChannelState | None:
        channel = self._channels.get(relid)
        return channel.state if channel is not None else None

    def guest_knows(self, relid: int) -> bool:
        return self.state(relid) in GUEST_KNOWS

    @property
    def drained(self) -> bool:
        """No device uses anything of a guest, and no guest knows anything of a device."""
        return not len(self.gpadls) and all(
            channel.state is ChannelState.CLIENT_RELEASED for channel in self._channels.values())

    @property
    def has_room(self) -> bool:
        return len(self._channels) < min(self._limits.channels, MAX_RELID)

    # -- from the host ----------------------------------------------------------------------------

    def add(self, offer: Offer) -> int | str:
        """The relid of a new channel that the guest does not know yet; or why there is none."""
        same = (offer.interface, offer.instance, offer.sub_channel_index)
        for other in self._channels.values():
            theirs = (other.offer.interface, other.offer.instance, other.offer.sub_channel_index)
            if theirs == same and other.state is not ChannelState.REVOKED:
                return f"already offered as relid {other.relid}"
        if not self.has_room:
            return f"no room for more than {len(self._channels)} channels"
        relid = next(number for number in itertools.count(1) if number not in self._channels)
        self._channels[relid] = _Channel(relid, offer, next(self._orders))
        return relid

    def from_host(self, relid: int, event: ChannelEvent) -> list[Effect]:
        channel = self._channels.get(relid)
        if channel is None:
            return [Refused(f"{event.value}: no channel {relid}")]
        return self._apply(channel, event)

    def reoffer(self, relid: int, user_data: bytes) -> list[Effect]:
        effects = self.from_host(relid, ChannelEvent.REOFFER)
        if not effects:  # it was legal; nothing is said until the guest lets go of the old one
            channel = self._channels[relid]
            channel.offer = replace(channel.offer, user_data=user_data)
        return effects

    def offer_all(self) -> list[Effect]:
        """Make every channel known to the guest: by interface, then instance, then in the host's order."""
        effects: list[Effect] = []
        for channel in sorted(self._channels.values(), key=lambda c: (c.offer.interface, c.offer.instance, c.order)):
            effects += self._apply(channel, ChannelEvent.OFFER)
        return effects

    def reset(self) -> list[Effect]:
        """The guest's connection ends: take everything back from it, without a word to the guest."""
        effects: list[Effect] = []
        for channel in tuple(self._channels.values()):
            effects += self._apply(channel, ChannelEvent.RESET)
            effects += self.gpadls.reset(channel.relid)
        return effects

    # -- from the guest and the devices -----------------------------------------------------------

    def from_guest(self, relid: int, event: ChannelEvent, request: OpenChannel | None = None) -> list[Effect]:
        if not self.guest_knows(relid):
            return [Refused(f"{event.value} for unknown relid {relid}")]
        channel = self._channels[relid]
        before = channel.state
        effects = self._apply(channel, event, request)
        if event is ChannelEvent.RELEASED and channel.state is not before:
            effects += self.gpadls.reset(relid)
        return effects

    def answered(self, relid: int, ticket: int, event: ChannelEvent) -> list[Effect]:
        channel = self._channels.get(relid)
        if channel is None or not ticket or channel.ticket != ticket:
            self.late_answers += 1
            return []
        return self._apply(channel, event)

    # -- the table at work ------------------------------------------------------------------------

    def _apply(self, channel: _Channel, event: ChannelEvent, request: OpenChannel | None = None) -> list[Effect]:
        step = CHANNEL_STEPS[event].get(channel.state)
        if step is None:
            return [Refused(f"{event.value} for relid {channel.relid}, which is {channel.state.value}")]
        if event in _ENDS_QUESTION:
            channel.ticket = 0
        if step.state is None:
            del self._channels[channel.relid]
            self.gpadls.forget(channel.relid)
            return [Freed(channel.relid)]
        channel.state = step.state
        match step.action:
            case ChannelAction.NOTHING:
                return []
            case ChannelAction.IGNORE:
                self.ignored += 1
                return []
            case ChannelAction.KEEP_REQUEST:
                channel.request = request
                return []
            case ChannelAction.START_OPEN:
                channel.request = request or channel.request
                return self._start_open(channel)
            case ChannelAction.START_CLOSE:
                channel.ticket = next(self._tickets)
                return [CloseDevice(channel.relid, channel.ticket)]
            case ChannelAction.SEND_OPENED:
                return [Send(self._open_result(channel, STATUS_OK))]
            case ChannelAction.SEND_OPEN_FAILED:
                return [Send(self._open_result(channel, STATUS_FAILED))]
            case ChannelAction.SEND_OFFER:
                return [Send(_offer_message(channel).encode())]
            case ChannelAction.SEND_RESCIND:
                waiters = self.gpadls.revoke(channel.relid)
                return [*waiters, Send(RescindChannelOffer(channel.relid).encode())]
            case _:
                assert_never(step.action)

    def _start_open(self, channel: _Channel) -> list[Effect]:
        request = channel.request
        assert request is not None  # OPEN brought it; CLOSING_REOPEN kept it
        fault = self._ring_fault(request)
        if fault is not None:
            failed = self._apply(channel, ChannelEvent.DEVICE_OPEN_FAILED)
            return [*failed, Refused(f"OPENCHANNEL for relid {channel.relid}: {fault}")]
        channel.ticket = next(self._tickets)
        return [OpenDevice(channel.relid, channel.ticket, request)]

    def _ring_fault(self, request: OpenChannel) -> str | None:
        if not self._require_ring_gpadl:
            return None
        ranges = self.gpadls.ranges(request.relid, request.ring_gpadl)
        if ranges is None:
            return f"GPADL {request.ring_gpadl:#x} is none that this channel's device has"
        return ring_fault(ranges, request.downstream_page_offset)

    def _open_result(self, channel: _Channel, status: int) -> bytes:
        open_id = channel.request.open_id if channel.request is not None else 0
        return OpenChannelResult(channel.relid, open_id, status).encode()


def _offer_message(channel: _Channel) -> OfferChannel:
    offer = channel.offer
    return OfferChannel(
        interface=offer.interface.bytes_le,
        instance=offer.instance.bytes_le,
        flags=offer.flags,
        mmio_megabytes=0,
        user_data=offer.user_data,
        sub_channel_index=offer.sub_channel_index,
        mmio_megabytes_optional=0,
        relid=channel.relid,
        monitor_id=NO_MONITOR,
        monitor_allocated=0,
        is_dedicated_interrupt=1,
        connection_id=offer.connection_id,
    )
