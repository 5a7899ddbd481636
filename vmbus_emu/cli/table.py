"""Tables and numbers for people: plain text, aligned, no wider than a terminal. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 100
_GAP = "  "
_NARROWEST = 5
UNKNOWN = "-"


@dataclass(frozen=True, slots=True)
class Column:
    """``right``: numbers. ``shrinks``: gives way, with an ellipsis, when the table would be too wide."""

    title: str
    right: bool = False
    shrinks: bool = False


def render(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int = WIDTH) -> list[str]:
    """The table's lines, titles first, without trailing blanks."""
    table = [[column.title for column in columns], *(list(row) for row in rows)]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - width
    shrinking = [index for index, column in enumerate(columns) if column.shrinks]
    while excess > 0 and shrinking:
        widest = max(shrinking, key=lambda index: widths[index])
        if widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
        excess -= 1
    lines = []
    for row in table:
        cells = [_fit(cell, size, column.right) for cell, size, column in zip(row, widths, columns, strict=True)]
        lines.append(_GAP.join(cells).rstrip())
    return lines


def _fit(cell: str, width: int, right: bool) -> str:
    if len(cell) > width:
        cell = cell[: width - 1] + "…"
    return cell.rjust(width) if right else cell.ljust(width)


def json_text(value: Any) -> str:
    """What ``--json`` prints."""
    return json.dumps(value, indent=2)


def size(count: float | None) -> str:
    """Bytes: ``512B``, ``2.4M``, ``16M``; powers of 1024."""
    return UNKNOWN if count is None else _scaled(count, 1024, ("B", "K", "M", "G", "T", "P", "E"))


def rate(count: float | None) -> str:
    """A number per second: ``0``, ``42``, ``12k``, ``1.3M``; powers of 1000."""
    return UNKNOWN if count is None else _scaled(count, 1000, ("", "k", "M", "G", "T"))


def _scaled(count: float, step: int, units: Sequence[str]) -> str:
    index = 0
    while count >= step - 0.5 and index < len(units) - 1:
        count /= step
        index += 1
    digits = 1 if index and count < 9.95 else 0
    return f"{count:.{digits}f}{units[index]}"


def age(seconds: float | None) -> str:
    """A time span: ``0.2s``, ``42s``, ``5m``, ``3h``, ``2d``."""
    if seconds is None:
        return UNKNOWN
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f}s"
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "m"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"


def plural(count: int, noun: str, ending: str = "s") -> str:
    return f"{count} {noun}" + ("" if count == 1 else ending)


def printable(text: str) -> str:
    """``text`` without what could steer a terminal; for text that guests can influence."""
    return "".join(character if character.isprintable() or character == "\t" else "?" for character in text)
