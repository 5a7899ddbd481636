"""A line on standard error that says what ``up`` and ``down`` are doing, if a person is looking."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from vmbus_emu.cli.table import printable

_CLEAR = "\r\x1b[K"
_BAR = 24
Progress = Callable[[Mapping[str, Any]], None]


@contextmanager
def progress_line() -> Iterator[Progress | None]:
    """A callback for the client's progress events; ``None`` when standard error is not a terminal.

    The line is wiped at the end, however that comes.
    """
    if not sys.stderr.isatty():
        yield None
        return
    try:
        yield lambda event: click.echo(_CLEAR + progress_text(event), nl=False, err=True, color=True)
    finally:
        click.echo(_CLEAR, nl=False, err=True, color=True)


def progress_text(event: Mapping[str, Any]) -> str:
    """One event ``{"component", "state", "done", "total"}`` as a bar and words, at most 79 columns."""
    done, total = event.get("done") or 0, event.get("total") or 0
    filled = _BAR * min(done, total) // total if total else 0
    bar = "#" * filled + "." * (_BAR - filled)
    words = printable(f"{event.get('component', '')} {event.get('state', '')}".strip())
    return f"[{bar}] {done}/{total} {words}"[:79]
