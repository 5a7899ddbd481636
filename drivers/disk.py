"""Disk drivers: a raw image or a RAM disk through an open descriptor, and a disk that is not there.

Both implement :class:`~vmbus_emu.device.BlockDevice` and run on one loop; only :class:`FileDisk` uses worker
threads. What the caller may rely on (design rules 6 and 8):

* A write completes once the kernel has it, so it survives the death of this process.
* A flush completes after an ``fdatasync`` that began after the flush was submitted.
* The loop is never blocked by the medium: what might wait for it runs in a worker.
* The descriptor is used as it was handed over, never reopened and never closed.

A fault of the medium is ``Status.IO_ERROR``; no exception leaves a driver for what a medium or a client did.
(A little long: what is tried in the loop and what a worker does read best side by side.)
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic as _now

from drivers.workers import IoWorkers
from vmbus_emu.device import (
    BLOCK_SIZE,
    BUSY,
    FLUSH,
    MAX_TRANSFER_BYTES,
    NULL,
    OK,
    READ,
    UNMAP,
    WRITE,
    BlockInfo,
    BlockRequest,
    BlockStats,
    Buffer,
    Home,
    Memory,
    Op,
    Scatter,
    Status,
    request_fault,
)

#: A write up to this size only copies into the page cache; a larger one may have to wait for it.
INLINE_WRITE_BYTES = 128 * 1024

_ZEROS = memoryview(bytes(MAX_TRANSFER_BYTES))

_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Disk:
    """What all drivers share: faults found before any medium is touched, dispatch by operation, counters."""

    def __init__(self, info: BlockInfo) -> None:
        self._info = info
        self._depth = info.queue_depth
        self._outstanding = 0
        self._errors = self._read_bytes = self._written_bytes = 0
        self._completed = [0] * len(Op)
        self._last_io = 0.0
        self._operations: dict[int, Callable[[BlockRequest], None]] = {}

    @property
    def info(self) -> BlockInfo:
        return self._info

    def allocate(self, nbytes: int) -> memoryview:
        return memoryview(bytearray(nbytes))

    def submit(self, request: BlockRequest) -> None:
        operation = self._operations.get(request.op)
        if operation is None:
            self._errors += 1
            request.finish(Status.UNSUPPORTED)
            return
        fault = request_fault(request, self._info)
        if fault is None and request.op is READ and _is_constant(request.buffer):
            fault = Status.INVALID
        if fault is None and self._outstanding >= self._depth:
            fault = BUSY
        if fault is None:
            operation(request)
        else:
            self._complete(request, fault)

    def _complete(self, request: BlockRequest, status: Status) -> None:
        op = request.op
        self._completed[op] += 1
        self._last_io = _now()
        if status is not OK:
            self._errors += 1
        elif op is READ:
            self._read_bytes += request.blocks * BLOCK_SIZE
        elif op is WRITE:
            self._written_bytes += request.blocks * BLOCK_SIZE
        request.finish(status)

    def _succeed(self, request: BlockRequest) -> None:
        self._complete(request, OK)

    def stats(self) -> BlockStats:
        done = self._completed
        return BlockStats(
            reads=done[READ], writes=done[WRITE], flushes=done[FLUSH], other=done[NULL] + done[UNMAP],
            read_bytes=self._read_bytes, written_bytes=self._written_bytes, errors=self._errors,
            outstanding=self._outstanding, last_io=self._last_io,
        )  # fmt: skip


def _is_constant(buffer: Memory | None) -> bool:
    """Whether a read into ``buffer`` is impossible."""
    if type(buffer) is memoryview:
        return buffer.readonly
    return type(buffer) is bytes


def _pieces(buffer: Memory | None) -> Sequence[Buffer]:
    """What the kernel is to read or write, in order."""
    assert buffer is not None
    return buffer.pieces if type(buffer) is Scatter else (buffer,)  # type: ignore[return-value]


def _after(pieces: Sequence[Buffer], done: int) -> list[memoryview]:
    """What is left of ``pieces`` when the first ``done`` bytes are moved."""
    left = []
    for piece in pieces:
        if done < len(piece):
            left.append(memoryview(piece)[done:])
        done = max(0, done - len(piece))
    return left


class NullDisk(Disk):
    """Reads zeros and forgets writes: what is left to measure is everything above the driver."""

    def __init__(self, info: BlockInfo) -> None:
        super().__init__(info)
        self._zeros = memoryview(bytes(info.max_transfer_bytes))
        self._operations = dict.fromkeys(Op, self._succeed)
        self._operations[READ] = self._read

    def _read(self, request: BlockRequest) -> None:
        if request.buffer:
            for piece in _pieces(request.buffer):
                memoryview(piece)[:] = self._zeros[: len(piece)]
        self._complete(request, OK)


class FileDisk(Disk):
    """A raw image behind ``fd``, or with ``memory`` a memfd, where nothing ever waits for a medium."""

    def __init__(self, fd: int, info: BlockInfo, workers: IoWorkers, *, memory: bool = False) -> None:
        """``fd``: open for reading, and for writing unless ``info.read_only``; at least ``info.size_bytes`` long."""
        super().__init__(info)
        self._fd = fd
        self._workers = workers
        self._memory = memory
        #: Whether a read may be tried without waiting. Some file systems cannot say; the first read finds out.
        self._can_try_reading = not memory
        self._can_punch = True
        self._syncing = False
        self._awaiting_sync: list[BlockRequest] = []
        self._sync_failed = False
        self._operations = {
            NULL: self._succeed,
            READ: self._read,
            WRITE: self._write,
            FLUSH: self._succeed if memory else self._flush,
            UNMAP: self._unmap,
        }

    # -- in the loop, or handed to a worker ---------------------------------------------------------------------

    def _read(self, request: BlockRequest) -> None:
        if self._memory:
            self._complete(request, self._read_now(request))
        elif self._can_try_reading and self._read_if_cached(request):
            self._complete(request, OK)
        else:
            self._hand_over(self._read_now, request)

    def _read_if_cached(self, request: BlockRequest) -> bool:
        pieces = _pieces(request.buffer)
        try:
            done = os.preadv(self._fd, pieces, request.lba * BLOCK_SIZE, os.RWF_NOWAIT)
            return done == request.blocks * BLOCK_SIZE
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._can_try_reading = False
            return False  # a worker meets the same error if it is a real one

    def _write(self, request: BlockRequest) -> None:
        if self._memory or request.blocks * BLOCK_SIZE <= INLINE_WRITE_BYTES:
            self._complete(request, self._write_now(request))
        else:
            self._hand_over(self._write_now, request)

    def _unmap(self, request: BlockRequest) -> None:
        if self._memory:
            self._complete(request, self._unmap_now(request))
        else:
            self._hand_over(self._unmap_now, request)

    def _hand_over(self, work: Callable[[BlockRequest], Status], request: BlockRequest) -> None:
        self._outstanding += 1
        self._workers.run(partial(work, request), partial(self._handed_back, request))

    def close(self) -> None:
        """Nothing is outstanding, and nothing will be: end the workers. The descriptor is its owner's."""
        self._workers.close()

    def _handed_back(self, request: BlockRequest, status: Status) -> None:
        self._outstanding -= 1
        self._complete(request, status)

    # -- flush: one fdatasync at a time, shared by all who wait for it to begin ---------------------------------

    def _flush(self, request: BlockRequest) -> None:
        if self._sync_failed:
            self._complete(request, Status.IO_ERROR)
            return
        self._outstanding += 1
        self._awaiting_sync.append(request)
        if not self._syncing:
            self._start_sync()

    def _start_sync(self) -> None:
        batch, self._awaiting_sync = self._awaiting_sync, []
        self._syncing = True
        self._workers.run(self._sync_now, partial(self._synced, batch))

    def _synced(self, batch: list[BlockRequest], status: Status) -> None:
        self._syncing = False
        if status is not OK:
            # The kernel reports a failed write-back once and then calls the lost pages clean: the next
            # fdatasync would succeed over data that never arrived. So this descriptor's word is no good
            # any more, and every later flush fails, until somebody opens the medium anew.
            self._sync_failed = True
            batch += self._awaiting_sync
            self._awaiting_sync = []
        elif self._awaiting_sync:
            self._start_sync()
        for request in batch:
            self._handed_back(request, status)

    # -- what blocks: in a worker's thread, or in the loop where the medium is memory ---------------------------

    def _read_now(self, request: BlockRequest) -> Status:
        pieces, offset, left = _pieces(request.buffer), request.lba * BLOCK_SIZE, request.blocks * BLOCK_SIZE
        try:
            while left:
                count = os.preadv(self._fd, pieces, offset)
                if not count:
                    return Status.IO_ERROR  # the file ends before the disk does: somebody cut it
                offset, left = offset + count, left - count
                if left:
                    pieces = _after(pieces, count)
        except OSError:
            return Status.IO_ERROR
        return OK

    def _write_now(self, request: BlockRequest) -> Status:
        return self._write_all(_pieces(request.buffer), request.lba * BLOCK_SIZE, request.blocks * BLOCK_SIZE)

    def _write_all(self, pieces: Sequence[Buffer], offset: int, left: int) -> Status:
        try:
            while left:
                count = os.pwritev(self._fd, pieces, offset)
                if not count:
                    return Status.IO_ERROR
                offset, left = offset + count, left - count
                if left:
                    pieces = _after(pieces, count)
        except OSError:
            return Status.IO_ERROR
        return OK

    def _sync_now(self) -> Status:
        try:
            os.fdatasync(self._fd)
        except OSError:
            return Status.IO_ERROR
        return OK

    def _unmap_now(self, request: BlockRequest) -> Status:
        offset, length = request.lba * BLOCK_SIZE, request.blocks * BLOCK_SIZE
        if not length:
            return OK
        while self._can_punch:
            if _libc.fallocate(self._fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0:
                return OK
            error = ctypes.get_errno()
            if error in (errno.EOPNOTSUPP, errno.ENOSYS):
                self._can_punch = False
            elif error != errno.EINTR:
                return Status.IO_ERROR
        while length:  # no holes on this file system; the blocks must read as zeros all the same
            count = min(length, len(_ZEROS))
            if self._write_all((_ZEROS[:count],), offset, count) is not OK:
                return Status.IO_ERROR
            offset, length = offset + count, length - count
        return OK


# -- what a placement names: every driver is made from (descriptor, info, where its owner lives) --------------


def file_disk(fd: int, info: BlockInfo, home: Home) -> FileDisk:
    """A raw image, with workers of its own: one slow medium does not hold up another's requests."""
    return FileDisk(fd, info, IoWorkers(home))


def ram_disk(fd: int, info: BlockInfo, home: Home) -> FileDisk:
    """A memfd; its workers never start a thread."""
    return FileDisk(fd, info, IoWorkers(home), memory=True)


def null_disk(fd: int, info: BlockInfo, home: Home) -> NullDisk:
    """No medium: ``fd`` is -1."""
    return NullDisk(info)
