"""``iobench``: a load of requests on one disk, as a workload would issue them, and what it saw.

Closed: ``depth`` requests are under way at any time; a completion makes room for the next. Open (``-i``): requests
stand at fixed times, and latency counts from there, however late they could be submitted. Nothing is printed or
computed while it runs but what a workload does anyway: make a request, submit it, take its completion (with ``-t`` read
every byte of it). Else latency is from the moment before ``submit`` to the completion callback; that of a write with
its flush (``-o commit``) is to the completion of the flush, with ``-t`` it is until every byte was read.
"""

from __future__ import annotations

import json
import random
import time
from array import array
from collections.abc import Callable
from struct import Struct
from typing import Any, NamedTuple

from partitions.child.busy import RETRY_S
from partitions.child.commands.blockio import REASONS
from partitions.child.commands.lateness import STALL_NS, Lateness
from partitions.child.commands.options import count, disk, flags, samples, seconds, size
from partitions.child.commands.window import window
from partitions.child.console import CommandError, Session, Usage
from vmbus_emu.device import BLOCK_SIZE, BUSY, FLUSH, OK, READ, BlockDevice, BlockInfo, BlockRequest, Op, Status
from vmbus_emu.loop import Loop
from vmbus_emu.task import Future
from vmbus_emu.witness.schedule import Schedule

_OPS = {"null": Op.READY, "read": Op.READ, "write": Op.WRITE, "commit": Op.WRITE}
#: Requests between two looks at the loop's other work, where completions come inside ``submit``.
_TURN = 256
_NS = 1_000_000_000
_MOST_PLACES = 65536
_TOLD_PLACES = 500
#: Of requests with more blocks, one of so many has all of them looked at.
_CHECKED_BLOCKS, _CHECKED_IN_FULL = 64, 8
_QUANTILES = (50, 90, 99, 99.9)
_STAMP = Struct("<Q")
_FOREVER = 1 << 62


class Plan(NamedTuple):
    """What to do. ``places``: logical blocks, used in turn."""

    op: Op
    nbytes: int
    places: list[int]
    depth: int = 1
    number: int = _FOREVER          #: of requests
    duration_ns: int = _FOREVER
    interval_ns: int = 0            #: 0: closed
    flush: bool = False             #: after each request
    touch: bool = False             #: read every byte of what arrived
    check: bool = False             #: every block read begins with its number, 8 bytes in the host's order
    stamp: int = 0                  #: first and last block of what is written begin with their number xor this; 0: no


class Load:
    """``plan`` on ``device``; :attr:`finished` resolves when the last request has completed."""

    def __init__(self, loop: Loop, device: BlockDevice, plan: Plan, record: Callable[[int], Any]) -> None:
        """``record`` is called with the latency of each request, in ns."""
        self._loop = loop
        self._device = device
        self._plan = plan
        self._record = record
        self._blocks = plan.nbytes // BLOCK_SIZE
        self._number = plan.number
        # As a view: assigning to a slice of a bytearray would copy twice.
        self._scratch = memoryview(bytearray(plan.nbytes)) if plan.touch else None
        self._free = [device.allocate(plan.nbytes) if plan.nbytes else None for _ in range(plan.depth)]
        self._begun: dict[BlockRequest, int] = {}
        self._again: list[tuple[BlockRequest, int]] = []   # that found the device busy, and when they had begun
        self.submitted = self.completed = 0
        self._pumping = False
        self.failed: Status | None = None
        self.wrong = 0                  # blocks that were read and are not what they should be
        self.lateness = Lateness()
        self._freed = 0                 # when the last completion made room
        self.finished: Future[None] = Future()
        self._schedule = Schedule(loop, plan.interval_ns, plan.duration_ns, self._pump)

    def start(self) -> None:
        self._pump()

    def stop(self) -> None:
        """Submit nothing more; what is under way completes."""
        self._number = min(self._number, self.submitted)
        self._schedule.stop()

    def _pump(self) -> None:
        self._pumping = True
        submit, free, begun, places, now, take = (
            self._device.submit, self._free, self._begun, self._plan.places, time.monotonic_ns, self._schedule.take
        )  # fmt: skip
        op, blocks, wrap, done, open_loop, stamp = (
            self._plan.op, self._blocks, len(places), self._done, bool(self._plan.interval_ns), self._plan.stamp
        )  # fmt: skip
        late, stalled = self.lateness.late_ns.append, self.lateness.stalled
        until = min(self._number, self.submitted + _TURN)
        while free and self.submitted < until and not self._again:
            moment = now()
            planned = take(moment)
            if not planned:
                break
            place = places[self.submitted % wrap]
            buffer = free.pop()
            if stamp:
                self._stamp(buffer, place)
            request = BlockRequest(op, place, blocks, buffer, done)
            self.submitted += 1
            if open_loop:
                late(moment - planned)
                begun[request] = planned
            else:
                begun[request] = moment = now()
                if moment - self._freed > STALL_NS and self._freed:
                    stalled(moment - self._freed)
            submit(request)
        self._pumping = False
        if self.completed == self.submitted and (
            self.submitted >= self._number or self._schedule.over(now())
        ):
            self._schedule.stop()
            self.finished.resolve(None)
        elif free and self.submitted < self._number and not self._again:
            if open_loop and self.submitted < until:
                self._schedule.arm()
            elif not self._schedule.over(now()):
                self._loop.call_soon(self._pump)

    def _done(self, request: BlockRequest) -> None:
        status = request.status
        if status is BUSY:
            # Others use the disk, too, and have taken its depth: asked for again a little later.
            if not self._again:
                self._loop.call_later(RETRY_S, self._try_again)
            self._again.append((request, self._begun.pop(request)))
            return
        if self._plan.flush and request.op is not FLUSH and status is OK:
            flush = BlockRequest(FLUSH, 0, 0, request.buffer, self._done)
            self._begun[flush] = self._begun.pop(request)
            self._device.submit(flush)
            return
        if self._scratch is not None and status is OK:
            self._scratch[:] = request.buffer  # type: ignore[assignment]
        self._freed = time.monotonic_ns()
        self._record(self._freed - self._begun.pop(request))
        self._free.append(request.buffer)  # type: ignore[arg-type]
        if status is not OK:
            self.failed = status
            self.stop()
        elif self._plan.check:
            self._check(request)
        self.completed += 1
        if not self._pumping:
            self._pump()

    def _check(self, request: BlockRequest) -> None:
        """The number of every block that was read; of most large requests only those of the first and the last."""
        numbers = memoryview(request.buffer).cast("Q")[:: BLOCK_SIZE // 8]     # type: ignore[arg-type]
        first, count = request.lba, self._blocks
        if count > _CHECKED_BLOCKS and self.completed % _CHECKED_IN_FULL:
            right = numbers[0] == first and numbers[-1] == first + count - 1
        else:
            right = numbers.tolist() == list(range(first, first + count))
        if not right:
            self.wrong += 1

    def written(self) -> dict[str, list[int]]:
        """Some of the blocks that a stamped load has written, for who wants to look."""
        if not self._plan.stamp:
            return {}
        places = self._plan.places[: self.completed]
        return {"written": places[:: max(1, len(places) // _TOLD_PLACES)]}

    def _stamp(self, buffer: Any, place: int) -> None:
        last = self._blocks - 1
        for block in (0, last) if last else (0,):
            _STAMP.pack_into(buffer, block * BLOCK_SIZE, (place + block) ^ self._plan.stamp)

    def _try_again(self) -> None:
        again, self._again = self._again, []
        self._pumping = True
        for request, begun in again:
            repeated = BlockRequest(Op(request.op), request.lba, request.blocks, request.buffer, self._done)
            self._begun[repeated] = begun
            self._device.submit(repeated)
        self._pumping = False
        self._pump()


async def iobench(session: Session, arguments: list[str]) -> int:
    options, words = flags(arguments, "o:b:d:n:T:i:s:S:N:B:W:rtcj")
    if len(words) != 1:
        raise Usage("it takes one disk")
    device = disk(session, words[0])
    plan = _plan(options, device.info)
    record = samples(options["S"]) if "S" in options else None
    latencies = array("q")
    recorded: Callable[[int], Any] = latencies.append if record is None else record.append
    together = window(options)
    if together is not None:
        plan = plan._replace(duration_ns=together.whole_ns)
        recorded = together.only(recorded)
        await together.begin(session.guest.loop)
    load = Load(session.guest.loop, device, plan, recorded)
    begin = time.perf_counter()
    load.start()
    try:
        await load.finished
    finally:
        load.stop()
    ended_ns = time.monotonic_ns()
    elapsed = time.perf_counter() - begin if together is None else together.duration_ns / _NS
    if load.failed is not None:
        raise CommandError(f"{options.get('o', 'null')}: {REASONS[load.failed]}")
    if load.wrong:
        raise CommandError(f"{load.wrong} reads brought something else than was written there")
    if record is None:
        told = _figures(latencies, plan.nbytes, elapsed)
    else:  # who made the file looks at them himself; to sort them here would be a cost of the load
        record.settle()
        told = {"requests": len(record), "seconds": elapsed}
    more = {"completed": load.completed, "ended_ns": ended_ns, **load.lateness.report(), **load.written()}
    await session.print(json.dumps(told | more) if "j" in options else _sentence(told))
    return 0


def _plan(options: dict[str, str], info: BlockInfo) -> Plan:
    op = _OPS.get(options.get("o", "null"))
    if op is None:
        raise Usage(f"-o {options['o']!r} is none of {' '.join(_OPS)}")
    nbytes = 0 if op is Op.READY else size(options.get("b", "4k"), "-b")
    depth = count(options.get("d", "1"), "-d", 1)
    number = count(options.get("n", "10000"), "-n", 1)
    duration = round(seconds(options["T"], "-T") * _NS) if "T" in options else _FOREVER
    if "T" in options and "n" not in options:
        number = _FOREVER
    span = min(size(options["s"], "-s") if "s" in options else info.size_bytes, info.size_bytes)
    if op is not Op.READY and (not nbytes or nbytes % BLOCK_SIZE or nbytes > info.max_transfer_bytes):
        raise Usage(f"-b must be whole blocks of {BLOCK_SIZE}, at most {info.max_transfer_bytes} bytes")
    if span < nbytes:
        raise Usage(f"-s must hold at least one request of {nbytes} bytes")
    if depth > info.queue_depth:
        raise Usage(f"-d is at most {info.queue_depth}")
    if ("t" in options or "c" in options) and op is not READ:
        raise Usage("-t and -c look at what arrived: they go with -o read")
    stamp = count(options.get("N", "0"), "-N")
    if stamp and op is not Op.WRITE:
        raise Usage("-N marks what is written: it goes with -o write and -o commit")
    return Plan(
        op, nbytes, _places(span, nbytes, number, "r" in options), depth, number, duration,
        round(seconds(options.get("i", "0"), "-i") * _NS), options.get("o") == "commit", "t" in options,
        "c" in options, stamp,
    )  # fmt: skip


def _places(span: int, nbytes: int, number: int, at_random: bool) -> list[int]:
    """The logical blocks at which requests of ``nbytes`` begin, in turn; the same every time."""
    slots = span // nbytes if nbytes else 1
    chance = random.Random(1)
    some = min(slots, number, _MOST_PLACES)
    return [(chance.randrange(slots) if at_random else index) * nbytes // BLOCK_SIZE for index in range(some)]


def _figures(latencies: array[int], nbytes: int, elapsed: float) -> dict[str, Any]:
    ordered = sorted(latencies)
    done = len(ordered)
    if not done:
        return {"requests": 0, "seconds": elapsed}
    quantiles = {f"p{q}_us": ordered[min(done - 1, int(done * q / 100))] / 1000 for q in _QUANTILES}
    return {
        "requests": done, "seconds": elapsed, "per_s": done / elapsed, "bytes_per_s": done * nbytes / elapsed,
        "min_us": ordered[0] / 1000, **quantiles, "max_us": ordered[-1] / 1000,
    }


def _sentence(told: dict[str, Any]) -> str:
    if not told["requests"]:
        return f"0 requests in {told['seconds']:.6f} s"
    moved = f", {told['bytes_per_s'] / 1e6:.1f} MB/s" if told["bytes_per_s"] else ""
    spread = ", ".join(f"p{q} {told[f'p{q}_us']:.1f}" for q in _QUANTILES)
    return (
        f"{told['requests']} requests in {told['seconds']:.6f} s: {told['per_s']:.0f}/s{moved}; "
        f"latency in us: min {told['min_us']:.1f}, {spread}, max {told['max_us']:.1f}"
    )
