"""The VMBus provider: one connection per child partition, and the VSPs' devices offered on them.

It carries out the effects of :class:`vmbus_emu.vmbus.server.Connection`: messages to the child go out as SynIC
messages, requests to a device go to its VSP, wherever that lives. Management tells it of each new partition
(``attach``), which it then wires up. Who a message is from is the port it arrived at: every partition has one of
its own.

A little long: the effects, the VSPs' answers and the guests' messages are one queue, whose order is the point.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never
from uuid import UUID

from partitions.parent.asking import Asking
from partitions.parent.offered import Device, Guest
from partitions.parent.vsplink import (
    FIRST_PARTITION_PORT,
    MANAGEMENT_ANSWERS,
    MANAGEMENT_CONNECTION,
    MANAGEMENT_TO_PROVIDER,
    TO_PROVIDER,
    RemoteVsp,
    VspSide,
    dispatch,
    encode,
)
from partitions.parent.wiring import Wiring
from vmbus_emu.loop import Loop
from vmbus_emu.node import load
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Code, HvStatus, Property, SynicMessage
from vmbus_emu.protocol.vmbus import USER_DATA_BYTES, version_text
from vmbus_emu.task import Task
from vmbus_emu.vmbus import effects as fx
from vmbus_emu.vmbus.server import Connection
from vmbus_emu.vp import VirtualProcessor

#: Messages that may wait for a child to take them; a child that takes none is cut off.
MAX_BACKLOG = 512
#: Devices that VSPs may offer, over all guests.
MAX_DEVICES = 1 << 16
#: Refusals of one guest that are written to the log; the rest are only counted.
LOGGED_REFUSALS = 20


class Provider:
    """``vsps`` are the VSPs in this process; those of other partitions come with their ``attach``."""

    def __init__(self, loop: Loop, vp: VirtualProcessor, log: Callable[[str], Any]) -> None:
        self._loop = loop
        self._vp = vp
        self._wiring = Wiring(vp)
        self._log = log
        self._ring = False
        self._asking = Asking(self._place, lambda vsp: VspFace(self, vsp))
        self._vsps: dict[str, VspSide] = {}
        self._vsp_partitions: dict[int, str] = {}
        self._guests: dict[int, Guest] = {}
        self._devices: dict[tuple[str, int], Device] = {}
        self._effects: deque[tuple[Guest, fx.Effect]] = deque()
        self._draining = False
        self._strange = 0
        vp.on_message = self._message

    # -- start --------------------------------------------------------------------------------------

    def share_memory(self, regions: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Channels are rings in the guests' I/O memory: ``regions`` by VM. Before anything is offered."""
        self._ring = True
        self._asking = load("partitions.parent.ring_asking:RingAsking")(
            self._place, lambda vsp: VspFace(self, vsp), self._loop, self._wiring, regions, self._log
        )

    def _place(self, name: str) -> tuple[VspSide, int] | None:
        vsp = self._vsps.get(name)
        if vsp is None:
            return None
        return vsp, next((number for number, own in self._vsp_partitions.items() if own == name), hv.PARTITION_ROOT)

    async def prepare(self) -> bool:
        """Make the ports over which management reaches us. ``False`` if the hypervisor refused."""
        return all(status is HvStatus.SUCCESS for status in await self._wiring.wire_management())

    def add_vsp(self, name: str, vsp: VspSide) -> VspFace:
        """A VSP in this process; what it talks to."""
        self._vsps[name] = vsp
        return VspFace(self, name)

    # -- partitions come and go -----------------------------------------------------------------------

    def attach(self, partition: int, name: str, kind: str) -> None:
        """Management created ``partition`` for component ``name``; ``kind`` is ``child`` or ``vsp``."""
        Task(self._loop, self._attach(partition, name, kind))

    async def _attach(self, partition: int, name: str, kind: str) -> None:
        if kind == "child":
            self._add_guest(Guest(name, partition, Connection(require_ring_gpadl=self._ring)))
            made = await self._wiring.wire_child(partition)
        else:
            ours = FIRST_PARTITION_PORT + partition
            self._vsp_partitions[partition] = name
            self._vsps[name] = RemoteVsp(lambda payload: self._vp.post(ours, hv.MESSAGE_CONTROL, payload))
            made = await self._wiring.wire_vsp(partition)
        ok = all(status is HvStatus.SUCCESS for status in made)
        if not ok:
            self._log(f"{name}: the hypervisor refused its ports: {[status.name for status in made]}")
        self._vp.post(MANAGEMENT_ANSWERS, hv.MESSAGE_CONTROL, encode("attached", partition, ok))

    def _add_guest(self, guest: Guest) -> None:
        self._guests[guest.partition] = guest
        for device in self._devices.values():
            if device.vm == guest.name and not device.revoked:
                self._offer_to(guest, device)

    def peer_died(self, name: str) -> None:
        """The machine says that component ``name`` is dead: end its connection, or revoke its devices."""
        for guest in self._guests.values():
            if guest.name == name:
                self._vp.disconnect(FIRST_PARTITION_PORT + guest.partition)
                guest.pid = 0
                guest.waiting.clear()
                self._apply(guest, guest.connection.disconnect())
                self._asking.gone(guest.partition, list(self._vsps.values()))
        for partition, own in list(self._vsp_partitions.items()):
            if own == name:
                del self._vsp_partitions[partition]
                self._vsps.pop(name, None)
                for device in [d for d in self._devices.values() if d.vsp == name]:
                    self.revoke(device.vsp, device.key, f"{name} died")

    # -- messages -----------------------------------------------------------------------------------

    def _message(self, sint: int, message: SynicMessage) -> None:
        partition = message.port - FIRST_PARTITION_PORT
        guest = self._guests.get(partition)
        vsp = self._vsp_partitions.get(partition)
        understood = False
        if guest is not None and message.kind == hv.MESSAGE_VMBUS:
            understood = True
            self._from_guest(guest, message.payload)
        elif vsp is not None and message.kind == hv.MESSAGE_CONTROL:
            understood = dispatch(TO_PROVIDER, VspFace(self, vsp), message.payload)
        elif message.port == MANAGEMENT_CONNECTION:
            understood = dispatch(MANAGEMENT_TO_PROVIDER, self, message.payload)
        self._strange += not understood

    def _from_guest(self, guest: Guest, payload: bytes) -> None:
        if guest.pid:
            self._apply(guest, guest.connection.receive(payload))
            return
        guest.waiting.append(payload)
        if len(guest.waiting) == 1:
            block = hv.GET_PROPERTY.pack(guest.partition, Property.PROCESS_ID)
            asked = self._vp.call(Code.GET_PARTITION_PROPERTY, block)
            asked.then(lambda future: self._pid_known(guest, *future.result()))
        elif len(guest.waiting) > hv.MESSAGE_BUFFERS_PER_PORT:
            guest.waiting.pop()
            self._refused(guest, "too many messages before its process was known")

    def _pid_known(self, guest: Guest, status: HvStatus, output: bytes) -> None:
        waiting, guest.waiting = guest.waiting, []
        if status is HvStatus.SUCCESS:
            guest.pid = hv.PROPERTY_VALUE.unpack_from(output)[0]
            for payload in waiting:
                self._apply(guest, guest.connection.receive(payload))

    def _refused(self, guest: Guest, reason: str) -> None:
        guest.refused += 1
        if guest.refused <= LOGGED_REFUSALS:
            last = " (further ones are only counted)" if guest.refused == LOGGED_REFUSALS else ""
            self._log(f"{guest.name}: refused: {reason}{last}")

    # -- effects ------------------------------------------------------------------------------------

    def _apply(self, guest: Guest, effects: list[fx.Effect]) -> None:
        """Carry effects out in order, also when a VSP answers within the call and so causes more of them."""
        self._effects.extend((guest, effect) for effect in effects)
        if self._draining:
            return
        self._draining = True
        while self._effects:
            self._carry_out(*self._effects.popleft())
        self._draining = False

    def _carry_out(self, guest: Guest, effect: fx.Effect) -> None:
        match effect:
            case fx.Send(payload):
                self._send(guest, payload)
            case fx.OpenDevice() | fx.CloseDevice() | fx.AcceptGpadl() | fx.TearDownGpadl():
                self._asking.carry_out(guest, effect)
            case fx.Freed(relid):
                device = guest.devices.pop(relid)
                if self._devices.get((device.vsp, device.key)) is device:  # it may have been offered anew
                    del self._devices[device.vsp, device.key]
            case fx.Contacted(version, _, _, _):
                self._log(f"{guest.name}: VMBus connection, version {version_text(version)}")
            case fx.VersionRefused(version):
                self._log(f"{guest.name}: version {version_text(version)} is not spoken here")
            case fx.Refused(reason):
                self._refused(guest, reason)
            case fx.Unloaded() | fx.Disconnected():
                self._log(f"{guest.name}: VMBus connection ended")
            case _:
                assert_never(effect)

    def _send(self, guest: Guest, payload: bytes) -> None:
        if guest.backlog >= MAX_BACKLOG:  # it provokes answers and takes none
            self._refused(guest, "does not take its messages")
            return
        guest.backlog += 1

        def sent(future: Any) -> None:
            guest.backlog -= 1

        self._vp.post(FIRST_PARTITION_PORT + guest.partition, hv.MESSAGE_VMBUS, payload).then(sent)

    # -- the VSPs' side (through VspFace) -------------------------------------------------------------

    def offer(self, vsp: str, key: int, vm: str, interface: bytes, instance: bytes, user_data: bytes) -> None:
        known = self._devices.get((vsp, key))
        if (
            len(interface) != 16 or len(instance) != 16 or len(user_data) > USER_DATA_BYTES
            or (known is not None and not known.revoked) or len(self._devices) >= MAX_DEVICES
        ):
            self._strange += 1  # a VSP in a partition of its own can send anything, like a guest
            return
        offer = fx.Offer(
            UUID(bytes_le=interface), UUID(bytes_le=instance), user_data, connection_id=self._asking.doorbell()
        )
        device = self._devices[(vsp, key)] = Device(vsp, key, vm, offer)
        for guest in self._guests.values():
            if guest.name == vm:
                self._offer_to(guest, device)

    def _offer_to(self, guest: Guest, device: Device) -> None:
        relid, effects = guest.connection.offer(device.offer)
        if relid:
            device.guest, device.relid = guest, relid
            guest.devices[relid] = device
        self._apply(guest, effects)

    def revoke(self, vsp: str, key: int, reason: str) -> None:
        device = self._devices.get((vsp, key))
        if device is not None and not device.revoked and device.guest is not None:
            device.revoked = True
            self._log(f"{device.vm}: channel {device.relid} revoked: {reason}")
            self._apply(device.guest, device.guest.connection.revoke(device.relid))
            self._asking.ended(device)

    def opened(self, vsp: str, key: int, ticket: int, ok: bool) -> None:
        device = self._devices.get((vsp, key))
        if device is not None and not ok:
            self._asking.ended(device)
        self._answer(vsp, key, lambda guest, relid: guest.connection.device_opened(relid, ticket, ok))

    def closed(self, vsp: str, key: int, ticket: int) -> None:
        self._answer(vsp, key, lambda guest, relid: guest.connection.device_closed(relid, ticket))

    def gpadl_accepted(self, vsp: str, key: int, gpadl: int, ticket: int, ok: bool) -> None:
        self._answer(vsp, key, lambda guest, relid: guest.connection.gpadl_accepted(relid, gpadl, ticket, ok))

    def gpadl_torn_down(self, vsp: str, key: int, gpadl: int, ticket: int) -> None:
        self._answer(vsp, key, lambda guest, relid: guest.connection.gpadl_torn_down(relid, gpadl, ticket))

    def _answer(self, vsp: str, key: int, event: Callable[[Guest, int], list[fx.Effect]]) -> None:
        device = self._devices.get((vsp, key))
        if device is not None and device.guest is not None:
            self._apply(device.guest, event(device.guest, device.relid))

    def stats(self) -> Mapping[str, Any]:
        guests = self._guests.values()
        totals: dict[str, Any] = {"connections": 0, "channels": 0, "gpadls": 0}
        for guest in guests:
            stats = guest.connection.stats()
            totals["connections"] += stats.version != 0
            totals["channels"] += stats.channels
            totals["gpadls"] += stats.gpadls
        totals["refused"] = sum(guest.refused for guest in guests)
        totals["strange_messages"] = self._strange
        totals["hypercalls"] = self._vp.hypercalls
        totals["messages"] = self._vp.messages
        return {"counters": totals}


class VspFace:
    """The provider as one VSP sees it (:class:`partitions.parent.vsplink.ProviderSide`)."""

    def __init__(self, provider: Provider, vsp: str) -> None:
        self._provider = provider
        self._vsp = vsp

    def offer(self, key: int, vm: str, interface: bytes, instance: bytes, user_data: bytes) -> None:
        self._provider.offer(self._vsp, key, vm, interface, instance, user_data)

    def revoke(self, key: int, reason: str) -> None:
        self._provider.revoke(self._vsp, key, reason)

    def opened(self, key: int, ticket: int, ok: bool) -> None:
        self._provider.opened(self._vsp, key, ticket, ok)

    def closed(self, key: int, ticket: int) -> None:
        self._provider.closed(self._vsp, key, ticket)

    def gpadl_accepted(self, key: int, gpadl: int, ticket: int, ok: bool) -> None:
        self._provider.gpadl_accepted(self._vsp, key, gpadl, ticket, ok)

    def gpadl_torn_down(self, key: int, gpadl: int, ticket: int) -> None:
        self._provider.gpadl_torn_down(self._vsp, key, gpadl, ticket)
