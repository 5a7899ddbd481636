"""``witness``: a load that an observer can hold to account, and ``stamps``: what is on the disk after it.

The load is open: requests stand at fixed times (:class:`~vmbus_emu.witness.schedule.Schedule`). When the device is
behind they are submitted late, as places become free, and keep the time they were planned for; what was planned within
the run is submitted however long that takes. Every write is stamped, every operation is in the observer's history
before it is submitted, and every read of a load that writes is looked at sector by sector. When the history is full
the load ends: it makes no request that is not recorded.

Writes may overlap outstanding ones, and are expected to be carried out in their order: storvsc sees to it, and a
driver called directly carries out each one at once up to :data:`LARGEST` bytes.
"""

from __future__ import annotations

import json
import random
from time import monotonic_ns
from typing import Any, NamedTuple

from partitions.child.busy import RETRY_S
from partitions.child.commands import blockio
from partitions.child.commands.options import count, disk, flags, seconds, size
from partitions.child.console import CommandError, Session, Usage
from vmbus_emu.device import BLOCK_SIZE, BUSY, FLUSH, OK, READ, WRITE, BlockDevice, BlockRequest, Op, Status
from vmbus_emu.loop import Loop
from vmbus_emu.task import Future
from vmbus_emu.witness import stamp
from vmbus_emu.witness.history import History
from vmbus_emu.witness.schedule import Schedule

LARGEST = 128 * 1024
_SPAN = 16 << 20
_MIXES = ("write", "mixed", "flush", "read")
#: One request in so many is a FLUSH.
_FLUSH_EVERY = 16
#: Requests between two looks at the loop's other work.
_TURN = 64
_NS = 1_000_000_000


class Plan(NamedTuple):
    """What to do: ``mix`` is one of write, mixed (half of it reads), flush (writes with a FLUSH now and then), read
    (whatever is there is good: these are not looked at)."""

    mix: str
    nbytes: int
    depth: int
    interval_ns: int            #: 0: closed loop
    duration_ns: int
    slots: int                  #: places of ``nbytes``, from the beginning of the disk
    writer: int
    seed: int


class _Request(BlockRequest):
    """One try of an operation. ``place``: the buffer that it occupies, used or not."""

    __slots__ = ("place", "planned", "record", "tries")

    place: memoryview
    planned: int
    record: int
    tries: int


class Load:
    """The load; :attr:`finished` resolves when everything planned has completed."""

    def __init__(self, loop: Loop, device: BlockDevice, history: History, plan: Plan) -> None:
        self._loop = loop
        self._device = device
        # Not closed here: a completion that comes too late, or twice, is recorded as long as a request lives.
        self._history = history
        self._plan = plan
        self._blocks = plan.nbytes // BLOCK_SIZE
        self._chance = random.Random(plan.seed)
        self._free = [device.allocate(plan.nbytes) for _ in range(plan.depth)]
        self._outstanding: set[BlockRequest] = set()
        self._refused: list[_Request] = []      # BUSY; nothing new is submitted before these
        self._pumping = False
        self.busy = 0
        self._submitted = [0] * len(Op)
        self._ended = [0] * len(Status)
        self.finished: Future[None] = Future()
        self._schedule = Schedule(loop, plan.interval_ns, plan.duration_ns, self._pump)

    def start(self) -> None:
        self._pump()

    def stop(self) -> None:
        """Submit nothing more but what is to be tried again; what is under way completes."""
        self._schedule.stop()
        self._look_for_the_end(0)

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        now, turn = monotonic_ns(), _TURN
        while self._free and not self._refused and turn:
            planned = self._schedule.take(now)
            if not planned:
                break
            turn -= 1
            if not self._begin(planned if self._plan.interval_ns else 0):
                self._schedule.stop()
            now = monotonic_ns()
        self._pumping = False
        if self._look_for_the_end(now) or self._refused or not self._free:
            return
        if turn:
            self._schedule.arm()
        else:
            self._loop.call_soon(self._pump)

    def _look_for_the_end(self, now: int) -> bool:
        if self._outstanding or self._refused or self._pumping or not self._schedule.over(now):
            return False
        self._schedule.stop()
        self.finished.resolve(None)
        return True

    def _begin(self, planned: int) -> bool:
        """Submit the next request; ``False`` if there is no room to record it."""
        mix, chance = self._plan.mix, self._chance
        op, lba, blocks = WRITE, chance.randrange(self._plan.slots) * self._blocks, self._blocks
        if mix == "read" or (mix == "mixed" and chance.random() < 0.5):
            op = READ
        elif mix == "flush" and not chance.randrange(_FLUSH_EVERY):
            op, lba, blocks = FLUSH, 0, 0
        return self._submit(op, lba, blocks, planned, self._free.pop(), 1)

    def _submit(self, op: Op, lba: int, blocks: int, planned: int, place: memoryview, tries: int) -> bool:
        """``planned`` 0: now."""
        history, writer = self._history, self._plan.writer
        if op is WRITE:
            stamp.fill(place, writer, history.next_sequence, lba)
        now = monotonic_ns()
        planned = planned or now
        record = history.append(op, writer, lba, blocks, planned, now, tries)
        if record < 0:
            self._free.append(place)
            return False
        request = _Request(op, lba, blocks, place if blocks else None, self._done)
        request.record = record
        request.planned = planned
        request.tries = tries
        request.place = place
        self._submitted[op] += tries == 1
        self._outstanding.add(request)
        self._device.submit(request)
        return True

    def _done(self, request: BlockRequest) -> None:
        now = monotonic_ns()
        assert type(request) is _Request
        status, record = request.status, request.record
        assert status is not None
        if request not in self._outstanding:
            self._history.count_completion(record)  # once more; its place has been given back
            return
        self._outstanding.discard(request)
        if status is BUSY:
            self._history.complete(record, status, now)
            self.busy += 1
            if not self._refused:
                self._loop.call_later(RETRY_S, self._again)
            self._refused.append(request)
            return
        if request.op is READ and status is OK and self._plan.mix != "read":
            self._history.observe(record, request.place, now)
        self._history.complete(record, status, now)
        self._ended[status] += 1
        self._free.append(request.place)
        if status is Status.GONE:
            self._schedule.stop()
        self._pump()

    def _again(self) -> None:
        refused, self._refused = self._refused, []
        self._pumping = True
        for one in refused:
            # As another write, with a stamp of its own: a part of the first may be there, if what carried it out died
            # before its replacement was busy; and writes of the same place may have come between.
            if not self._submit(Op(one.op), one.lba, one.blocks, one.planned, one.place, one.tries + 1):
                self._schedule.stop()
        self._pumping = False
        self._pump()

    @property
    def failed(self) -> int:
        """Operations that ended with an error."""
        return sum(self._ended) - self._ended[OK]

    def report(self) -> dict[str, Any]:
        """What happened, for JSON. ``full``: the history was, and the load ended for that."""
        return {
            "start_ns": self._schedule.start_ns, "end_ns": monotonic_ns(),
            "submitted": {op.name: number for op, number in zip(Op, self._submitted, strict=True) if number},
            "ended": {status.name: number for status, number in zip(Status, self._ended, strict=True) if number},
            "busy": self.busy, "full": self._history.full,
        }  # fmt: skip


def interval(text: str) -> int:
    """An interval in ns; 0 for ``closed`` and 0."""
    return 0 if text == "closed" else round(seconds(text, "-i") * _NS)


def opened(path: str) -> History:
    """The observer's history."""
    try:
        return History.open(path)
    except (OSError, ValueError) as error:
        raise CommandError(f"no history at {path}: {error}") from None


def _writer(text: str, what: str) -> int:
    """A number that has room in a stamp."""
    value = count(text, what)
    if value >= 1 << 32:
        raise Usage(f"{what} must be below {1 << 32}")
    return value


async def witness(session: Session, arguments: list[str]) -> int:
    options, words = flags(arguments, "o:b:d:i:t:s:w:S:")
    if len(words) != 2:
        raise Usage("it takes a disk and the path of a history")
    device = disk(session, words[0])
    plan = _plan(options, device)
    history = opened(words[1])
    load = Load(session.guest.loop, device, history, plan)
    load.start()
    try:
        await load.finished
    finally:
        load.stop()
    await session.print(json.dumps(load.report()))
    return 1 if load.failed else 0


def _plan(options: dict[str, str], device: BlockDevice) -> Plan:
    info = device.info
    mix = options.get("o", "write")
    if mix not in _MIXES:
        raise Usage(f"-o {mix!r} is none of {' '.join(_MIXES)}")
    nbytes = size(options.get("b", "4k"), "-b")
    if not nbytes or nbytes % BLOCK_SIZE or nbytes > LARGEST:
        raise Usage(f"-b must be whole blocks of {BLOCK_SIZE}, at most {LARGEST} bytes")
    span = min(size(options["s"], "-s") if "s" in options else _SPAN, info.size_bytes)
    if span < nbytes:
        raise Usage(f"-s must hold at least one request of {nbytes} bytes")
    depth = count(options.get("d", "1"), "-d", 1)
    if depth > info.queue_depth:
        raise Usage(f"-d is at most {info.queue_depth}")
    if info.read_only and mix != "read":
        raise CommandError(blockio.REASONS[Status.READ_ONLY])
    return Plan(
        mix, nbytes, depth, interval(options.get("i", "0.001")), round(seconds(options.get("t", "1"), "-t") * _NS),
        span // nbytes, _writer(options.get("w", "1"), "-w"), count(options.get("S", "1"), "-S"),
    )  # fmt: skip


async def stamps(session: Session, arguments: list[str]) -> int:
    if len(arguments) != 3:
        raise Usage("it takes a disk, an offset and a length")
    device = disk(session, arguments[0])
    offset, length = size(arguments[1], "offset"), size(arguments[2], "length")
    if offset % BLOCK_SIZE or length % BLOCK_SIZE:
        raise Usage(f"offset and length must be multiples of {BLOCK_SIZE}")
    if offset + length > device.info.size_bytes:
        raise CommandError(f"{arguments[0]} ends at byte {device.info.size_bytes}")
    async for piece in blockio.read_bytes(session.guest.loop, device, offset, length):
        await session.write(stamp.brief(piece))
    return 0
