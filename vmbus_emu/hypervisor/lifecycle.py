"""The life of a partition: create, initialize, start, finalize, delete; and its properties."""

from __future__ import annotations

from vmbus_emu.hypervisor.core import Effect, Hypervisor, PowerOff, PowerOn, Request, Result
from vmbus_emu.hypervisor.tables import PartitionState
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import HvStatus, Property

MAX_PARTITIONS = 4096


def create_partition(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    if len(hypervisor.partitions) >= MAX_PARTITIONS:
        return HvStatus.INSUFFICIENT_MEMORY, b""
    try:
        name = call.args[3].rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError:
        return HvStatus.INVALID_PARAMETER, b""
    number = hypervisor.next_partition
    hypervisor.change("partition", number, name, call.caller[0], int(hv.CHILD_PRIVILEGES))
    return HvStatus.SUCCESS, hv.PARTITION_ID.pack(number)


def initialize(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    return _advance(hypervisor, call, PartitionState.CREATED, PartitionState.ACTIVE)


def _advance(
    hypervisor: Hypervisor, call: Request, expected: PartitionState, following: PartitionState
) -> Result:
    partition = hypervisor.target(call.caller, call.args[0])
    if partition is None or partition.number == call.caller[0]:
        return HvStatus.INVALID_PARTITION_ID, b""
    if partition.state is not expected or partition.starting:
        return HvStatus.INVALID_PARTITION_STATE, b""
    hypervisor.change("state", partition.number, int(following))
    return HvStatus.SUCCESS, b""


def finalize(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    result = _advance(hypervisor, call, PartitionState.ACTIVE, PartitionState.FINALIZED)
    if result[0] is HvStatus.SUCCESS:
        partition = hypervisor.partitions[call.args[0]]
        out.append(PowerOff(partition.number, tuple(partition.vps.values())))
        hypervisor.change("strip", partition.number)
    return result


def delete_partition(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    partition = hypervisor.target(call.caller, call.args[0])
    if partition is None or partition.number == call.caller[0]:
        return HvStatus.INVALID_PARTITION_ID, b""
    if partition.state is PartitionState.ACTIVE or partition.starting:
        return HvStatus.INVALID_PARTITION_STATE, b""
    hypervisor.change("no partition", partition.number)
    return HvStatus.SUCCESS, b""


def start_vp(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result | None:
    number, index, _ = call.args
    partition = hypervisor.target(call.caller, number)
    if partition is None or partition.number == call.caller[0]:
        return HvStatus.INVALID_PARTITION_ID, b""
    if partition.state is not PartitionState.ACTIVE:
        return HvStatus.INVALID_PARTITION_STATE, b""
    if index != 0:
        return HvStatus.INVALID_VP_INDEX, b""
    if index in partition.vps or (partition.starting and (number, index) in hypervisor.starters):
        return HvStatus.INVALID_VP_STATE, b""
    if not partition.starting:  # otherwise the machine was asked, and who asked for that is dead: this caller hears
        out.append(PowerOn(number, index, partition.name))
    hypervisor.change("start", number, index, *call.caller, call.sequence)
    return None  # the machine's answer completes the call


def get_property(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    partition = hypervisor.target(call.caller, call.args[0])
    if partition is None:
        return HvStatus.INVALID_PARTITION_ID, b""
    if call.args[1] == Property.PRIVILEGES:
        value = int(partition.privileges)
    elif call.args[1] == Property.PROCESS_ID:
        value = partition.vps.get(0, 0)
    elif call.args[1] == Property.STATE:
        value = int(partition.state)
    elif call.args[1] == Property.STARTING:
        value = int(partition.starting)
    else:
        return HvStatus.INVALID_PARAMETER, b""
    return HvStatus.SUCCESS, hv.PROPERTY_VALUE.pack(value)


def next_child(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    """The child with the next higher id; PARTITION_INVALID after the last. The one before need not exist any more."""
    parent, previous = call.args
    if hypervisor.target(call.caller, parent) is None:
        return HvStatus.INVALID_PARTITION_ID, b""
    number = call.caller[0] if parent == hv.PARTITION_SELF else parent
    children = [p.number for p in hypervisor.partitions.values() if p.parent == number and p.number > previous]
    return HvStatus.SUCCESS, hv.PARTITION_ID.pack(min(children, default=hv.PARTITION_INVALID))


def get_partition_id(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    return HvStatus.SUCCESS, hv.PARTITION_ID.pack(call.caller[0])
