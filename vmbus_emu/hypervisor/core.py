"""The hypervisor's state and what the machine tells it. No I/O: every event returns effects.

A caller is a VP, bound to a process by the machine; nothing a partition writes into a parameter block can
change who it is. ``calls`` is the partitions' way in.

What outlives the hypervisor's process is the list of changes (``changes``). They are to be written down before the
effects are carried out: an effect of which nothing is known could happen twice, or be forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vmbus_emu.hypervisor.changes import APPLY, Change
from vmbus_emu.hypervisor.tables import (
    Caller,
    Grant,
    HypervisorStats,
    Owed,
    Partition,
    PartitionState,
    Port,
    Suspended,
    Vp,
)
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
    """Put a message into a VP's SynIC. A VP gets its messages in the order of their numbers."""

    vp: Vp
    sint: int
    message: hv.SynicMessage
    number: int


@dataclass(frozen=True, slots=True)
class Raise:
    """Set an event flag at a VP."""

    vp: Vp
    sint: int
    flag: int


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Raise an interrupt at a VP."""

    vp: Vp
    vector: int


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


Effect = Reply | Deliver | Raise | Interrupt | PowerOn | PowerOff | HandOut | HandDoorbell
Result = tuple[HvStatus, bytes]


@dataclass(frozen=True, slots=True)
class Request:
    """One hypercall being executed: who, its reply's sequence number, the raw block and its decoded fields."""

    caller: Vp
    sequence: int
    block: bytes
    args: tuple[Any, ...]


class Hypervisor:
    """The partition table. ``recorded``: somebody takes :attr:`changes` away after every event, and a successor may
    go on from there."""

    def __init__(self, recorded: bool = False) -> None:
        root = Partition(hv.PARTITION_ROOT, "root", 0, hv.ROOT_PRIVILEGES, PartitionState.ACTIVE)
        self.partitions: dict[int, Partition] = {root.number: root}
        self.grants: set[Grant] = set()
        self.parent_incarnation = 1
        self.next_partition = hv.PARTITION_ROOT + 1  # ids are never used again
        #: VP that is being powered on -> who asked, and the sequence number of its call.
        self.starters: dict[Vp, tuple[Vp, int]] = {}
        #: The number of the next message; it counts all ports together and none is used twice.
        self.next_message = 1
        #: Of every VP that a process stands in for.
        self.callers: dict[Vp, Caller] = {}
        #: VPs that stand still, because an access of theirs is somebody's to answer.
        self.suspended: dict[Vp, Suspended] = {}
        self.owed: Owed | None = None
        self.recorded = recorded
        self.changes: list[Change] = []
        self.hypercalls = self.refused = self.messages = self.events = self.intercepts = self.interrupts = 0

    def change(self, what: str, *values: Any) -> None:
        """Change the tables (``changes``); there is no other way to."""
        if self.recorded:
            self.changes.append((what, *values))
        APPLY[what](self, *values)

    # -- what the machine tells ---------------------------------------------------------------------

    def bind(self, vp: Vp, pid: int) -> bool:
        """``pid`` stands in for ``vp`` from now on. ``False``: no such partition, it is at its end, or the VP runs."""
        partition = self.partitions.get(vp[0])
        if partition is None or partition.state is PartitionState.FINALIZED or vp[1] in partition.vps:
            return False
        self._take_back_all(vp)  # what was granted after its last process ended was handed to nobody
        self.change("bind", *vp, pid)
        return True

    def add_memory(self, number: int, gpa: int, pages: int) -> bool:
        """The machine fitted a region of ``pages`` pages of I/O memory at ``gpa`` into partition ``number``."""
        partition = self.partitions.get(number)
        if partition is None:
            return False
        if partition.memory.get(gpa) != pages:
            self.change("memory", number, gpa, pages)
        return True

    def powered(self, vp: Vp, pid: int | None) -> list[Effect]:
        """The machine's answer to :class:`PowerOn`; ``None``: it could not."""
        if vp[0] not in self.partitions:
            return []
        caller = self.starters.get(vp)
        self.change("started", *vp)
        bound = pid is not None and self.bind(vp, pid)
        if caller is None:
            return []
        status = HvStatus.SUCCESS if bound else HvStatus.INSUFFICIENT_MEMORY
        if self.recorded:
            self.change("result", *caller[0], caller[1], int(status), b"")
        return [Reply(*caller, status)]

    def died(self, pid: int) -> list[Effect]:
        """A process ended."""
        for partition in self.partitions.values():
            for index, bound in partition.vps.items():
                if bound == pid:
                    return self.ended((partition.number, index))
        return []

    def ended(self, vp: Vp) -> list[Effect]:
        """The process of ``vp`` ended. The VP's ports go with it, so that nobody posts into the void. Its descriptors
        of granted memory went with it too: so do the grants, and whoever takes its place must be granted anew. When it
        was the root's VP 0, the VMBus provider, every other partition hears of it."""
        number, index = vp
        self.change("unbind", *vp)
        for port in [p for p in self.partitions[number].ports.values() if p.vp == index]:
            self.delete_port(port)
        self._delete_doorbells(vp)
        self._take_back_all(vp)
        return self._parent_reset() if vp == (hv.PARTITION_ROOT, 0) else []

    def _take_back_all(self, vp: Vp) -> None:
        for grant in [g for g in self.grants if (g.grantee, g.vp) == vp]:
            self.take_back(grant)

    def _delete_doorbells(self, dead: Vp) -> None:
        """Those that ``dead`` made, and those of others that it alone could ring: its end of the pipe is gone."""
        reached = set(self.partitions[dead[0]].connections.values()) if dead[1] == 0 else set()
        for partition in self.partitions.values():
            for port in list(partition.ports.values()):
                if port.kind is PortType.DOORBELL and (
                    port.maker == dead or (port.owner, port.number) in reached
                ):
                    self.delete_port(port)

    def _parent_reset(self) -> list[Effect]:
        self.change("parent incarnation", self.parent_incarnation + 1)
        payload = self.parent_incarnation.to_bytes(4, "little")
        message = hv.SynicMessage(hv.MESSAGE_PARENT_RESET, 0, payload)
        effects: list[Effect] = []
        for partition in self.partitions.values():
            for index in partition.vps if partition.number != hv.PARTITION_ROOT else ():
                vp, number = (partition.number, index), self.next_message
                self.change("notice", *vp, number, message.kind, payload)
                effects.append(Deliver(vp, hv.SINT_VMBUS, message, number))
        return effects

    # -- what partitions tell ------------------------------------------------------------------------

    def end_of_message(self, caller: Vp, number: int, last: int) -> None:
        """``caller`` took the messages up to the one numbered ``last`` out of the buffers of its port ``number``. To
        say it again changes nothing. The hypervisor's own messages come from port 0."""
        partition = self.partitions[caller[0]]
        port = partition.ports.get(number)
        if port is not None and port.vp == caller[1] and any(n <= last for n in port.messages):
            self.change("taken", partition.number, number, last)
        notice = partition.notices.get(caller[1])
        if number == 0 and notice is not None and notice[0] <= last:
            self.change("notice taken", *caller)

    def events_seen(self, caller: Vp, sint: int, flag: int) -> None:
        """``caller`` cleared an event flag: the next signal raises it again."""
        for port in self.partitions[caller[0]].ports.values():
            if port.kind is PortType.EVENT and port.vp == caller[1] and port.sint == sint:
                number = flag - port.base_flag
                if number in port.pending_flags:
                    self.change("flag seen", port.owner, port.number, number)

    def end_of_interrupt(self, caller: Vp, vector: int) -> None:
        """``caller`` took an interrupt: the next one of its vector is raised again."""
        partition = self.partitions[caller[0]]
        if vector in partition.interrupts.get(caller[1], ()):
            self.change("interrupt taken", *caller, vector)

    def answered(self, caller: Vp, sequence: int) -> None:
        """``caller`` has the answers of all its calls before ``sequence``."""
        if self.recorded and sequence > self.callers[caller].answered:
            self.change("answered", *caller, sequence)

    def stats(self) -> HypervisorStats:
        partitions = self.partitions.values()
        return HypervisorStats(
            self.hypercalls, self.refused, self.messages, self.events, len(self.partitions),
            sum(len(p.ports) for p in partitions), sum(len(p.connections) for p in partitions), len(self.grants),
            self.intercepts, self.interrupts,
        )

    # -- for the calls ------------------------------------------------------------------------------

    def target(self, caller: Vp, number: int) -> Partition | None:
        """The partition a call names: the caller itself, or one of its children."""
        if number in (hv.PARTITION_SELF, caller[0]):
            return self.partitions[caller[0]]
        partition = self.partitions.get(number)
        return partition if partition is not None and partition.parent == caller[0] else None

    def delete_port(self, port: Port) -> None:
        self.change("no port", port.owner, port.number)

    def take_back(self, grant: Grant) -> None:
        self.change("no grant", *grant.fields)
