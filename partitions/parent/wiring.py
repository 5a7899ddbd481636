"""The ports and connections that the root partition makes, for itself and for its children (protocol sheet 1.4).

A child is not privileged to make any: what it may post to, and where it is reached, is decided here. Each partition
has one port of its own in the root, so that the port a message arrives at says who sent it.
Memory is granted here, too.
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
from vmbus_emu.protocol.hypercall import Access, Code, HvStatus, PortType
from vmbus_emu.task import Future
from vmbus_emu.vp import Outcome, VirtualProcessor

ROOT = hv.PARTITION_ROOT


class Wiring:
    """Makes ports and connections, and returns what the hypervisor said to each of its calls.

    It executes the calls of one VP in the order they were made. So a method makes all of its calls at once, and
    only then waits: a connection's call finds the port that the call before it made.
    """

    def __init__(self, vp: VirtualProcessor) -> None:
        self._vp = vp

    async def wire_management(self) -> list[HvStatus]:
        """Between management (the root's VP 1) and the provider (VP 0), one way each."""
        return await _statuses(
            self._create_port(ROOT, MANAGEMENT_CONNECTION, ROOT, hv.SINT_CONTROL, 0),
            self._create_port(ROOT, MANAGEMENT_ANSWERS, ROOT, hv.SINT_CONTROL, 1),
            self._connect(ROOT, MANAGEMENT_CONNECTION, ROOT, MANAGEMENT_CONNECTION),
            self._connect(ROOT, MANAGEMENT_ANSWERS, ROOT, MANAGEMENT_ANSWERS),
        )

    async def wire_child(self, partition: int) -> list[HvStatus]:
        """VMBus: both of a child's well-known connections lead to its port in the root."""
        connections = (hv.CONNECTION_VMBUS_OLD, hv.CONNECTION_VMBUS)
        return await self._wire(partition, hv.SINT_VMBUS, connections, CHILD_PORT)

    async def wire_vsp(self, partition: int) -> list[HvStatus]:
        """The control messages between the provider and a VSP in a partition of its own."""
        return await self._wire(partition, hv.SINT_CONTROL, (CONTROL_PORT,), CONTROL_PORT)

    async def make_doorbells(self, child: int, vsp: int, number: int) -> list[HvStatus]:
        """A channel's two doorbells: port ``number`` in partition ``vsp``, which ``child`` rings through its connection
        ``number``, and the same the other way round.

        ``number`` must be free in both partitions, as a port and as a connection. The descriptors lie in both
        processes' sockets when this returns, if every status is SUCCESS; if not, :meth:`delete_doorbells` clears up.
        """
        return await _statuses(
            self._create_port(vsp, number, child, 0, kind=PortType.DOORBELL),
            self._create_port(child, number, vsp, 0, kind=PortType.DOORBELL),
            self._connect(child, number, vsp, number),
            self._connect(vsp, number, child, number),
        )

    async def delete_doorbells(self, child: int, vsp: int, number: int) -> list[HvStatus]:
        """Undo :meth:`make_doorbells`; the connections go with the ports. The descriptors stay with who has them."""
        blocks = [hv.DELETE_PORT.pack(partition, number, 0) for partition in (vsp, child)]
        return await _statuses(*[self._vp.call(Code.DELETE_PORT, block) for block in blocks])

    async def grant(self, child: int, vsp: int, gpa: int, pages: int) -> HvStatus:
        """Let ``vsp`` read and write a region of ``child``'s I/O memory, which must be named whole.

        OBJECT_IN_USE: it is granted already, and the descriptor was handed out then.
        """
        block = hv.GRANT.pack(child, vsp, gpa, pages, Access.READ | Access.WRITE)
        return (await self._vp.call(Code.MAP_GPA_PAGES, block))[0]

    async def _wire(self, partition: int, sint: int, connections: tuple[int, ...], port: int) -> list[HvStatus]:
        ours = FIRST_PARTITION_PORT + partition
        return await _statuses(
            self._create_port(ROOT, ours, partition, sint),
            *[self._connect(partition, number, ROOT, ours) for number in connections],
            self._create_port(partition, port, ROOT, sint),
            self._connect(ROOT, ours, partition, port),
        )

    def _create_port(
        self, owner: int, number: int, peer: int, sint: int, vp: int = 0, kind: PortType = PortType.MESSAGE
    ) -> Future[Outcome]:
        block = hv.CREATE_PORT.pack(owner, number, 0, 0, 0, peer, kind, 0, sint, vp, 0, 0, 0, 0)
        return self._vp.call(Code.CREATE_PORT, block)

    def _connect(self, partition: int, number: int, owner: int, port: int) -> Future[Outcome]:
        block = hv.CONNECT_PORT.pack(partition, number, 0, owner, port, b"", 0)
        return self._vp.call(Code.CONNECT_PORT, block)


async def _statuses(*calls: Future[Outcome]) -> list[HvStatus]:
    return [(await call)[0] for call in calls]
