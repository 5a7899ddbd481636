"""I/O memory: the part of a guest's memory that it shares with one VSP, and how each side maps it.

A :class:`Region` is one memory file (memfd) at a guest-physical address, mapped whole. The guest and the VSP that it
was granted to each have one of their own over the same pages. A page list from the other side is resolved against
the region, so it can reach nothing else.

:meth:`Region.ring` maps a ring's data pages twice, one copy behind the other: a packet that wraps is contiguous in
memory, and nobody needs code for the seam. Python's ``mmap`` cannot place a mapping, so that one is made by libc.

:class:`Pool` gives out pages of a region to whoever fills packets with data: the guest.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import weakref
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vmbus_emu.device import Buffer, Memory, Scatter

PAGE = 4096
_PFN = struct.Struct("<Q")

_PROT_NONE, _PROT_READ_WRITE = 0, 3
_SHARED, _PRIVATE, _FIXED, _ANONYMOUS = 0x01, 0x02, 0x10, 0x20
_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
)  # fmt: skip
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
#: What is mapped by libc is unmapped when the last view of it is gone. By ``id`` of the reference, which would hash as
#: the array does: not at all.
_mapped: dict[int, tuple[weakref.ref[Any], int, int]] = {}


#: One range of a page list: bytes, the offset into its first page, and its page numbers as little-endian qwords.
PageRange = tuple[int, int, bytes]


class Lent(NamedTuple):
    """A GPADL as the VSP sees it. ``memory`` is ``None`` where none is shared (``--transport zmq``)."""

    nbytes: int
    memory: memoryview | None = None


class Region:
    """``pages`` pages of I/O memory at guest-physical address ``gpa``, behind memory file ``fd``."""

    def __init__(self, fd: int, gpa: int, pages: int) -> None:
        """Takes ``fd`` over. ``OSError``: it cannot be mapped, ``ValueError``: it is too short; then it does not."""
        if os.fstat(fd).st_size < pages * PAGE:
            raise ValueError(f"the file's length is less than {pages} pages")  # to touch what is missing would kill
        self.gpa = gpa
        self.pages = pages
        self.first_pfn = gpa // PAGE
        self.view = _map_runs(fd, [(0, pages)])
        self._fd = fd
        self._base = ctypes.addressof(self.view.obj)  # type: ignore[arg-type]
        #: Every page number in its wire form: a contiguous list is a slice of it.
        self._table = array("Q", range(self.first_pfn, self.first_pfn + pages)).tobytes()

    def resolve(self, ranges: Sequence[PageRange]) -> Memory | None:
        """The memory that a page list describes, ``None`` if any of it lies outside. The ranges' extents are valid."""
        if len(ranges) == 1:
            byte_count, byte_offset, pfns = ranges[0]
            page = int.from_bytes(pfns[:8], "little") - self.first_pfn
            if page >= 0 and self._table[page * 8 : page * 8 + len(pfns)] == pfns:
                start = page * PAGE + byte_offset
                return self.view[start : start + byte_count]
        return self._scattered(ranges)

    def _scattered(self, ranges: Sequence[PageRange]) -> Memory | None:
        pieces: list[memoryview] = []
        for byte_count, byte_offset, pfns in ranges:
            start = end = -1                    # the run of adjacent pages under way, in bytes
            left = byte_count
            for (pfn,) in _PFN.iter_unpack(pfns):
                page = pfn - self.first_pfn
                if not 0 <= page < self.pages:
                    return None
                count = min(left, PAGE - byte_offset)
                begin = page * PAGE + byte_offset
                if begin != end:
                    if end >= 0:
                        pieces.append(self.view[start:end])
                    start = begin
                end = begin + count
                left -= count
                byte_offset = 0
            pieces.append(self.view[start:end])
        return pieces[0] if len(pieces) == 1 else Scatter(pieces)

    def offset_of(self, buffer: Buffer) -> int:
        """Where in the region ``buffer`` lies, in bytes; -1 if it does not (or cannot be written, or has holes)."""
        if type(buffer) is not memoryview or not isinstance(buffer.obj, ctypes.Array):
            return -1
        try:
            offset = ctypes.addressof(ctypes.c_char.from_buffer(buffer)) - self._base
        except (TypeError, ValueError):
            return -1
        return offset if 0 <= offset <= self.pages * PAGE - len(buffer) else -1

    def page_list(self, offset: int, nbytes: int) -> bytes:
        """The variable part of a GPA-direct packet for ``nbytes`` at ``offset``: one range (protocol sheet 3.3)."""
        first, into = divmod(offset, PAGE)
        last = (offset + nbytes + PAGE - 1) // PAGE
        return struct.pack("<IIII", 0, 1, nbytes, into) + self._table[first * 8 : last * 8]

    def array(self, offset: int, nbytes: int) -> ctypes.Array[ctypes.c_char]:
        """``nbytes`` at ``offset`` as an object whose life can be watched: every view of it keeps it alive."""
        array = (ctypes.c_char * nbytes).from_address(self._base + offset)
        array.mapping = self.view  # type: ignore[attr-defined]  # and it keeps the region mapped
        return array

    def ring(self, pages: Sequence[int]) -> memoryview:
        """A ring's pages: the control page, then the data pages twice. ``OSError`` if they cannot be mapped."""
        self._check(pages)
        return _map_pages(self._fd, [*pages, *pages[1:]])

    def _check(self, pages: Sequence[int]) -> None:
        if min(pages) < 0 or max(pages) >= self.pages:  # behind the file's end is memory that kills who touches it
            raise OSError(errno.EFAULT, "cannot map pages outside the region")

    def linear(self, pages: Sequence[int]) -> memoryview:
        """These pages one after the other, wherever in the region they lie. ``OSError`` if they cannot be mapped."""
        self._check(pages)
        first, count = pages[0], len(pages)
        if pages[-1] - first == count - 1 and list(pages) == list(range(first, first + count)):
            return self.view[first * PAGE : (first + count) * PAGE]
        return _map_pages(self._fd, pages)

    def close(self) -> None:
        """Let go of the descriptor. What is mapped stays mapped while it is in use."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _map_pages(fd: int, pages: Sequence[int]) -> memoryview:
    """Pages of a file, adjacent in memory in this order."""
    runs: list[tuple[int, int]] = []
    for page in pages:
        if runs and page == sum(runs[-1]):
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((page, 1))
    return _map_runs(fd, runs)


def _map_runs(fd: int, runs: Sequence[tuple[int, int]]) -> memoryview:
    """Runs of pages of a file, ``(first, count)`` each, adjacent in memory."""
    length = sum(count for _, count in runs) * PAGE
    base = _map(None, length, _PROT_NONE, _PRIVATE | _ANONYMOUS, -1, 0)
    array = (ctypes.c_char * length).from_address(base)
    reference = weakref.ref(array, _unmap)
    _mapped[id(reference)] = reference, base, length
    place = base
    for first, count in runs:
        _map(place, count * PAGE, _PROT_READ_WRITE, _SHARED | _FIXED, fd, first * PAGE)
        place += count * PAGE
    return memoryview(array).cast("B")


def _map(address: int | None, length: int, protection: int, flags: int, fd: int, offset: int) -> int:
    place = _libc.mmap(address, length, protection, flags, fd, offset)
    if place is None or place == _FAILED:
        raise OSError(ctypes.get_errno(), "cannot map shared memory")
    return int(place)


def _unmap(reference: weakref.ref[Any]) -> None:
    _, base, length = _mapped.pop(id(reference))
    _libc.munmap(base, length)


class Pool:
    """Pages ``[first, first + pages)`` of a region, given out in runs. Not for several threads."""

    def __init__(self, region: Region, first: int, pages: int) -> None:
        self.region = region
        self._first = first
        self._free = bytearray(b"\1" * pages)
        #: Called, once each, when pages have come back: who found none asks again then.
        self.waiting: set[Callable[[], object]] = set()
        self._leases: dict[int, tuple[weakref.ref[Any], int, int]] = {}     # by id, see _mapped

    @property
    def free_pages(self) -> int:
        return self._free.count(1)

    def take(self, pages: int) -> int:
        """The first of ``pages`` adjacent pages, by its number in the region; -1 if there are none."""
        index = self._free.find(b"\1" * pages)
        if index < 0:
            return -1
        self._free[index : index + pages] = bytes(pages)
        return self._first + index

    def give(self, page: int, pages: int) -> None:
        """Take back what :meth:`take` gave."""
        index = page - self._first
        self._free[index : index + pages] = b"\1" * pages
        if self.waiting:
            waiting, self.waiting = self.waiting, set()
            for call in waiting:
                call()

    def allocate(self, nbytes: int) -> memoryview | None:
        """A page-aligned buffer that comes back by itself once no view of it is left; ``None`` if there is no room."""
        pages = (nbytes + PAGE - 1) // PAGE
        page = self.take(pages) if pages else -1
        if page < 0:
            return None
        array = self.region.array(page * PAGE, nbytes)
        reference = weakref.ref(array, self._returned)
        self._leases[id(reference)] = reference, page, pages
        return memoryview(array).cast("B")

    def _returned(self, reference: weakref.ref[Any]) -> None:
        _, page, pages = self._leases.pop(id(reference))
        self.give(page, pages)
