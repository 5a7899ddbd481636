"""The guest's VMBus driver: contact, offers, channels; it gives each VSC its channel and takes it away again.

The protocol is :class:`vmbus_emu.vmbus.client.ClientConnection`; this is its hands. A channel's data path is named
in the offer's user data, and the guest adds its open id, so that no two opens share a socket file.

When a channel is rescinded, or the parent partition is reset, the devices are given up: nothing restarts what
served them yet, and a guest must never wait for ever.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, assert_never

from partitions.child.netvsc import NetVsc
from partitions.child.storvsc import StorVsc
from vmbus_emu.channel import ZmqChannel
from vmbus_emu.loop import Loop
from vmbus_emu.protocol import guids
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import HvStatus, SynicMessage
from vmbus_emu.protocol.vmbus import NEGOTIABLE, OfferChannel, version_text
from vmbus_emu.task import Future
from vmbus_emu.vmbus import client_effects as fx
from vmbus_emu.vmbus.client import ClientConnection
from vmbus_emu.vmbus.gpadl import contiguous
from vmbus_emu.vp import VirtualProcessor
from vmbus_emu.zmqport import Context

#: Pages of I/O memory behind each NIC's receive buffer: one GPADL message describes them, and 57 full frames fit.
RECEIVE_PAGES = 26


#: What each VSP serves.
_INTERFACES = {"storvsp": guids.SCSI, "netvsp": guids.NETWORK}


class BusDriver:
    """``disks`` and ``nics`` by VMBus instance id; ``on_ready(ok, why)`` is called once when all are attached."""

    def __init__(
        self,
        loop: Loop,
        context: Context,
        vp: VirtualProcessor,
        folder: str,
        disks: Mapping[bytes, StorVsc],
        nics: Mapping[bytes, NetVsc],
        io_memory_gpa: int,
        newest_version: str | None,
        log: Callable[[str], Any],
        on_ready: Callable[[bool, str], Any],
    ) -> None:
        self._loop = loop
        self._context = context
        self._vp = vp
        self._folder = folder
        self._devices: dict[bytes, StorVsc | NetVsc] = {**disks, **nics}
        self._first_pfn = {instance: (io_memory_gpa // hv.PAGE) + i * RECEIVE_PAGES for i, instance in enumerate(nics)}
        self._log = log
        self._on_ready = on_ready
        self._missing = set(self._devices)
        self._channels: dict[int, ZmqChannel] = {}
        self._offers: dict[int, OfferChannel] = {}
        self._gpadls: dict[int, int] = {}               # relid -> handle of the receive buffer
        self._open_ids: dict[int, int] = {}
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
            self._apply(self.client.receive(message.payload))
        elif message.kind == hv.MESSAGE_PARENT_RESET:
            self._log("vmbus: the parent partition is gone")
            self._apply(self.client.reset())

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
                self._ready_or_not(f"vmbus: {reason}")
            case fx.OfferArrived(offer):
                self._offered(offer)
            case fx.AllOffersDelivered():
                pass
            case fx.GpadlCreated(relid, gpadl, status):
                self._gpadl_created(relid, gpadl, status)
            case fx.GpadlTornDown(_):
                pass
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
        self._offers[offer.relid] = offer
        if isinstance(device, NetVsc):  # the host needs somewhere to put frames before the channel opens
            pages = contiguous(self._first_pfn[offer.instance], RECEIVE_PAGES * hv.PAGE)
            gpadl, effects = self.client.create_gpadl(offer.relid, (pages,))
            self._gpadls[offer.relid] = gpadl
            self._apply(effects)
        else:
            self._open(offer.relid)

    def _gpadl_created(self, relid: int, gpadl: int, status: int) -> None:
        if status:
            self._ready_or_not(f"vmbus: the host refused the receive buffer of channel {relid}")
        else:
            self._open(relid)

    def _open(self, relid: int) -> None:
        self._open_ids[relid] = next(self._open_id)
        self._apply(self.client.open(relid, open_id=self._open_ids[relid]))

    def _opened(self, relid: int, status: int) -> None:
        offer = self._offers[relid]
        instance = offer.instance
        if status:
            self._ready_or_not(f"vmbus: the host did not open channel {relid} (status {status:#x})")
            return
        endpoint = offer.user_data.rstrip(b"\0").decode("ascii", "replace")
        channel = ZmqChannel(self._loop, self._context)
        channel.on_failed = lambda reason: self._failed(relid, reason)
        channel.connect(os.path.join(self._folder, f"{endpoint}.{self._open_ids[relid]:x}"))
        self._channels[relid] = channel
        device = self._devices[instance]
        if isinstance(device, NetVsc):
            attached = device.attach(channel, self._gpadls[relid], RECEIVE_PAGES * hv.PAGE)
        else:
            attached = device.attach(channel)
        attached.then(lambda future: self._attached(instance, future.result()))

    def _attached(self, instance: bytes, ok: bool) -> None:
        if not ok:
            self._ready_or_not("vmbus: a device did not come up")
            return
        self._missing.discard(instance)
        if not self._missing:
            self._ready_or_not("")

    def _ready_or_not(self, why: str) -> None:
        if why:
            self._log(why)
        self._on_ready(not why, why)

    # -- and down again -------------------------------------------------------------------------------

    def _rescinded(self, relid: int) -> None:
        offer = self._offers.pop(relid, None)
        channel = self._channels.pop(relid, None)
        if channel is not None:
            channel.close()
        if offer is not None:
            self._log(f"vmbus: channel {relid} rescinded, {_kind(offer)} is gone")
            self._devices[offer.instance].give_up()
        self._apply(self.client.release(relid))

    def _failed(self, relid: int, reason: str) -> None:
        """The host broke the protocol on this channel; it is closed already."""
        self._log(f"vmbus: channel {relid} closed: {reason}")
        offer = self._offers.get(relid)
        if offer is not None:
            self._devices[offer.instance].give_up()
        self._apply(self.client.close(relid))

    def abandon(self, vsp: str) -> None:
        """The machine says that ``vsp`` is dead and that no rescind can come: the hypervisor is dead too."""
        interface = _INTERFACES[vsp].bytes_le
        for relid, offer in list(self._offers.items()):
            if offer.interface == interface:
                self._rescinded(relid)

    def listing(self) -> list[tuple[int, str, str, str]]:
        """For ``lsvmbus``: relid, kind, instance id and state of every channel."""
        rows = []
        for offer in self.client.offers:
            state = self.client.channel_state(offer.relid)
            rows.append((offer.relid, _kind(offer), str(offer.instance_guid), state.value if state else "?"))
        return rows


def _kind(offer: OfferChannel) -> str:
    return guids.interface_name(offer.interface_guid)
