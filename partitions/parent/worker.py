"""The worker of a VM without integration services: its emulated devices, in a process of the parent partition.

It stands in for a VP of the root partition of its own, so intercepts come to it and to nobody else. It installs them,
has the VM's I/O memory granted to itself, runs the disk drivers on descriptors that the machine hands it, and reaches
the switch by a cable to the process that has it. It lives and dies with its VM: what its registers hold is nowhere
else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from partitions.cable import CablePort
from partitions.driver_store import DriverStore
from partitions.media import Disks
from partitions.parent.chipset import Chipset
from partitions.parent.guest_memory import GuestMemory
from vmbus_emu.device import PortInfo
from vmbus_emu.lifeline import Message
from vmbus_emu.memory import Region
from vmbus_emu.node import Node
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol import intercept
from vmbus_emu.protocol.hypercall import Access, Code, HvStatus, SynicMessage
from vmbus_emu.protocol.intercept import Trap
from vmbus_emu.task import Task
from vmbus_emu.vp import VirtualProcessor


class Worker:
    """The component ``NAME-worker``."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._vp = VirtualProcessor(node.loop, node.context)
        self._disks = Disks(node.log)
        self._cables: dict[str, CablePort] = {}
        self._memory = GuestMemory(0, memoryview(b""))
        self._chipset: Chipset | None = None
        self._partition = hv.PARTITION_INVALID
        self._region: Mapping[str, int] = {}
        self._index = 0
        self._mapped = False
        self._refused = 0

    def start(self, config: Message) -> None:
        """``worker``: the VM's partition, our VP's index, its memory's place, and the devices."""
        self._vp.recoverable = config["hypervisor_recovers"]
        own = config["worker"]
        self._partition, self._index, self._region = own["partition"], own["index"], own["memory"]
        self._disks.store = DriverStore(own["controllers"])
        self._disks.build(own["disks"], lambda medium: self._node.loop)
        self._cables = {
            nic["device"]: CablePort(self._node.loop, PortInfo(nic["mac"])) for nic in own["nics"]
        }
        drivers = [self._disks.drivers[disk["medium"]] for disk in own["disks"]]
        self._memory = GuestMemory(self._region["gpa"], memoryview(b""))
        self._chipset = Chipset(drivers, list(self._cables.values()), self._memory, self._interrupt)
        self._vp.on_message = self._message
        self._vp.connect(config["socket"])
        Task(self._node.loop, self._begin(len(self._cables)))

    async def _begin(self, nics: int) -> None:
        access = intercept.ACCESS_READ | intercept.ACCESS_WRITE
        for first, last in Chipset.ports(nics):
            block = intercept.INSTALL.pack(
                self._partition, access, intercept.TYPE_IO_PORT_RANGE, first | last << 16
            )
            status, _ = await self._vp.call(Code.INSTALL_INTERCEPT, block)
            if status is not HvStatus.SUCCESS:
                self._node.log(f"the hypervisor refused the intercept of ports {first:#x} to {last:#x}: {status.name}")
                self._node.leave(1)
        self._node.ready(self._node.name)

    # -- intercepts -----------------------------------------------------------------------------------

    def _message(self, sint: int, message: SynicMessage) -> None:
        if message.kind != hv.MESSAGE_IO_PORT_INTERCEPT:
            return
        decoded = intercept.decode_message(message.payload)
        if decoded is None or message.port != self._partition:
            self._refused += 1
        elif self._mapped:
            self._answer(*decoded)
        else:
            Task(self._node.loop, self._map_and_answer(*decoded))

    async def _map_and_answer(self, vp: int, trap: Trap) -> None:
        """The first access: now the VM has memory that can be granted."""
        gpa, pages = self._region["gpa"], self._region["pages"]
        access = Access.READ | Access.WRITE | self._index << hv.GRANT_VP_SHIFT
        block = hv.GRANT.pack(self._partition, hv.PARTITION_ROOT, gpa, pages, access)
        status, _ = await self._vp.call(Code.MAP_GPA_PAGES, block)
        fd = self._node.inbox.take_memory(self._partition, gpa)
        if status is not HvStatus.SUCCESS or fd is None:
            self._node.log(f"the VM's memory was not granted: {status.name}")
            self._node.leave(1)
            return
        self._memory.show(Region(fd, gpa, pages).view)
        self._mapped = True
        self._answer(vp, trap)

    def _answer(self, vp: int, trap: Trap) -> None:
        """Do what the instruction does, and let the processor go on behind it."""
        chipset = self._chipset
        assert chipset is not None
        registers = {intercept.RIP: trap.rip + trap.length & (1 << 64) - 1}
        if trap.access & intercept.STRING:
            count, moving = (trap.rcx, intercept.RSI) if trap.write else (trap.rcx, intercept.RDI)
            address = trap.rsi if trap.write else trap.rdi
            move = chipset.write_string if trap.write else chipset.read_string
            moved = move(trap.port, trap.size, count, address)
            registers[intercept.RCX] = count - moved
            registers[moving] = address + moved * trap.size & (1 << 64) - 1
        elif trap.write:
            chipset.write(trap.port, trap.size, trap.rax)
        else:
            low = (1 << 8 * trap.size) - 1
            registers[intercept.RAX] = trap.rax & ~low | chipset.read(trap.port, trap.size)
        self._vp.call(Code.SET_VP_REGISTERS, intercept.encode_registers(self._partition, vp, registers))

    def _interrupt(self, irq: int) -> None:
        block = intercept.ASSERT_INTERRUPT.pack(self._partition, 0, 0, intercept.LEGACY_VECTOR + irq, 0)
        self._vp.call(Code.ASSERT_VIRTUAL_INTERRUPT, block)

    # -- the machine ----------------------------------------------------------------------------------

    def handle(self, message: Message, fds: list[int]) -> None:
        if message["t"] == "medium":
            self._disks.insert(message, fds)
        elif message["t"] == "cable":
            self._cables[message["device"]].plug(fds[0])
        elif message["t"] == "hypervisor":
            self._vp.reconnect(message["socket"])
        elif message["t"] == "hypervisor_gone":
            self._vp.abandon()

    def stats(self) -> dict[str, dict[str, Any]]:
        if self._chipset is None:
            return {}
        ports = [cable.stats() for cable in self._cables.values()]
        disks = self._disks.stats()
        counters = dataclasses.asdict(self._chipset.stats())
        return {
            self._node.name: {
                "io": disks["io"] + sum(p.tx_frames + p.rx_frames for p in ports),
                "last_io": max([disks["last_io"]] + [p.last_io for p in ports]),
                "counters": {
                    **counters,
                    "intercepts": counters["reads"] + counters["writes"] + counters["string_accesses"],
                    "frames": sum(p.tx_frames + p.rx_frames for p in ports),
                    "drops": sum(p.tx_drops + p.rx_drops for p in ports),
                    "hypercalls": self._vp.hypercalls,
                    "refused": self._refused,
                },
            }
        }
