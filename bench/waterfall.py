"""Where the time of single requests went, as text: one line per segment, its bar where it was. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.machines import Configuration
from bench.table import number

_WIDTH = 48


def waterfall_lines(waterfalls: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """All of a run's."""
    for one in waterfalls:
        yield ""
        yield from _lines(one)


def _lines(one: Mapping[str, Any]) -> Iterator[str]:
    name = Configuration.of(one).name
    total = one["total_us"]
    yield (
        f"{one['job']}, {name}: {number(total)} us (mean of the {one['requests']} requests in the middle; "
        f"p50 traced {number(one['traced_p50_us'])}, untraced {number(one['untraced_p50_us'])} us)"
    )
    names, processes = (max(len(row[column]) for row in one["segments"]) for column in ("name", "process"))
    for row in one["segments"]:
        yield (
            f"  {row['name']:{names}} {row['process']:{processes}} {number(row['us']):>8}  "
            f"|{bar(row['start_us'] / total, row['us'] / total)}|"
        )


def bar(start: float, share: float, width: int = _WIDTH) -> str:
    """``width`` characters; what begins at ``start`` and takes ``share`` of the whole shows at least one."""
    first = min(round(start * width), width - 1)
    last = max(min(round((start + share) * width), width), first + 1)
    return " " * first + "#" * (last - first) + " " * (width - last)
