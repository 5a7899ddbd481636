"""What signals mean to a verb that has started things of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def ended_like_an_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does: with everything that it started. Only the first of them: who
    sends more, as ``timeout`` does, does not disturb the cleaning up. What is ignored, as with ``nohup``, stays so.
    """
    ended = False

    def interrupt(number: int, frame: Any) -> None:
        nonlocal ended
        if not ended:
            ended = True
            raise KeyboardInterrupt

    before: Mapping[signal.Signals, Any] = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }  # fmt: skip
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
