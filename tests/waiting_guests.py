"""A guest on a thread of its own, with disks in memory that answer in a later round of its loop, or not before they are
told to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from partitions.child.guest import Guest
from vmbus_emu.device import BLOCK_SIZE, BlockInfo, BlockRequest, BlockStats, Op, Status
from vmbus_emu.loop import Loop

SIZE = 4 << 20
DEADLINE = 20.0


class Disk:
    """Answers in the next round; while :attr:`stopped` not at all. ``lie`` may change what a request does."""

    info = BlockInfo(SIZE // BLOCK_SIZE)

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.content = bytearray(SIZE)
        self.pending: list[BlockRequest] = []
        self.stopped = False
        self.depth = 64
        self.requests = self.writes = self.refused = 0
        self.lie: Callable[[BlockRequest], Status | None] = lambda request: None

    def allocate(self, nbytes: int) -> memoryview:
        return memoryview(bytearray(nbytes))

    def stats(self) -> BlockStats:
        return BlockStats(outstanding=len(self.pending))

    def submit(self, request: BlockRequest) -> None:
        self.requests += 1
        if len(self.pending) >= self.depth:
            self.refused += 1
            request.finish(Status.BUSY)
            return
        self.pending.append(request)
        if not self.stopped:
            self.loop.call_soon(self.serve)

    def has_written(self, writes: int) -> bool:
        return self.writes >= writes

    def serve(self) -> None:
        if self.stopped:
            return
        pending, self.pending = self.pending, []
        for request in pending:
            status = self.lie(request)
            if status is None:
                status = self.done(request)
            request.finish(status)

    def done(self, request: BlockRequest) -> Status:
        """Do it."""
        start = request.lba * BLOCK_SIZE
        end = start + request.blocks * BLOCK_SIZE
        if request.op is Op.WRITE:
            self.writes += 1
            self.content[start:end] = request.buffer  # type: ignore[assignment]
        elif request.op is Op.READ:
            request.buffer[:] = self.content[start:end]  # type: ignore[index]
        return Status.OK


class Bench:
    """A guest with two such disks, on a thread of its own, as in the monolith: what waits inside its loop must be
    looked at from outside."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.disks = {name: Disk(self.loop) for name in ("disk0", "disk1")}
        self.out: list[dict[str, Any]] = []
        config = {"name": "vm1", "address": "", "prefix": 16, "memory_bytes": 1 << 24, "hosts": {}}
        self.guest = Guest(self.loop, config, self.disks, {}, self.out.append, lambda line: None)
        self.number = 0
        self.died_of: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.loop.run()
        except Exception as error:
            self.died_of = error

    def do(self, call: Callable[..., Any], *arguments: Any) -> None:
        """On the guest's thread, soon."""
        self.loop.call_soon_threadsafe(call, *arguments)

    def start(self, *argv: str) -> int:
        self.number += 1
        self.do(self.guest.console.handle, {"t": "exec", "session": self.number, "argv": list(argv)})
        return self.number

    def cancel(self, session: int) -> None:
        self.do(self.guest.console.handle, {"t": "cancel", "session": session})

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what the guest's thread sees."""
        seen = threading.Event()

        def look() -> None:
            if condition():
                seen.set()
            elif not gone:
                self.loop.call_later(0.001, look)

        gone: list[bool] = []
        self.do(look)
        came = seen.wait(DEADLINE)
        gone.append(True)
        assert came

    def ended(self, session: int) -> bool:
        return any(one["session"] == session and one["t"] == "exit" for one in self.out)

    def end(self, session: int) -> tuple[int, str]:
        """Exit status and what it printed, errors too."""
        self.until(lambda: self.ended(session))
        mine = [one for one in self.out if one["session"] == session]
        return mine[-1]["status"], b"".join(one["data"] for one in mine if one["t"] == "out").decode()

    def run(self, *argv: str) -> tuple[int, str]:
        return self.end(self.start(*argv))

    def stop_disk(self) -> Disk:
        """A database is in a transaction on ``disk0``, which answers no more."""
        disk = self.disks["disk0"]
        self.until(lambda: disk.writes > 10)
        disk.stopped = True
        self.until(lambda: bool(disk.pending))
        return disk

    def close(self) -> None:
        self.do(self.loop.stop)
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive()
        self.loop.close()
