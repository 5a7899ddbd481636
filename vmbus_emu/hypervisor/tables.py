"""What the hypervisor knows: partitions, ports, connections, grants. Data only; ``calls`` changes it.

Port and connection ids are local to a partition. A connection is one-way, from the connecting partition to
the owner of the port (protocol sheet 1.4).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

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
    #: Message buffers in use: delivered and not yet acknowledged by an EOM.
    in_use: int = 0
    #: Event flags that are set and not yet seen; a set flag swallows further signals.
    pending_flags: set[int] = field(default_factory=set)
    #: A doorbell that somebody is connected to: it has one descriptor, so it takes one connection.
    taken: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """``grantee`` may map ``owner``'s region of I/O memory, ``pages`` pages at guest-physical address ``gpa``."""

    owner: int
    grantee: int
    gpa: int
    pages: int
    access: Access


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
