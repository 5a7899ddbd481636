"""Where a guest's devices have their rings and buffers within a region of I/O memory: no two of them meet."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from partitions.child.links import BUFFER_PAGES, RESERVE_PAGES, RING, Place, disk_place, nic_place
from vmbus_emu.device import MAX_TRANSFER_BYTES
from vmbus_emu.iomemory import NETWORK_PAGES_PER_NIC, STORAGE_PAGES, STORAGE_PAGES_PER_DISK
from vmbus_emu.memory import PAGE
from vmbus_emu.topology.data import MAX_DISKS, MAX_NICS
from vmbus_emu.vmbus.gpadl import contiguous, ring_fault


@pytest.mark.parametrize(("place", "count", "shared", "each"), [
    (disk_place, MAX_DISKS, STORAGE_PAGES, STORAGE_PAGES_PER_DISK),
    (nic_place, MAX_NICS, 0, NETWORK_PAGES_PER_NIC),
], ids=["disks", "NICs"])
def test_parts_lie_within_the_region_and_apart(
    place: Callable[[int], Place], count: int, shared: int, each: int
) -> None:
    used: set[int] = set()
    for index in range(count):
        for first, pages in place(index).parts.values():
            part = set(range(first, first + pages))
            assert pages > 0
            assert not used & part
            assert min(part) >= shared
            used |= part
    assert max(used) < shared + count * each


@pytest.mark.parametrize("place", [disk_place(0), disk_place(63), nic_place(0), nic_place(255)])
def test_the_rings_are_two_rings(place: Place) -> None:
    first, pages = place.parts[RING]
    assert ring_fault((contiguous(first, pages * PAGE),), place.downstream) is None


def test_the_reserve_holds_one_largest_transfer() -> None:
    assert BUFFER_PAGES + RESERVE_PAGES == STORAGE_PAGES
    assert RESERVE_PAGES * PAGE >= MAX_TRANSFER_BYTES
