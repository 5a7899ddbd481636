"""Memory grants: which partition may map which region of another one's I/O memory.

A grant is of one whole region. What the grantee gets is a descriptor of the region's memory file, and a descriptor
shows the whole file: of a part, it would show pages that nobody granted.
"""

from __future__ import annotations

from vmbus_emu.hypervisor.core import Effect, HandOut, Hypervisor, Request, Result
from vmbus_emu.hypervisor.tables import Grant, PartitionState
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Access, HvStatus

MAX_GRANTS = 64             # per owner


def _grant_of(hypervisor: Hypervisor, call: Request) -> Grant | HvStatus:
    owner = hypervisor.target(call.caller, call.args[0])
    grantee = hypervisor.partitions.get(call.args[1])
    if owner is None or grantee is None or owner is grantee:
        return HvStatus.INVALID_PARTITION_ID
    if grantee.number != call.caller[0] and grantee.parent != call.caller[0]:
        return HvStatus.INVALID_PARTITION_ID
    _, _, gpa, pages, word = call.args
    vp, access = word >> hv.GRANT_VP_SHIFT, word & (1 << hv.GRANT_VP_SHIFT) - 1
    if owner.memory.get(gpa) != pages or access not in (1, 2, 3):
        return HvStatus.INVALID_PARAMETER
    if vp and vp not in grantee.vps:
        return HvStatus.INVALID_VP_INDEX
    return Grant(owner.number, grantee.number, gpa, pages, Access(access), vp)


def map_pages(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    grant = _grant_of(hypervisor, call)
    if isinstance(grant, HvStatus):
        return grant, b""
    if PartitionState.FINALIZED in (hypervisor.partitions[p].state for p in (grant.owner, grant.grantee)):
        return HvStatus.INVALID_PARTITION_STATE, b""
    if sum(g.owner == grant.owner for g in hypervisor.grants) >= MAX_GRANTS:
        return HvStatus.INSUFFICIENT_MEMORY, b""
    if grant in hypervisor.grants:
        return HvStatus.OBJECT_IN_USE, b""
    hypervisor.change("grant", *grant.fields)
    out.append(HandOut(grant))
    return HvStatus.SUCCESS, b""


def unmap_pages(hypervisor: Hypervisor, call: Request, out: list[Effect]) -> Result:
    grant = _grant_of(hypervisor, call)
    if isinstance(grant, HvStatus):
        return grant, b""
    if grant not in hypervisor.grants:
        return HvStatus.NOT_FOUND, b""
    hypervisor.take_back(grant)
    return HvStatus.SUCCESS, b""
