"""A drawing of the report: a matplotlib figure as wide as a phone, and what of it goes into the page.

Needs the extra ``[report]``; matplotlib is loaded when something is drawn. Units are CSS pixels, at the drawing's own
width. What differs in colour differs in marker, fill, dash or hatch, too.
"""

from __future__ import annotations

import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.machines import Configuration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 360.0
SMALL = 10.5            #: size of most letters
LINE = 15.5             #: height of a line of text
BELOW = 36.0            #: height of an axis with its name
_LETTER = 6.4           # about the width of a letter
_TOP = 4.0

#: The colours on white; the page has others for the dark (:data:`bench.report.style.STYLE`).
INK, SOFT, GRID, GROUND = "#151515", "#4a4a4a", "#dcdcdc", "#ffffff"
BLUE, GREEN, ORANGE, RED, VIOLET = "#0072b2", "#00805c", "#b84700", "#b00020", "#7a4e9c"
_VARIABLES = {
    INK: "ink", SOFT: "soft", GRID: "line", GROUND: "ground", BLUE: "disk", GREEN: "network", ORANGE: "kill",
    RED: "bad", VIOLET: "other",
}  # fmt: skip
#: Text with this id has a halo, so that it can be read on whatever it lies.
OVER = "over"
_COLOUR = re.compile("#[0-9a-f]{6}")
_FRACTION = re.compile(r"-?\d+\.\d+")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
_LINK = "{http://www.w3.org/1999/xlink}href"


class Picture(NamedTuple):
    """``svg`` for the page, and what is said above it: ``note`` follows the title."""

    svg: str
    title: str
    note: str = ""


class Look(NamedTuple):
    """How a configuration is drawn, everywhere."""

    colour: str
    marker: str
    filled: bool
    dash: Any

    @property
    def marked(self) -> dict[str, Any]:
        """For a point."""
        return {"color": self.colour, "marker": self.marker, "markersize": 5.5, "markeredgewidth": 1.3,
                "markerfacecolor": self.colour if self.filled else GROUND, "zorder": 3}  # fmt: skip

    @property
    def line(self) -> dict[str, Any]:
        return {"linestyle": self.dash, "linewidth": 1.6, **self.marked}


#: Colour and marker of emulated devices, by their mode; the monolith's are hollow.
_EMULATED: Mapping[str, tuple[str, str]] = {"dma": (ORANGE, "P"), "string": (VIOLET, "p"), "words": (RED, "<")}


def look(place: Configuration) -> Look:
    if place.emulated:
        colour, marker = _EMULATED.get(place.devices, (SOFT, "*"))
        return Look(colour, marker, place.arch != "monolithic", (0, (2, 1)) if place.arch == "monolithic" else "-")
    colour = {"zmq": BLUE, "ring": GREEN}.get(place.transport, INK)
    marker = {"never": "v", "always": "^"}.get(place.poll or "", {"zmq": "s", "ring": "D"}.get(place.transport, "o"))
    apart = place.arch == "disaggregated"
    dashes = {("zmq", False): (0, (5, 1.5)), ("zmq", True): (0, (1.2, 1.4)), ("ring", True): (0, (6, 1.5, 1.2, 1.5))}
    return Look(colour, marker, not apart, dashes.get((place.transport, apart), "-"))


def named(place: Configuration) -> str:
    """Its name, in letters that the font has."""
    from vmbus_emu.client.plot_sheet import plain

    return plain(place.name, 34)


def room(labels: Iterable[str]) -> float:
    """The width that the longest of these takes."""
    return max((len(label) for label in labels), default=0) * _LETTER + 10


@contextmanager
def sheet(panel: float, left: float = 52.0, right: float = 12.0, above: float = 0.0) -> Iterator[tuple[Figure, Axes]]:
    """A drawing with one panel of that height, room to its left and right, and ``above`` for a legend."""
    import matplotlib
    from matplotlib.figure import Figure

    from vmbus_emu.client.plot import looks

    with looks():
        matplotlib.rcParams.update(_SETTINGS)
        height = _TOP + above + panel + BELOW
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        figure.patch.set_visible(False)
        axes = figure.add_axes((left / WIDTH, BELOW / height, (WIDTH - left - right) / WIDTH, panel / height))
        axes.patch.set_visible(False)
        axes.set_axisbelow(True)
        yield figure, axes


_SETTINGS: Any = {        # matplotlib declares its many keys one by one
    "font.size": 11.0, "svg.fonttype": "none", "svg.hashsalt": "bench", "text.color": INK, "hatch.linewidth": 0.9,
    "axes.edgecolor": INK, "axes.labelcolor": SOFT, "axes.labelsize": SMALL, "axes.labelpad": 3.0,
    "xtick.color": INK, "xtick.labelsize": SMALL, "ytick.color": INK, "ytick.labelsize": SMALL,
    "grid.color": GRID, "grid.linewidth": 0.7, "legend.fontsize": SMALL, "legend.frameon": False,
    "legend.borderaxespad": 0.0, "legend.borderpad": 0.0, "legend.handlelength": 2.6, "legend.labelspacing": 0.35,
    "legend.columnspacing": 1.2, "legend.handletextpad": 0.6,
}


def legend_height(labels: Sequence[str]) -> float:
    return LINE * math.ceil(len(labels) / _columns(labels)) + 8 if labels else 0.0


def _columns(labels: Sequence[str]) -> int:
    return max(1, min(len(labels), int((WIDTH - 8) // (room(labels) + 34))))


def add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """At the top, where :func:`legend_height` left room."""
    figure.legend(handles, labels, loc="upper left", ncols=_columns(labels),
                  bbox_to_anchor=(4 / WIDTH, 1 - _TOP / (72 * figure.get_figheight())))  # fmt: skip


def log_ticks(values: Sequence[float], most: int = 6) -> tuple[float, float, list[float]]:
    """``(low, high, places)`` of a logarithmic axis that holds ``values`` (all above 0), with at most so many round
    places."""
    low, high = min(values) / 1.12, max(values) * 1.12
    if high / low < 3:
        low, high = low / 1.4, high * 1.4
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    places: list[float] = []
    for factors, every in (((1, 1.5, 2, 3, 5, 7), 1), ((1, 2, 5), 1), ((1,), 1), ((1,), 2), ((1,), 3), ((1,), 5)):
        places = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
        places = [place for place in places if low <= place <= high]
        if len(places) <= most:
            break
    return low, high, places


def log_axis(axes: Axes, which: str, values: Sequence[float], told: Callable[[float], str], most: int = 6) -> None:
    """Makes one of the axes so: see :func:`log_ticks`."""
    low, high, places = log_ticks(values, most)
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axis.set_ticks(places, [told(place) for place in places])
    axis.set_ticks([], minor=True)
    axes.grid(axis="x" if which == "x" else "y")


# -- into the page ------------------------------------------------------------------------------------------------


def inline(figure: Figure, mark: str, title: str, description: str) -> str:
    """``figure`` as an element of a page. ``mark`` begins its ids: another one for each drawing of a page."""
    from vmbus_emu.client.plot_sheet import plain

    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ET.fromstring(file.getvalue())
    needed = {found for element in root.iter() for found in _referred(element)}
    for element in list(root.iter()):
        for child in list(element):
            if str(child.tag).endswith("}style"):       # it would be in force on the whole page
                element.remove(child)
        element.tag = str(element.tag).rpartition("}")[2]
        element.text, element.tail = (element.text or "").strip() or None, None
        _tidy(element, mark, needed)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": f"{mark}t {mark}d"}
    for place, (tag, words) in enumerate((("title", title), ("desc", description))):
        told = ET.Element(tag, {"id": f"{mark}{tag[0]}"})
        told.text = plain(words, 2000)
        root.insert(place, told)
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)


def _referred(element: ET.Element) -> Iterator[str]:
    for name, value in element.attrib.items():
        yield from _REFERENCE.findall(value)
        if name == _LINK:
            yield value[1:]


def _tidy(element: ET.Element, mark: str, needed: set[str]) -> None:
    """Ids are the page's, colours its variables, and coordinates are as exact as can be seen."""
    old, element.attrib = element.attrib, {}
    for name, value in old.items():
        if name == "id":
            if value in needed:
                element.set("id", mark + value)
            elif value.startswith(OVER):
                element.set("class", OVER)
            continue
        if name in ("fill", "stroke") and value in _VARIABLES:      # var() belongs into a style
            name, value = "style", f"{name}: {value}"
        value = _REFERENCE.sub(lambda found: f"url(#{mark}{found[1]})", value)
        if name == _LINK:
            name, value = "href", f"#{mark}{value[1:]}"
        elif name == "style":
            parts = [part for part in value.split("; ") if not part.startswith("font-family")]
            value = _COLOUR.sub(lambda found: f"var(--{_VARIABLES[found[0]]})", "; ".join(parts))
        elif name == "d":
            value = " ".join(value.split())
        if name != "style":
            value = _FRACTION.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), value)
        element.set(name, value)
