"""I/O memory: what each side maps, what a page list reaches, and buffers that come back."""

from __future__ import annotations

import fcntl
import gc
import os
import struct
from collections.abc import Iterator, Sequence

import pytest

from tests.rings import GPA, SharedMemory
from vmbus_emu.device import Scatter, fill, first
from vmbus_emu.memory import PAGE, PageRange, Pool, Region

PAGES = 16
PFN = GPA // PAGE


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    made = SharedMemory(PAGES)
    for page in range(PAGES):
        made.guest.view[page * PAGE : (page + 1) * PAGE] = bytes([page]) * PAGE
    yield made
    made.close()


def page_range(byte_count: int, byte_offset: int, *pages: int) -> PageRange:
    """``pages`` counted from the region's first."""
    return byte_count, byte_offset, struct.pack(f"<{len(pages)}Q", *(PFN + page for page in pages))


def mapped_bytes() -> int:
    """Address space of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * PAGE


# -- mappings ----------------------------------------------------------------------------------------------------


def test_both_sides_see_the_same_pages(memory: SharedMemory) -> None:
    memory.guest.view[5 * PAGE] = 0x55
    assert memory.host.view[5 * PAGE] == 0x55
    memory.host.view[5 * PAGE] = 0x66
    assert memory.guest.view[5 * PAGE] == 0x66


def test_a_ring_is_its_control_page_and_its_data_twice(memory: SharedMemory) -> None:
    ring = memory.guest.ring((3, 4, 5))
    assert len(ring) == 5 * PAGE
    assert [ring[page * PAGE] for page in range(5)] == [3, 4, 5, 4, 5]
    ring[PAGE + 10] = 0xAB
    assert ring[3 * PAGE + 10] == 0xAB == memory.host.view[4 * PAGE + 10]
    ring[5 * PAGE - 1] = 0xCD
    assert ring[3 * PAGE - 1] == 0xCD == memory.host.view[6 * PAGE - 1]
    ring[2 * PAGE + PAGE - 2 : 3 * PAGE + 2] = b"seam"
    assert bytes(ring[PAGE : PAGE + 2]) == b"am"
    assert memory.host.view[2 * PAGE] == 2
    assert memory.host.view[6 * PAGE] == 6


@pytest.mark.parametrize("pages", [(9, 2, 7, 3), (3, 2, 1, 0), (0, 1, 14, 15), (4, 8, 9, 8)])
def test_a_rings_pages_may_lie_anywhere(memory: SharedMemory, pages: tuple[int, ...]) -> None:
    ring = memory.host.ring(pages)
    assert [ring[n * PAGE] for n in range(7)] == [*pages, *pages[1:]]
    for n, page in enumerate(pages):
        ring[n * PAGE + 100 + n] = 0xF0 + n
        assert memory.guest.view[page * PAGE + 100 + n] == 0xF0 + n


@pytest.mark.parametrize("pages", [(4, 5, 6), (0,), (15,), (7, 3, 4, 12), (2, 1)])
def test_pages_one_after_the_other(memory: SharedMemory, pages: tuple[int, ...]) -> None:
    linear = memory.host.linear(pages)
    assert len(linear) == len(pages) * PAGE
    assert bytes(linear[::PAGE]) == bytes(pages)
    linear[len(linear) - 1] = 0x99
    assert memory.guest.view[(pages[-1] + 1) * PAGE - 1] == 0x99


@pytest.mark.parametrize("pages", [(0, PAGES), (PAGES, PAGES + 1), (-1, 0), (PAGES - 1, PAGES), (0, 1 << 40)])
@pytest.mark.parametrize("how", ["ring", "linear"])
def test_no_page_outside_the_region_is_mapped(memory: SharedMemory, how: str, pages: Sequence[int]) -> None:
    """Behind the end of the file is memory that kills whoever looks at it (SIGBUS)."""
    with pytest.raises(OSError, match="map"):
        getattr(memory.host, how)(pages)


def test_mappings_go_with_their_last_view(memory: SharedMemory) -> None:
    pages = [0, *range(2, PAGES, 2)] * 64
    gc.collect()
    before = mapped_bytes()
    ring = memory.host.ring(pages)
    half = ring[PAGE:]
    size = len(ring)
    del ring
    assert mapped_bytes() >= before + size
    assert half[0] == 2
    del half
    assert mapped_bytes() < before + size


def test_a_mapping_outlives_the_descriptor(memory: SharedMemory) -> None:
    region = Region(os.dup(memory.fd), GPA, PAGES)
    ring = region.ring((1, 2))
    region.close()
    region.close()
    assert (ring[0], ring[PAGE], region.view[PAGE]) == (1, 2, 1)
    with pytest.raises(OSError, match="map"):
        region.ring((1, 2))


def test_a_region_is_not_larger_than_its_file(memory: SharedMemory) -> None:
    fd = os.dup(memory.fd)
    with pytest.raises(ValueError, match="length"):
        Region(fd, GPA, PAGES + 1)
    os.close(fd)


def test_a_sealed_file_is_mapped_and_cannot_shrink_under_the_mapping() -> None:
    fd = os.memfd_create("sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4 * PAGE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    region = Region(os.dup(fd), GPA, 4)
    ring = region.ring((3, 0, 2))
    ring[0], ring[3 * PAGE] = 7, 8
    for size in 0, PAGE, 5 * PAGE:
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    assert (region.view[3 * PAGE], region.view[0]) == (7, 8)
    region.close()
    os.close(fd)


# -- page lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "nbytes", "pages"), [
    (0, 1, [0]), (0, PAGE, [0]), (1, PAGE, [0, 1]), (PAGE - 1, 1, [0]), (PAGE - 1, 2, [0, 1]),
    (3 * PAGE, 2 * PAGE, [3, 4]), (15 * PAGE, PAGE, [15]), (0, PAGES * PAGE, list(range(PAGES))),
])  # fmt: skip
def test_a_list_describes_a_buffer_and_resolves_to_it(
    memory: SharedMemory, offset: int, nbytes: int, pages: list[int]
) -> None:
    into = offset % PAGE
    pfns = struct.pack(f"<{len(pages)}Q", *(PFN + page for page in pages))
    assert memory.guest.page_list(offset, nbytes) == struct.pack("<IIII", 0, 1, nbytes, into) + pfns
    area = memory.host.resolve([(nbytes, into, pfns)])
    assert isinstance(area, memoryview)
    assert len(area) == nbytes
    area[0], area[nbytes - 1] = 0xA1, 0xA2
    assert memory.guest.view[offset + nbytes - 1] == 0xA2
    assert memory.guest.view[offset] == (0xA1 if nbytes > 1 else 0xA2)


def test_a_scattered_list_is_memory_in_pieces(memory: SharedMemory) -> None:
    area = memory.host.resolve([page_range(3 * PAGE - 100, 50, 9, 10, 2)])
    assert isinstance(area, Scatter)
    assert [len(piece) for piece in area.pieces] == [2 * PAGE - 50, PAGE - 50]
    assert len(area) == 3 * PAGE - 100
    assert bytes(area) == b"\x09" * (PAGE - 50) + b"\x0a" * PAGE + b"\x02" * (PAGE - 50)
    fill(area, bytes(len(area)))
    assert memory.guest.view[9 * PAGE + 49] == 9
    assert bytes(memory.guest.view[9 * PAGE + 50 : 11 * PAGE]) == bytes(2 * PAGE - 50)
    assert memory.guest.view[11 * PAGE] == 11
    assert bytes(memory.guest.view[2 * PAGE : 3 * PAGE - 50]) == bytes(PAGE - 50)
    assert memory.guest.view[3 * PAGE - 50] == 2


def test_several_ranges(memory: SharedMemory) -> None:
    area = memory.host.resolve([
        page_range(10, 4, 1), page_range(1, PAGE - 1, 1), page_range(PAGE + 6, PAGE - 3, 3, 4, 3), page_range(8, 0, 15),
    ])  # fmt: skip
    assert isinstance(area, Scatter)
    assert bytes(area) == b"\1" * 11 + b"\3" * 3 + b"\4" * PAGE + b"\3" * 3 + b"\x0f" * 8
    assert [bytes(first(area, n)) for n in (1, 10, 12)] == [b"\1", b"\1" * 10, b"\1" * 11 + b"\3"]


def test_pages_in_order_but_not_from_the_first_are_one_piece(memory: SharedMemory) -> None:
    area = memory.host.resolve([page_range(PAGE, 0, 6), page_range(PAGE, 0, 7)])
    assert area is not None
    assert bytes(area) == b"\6" * PAGE + b"\7" * PAGE


OUTSIDE = (-1, PAGES, PAGES + 1, -PFN, (1 << 52) - 1 - PFN, (1 << 63) - PFN, (1 << 64) - 1 - PFN)


@pytest.mark.parametrize("page", OUTSIDE)
def test_no_page_list_reaches_outside(memory: SharedMemory, page: int) -> None:
    for ranges in (
        [page_range(8, 0, page)],
        [page_range(8, PAGE - 4, 0, page)],
        [page_range(8, PAGE - 4, page, 0)],
        [page_range(3 * PAGE, 0, 4, page, 5)],
        [page_range(8, 0, 3), page_range(8, 0, page)],
        [page_range(8, 0, page), page_range(8, 0, 3)],
    ):
        assert memory.host.resolve(ranges) is None, ranges


def test_a_run_over_the_regions_edge_is_outside(memory: SharedMemory) -> None:
    assert memory.host.resolve([page_range(2 * PAGE, 0, PAGES - 1, PAGES)]) is None
    assert memory.host.resolve([page_range(2 * PAGE, 0, -1, 0)]) is None
    edge = memory.host.resolve([page_range(2 * PAGE, 0, PAGES - 2, PAGES - 1)])
    assert edge is not None
    assert bytes(edge) == b"\x0e" * PAGE + b"\x0f" * PAGE


def test_a_list_is_resolved_against_the_region_not_the_file() -> None:
    """Two regions at different addresses: the page number of one means nothing in the other."""
    near, far = SharedMemory(4), SharedMemory(4)
    other = Region(os.dup(far.fd), GPA + 4 * PAGE, 4)
    assert near.host.resolve([page_range(8, 0, 4)]) is None
    assert other.resolve([page_range(8, 0, 3)]) is None
    area = other.resolve([page_range(8, 0, 4)])
    assert area is not None
    other.view[0] = 0x77
    assert bytes(area)[0] == 0x77
    other.close()
    near.close()
    far.close()


# -- buffers -----------------------------------------------------------------------------------------------------


def test_a_pool_gives_pages_and_takes_them_back(memory: SharedMemory) -> None:
    pool = Pool(memory.guest, 4, 8)
    assert [pool.take(3), pool.take(3), pool.take(3), pool.take(2), pool.take(1)] == [4, 7, -1, 10, -1]
    assert pool.free_pages == 0
    pool.give(7, 3)
    assert pool.free_pages == 3
    assert [pool.take(4), pool.take(2), pool.take(1)] == [-1, 7, 9]


def test_a_buffer_comes_back_when_its_last_slice_dies(memory: SharedMemory) -> None:
    pool = Pool(memory.guest, 4, 4)
    whole = pool.allocate(PAGE + 1)
    assert whole is not None
    assert len(whole) == PAGE + 1
    assert pool.free_pages == 2
    slices = [whole[10:20], whole[PAGE:], memoryview(whole)[:1]]
    del whole
    while slices:
        assert pool.free_pages == 2
        slices.pop()
    assert pool.free_pages == 4


def test_a_buffer_keeps_its_memory(memory: SharedMemory) -> None:
    region = Region(os.dup(memory.fd), GPA, PAGES)
    buffer = Pool(region, 4, 4).allocate(PAGE)
    assert buffer is not None
    region.close()
    del region
    gc.collect()
    buffer[0] = 0x42
    assert memory.host.view[4 * PAGE] == 0x42


@pytest.mark.parametrize("nbytes", [0, 5 * PAGE, 4 * PAGE + 1, 1 << 40])
def test_a_pool_has_no_buffers_of_no_size_or_too_much(memory: SharedMemory, nbytes: int) -> None:
    pool = Pool(memory.guest, 4, 4)
    assert pool.allocate(nbytes) is None
    assert pool.free_pages == 4


def test_where_a_buffer_lies_is_found(memory: SharedMemory) -> None:
    pool = Pool(memory.guest, 4, 4)
    buffer = pool.allocate(2 * PAGE)
    assert buffer is not None
    assert memory.guest.offset_of(buffer) == 4 * PAGE
    assert memory.guest.offset_of(buffer[100:200]) == 4 * PAGE + 100
    assert memory.guest.offset_of(buffer[PAGE:]) == 5 * PAGE
    assert memory.guest.page_list(memory.guest.offset_of(buffer[100:]), 10)[8:16] == struct.pack("<II", 10, 100)


def test_what_does_not_lie_in_the_region_is_not_found_there(memory: SharedMemory) -> None:
    buffer = Pool(memory.guest, 4, 4).allocate(PAGE)
    other = Pool(memory.host, 4, 4).allocate(PAGE)  # the same page, as the other side maps it
    assert buffer is not None
    assert other is not None
    strange = (
        bytes(8), bytearray(8), memoryview(b"12345678"), memoryview(bytearray(8)), other, buffer.toreadonly(),
        buffer[::2], buffer[0:0], memory.host.ring((0, 1)),
    )  # fmt: skip
    for one in strange:
        assert memory.guest.offset_of(one) == -1
