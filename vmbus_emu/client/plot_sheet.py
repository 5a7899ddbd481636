"""The sheet that a run is plotted on: filled from the top, measured in inches, so that text never depends on luck."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vmbus_emu.client.timeline_svg import duration

#: In inches; 1800 pixels across.
WIDTH, DPI = 12.0, 150
LEFT, RIGHT = 1.6, 0.3
#: Those of the page, on white: what differs in colour differs in place, dash, marker or hatch, too.
COLOURS = {"disk": "#0072b2", "network": "#00805c"}
KILL, INK, SOFT, GRID, BAD = "#b84700", "#151515", "#4a4a4a", "#dcdcdc", "#b00020"
#: What the font has, besides ASCII, that our own words need.
_TYPOGRAPHIC = "“”·…µ"
#: Where no line may end: between what is told, its number and its unit, and around an equals sign.
_TOGETHER = re.compile(r"(?<=\d) (?=\d|(?:ns|µs|ms|s)\b)| (?==)|(?<==) ")


def plain(words: object, most: int = 24) -> str:
    """``words`` for a picture, whatever is in them: of what the font has, and cut if there are too many."""
    told = "".join(letter if " " <= letter <= "~" or letter in _TYPOGRAPHIC else "?" for letter in str(words))
    return told if len(told) <= most else told[: most - 1] + "…"


def wrapped(words: str, letters: int, lines: int) -> list[str]:
    """At most so many lines of so many letters. A number stays with its unit."""
    return textwrap.wrap(_TOGETHER.sub("\u00a0", words), letters, max_lines=lines, placeholder=" …")


class Sheet:
    """A figure and how far down it is filled."""

    def __init__(self, height: float) -> None:
        self.figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
        self._height = height
        self._used = 0.0

    def skip(self, inches: float) -> None:
        self._used += inches

    def say(self, words: str, height: float, **looks: Any) -> None:
        """A line over the whole width, ``height`` inches high."""
        self._used += height
        self.figure.text(0.02, 1 - (self._used - height / 2) / self._height, words, va="center", **looks)

    def panels(self, height: float, widths: Sequence[tuple[float, float]] = ((LEFT, WIDTH - RIGHT),)) -> list[Axes]:
        """Axes side by side, from and to so many inches from the left. They fill ``height`` inches."""
        self._used += height
        bottom = 1 - self._used / self._height
        return [self.figure.add_axes((begin / WIDTH, bottom, (end - begin) / WIDTH, height / self._height))
                for begin, end in widths]  # fmt: skip


def span_axis(axes: Axes, spans: Iterable[float]) -> None:
    """A logarithmic x axis for times in ns: whole decades, not more labels than there is room for."""
    found = [max(span, 1.0) for span in spans if math.isfinite(span)]
    low = math.floor(math.log10(0.9 * min(found, default=1e6)))     # nothing lies on an edge
    high = math.ceil(math.log10(1.1 * max(found, default=1e6)))
    axes.set_xscale("log")
    axes.set_xlim(10.0**low, 10.0**high)
    every = math.ceil((high - low) / 5)
    places = [10.0**power for power in range(low, high + 1, every)]
    axes.set_xticks(places, [duration(place) for place in places])
    axes.set_xticks([factor * 10.0**power for power in range(low, high) for factor in range(2, 10)], minor=True)
    axes.xaxis.set_minor_formatter(lambda value, place: "")
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
