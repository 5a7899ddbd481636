"""The parent partition's process, and a VSP's own process in the disaggregated placement.

Both carry the same VSP components. :class:`ParentProcess` also carries the VMBus provider, which it hands its
VSPs as an object; :class:`VspProcess` reaches the provider by SynIC messages through the hypervisor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from partitions.driver_store import DriverStore
from partitions.media import Disks
from partitions.parent.provider import Provider
from partitions.parent.vsplink import (
    CONTROL_PORT,
    TO_VSP,
    ProviderSide,
    RemoteProvider,
    VspSide,
    dispatch,
    fitting,
)
from vmbus_emu.lifeline import Message
from vmbus_emu.node import Node, load
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.task import Future, Task
from vmbus_emu.vp import VirtualProcessor

if TYPE_CHECKING:
    from partitions.faults import DriverFaults
    from partitions.parent.integration import IntegrationVsp
    from partitions.parent.rehearsal import Rehearsal

#: Channels a process can serve: one ZeroMQ socket each. libzmq allocates 12 bytes for each at the start.
MAX_CHANNELS = 16384
#: Between two attempts of a VSP to reach the provider, in seconds.
#: A spare rehearses when nothing died for so long: it costs as much as it saves where one death follows the other.
_CALM_S = 0.15
#: After the parent's start the integration components let disks and NICs go first for so long, in seconds.
_COMPONENTS_AFTER_S = 0.05
_FIRST_RETRY_S = 0.001
_LAST_RETRY_S = 0.25


class VspComponent(VspSide, Protocol):
    def offer_all(self, provider: ProviderSide) -> None: ...
    def provider_gone(self) -> None: ...
    def drivers(self) -> Mapping[str, Any]: ...
    def has(self, vm: str) -> bool: ...
    def add_vm(self, arrival: Mapping[str, Any]) -> None: ...
    def remove_vm(self, vm: str) -> None: ...
    def changes(self, device: str) -> bool: ...
    def change_driver(
        self, device: str, described: Mapping[str, Any], changed: Callable[[float, str], Any]
    ) -> None: ...
    def stats(self) -> Mapping[str, Any]: ...


class VspCarrier:
    """What both processes do: take media, build the VSPs named in the configuration, report their figures."""

    has_drivers = True

    def __init__(self, node: Node) -> None:
        self.node = node
        node.max_sockets = MAX_CHANNELS
        self.vp = VirtualProcessor(node.loop, node.context)
        self.disks = Disks(node.log)
        self.wires: dict[str, tuple[int, str]] = {}
        self.vsps: dict[str, VspComponent] = {}
        self._needed = False
        self._rehearsal: Rehearsal | None = None

    def start(self, config: Message) -> None:
        raise NotImplementedError

    def handle(self, message: Message, fds: list[int]) -> None:
        if message["t"] == "medium":
            self.disks.insert(message, fds)
        elif message["t"] == "wire":
            self.wires[message["name"]] = fds[0], message["far"]
        elif message["t"] == "driver":
            self._change_driver(message["number"], message["device"], message["driver"])
        elif message["t"] == "hypervisor":
            self.vp.reconnect(message["socket"])
        elif message["t"] == "hypervisor_gone":
            self.vp.abandon()
        elif message["t"] == "prepare":
            self.prepare(message["config"])
            self.node.loop.call_later(_CALM_S, self._rehearse, message["config"])
        elif message["t"] == "needed":
            self._needed = True
            if self._rehearsal is not None:
                self._rehearsal.end()
        elif message["t"] == "fault":
            self._faults.handle(message)
        elif message["t"] == "cable":
            self.vsps["netvsp"].plug(message["vm"], message["device"], fds[0])  # type: ignore[attr-defined]
        elif message["t"] == "vm_added":
            self.vm_added(message)
        elif message["t"] == "vm_removed":
            for vsp in self.vsps.values():
                vsp.remove_vm(message["vm"])

    def _change_driver(self, number: int, device: str, described: Mapping[str, Any]) -> None:
        """Answer the machine, which counts its orders; without VSPs yet, the configuration that makes them has it."""

        def changed(held_ms: float, why: str) -> None:
            self.node.lifeline.send({
                "t": "driver_bound", "number": number, "device": device, "held_ms": held_ms, "why": why[:1000],
            })

        for vsp in self.vsps.values():
            if vsp.changes(device):
                vsp.change_driver(device, described, changed)

    def vm_added(self, arrival: Message) -> None:
        """A VM came while this runs. Without VSPs yet, the configuration that makes them will have it."""
        if "storvsp" in self.vsps and not self.vsps["storvsp"].has(arrival["vm"]):
            self.disks.build(arrival["disks"], lambda medium: self.node.loop)
        for vsp in self.vsps.values():
            if not vsp.has(arrival["vm"]):
                vsp.add_vm(arrival)

    @cached_property
    def _faults(self) -> DriverFaults:
        faults: DriverFaults = load("partitions.faults:DriverFaults")(self._drivers, lambda vm: None, self.node.log)
        return faults

    def _drivers(self, component: str) -> dict[str, Any]:
        if component not in self.vsps:
            return {}
        return {name: (driver, self.node.loop) for name, driver in self.vsps[component].drivers().items()}

    def prepare(self, config: Message) -> None:
        """Make the VSPs this process carries, and their drivers; once, and for a spare before it is wanted."""
        if self.vsps:
            return
        self.vp.recoverable = config["hypervisor_recovers"]
        self.vp.connect(config["socket"])
        self.node.poll = config["poll"]
        if "storvsp" in config:
            self.disks.store = DriverStore(config["storvsp"]["controllers"])
            self.disks.build(config["storvsp"]["disks"], lambda medium: self.node.loop)
            self.vsps["storvsp"] = load(config["storvsp"]["entry"])(self.node, config, self.disks)
        if "netvsp" in config:
            self.vsps["netvsp"] = load(config["netvsp"]["entry"])(self.node, config, self.wires)

    def _rehearse(self, config: Message) -> None:
        if not self._needed and config.get("storvsp", {}).get("disks"):
            self._rehearsal = load("partitions.parent.rehearsal:Rehearsal")(type(self), self.node, config)

    def stats(self) -> dict[str, Mapping[str, Any]]:
        return {name: vsp.stats() for name, vsp in self.vsps.items()}


class ParentProcess(VspCarrier):
    """The root partition's VP 0: the VMBus provider, and in the microkernel placement the VSPs."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._begun = False
        self._config: Message = {}
        self._provider = Provider(node.loop, self.vp, node.log, self._good)

    def start(self, config: Message) -> None:
        self._begun = True
        self._config = config
        if config["transport"] == "ring":
            self._provider.share_memory(config["io_memory"])
        self.prepare(config)
        self.vp.connect(config["socket"])
        for name, vsp in self.vsps.items():
            vsp.offer_all(self._provider.add_vsp(name, vsp))
        Task(self.node.loop, self._prepare(config["components"], config["running"]))
        if "ic" in config:
            self.node.loop.call_later(_COMPONENTS_AFTER_S, lambda: self._integration)

    @cached_property
    def _integration(self) -> IntegrationVsp:
        """Made after a while, or when it is wanted."""
        vsp: IntegrationVsp = load(self._config["ic"]["entry"])(self.node, self._config)
        vsp.offer_all(self._provider.add_vsp(vsp.NAME, vsp))
        return vsp

    def _add_to_integration(self, arrival: Message) -> None:
        """A VM came; before the integration components are made, their configuration has it."""
        if "_integration" not in self.__dict__:
            if "ic" in self._config:
                self._config["ic"]["vms"][arrival["vm"]] = arrival["components"]
        elif not self._integration.has(arrival["vm"]):
            self._integration.add_vm(arrival)

    def _good(self) -> None:
        """The provider has done what it is for; where VSPs live here, too, that is for them to say."""
        if not self.vsps:
            self.node.lifeline.send({"t": "good", "component": self.node.name})

    async def _prepare(self, components: list[str], running: list[tuple[int, str, str]]) -> None:
        if not await self._provider.prepare(running, again=self.node.incarnation > 1):
            self.node.log("the hypervisor refused the provider's ports")
            self.node.leave(1)
        for component in components:
            self.node.ready(component)

    def handle(self, message: Message, fds: list[int]) -> None:
        if message["t"] == "vm_added":
            self._provider.vm_added(message["vm"], message["io_memory"])
            self.vm_added(message)
            self._add_to_integration(message)
        elif message["t"] == "vm_removed":
            super().handle(message, fds)
            if "_integration" in self.__dict__:
                self._integration.remove_vm(message["vm"])
            elif "ic" in self._config:
                self._config["ic"]["vms"].pop(message["vm"], None)
        elif message["t"] == "peer_died":
            self._provider.peer_died(message["name"], message["incarnation"], message["partition"])
        elif message["t"] == "partition":
            if self._begun:  # otherwise our configuration will say it
                self._provider.started(message["partition"], message["name"], message["kind"])
        elif message["t"] == "integration":
            self._order(message)
        else:
            super().handle(message, fds)

    def _order(self, order: Message) -> None:
        """Management wants something of a guest."""

        def done(outcome: Mapping[str, Any]) -> None:
            self.node.lifeline.send({"t": "integration_done", "id": order["id"], **outcome})

        load("partitions.parent.integration_orders:carry_out")(self._integration, self.node.loop, order, done)

    def stats(self) -> dict[str, Mapping[str, Any]]:
        parent = dict(self._provider.stats())
        if "_integration" in self.__dict__:
            parent["counters"] = {**parent["counters"], **self._integration.counters()}
        return {"parent": parent, **super().stats()}


class VspProcess(VspCarrier):
    """A partition of its own for one VSP."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._provider: RemoteProvider | None = None

    def start(self, config: Message) -> None:
        self.prepare(config)
        self.vp.on_message = self._message
        self.vp.connect(config["socket"])
        self._say_hello(_FIRST_RETRY_S)
        for component in config["components"]:
            self.node.ready(component)

    def _say_hello(self, delay: float) -> None:
        """The provider may be dead too, and its next incarnation not have found us yet."""

        def post(payload: bytes) -> Future[hv.HvStatus]:
            return self.vp.post(CONTROL_PORT, hv.MESSAGE_CONTROL, payload)

        waiting: list[bytes] = []
        heard = False
        provider = self._provider = RemoteProvider(lambda payload: post(payload) if heard else waiting.append(payload))
        for vsp in self.vsps.values():
            vsp.offer_all(provider)
        at_once = fitting(self.node.incarnation, waiting)

        def said(future: Future[hv.HvStatus]) -> None:
            nonlocal heard
            if self._provider is not provider:
                return
            if future.result() is hv.HvStatus.SUCCESS:
                heard = True
                for payload in waiting[at_once:]:
                    post(payload)
            else:
                self.node.loop.call_later(delay, self._again, provider, min(2 * delay, _LAST_RETRY_S))

        RemoteProvider(post).hello(self.node.incarnation, waiting[:at_once]).then(said)

    def _again(self, provider: RemoteProvider, delay: float) -> None:
        if self._provider is provider:
            self._say_hello(delay)

    def _message(self, sint: int, message: hv.SynicMessage) -> None:
        if message.kind == hv.MESSAGE_CONTROL:
            for vsp in self.vsps.values():
                dispatch(TO_VSP, vsp, message.payload)
        elif message.kind == hv.MESSAGE_PARENT_RESET:
            self._provider = None
            self.vp.disconnect(CONTROL_PORT)
            for vsp in self.vsps.values():
                vsp.provider_gone()
        elif message.kind == hv.MESSAGE_PARENT_BACK and self._provider is None:
            self._say_hello(_FIRST_RETRY_S)
