"""``netbench``: echo requests to another host, a fixed number under way or at fixed times, and how long each took.

The answer is looked at byte by byte (:meth:`~partitions.child.inet.IpStack.echo`). A frame may be lost, as on any wire:
what is not answered in time is counted and has no latency.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from partitions.child.commands.lateness import STALL_NS, Lateness
from partitions.child.commands.network import address_of, stack_of
from partitions.child.commands.options import count, flags, samples, seconds, size
from partitions.child.console import CommandError, Session, Usage
from partitions.child.inet import EchoOutcome, EchoReply, IpStack
from vmbus_emu.loop import Loop
from vmbus_emu.task import Future
from vmbus_emu.witness.schedule import Schedule

_WAIT_S = 1.0
_MOST_BYTES, _MOST_DEPTH = 65507, 64
_NS = 1_000_000_000


class NetBench:
    """Requests of ``nbytes`` to ``address``; :attr:`finished` resolves when the last is answered or given up."""

    def __init__(
        self, loop: Loop, stack: IpStack, address: str, nbytes: int, depth: int, interval_ns: int, duration_ns: int,
        record: Callable[[int], Any],
    ) -> None:
        """``interval_ns`` 0: closed. ``record`` is called with the latency of each answer, in ns."""
        self._stack = stack
        self._address = address
        self._payload = bytes(index & 0xFF for index in range(nbytes))
        self._depth = depth
        self._interval_ns = interval_ns
        self._record = record
        self._waiting = 0
        self._pumping = False
        self.requests = self.answered = self.lost = 0
        self.failure: str = ""
        self.lateness = Lateness()
        self._freed = 0                 # when the last answer, or the last loss, made room
        self.finished: Future[None] = Future()
        self._schedule = Schedule(loop, interval_ns, duration_ns, self._pump)

    def start(self) -> None:
        self._pump()

    def stop(self) -> None:
        """Send nothing more; what was sent may be answered still."""
        self._schedule.stop()

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        while self._waiting < self._depth and (planned := self._schedule.take(moment := time.monotonic_ns())):
            self._waiting += 1
            self.requests += 1
            begun = planned
            if self._interval_ns:
                self.lateness.late_ns.append(moment - planned)
            else:
                begun = time.monotonic_ns()
                if begun - self._freed > STALL_NS and self._freed:
                    self.lateness.stalled(begun - self._freed)
            echo = self._stack.echo(self._address, self.requests & 0xFFFF, self._payload, _WAIT_S)
            echo.then(partial(self._ended, begun))
        self._pumping = False
        if not self._waiting and self._schedule.over(time.monotonic_ns()):
            self._schedule.stop()
            self.finished.resolve(None)
        elif self._waiting < self._depth:
            self._schedule.arm()

    def _ended(self, begun: int, echo: Future[EchoOutcome]) -> None:
        outcome = echo.result()
        self._waiting -= 1
        self._freed = time.monotonic_ns()
        if isinstance(outcome, EchoReply):
            self._record(self._freed - begun)
            self.answered += 1
        elif outcome is None:
            self.lost += 1
        else:
            self.failure = outcome.value
            self.stop()
        self._pump()


async def netbench(session: Session, arguments: list[str]) -> int:
    options, words = flags(arguments, "b:d:i:T:S:")
    if len(words) != 1 or "S" not in options:
        raise Usage("it takes a host, and -S with the file for the latencies")
    stack = stack_of(session)
    address = address_of(stack, words[0])
    nbytes = size(options.get("b", "56"), "-b")
    depth = count(options.get("d", "1"), "-d", 1)
    if nbytes > _MOST_BYTES or depth > _MOST_DEPTH:
        raise Usage(f"-b is at most {_MOST_BYTES}, -d at most {_MOST_DEPTH}")
    record = samples(options["S"])
    load = NetBench(
        session.guest.loop, stack, address, nbytes, depth, round(seconds(options.get("i", "0"), "-i") * _NS),
        round(seconds(options.get("T", "1"), "-T") * _NS), record.append,
    )  # fmt: skip
    begin = time.perf_counter()
    load.start()
    try:
        await load.finished
    finally:
        load.stop()
    elapsed = time.perf_counter() - begin
    record.settle()
    if load.failure:
        raise CommandError(f"{words[0]}: {load.failure}")
    told = {"requests": load.answered, "lost": load.lost, "seconds": elapsed}
    await session.print(json.dumps(told | load.lateness.report()))
    return 0
