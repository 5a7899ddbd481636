"""A guest's private memory to look at: 64 KiB with contents that are known, so that it can tell when somebody wrote.

Private and anonymous: in a process of its own nobody else can reach it. In the monolith it lies in the one address
space, beside everybody else's. A scribbler (:mod:`vmbus_emu.scribble`) knows no canary; it finds what is in its reach
by :data:`MAGIC` at the start of a page. So no object of the interpreter may ever hold a copy of the first page:
header and body are kept apart, and nothing here copies them together.
"""

from __future__ import annotations

import mmap
import zlib
from itertools import chain
from typing import NamedTuple

PAGE = 4096
SIZE = 64 * 1024
MAGIC = b"vmbus-emu canary"
#: Bytes below 128 only: what a scribbler writes differs from all of them.
_BODY = (bytes(range(128)) * (SIZE // 128))[len(MAGIC):]
_CRC = zlib.crc32(_BODY, zlib.crc32(MAGIC))
#: Of the first page, by which one is recognised beyond doubt.
PAGE_CRC = zlib.crc32(_BODY[: PAGE - len(MAGIC)], zlib.crc32(MAGIC))


class Damage(NamedTuple):
    """Bytes that are wrong, and the offsets of the first and of the last of them."""

    size: int
    first: int
    last: int


class Canary:
    """The memory; it is given back when the object goes."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory[: len(MAGIC)] = MAGIC
        self.memory[len(MAGIC):] = _BODY

    def damage(self) -> Damage | None:
        """What somebody wrote over, ``None`` if nobody did."""
        if zlib.crc32(self.memory) == _CRC:
            return None
        with memoryview(self.memory) as found:
            wrong = [at for at, (is_, was) in enumerate(zip(found, chain(MAGIC, _BODY), strict=True)) if is_ != was]
        return Damage(len(wrong), wrong[0], wrong[-1])


def is_canary(page: memoryview) -> bool:
    """Whether this page is a canary's first."""
    return page[: len(MAGIC)] == MAGIC and zlib.crc32(page) == PAGE_CRC
