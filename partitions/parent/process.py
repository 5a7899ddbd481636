"""The parent partition's process, and a VSP's own process in the disaggregated placement.

Both carry the same VSP components. :class:`ParentProcess` also carries the VMBus provider, which it hands its
VSPs as an object; :class:`VspProcess` reaches the provider by SynIC messages through the hypervisor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from partitions.media import Disks
from partitions.parent.provider import Provider
from partitions.parent.vsplink import CONTROL_PORT, TO_VSP, ProviderSide, RemoteProvider, VspSide, dispatch
from vmbus_emu.lifeline import Message
from vmbus_emu.node import Node, load
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.task import Task
from vmbus_emu.vp import VirtualProcessor

#: Channels a process can serve: one ZeroMQ socket each. libzmq allocates 12 bytes for each at the start.
MAX_CHANNELS = 16384


class VspComponent(VspSide, Protocol):
    def offer_all(self, provider: ProviderSide) -> None: ...
    def stats(self) -> Mapping[str, Any]: ...


class VspCarrier:
    """What both processes do: take media, build the VSPs named in the configuration, report their figures."""

    def __init__(self, node: Node) -> None:
        self.node = node
        node.max_sockets = MAX_CHANNELS
        self.vp = VirtualProcessor(node.loop, node.context)
        self.disks = Disks()
        self.vsps: dict[str, VspComponent] = {}

    def handle(self, message: Message, fds: list[int]) -> None:
        if message["t"] == "medium":
            self.disks.insert(message, fds)

    def build(self, config: Message) -> None:
        """Make the VSPs this process carries, and their drivers."""
        self.node.poll = config["poll"]
        if "storvsp" in config:
            self.disks.build(config["storvsp"]["disks"], lambda medium: self.node.loop)
            self.vsps["storvsp"] = load(config["storvsp"]["entry"])(self.node, config, self.disks)
        if "netvsp" in config:
            self.vsps["netvsp"] = load(config["netvsp"]["entry"])(self.node, config)

    def stats(self) -> dict[str, Mapping[str, Any]]:
        return {name: vsp.stats() for name, vsp in self.vsps.items()}


class ParentProcess(VspCarrier):
    """The root partition's VP 0: the VMBus provider, and in the microkernel placement the VSPs."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._provider = Provider(node.loop, self.vp, node.log)

    def start(self, config: Message) -> None:
        if config["transport"] == "ring":
            self._provider.share_memory(config["io_memory"])
        self.build(config)
        self.vp.connect(config["socket"])
        for name, vsp in self.vsps.items():
            vsp.offer_all(self._provider.add_vsp(name, vsp))
        Task(self.node.loop, self._prepare(config["components"]))

    async def _prepare(self, components: list[str]) -> None:
        if not await self._provider.prepare():
            self.node.log("the hypervisor refused the provider's ports")
            self.node.leave(1)
        for component in components:
            self.node.ready(component)

    def handle(self, message: Message, fds: list[int]) -> None:
        if message["t"] == "peer_died":
            self._provider.peer_died(message["name"])
        else:
            super().handle(message, fds)

    def stats(self) -> dict[str, Mapping[str, Any]]:
        return {"parent": self._provider.stats(), **super().stats()}


class VspProcess(VspCarrier):
    """A partition of its own for one VSP."""

    def start(self, config: Message) -> None:
        self.build(config)
        self.vp.on_message = self._message
        self.vp.connect(config["socket"])
        provider = RemoteProvider(lambda payload: self.vp.post(CONTROL_PORT, hv.MESSAGE_CONTROL, payload))
        for vsp in self.vsps.values():
            vsp.offer_all(provider)
        for component in config["components"]:
            self.node.ready(component)

    def _message(self, sint: int, message: hv.SynicMessage) -> None:
        if message.kind == hv.MESSAGE_CONTROL:
            for vsp in self.vsps.values():
                dispatch(TO_VSP, vsp, message.payload)
