"""The hypervisor's state and what the machine tells it. No I/O: every event returns effects.

A caller is a VP, bound to a process by the machine; nothing a partition writes into a parameter block can
change who it is. ``calls.execute`` is the partitions' way in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vmbus_emu.hypervisor.tables import Grant, HypervisorStats, Partition, PartitionState, Port, Vp
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import HvStatus, PortType

# -- effects ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer a hypercall."""

    vp: Vp
    sequence: int
    status: HvStatus
    output: bytes = b""


@dataclass(frozen=True, slots=True)
class Deliver:
    """Put a message into a VP's SynIC."""

    vp: Vp
    sint: int
    message: hv.SynicMessage


@dataclass(frozen=True, slots=True)
class Raise:
    """Set an event flag at a VP."""

    vp: Vp
    sint: int
    flag: int


@dataclass(frozen=True, slots=True)
class PowerOn:
    """Ask the machine for a process; answer with :meth:`Hypervisor.powered`."""

    partition: int
    vp: int
    name: str


@dataclass(frozen=True, slots=True)
class PowerOff:
    """Ask the machine to end the processes of a finalized partition."""

    partition: int
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HandOut:
    """Send the grantee a descriptor of the owner's I/O memory."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class HandDoorbell:
    """Make a doorbell and send it to both its ends: ``owner`` of port ``port``, and ``partition`` with its
    ``connection`` to it."""

    owner: int
    port: int
    partition: int
    connection: int


Effect = Reply | Deliver | Raise | PowerOn | PowerOff | HandOut | HandDoorbell
Result = tuple[HvStatus, bytes]


@dataclass(frozen=True, slots=True)
class Request:
    """One hypercall being executed: who, its reply's sequence number, the raw block and its decoded fields."""

    caller: Vp
    sequence: int
    block: bytes
    args: tuple[Any, ...]


class Hypervisor:
    """The partition table."""

    def __init__(self) -> None:
        root = Partition(hv.PARTITION_ROOT, "root", 0, hv.ROOT_PRIVILEGES, PartitionState.ACTIVE)
        self.partitions: dict[int, Partition] = {root.number: root}
        self.grants: set[Grant] = set()
        self.parent_incarnation = 1
        self.next_partition = hv.PARTITION_ROOT + 1  # ids are never used again
        #: VP that is being powered on -> who asked, and the sequence number of its call.
        self.starters: dict[Vp, tuple[Vp, int]] = {}
        self.hypercalls = self.refused = self.messages = self.events = 0

    # -- what the machine tells ---------------------------------------------------------------------

    def bind(self, vp: Vp, pid: int) -> bool:
        """``pid`` stands in for ``vp`` from now on. ``False``: no such partition, or the VP already runs."""
        partition = self.partitions.get(vp[0])
        if partition is None or vp[1] in partition.vps:
            return False
        partition.vps[vp[1]] = pid
        return True

    def add_memory(self, number: int, gpa: int, pages: int) -> bool:
        """The machine fitted a region of ``pages`` pages of I/O memory at ``gpa`` into partition ``number``."""
        partition = self.partitions.get(number)
        if partition is None:
            return False
        partition.memory[gpa] = pages
        return True

    def powered(self, vp: Vp, pid: int | None) -> list[Effect]:
        """The machine's answer to :class:`PowerOn`; ``None``: it could not."""
        caller = self.starters.pop(vp, None)
        partition = self.partitions.get(vp[0])
        if partition is None:
            return []
        partition.starting = False
        bound = pid is not None and self.bind(vp, pid)
        if caller is None:
            return []
        return [Reply(*caller, HvStatus.SUCCESS if bound else HvStatus.INSUFFICIENT_MEMORY)]

    def died(self, pid: int) -> list[Effect]:
        """A process ended. Its VP's ports go with it, so that nobody posts into the void. VP 0's descriptors of
        granted memory went with it too: so do the grants, and whoever takes its place must be granted anew. When
        it was the root's VP 0, the VMBus provider, every other partition hears of it."""
        for partition in self.partitions.values():
            for index, bound in list(partition.vps.items()):
                if bound == pid:
                    del partition.vps[index]
                    for port in [p for p in partition.ports.values() if p.vp == index]:
                        self.delete_port(port)
                    if index == 0:
                        self.grants = {g for g in self.grants if g.grantee != partition.number}
                    if (partition.number, index) == (hv.PARTITION_ROOT, 0):
                        return self._parent_reset()
        return []

    def _parent_reset(self) -> list[Effect]:
        self.parent_incarnation += 1
        payload = self.parent_incarnation.to_bytes(4, "little")
        message = hv.SynicMessage(hv.MESSAGE_PARENT_RESET, 0, payload)
        return [
            Deliver((partition.number, index), hv.SINT_VMBUS, message)
            for partition in self.partitions.values()
            if partition.number != hv.PARTITION_ROOT
            for index in partition.vps
        ]

    # -- what partitions tell ------------------------------------------------------------------------

    def end_of_message(self, caller: Vp, number: int, count: int) -> None:
        """``caller`` took ``count`` messages out of the buffers of its port ``number``."""
        port = self.partitions[caller[0]].ports.get(number)
        if port is not None and port.vp == caller[1] and count > 0:
            port.in_use = max(0, port.in_use - count)

    def events_seen(self, caller: Vp, sint: int, flag: int) -> None:
        """``caller`` cleared an event flag: the next signal raises it again."""
        for port in self.partitions[caller[0]].ports.values():
            if port.kind is PortType.EVENT and port.vp == caller[1] and port.sint == sint:
                port.pending_flags.discard(flag - port.base_flag)

    def stats(self) -> HypervisorStats:
        partitions = self.partitions.values()
        return HypervisorStats(
            self.hypercalls, self.refused, self.messages, self.events, len(self.partitions),
            sum(len(p.ports) for p in partitions), sum(len(p.connections) for p in partitions), len(self.grants),
        )

    # -- for the calls ------------------------------------------------------------------------------

    def target(self, caller: Vp, number: int) -> Partition | None:
        """The partition a call names: the caller itself, or one of its children."""
        if number in (hv.PARTITION_SELF, caller[0]):
            return self.partitions[caller[0]]
        partition = self.partitions.get(number)
        return partition if partition is not None and partition.parent == caller[0] else None

    def delete_port(self, port: Port) -> None:
        self.partitions[port.owner].ports.pop(port.number, None)
        where = (port.owner, port.number)
        for partition in self.partitions.values():
            for number in [n for n, target in partition.connections.items() if target == where]:
                del partition.connections[number]

    def strip(self, partition: Partition) -> None:
        for port in list(partition.ports.values()):
            self.delete_port(port)
        for other in self.partitions.values():  # ports that only this partition could reach are its own affair too
            for port in [p for p in other.ports.values() if p.connection_partition == partition.number]:
                self.delete_port(port)
        partition.connections.clear()
        partition.vps.clear()
        self.grants = {g for g in self.grants if partition.number not in (g.owner, g.grantee)}
