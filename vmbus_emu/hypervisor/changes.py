"""Every change of the hypervisor's tables, as a plain tuple, and what it does to them. Nothing else changes them.

``Hypervisor.change("port", ...)`` carries a change out and keeps it for the ledger. So who carries out the same
changes again, in their order, has the same tables. A tuple holds what msgpack can: numbers, text, bytes, tuples.

A change is a fact: it was decided by a call, an end-of-message or the machine, and is not examined again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from vmbus_emu.hypervisor.tables import Caller, Grant, Intercept, Owed, Partition, PartitionState, Port, Suspended, Vp
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Access, PortType, Privilege

if TYPE_CHECKING:
    from vmbus_emu.hypervisor.core import Hypervisor

Change = tuple[Any, ...]

# -- partitions and processors ------------------------------------------------------------------------


def _partition(hypervisor: Hypervisor, number: int, name: str, parent: int, privileges: int) -> None:
    hypervisor.partitions[number] = Partition(number, name, parent, Privilege(privileges))
    hypervisor.next_partition = max(hypervisor.next_partition, number + 1)


def _no_partition(hypervisor: Hypervisor, number: int) -> None:
    _strip(hypervisor, number)
    del hypervisor.partitions[number]


def _state(hypervisor: Hypervisor, number: int, state: int) -> None:
    hypervisor.partitions[number].state = PartitionState(state)


def _strip(hypervisor: Hypervisor, number: int) -> None:
    """Take the partition's VPs, ports, connections and grants, and the ports that only it could reach."""
    partition = hypervisor.partitions[number]
    for port in list(partition.ports):
        _no_port(hypervisor, number, port)
    for other in hypervisor.partitions.values():
        for port in [p.number for p in other.ports.values() if p.connection_partition == number]:
            _no_port(hypervisor, other.number, port)
    partition.connections.clear()
    partition.intercepts.clear()
    for index in list(partition.vps):
        _unbind(hypervisor, number, index)
    hypervisor.grants = {g for g in hypervisor.grants if number not in (g.owner, g.grantee)}


def _start(hypervisor: Hypervisor, number: int, index: int, by: int, by_index: int, sequence: int) -> None:
    hypervisor.partitions[number].starting = True
    if by:
        hypervisor.starters[number, index] = (by, by_index), sequence


def _started(hypervisor: Hypervisor, number: int, index: int) -> None:
    if index == 0:
        hypervisor.partitions[number].starting = False
    hypervisor.starters.pop((number, index), None)


def _bind(hypervisor: Hypervisor, number: int, index: int, pid: int) -> None:
    hypervisor.partitions[number].vps[index] = pid
    hypervisor.callers[number, index] = Caller()


def _unbind(hypervisor: Hypervisor, number: int, index: int) -> None:
    """Its sequence numbers end with it: the next process in its place begins with 1, and must get no answer of its."""
    vp = number, index
    partition = hypervisor.partitions[number]
    del partition.vps[index]
    partition.notices.pop(index, None)
    partition.interrupts.pop(index, None)
    for stopped in [one for one, what in hypervisor.suspended.items() if vp in (one, what.owner)]:
        del hypervisor.suspended[stopped]  # of a dead owner's nobody hears: such a VP stands still for ever
    for other in hypervisor.partitions.values():
        other.intercepts = [one for one in other.intercepts if one.owner != vp]
    del hypervisor.callers[vp]
    for started in [started for started, (caller, _) in hypervisor.starters.items() if caller == vp]:
        del hypervisor.starters[started]
    owed = hypervisor.owed
    if owed is not None and owed.vp == vp:
        hypervisor.owed = Owed((hv.PARTITION_INVALID, 0), 0, owed.status, owed.output, owed.handouts)


def _memory(hypervisor: Hypervisor, number: int, gpa: int, pages: int) -> None:
    hypervisor.partitions[number].memory[gpa] = pages


def _grant(hypervisor: Hypervisor, owner: int, grantee: int, gpa: int, pages: int, access: int, vp: int) -> None:
    hypervisor.grants.add(Grant(owner, grantee, gpa, pages, Access(access), vp))


def _no_grant(hypervisor: Hypervisor, owner: int, grantee: int, gpa: int, pages: int, access: int, vp: int) -> None:
    hypervisor.grants.remove(Grant(owner, grantee, gpa, pages, Access(access), vp))


# -- ports, messages, events --------------------------------------------------------------------------


def _port(
    hypervisor: Hypervisor, owner: int, number: int, kind: int, sint: int, vp: int, peer: int, base_flag: int,
    flag_count: int, maker: Vp,
) -> None:  # fmt: skip
    hypervisor.partitions[owner].ports[number] = Port(
        owner, number, PortType(kind), sint, vp, peer, base_flag, flag_count, maker=maker
    )


def _no_port(hypervisor: Hypervisor, owner: int, number: int) -> None:
    """The port, its undelivered messages, and every connection to it."""
    hypervisor.partitions[owner].ports.pop(number, None)
    where = owner, number
    for partition in hypervisor.partitions.values():
        for connection in [n for n, target in partition.connections.items() if target == where]:
            del partition.connections[connection]


def _connection(hypervisor: Hypervisor, partition: int, number: int, owner: int, port_number: int) -> None:
    hypervisor.partitions[partition].connections[number] = owner, port_number
    port = hypervisor.partitions[owner].ports[port_number]
    port.taken = port.kind is PortType.DOORBELL


def _no_connection(hypervisor: Hypervisor, partition: int, number: int) -> None:
    owner, port = hypervisor.partitions[partition].connections.pop(number)
    hypervisor.partitions[owner].ports[port].taken = False


def _message(hypervisor: Hypervisor, owner: int, port: int, number: int, kind: int, payload: bytes) -> None:
    hypervisor.partitions[owner].ports[port].messages[number] = kind, payload
    hypervisor.next_message = number + 1


def _notice(hypervisor: Hypervisor, partition: int, index: int, number: int, kind: int, payload: bytes) -> None:
    """A newer notice says all that an older one did."""
    hypervisor.partitions[partition].notices[index] = number, kind, payload
    hypervisor.next_message = number + 1


def _taken(hypervisor: Hypervisor, owner: int, port: int, number: int) -> None:
    messages = hypervisor.partitions[owner].ports[port].messages
    for taken in [n for n in messages if n <= number]:
        del messages[taken]


def _notice_taken(hypervisor: Hypervisor, partition: int, index: int) -> None:
    del hypervisor.partitions[partition].notices[index]


def _flag(hypervisor: Hypervisor, owner: int, port: int, flag: int) -> None:
    hypervisor.partitions[owner].ports[port].pending_flags.add(flag)


def _flag_seen(hypervisor: Hypervisor, owner: int, port: int, flag: int) -> None:
    hypervisor.partitions[owner].ports[port].pending_flags.remove(flag)


# -- intercepts ----------------------------------------------------------------------------------------


def _intercept(hypervisor: Hypervisor, partition: int, first: int, last: int, owner: Vp) -> None:
    hypervisor.partitions[partition].intercepts.append(Intercept(first, last, owner))


def _trap(
    hypervisor: Hypervisor, partition: int, index: int, sequence: int, owner: Vp, number: int, trap: tuple[int, ...]
) -> None:
    hypervisor.suspended[partition, index] = Suspended(sequence, owner, number, trap)
    hypervisor.next_message = number + 1


def _resume(hypervisor: Hypervisor, partition: int, index: int) -> None:
    del hypervisor.suspended[partition, index]


def _interrupt(hypervisor: Hypervisor, partition: int, index: int, vector: int) -> None:
    hypervisor.partitions[partition].interrupts.setdefault(index, set()).add(vector)


def _interrupt_taken(hypervisor: Hypervisor, partition: int, index: int, vector: int) -> None:
    pending = hypervisor.partitions[partition].interrupts
    pending[index].remove(vector)
    if not pending[index]:
        del pending[index]


# -- calls that may be asked again --------------------------------------------------------------------


def _pending(hypervisor: Hypervisor, partition: int, index: int, sequence: int) -> None:
    hypervisor.callers[partition, index].results[sequence] = None


def _owed(
    hypervisor: Hypervisor, partition: int, index: int, sequence: int, status: int, output: bytes,
    handouts: tuple[Change, ...],
) -> None:  # fmt: skip
    hypervisor.owed = Owed((partition, index), sequence, status, output, handouts)


def _result(hypervisor: Hypervisor, partition: int, index: int, sequence: int, status: int, output: bytes) -> None:
    caller = hypervisor.callers.get((partition, index))
    if caller is not None:
        caller.results[sequence] = status, output


def _handed(hypervisor: Hypervisor) -> None:
    hypervisor.owed = None


def _answered(hypervisor: Hypervisor, partition: int, index: int, sequence: int) -> None:
    caller = hypervisor.callers[partition, index]
    caller.answered = sequence
    for answered in [n for n in caller.results if n < sequence]:
        del caller.results[answered]


# -- counters -----------------------------------------------------------------------------------------


def _parent_incarnation(hypervisor: Hypervisor, number: int) -> None:
    hypervisor.parent_incarnation = number


def _counters(hypervisor: Hypervisor, next_partition: int, next_message: int) -> None:
    hypervisor.next_partition = next_partition
    hypervisor.next_message = next_message


APPLY: dict[str, Callable[..., None]] = {
    "partition": _partition,
    "no partition": _no_partition,
    "state": _state,
    "strip": _strip,
    "start": _start,
    "started": _started,
    "bind": _bind,
    "unbind": _unbind,
    "memory": _memory,
    "grant": _grant,
    "no grant": _no_grant,
    "port": _port,
    "no port": _no_port,
    "connection": _connection,
    "no connection": _no_connection,
    "message": _message,
    "notice": _notice,
    "taken": _taken,
    "notice taken": _notice_taken,
    "flag": _flag,
    "flag seen": _flag_seen,
    "intercept": _intercept,
    "trap": _trap,
    "resume": _resume,
    "interrupt": _interrupt,
    "interrupt taken": _interrupt_taken,
    "pending": _pending,
    "owed": _owed,
    "result": _result,
    "handed": _handed,
    "answered": _answered,
    "parent incarnation": _parent_incarnation,
    "counters": _counters,
}


def snapshot(hypervisor: Hypervisor) -> Iterator[Change]:
    """The changes that make these tables out of those of a new hypervisor."""
    partitions = hypervisor.partitions.values()
    for partition in partitions:
        number = partition.number
        if number != hv.PARTITION_ROOT:  # which is always there, and always active
            yield "partition", number, partition.name, partition.parent, int(partition.privileges)
            yield "state", number, int(partition.state)
        for index, pid in partition.vps.items():
            yield "bind", number, index, pid
        for gpa, pages in partition.memory.items():
            yield "memory", number, gpa, pages
        for index, notice in partition.notices.items():
            yield "notice", number, index, *notice
        for port in partition.ports.values():
            yield from _port_snapshot(port)
        for intercept in partition.intercepts:
            yield "intercept", number, intercept.first, intercept.last, intercept.owner
        for index, vectors in partition.interrupts.items():
            for vector in sorted(vectors):
                yield "interrupt", number, index, vector
    for partition in partitions:  # when all of the ports are there
        for connection, target in partition.connections.items():
            yield "connection", partition.number, connection, *target
        if partition.starting:
            vp = partition.number, 0
            caller, sequence = hypervisor.starters.get(vp, ((hv.PARTITION_INVALID, 0), 0))
            yield "start", *vp, *caller, sequence
    for grant in hypervisor.grants:
        yield "grant", *grant.fields
    for vp, stopped in hypervisor.suspended.items():
        yield "trap", *vp, stopped.sequence, stopped.owner, stopped.number, stopped.trap
    for vp, made in hypervisor.callers.items():
        yield "answered", *vp, made.answered
        for sequence, result in made.results.items():
            yield ("pending", *vp, sequence) if result is None else ("result", *vp, sequence, *result)
    owed = hypervisor.owed
    if owed is not None:
        yield "owed", *owed.vp, owed.sequence, owed.status, owed.output, owed.handouts
    yield "parent incarnation", hypervisor.parent_incarnation
    yield "counters", hypervisor.next_partition, hypervisor.next_message


def _port_snapshot(port: Port) -> Iterator[Change]:
    yield (
        "port", port.owner, port.number, int(port.kind), port.sint, port.vp, port.connection_partition,
        port.base_flag, port.flag_count, port.maker,
    )  # fmt: skip
    for number, message in port.messages.items():
        yield "message", port.owner, port.number, number, *message
    for flag in port.pending_flags:
        yield "flag", port.owner, port.number, flag
