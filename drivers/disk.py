"""Disk drivers: a raw image or a RAM disk through an open descriptor, and a disk that is not there.

Both implement :class:`~vmbus_emu.device.BlockDevice` and run on one loop; only :class:`FileDisk` uses worker
threads. What the caller may rely on (design rules 6 and 8):

* A write completes once the kernel has it, so it survives the death of this process.
* A flush completes after an ``fdatasync`` that began after the flush was submitted.
* The loop is never blocked by the medium: what might wait for it runs in a worker.
* The descriptor is used as it was handed over, never reopened and never closed.

A fault of the medium is ``Status.IO_ERROR``; no exception leaves a driver for what a medium or a client did.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from drivers.workers import IoWorkers
from vmbus_emu.device import (
    BLOCK_SIZE,
    MAX_TRANSFER_BYTES,
    BlockInfo,
    BlockRequest,
    BlockStats,
    Buffer,
    Op,
    Status,
    request_fault,
)

#: A write up to this size only copies into the page cache; a larger one may have to wait for it.
INLINE_WRITE_BYTES = 128 * 1024

_ZEROS = memoryview(bytes(MAX_TRANSFER_BYTES))

_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class _Disk:
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
        if fault is None and request.op is Op.READ and _is_constant(request.buffer):
            fault = Status.INVALID
        if fault is None and self._outstanding >= self._depth:
            fault = Status.BUSY
        if fault is None:
            operation(request)
        else:
            self._complete(request, fault)

    def _complete(self, request: BlockRequest, status: Status) -> None:
        op = request.op
        self._completed[op] += 1
        self._last_io = time.monotonic()
        if status is not Status.OK:
            self._errors += 1
        elif op is Op.READ:
            self._read_bytes += request.blocks * BLOCK_SIZE
        elif op is Op.WRITE:
            self._written_bytes += request.blocks * BLOCK_SIZE
        request.finish(status)

    def _succeed(self, request: BlockRequest) -> None:
        self._complete(request, Status.OK)

    def stats(self) -> BlockStats:
        done = self._completed
        return BlockStats(
            reads=done[Op.READ], writes=done[Op.WRITE], flushes=done[Op.FLUSH], other=done[Op.READY] + done[Op.UNMAP],
            read_bytes=self._read_bytes, written_bytes=self._written_bytes, errors=self._errors,
            outstanding=self._outstanding, last_io=self._last_io,
        )  # fmt: skip


def _is_constant(buffer: Buffer | None) -> bool:
    """Whether a read into ``buffer`` is impossible."""
    return type(buffer) is not bytearray and buffer is not None and memoryview(buffer).readonly


class NullDisk(_Disk):
    """Reads zeros and forgets writes: what is left to measure is everything above the driver."""

    def __init__(self, info: BlockInfo) -> None:
        super().__init__(info)
        self._zeros = memoryview(bytes(info.max_transfer_bytes))
        self._operations = dict.fromkeys(Op, self._succeed)
        self._operations[Op.READ] = self._read

    def _read(self, request: BlockRequest) -> None:
        if request.buffer:
            memoryview(request.buffer)[:] = self._zeros[: len(request.buffer)]
        self._complete(request, Status.OK)


class FileDisk(_Disk):
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
            Op.READY: self._succeed,
            Op.READ: self._read,
            Op.WRITE: self._write,
            Op.FLUSH: self._succeed if memory else self._flush,
            Op.UNMAP: self._unmap,
        }

    # -- in the loop, or handed to a worker ---------------------------------------------------------------------

    def _read(self, request: BlockRequest) -> None:
        if self._memory:
            self._complete(request, self._read_now(request))
        elif self._can_try_reading and self._read_if_cached(request):
            self._complete(request, Status.OK)
        else:
            self._hand_over(self._read_now, request)

    def _read_if_cached(self, request: BlockRequest) -> bool:
        buffer = request.buffer
        assert isinstance(buffer, (bytearray, memoryview))
        try:
            return os.preadv(self._fd, (buffer,), request.lba * BLOCK_SIZE, os.RWF_NOWAIT) == len(buffer)
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
        if status is not Status.OK:
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
        assert isinstance(request.buffer, (bytearray, memoryview))
        view, offset = memoryview(request.buffer), request.lba * BLOCK_SIZE
        try:
            while view:
                count = os.preadv(self._fd, (view,), offset)
                if not count:
                    return Status.IO_ERROR  # the file ends before the disk does: somebody cut it
                view, offset = view[count:], offset + count
        except OSError:
            return Status.IO_ERROR
        return Status.OK

    def _write_now(self, request: BlockRequest) -> Status:
        buffer, offset = request.buffer, request.lba * BLOCK_SIZE
        assert buffer is not None
        return self._write_all(buffer, offset)

    def _write_all(self, buffer: Buffer, offset: int) -> Status:
        try:
            count = os.pwrite(self._fd, buffer, offset)
            while count < len(buffer):
                if not count:
                    return Status.IO_ERROR
                buffer, offset = memoryview(buffer)[count:], offset + count
                count = os.pwrite(self._fd, buffer, offset)
        except OSError:
            return Status.IO_ERROR
        return Status.OK

    def _sync_now(self) -> Status:
        try:
            os.fdatasync(self._fd)
        except OSError:
            return Status.IO_ERROR
        return Status.OK

    def _unmap_now(self, request: BlockRequest) -> Status:
        offset, length = request.lba * BLOCK_SIZE, request.blocks * BLOCK_SIZE
        if not length:
            return Status.OK
        while self._can_punch:
            if _libc.fallocate(self._fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0:
                return Status.OK
            error = ctypes.get_errno()
            if error in (errno.EOPNOTSUPP, errno.ENOSYS):
                self._can_punch = False
            elif error != errno.EINTR:
                return Status.IO_ERROR
        while length:  # no holes on this file system; the blocks must read as zeros all the same
            count = min(length, len(_ZEROS))
            if self._write_all(_ZEROS[:count], offset) is not Status.OK:
                return Status.IO_ERROR
            offset, length = offset + count, length - count
        return Status.OK


# -- what a placement names: every driver is made from (descriptor, info, way back to its owner's loop) --------------


def file_disk(fd: int, info: BlockInfo, post: Callable[..., Any]) -> FileDisk:
    """A raw image, with workers of its own: one slow medium does not hold up another's requests."""
    return FileDisk(fd, info, IoWorkers(post))


def ram_disk(fd: int, info: BlockInfo, post: Callable[..., Any]) -> FileDisk:
    """A memfd; its workers never start a thread."""
    return FileDisk(fd, info, IoWorkers(post), memory=True)


def null_disk(fd: int, info: BlockInfo, post: Callable[..., Any]) -> NullDisk:
    """No medium: ``fd`` is -1."""
    return NullDisk(info)
