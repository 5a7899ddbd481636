"""A disk behind a storage controller that takes only so many commands at a time, of at most so many bytes each.

What every request's way through such a controller is: it is cut into commands, they wait in order for a free slot,
and the request ends when the last of its commands has, with the first fault if there was one. The guest sees none of
it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from drivers.disk import Disk
from vmbus_emu.device import BLOCK_SIZE, OK, READ, WRITE, BlockDevice, BlockRequest, Memory, Op, Scatter, Status


class QueuedDisk(Disk):
    """``slots``: commands at a time; ``largest``: bytes of one, a multiple of 512; ``stripe``: bytes of which no
    command crosses a multiple, 0 for none."""

    def __init__(self, disk: BlockDevice, slots: int, largest: int, stripe: int = 0) -> None:
        super().__init__(disk.info)
        self._disk = disk
        self._free = slots
        self._largest = largest // BLOCK_SIZE
        self._stripe = stripe // BLOCK_SIZE
        self._commands: deque[_Command] = deque()
        self._handing_over = False
        self._operations = dict.fromkeys(Op, self._enqueue)

    def _enqueue(self, request: BlockRequest) -> None:
        self._outstanding += 1
        self._commands.extend(_Whole(request, list(self._pieces(request))).commands)
        self._hand_over()

    def _pieces(self, request: BlockRequest) -> Iterator[tuple[int, int, Memory | None]]:
        """``lba, blocks, buffer`` of each command."""
        if request.op not in (READ, WRITE) or not request.blocks:
            yield request.lba, request.blocks, request.buffer
            return
        done = 0
        while done < request.blocks:
            lba = request.lba + done
            blocks = min(self._largest, request.blocks - done)
            if self._stripe:
                blocks = min(blocks, self._stripe - lba % self._stripe)
            yield lba, blocks, part(request.buffer, done * BLOCK_SIZE, blocks * BLOCK_SIZE)
            done += blocks

    def _hand_over(self) -> None:
        if self._handing_over:  # a command that ends within submit frees its slot; the loop below sees it
            return
        self._handing_over = True
        while self._free and self._commands:
            command = self._commands.popleft()
            self._free -= 1
            command.on_done = self._ended
            self._disk.submit(command)
        self._handing_over = False

    def _ended(self, command: BlockRequest) -> None:
        assert isinstance(command, _Command)
        self._free += 1
        whole = command.whole
        whole.left -= 1
        if command.status is not OK and whole.status is OK:
            whole.status = command.status or Status.IO_ERROR
        if not whole.left:
            self._outstanding -= 1
            self._complete(whole.request, whole.status)
        self._hand_over()


class _Whole:
    """A request, and how many of its commands have not ended."""

    __slots__ = ("commands", "left", "request", "status")

    def __init__(self, request: BlockRequest, pieces: list[tuple[int, int, Memory | None]]) -> None:
        self.request = request
        self.status = OK
        self.left = len(pieces)
        self.commands = [_Command(self, *piece) for piece in pieces]


class _Command(BlockRequest):
    __slots__ = ("whole",)

    def __init__(self, whole: _Whole, lba: int, blocks: int, buffer: Memory | None) -> None:
        super().__init__(whole.request.op, lba, blocks, buffer)
        self.whole = whole


def part(memory: Memory | None, offset: int, nbytes: int) -> Memory | None:
    """``nbytes`` of ``memory`` from ``offset`` on, in place."""
    if memory is None or (offset == 0 and len(memory) == nbytes):
        return memory
    if not isinstance(memory, Scatter):
        return memoryview(memory)[offset : offset + nbytes]
    kept = []
    for piece in memory.pieces:
        mine = piece[offset : offset + nbytes]
        if len(mine):
            kept.append(mine)
            nbytes -= len(mine)
        offset = max(0, offset - len(piece))
    return Scatter(kept)
