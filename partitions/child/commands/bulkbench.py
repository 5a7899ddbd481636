"""``bulkbench``: as many bytes as a window allows to another guest, which counts and compares what arrives.

A unit is so many bytes in frames as large as the adapter takes; ``depth`` units are under way at any time, and one that
the receiver has whole makes room for the next. A latency is that of a unit, from the moment before its first frame to
its acknowledgement. Frames may be lost, as on any wire: a unit that is not acknowledged whole is counted and has no
latency. The other figures are the receiver's (:mod:`partitions.child.bulk`).
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from partitions.child import bulk
from partitions.child.bulk import Received
from partitions.child.commands.network import address_of, stack_of
from partitions.child.commands.options import count, flags, samples, seconds, size
from partitions.child.console import CommandError, Session, Usage
from partitions.child.inet import BACKLOG, EchoReply, IpStack
from vmbus_emu.loop import Loop, Timer
from vmbus_emu.task import Future
from vmbus_emu.witness.schedule import Schedule

_NS = 1_000_000_000
#: When a unit that was not acknowledged counts as lost, and how often the receiver is asked for its figures.
_WAIT_S = 1.0
_ASK_S, _QUESTIONS = 0.1, 20
#: Where acknowledgements are sent to; the stream's number tells one transfer from another.
_PORTS = range(49152, 65536)


class _Unit(NamedTuple):
    begun_ns: int
    timer: Timer


class Transfer:
    """Units of ``nbytes`` to ``address`` for ``duration_ns``; :attr:`finished` resolves when the receiver has said what
    it got, or said nothing. Not to be used a second time."""

    def __init__(
        self, loop: Loop, stack: IpStack, address: str, nbytes: int, depth: int, duration_ns: int,
        record: Callable[[int], Any],
    ) -> None:
        """``record`` is called with the time of each unit that arrived whole, in ns. ``ValueError``: the window holds
        more frames than may wait for the adapter."""
        self._loop = loop
        self._stack = stack
        self._address = address
        self._lengths = frame_lengths(nbytes, stack.largest_datagram - bulk.HEADER)
        if depth * len(self._lengths) > BACKLOG:
            raise ValueError(f"{depth} units of {len(self._lengths)} frames; at most {BACKLOG} frames may be under way")
        self._depth = depth
        self._record = record
        self._stream = random.SystemRandom().randrange(1 << 32)
        self._port = next(port for port in _PORTS if stack.bind(port, self._answer))
        self._units: dict[int, _Unit] = {}
        self._questions = 0
        self._pumping = self._asking = False
        self.sent = self.sent_units = self.whole = self.lost_units = 0
        self.failure = ""
        self.received: Received | None = None
        self.finished: Future[None] = Future()
        self._schedule = Schedule(loop, 0, duration_ns, self._pump)

    def start(self) -> None:
        self._pump()

    def stop(self) -> None:
        """Send nothing more, and take nothing more."""
        self._schedule.stop()
        self._stack.unbind(self._port)
        for unit in self._units.values():
            unit.timer.cancel()
        self._units.clear()
        self.finished.resolve(None)

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        while len(self._units) < self._depth and not self.failure and self._schedule.take(time.monotonic_ns()):
            self._send_unit()
        self._pumping = False
        if not self._units and not self._asking and (self.failure or self._schedule.over(time.monotonic_ns())):
            self._asking = True
            self._ask()

    def _send_unit(self) -> None:
        number = self.sent_units
        self.sent_units += 1
        timer = self._loop.call_later(_WAIT_S, self._lost, number)
        self._units[number] = _Unit(time.monotonic_ns(), timer)
        last = len(self._lengths) - 1
        for index, length in enumerate(self._lengths):
            payload = bulk.pattern(self.sent, length)
            frame = bulk.pack(bulk.DATA, number, self._stream, self.sent, payload, index == last)
            failure = self._stack.send_datagram(self._address, self._port, bulk.PORT, frame)
            if failure is not None:
                self.failure = failure.value
                self._lost(number)
                return
            self.sent += 1

    def _lost(self, number: int) -> None:
        unit = self._units.pop(number, None)
        if unit is not None:
            unit.timer.cancel()
            self.lost_units += 1
            self._pump()

    def _answer(self, source: bytes, port: int, datagram: memoryview) -> None:
        answer = bulk.parse(datagram)
        if answer is None or answer.stream != self._stream:
            return
        if answer.kind == bulk.TOLD and self._asking:
            self.received = bulk.parse_received(answer)
            self.finished.resolve(None)
        elif answer.kind == bulk.ACKNOWLEDGED:
            # A switch keeps the order: what was sent before, and is not acknowledged, is lost with its last frame.
            for older in [number for number in self._units if number < answer.unit]:
                self._lost(older)
            if bulk.arrived_of_unit(answer) < len(self._lengths):
                self._lost(answer.unit)
                return
            unit = self._units.pop(answer.unit, None)
            if unit is not None:
                self._record(time.monotonic_ns() - unit.begun_ns)
                unit.timer.cancel()
                self.whole += 1
                self._pump()

    def _ask(self) -> None:
        """The question may be lost, too."""
        if self.finished.done:
            return
        if self.failure or self._questions == _QUESTIONS:
            self.finished.resolve(None)
            return
        self._questions += 1
        self._stack.send_datagram(self._address, self._port, bulk.PORT, bulk.pack(bulk.ASK, 0, self._stream))
        self._loop.call_later(_ASK_S, self._ask)

    def report(self) -> dict[str, Any]:
        """What the receiver saw, for JSON. Only after it has told."""
        got = self.received
        assert got is not None
        took = (got.last_ns - got.first_ns) / _NS
        return {
            "lost_frames": self.sent - got.frames, "wrong_frames": got.wrong,
            "frames_per_s": got.frames / took if took else 0.0,
            "mbit_per_s": got.nbytes * 8 / took / 1e6 if took else 0.0,
        }


def frame_lengths(nbytes: int, most: int) -> list[int]:
    """The payloads of one unit's frames."""
    whole, rest = divmod(nbytes, most)
    return [most] * whole + ([rest] if rest else [])


async def bulkbench(session: Session, arguments: list[str]) -> int:
    options, words = flags(arguments, "b:d:T:S:")
    if len(words) != 1 or "S" not in options:
        raise Usage("it takes a host, and -S with the file for the latencies")
    stack = stack_of(session)
    address = address_of(stack, words[0])
    nbytes = size(options.get("b", "64k"), "-b")
    if not nbytes:
        raise Usage("-b is at least 1")
    depth = count(options.get("d", "1"), "-d", 1)
    record = samples(options["S"])
    duration = round(seconds(options.get("T", "1"), "-T") * _NS)
    # Who is not known yet is asked for first: only few frames may wait for that.
    first = await stack.echo(address, 1, b"", _WAIT_S)
    if not isinstance(first, EchoReply):
        raise CommandError(f"{words[0]}: {'no answer' if first is None else first.value}")
    try:
        transfer = Transfer(session.guest.loop, stack, address, nbytes, depth, duration, record.append)
    except ValueError as error:
        raise Usage(str(error)) from None
    begin = time.perf_counter()
    transfer.start()
    try:
        await transfer.finished
    finally:
        transfer.stop()
    elapsed = time.perf_counter() - begin
    record.settle()
    if transfer.failure or transfer.received is None:
        raise CommandError(f"{words[0]}: {transfer.failure or 'no answer'}")
    if transfer.received.wrong:
        raise CommandError(f"{words[0]}: {transfer.received.wrong} frames arrived, but not as they were sent")
    told = {"requests": transfer.whole, "lost": transfer.lost_units, "seconds": elapsed}
    await session.print(json.dumps(told | {"received": transfer.report()}))
    return 0
