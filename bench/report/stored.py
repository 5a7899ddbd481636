"""A stored run as the report reads it: whatever is missing, null or of another type is not there, and nothing else is
made up.

Figures keep the units that docs/benchmarks.md gives them.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.machines import MODES, SYNTHETIC, Configuration
from bench.table import job_title

Document = Mapping[str, Any]
Interval = tuple[float, float]

_TRANSPORTS = {"zmq": "over ZeroMQ", "ring": "over rings"}
_WAITS = {"never": " that sleep", "always": " that always look"}
_ARCHS = {"monolithic": "in the monolith", "microkernel": "in the microkernel"}


class Row:
    """One row of the document: what was measured where. ``interval_`` before a figure's name is its interval's."""

    def __init__(self, document: Document) -> None:
        self.document = document
        arch, transport, poll = (text(document, name) for name in ("arch", "transport", "poll"))
        self.place = Configuration(arch, transport, poll or None, text(document, "devices") or SYNTHETIC)

    def figure(self, name: str) -> float | None:
        return finite(self.document.get(name))

    def interval(self, name: str) -> Interval | None:
        return ends(self.document.get(f"interval_{name}"))

    def column(self, name: str) -> list[float]:
        """One figure of each sample set."""
        sets = mapped(self.document.get("sets"))
        return [value for value in map(finite, listed(sets.get(name))) if value is not None]

    def shares(self) -> dict[str, float]:
        """CPU us per request by process, the largest first."""
        kept = mapped(self.document.get("cpu_us_by_process")).items()
        found = {process_of(self.place, str(name)): finite(us) for name, us in kept}
        return dict(sorted(((name, us) for name, us in found.items() if us), key=lambda one: -one[1]))

    @property
    def failures(self) -> str:
        """Why sets failed, each reason once."""
        return "; ".join(sorted(set(_words(self.document, "failed"))))

    @property
    def vms(self) -> int:
        return int(self.figure("vms") or 0)

    @property
    def depth(self) -> int:
        return int(self.figure("depth") or 1)


@dataclass(frozen=True, slots=True)
class Times:
    """How many times another figure this one is."""

    value: float
    interval: Interval | None
    significant: bool


class Group(NamedTuple):
    """What is compared with each other: one kind of request, on every configuration that it was asked of."""

    job: str
    size: int
    depth: int
    rate: float
    title: str
    rows: Sequence[Row]

    @property
    def measured(self) -> list[Row]:
        return [row for row in self.rows if row.figure("p50_us")]


class Run:
    """``document``: what ``--json`` keeps. Documents of colleagues and of older versions have less."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.environment = mapped(document.get("environment"))
        self.reasons = _words(document, "reasons")
        self.stable = document.get("stable") is True and not self.reasons
        self.groups = list(_grouped(document))
        self.baselines = [Row(row) for row in rows(document, "baselines")]
        self.scale = [Row(row) for row in rows(document, "scale")]
        self.boot = [Row(row) for row in rows(document, "boot")]
        self.roles = [Row(row) for row in rows(document, "roles")]
        self.waterfalls = [Row(row) for row in rows(document, "waterfalls")]
        self.untraced = _words(document, "untraced")
        self._ratios = rows(document, "ratios")

    def times(self, group: Group, row: Row, metric: str = "p50_us") -> Times | None:
        """``row`` against the first configuration of its group."""
        return next((_times(ratio) for ratio in self._ratios_of(group, row, metric)
                     if "arch" in mapped(ratio.get("to")) and finite(ratio.get("value"))), None)  # fmt: skip

    def bounds(self) -> Iterator[tuple[Group, Row, str, Times]]:
        """What was held against a baseline: the baseline's name, and how many times it this is."""
        for group in self.groups:
            for row in group.rows:
                for ratio in self._ratios_of(group, row, "p50_us"):
                    to = mapped(ratio.get("to")).get("baseline")
                    if to is not None and finite(ratio.get("value")):
                        yield group, row, str(to), _times(ratio)

    def _ratios_of(self, group: Group, row: Row, metric: str) -> Iterator[Document]:
        for ratio in self._ratios:
            kind = (text(ratio, "job"), int(finite(ratio.get("size")) or 0), int(finite(ratio.get("depth")) or 1))
            of = Row(mapped(ratio.get("of"))).place
            if kind == group[:3] and of == row.place and ratio.get("metric") == metric:
                yield ratio

    @property
    def again(self) -> str:
        """The command that makes the same run once more."""
        words = _words(self.document, "command") or ["vmbus-emu", "bench"]
        seed = self.document.get("seed")
        told = any(word.partition("=")[0] == "--seed" for word in words)
        return shlex.join(words if told or seed is None else [*words, "--seed", str(seed)])


def _grouped(document: Document) -> Iterator[Group]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in map(Row, rows(document, "results")):
        size, rate = int(row.figure("size") or 0), row.figure("rate") or 0.0
        found.setdefault((text(row.document, "job"), size, row.depth, rate, row.vms), []).append(row)
    for (job, size, depth, rate, _), some in found.items():
        yield Group(job, size, depth, rate, job_title(job, size, depth, rate), some)


def times_of(ratio: Document) -> Times | None:
    """A stored ratio; ``None``: there is none."""
    return None if finite(ratio.get("value")) is None else _times(ratio)


def _times(ratio: Document) -> Times:
    return Times(finite(ratio.get("value")) or 0.0, ends(ratio.get("interval")), ratio.get("significant") is True)


# -- values of any type -------------------------------------------------------------------------------------------


def finite(value: object) -> float | None:
    """``value`` if it is a number."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def ends(value: object) -> Interval | None:
    """``value`` if it is an interval."""
    found = [end for end in map(finite, listed(value)) if end is not None]
    return (found[0], found[1]) if len(found) == 2 else None


def mapped(value: object) -> Document:
    return value if isinstance(value, Mapping) else {}


def listed(value: object) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def rows(document: Document, name: str) -> list[Document]:
    return [row for row in listed(document.get(name)) if isinstance(row, Mapping)]


def text(document: Document, name: str) -> str:
    value = document.get(name)
    return "" if value is None else str(value)


def _words(document: Document, name: str) -> list[str]:
    return [str(value) for value in listed(document.get(name)) if value is not None]


# -- words --------------------------------------------------------------------------------------------------------


def carried(place: Configuration) -> str:
    """What carries the messages, as in ``over rings``; of the monolith nothing. Of emulated devices, how disks move
    their data."""
    if place.emulated:
        return f"with IDE by {MODES.get(place.devices, place.devices)}"
    words = _TRANSPORTS.get(place.transport, "")
    return words + _WAITS.get(place.poll or "", "") if words else ""


def process_of(place: Configuration, name: str) -> str:
    """What a process is called: the monolith is kept by the name of its first component."""
    return "monolith" if place.arch == "monolithic" and name == "hypervisor" else name


def located(place: Configuration) -> str:
    """Where that is, as in ``in the microkernel``."""
    return _ARCHS.get(place.arch, place.arch or "somewhere")
