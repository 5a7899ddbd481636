"""Ports, connections, messages and events: how partitions reach each other (protocol sheet 1.4, 1.5).

A doorbell port carries nothing through here: each end gets one end of a pipe, and rings or is rung
without a hypercall. So a doorbell's connection is no target for PostMessage or SignalEvent.
"""

from __future__ import annotations

from vmbus_emu.hypervisor.core import Deliver, Effect, HandDoorbell, Hypervisor, Raise, Request, Result
from vmbus_emu.hypervisor.tables import PartitionState, Port
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import HvStatus, PortType

MAX_PORTS = 8192            # per partition; the root owns one per child


def create_port(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    owner, number, _, _, _, peer, kind, _, sint, vp, base_flag, flag_count, _, _ = call.args
    partition = hypervisor.target(call.caller, owner)
    if partition is None:
        return HvStatus.INVALID_PARTITION_ID, b""
    if partition.state is PartitionState.FINALIZED:
        return HvStatus.INVALID_PARTITION_STATE, b""
    if kind not in (PortType.MESSAGE, PortType.EVENT, PortType.DOORBELL) or sint > 15:
        return HvStatus.INVALID_PARAMETER, b""
    if kind == PortType.DOORBELL and vp != 0:  # descriptors go to VP 0's process; the port must not outlive it
        return HvStatus.INVALID_VP_INDEX, b""
    if kind == PortType.EVENT and not 0 < flag_count <= hv.EVENT_FLAGS_PER_SINT - base_flag:
        return HvStatus.INVALID_PARAMETER, b""
    if number > hv.MAX_ID or number in partition.ports:
        return HvStatus.INVALID_PORT_ID, b""
    if len(partition.ports) >= MAX_PORTS:
        return HvStatus.INSUFFICIENT_MEMORY, b""
    hypervisor.change(
        "port", partition.number, number, kind, sint, vp, peer, base_flag, flag_count, call.caller
    )
    return HvStatus.SUCCESS, b""


def connect_port(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    connecting, number, _, port_partition, port_number, _, _ = call.args
    partition = hypervisor.target(call.caller, connecting)
    owner = hypervisor.target(call.caller, port_partition)
    if partition is None or owner is None:
        return HvStatus.INVALID_PARTITION_ID, b""
    if PartitionState.FINALIZED in (partition.state, owner.state):
        return HvStatus.INVALID_PARTITION_STATE, b""
    port = owner.ports.get(port_number)
    if port is None or port.connection_partition != partition.number:
        return HvStatus.INVALID_PORT_ID, b""
    if number > hv.MAX_ID or number in partition.connections:
        return HvStatus.INVALID_CONNECTION_ID, b""
    if len(partition.connections) >= MAX_PORTS:
        return HvStatus.INSUFFICIENT_MEMORY, b""
    if port.taken:
        return HvStatus.OBJECT_IN_USE, b""
    hypervisor.change("connection", partition.number, number, owner.number, port_number)
    if port.kind is PortType.DOORBELL:
        out.append(HandDoorbell(owner.number, port_number, partition.number, number))
    return HvStatus.SUCCESS, b""


def delete_port(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    partition = hypervisor.target(call.caller, call.args[0])
    if partition is None:
        return HvStatus.INVALID_PARTITION_ID, b""
    port = partition.ports.get(call.args[1])
    if port is None:
        return HvStatus.INVALID_PORT_ID, b""
    hypervisor.delete_port(port)
    return HvStatus.SUCCESS, b""


def disconnect(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    partition = hypervisor.target(call.caller, call.args[0])
    if partition is None:
        return HvStatus.INVALID_PARTITION_ID, b""
    if call.args[1] not in partition.connections:
        return HvStatus.INVALID_CONNECTION_ID, b""
    hypervisor.change("no connection", partition.number, call.args[1])
    return HvStatus.SUCCESS, b""


def _port_of(hypervisor: Hypervisor, call: Request, connection: int, kind: PortType) -> Port | None:
    target = hypervisor.partitions[call.caller[0]].connections.get(connection & hv.MAX_ID)
    owner = hypervisor.partitions.get(target[0]) if target is not None else None
    port = owner.ports.get(target[1]) if owner is not None and target is not None else None
    return port if port is not None and port.kind is kind else None


def post_message(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    connection, _, kind, size = call.args
    payload = call.block[hv.POST_MESSAGE.size:]
    if kind == 0 or kind & hv.MESSAGE_HYPERVISOR_BIT or size > hv.MAX_PAYLOAD or size > len(payload):
        return HvStatus.INVALID_PARAMETER, b""
    port = _port_of(hypervisor, call, connection, PortType.MESSAGE)
    if port is None:
        return HvStatus.INVALID_CONNECTION_ID, b""
    if port.in_use >= hv.MESSAGE_BUFFERS_PER_PORT:
        return HvStatus.INSUFFICIENT_BUFFERS, b""
    number = hypervisor.next_message
    payload = payload[:size]
    hypervisor.change("message", port.owner, port.number, number, kind, payload)
    hypervisor.messages += 1
    out.append(Deliver((port.owner, port.vp), port.sint, hv.SynicMessage(kind, port.number, payload), number))
    return HvStatus.SUCCESS, b""


def signal_event(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    connection, flag, _ = call.args
    port = _port_of(hypervisor, call, connection, PortType.EVENT)
    if port is None:
        return HvStatus.INVALID_CONNECTION_ID, b""
    if flag >= port.flag_count:
        return HvStatus.INVALID_PARAMETER, b""
    hypervisor.events += 1
    if flag not in port.pending_flags:  # only 0 -> 1 raises the interrupt; signals are never counted
        hypervisor.change("flag", port.owner, port.number, flag)
        out.append(Raise((port.owner, port.vp), port.sint, port.base_flag + flag))
    return HvStatus.SUCCESS, b""
