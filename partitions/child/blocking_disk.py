"""A disk that is used by calls which return when the work is done, for a library that knows nothing else.

The guest is one event loop. A call that would wait turns the loop from inside (:meth:`Loop.run_within`) until its
requests have completed, so everything else in the guest goes on, and no placement pays for a hand-off between threads.
Of two commands that wait so, the one that began to wait later goes on first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from partitions.child.busy import RETRY_S
from vmbus_emu.device import BLOCK_SIZE, BUSY, FLUSH, OK, READ, WRITE, BlockDevice, BlockInfo, BlockRequest, Op, Status
from vmbus_emu.loop import Loop
from vmbus_emu.task import Cancelled

#: Bytes of one write, at most.
LARGEST = 64 * 1024
_AT_ONCE = 8


class DiskFailure(Exception):
    """A request ended with an error."""

    def __init__(self, op: Op, status: Status) -> None:
        super().__init__(f"{op.name.lower()}: {status.name}")
        self.op = op
        self.status = status


class BlockingDisk:
    """May be used in deferred calls of ``loop`` only: a command's task."""

    def __init__(self, loop: Loop, device: BlockDevice, cancelled: Callable[[], bool]) -> None:
        """``cancelled``: whether to wait no longer."""
        self._loop = loop
        self._device = device
        self._cancelled = cancelled
        self._staging = [device.allocate(LARGEST) for _ in range(_AT_ONCE)]
        #: What ended the use of this disk; raised by every further call. Whatever a library makes of an exception that
        #: passes through it: this is the one that counts.
        self.failure: BaseException | None = None

    @property
    def info(self) -> BlockInfo:
        return self._device.info

    def read(self, offset: int, nbytes: int) -> bytes:
        """Whole blocks, at most :data:`LARGEST` bytes."""
        into = self._staging[0][:nbytes]
        self._finish([BlockRequest(READ, offset // BLOCK_SIZE, nbytes // BLOCK_SIZE, into)])
        return bytes(into)

    def write(self, pieces: Sequence[tuple[int, bytes | bytearray]]) -> None:
        """Byte offset and data of each piece, in whole blocks, at most :data:`LARGEST` bytes; in no certain order."""
        for first in range(0, len(pieces), _AT_ONCE):
            requests = []
            for (offset, data), staging in zip(pieces[first : first + _AT_ONCE], self._staging, strict=False):
                view = staging[: len(data)]
                view[:] = data
                requests.append(BlockRequest(WRITE, offset // BLOCK_SIZE, len(data) // BLOCK_SIZE, view))
            self._finish(requests)

    def flush(self) -> None:
        """Make durable what was written."""
        self._finish([BlockRequest(FLUSH)])

    def _finish(self, requests: Sequence[BlockRequest]) -> None:
        """To the end of all of them. Raises what :attr:`failure` keeps."""
        if self.failure is not None:
            raise self.failure
        try:
            while requests:
                self._wait_for(requests)
                for request in requests:
                    if request.status is not OK and request.status is not BUSY:
                        assert request.status is not None
                        raise DiskFailure(Op(request.op), request.status)
                requests = [
                    BlockRequest(Op(one.op), one.lba, one.blocks, one.buffer) for one in requests if one.status is BUSY
                ]
                if requests:
                    self._pause()
        except BaseException as failure:
            self.failure = failure
            raise

    def _wait_for(self, requests: Sequence[BlockRequest]) -> None:
        submit, cancelled = self._device.submit, self._cancelled
        for request in requests:
            submit(request)

        def over() -> bool:
            for request in requests:
                if request.status is None:
                    return cancelled()
            return True

        if not over():
            self._turn(over)
        if cancelled():
            raise Cancelled

    def _pause(self) -> None:
        """Others use the disk, too, and have taken its depth."""
        rung: list[bool] = []
        timer = self._loop.call_later(RETRY_S, rung.append, True)
        self._turn(lambda: bool(rung) or self._cancelled())
        timer.cancel()

    def _turn(self, over: Callable[[], bool]) -> None:
        if not self._loop.run_within(over):
            raise Cancelled  # the machine is switched off
