"""Management, the articles' "controlling function": it creates, attaches, initializes and starts partitions.

A process of its own in the parent partition (the root's VP 1). Every step is a hypercall, but for the ports of
a new partition, which the VMBus provider makes: it is told over a SynIC connection within the root. The
monolith does the same steps by calls (partitions/monolith.py).
"""

from __future__ import annotations

from typing import Any

from partitions.parent.vsplink import MANAGEMENT_CONNECTION, PROVIDER_TO_MANAGEMENT, dispatch, encode
from partitions.parent.wiring import Wiring
from vmbus_emu.lifeline import Message
from vmbus_emu.node import Node
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Code, HvStatus
from vmbus_emu.task import Future, Task
from vmbus_emu.vp import VirtualProcessor


class Management:
    """The component ``management``."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._vp = VirtualProcessor(node.loop, node.context)
        self._vp.on_message = self._message
        self._attached: dict[int, Future[bool]] = {}
        self._started = 0
        self._failed = 0

    def start(self, config: Message) -> None:
        """``partitions``: what to bring up; none of it is there yet, or this is not the first incarnation."""
        self._vp.recoverable = config["hypervisor_recovers"]
        self._vp.connect(config["socket"])
        Wiring(self._vp).wire_provider()
        self._node.ready("management")
        for name, kind in config["partitions"]:
            Task(self._node.loop, self._bring_up(name, kind))

    async def _bring_up(self, name: str, kind: str) -> None:
        step = "create partition"
        status, output = await self._vp.call(Code.CREATE_PARTITION, hv.CREATE_PARTITION.pack(0, 0, 0, name.encode()))
        if status is HvStatus.SUCCESS:
            number = hv.PARTITION_ID.unpack_from(output)[0]
            step = "attach to VMBus"
            if not await self._attach(number, name, kind):
                status = HvStatus.OPERATION_DENIED
        if status is HvStatus.SUCCESS:
            step = "initialize partition"
            status, _ = await self._vp.call(Code.INITIALIZE_PARTITION, hv.PARTITION_ID.pack(number))
        if status is HvStatus.SUCCESS:
            step = "start virtual processor"
            status, _ = await self._vp.call(Code.START_VIRTUAL_PROCESSOR, hv.START_VP.pack(number, 0, 0))
        if status is HvStatus.SUCCESS:
            self._started += 1
        else:
            self._failed += 1
            self._node.log(f"{name}: {step}: {status.name}")
            self._node.lifeline.send({"t": "not_started", "component": name, "why": f"{step}: {status.name}"})

    def _attach(self, number: int, name: str, kind: str) -> Future[bool]:
        attached = self._attached[number] = Future()
        posted = self._vp.post(MANAGEMENT_CONNECTION, hv.MESSAGE_CONTROL, encode("attach", number, name, kind))
        posted.then(lambda future: None if future.result() is HvStatus.SUCCESS else self.attached(number, False))
        return attached

    async def _start_again(self, name: str, kind: str, old: int) -> None:
        """A new partition for a component whose old one, ``old``, has lost its process."""
        for code in (Code.FINALIZE_PARTITION, Code.DELETE_PARTITION) if old else ():
            await self._vp.call(code, hv.PARTITION_ID.pack(old))
        await self._bring_up(name, kind)

    def _message(self, sint: int, message: hv.SynicMessage) -> None:
        dispatch(PROVIDER_TO_MANAGEMENT, self, message.payload)

    def attached(self, partition: int, ok: bool) -> None:
        """The provider's answer: the partition has its ports, or not."""
        waiting = self._attached.pop(partition, None)
        if waiting is not None:
            waiting.resolve(ok)

    def handle(self, message: Message, fds: list[int]) -> None:
        if message["t"] == "start_partition":
            Task(self._node.loop, self._start_again(message["name"], message["kind"], message["old"]))
        elif message["t"] == "hypervisor":
            self._vp.reconnect(message["socket"])
        elif message["t"] == "hypervisor_gone":
            self._vp.abandon()
            for number in list(self._attached):  # the provider's answers come through the hypervisor
                self.attached(number, False)
        elif message["t"] == "peer_died" and message["name"] == "parent":
            for number in list(self._attached):  # it will not answer
                self.attached(number, False)

    def stats(self) -> dict[str, dict[str, Any]]:
        counters = {"started": self._started, "failed": self._failed, "hypercalls": self._vp.hypercalls}
        return {"management": {"counters": counters}}
