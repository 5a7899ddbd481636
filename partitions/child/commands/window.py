"""A load that many guests run at once: all begin at one moment, and what is measured is a window in which all run.

From the moment on a load runs for a margin, then for the window, then for a margin again. Only what completes in the
window is recorded. The moment is one of CLOCK_MONOTONIC, which all processes of a host share.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from partitions.child.commands.options import seconds
from partitions.child.console import CommandError, Usage
from vmbus_emu.loop import Loop
from vmbus_emu.task import sleep

_NS = 1_000_000_000
#: A moment that is further away is a mistake.
_FURTHEST_S = 600


class Window(NamedTuple):
    begin_ns: int
    margin_ns: int
    duration_ns: int

    @property
    def whole_ns(self) -> int:
        """How long the load runs."""
        return 2 * self.margin_ns + self.duration_ns

    async def begin(self, loop: Loop) -> None:
        """Wait for the moment. Raises :class:`CommandError` if the window has begun before this guest could."""
        await sleep(loop, max(0.0, (self.begin_ns - time.monotonic_ns()) / _NS))
        late = time.monotonic_ns() - self.begin_ns
        if late > self.margin_ns:
            raise CommandError(f"began {late / 1e6:.0f} ms late; a margin of {self.margin_ns / 1e6:.0f} ms is short")

    def only(self, record: Callable[[int], Any]) -> Callable[[int], Any]:
        """``record``, of what completes in the window."""
        now = time.monotonic_ns
        first = self.begin_ns + self.margin_ns
        last = first + self.duration_ns

        def recorded(latency_ns: int) -> None:
            if first <= now() < last:
                record(latency_ns)

        return recorded


def window(options: dict[str, str]) -> Window | None:
    """What ``-B NS -W SECONDS -T SECONDS`` say; ``None`` without ``-B``."""
    if "B" not in options:
        if "W" in options:
            raise Usage("-W goes with -B")
        return None
    if "T" not in options:
        raise Usage("-B goes with -T")
    begin = int(options["B"]) if options["B"].isascii() and options["B"].isdigit() and len(options["B"]) < 20 else -1
    if not 0 <= begin <= time.monotonic_ns() + _FURTHEST_S * _NS:
        raise Usage(f"-B {options['B']!r} is no moment of the monotonic clock in the next {_FURTHEST_S} s, in ns")
    return Window(begin, round(seconds(options.get("W", "0.1"), "-W") * _NS), round(seconds(options["T"], "-T") * _NS))
