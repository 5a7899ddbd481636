"""Bars and rows of the report: ratios with their intervals, bare mechanisms, processor time by process, single
requests taken apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.report.drawing import (
    BLUE,
    GREEN,
    GROUND,
    INK,
    LINE,
    ORANGE,
    OVER,
    RED,
    SMALL,
    SOFT,
    VIOLET,
    WIDTH,
    Look,
    Picture,
    add_legend,
    inline,
    legend_height,
    log_axis,
    look,
    named,
    room,
    sheet,
)
from bench.report.sentence import few
from bench.report.stored import Group, Row, Run, finite, process_of, rows, text
from bench.table import number
from vmbus_emu.client.timeline_svg import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Shares of the longest bar that a process must have somewhere to be shown apart from the rest.
_LEAST = 0.02
_REST = "others"
_HOLLOW = "hollow"      # neither hatched nor filled: filled, it looks like another's colour in grey
#: How each process is drawn: colour and hatch, of lines: each dot would be a path of its own.
_PROCESSES: Mapping[str, tuple[str, str]] = {
    "vm1": (BLUE, ""), "vm2": (BLUE, "----"), "parent": (ORANGE, "////"), "storvsp": (GREEN, "\\\\\\\\"),
    "netvsp": (VIOLET, "xxxx"), "monolith": (INK, "++"), "hypervisor": (RED, "||||"), "machine": (SOFT, "----"),
    "management": (SOFT, "++"), _REST: (SOFT, _HOLLOW),
}  # fmt: skip
_MORE = ((VIOLET, "--"), (GREEN, "||||"), (RED, "////"), (ORANGE, "----"))
#: A place for the mechanisms that no configuration is: a cross.
_BARE = Look(SOFT, "X", True, "-")


def ratios(run: Run, groups: Sequence[Group], mark: str) -> Iterator[Picture]:
    """How many times as long as the first configuration each takes, of all ``groups``: the first is the line at 1."""
    found = [(group, told) for group in groups
             if (told := [(row, times) for row in group.rows if (times := run.times(group, row))])]  # fmt: skip
    if not found:
        return
    first = named(found[0][0].rows[0].place)
    points, heads, place = [], [], 0.0
    for group, told in found:
        heads.append((place, group.title))
        for row, times in told:
            place += 1
            inside = "" if times.significant or few(group) else " n. s."
            points.append((place, named(row.place), times.value, times.interval, look(row.place),
                           f"{number(times.value)}{inside}"))  # fmt: skip
        place += 1.4
    spoken = "; ".join(
        f"{group.title}: " + ", ".join(f"{named(row.place)} {number(times.value)}" for row, times in told)
        for group, told in found
    )
    title = f"Median latency, in units of the {first} one's"
    svg = _rows(points, heads, mark, title, spoken, f"times the {first} one's (logarithmic)", "{:g}".format, 1.0)
    yield Picture(svg, title, "Lines are 95 % intervals; n. s.: not significant.")


def mechanisms(run: Run, mark: str) -> Iterator[Picture]:
    """Round trips of the baselines, and null requests beside them."""
    null = next((group for group in run.groups if group.job == "null" and group.depth == 1 and group.measured), None)
    kinds: list[tuple[str, list[tuple[str, Row, Look]]]] = [
        ("round trip of 64 bytes by", [(text(row.document, "baseline"), row, _BARE) for row in run.baselines]),
        ("null request", [(named(row.place), row, look(row.place)) for row in (null.rows if null else ())]),
    ]
    points, heads, place = [], [], 0.0
    for head, some in kinds:
        known = sorted(((row.figure("p50_us") or 0.0, label, row, looks) for label, row, looks in some
                        if row.figure("p50_us")), key=lambda one: one[0])  # fmt: skip
        if known:
            heads.append((place, head))
        for us, label, row, looks in known:
            place += 1
            within = row.interval("p50_us")
            ends = None if within is None else (within[0] * 1e3, within[1] * 1e3)
            points.append((place, label, us * 1e3, ends, looks, duration(us * 1e3)))
        place += 1.4 * bool(known)
    if run.baselines and points:
        title = "Bare mechanisms, and what a null request takes"
        spoken = ", ".join(f"{label} {told}" for _, label, *_, told in points)
        yield Picture(_rows(points, heads, mark, title, spoken, "median latency (logarithmic)", duration), title,
                      "Lines are 95 % intervals.")  # fmt: skip


def _rows(
    points: Sequence[tuple[float, str, float, Any, Look, str]], heads: Sequence[tuple[float, str]], mark: str,
    title: str, spoken: str, name: str, told: Any, line_at: float | None = None,
) -> str:
    """Points with intervals on a logarithmic axis. Rows count down from 0; ``heads`` have one of their own."""
    last = max(place for place, *_ in points)
    with sheet((last + 1.2) * LINE, left=room(label for _, label, *_ in points), right=8) as (figure, axes):
        values = [value for _, _, middle, ends, *_ in points for value in (middle, *(ends or ())) if value > 0]
        for place, _, middle, ends, looks, words in points:
            if ends:
                axes.plot(ends, [place, place], color=looks.colour, linewidth=1.6, solid_capstyle="butt")
            axes.plot([middle], [place], linestyle="none", **looks.marked)
            end = axes.annotate(words, (max(ends[1] if ends else middle, middle), place), xytext=(7, 0), va="center",
                                textcoords="offset points", fontsize=SMALL)  # fmt: skip
            end.set_gid(OVER)
        log_axis(axes, "x", [*values, *([line_at] if line_at else [])], told, most=5)
        low, high = axes.get_xlim()
        axes.set_xlim(low, high * (high / low) ** 0.28)      # the last label needs room
        if line_at:
            axes.axvline(line_at, color=INK, linewidth=1.2)
        axes.set_ylim(last + 0.7, -0.5)
        axes.set_yticks([place for place, *_ in points], [_plain(label) for _, label, *_ in points])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        for place, head in heads:
            heading = axes.annotate(_plain(head, 60), (4 / WIDTH, place), xycoords=("figure fraction", "data"),
                                    weight="bold", va="center", annotation_clip=False)  # fmt: skip
            heading.set_gid(OVER)
        axes.set_xlabel(name, loc="right")
        return inline(figure, mark, title, spoken)


# -- bars ---------------------------------------------------------------------------------------------------------


def processor_time(groups: Sequence[Group], mark: str) -> Iterator[Picture]:
    """One drawing per group: whose processor time a request takes."""
    for place, group in enumerate(groups):
        stacks = [(row, shares) for row in group.rows if (shares := row.shares())]
        if stacks:
            yield _stacks(group, stacks, f"{mark}{place}")


def _stacks(group: Group, stacks: Sequence[tuple[Row, dict[str, float]]], mark: str) -> Picture:
    whole = max(sum(shares.values()) for _, shares in stacks)
    own = [name for name in dict.fromkeys(name for _, shares in stacks for name in shares)
           if any(shares.get(name, 0) >= _LEAST * sum(shares.values()) for _, shares in stacks)]  # fmt: skip
    own.sort(key=lambda name: list(_PROCESSES).index(name) if name in _PROCESSES else len(_PROCESSES))
    names = [*own, *([_REST] if any(set(shares) - set(own) for _, shares in stacks) else [])]
    looks, labels = _hatched(names), [named(row.place) for row, _ in stacks]
    handles: dict[str, Any] = {}
    with sheet(26.0 * len(stacks), left=room(labels), right=50, above=legend_height(names)) as (figure, axes):
        for at, (row, shares) in enumerate(stacks):
            begin = 0.0
            for name in names:
                us = shares.get(name, 0.0) if name != _REST else sum(shares[one] for one in set(shares) - set(own))
                if us:
                    handles[name] = _bar(axes, at, begin, us, looks[name])
                begin += us
            whole_us = row.figure("cpu_us_per_op") or begin
            axes.annotate(duration(whole_us * 1e3), (begin, at), xytext=(5, 0), textcoords="offset points", va="center",
                          annotation_clip=False, fontsize=SMALL)  # fmt: skip
        _bar_axes(axes, whole, labels)
        axes.set_xlabel("CPU time per request, of all processes", loc="right")
        add_legend(figure, [handles[name] for name in names], [_plain(name) for name in names])
        spoken = "; ".join(f"{label}: " + ", ".join(f"{name} {duration(us * 1e3)}" for name, us in shares.items())
                           for label, (_, shares) in zip(labels, stacks, strict=True))  # fmt: skip
        return Picture(inline(figure, mark, f"CPU time: {group.title}", spoken), group.title)


def waterfalls(run: Run, mark: str) -> Iterator[Picture]:
    """One drawing per request that was taken apart: its segments where they lie in time."""
    for place, row in enumerate(run.waterfalls):
        found = segments(row)
        if found:
            yield _waterfall(row, found, f"{mark}{place}")


def segments(row: Row) -> list[tuple[str, str, float, float]]:
    """``(name, process, start us, us)`` of a waterfall."""
    found = []
    for one in rows(row.document, "segments"):
        begin, us = finite(one.get("start_us")), finite(one.get("us"))
        if begin is not None and us is not None:
            found.append((text(one, "name"), process_of(row.place, text(one, "process")), begin, us))
    return found


def _waterfall(row: Row, found: Sequence[tuple[str, str, float, float]], mark: str) -> Picture:
    whole = max([row.figure("total_us") or 0.0, *(begin + us for _, _, begin, us in found), 1e-9])
    looks = _hatched(list(dict.fromkeys(process for _, process, _, _ in found)))
    labels = [_plain(name, 26) for name, *_ in found]
    with sheet(20.0 * len(found), left=room(labels), right=14, above=legend_height(list(looks))) as (figure, axes):
        handles = {}
        for at, (_, process, begin, us) in enumerate(found):
            handles[process] = _bar(axes, at, begin, us, looks[process])
            before = begin > whole - begin - us      # on the side that has more room
            words = axes.annotate(
                duration(us * 1e3), (begin if before else begin + us, at), va="center",
                xytext=(-5 if before else 5, 0), textcoords="offset points", ha="right" if before else "left",
                fontsize=SMALL,
            )  # fmt: skip
            words.set_gid(OVER)
        add_legend(figure, list(handles.values()), [_plain(process) for process in handles])
        _bar_axes(axes, whole, labels)
        axes.set_xlabel("time since the request was made", loc="right")
        title = f"{text(row.document, 'job')}, {named(row.place)}"
        spoken = "; ".join(f"{name} in {process}: {duration(us * 1e3)}" for name, process, _, us in found)
        return Picture(inline(figure, mark, f"One request: {title}", spoken), title, _spent(row))


def _spent(row: Row) -> str:
    times = {"as a whole": row.figure("total_us"), "median of such requests traced": row.figure("traced_p50_us"),
             "untraced": row.figure("untraced_p50_us")}  # fmt: skip
    return "; ".join(f"{words} {duration(us * 1e3)}" for words, us in times.items() if us is not None)


def _bar(axes: Axes, at: float, begin: float, us: float, looks: tuple[str, str]) -> Any:
    """One with a hatch is not filled: so it can be told in grey, too."""
    colour, hatch = looks
    return axes.barh(at, us, left=begin, height=0.66, facecolor=GROUND if hatch else colour, edgecolor=colour,
                     hatch=None if hatch in ("", _HOLLOW) else hatch, linewidth=0.9)  # fmt: skip


def _bar_axes(axes: Axes, whole: float, labels: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, whole * 1.02)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), list(labels))
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda us, place: duration(us * 1e3) if us else "0")
    axes.grid(axis="x")


def _hatched(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    others = [name for name in names if name not in _PROCESSES]
    return {name: _PROCESSES.get(name) or _MORE[others.index(name) % len(_MORE)] for name in names}


def _plain(words: str, most: int = 34) -> str:
    from vmbus_emu.client.plot_sheet import plain

    return plain(words, most)
