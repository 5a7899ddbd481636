"""Curves of the report: how latencies are distributed, and what grows with depth or with the number of VMs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from bench.machines import Configuration
from bench.report.drawing import (
    Picture,
    add_legend,
    inline,
    legend_height,
    log_axis,
    log_ticks,
    look,
    named,
    room,
    sheet,
)
from bench.report.stored import Group, Interval, Row, Run, finite, listed
from bench.statistics import median_interval
from bench.table import number
from vmbus_emu.client.plot_samples import nines
from vmbus_emu.client.timeline_svg import duration

#: Shares that have a mark and a label.
_SHARES = {0.0: "0 %", 0.5: "50 %", 0.9: "90 %", 0.99: "99 %", 0.999: "99.9 %"}
_PANEL = 170.0


def distributions(groups: Sequence[Group], mark: str) -> Iterator[Picture]:
    """One drawing for each of ``groups`` whose requests' latencies are known."""
    for place, group in enumerate(groups):
        curves = [(row, points) for row in group.rows if (points := quantiles(row))]
        if curves:
            yield _distribution(group, curves, f"{mark}{place}")


def quantiles(row: Row) -> list[tuple[float, float]]:
    """``(share, us)``, as far as there are enough requests to tell: the percentiles of the row say how many."""
    stored = [finite(value) for value in listed(row.document.get("distribution_us"))]
    known = [value for value in stored if value is not None and value > 0]
    if not known or len(known) < len(stored):
        return []
    end = 1.0 if row.figure("p999_us") else 0.99 if row.figure("p99_us") else 0.9
    points = [(place / len(known), us) for place, us in enumerate(known) if place / len(known) <= end]
    last = row.figure("p999_us")
    return points if last is None else [*points, (0.999, last)]


def _distribution(group: Group, curves: Sequence[tuple[Row, list[tuple[float, float]]]], mark: str) -> Picture:
    labels = [named(row.place) for row, _ in curves]
    with sheet(_PANEL, left=46, above=legend_height(labels)) as (figure, axes):
        handles = []
        for row, points in curves:
            marked = [place for place, (share, _) in enumerate(points) if 0 < share in _SHARES]
            handles += axes.plot([us * 1e3 for _, us in points], [nines(share) for share, _ in points],
                                 markevery=marked, **look(row.place).line)  # fmt: skip
        log_axis(axes, "x", [us * 1e3 for _, points in curves for _, us in points], duration)
        top = max(share for _, points in curves for share, _ in points)
        told = {share: label for share, label in _SHARES.items() if share <= top}
        axes.set_ylim(0, nines(top) * 1.05)
        axes.set_yticks([nines(share) for share in told], list(told.values()))
        axes.grid(axis="y")
        axes.set_xlabel("latency")
        add_legend(figure, handles, labels)
        middles = ", ".join(f"{row.place.name} {duration(us * 1e3)}" for row in group.measured
                            if (us := row.figure("p50_us")))  # fmt: skip
        return Picture(inline(figure, mark, f"Latencies: {group.title}", f"Medians: {middles}."), group.title)


# -- what grows ---------------------------------------------------------------------------------------------------


class Point(NamedTuple):
    at: float
    value: float
    interval: Interval | None


#: A line each.
Lines = Mapping[Configuration, Sequence[Point]]


def depths(run: Run, mark: str) -> Iterator[Picture]:
    """Throughput against the requests under way, of each job that was measured at several depths."""
    def kind(group: Group) -> tuple[str, int, float]:
        return group.job, group.size, group.rate

    for place, (_, some) in enumerate(groupby(sorted(run.groups, key=kind), key=kind)):
        groups = sorted(some, key=lambda group: group.depth)
        lines: dict[Configuration, list[Point]] = {}
        for row in (row for group in groups for row in group.rows):
            value = row.figure("ops_per_s")
            if value:
                interval = median_interval(row.column("ops_per_s"))
                lines.setdefault(row.place, []).append(Point(row.depth, value, interval))
        if len({point.at for points in lines.values() for point in points}) > 1:
            title = groups[0].title.partition(", depth")[0]
            yield _growth(lines, f"{mark}{place}", title, "requests under way", "requests per second", _many)


def growth(rows: Sequence[Row], figures: Mapping[str, tuple[str, str, float]], mark: str) -> Iterator[Picture]:
    """One drawing per figure of ``rows``, against the number of VMs. ``figures``: title, kind (a key of
    :data:`KINDS`) and by how much the stored value is to be multiplied."""
    for place, (name, (title, kind, factor)) in enumerate(figures.items()):
        lines: dict[Configuration, list[Point]] = {}
        for row in sorted(rows, key=lambda row: row.vms):
            value, within = row.figure(name), row.interval(name)
            if value and row.vms:
                interval = None if within is None else (within[0] * factor, within[1] * factor)
                lines.setdefault(row.place, []).append(Point(row.vms, value * factor, interval))
        if lines:
            yield _growth(lines, f"{mark}{place}", title, "VMs", *KINDS[kind])


def _many(value: float) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


#: Name of the axis, and a value on it. Times in ns, memory in MiB.
KINDS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "rate": ("requests per second", _many), "time": ("", duration), "memory": ("", lambda mib: f"{mib:g} MiB"),
    "percent": ("", lambda percent: f"{percent:g} %"),
}  # fmt: skip


def _growth(
    lines: Lines, mark: str, title: str, across: str, name: str, told: Callable[[float], str]
) -> Picture:
    labels = [named(place) for place in lines]
    points = [point for some in lines.values() for point in some]
    values = [value for point in points for value in (point.value, *(point.interval or ())) if value > 0]
    left = room(told(tick) for tick in log_ticks(values)[2]) + (16 if name else 0)
    with sheet(_PANEL, above=legend_height(labels), left=left) as (figure, axes):
        handles = []
        for place, some in lines.items():
            where, known = [point.at for point in some], [point for point in some if point.interval]
            handles += axes.plot(where, [point.value for point in some], **look(place).line)
            axes.vlines([point.at for point in known], [(point.interval or (0, 0))[0] for point in known],
                        [(point.interval or (0, 0))[1] for point in known], colors=look(place).colour,
                        linewidth=1.2)  # fmt: skip
        log_axis(axes, "y", values, told)
        where = sorted({point.at for point in points})
        axes.set_xscale("log", base=2)
        axes.set_xlim(where[0] / 1.2, where[-1] * 1.2)
        axes.xaxis.set_ticks(_apart(where), [f"{place:g}" for place in _apart(where)])
        axes.xaxis.set_ticks([], minor=True)
        axes.set_xlabel(across)
        axes.set_ylabel(name)
        add_legend(figure, handles, labels)
        ends = ", ".join(f"{place.name} {number(some[-1].value)} at {some[-1].at:g}" for place, some in lines.items())
        return Picture(inline(figure, mark, f"{title} against {across}", f"At the right end: {ends}."), title)


def _apart(places: Sequence[float]) -> list[float]:
    """Those of ascending ``places`` that are far enough from the one before to have a label."""
    chosen = [places[0]]
    span = max(places[-1] / places[0], 1.0001)
    for place in places[1:]:
        if (place / chosen[-1]) >= span ** (1 / 12):
            chosen.append(place)
    return chosen
