"""What the hypervisor knows: partitions, ports, connections, grants, callers. Data only; ``changes`` changes it.

Port and connection ids are local to a partition. A connection is one-way, from the connecting partition to
the owner of the port (protocol sheet 1.4).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from vmbus_emu.protocol.hypercall import Access, PortType, Privilege

#: A virtual processor: (partition id, VP index). A process stands in for it.
Vp = tuple[int, int]


class PartitionState(enum.IntEnum):
    """The life cycle (1.1). Calls that do not fit the state answer INVALID_PARTITION_STATE."""

    CREATED = 0         #: has an id; ports and connections may be prepared
    ACTIVE = 1          #: initialized; its virtual processor may be started
    FINALIZED = 2       #: stripped of VPs, ports, connections and grants; only deletion is left


@dataclass(slots=True)
class Port:
    """Where messages or events for a partition arrive, or what a doorbell of its rings."""

    owner: int
    number: int
    kind: PortType
    sint: int
    vp: int
    connection_partition: int
    base_flag: int = 0
    flag_count: int = 0
    #: The message buffers in use: number -> type and payload of what was accepted, until its EOM.
    messages: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    #: Event flags that are set and not yet seen; a set flag swallows further signals.
    pending_flags: set[int] = field(default_factory=set)
    #: A doorbell that somebody is connected to: it has one descriptor, so it takes one connection.
    taken: bool = False
    #: The VP that made it. A doorbell ends with its maker, who alone knows what it is for.
    maker: Vp | None = None

    @property
    def in_use(self) -> int:
        return len(self.messages)


@dataclass(frozen=True, slots=True)
class Grant:
    """``grantee`` may map ``owner``'s region of I/O memory, ``pages`` pages at guest-physical address ``gpa``. The
    process that stands in for its VP ``vp`` gets the descriptor."""

    owner: int
    grantee: int
    gpa: int
    pages: int
    access: Access
    vp: int = 0

    @property
    def fields(self) -> tuple[int, ...]:
        """As plain numbers."""
        return self.owner, self.grantee, self.gpa, self.pages, int(self.access), self.vp


@dataclass(frozen=True, slots=True)
class Intercept:
    """Accesses to ports ``first`` to ``last`` are ``owner``'s to answer."""

    first: int
    last: int
    owner: Vp


@dataclass(frozen=True, slots=True)
class Suspended:
    """A VP whose access waits for ``owner``. ``sequence``: of the VP's envelope; ``number``: of the message; ``trap``:
    the fields of a :class:`vmbus_emu.protocol.intercept.Trap`."""

    sequence: int
    owner: Vp
    number: int
    trap: tuple[int, ...]


@dataclass(slots=True)
class Partition:
    number: int
    name: str
    parent: int
    privileges: Privilege
    state: PartitionState = PartitionState.CREATED
    #: VP index -> pid of the process that stands in for it.
    vps: dict[int, int] = field(default_factory=dict)
    ports: dict[int, Port] = field(default_factory=dict)
    #: Connection id -> (partition, port id).
    connections: dict[int, tuple[int, int]] = field(default_factory=dict)
    #: Regions of I/O memory: guest-physical address -> pages. Each is a memory file of its own.
    memory: dict[int, int] = field(default_factory=dict)
    #: A StartVirtualProcessor waits for the machine.
    starting: bool = False
    #: VP index -> number, type and payload of the hypervisor's own latest message to it, until its EOM.
    notices: dict[int, tuple[int, int, bytes]] = field(default_factory=dict)
    intercepts: list[Intercept] = field(default_factory=list)
    #: VP index -> vectors of interrupts that were raised and not taken.
    interrupts: dict[int, set[int]] = field(default_factory=dict)


@dataclass(slots=True)
class Caller:
    """What the process that stands in for a VP has called, as far as it may ask again."""

    #: It has the answers of all calls before this one.
    answered: int = 1
    #: Sequence number -> status and output of a call that was executed; ``None``: executed, and not yet answered.
    results: dict[int, tuple[int, bytes] | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Owed:
    """A call that is executed, but whose descriptors may not all be with those they are for. So nobody has its
    answer."""

    vp: Vp
    sequence: int
    status: int
    output: bytes
    #: ``("memory", owner, grantee, gpa, pages, access, vp)`` or ``("doorbell", owner, port, partition, connection)``.
    handouts: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class HypervisorStats:
    """Counters since this incarnation started."""

    hypercalls: int
    refused: int
    messages: int
    events: int
    partitions: int
    ports: int
    connections: int
    grants: int
    intercepts: int
    interrupts: int
