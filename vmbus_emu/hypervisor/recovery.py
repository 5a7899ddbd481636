"""What a new incarnation of the hypervisor has to do before it goes on: what its predecessor may not have done.

The predecessor wrote its changes down before it carried out their effects. Of the last ones nobody knows whether they
happened, so they are carried out again, and each is harmless the second time:

- a message: its number tells the VP that it has it. The same for a notice, and for an intercept;
- an event flag, or an interrupt: it is set, or was set;
- a descriptor: nobody uses it before the call is answered, and the call was not. The later one takes the place of the
  earlier one; a doorbell's two ends are always handed out together, of one pipe;
- a power-on: the machine answers the first.

A call's answer is not sent again: the caller asks.
"""

from __future__ import annotations

from collections.abc import Iterable

from vmbus_emu.hypervisor.changes import APPLY, Change
from vmbus_emu.hypervisor.core import (
    Deliver,
    Effect,
    HandDoorbell,
    HandOut,
    Hypervisor,
    Interrupt,
    PowerOff,
    PowerOn,
    Raise,
)
from vmbus_emu.hypervisor.intercepts import delivery
from vmbus_emu.hypervisor.tables import Grant, Vp
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Access


def restore(changes: Iterable[Change]) -> Hypervisor:
    """The hypervisor whose ledger says ``changes``."""
    hypervisor = Hypervisor(recorded=True)
    for change in changes:
        APPLY[change[0]](hypervisor, *change[1:])
    return hypervisor


def bind_again(hypervisor: Hypervisor, vp: Vp, pid: int) -> list[Effect]:
    """The machine says that ``pid`` stands in for ``vp``. The tables may know it; or it was powered on, or took a dead
    one's place, or its partition was finalized, and nobody lived to be told, or to tell."""
    number, index = vp
    partition = hypervisor.partitions.get(number)
    bound = partition.vps.get(index) if partition is not None else None
    if bound == pid:
        return []
    effects = hypervisor.ended(vp) if bound is not None else []
    if partition is not None and partition.starting and index == 0:
        effects += hypervisor.powered(vp, pid)
    elif not hypervisor.bind(vp, pid):
        effects.append(PowerOff(number, (pid,)))
    return effects


def outstanding(hypervisor: Hypervisor) -> list[Effect]:
    """The effects to carry out again: descriptors first, messages in their order."""
    effects = _owed(hypervisor)
    messages = [delivery(vp, suspended) for vp, suspended in hypervisor.suspended.items()]
    for partition in hypervisor.partitions.values():
        for index, (number, kind, payload) in partition.notices.items():
            notice = hv.SynicMessage(kind, 0, payload)
            messages.append(Deliver((partition.number, index), hv.SINT_VMBUS, notice, number))
        for port in partition.ports.values():
            vp = port.owner, port.vp
            for number, (kind, payload) in port.messages.items():
                messages.append(Deliver(vp, port.sint, hv.SynicMessage(kind, port.number, payload), number))
            effects += [Raise(vp, port.sint, port.base_flag + flag) for flag in sorted(port.pending_flags)]
        effects += [
            Interrupt((partition.number, index), vector)
            for index, vectors in partition.interrupts.items() for vector in sorted(vectors)
        ]  # fmt: skip
    messages.sort(key=lambda message: message.number)
    effects += messages
    effects += [PowerOn(p.number, 0, p.name) for p in hypervisor.partitions.values() if p.starting]
    return effects


def _owed(hypervisor: Hypervisor) -> list[Effect]:
    """Without what lost its reason by the death of a process that died while there was no hypervisor."""
    effects: list[Effect] = []
    for handout in hypervisor.owed.handouts if hypervisor.owed is not None else ():
        match handout:
            case ("memory", owner, grantee, gpa, pages, access, vp):
                grant = Grant(owner, grantee, gpa, pages, Access(access), vp)
                if grant in hypervisor.grants:
                    effects.append(HandOut(grant))
            case ("doorbell", owner, port, partition, connection):
                connecting = hypervisor.partitions.get(partition)
                if connecting is not None and connecting.connections.get(connection) == (owner, port):
                    effects.append(HandDoorbell(owner, port, partition, connection))
    return effects
