"""What the VMBus provider asks of a VSP where memory is shared: :class:`~partitions.parent.asking.Asking` on ``ring``.

The hypervisor comes first: the region of the guest's I/O memory is granted to the VSP's partition with the first GPADL
in it, and each open channel has two doorbells. Those calls take time. They are made at once, but each device has a
queue, so that what is asked about it reaches its VSP in the order in which it was asked. A process that does not need
this does not load it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from partitions.parent.asking import Asking, Place
from partitions.parent.offered import Device, Guest
from partitions.parent.vsplink import ProviderSide, VspSide, encode_pages
from partitions.parent.wiring import Wiring
from vmbus_emu.loop import Loop
from vmbus_emu.protocol.hypercall import HvStatus
from vmbus_emu.task import Future, Task
from vmbus_emu.vmbus import effects as fx

#: Doorbell numbers, in every partition: beyond those of messages, and never used again.
FIRST_DOORBELL = 0x400000


class RingAsking(Asking):
    """The same where memory is shared. ``regions``: each VM's I/O memory, as its configuration has it."""

    def __init__(
        self, place: Place, answers: Callable[[str], ProviderSide], loop: Loop, wiring: Wiring,
        regions: Mapping[str, Sequence[Mapping[str, Any]]], log: Callable[[str], Any],
    ) -> None:
        super().__init__(place, answers)
        self._loop = loop
        self._wiring = wiring
        self._regions = regions
        self._log = log
        self._numbers = itertools.count(FIRST_DOORBELL)
        self._doorbells: dict[int, tuple[int, int]] = {}    # that were made: number -> the partitions that have them
        self._queues: dict[tuple[str, int], deque[Coroutine[Future[Any], Any, None]]] = {}
        self._workers: dict[tuple[str, int], Task[None]] = {}

    def doorbell(self) -> int:
        return next(self._numbers)

    def open(self, found: tuple[VspSide, int], guest: Guest, device: Device, effect: fx.OpenDevice) -> None:
        number = device.offer.connection_id
        making = self._wiring.make_doorbells(guest.partition, found[1], number)
        deleted = number not in self._doorbells     # those of an earlier opening, if there were any
        at_once = Task(self._loop, making) if deleted else making
        self._in_turn(device, self._open(found, guest, device, effect, at_once))

    async def _open(
        self, found: tuple[VspSide, int], guest: Guest, device: Device, effect: fx.OpenDevice,
        making: Awaitable[list[HvStatus]],
    ) -> None:
        vsp, partition = found
        number, request = device.offer.connection_id, effect.request
        made = await making
        self._doorbells[number] = guest.partition, partition
        if any(status is not HvStatus.SUCCESS for status in made):
            self._log(f"{guest.name}: the hypervisor refused doorbells: {[status.name for status in made]}")
            self._answers(device.vsp).opened(device.key, effect.ticket, False)
            return
        vsp.open(
            device.key, effect.ticket, guest.pid, request.open_id, number, request.ring_gpadl,
            request.downstream_page_offset,
        )  # fmt: skip

    def accept(self, found: tuple[VspSide, int], guest: Guest, device: Device, effect: fx.AcceptGpadl) -> None:
        region = next((r for r in self._regions[guest.name] if r["vsp"] == device.vsp), None)
        if region is None or len(effect.ranges) != 1:
            self._in_turn(device, self._refuse(device, effect))
            return
        granting = Task(self._loop, self._wiring.grant(guest.partition, found[1], region["gpa"], region["pages"]))
        self._in_turn(device, self._accept(found[0], guest, device, effect, region, granting))

    async def _refuse(self, device: Device, effect: fx.AcceptGpadl) -> None:
        self._answers(device.vsp).gpadl_accepted(device.key, effect.gpadl, effect.ticket, False)

    async def _accept(
        self, vsp: VspSide, guest: Guest, device: Device, effect: fx.AcceptGpadl, region: Mapping[str, Any],
        granting: Task[HvStatus],
    ) -> None:
        status = await granting
        if status not in (HvStatus.SUCCESS, HvStatus.OBJECT_IN_USE):
            self._log(f"{guest.name}: the hypervisor granted no memory: {status.name}")
            await self._refuse(device, effect)
            return
        (lent,) = effect.ranges
        vsp.accept_gpadl(
            device.key, effect.gpadl, effect.ticket, lent.byte_count, lent.byte_offset,
            guest.partition, region["gpa"], region["pages"], encode_pages(lent.pfns),
        )  # fmt: skip

    def close(self, found: tuple[VspSide, int], guest: Guest, device: Device, ticket: int) -> None:
        self._in_turn(device, self._close(found, device, ticket))

    async def _close(self, found: tuple[VspSide, int], device: Device, ticket: int) -> None:
        found[0].close(device.key, ticket)
        await self._delete_doorbells(device)

    def ended(self, device: Device) -> None:
        self._in_turn(device, self._delete_doorbells(device))

    async def _delete_doorbells(self, device: Device) -> None:
        number = device.offer.connection_id
        ends = self._doorbells.pop(number, None)
        if ends is not None:
            await self._wiring.delete_doorbells(*ends, number)

    def tear_down(self, found: tuple[VspSide, int], device: Device, gpadl: int, ticket: int) -> None:
        self._in_turn(device, self._tear_down(found, device, gpadl, ticket))

    async def _tear_down(self, found: tuple[VspSide, int], device: Device, gpadl: int, ticket: int) -> None:
        found[0].tear_down_gpadl(device.key, gpadl, ticket)

    # -- one at a time per device -------------------------------------------------------------------

    def _in_turn(self, device: Device, step: Coroutine[Future[Any], Any, None]) -> None:
        name = (device.vsp, device.key)
        queue = self._queues.get(name)
        if queue is not None:
            queue.append(step)
            return
        self._queues[name] = deque((step,))
        self._workers[name] = Task(self._loop, self._work_off(name))

    async def _work_off(self, name: tuple[str, int]) -> None:
        queue = self._queues[name]
        while queue:
            await queue.popleft()
        del self._queues[name], self._workers[name]

    def gone(self, partition: int, vm: str, vsps: Sequence[VspSide]) -> None:
        Task(self._loop, self._gone(partition, vm, vsps, list(self._workers.values())))

    async def _gone(
        self, partition: int, vm: str, vsps: Sequence[VspSide], under_way: Sequence[Task[None]]
    ) -> None:
        for worker in under_way:  # one of them may be about to hand over memory of that partition
            await worker
        super().gone(partition, vm, vsps)
