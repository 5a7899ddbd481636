"""Management, the articles' "controlling function": it creates, attaches, initializes and starts partitions.

A process of its own in the parent partition (the root's VP 1). Every step is a hypercall, but for the ports of
a new partition, which the VMBus provider makes: it is told over a SynIC connection within the root. A provider that
dies meanwhile is asked again when its next incarnation says that it is there. The monolith does the same steps by
calls (partitions/monolith.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from partitions.parent.leftovers import clear_up, remove
from partitions.parent.vsplink import MANAGEMENT_CONNECTION, PROVIDER_TO_MANAGEMENT, dispatch, encode
from partitions.parent.wiring import Wiring
from vmbus_emu.lifeline import Message
from vmbus_emu.node import Node
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Code, HvStatus
from vmbus_emu.task import Future, Task
from vmbus_emu.vp import VirtualProcessor


class _Attaching(NamedTuple):
    """What the provider was asked, and whoever waits for its answer."""

    question: bytes
    answer: Future[bool]


class Management:
    """The component ``management``."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._vp = VirtualProcessor(node.loop, node.context)
        self._vp.on_message = self._message
        self._attaching: dict[int, _Attaching] = {}
        self._parent_returns = False
        #: What the machine asked for before this incarnation was ready.
        self._early: list[Message] | None = []
        self._started = 0
        self._failed = 0
        self._ended = 0
        self._cleared_up = 0

    def start(self, config: Message) -> None:
        """``partitions``: what to bring up; none of it is there yet. ``known``: the partitions with a process, if this
        is not the first incarnation. ``parent_returns``: whether a dead parent is replaced."""
        self._vp.recoverable = config["hypervisor_recovers"]
        self._parent_returns = config["parent_returns"]
        self._vp.connect(config["socket"])
        Wiring(self._vp).wire_provider()
        Task(self._node.loop, self._begin(config["partitions"], config["known"]))

    async def _begin(self, partitions: list[tuple[str, str]], known: list[int]) -> None:
        if self._node.incarnation > 1:
            self._cleared_up = await clear_up(self._vp, known)
        self._node.ready("management")
        for name, kind in partitions:
            Task(self._node.loop, self._bring_up(name, kind))
        early, self._early = self._early or [], None
        for message in early:
            self.handle(message, [])

    async def _bring_up(self, name: str, kind: str) -> None:
        step, number = "create partition", hv.PARTITION_INVALID
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
            return
        self._failed += 1
        self._node.log(f"{name}: {step}: {status.name}")
        if number != hv.PARTITION_INVALID:
            await remove(self._vp, number)
        self._node.lifeline.send({"t": "not_started", "component": name, "why": f"{step}: {status.name}"})

    async def _start_again(self, name: str, kind: str, old: int) -> None:
        """A new partition for a component whose old one, ``old``, has lost its process."""
        if old:
            await remove(self._vp, old)
        await self._bring_up(name, kind)

    async def _end(self, name: str, old: int) -> None:
        """Take a component's partition away, with its process if it has one. What is gone already stays gone."""
        if old:
            await remove(self._vp, old)
            self._ended += 1
        self._node.lifeline.send({"t": "partition_ended", "name": name})

    # -- the provider -----------------------------------------------------------------------------------

    def _attach(self, number: int, name: str, kind: str) -> Future[bool]:
        self._attaching[number] = _Attaching(encode("attach", number, name, kind), Future())
        self._ask(number)
        return self._attaching[number].answer

    def _ask(self, number: int) -> None:
        """Ask the provider, or ask it again: it may not have got the question, nor we the answer."""
        posted = self._vp.post(MANAGEMENT_CONNECTION, hv.MESSAGE_CONTROL, self._attaching[number].question)
        posted.then(lambda future: self._asked(number, future.result()))

    def _asked(self, number: int, status: HvStatus) -> None:
        nobody_there = status is HvStatus.INVALID_CONNECTION_ID
        if status is not HvStatus.SUCCESS and not (nobody_there and self._parent_returns):
            self.attached(number, False)

    def _message(self, sint: int, message: hv.SynicMessage) -> None:
        if message.kind == hv.MESSAGE_PARENT_BACK:
            for number in list(self._attaching):
                self._ask(number)
        else:
            dispatch(PROVIDER_TO_MANAGEMENT, self, message.payload)

    def attached(self, partition: int, ok: bool) -> None:
        """The provider's answer: the partition has its ports, or not."""
        waiting = self._attaching.pop(partition, None)
        if waiting is not None:
            waiting.answer.resolve(ok)

    def _provider_is_gone(self) -> None:
        """It will not answer, and nor will another one."""
        for number in list(self._attaching):
            self.attached(number, False)

    # -- the machine ------------------------------------------------------------------------------------

    def handle(self, message: Message, fds: list[int]) -> None:
        if message["t"] in ("start_partition", "end_partition") and self._early is not None:
            self._early.append(message)
        elif message["t"] == "start_partition":
            Task(self._node.loop, self._start_again(message["name"], message["kind"], message["old"]))
        elif message["t"] == "end_partition":
            Task(self._node.loop, self._end(message["name"], message["old"]))
        elif message["t"] == "hypervisor":
            self._vp.reconnect(message["socket"])
        elif message["t"] == "hypervisor_gone":
            self._vp.abandon()
            self._provider_is_gone()  # its answers come through the hypervisor
        elif message["t"] == "peer_died" and message["name"] == "parent" and not self._parent_returns:
            self._provider_is_gone()

    def stats(self) -> dict[str, dict[str, Any]]:
        counters = {
            "started": self._started, "ended": self._ended, "failed": self._failed, "cleared_up": self._cleared_up,
            "hypercalls": self._vp.hypercalls,
        }  # fmt: skip
        return {"management": {"counters": counters}}
