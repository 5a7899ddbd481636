"""Fixed times for requests: the start and every interval from there, whatever becomes of the requests.

A load that waits for the device before it plans the next request hides an outage from its own figures: nothing is
asked for while nothing is answered. So the times stand beforehand, and who cannot keep them stays responsible for them.

The loop's timers are as coarse as ``epoll``'s time-out, 1 ms, which would show in every latency. Here a timerfd wakes
it; Python has none before 3.13, so it is libc's.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from vmbus_emu.loop import Loop

_CLOCK_MONOTONIC, _ABSOLUTE = 1, 1
_NONBLOCK, _CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_NS = 1_000_000_000
_WHEN = struct.Struct("@4l")            # struct itimerspec: interval and value, seconds and nanoseconds
_libc = ctypes.CDLL(None, use_errno=True)


class Schedule:
    """``start + n * interval_ns`` for ``duration_ns`` from the start. An interval of 0 is a closed loop: always now.

    ``wake`` is called when the next time has come, once per :meth:`arm`.
    """

    def __init__(self, loop: Loop, interval_ns: int, duration_ns: int, wake: Callable[[], Any]) -> None:
        self._loop = loop
        self._interval = interval_ns
        self._wake = wake
        self._timer = -1
        self.start_ns = self._next = monotonic_ns()
        self._end = self.start_ns + duration_ns

    def take(self, now: int) -> int:
        """The time that the next request was planned for, if that has come; else 0. Each is given once."""
        if not self._interval:
            return now if now < self._end else 0
        planned = self._next
        if planned > now or planned >= self._end:
            return 0
        self._next = planned + self._interval
        return planned

    def over(self, now: int) -> bool:
        """Whether nothing more is planned."""
        return (self._next if self._interval else now) >= self._end

    def arm(self) -> None:
        """Wake the load for the next request. In a closed loop, and at the end, there is nothing to wait for."""
        if not self._interval or self._next >= self._end:
            return
        if self._timer < 0:
            self._timer = _libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK | _CLOEXEC)
            if self._timer < 0:
                raise OSError(ctypes.get_errno(), "cannot make a timer")
            self._loop.watch(self._timer, self._rang)
        _libc.timerfd_settime(self._timer, _ABSOLUTE, _WHEN.pack(0, 0, *divmod(self._next, _NS)), None)

    def stop(self) -> None:
        """Plan nothing more. Idempotent."""
        self._end = 0
        if self._timer >= 0:
            self._loop.unwatch(self._timer)
            os.close(self._timer)
            self._timer = -1

    def _rang(self, events: int) -> None:
        try:
            os.read(self._timer, 8)
        except BlockingIOError:
            return  # set anew since it rang
        self._wake()
