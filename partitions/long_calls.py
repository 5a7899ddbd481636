"""Which threads of the monolith are inside a driver or the switch, and have been in the same call for a while.

A VM is a thread there, and so is an I/O worker: a driver that never returns to one of them keeps the VM, and everybody
else who needs the device, while the host's loop turns. So the host answers the machine's question for a beat with the
calls that last (:mod:`vmbus_emu.machine.beats` judges them).

Nothing is counted on the way of a request: the threads' stacks are looked at when the question comes. A frame is one
call; the same frame later is the same call still. What tells whose code runs is the innermost crossing of the boundary
(:data:`partitions.boundary.INTO_DRIVERS`, :data:`partitions.boundary.INTO_GUESTS`). A thread whose innermost
frame is the crossing itself waits for the device's lock: it does not hang, whoever has the lock may.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from partitions.boundary import INTO_DRIVERS, INTO_GUESTS
from vmbus_emu.loop import Loop

#: A call that was under way before and so many seconds later may be long. Most requests take a thousandth of that.
LOOK_AGAIN_S = 0.02


def driver_call(frame: FrameType | None) -> FrameType | None:
    """The frame with which the thread whose innermost frame is ``frame`` entered the driver it is in; ``None``: it is
    in none."""
    innermost = frame
    while frame is not None:
        code: CodeType = frame.f_code
        if code in INTO_DRIVERS:
            return frame if frame is not innermost else None
        if code in INTO_GUESTS:
            return None
        frame = frame.f_back
    return None


def driver_calls() -> dict[int, FrameType]:
    """By the kernel's number of the thread, the calls of drivers that are under way on other threads than this one."""
    stacks = sys._current_frames()
    here = threading.get_ident()
    calls = {}
    for thread in threading.enumerate():
        call = driver_call(stacks.get(thread.ident or 0)) if thread.ident != here else None
        if call is not None and thread.native_id is not None:
            calls[thread.native_id] = call
    return calls


class LongCalls:
    """Answers questions for a beat: ``send({"t": "beat", "id", "calls"})``.

    ``calls`` has a pair for each call that lasts: the kernel's number of its thread, and a number of the call, which is
    the same in every answer as long as the call goes on.
    """

    def __init__(self, loop: Loop, send: Callable[[dict[str, Any]], Any]) -> None:
        self._loop = loop
        self._send = send
        self._numbers = itertools.count(1)
        self._long: dict[int, tuple[FrameType, int]] = {}   # by thread

    def answer(self, question: int) -> None:
        """Now, or in a moment if there are calls that may be long."""
        calls = driver_calls()
        if calls:
            self._loop.call_later(LOOK_AGAIN_S, self._answer, question, calls)
        else:
            self._answer(question, calls)

    def _answer(self, question: int, before: dict[int, FrameType]) -> None:
        now = driver_calls() if before else before
        known, self._long = self._long, {}
        for thread, frame in now.items():
            if before.get(thread) is frame:
                old, number = known.get(thread, (None, 0))
                self._long[thread] = frame, number if old is frame else next(self._numbers)
        calls = [[thread, number] for thread, (_, number) in self._long.items()]
        self._send({"t": "beat", "id": question, "calls": calls})
