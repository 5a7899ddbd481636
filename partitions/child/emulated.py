"""A child partition without integration services: no VMBus driver, but drivers of emulated devices.

Nothing of VMBus is loaded here. Every register access of the drivers is an intercept, which the VM's worker in the
parent partition answers; interrupts come from there, through the hypervisor.
"""

from __future__ import annotations

from typing import Any

from partitions.child import commands
from partitions.child.guest import Guest
from partitions.child.intercepts import InterceptedPorts
from partitions.child.legacy import LegacyDevices
from vmbus_emu.lifeline import Message
from vmbus_emu.memory import Region
from vmbus_emu.node import Node, load
from vmbus_emu.protocol.intercept import LEGACY_VECTOR
from vmbus_emu.task import Task
from vmbus_emu.vp import VirtualProcessor

_SHARED = (commands,)


class EmulatedChildProcess:
    """The component of such a VM."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._guest: Guest | None = None
        self._vp: VirtualProcessor | None = None

    def start(self, config: Message) -> None:
        (guest,) = config["guests"]
        (memory,) = guest["io_memory"]
        region = Region(self._node.io_memory[0], memory["gpa"], memory["pages"])
        vp = self._vp = VirtualProcessor(self._node.loop, self._node.context)
        vp.recoverable = config["hypervisor_recovers"]
        devices = LegacyDevices(self._node.loop, InterceptedPorts(vp), region, self._kernel_log)
        vp.on_interrupt = lambda vector: devices.interrupt(vector - LEGACY_VECTOR)
        vp.connect(config["socket"])
        Task(self._node.loop, self._boot(guest, devices, vp))

    def _kernel_log(self, text: str) -> None:
        if self._guest is not None:
            self._guest.kernel_log(text)
        else:
            self._node.log(text)

    async def _boot(self, config: Message, devices: LegacyDevices, vp: VirtualProcessor) -> None:
        missing = await devices.start(config["disks"], config["nics"])
        if missing:
            why = f"its worker has no {', '.join(missing)}"
            self._node.lifeline.send({"t": "not_started", "component": self._node.name, "why": why})
            return
        guest = self._guest = Guest(
            self._node.loop, config, devices.disks, devices.nics, self._node.lifeline.send, self._node.log
        )
        guest.without_services = f"vmbus-emu services install {guest.name}"
        guest.link_counters = lambda: {"intercepts": vp.intercepts}
        guest.announce_devices()
        self._node.ready(self._node.name)

    def handle(self, message: Message, fds: list[int]) -> None:
        if self._guest is not None and "session" in message:
            self._guest.console.handle(message)
        elif self._vp is not None and message["t"] == "hypervisor":
            self._vp.reconnect(message["socket"])
        elif self._guest is not None and message["t"] == "shut_down":
            leave = load("partitions.child.power_off:leave")
            Task(self._node.loop, leave(self._node, self._guest, message["patience_s"]))

    def stats(self) -> dict[str, dict[str, Any]]:
        return {} if self._guest is None else {self._node.name: self._guest.stats()}
