"""The ports and connections that the root partition makes, for itself and for its children (protocol sheet 1.4).

A child is not privileged to make any: what it may post to, and where it is reached, is decided here. Each partition
has one port of its own in the root, so that the port a message arrives at says who sent it.
Memory is granted here, too.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    """Makes ports and connections, and says what the hypervisor answered.

    It executes the calls of one VP in the order they were made, and every method has made all of its calls when it
    returns. So a connection's call finds the port that the call before it made, and what is posted afterwards finds
    the connection.
    """

    def __init__(self, vp: VirtualProcessor) -> None:
        self._vp = vp

    def wire_management(self) -> Future[bool]:
        """From management (the root's VP 1) to the provider (VP 0)."""
        return _all(self._lead(ROOT, (MANAGEMENT_CONNECTION,), ROOT, MANAGEMENT_CONNECTION, hv.SINT_CONTROL))

    def wire_provider(self) -> Future[bool]:
        """From the provider to management, which wires what leads to it."""
        return _all(self._lead(ROOT, (MANAGEMENT_ANSWERS,), ROOT, MANAGEMENT_ANSWERS, hv.SINT_CONTROL, vp=1))

    def wire_child(self, partition: int) -> Future[bool]:
        """VMBus: both of a child's well-known connections lead to its port in the root."""
        return _all(self._from_child(partition) + self._to(partition, CHILD_PORT, hv.SINT_VMBUS))

    def wire_vsp(self, partition: int) -> Future[bool]:
        """The control messages between the provider and a VSP in a partition of its own."""
        return _all(self._from_vsp(partition) + self._to(partition, CONTROL_PORT, hv.SINT_CONTROL))

    def wire_vsp_again(self, partition: int) -> Future[bool]:
        """A VSP's port went with the process that it belonged to; there is a new one."""
        return _all(self._to(partition, CONTROL_PORT, hv.SINT_CONTROL))

    def find_again(self, partition: int, child: bool) -> Future[bool]:
        """The root's ports went with an earlier incarnation of the provider: make the one for ``partition`` anew. The
        way to a child is still there, if the child is. The way to a VSP may have to be made: its process may be newer
        than the last one of the provider that heard of it, and waits to be told that there is one again."""
        if child:
            return _all(self._from_child(partition))
        return _all(self._from_vsp(partition) + self._to(partition, CONTROL_PORT, hv.SINT_CONTROL))

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

    def _from_child(self, partition: int) -> list[Future[bool]]:
        numbers = hv.CONNECTION_VMBUS_OLD, hv.CONNECTION_VMBUS
        return self._lead(partition, numbers, ROOT, FIRST_PARTITION_PORT + partition, hv.SINT_VMBUS)

    def _from_vsp(self, partition: int) -> list[Future[bool]]:
        return self._lead(partition, (CONTROL_PORT,), ROOT, FIRST_PARTITION_PORT + partition, hv.SINT_CONTROL)

    def _to(self, partition: int, port: int, sint: int) -> list[Future[bool]]:
        return self._lead(ROOT, (FIRST_PARTITION_PORT + partition,), partition, port, sint)

    def _lead(
        self, peer: int, connections: tuple[int, ...], owner: int, port: int, sint: int, vp: int = 0
    ) -> list[Future[bool]]:
        """``peer``'s connections to a message port of ``owner``, wherever any of it is missing."""
        made = _there(self._create_port(owner, port, peer, sint, vp), HvStatus.INVALID_PORT_ID)
        return [made] + [
            _there(self._connect(peer, number, owner, port), HvStatus.INVALID_CONNECTION_ID)
            for number in connections
        ]

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


def _there(call: Future[Outcome], already: HvStatus) -> Future[bool]:
    """Whether a port or connection is there now: made, or left by an incarnation that died before it could use it."""
    there: Future[bool] = Future()
    call.then(lambda future: there.resolve(future.result()[0] in (HvStatus.SUCCESS, already)))
    return there


def _all(parts: Sequence[Future[bool]]) -> Future[bool]:
    whole: Future[bool] = Future()
    left = len(parts)
    good = True

    def settled(future: Future[bool]) -> None:
        nonlocal left, good
        left -= 1
        good = good and future.result()
        if not left:
            whole.resolve(good)

    for part in parts:
        part.then(settled)
    return whole
