"""A child partition's process: one virtual processor, the VMBus driver with its VSCs, and the guest above them."""

from __future__ import annotations

import time
from typing import Any

from partitions.child import commands
from partitions.child.bus import BusDriver
from partitions.child.components import GuestComponents
from partitions.child.guest import Guest
from partitions.child.links import Links
from partitions.child.netvsc import NetVsc
from partitions.child.storvsc import StorVsc
from vmbus_emu.lifeline import Message
from vmbus_emu.node import Node, load
from vmbus_emu.protocol.ic import COMPONENTS
from vmbus_emu.task import Task
from vmbus_emu.vp import VirtualProcessor

#: Loaded with this module, so that a zygote shares the commands' code between all VMs.
_SHARED = (commands,)


class ChildProcess:
    """The component of a VM."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._guest: Guest | None = None
        self._bus: BusDriver | None = None
        self._vp: VirtualProcessor | None = None
        self._told = False

    def start(self, config: Message) -> None:
        node = self._node
        (guest,) = config["guests"]
        node.max_sockets += len(guest["disks"]) + len(guest["nics"]) + len(guest["components"])
        links = self.links(node, config, guest)
        disks = {name: StorVsc(node.loop, name, self._kernel_log, links.allocate) for name in guest["disks"]}
        nics = {name: NetVsc(node.loop, name, self._kernel_log) for name in guest["nics"]}
        self._guest = Guest(node.loop, guest, disks, nics, node.lifeline.send, node.log)
        services = self._guest.services
        services.shut_down = self._begin_shut_down
        newest = tuple(guest["component_framework"]) if guest["component_framework"] else None
        components = GuestComponents(node.loop, services, self._kernel_log, newest).devices
        vp = self._vp = VirtualProcessor(node.loop, node.context)
        vp.recoverable = config["hypervisor_recovers"]
        bus = self._bus = BusDriver(
            node.loop,
            links,
            vp,
            {guest["disks"][name]: disk for name, disk in disks.items()},
            {guest["nics"][name]: nic for name, nic in nics.items()},
            {COMPONENTS[name].instance.bytes_le: components[name] for name in guest["components"]},
            guest["vmbus_version"],
            self._kernel_log,
            self._bus_ready,
            self._device_event,
        )
        self._guest.bus_listing = bus.listing
        self._guest.link_counters = links.counters
        vp.connect(config["socket"])
        if disks or nics or guest["components"]:
            bus.start()
        if not disks and not nics:
            self._bus_ready(True, "")

    def links(self, node: Node, config: Message, guest: Message) -> Links:
        """How this VM's devices are reached."""
        gpas = {region["vsp"]: region["gpa"] for region in guest["io_memory"]}
        return Links(node.loop, node.context, config["channels"], gpas)

    def _kernel_log(self, text: str) -> None:
        assert self._guest is not None
        self._guest.kernel_log(text)

    def _bus_ready(self, ok: bool, why: str) -> None:
        assert self._guest is not None
        if self._told:
            return
        self._told = True
        if ok:
            self._guest.announce_devices()
            self._node.ready(self._node.name)
        else:
            self._node.lifeline.send({"t": "not_started", "component": self._node.name, "why": why})

    def _device_event(self, what: str, device: str, resent: int) -> None:
        self._node.lifeline.send({
            "t": "device", "component": self._node.name, "device": device, "what": what, "resent": resent,
            "ns": time.monotonic_ns(),
        })

    def handle(self, message: Message, fds: list[int]) -> None:
        if self._guest is not None and "session" in message:
            self._guest.console.handle(message)
        elif self._vp is not None and message["t"] == "hypervisor":
            self._vp.reconnect(message["socket"])
        elif self._bus is not None and message["t"] == "given_up":
            for name in message["names"]:
                self._bus.abandon(name)
            if "device" in message:
                self._bus.abandon_device(message["device"])
        elif self._guest is not None and message["t"] == "hosts":
            self._guest.know(message["hosts"])
        elif self._guest is not None and message["t"] == "shut_down":
            self._begin_shut_down(message["patience_s"])

    def _begin_shut_down(self, patience_s: float) -> None:
        Task(self._node.loop, load("partitions.child.power_off:leave")(self._node, self._guest, patience_s))

    def stats(self) -> dict[str, dict[str, Any]]:
        return {} if self._guest is None else {self._node.name: self._guest.stats()}
