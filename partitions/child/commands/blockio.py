"""Whole transfers on a disk, made of bounded requests: what a file system's page cache would do.

Byte ranges are cut into requests of at most :data:`CHUNK` bytes, :data:`DEPTH` of them under way. Ranges that
begin or end inside a block are read, changed and written back.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import AsyncIterator

from partitions.child.busy import RETRY_S
from partitions.child.console import CommandError
from vmbus_emu.device import BLOCK_SIZE, BlockDevice, BlockRequest, Buffer, Memory, Op, Status
from vmbus_emu.loop import Loop
from vmbus_emu.task import Future, sleep

CHUNK = 256 * 1024
DEPTH = 4

REASONS = {
    Status.GONE: "the disk is gone",
    Status.OUT_OF_RANGE: "beyond the end of the disk",
    Status.READ_ONLY: "the disk is read-only",
    Status.INVALID: "invalid request",
    Status.UNSUPPORTED: "the disk does not support this",
    Status.IO_ERROR: "I/O error",
    Status.BUSY: "the disk is busy",
}


def start(
    disk: BlockDevice, op: Op, lba: int = 0, blocks: int = 0, buffer: Memory | None = None
) -> Future[BlockRequest]:
    """Submit one request; the future resolves with it, whatever its status."""
    future: Future[BlockRequest] = Future()
    disk.submit(BlockRequest(op, lba, blocks, buffer, future.resolve))
    return future


async def finish(loop: Loop, disk: BlockDevice, future: Future[BlockRequest]) -> BlockRequest:
    """The completed request. Tries again while the disk is BUSY; raises :class:`CommandError` on failure."""
    request = await future
    while request.status is Status.BUSY:
        await sleep(loop, RETRY_S)
        request = await start(disk, Op(request.op), request.lba, request.blocks, request.buffer)
    if request.status is not Status.OK:
        assert request.status is not None
        where = f" at block {request.lba}" if request.op in (Op.READ, Op.WRITE) else ""
        raise CommandError(f"{Op(request.op).name.lower()}{where}: {REASONS[request.status]}")
    return request


async def run(
    loop: Loop, disk: BlockDevice, op: Op, lba: int = 0, blocks: int = 0, buffer: Buffer | None = None
) -> None:
    """One request, to its end."""
    await finish(loop, disk, start(disk, op, lba, blocks, buffer))


async def read_blocks(loop: Loop, disk: BlockDevice, lba: int, blocks: int) -> AsyncIterator[memoryview]:
    """The contents of a block range, in order; a piece is valid until the next one is asked for."""
    step = CHUNK // BLOCK_SIZE
    free = [disk.allocate(CHUNK) for _ in range(DEPTH)]
    under_way: deque[tuple[Future[BlockRequest], memoryview]] = deque()
    end = lba + blocks
    while lba < end or under_way:
        while lba < end and free:
            count = min(step, end - lba)
            buffer = free.pop()
            under_way.append((start(disk, Op.READ, lba, count, buffer[: count * BLOCK_SIZE]), buffer))
            lba += count
        future, buffer = under_way.popleft()
        request = await finish(loop, disk, future)
        assert isinstance(request.buffer, memoryview)
        yield request.buffer
        free.append(buffer)


async def read_bytes(loop: Loop, disk: BlockDevice, offset: int, length: int) -> AsyncIterator[memoryview]:
    """Any byte range of a disk, in order."""
    first, last = offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE)
    skip = offset - first * BLOCK_SIZE
    async for piece in read_blocks(loop, disk, first, last - first):
        part = piece[skip:skip + length]
        yield part
        length -= len(part)
        skip = 0


async def write_bytes(loop: Loop, disk: BlockDevice, offset: int, data: Buffer) -> None:
    """Write ``data`` at any byte offset; whole blocks go out in one request per 256 KiB."""
    head = offset % BLOCK_SIZE
    tail = -(offset + len(data)) % BLOCK_SIZE
    lba = offset // BLOCK_SIZE
    if head or tail:
        whole = bytearray(head + len(data) + tail)
        blocks = len(whole) // BLOCK_SIZE
        for edge in {0, blocks - 1}:
            view = memoryview(whole)[edge * BLOCK_SIZE:(edge + 1) * BLOCK_SIZE]
            await run(loop, disk, Op.READ, lba + edge, 1, view)
        whole[head:head + len(data)] = data
        data = whole
    view = memoryview(data)
    under_way: deque[Future[BlockRequest]] = deque()
    for begin in range(0, len(view), CHUNK):
        if len(under_way) >= DEPTH:
            await finish(loop, disk, under_way.popleft())
        piece = view[begin:begin + CHUNK]
        under_way.append(start(disk, Op.WRITE, lba + begin // BLOCK_SIZE, len(piece) // BLOCK_SIZE, piece))
    while under_way:
        await finish(loop, disk, under_way.popleft())


async def digest(loop: Loop, disk: BlockDevice) -> str:
    """SHA-256 of the whole disk, in hex."""
    sha = hashlib.sha256()
    async for piece in read_blocks(loop, disk, 0, disk.info.block_count):
        sha.update(piece)
    return sha.hexdigest()
