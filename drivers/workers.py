"""A few threads for I/O that may block, so that the event loop never does.

A driver gives :class:`IoWorkers` a piece of blocking work and gets the resulting status back at its
:class:`~vmbus_emu.device.Home`: a loop where there is one; the monolith's is a device's lock. Work touches
nothing but the medium and the request's buffer; all bookkeeping is done in the completion, on the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vmbus_emu.device import Home, Status


class IoWorkers:
    """At most ``limit`` threads, started when first needed (a process that may still fork has none)."""

    def __init__(self, home: Home, limit: int = 4) -> None:
        self._home = home
        self._pool = ThreadPoolExecutor(limit, "io-worker")

    def run(self, work: Callable[[], Status], done: Callable[[Status], Any]) -> None:
        """Run ``work`` in a thread, then ``done(status)`` on the loop. Never blocks: what waits is bounded by
        the queue depths of the drivers that submit."""
        self._home.working += 1
        self._pool.submit(self._execute, work, done)

    def _execute(self, work: Callable[[], Status], done: Callable[[Status], Any]) -> None:
        try:
            status = work()
        except BaseException as bug:
            # A thread that dies takes its exception with it; a bug must end the process instead.
            self._home.call_soon_threadsafe(_reraise, bug)
        else:
            self._home.call_soon_threadsafe(self._done, done, status)

    def _done(self, done: Callable[[Status], Any], status: Status) -> None:
        self._home.working -= 1
        done(status)

    def close(self) -> None:
        """Finish what was begun and end the threads. The last completions are posted before this returns."""
        self._pool.shutdown(wait=True)


def _reraise(bug: BaseException) -> None:
    raise bug
