"""``iobench``: a closed loop of requests on one disk, as a workload would issue them, and what it saw.

``depth`` requests are under way at any time; a completion makes room for the next. Nothing is printed, allocated or
computed while it runs but what a workload does anyway: make a request, submit it, take its completion (with ``-t``
read every byte of it). Latency is from the moment before ``submit`` to the completion callback.
"""

from __future__ import annotations

import json
import random
import time
from array import array

from partitions.child.commands.blockio import REASONS
from partitions.child.commands.options import count, disk, flags, size
from partitions.child.console import CommandError, Session, Usage
from vmbus_emu.device import BLOCK_SIZE, BUSY, OK, READ, BlockDevice, BlockRequest, Op, Status
from vmbus_emu.loop import Loop
from vmbus_emu.task import Future

_OPS = {"null": Op.READY, "read": Op.READ, "write": Op.WRITE}
#: Requests between two looks at the loop's other work, where completions come inside ``submit``.
_TURN = 256
_BUSY_RETRY_S = 0.001


class Load:
    """``number`` requests on ``device``; :attr:`finished` resolves when the last has completed."""

    def __init__(
        self, loop: Loop, device: BlockDevice, op: Op, nbytes: int, depth: int, number: int,
        places: list[int], touch: bool,
    ) -> None:
        """``places``: logical blocks, used in turn. ``touch``: read every byte of what arrived."""
        self._loop = loop
        self._device = device
        self._op = op
        self._blocks = nbytes // BLOCK_SIZE
        self._number = number
        self._places = places
        # As a view: assigning to a slice of a bytearray would copy twice.
        self._scratch = memoryview(bytearray(nbytes)) if touch else None
        self._free = [device.allocate(nbytes) if nbytes else None for _ in range(depth)]
        self._begun: dict[BlockRequest, int] = {}
        self._submitted = self._completed = 0
        self._pumping = self._busy = False
        self.latencies = array("q")
        self.failed: Status | None = None
        self.finished: Future[None] = Future()

    def start(self) -> None:
        self._pump()

    def stop(self) -> None:
        """Submit nothing more; what is under way completes."""
        self._number = min(self._number, self._submitted)

    def _pump(self) -> None:
        self._pumping = True
        submit, free, begun, places, now = (
            self._device.submit, self._free, self._begun, self._places, time.perf_counter_ns
        )  # fmt: skip
        op, blocks, wrap, done = self._op, self._blocks, len(places), self._done
        until = min(self._number, self._submitted + _TURN)
        while free and self._submitted < until and not self._busy:
            request = BlockRequest(op, places[self._submitted % wrap], blocks, free.pop(), done)
            self._submitted += 1
            begun[request] = now()
            submit(request)
        self._pumping = False
        if self._completed == self._number:
            self.finished.resolve(None)
        elif free and self._submitted < self._number and not self._busy:
            self._loop.call_soon(self._pump)

    def _done(self, request: BlockRequest) -> None:
        latency = time.perf_counter_ns() - self._begun.pop(request)
        self._free.append(request.buffer)  # type: ignore[arg-type]
        if request.status is BUSY:
            # Others use the disk, too, and have taken its depth: asked for again a little later.
            self._submitted -= 1
            if not self._busy:
                self._busy = True
                self._loop.call_later(_BUSY_RETRY_S, self._again)
            return
        self.latencies.append(latency)
        if request.status is not OK:
            self.failed = request.status
            self.stop()
        elif self._scratch is not None:
            self._scratch[:] = request.buffer  # type: ignore[assignment]
        self._completed += 1
        if not self._pumping:
            self._pump()

    def _again(self) -> None:
        self._busy = False
        self._pump()


async def iobench(session: Session, arguments: list[str]) -> int:
    options, words = flags(arguments, "o:b:d:n:s:rtj")
    if len(words) != 1:
        raise Usage("it takes one disk")
    device = disk(session, words[0])
    op = _OPS.get(options.get("o", "null"))
    if op is None:
        raise Usage(f"-o {options['o']!r} is none of {' '.join(_OPS)}")
    nbytes = 0 if op is Op.READY else size(options.get("b", "4k"), "-b")
    depth, number = count(options.get("d", "1"), "-d", 1), count(options.get("n", "10000"), "-n", 1)
    info = device.info
    span = min(size(options["s"], "-s") if "s" in options else info.size_bytes, info.size_bytes)
    if op is not Op.READY and (not nbytes or nbytes % BLOCK_SIZE or nbytes > info.max_transfer_bytes):
        raise Usage(f"-b must be whole blocks of {BLOCK_SIZE}, at most {info.max_transfer_bytes} bytes")
    if span < nbytes:
        raise Usage(f"-s must hold at least one request of {nbytes} bytes")
    if depth > info.queue_depth:
        raise Usage(f"-d is at most {info.queue_depth}")
    if "t" in options and op is not READ:
        raise Usage("-t reads what arrived: it goes with -o read")
    slots = span // nbytes if nbytes else 1
    chance = random.Random(1)
    some = min(slots, number, 65536)
    places = [(chance.randrange(slots) if "r" in options else index) * nbytes // BLOCK_SIZE for index in range(some)]

    load = Load(session.guest.loop, device, op, nbytes, depth, number, places, "t" in options)
    begin = time.perf_counter()
    load.start()
    try:
        await load.finished
    finally:
        load.stop()
    elapsed = time.perf_counter() - begin
    if load.failed is not None:
        raise CommandError(f"{options.get('o', 'null')}: {REASONS[load.failed]}")
    await session.print(_report(load, nbytes, elapsed, "j" in options))
    return 0


def _report(load: Load, nbytes: int, elapsed: float, as_json: bool) -> str:
    ordered = sorted(load.latencies)
    done = len(ordered)
    quantiles = {f"p{q}": ordered[min(done - 1, int(done * q / 100))] / 1000 for q in (50, 90, 99, 99.9)}
    figures = {
        "requests": done, "seconds": elapsed, "per_s": done / elapsed, "bytes_per_s": done * nbytes / elapsed,
        "min_us": ordered[0] / 1000, **{f"{name}_us": value for name, value in quantiles.items()},
        "max_us": ordered[-1] / 1000,
    }
    if as_json:
        return json.dumps(figures)
    moved = f", {figures['bytes_per_s'] / 1e6:.1f} MB/s" if nbytes else ""
    spread = ", ".join(f"{name} {value:.1f}" for name, value in quantiles.items())
    return (
        f"{done} requests in {elapsed:.6f} s: {figures['per_s']:.0f}/s{moved}; "
        f"latency in us: min {figures['min_us']:.1f}, {spread}, max {figures['max_us']:.1f}"
    )
