"""What an incarnation of management left half done when it died: partitions that have no process, and get none.

The machine knows the partitions that have, or had, a process. Of the others the dead incarnation made, one that is
being started is left to that, and waited for. The rest is taken out of the hypervisor's tables; who asked for it asks
again.
"""

from __future__ import annotations

from collections.abc import Collection

from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Code, HvStatus, Property
from vmbus_emu.vp import VirtualProcessor


async def clear_up(vp: VirtualProcessor, known: Collection[int]) -> int:
    """Leave no child partition besides the ``known`` ones but those with a process; how many were deleted.

    Nothing that another VP of this partition still does may create or start one meanwhile.
    """
    deleted = 0
    number = await _next_child(vp, hv.PARTITION_INVALID)
    while number != hv.PARTITION_INVALID:
        if number not in known and not await _lives(vp, number):
            deleted += await remove(vp, number)
        number = await _next_child(vp, number)
    return deleted


async def remove(vp: VirtualProcessor, number: int) -> bool:
    """Finalize and delete a partition, whatever its state is; whether it was there. Its process ends, if it has one."""
    await vp.call(Code.FINALIZE_PARTITION, hv.PARTITION_ID.pack(number))  # refused if it was never initialized
    return (await vp.call(Code.DELETE_PARTITION, hv.PARTITION_ID.pack(number)))[0] is HvStatus.SUCCESS


async def _next_child(vp: VirtualProcessor, previous: int) -> int:
    block = hv.NEXT_CHILD.pack(hv.PARTITION_SELF, previous)
    status, output = await vp.call(Code.GET_NEXT_CHILD_PARTITION, block)
    return hv.PARTITION_ID.unpack_from(output)[0] if status is HvStatus.SUCCESS else hv.PARTITION_INVALID


async def _lives(vp: VirtualProcessor, number: int) -> bool:
    """Whether it has a process; one that is being started is waited for. In this order: who is not being started will
    not be, while somebody who is may have its process before the second question."""
    if await _property(vp, number, Property.STARTING):
        status, _ = await vp.call(Code.START_VIRTUAL_PROCESSOR, hv.START_VP.pack(number, 0, 0))
        return status in (HvStatus.SUCCESS, HvStatus.INVALID_VP_STATE)  # the latter: it was faster than the call
    return await _property(vp, number, Property.PROCESS_ID) != 0


async def _property(vp: VirtualProcessor, number: int, which: Property) -> int:
    status, output = await vp.call(Code.GET_PARTITION_PROPERTY, hv.GET_PROPERTY.pack(number, which))
    return int(hv.PROPERTY_VALUE.unpack_from(output)[0]) if status is HvStatus.SUCCESS else 0
