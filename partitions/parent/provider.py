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
from partitions.parent.offered import Device, Devices, Guest
from partitions.parent.vsplink import (
    FIRST_PARTITION_PORT,
    HELLO,
    MANAGEMENT_ANSWERS,
    MANAGEMENT_CONNECTION,
    MANAGEMENT_TO_PROVIDER,
    OFFER,
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
from vmbus_emu.task import Future, Task
from vmbus_emu.vmbus import effects as fx
from vmbus_emu.vmbus.server import Connection
from vmbus_emu.vp import VirtualProcessor

#: Messages that may wait for a child to take them; a child that takes none is cut off.
MAX_BACKLOG = 512
#: Devices that VSPs may offer, over all guests.
MAX_DEVICES = 1 << 16
#: Seconds after which management hears that we are there: it would take CPU from guests that are to be served again.
MANAGEMENT_AFTER_S = 0.02
#: Refusals of one guest that are written to the log; the rest are only counted.
LOGGED_REFUSALS = 20


class Provider:
    """``vsps`` are the VSPs in this process; those of other partitions come with their ``attach``."""

    def __init__(
        self, loop: Loop, vp: VirtualProcessor, log: Callable[[str], Any], on_good: Callable[[], Any] = lambda: None
    ) -> None:
        """``on_good`` is called when a channel was opened for the first time."""
        self._loop = loop
        self._vp = vp
        self._wiring = Wiring(vp)
        self._log = log
        self._ring = False
        self._regions: dict[str, Sequence[Mapping[str, Any]]] = {}
        self._asking = Asking(self._place, lambda vsp: VspFace(self, vsp))
        self._vsps: dict[str, VspSide] = {}
        self._vsp_partitions: dict[int, str] = {}
        self._vsp_incarnations: dict[str, int] = {}     # of those in partitions of their own, that said hello
        self._guests: dict[int, Guest] = {}
        self._devices = Devices()
        self._effects: deque[tuple[Guest, fx.Effect]] = deque()
        self._draining = False
        self._vacated: set[str] = set()     # VMs that have let go of a channel, or of a device: others may have waited
        self._strange = 0
        self._on_good = on_good
        self._was_good = False
        vp.on_message = self._message

    # -- start --------------------------------------------------------------------------------------

    def share_memory(self, regions: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Channels are rings in the guests' I/O memory: ``regions`` by VM. Before anything is offered."""
        self._ring = True
        self._regions = dict(regions)
        self._asking = load("partitions.parent.ring_asking:RingAsking")(
            self._place, lambda vsp: VspFace(self, vsp), self._loop, self._wiring, self._regions, self._log
        )

    def vm_added(self, vm: str, regions: Sequence[Mapping[str, Any]]) -> None:
        """A VM came while this runs; :meth:`attach` follows. One that takes a former one's name may have other
        memory."""
        self._regions[vm] = regions

    def _place(self, name: str) -> tuple[VspSide, int] | None:
        vsp = self._vsps.get(name)
        if vsp is None:
            return None
        return vsp, next((number for number, own in self._vsp_partitions.items() if own == name), hv.PARTITION_ROOT)

    async def prepare(self, partitions: Sequence[tuple[int, str, str]], again: bool = False) -> bool:
        """Make the port over which management reaches us, and find again what runs already: ``partitions`` by
        number, component name and kind, if we are not the first incarnation (``again``). ``False`` if the hypervisor
        refused."""
        made = [self._wiring.wire_management()]
        made += [self._find(*one) for one in partitions]
        if again:  # what it had asked the one before for, it asks us for
            back = MANAGEMENT_ANSWERS, hv.MESSAGE_PARENT_BACK, b""
            self._loop.call_later(MANAGEMENT_AFTER_S, self._vp.post, *back)
        return all([await one for one in made])

    def _find(self, partition: int, name: str, kind: str) -> Future[bool]:
        """Take over a partition that an earlier incarnation was told to attach."""
        self._replaces(name, partition)
        if kind == "child":
            self._add_guest(name, partition)
            self._ask_for(self._guests[partition])  # now, for its answer comes before the guest's first word
        else:
            self._vsp_partitions[partition] = name
        found = self._wiring.find_again(partition, kind == "child")
        self._vp.post(FIRST_PARTITION_PORT + partition, hv.MESSAGE_PARENT_BACK, b"")
        return found

    def started(self, partition: int, name: str, kind: str) -> None:
        """The machine says that ``partition`` has its process now. Who attached it may be dead, and it did not run yet
        when we were told what does."""
        if partition not in self._guests and partition not in self._vsp_partitions:
            self._find(partition, name, kind).then(lambda found: self._wired(name, found.result()))

    def add_vsp(self, name: str, vsp: VspSide) -> VspFace:
        """A VSP in this process; what it talks to."""
        self._vsps[name] = vsp
        return VspFace(self, name)

    # -- partitions come and go -----------------------------------------------------------------------

    def attach(self, partition: int, name: str, kind: str) -> None:
        """Management created ``partition`` for component ``name``; ``kind`` is ``child`` or ``vsp``."""
        Task(self._loop, self._attach(partition, name, kind))

    async def _attach(self, partition: int, name: str, kind: str) -> None:
        self._replaces(name, partition)
        if kind == "child":
            made = self._wiring.wire_child(partition)
            if partition not in self._guests:  # otherwise it was asked for twice, of the one before us and of us
                self._add_guest(name, partition)
        else:
            made = self._wiring.wire_vsp(partition)
            self._vsp_partitions[partition] = name
        ok = await made
        self._wired(name, ok)
        self._vp.post(MANAGEMENT_ANSWERS, hv.MESSAGE_CONTROL, encode("attached", partition, ok))

    def _replaces(self, name: str, partition: int) -> None:
        """Component ``name`` has that partition now. One that was attached for it and never started had no process
        whose death could be told; its devices are for this one."""
        for guest in [guest for guest in self._guests.values() if guest.name == name and guest.partition != partition]:
            self._end(guest)
        for number in [one for one, own in self._vsp_partitions.items() if own == name and one != partition]:
            del self._vsp_partitions[number]

    def _add_guest(self, name: str, partition: int) -> None:
        guest = self._guests[partition] = Guest(name, partition, Connection(require_ring_gpadl=self._ring))
        for device in self._devices.of(guest.name):
            self._offer_to(guest, device)

    def hello(self, vsp: str, incarnation: int, offers: Sequence[object] = ()) -> None:
        """The first word of a VSP in a partition of its own. Whatever an earlier incarnation had is gone."""
        if incarnation <= self._vsp_incarnations.get(vsp, 0):
            self._strange += 1
            return
        partition = next(number for number, own in self._vsp_partitions.items() if own == vsp)
        self._vsp_gone(vsp)
        self._vsp_incarnations[vsp] = incarnation
        self._wiring.wire_vsp_again(partition).then(lambda wired: self._wired(vsp, wired.result()))
        self._vsps[vsp] = RemoteVsp(
            lambda payload: self._vp.post(FIRST_PARTITION_PORT + partition, hv.MESSAGE_CONTROL, payload)
        )
        for offer in offers:
            self._strange += type(offer) is not bytes or not dispatch(OFFER, VspFace(self, vsp), offer)

    def _wired(self, name: str, ok: bool) -> None:
        if not ok:
            self._log(f"{name}: the hypervisor refused its ports")

    def peer_died(self, name: str, incarnation: int, partition: int = 0) -> None:
        """The machine says that a component is dead: end its connection, or revoke its devices. ``partition``: where it
        was, for it may be attached anew with another one already; 0: wherever it was."""
        for guest in [guest for guest in self._guests.values() if guest.name == name]:
            if partition in (0, guest.partition):
                self._end(guest)
        if name in self._vsp_partitions.values() and incarnation >= self._vsp_incarnations.get(name, 0):
            self._vsp_gone(name)

    def _end(self, guest: Guest) -> None:
        """It is dead. Of no effect the second time."""
        if guest.gone:
            return
        self._vp.disconnect(FIRST_PARTITION_PORT + guest.partition)
        guest.gone = True
        guest.pid = 0
        guest.waiting.clear()
        self._apply(guest, guest.connection.disconnect())
        self._asking.gone(guest.partition, guest.name, list(self._vsps.values()))

    def _vsp_gone(self, name: str) -> None:
        """A VSP in a partition of its own ended. Its devices come back with its next incarnation."""
        vsp = self._vsps.pop(name, None)
        if isinstance(vsp, RemoteVsp):
            vsp.end()
            for partition in [number for number, own in self._vsp_partitions.items() if own == name]:
                self._vp.disconnect(FIRST_PARTITION_PORT + partition)
            for device in self._devices.offered_by(name):
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
            # Of a dead incarnation something may still be under way: until the next one says hello, nothing counts.
            table = TO_PROVIDER if vsp in self._vsps else HELLO
            understood = dispatch(table, VspFace(self, vsp), message.payload)
        elif message.port == MANAGEMENT_CONNECTION:
            understood = dispatch(MANAGEMENT_TO_PROVIDER, self, message.payload)
        self._strange += not understood

    def _from_guest(self, guest: Guest, payload: bytes) -> None:
        if guest.pid:
            self._apply(guest, guest.connection.receive(payload))
            return
        if len(guest.waiting) >= hv.MESSAGE_BUFFERS_PER_PORT:
            self._refused(guest, "too many messages before its process was known")
            return
        guest.waiting.append(payload)
        if not guest.asked_for:
            self._ask_for(guest)

    def _ask_for(self, guest: Guest) -> None:
        """Ask the hypervisor which process stands in for it."""
        guest.asked_for = True
        block = hv.GET_PROPERTY.pack(guest.partition, Property.PROCESS_ID)
        asked = self._vp.call(Code.GET_PARTITION_PROPERTY, block)
        asked.then(lambda future: self._pid_known(guest, *future.result()))

    def _pid_known(self, guest: Guest, status: HvStatus, output: bytes) -> None:
        guest.asked_for = False
        waiting, guest.waiting = guest.waiting, []
        if status is HvStatus.SUCCESS and not guest.gone:
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
        while self._effects or self._vacated:
            if self._effects:
                self._carry_out(*self._effects.popleft())
            else:  # not before: several channels may be freed at once, and what is offered takes their numbers
                self._offer_waiting(self._vacated.pop())
        self._draining = False

    def _carry_out(self, guest: Guest, effect: fx.Effect) -> None:
        match effect:
            case fx.Send(payload):
                self._send(guest, payload)
            case fx.OpenDevice() | fx.CloseDevice() | fx.AcceptGpadl() | fx.TearDownGpadl():
                self._asking.carry_out(guest, effect)
            case fx.Freed(relid):
                self._freed(guest, guest.devices.pop(relid))
            case fx.Contacted(version, _, _, _):
                self._log(f"{guest.name}: VMBus connection, version {version_text(version)}")
            case fx.VersionRefused(version):
                self._log(f"{guest.name}: version {version_text(version)} is not spoken here")
            case fx.Refused(reason):
                self._refused(guest, reason)
            case fx.Unloaded():
                self._log(f"{guest.name}: VMBus connection ended")
            case fx.Disconnected():
                self._forget(guest)
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
        known = self._devices.find(vsp, key)
        if (
            len(interface) != 16 or len(instance) != 16 or len(user_data) > USER_DATA_BYTES
            or (known is not None and not known.revoked) or len(self._devices) >= MAX_DEVICES
        ):
            self._strange += 1  # a VSP in a partition of its own can send anything, like a guest
            return
        offer = fx.Offer(
            UUID(bytes_le=interface), UUID(bytes_le=instance), user_data, connection_id=self._asking.doorbell()
        )
        device = Device(vsp, key, vm, offer)
        self._devices.add(device)
        for guest in self._guests.values():
            if guest.name == vm:
                self._offer_to(guest, device)

    def _offer_to(self, guest: Guest, device: Device) -> None:
        """Offer the device, unless somebody has it, or one in its place, still. A guest that has to let go of one first
        hears of that before this offer, for its messages keep their order."""
        if guest.gone or device.revoked or device.guest is not None or guest.has(device.offer.instance):
            return
        if not guest.connection.has_room:
            return
        relid, effects = guest.connection.offer(device.offer)
        if relid:
            device.guest, device.relid = guest, relid
            guest.devices[relid] = device
        self._apply(guest, effects)

    def _freed(self, guest: Guest, device: Device) -> None:
        """A channel exists no longer: what waited for that can be offered now."""
        device.guest, device.relid = None, 0
        if device.revoked:
            self._devices.remove(device)
        self._vacated.add(device.vm)

    def _offer_waiting(self, vm: str) -> None:
        for guest in [guest for guest in self._guests.values() if guest.name == vm]:
            for waiting in self._devices.of(vm):
                self._offer_to(guest, waiting)

    def _forget(self, guest: Guest) -> None:
        """Every device has let go of a guest that is gone."""
        self._log(f"{guest.name}: VMBus connection ended")
        for relid in list(guest.devices):
            self._apply(guest, guest.connection.revoke(relid))
        self._guests.pop(guest.partition, None)

    def revoke_asked(self, vsp: str, key: int, reason: str) -> None:
        """A VSP takes a device from a guest, and hears when that is certain."""
        if self._devices.find(vsp, key) is not None and vsp in self._vsps:
            self.revoke(vsp, key, reason)
            self._vsps[vsp].revoked(key)

    def revoke(self, vsp: str, key: int, reason: str) -> None:
        device = self._devices.find(vsp, key)
        if device is None or device.revoked:
            return
        device.revoked = True
        if device.guest is None:
            self._devices.remove(device)
            return
        self._log(f"{device.vm}: channel {device.relid} revoked: {reason}")
        self._apply(device.guest, device.guest.connection.revoke(device.relid))
        self._asking.ended(device)

    def opened(self, vsp: str, key: int, ticket: int, ok: bool) -> None:
        device = self._devices.find(vsp, key)
        if ok and not self._was_good:
            self._was_good = True
            self._on_good()
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
        device = self._devices.find(vsp, key)
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

    def hello(self, incarnation: int, offers: Sequence[object] = ()) -> None:
        self._provider.hello(self._vsp, incarnation, offers)

    def offer(self, key: int, vm: str, interface: bytes, instance: bytes, user_data: bytes) -> None:
        self._provider.offer(self._vsp, key, vm, interface, instance, user_data)

    def revoke(self, key: int, reason: str) -> None:
        self._provider.revoke_asked(self._vsp, key, reason)

    def opened(self, key: int, ticket: int, ok: bool) -> None:
        self._provider.opened(self._vsp, key, ticket, ok)

    def closed(self, key: int, ticket: int) -> None:
        self._provider.closed(self._vsp, key, ticket)

    def gpadl_accepted(self, key: int, gpadl: int, ticket: int, ok: bool) -> None:
        self._provider.gpadl_accepted(self._vsp, key, gpadl, ticket, ok)

    def gpadl_torn_down(self, key: int, gpadl: int, ticket: int) -> None:
        self._provider.gpadl_torn_down(self._vsp, key, gpadl, ticket)
