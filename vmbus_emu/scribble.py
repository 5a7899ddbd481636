"""A wild writer: every shared mapping of this process, and every guest's memory that lies in it, is written over.

It knows nobody's data structures. It reads the list of its own mappings, takes those that are shared and writable
(rings, buffers, granted I/O memory), and looks through the private ones for guests' memory as
:mod:`vmbus_emu.canary` marks it. What it finds is what any stray pointer of this process could have hit. The
interpreter's own memory is spared, so that what happens next is up to the code; media are not mapped anywhere.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from typing import NamedTuple

from vmbus_emu.canary import PAGE, SIZE, is_canary

#: What is written; no canary holds it anywhere.
SCRIBBLE = b"\xdb"
_CHUNK = 1 << 20
_PATTERN = SCRIBBLE * _CHUNK


class Reach(NamedTuple):
    """``shared_bytes`` over all shared mappings; ``guests``: private memories of guests."""

    shared_bytes: int
    guests: int


class _Mapping(NamedTuple):
    start: int
    end: int
    shared: bool


def scribble() -> Reach:
    """Write over all that is in reach."""
    memory = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)  # its faults are errors, not signals
    try:
        mappings = _writable()
        guests = [page for mapping in mappings if not mapping.shared for page in _canaries(memory, mapping)]
        shared = sum(_fill(memory, mapping.start, mapping.end) for mapping in mappings if mapping.shared)
        for start in guests:
            _fill(memory, start, start + SIZE)
    finally:
        os.close(memory)
    return Reach(shared, len(guests))


def _writable() -> list[_Mapping]:
    found = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            place, rights, _ = line.split(None, 2)
            if rights.startswith("rw"):
                start, end = place.split("-")
                found.append(_Mapping(int(start, 16), int(end, 16), rights[3] == "s"))
    return found


def _canaries(memory: int, mapping: _Mapping) -> Iterator[int]:
    """Where guests' memories start in ``mapping``."""
    buffer = mmap.mmap(-1, _CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = memoryview(buffer)
    own = ctypes.addressof(ctypes.c_char.from_buffer(buffer))  # holds copies of pages, none of them anybody's
    for start in range(mapping.start, mapping.end, _CHUNK):
        piece = view[: min(_CHUNK, mapping.end - start)]
        try:
            count = os.preadv(memory, [piece], start)
        except OSError:
            continue
        for offset in range(0, count - PAGE + 1, PAGE):
            if is_canary(piece[offset : offset + PAGE]) and not own <= start + offset < own + _CHUNK:
                yield start + offset


def _fill(memory: int, start: int, end: int) -> int:
    """The bytes written: pages behind the end of a file, for one, cannot be."""
    written = 0
    while start < end:
        try:
            count = os.pwrite(memory, _PATTERN[: min(_CHUNK, end - start)], start)
        except OSError:
            count = 0
        written += count
        start += count or PAGE
    return written
