"""``netwitness``: echo requests at fixed times, each sent until it is answered, in the observer's history.

A frame may be lost, as on any wire: what is not answered in :data:`RETRY_S` is sent again and counted as one more try.
What is measured is when the *request*, planned at its time, was answered at last.
"""

from __future__ import annotations

import json
import struct
from functools import partial
from time import monotonic_ns
from typing import Any

from partitions.child.commands.network import address_of, stack_of
from partitions.child.commands.options import flags, seconds
from partitions.child.commands.witness import interval, opened
from partitions.child.console import Session, Usage
from partitions.child.inet import EchoFailure, EchoOutcome, EchoReply, IpStack
from vmbus_emu.device import OK
from vmbus_emu.loop import Loop
from vmbus_emu.task import Future
from vmbus_emu.witness.history import REQUEST, History
from vmbus_emu.witness.schedule import Schedule

RETRY_S = 0.1
#: Requests without an answer; more wait, and keep their planned time. Those that wait in the end are recorded, unsent.
WINDOW = 256
_ID = struct.Struct("<8sQ40x")
_NS = 1_000_000_000


class NetLoad:
    """Requests to one address; :attr:`finished` resolves when each is answered or the time is over."""

    def __init__(
        self, loop: Loop, stack: IpStack, address: str, history: History, interval_ns: int, duration_ns: int,
    ) -> None:
        self._loop = loop
        self._stack = stack
        self._address = address
        self._history = history
        self._waiting = 0
        self._pumping = False
        self.requests = self.answered = self.lost_frames = 0
        self.failure: EchoFailure | None = None     # the last one
        self.finished: Future[None] = Future()
        self._schedule = Schedule(loop, interval_ns, duration_ns, self._pump)
        self._end_ns = self._schedule.start_ns + duration_ns

    def start(self) -> None:
        self._pump()

    def stop(self) -> None:
        """Send nothing more; what was sent may be answered still."""
        self._end_ns = 0
        self._schedule.stop()
        self._look_for_the_end()

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        now = monotonic_ns()
        while (self._waiting < WINDOW or now >= self._end_ns) and (planned := self._schedule.take(now)):
            sequence, send = self._history.next_sequence, now < self._end_ns
            record = self._history.append(REQUEST, 0, 0, 0, planned, now if send else 0)
            if record < 0:
                self._schedule.stop()
                break
            self.requests += 1
            if send:
                self._waiting += 1
                self._send(record, sequence)
            now = monotonic_ns()
        self._pumping = False
        if not self._look_for_the_end() and self._waiting < WINDOW:
            self._schedule.arm()

    def _look_for_the_end(self) -> bool:
        if self._waiting or self._pumping or not self._schedule.over(monotonic_ns()):
            return False
        self._schedule.stop()
        self.finished.resolve(None)
        return True

    def _send(self, record: int, sequence: int) -> None:
        echo = self._stack.echo(self._address, sequence, _ID.pack(b"vmbuswit", sequence), RETRY_S)
        echo.then(partial(self._ended, record, sequence))

    def _ended(self, record: int, sequence: int, echo: Future[EchoOutcome]) -> None:
        now = monotonic_ns()
        outcome = echo.result()
        if isinstance(outcome, EchoReply):
            self._history.complete(record, OK, now)
            self.answered += 1
            self._waiting -= 1
        elif outcome is None:
            self._history.retry(record)
            self.lost_frames += 1
            if now < self._end_ns:
                self._send(record, sequence)
                return
            self._waiting -= 1
        else:
            self.failure = outcome
            self._loop.call_later(RETRY_S, self._again, record, sequence)
            return
        self._pump()

    def _again(self, record: int, sequence: int) -> None:
        """After a failure of this end: nothing had been sent."""
        if monotonic_ns() < self._end_ns:
            self._send(record, sequence)
            return
        self._waiting -= 1
        self._pump()

    def report(self) -> dict[str, Any]:
        """What happened, for JSON."""
        return {
            "start_ns": self._schedule.start_ns, "end_ns": monotonic_ns(), "requests": self.requests,
            "answered": self.answered, "lost_frames": self.lost_frames, "full": self._history.full,
            "failure": None if self.failure is None else self.failure.value,
        }  # fmt: skip


async def netwitness(session: Session, arguments: list[str]) -> int:
    options, words = flags(arguments, "i:t:")
    if len(words) != 2:
        raise Usage("it takes a host and the path of a history")
    stack = stack_of(session)
    address = address_of(stack, words[0])
    every = interval(options.get("i", "0.01"))
    if not every:
        raise Usage("-i must be more than 0")
    duration = round(seconds(options.get("t", "1"), "-t") * _NS)
    load = NetLoad(session.guest.loop, stack, address, opened(words[1]), every, duration)
    load.start()
    try:
        await load.finished
    finally:
        load.stop()
    await session.print(json.dumps(load.report()))
    return 0 if load.answered == load.requests else 1
