"""The hypercalls: one table says for each call its privilege, its input block and its handler. No I/O.

Anything a partition can send is answered with a status, and every call ends in exactly one
:class:`~vmbus_emu.hypervisor.core.Reply`: now, or for StartVirtualProcessor when the machine has answered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct

from vmbus_emu.hypervisor import intercepts, lifecycle, memory, synic
from vmbus_emu.hypervisor.changes import Change
from vmbus_emu.hypervisor.core import Effect, HandDoorbell, HandOut, Hypervisor, Reply, Request, Result
from vmbus_emu.hypervisor.tables import Vp
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol import intercept
from vmbus_emu.protocol.hypercall import Code, HvStatus, Privilege

Handler = Callable[[Hypervisor, Request, list[Effect]], Result | None]


@dataclass(frozen=True, slots=True)
class Call:
    privilege: Privilege
    layout: Struct
    handler: Handler


CALLS: dict[int, Call] = {
    Code.CREATE_PARTITION: Call(Privilege.CREATE_PARTITIONS, hv.CREATE_PARTITION, lifecycle.create_partition),
    Code.INITIALIZE_PARTITION: Call(Privilege.CREATE_PARTITIONS, hv.PARTITION_ID, lifecycle.initialize),
    Code.FINALIZE_PARTITION: Call(Privilege.CREATE_PARTITIONS, hv.PARTITION_ID, lifecycle.finalize),
    Code.DELETE_PARTITION: Call(Privilege.CREATE_PARTITIONS, hv.PARTITION_ID, lifecycle.delete_partition),
    Code.GET_PARTITION_PROPERTY: Call(Privilege.ACCESS_PARTITION_ID, hv.GET_PROPERTY, lifecycle.get_property),
    Code.GET_PARTITION_ID: Call(Privilege.ACCESS_PARTITION_ID, Struct(""), lifecycle.get_partition_id),
    Code.GET_NEXT_CHILD_PARTITION: Call(Privilege.ACCESS_PARTITION_ID, hv.NEXT_CHILD, lifecycle.next_child),
    Code.MAP_GPA_PAGES: Call(Privilege.ACCESS_MEMORY_POOL, hv.GRANT, memory.map_pages),
    Code.UNMAP_GPA_PAGES: Call(Privilege.ACCESS_MEMORY_POOL, hv.GRANT, memory.unmap_pages),
    Code.INSTALL_INTERCEPT: Call(Privilege.CREATE_PARTITIONS, intercept.INSTALL, intercepts.install),
    Code.SET_VP_REGISTERS: Call(Privilege.CREATE_PARTITIONS, intercept.SET_REGISTERS, intercepts.set_registers),
    Code.ASSERT_VIRTUAL_INTERRUPT: Call(
        Privilege.CREATE_PARTITIONS, intercept.ASSERT_INTERRUPT, intercepts.assert_interrupt
    ),
    Code.DELETE_PORT: Call(Privilege.CREATE_PORT, hv.DELETE_PORT, synic.delete_port),
    Code.DISCONNECT_PORT: Call(Privilege.CONNECT_PORT, hv.DISCONNECT_PORT, synic.disconnect),
    Code.POST_MESSAGE: Call(Privilege.POST_MESSAGES, hv.POST_MESSAGE, synic.post_message),
    Code.SIGNAL_EVENT: Call(Privilege.SIGNAL_EVENTS, hv.SIGNAL_EVENT, synic.signal_event),
    Code.CREATE_PORT: Call(Privilege.CREATE_PORT, hv.CREATE_PORT, synic.create_port),
    Code.CONNECT_PORT: Call(Privilege.CONNECT_PORT, hv.CONNECT_PORT, synic.connect_port),
    Code.START_VIRTUAL_PROCESSOR: Call(Privilege.CREATE_PARTITIONS, hv.START_VP, lifecycle.start_vp),
}
#: An access that trapped. It asks for nothing that a VP has not by itself, so it needs no privilege.
_TRAP = Call(Privilege(0), intercept.TRAP, intercepts.trap)


def execute(hypervisor: Hypervisor, caller: Vp, sequence: int, control: int | None, block: bytes) -> list[Effect]:
    """One call of ``caller``: input control word and input block (protocol sheet 1.2), and what comes of it. Without
    a control word (``None``) it is an access of the VP's that trapped.

    The reply is the last effect, and effects are carried out in order: who has seen the reply finds in its socket
    what the call handed out.
    """
    effects: list[Effect] = []
    if control is None:
        call: Call | None = _TRAP
    else:
        hypervisor.hypercalls += 1
        code = hv.call_code(control)
        call = CALLS.get(code) if code is not None else None
    answer: Result | None
    if call is None:
        answer = HvStatus.INVALID_HYPERCALL_CODE, b""
    elif call.privilege & ~hypervisor.partitions[caller[0]].privileges:
        answer = HvStatus.ACCESS_DENIED, b""
    elif len(block) < call.layout.size:
        answer = HvStatus.INVALID_HYPERCALL_INPUT, b""
    else:
        request = Request(caller, sequence, block, call.layout.unpack_from(block))
        answer = call.handler(hypervisor, request, effects)
    if answer is not None:
        status, output = answer
        hypervisor.refused += status is not HvStatus.SUCCESS
        effects.append(Reply(caller, sequence, status, output))
    return effects


def receive(hypervisor: Hypervisor, caller: Vp, sequence: int, control: int | None, block: bytes) -> list[Effect]:
    """A call as it arrives from the process of ``caller``, which must be bound: once, or again from who has no answer.

    A recorded hypervisor executes a sequence number once, and keeps the answer until the caller said that it has it.
    An answer that descriptors go before is kept when they were handed out (:func:`handed`); till then they are owed.
    """
    if not hypervisor.recorded:
        return execute(hypervisor, caller, sequence, control, block)
    asked = hypervisor.callers[caller]
    if sequence in asked.results:
        saved = asked.results[sequence]
        return [] if saved is None else [Reply(caller, sequence, HvStatus(saved[0]), saved[1])]
    if sequence < asked.answered:
        return []  # it has said itself that it has the answer
    if sequence >= asked.answered + 2 * hv.MAX_CALLS:
        hypervisor.refused += 1
        return [Reply(caller, sequence, HvStatus.OPERATION_DENIED)]
    effects = execute(hypervisor, caller, sequence, control, block)
    last = effects[-1] if effects else None
    if not isinstance(last, Reply):
        hypervisor.change("pending", *caller, sequence)
    elif handouts := tuple(handout for effect in effects if (handout := _handout(effect)) is not None):
        hypervisor.change("owed", *caller, sequence, int(last.status), last.output, handouts)
    else:
        hypervisor.change("result", *caller, sequence, int(last.status), last.output)
    return effects


def handed(hypervisor: Hypervisor) -> bool:
    """What was owed is with those it is for: its call has a result now. ``False``: nothing was owed."""
    owed = hypervisor.owed
    if owed is None:
        return False
    hypervisor.change("result", *owed.vp, owed.sequence, owed.status, owed.output)
    hypervisor.change("handed")
    return True


def _handout(effect: Effect) -> Change | None:
    match effect:
        case HandOut(grant):
            return "memory", *grant.fields
        case HandDoorbell(owner, port, partition, connection):
            return "doorbell", owner, port, partition, connection
    return None
