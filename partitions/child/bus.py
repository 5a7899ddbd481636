"""The guest's VMBus driver: contact, offers, channels; it gives each VSC its channel and takes it away again.

The protocol is :class:`vmbus_emu.vmbus.client.ClientConnection`; this is its hands. What has to be lent to the host
before a channel opens, and what the channel is, is the transport's (:mod:`partitions.child.links`).

When a channel is rescinded, or the parent partition is reset, the device stays and waits: what it had outstanding is
sent again on the channel of the next offer. It is given up only when the machine says that by policy nothing brings
it back. Nothing that fails meanwhile is final, for its reason may have died with the host's incarnation: it is looked
at again after a while, and is a failure if the same channel is there still.

A little long: a device's way up and its way down are one story.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

from partitions.child.ic_session import IcDevice
from partitions.child.links import RECEIVE, RING, SEND, Links, Place, component_place, disk_place, nic_place
from partitions.child.netvsc import LentBuffer, NetVsc
from partitions.child.storvsc import StorVsc
from vmbus_emu.channel import Channel
from vmbus_emu.loop import Loop
from vmbus_emu.protocol import guids
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import HvStatus, SynicMessage
from vmbus_emu.protocol.vmbus import NEGOTIABLE, OfferChannel, version_text
from vmbus_emu.task import Future
from vmbus_emu.vmbus import client_effects as fx
from vmbus_emu.vmbus.client import ClientConnection
from vmbus_emu.vmbus.client_channels import ClientChannelState, ClientGpadlState
from vmbus_emu.vp import VirtualProcessor

#: Seconds after which what failed is looked at again.
_FINAL_AFTER_S = 0.5
#: Between a fault of the host on a channel and the next attempt on the same channel, in seconds.
_FIRST_REOPEN_S = 0.01
_LAST_REOPEN_S = 1.0
#: Seconds after which the host is told that the guest has let go of a channel. It offers the device anew without
#: waiting for that, and this would be in the way of opening it.
_RELEASE_AFTER_S = 0.01
#: How long a NIC lets the disks go first, in seconds, at most. Both ask the same host, and a program without its disk
#: stands still, while one without its network tries again.
_DISKS_FIRST_S = 0.05
#: How long integration components let disks and NICs go first, at most. Nobody but management waits for them.
_DEVICES_FIRST_S = 1.0
#: And after these are there, for so long: other guests on the same host may be waiting for theirs.
_OTHERS_FIRST_S = 0.1


@dataclass(slots=True)
class _Offered:
    """A device's way up: what its channel is, and what was lent for it."""

    offer: OfferChannel
    vsp: str
    place: Place
    gpadls: dict[str, int] = field(default_factory=dict)        # what for -> handle
    awaited: set[int] = field(default_factory=set)              # handles the host has not taken, or let go of, yet
    #: 0: not opened yet.
    open_id: int = 0
    #: Nothing more is awaited of it: it is attached, or failed.
    settled: bool = False
    closing: bool = False
    reopen_after: float = _FIRST_REOPEN_S


class BusDriver:
    """``disks`` and ``nics`` by VMBus instance id; ``on_ready(ok, why)`` is called once when all are attached."""

    def __init__(
        self,
        loop: Loop,
        links: Links,
        vp: VirtualProcessor,
        disks: Mapping[bytes, StorVsc],
        nics: Mapping[bytes, NetVsc],
        components: Mapping[bytes, IcDevice],
        newest_version: str | None,
        log: Callable[[str], Any],
        on_ready: Callable[[bool, str], Any],
        on_event: Callable[[str, str, int], Any],
    ) -> None:
        """``components``: integration components; nothing waits for them, and ``on_event`` does not tell of them.
        ``on_event(what, device's name, number)``: a device was detached, or attached with so many requests sent
        again."""
        self._loop = loop
        self._links = links
        self._on_event = on_event
        self._vp = vp
        self._devices: dict[bytes, StorVsc | NetVsc | IcDevice] = {**disks, **nics, **components}
        self._components = components
        self._places = {instance: disk_place(index) for index, instance in enumerate(disks)}
        self._places |= {instance: nic_place(index) for index, instance in enumerate(nics)}
        self._places |= {instance: component_place(index) for index, instance in enumerate(components)}
        self._log = log
        self._on_ready = on_ready
        self._missing = {*disks, *nics}
        self._channels: dict[int, Channel] = {}
        self._offered_devices: dict[int, _Offered] = {}     # by relid
        self._later: list[_Offered] = []                    # who lets others go first
        self._open_id = itertools.count(1)
        self._effects: deque[fx.ClientEffect] = deque()
        self._draining = False
        newest = tuple(map(int, newest_version.split("."))) if newest_version else (0xFFFF, 0xFFFF)
        versions = [v for v in NEGOTIABLE if (v >> 16, v & 0xFFFF) <= newest]
        self.client = ClientConnection(versions)
        vp.on_message = self._message

    def start(self) -> None:
        """Make contact with the host."""
        self._apply(self.client.contact())

    # -- messages and effects -------------------------------------------------------------------------

    def _message(self, sint: int, message: SynicMessage) -> None:
        if message.kind == hv.MESSAGE_VMBUS:
            effects = self.client.receive(message.payload)
            self._apply(effects)
            # A host that refuses will do so again. One that is not there (undeliverable) says when it is back.
            for refusal in [effect for effect in effects if type(effect) is fx.ConnectFailed]:
                self._on_ready(False, f"vmbus: {refusal.reason}")
        elif message.kind == hv.MESSAGE_PARENT_RESET:
            self._log("vmbus: the parent partition is gone")
            self._apply(self.client.reset())
            for connection in hv.CONNECTION_VMBUS_OLD, hv.CONNECTION_VMBUS:
                self._vp.disconnect(connection)  # what waits to be posted was for the one that is gone
        elif message.kind == hv.MESSAGE_PARENT_BACK:
            self._apply(self.client.contact())

    def _apply(self, effects: list[fx.ClientEffect]) -> None:
        self._effects.extend(effects)
        if self._draining:
            return
        self._draining = True
        while self._effects:
            self._carry_out(self._effects.popleft())
        self._draining = False

    def _carry_out(self, effect: fx.ClientEffect) -> None:
        match effect:
            case fx.Post(connection, payload):
                self._vp.post(connection, hv.MESSAGE_VMBUS, payload).then(self._posted)
            case fx.Connected(version):
                self._log(f"vmbus: connected, version {version_text(version)}")
                self._apply(self.client.request_offers())
            case fx.ConnectFailed(reason):
                self._log(f"vmbus: {reason}")
            case fx.OfferArrived(offer):
                self._offered(offer)
            case fx.AllOffersDelivered():
                pass
            case fx.GpadlCreated(relid, gpadl, status):
                self._gpadl_created(relid, gpadl, status)
            case fx.GpadlTornDown(gpadl):
                self._gpadl_torn_down(gpadl)
            case fx.OpenResult(relid, status):
                self._opened(relid, status)
            case fx.Rescinded(relid):
                self._rescinded(relid)
            case fx.Unloaded():
                self._log("vmbus: unloaded")
            case fx.Bad(reason):
                self._log(f"vmbus: ignored from the host: {reason}")
            case _:
                assert_never(effect)

    def _posted(self, future: Future[HvStatus]) -> None:
        if future.result() is HvStatus.INVALID_CONNECTION_ID:
            self._apply(self.client.contact_undeliverable())

    # -- a device's way up ------------------------------------------------------------------------------

    def _offered(self, offer: OfferChannel) -> None:
        device = self._devices.get(offer.instance)
        if device is None:
            self._log(f"vmbus: no driver for {_kind(offer)} {offer.instance_guid}")
            return
        vsp = _vsp_of(device)
        coming = self._offered_devices[offer.relid] = _Offered(offer, vsp, self._places[offer.instance])
        if self._lets_others_go_first(coming):
            self._later.append(coming)
            longest = _DISKS_FIRST_S if vsp == "netvsp" else _DEVICES_FIRST_S
            self._loop.call_later(longest, self._lend_later_one, coming)
        else:
            self._lend(coming)

    def _lets_others_go_first(self, coming: _Offered) -> bool:
        firsts = _FIRST[coming.vsp]
        if coming.vsp == "ic" and self._missing:  # it boots: of some of its devices there is no offer yet
            return True
        return any(one.vsp in firsts and not one.settled for one in self._offered_devices.values())

    def _settled(self, coming: _Offered | None) -> None:
        """Nothing more is to be done for a device now."""
        if coming is not None:
            coming.settled = True
        for one in [one for one in self._later if not self._lets_others_go_first(one)]:
            if one.vsp == "ic":
                self._loop.call_later(_OTHERS_FIRST_S, self._lend_later_one, one)
            else:
                self._lend_later_one(one)

    def _lend_later_one(self, coming: _Offered) -> None:
        if coming in self._later:
            self._later.remove(coming)
            if self._offered_devices.get(coming.offer.relid) is coming:
                self._lend(coming)

    def _lend(self, coming: _Offered) -> None:
        needs = self._links.nic_needs if coming.vsp == "netvsp" else self._links.disk_needs
        self._links.prepare(coming.vsp, coming.place)
        for purpose in needs:
            gpadl, effects = self.client.create_gpadl(
                coming.offer.relid, (self._links.range(coming.vsp, coming.place, purpose),)
            )
            coming.gpadls[purpose] = gpadl
            coming.awaited.add(gpadl)
            self._apply(effects)
        # A device that was attached once does not wait for the answers: each round trip is time without it.
        if not needs or coming.offer.instance not in self._missing:
            self._open(coming)

    def _gpadl_created(self, relid: int, gpadl: int, status: int) -> None:
        coming = self._offered_devices.get(relid)
        if status:
            self._failing(relid, "the host does not take memory")
        elif coming is not None:
            coming.awaited.discard(gpadl)
            if not coming.awaited and not coming.open_id:
                self._open(coming)

    def _open(self, coming: _Offered) -> None:
        coming.open_id = next(self._open_id)
        ring = coming.gpadls.get(RING, 0)
        self._apply(self.client.open(
            coming.offer.relid, open_id=coming.open_id, ring_gpadl=ring,
            downstream_page_offset=coming.place.downstream if ring else 0,
        ))

    def _opened(self, relid: int, status: int) -> None:
        coming = self._offered_devices.get(relid)
        if status or coming is None:
            self._failing(relid, f"the host did not open it (status {status:#x})")
            return
        if coming.awaited:
            self._failing(relid, "the host opened it before it took its memory")
            return
        instance = coming.offer.instance
        channel = self._links.connect(coming.vsp, coming.place, coming.offer, coming.open_id)
        if isinstance(channel, str):
            self._failing(relid, f"it is open and of no use: {channel}")
            return
        channel.on_failed = lambda reason: self._failed(relid, reason)
        self._channels[relid] = channel
        device = self._devices[instance]
        if isinstance(device, NetVsc):
            receive = self._lent(coming, RECEIVE)
            attached = device.attach(channel, receive, self._lent(coming, SEND) if SEND in coming.gpadls else None)
        else:
            attached = device.attach(channel)
        attached.then(lambda future: self._attached(coming, future.result()))

    def _lent(self, coming: _Offered, purpose: str) -> LentBuffer:
        _, pages = coming.place.parts[purpose]
        memory = self._links.memory(coming.vsp, coming.place, purpose)
        return LentBuffer(coming.gpadls[purpose], pages * hv.PAGE, memory)

    def _attached(self, coming: _Offered, ok: bool) -> None:
        relid, instance = coming.offer.relid, coming.offer.instance
        if not ok:
            self._failing(relid, "its device did not come up")
            return
        coming.reopen_after = _FIRST_REOPEN_S
        device = self._devices[instance]
        if instance not in self._components:
            self._on_event("attached", device.name, device.resubmitted)
            self._missing.discard(instance)
            if not self._missing:
                self._on_ready(True, "")
        self._settled(coming)

    def _failing(self, relid: int, why: str) -> None:
        coming = self._offered_devices.get(relid)
        self._settled(coming)
        self._log(f"vmbus: channel {relid}: {why}")
        self._loop.call_later(_FINAL_AFTER_S, self._failed_for_good, relid, coming, why)

    def _failed_for_good(self, relid: int, coming: _Offered | None, why: str) -> None:
        if coming is None or self._offered_devices.get(relid) is not coming or coming.closing:
            return
        if coming.offer.instance in self._missing:
            self._fail(f"vmbus: channel {relid}: {why}")
            return
        creating = any(self.client.gpadl_state(one) is ClientGpadlState.CREATING for one in coming.gpadls.values())
        if creating or self.client.channel_state(relid) is ClientChannelState.OPENING:
            self._loop.call_later(_FINAL_AFTER_S, self._failed_for_good, relid, coming, why)
            return
        self._apply(self.client.close(relid))
        self._devices[coming.offer.instance].detach()
        self._take_back(coming)

    def _fail(self, why: str) -> None:
        self._log(why)
        self._on_ready(False, why)

    # -- and down again -------------------------------------------------------------------------------

    def _rescinded(self, relid: int) -> None:
        self._let_go(relid)
        self._loop.call_later(_RELEASE_AFTER_S, self._release, relid)

    def _release(self, relid: int) -> None:
        if self.client.channel_state(relid) is ClientChannelState.RESCINDED:
            self._apply(self.client.release(relid))

    def _let_go(self, relid: int) -> None:
        coming = self._offered_devices.pop(relid, None)
        channel = self._channels.pop(relid, None)
        if channel is not None:
            channel.close()
        if coming is not None:
            self._log(f"vmbus: channel {relid} rescinded, {_kind(coming.offer)} is gone")
            self._detach(coming)
            self._links.forget(coming.offer)
        self._settled(coming)

    def _detach(self, coming: _Offered) -> None:
        device = self._devices[coming.offer.instance]
        device.detach()
        if coming.offer.instance not in self._components:
            self._on_event("detached", device.name, 0)

    def _failed(self, relid: int, reason: str) -> None:
        """The host broke the protocol on this channel, which is closed already. It is taken back whole, and then
        opened again: another guest would not be, but a host that went wrong is replaced, and looks the same."""
        self._log(f"vmbus: channel {relid} closed: {reason}")
        self._channels.pop(relid, None)
        coming = self._offered_devices.get(relid)
        self._apply(self.client.close(relid))
        if coming is None:
            return
        self._detach(coming)
        self._take_back(coming)

    def _take_back(self, coming: _Offered) -> None:
        """All that was lent, and then try again."""
        coming.closing = True
        coming.open_id = 0
        coming.awaited = set(coming.gpadls.values())
        coming.gpadls.clear()
        for gpadl in list(coming.awaited):
            self._apply(self.client.teardown_gpadl(gpadl))
        if not coming.awaited:
            self._reopen_later(coming)

    def _gpadl_torn_down(self, gpadl: int) -> None:
        for coming in self._offered_devices.values():
            if coming.closing and gpadl in coming.awaited:
                coming.awaited.discard(gpadl)
                if not coming.awaited:
                    self._reopen_later(coming)
                return

    def _reopen_later(self, coming: _Offered) -> None:
        self._loop.call_later(coming.reopen_after, self._reopen, coming)
        coming.reopen_after = min(2 * coming.reopen_after, _LAST_REOPEN_S)

    def _reopen(self, coming: _Offered) -> None:
        if coming.closing and self._offered_devices.get(coming.offer.relid) is coming:
            coming.closing = False
            self._lend(coming)

    def abandon(self, vsp: str) -> None:
        """The machine says that nothing brings ``vsp`` back."""
        for relid, coming in list(self._offered_devices.items()):
            if coming.vsp == vsp:
                self._let_go(relid)
                if self.client.channel_state(relid) is not ClientChannelState.OPENING:  # its result comes first
                    self._apply(self.client.release(relid))
        for device in self._devices.values():
            if _vsp_of(device) == vsp:
                self._give_up(device)

    def abandon_device(self, name: str) -> None:
        """The machine says that a device will not be offered to this guest again."""
        for device in self._devices.values():
            if device.name == name:
                self._give_up(device)

    def _give_up(self, device: StorVsc | NetVsc | IcDevice) -> None:
        device.give_up()
        if not isinstance(device, IcDevice):
            self._on_event("given up", device.name, 0)

    def listing(self) -> list[tuple[int, str, str, str]]:
        """For ``lsvmbus``: relid, kind, instance id and state of every channel."""
        rows = []
        for offer in self.client.offers:
            state = self.client.channel_state(offer.relid)
            rows.append((offer.relid, _kind(offer), str(offer.instance_guid), state.value if state else "?"))
        return rows


#: Of whose devices on their way up a VSP's devices do not get in the way.
_FIRST: Mapping[str, tuple[str, ...]] = {"storvsp": (), "netvsp": ("storvsp",), "ic": ("storvsp", "netvsp")}


def _vsp_of(device: StorVsc | NetVsc | IcDevice) -> str:
    if isinstance(device, IcDevice):
        return "ic"
    return "netvsp" if isinstance(device, NetVsc) else "storvsp"


def _kind(offer: OfferChannel) -> str:
    return guids.interface_name(offer.interface_guid)
