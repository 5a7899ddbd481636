"""Checked reading of one table of a topology document.

:mod:`vmbus_emu.topology.file` and :mod:`vmbus_emu.topology.disk` read through :class:`Table`: a value that is
missing, of the wrong type or out of bounds is told to ``report`` and replaced by a default, never raised, so
that one pass finds every fault. The document may hold anything at all.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vmbus_emu.topology import data as data

#: ``report(place, what is wrong, what to try)``.
Report = Callable[[str, str, str], None]


class Table:
    """One TOML table: its place, its values, and which keys it may have."""

    def __init__(self, report: Report, place: str, value: object, keys: Iterable[str] | None) -> None:
        self.place = place
        self._report = report
        self.values: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
        if not isinstance(value, Mapping):
            report(place, f"is {describe(value)}, not a table", f"write it as [{self.name}]")
        if keys is not None:
            known = list(keys)
            for key in self.values:
                if key not in known:
                    report(self.at(str(key)), "unknown key", suggest(str(key), known))

    @property
    def name(self) -> str:
        """The place without the file."""
        return self.place.rpartition(":")[2]

    def at(self, key: str) -> str:
        return f"{self.place}{'' if self.place.endswith(':') else '.'}{key}"

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def error(self, key: str, what: str, hint: str) -> None:
        self._report(self.at(key), what, hint)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if isinstance(value, bool):
            return value
        self.error(key, f"is {describe(value)}", "write true or false")
        return default

    def choice(self, key: str, words: Iterable[str], default: str) -> str:
        value = self.values.get(key, default)
        words = list(words)
        if isinstance(value, str) and value in words:
            return value
        self.error(key, f"is {describe(value)}", suggest(value, words))
        return default

    def text(self, key: str, valid: Callable[[object], bool], rule: str) -> str | None:
        """A text that is there and right, or ``None`` (and a line)."""
        if key not in self.values:
            self.error(key, "is missing", f"give {rule}")
            return None
        value = self.values[key]
        if valid(value):
            return str(value)
        self.error(key, f"is {describe(value)}", f"give {rule}")
        return None

    def size(self, key: str, multiple: int, low: int, high: int) -> int:
        """A size in ``low..high`` bytes and a multiple of ``multiple``; ``low`` (and a line) if it is none."""
        value = self.values[key]
        size = data.parse_size(value)
        if size is None:
            self.error(key, f"is {describe(value)}", data.SIZE_RULE)
        elif not low <= size <= high:
            self.error(key, f"is {size} bytes", f"give {low} to {high} bytes")
        elif size % multiple:
            self.error(key, f"is {size} bytes, not a multiple of {multiple}", f"try {-(-size // multiple) * multiple}")
        else:
            return size
        return low

    def hang_after(self, key: str) -> float:
        """Seconds after which silence is a hang, 0 for never; the default (and a line) if it is neither."""
        value = self.values[key]
        seconds = data.parse_hang_after(value)
        if seconds is None:
            self.error(key, f"is {describe(value)}", data.HANG_AFTER_RULE)
            return data.DEFAULT_HANG_AFTER_S
        return seconds

    def parsed(self, key: str, parse: Callable[[object], float | None], rule: str, default: float) -> float:
        """What ``parse`` makes of the value; ``default`` if it is missing, or (and a line) if it is not right."""
        if key not in self.values:
            return default
        value = self.values[key]
        number = parse(value)
        if number is None:
            self.error(key, f"is {describe(value)}", rule)
            return default
        return number

    def tables(self, key: str) -> list[Any] | None:
        """The array of tables under ``key``, each still to be checked; ``None`` (and a line) if it is no array."""
        value = self.values.get(key, [])
        if isinstance(value, list | tuple):
            return list(value)
        self.error(key, f"is {describe(value)}, not a list", f"write it as [[{key}]]")
        return None


def describe(value: object) -> str:
    """A value in an error line: short, on one line, quoted when it is text."""
    match value:
        case str():
            return f'"{value[:40]}…"' if len(value) > 40 else f'"{value}"'
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value) if abs(value) < 1e18 else "a huge number"
        case list() | tuple():
            return "a list"
        case Mapping():
            return "a table"
    return "nothing" if value is None else f"a {type(value).__name__}"


def suggest(value: object, words: Iterable[str]) -> str:
    """What to try instead of ``value``: the nearest word, or all of them."""
    words = list(words)
    near = difflib.get_close_matches(value[:64], words, 1) if isinstance(value, str) else []
    if near:
        return f'did you mean "{near[0]}"?'
    shown = words if len(words) <= 12 else [*words[:12], "…"]
    return f"one of {', '.join(shown)}" if words else "there is none"
