"""I/O port intercepts: how a guest's access to a device that is none becomes a message to whoever plays that device.

The parent installs intercepts for ports of its child, and the VP that did owns them. An access to such a port suspends
the child's VP and becomes a message to the owner, at SINT 0. The owner sets the registers the access would have set,
and the VP runs again (protocol sheet 1.8). A port that nobody intercepts reads as all ones, as a bus without anybody.

No driver and no device is in here: the hypervisor knows port numbers, and who asked for them.
"""

from __future__ import annotations

from vmbus_emu.hypervisor.core import Deliver, Effect, Hypervisor, Interrupt, Reply, Request, Result
from vmbus_emu.hypervisor.tables import Intercept, Partition, PartitionState, Suspended, Vp
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol import intercept
from vmbus_emu.protocol.hypercall import HvStatus
from vmbus_emu.protocol.intercept import Trap

MAX_INTERCEPTS = 64         # ranges, per partition
_MAX_REGISTERS = 16
_SETTABLE = frozenset((
    intercept.RAX, intercept.RCX, intercept.RSI, intercept.RDI, intercept.RIP, intercept.INTERCEPT_SUSPEND,
))  # fmt: skip


def _child(hypervisor: Hypervisor, call: Request) -> Partition | None:
    """The partition that a call names, if it is a child of the caller's."""
    partition = hypervisor.target(call.caller, call.args[0])
    return None if partition is None or partition.number == call.caller[0] else partition


def install(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    _, access, kind, parameter = call.args
    partition = _child(hypervisor, call)
    if partition is None:
        return HvStatus.INVALID_PARTITION_ID, b""
    if partition.state is PartitionState.FINALIZED:
        return HvStatus.INVALID_PARTITION_STATE, b""
    first, last = parameter & 0xFFFF, parameter >> 16
    both = intercept.ACCESS_READ | intercept.ACCESS_WRITE
    if kind != intercept.TYPE_IO_PORT_RANGE or access != both or not first <= last <= 0xFFFF:
        return HvStatus.INVALID_PARAMETER, b""
    if any(first <= other.last and other.first <= last for other in partition.intercepts):
        return HvStatus.OBJECT_IN_USE, b""
    if len(partition.intercepts) >= MAX_INTERCEPTS:
        return HvStatus.INSUFFICIENT_MEMORY, b""
    hypervisor.change("intercept", partition.number, first, last, call.caller)
    return HvStatus.SUCCESS, b""


def trap(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result | None:
    """An access of the caller's own; its registers are the answer, when it runs again."""
    access = Trap(*call.args)
    if access.size not in intercept.SIZES or access.write not in (0, 1):
        return HvStatus.INVALID_PARAMETER, b""
    if call.caller in hypervisor.suspended:  # it is one processor, and stands still
        return HvStatus.INVALID_VP_STATE, b""
    hypervisor.intercepts += 1
    found = _intercept_of(hypervisor.partitions[call.caller[0]], access.port)
    if found is None:
        rax = access.rax if access.write else access.rax | (1 << 8 * access.size) - 1
        return HvStatus.SUCCESS, _registers(access, {intercept.RAX: rax})
    number = hypervisor.next_message
    hypervisor.change("trap", *call.caller, call.sequence, found.owner, number, tuple(access))
    out.append(delivery(call.caller, hypervisor.suspended[call.caller]))
    return None  # the owner's answer completes it


def _intercept_of(partition: Partition, port: int) -> Intercept | None:
    return next((one for one in partition.intercepts if one.first <= port <= one.last), None)


def delivery(vp: Vp, suspended: Suspended) -> Deliver:
    """The message of a VP's intercept to its owner; its sender is the partition."""
    payload = intercept.encode_message(vp[1], Trap(*suspended.trap))
    message = hv.SynicMessage(hv.MESSAGE_IO_PORT_INTERCEPT, vp[0], payload)
    return Deliver(suspended.owner, hv.SINT_INTERCEPT, message, suspended.number)


def _registers(access: Trap, values: dict[int, int]) -> bytes:
    return intercept.REGISTERS.pack(
        values.get(intercept.RIP, access.rip + access.length & (1 << 64) - 1), values.get(intercept.RAX, access.rax),
        values.get(intercept.RCX, access.rcx), values.get(intercept.RSI, access.rsi),
        values.get(intercept.RDI, access.rdi),
    )


def set_registers(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    """Answer an intercept: set what the access sets, and let the VP run."""
    partition = _child(hypervisor, call)
    if partition is None:
        return HvStatus.INVALID_PARTITION_ID, b""
    vp = partition.number, call.args[1]
    suspended = hypervisor.suspended.get(vp)
    if suspended is None:
        return HvStatus.INVALID_VP_STATE, b""
    if suspended.owner != call.caller:
        return HvStatus.ACCESS_DENIED, b""
    values = intercept.decode_registers(call.block)
    if values is None or len(values) > _MAX_REGISTERS or not values.keys() <= _SETTABLE:
        return HvStatus.INVALID_PARAMETER, b""
    if values.get(intercept.INTERCEPT_SUSPEND) != 0:  # registers of one that stays suspended are not kept
        return HvStatus.INVALID_PARAMETER, b""
    output = _registers(Trap(*suspended.trap), values)
    hypervisor.change("resume", *vp)
    if hypervisor.recorded:
        hypervisor.change("result", *vp, suspended.sequence, int(HvStatus.SUCCESS), output)
    out.append(Reply(vp, suspended.sequence, HvStatus.SUCCESS, output))
    return HvStatus.SUCCESS, b""


def assert_interrupt(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    """Raise an interrupt at a child's VP. One that is pending swallows further ones of its vector."""
    _, _, destination, vector, _ = call.args
    partition = _child(hypervisor, call)
    if partition is None:
        return HvStatus.INVALID_PARTITION_ID, b""
    if destination not in partition.vps:
        return HvStatus.INVALID_VP_INDEX, b""
    if not intercept.FIRST_VECTOR <= vector <= intercept.LAST_VECTOR:
        return HvStatus.INVALID_PARAMETER, b""
    if vector not in partition.interrupts.get(destination, ()):
        hypervisor.interrupts += 1
        hypervisor.change("interrupt", partition.number, destination, vector)
        out.append(Interrupt((partition.number, destination), vector))
    return HvStatus.SUCCESS, b""
