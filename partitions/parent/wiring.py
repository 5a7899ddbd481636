"""The ports and connections that the root partition makes, for itself and for its children (protocol sheet 1.4).

A child is not privileged to make any: what it may post to, and where it is reached, is decided here. Each partition
has one port of its own in the root, so that the port a message arrives at says who sent it.
"""

from __future__ import annotations

from partitions.parent.vsplink import (
    CHILD_PORT,
    CONTROL_PORT,
    FIRST_PARTITION_PORT,
    MANAGEMENT_ANSWERS,
    MANAGEMENT_CONNECTION,
)
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Code, HvStatus, PortType
from vmbus_emu.vp import VirtualProcessor

ROOT = hv.PARTITION_ROOT


class Wiring:
    """Each method makes its ports and connections one after the other and returns what the hypervisor said."""

    def __init__(self, vp: VirtualProcessor) -> None:
        self._vp = vp

    async def wire_management(self) -> list[HvStatus]:
        """Between management (the root's VP 1) and the provider (VP 0), one way each."""
        return [
            await self._create_port(ROOT, MANAGEMENT_CONNECTION, ROOT, hv.SINT_CONTROL, 0),
            await self._create_port(ROOT, MANAGEMENT_ANSWERS, ROOT, hv.SINT_CONTROL, 1),
            await self._connect(ROOT, MANAGEMENT_CONNECTION, ROOT, MANAGEMENT_CONNECTION),
            await self._connect(ROOT, MANAGEMENT_ANSWERS, ROOT, MANAGEMENT_ANSWERS),
        ]

    async def wire_child(self, partition: int) -> list[HvStatus]:
        """VMBus: both of a child's well-known connections lead to its port in the root."""
        connections = (hv.CONNECTION_VMBUS_OLD, hv.CONNECTION_VMBUS)
        return await self._wire(partition, hv.SINT_VMBUS, connections, CHILD_PORT)

    async def wire_vsp(self, partition: int) -> list[HvStatus]:
        """The control messages between the provider and a VSP in a partition of its own."""
        return await self._wire(partition, hv.SINT_CONTROL, (CONTROL_PORT,), CONTROL_PORT)

    async def _wire(self, partition: int, sint: int, connections: tuple[int, ...], port: int) -> list[HvStatus]:
        ours = FIRST_PARTITION_PORT + partition
        return [
            await self._create_port(ROOT, ours, partition, sint),
            *[await self._connect(partition, number, ROOT, ours) for number in connections],
            await self._create_port(partition, port, ROOT, sint),
            await self._connect(ROOT, ours, partition, port),
        ]

    async def _create_port(self, owner: int, number: int, peer: int, sint: int, vp: int = 0) -> HvStatus:
        block = hv.CREATE_PORT.pack(owner, number, 0, 0, 0, peer, PortType.MESSAGE, 0, sint, vp, 0, 0, 0, 0)
        return (await self._vp.call(Code.CREATE_PORT, block))[0]

    async def _connect(self, partition: int, number: int, owner: int, port: int) -> HvStatus:
        block = hv.CONNECT_PORT.pack(partition, number, 0, owner, port, b"", 0)
        return (await self._vp.call(Code.CONNECT_PORT, block))[0]
