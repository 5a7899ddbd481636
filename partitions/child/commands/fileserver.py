"""``fileserver``: what a file server asks of its disk. Of 100 requests 70 read, 25 write and 5 flush; they are 4 to 64
KiB long; most go on where the last one in the same file ended, the others begin anywhere in it.

Every block of 4 KiB holds its number, how often it was written, and a filler. All that is read, and in the end
everything once more, is held byte by byte against what was written last. Requests that overlap one under way, where one
of both writes, are left out: nobody could say what they must find.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic_ns
from typing import Any, NamedTuple

from partitions.child import busy
from partitions.child.commands import blockio
from partitions.child.commands.blockio import REASONS
from partitions.child.commands.macro import asked
from partitions.child.console import CommandError, Session
from vmbus_emu.device import BLOCK_SIZE, FLUSH, OK, READ, WRITE, BlockDevice, BlockRequest, Op, Status
from vmbus_emu.loop import Loop
from vmbus_emu.task import Future

_PAGE = 4096
_SECTORS = _PAGE // BLOCK_SIZE
_FILE_PAGES = 64
#: Bytes in use, at most.
_SPAN = 4 << 20
_SIZES = (1, 1, 2, 4, 8, 16)            # pages; small ones are more
_READS, _WRITES = 70, 95                # of 100; the rest flushes
_SEQUENTIAL = 0.7
_STAMP = struct.Struct("<QQ")
_FILLER = random.Random(5).randbytes(_PAGE - _STAMP.size)
_TURN = 64


class Wish(NamedTuple):
    """One request, in pages."""

    op: Op
    first: int = 0
    pages: int = 0


def wishes(pages: int, seed: int = 1) -> Iterator[Wish]:
    """Without end, of a disk of so many pages."""
    chance = random.Random(seed)
    files = pages // _FILE_PAGES
    ends = [0] * files
    while True:
        kind = chance.randrange(100)
        if kind >= _WRITES:
            yield Wish(FLUSH)
            continue
        number, length = chance.randrange(files), chance.choice(_SIZES)
        at = ends[number]
        if chance.random() >= _SEQUENTIAL or at + length > _FILE_PAGES:
            at = chance.randrange(_FILE_PAGES - length + 1)
        ends[number] = at + length
        yield Wish(READ if kind < _READS else WRITE, number * _FILE_PAGES + at, length)


class Medium:
    """What must be on the disk."""

    def __init__(self, pages: int) -> None:
        self.versions = [1] * pages

    def content(self, first: int, pages: int, newer: int = 0) -> bytes:
        """Of ``pages``; with ``newer``, as it will be when they are written so many times more."""
        versions = self.versions
        return b"".join([_STAMP.pack(page, versions[page] + newer) + _FILLER for page in range(first, first + pages)])


class Mix:
    """``depth`` requests on ``device`` under way at any time, for ``duration_ns``."""

    def __init__(
        self, loop: Loop, device: BlockDevice, medium: Medium, depth: int, duration_ns: int,
        record: Callable[[int], Any],
    ) -> None:
        self._loop = loop
        self._device = device
        self._medium = medium
        self._record = record
        self._wishes = wishes(len(medium.versions))
        self._free = [device.allocate(max(_SIZES) * _PAGE) for _ in range(depth)]
        self._under_way: list[Wish] = []
        self._pumping = False
        self._begun = monotonic_ns()
        self._end = self._begun + duration_ns
        self.seconds_ns = 0
        self.completed = 0
        self.failed: Status | None = None
        self.wrong = 0
        self.finished: Future[None] = Future()

    def pump(self) -> None:
        """Ask for what there is room for."""
        self._pumping = True
        for _ in range(_TURN):
            if not self._free or monotonic_ns() >= self._end:
                break
            wish = next(wish for wish in self._wishes if not self._overlaps(wish))
            buffer = self._free.pop()
            if wish.op is WRITE:
                buffer[: wish.pages * _PAGE] = self._medium.content(wish.first, wish.pages, newer=1)
            self._submit(wish, buffer, monotonic_ns())
        self._pumping = False
        if monotonic_ns() < self._end:
            if self._free:
                self._loop.call_soon(self.pump)
        elif not self._under_way and not self.finished.done:
            self.seconds_ns = monotonic_ns() - self._begun
            self.finished.resolve(None)

    def stop(self) -> None:
        """Ask for nothing more."""
        self._end = 0

    def _submit(self, wish: Wish, buffer: memoryview, begun: int) -> None:
        view = buffer[: wish.pages * _PAGE] if wish.pages else None
        self._under_way.append(wish)
        busy.submit(
            self._loop, self._device, wish.op, wish.first * _SECTORS, wish.pages * _SECTORS, view,
            partial(self._done, wish, buffer, begun),
        )  # fmt: skip

    def _done(self, wish: Wish, buffer: memoryview, begun: int, request: BlockRequest) -> None:
        self._under_way.remove(wish)
        self._record(monotonic_ns() - begun)
        self.completed += 1
        if request.status is not OK:
            self.failed = request.status
            self.stop()
        elif wish.op is WRITE:
            for page in range(wish.first, wish.first + wish.pages):
                self._medium.versions[page] += 1
        elif wish.op is READ and bytes(buffer[: wish.pages * _PAGE]) != self._medium.content(wish.first, wish.pages):
            self.wrong += 1
        self._free.append(buffer)
        if not self._pumping:
            self.pump()

    def _overlaps(self, wish: Wish) -> bool:
        return any(
            wish.first < other.first + other.pages and other.first < wish.first + wish.pages
            and WRITE in (wish.op, other.op)
            for other in self._under_way
        )  # fmt: skip


async def fileserver(session: Session, arguments: list[str]) -> int:
    wanted = asked(session, arguments, most_depth=64)
    loop, device = session.guest.loop, wanted.device
    pages = min(device.info.size_bytes, _SPAN) // (_FILE_PAGES * _PAGE) * _FILE_PAGES
    if not pages:
        raise CommandError(f"{device.info.size_bytes} bytes are too few; it takes {_FILE_PAGES * _PAGE}")
    medium = Medium(pages)
    for first in range(0, pages, _FILE_PAGES):
        await blockio.write_bytes(loop, device, first * _PAGE, medium.content(first, _FILE_PAGES))
    mix = Mix(loop, device, medium, wanted.depth, wanted.duration_ns, wanted.record)
    mix.pump()
    try:
        await mix.finished
    finally:
        mix.stop()
    if mix.failed is not None:
        raise CommandError(REASONS[mix.failed])
    wrong = mix.wrong + await _wrong_at_the_end(session, device, medium)
    if wrong:
        raise CommandError(f"{wrong} reads brought something else than was written last")
    await session.print(wanted.report(mix.completed, mix.seconds_ns))
    return 0


async def _wrong_at_the_end(session: Session, device: BlockDevice, medium: Medium) -> int:
    wrong = first = 0
    async for piece in blockio.read_blocks(session.guest.loop, device, 0, len(medium.versions) * _SECTORS):
        pages = len(piece) // _PAGE
        wrong += bytes(piece) != medium.content(first, pages)
        first += pages
    return wrong
