"""The upper part of the picture of a run: what was killed when, and how each device of each VM was served meanwhile."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vmbus_emu.client.plot_sheet import BAD, COLOURS, DPI, GRID, KILL, LEFT, RIGHT, SOFT, WIDTH, Sheet, plain
from vmbus_emu.client.timeline_data import Kill, Lane, Run, bin_width
from vmbus_emu.client.timeline_svg import ticks

#: What was killed has a row each; of more, the last row is for the rest.
ROWS = 12
_REST = "others"
_TITLE, _ROW, _LANE, _AXIS = 0.27, 0.22, 0.62, 0.55     # heights, in inches
#: Kills up to which their lines through the lanes are strong, and up to which there are any.
_STRONG, _MOST = 25, 250
#: A silence is hatched if it is so wide, in pixels; if not, filled, and at least so wide.
_HATCHED, _VISIBLE = 5.0, 1.0
#: Steps are no shorter: a load of one request each 5 ms would make stripes.
_STEP_NS = 10_000_000


def height(run: Run, lanes: Sequence[Lane]) -> float:
    """In inches."""
    return _TITLE + _ROW * max(len(_rows(run)), 1) + (_TITLE + _LANE) * len(lanes) + _AXIS


def draw(sheet: Sheet, run: Run, lanes: Sequence[Lane]) -> None:
    """A row of marks for each component that was killed, then ``lanes``, all over the same time."""
    sheet.skip(_TITLE)
    rows = _rows(run)
    (top,) = sheet.panels(_ROW * max(len(rows), 1))
    panels = [top]
    _kills(top, run, rows)
    for lane in lanes:
        sheet.skip(_TITLE)
        (panel,) = sheet.panels(_LANE)
        panels.append(panel)
        _lane(panel, run, lane)
    strong = len(run.kills) <= _STRONG
    for panel in panels:
        panel.set_xlim(0, max(_seconds(run, run.end_ns), 1e-3))
        panel.tick_params(axis="x", bottom=panel is panels[-1], labelbottom=panel is panels[-1])
        for kill in run.kills if len(run.kills) <= _MOST else ():
            panel.axvline(_seconds(run, kill.killed_ns), color=KILL, linestyle=(0, (3, 2)),
                          linewidth=1.1 if strong else 0.7, alpha=0.9 if strong else 0.45, zorder=1.5)  # fmt: skip
    panels[-1].set_xlabel("seconds since the start of the run")
    sheet.skip(_AXIS)


def _seconds(run: Run, moment_ns: float) -> float:
    return (moment_ns - run.begin_ns) / 1e9


def _rows(run: Run) -> list[str]:
    """What was killed, in the order in which it first was."""
    names = list(dict.fromkeys(_row(run, kill) for kill in run.kills))
    return names if len(names) <= ROWS else [*names[: ROWS - 1], _REST]


def _row(run: Run, kill: Kill) -> str:
    """The fault is told if they differ."""
    return kill.component if len({one.fault for one in run.kills}) == 1 else kill.label


def _kills(panel: Axes, run: Run, rows: Sequence[str]) -> None:
    panel.set_title("Kills", loc="left", fontsize=10.5, weight="bold", pad=5)
    places = {label: place for place, label in enumerate(rows)}
    panel.set_ylim(len(rows) - 0.5 if rows else 0.5, -0.5)
    panel.set_yticks(range(len(rows)), [plain(label, 17) for label in rows], fontsize=10)
    panel.tick_params(axis="y", length=0)
    panel.spines["bottom"].set_visible(False)
    if not run.kills:
        panel.text(0.01, 0.5, "nothing was killed", transform=panel.transAxes, va="center", color=SOFT)
    for place in range(len(rows)):
        panel.axhline(place, color=GRID, linewidth=0.8, zorder=1)
    for aside in (False, True):
        some = [kill for kill in run.kills if kill.aside is aside]
        panel.plot([_seconds(run, kill.killed_ns) for kill in some],
                   [places.get(_row(run, kill), len(rows) - 1) for kill in some], linestyle="none", marker="v",
                   color=KILL, markerfacecolor="white" if aside else KILL, clip_on=False,
                   markersize=7 if len(run.kills) <= _STRONG else 4.5)  # fmt: skip
    known = [
        Line2D([], [], color=KILL, marker="v", markersize=7, linestyle=(0, (3, 2)), label="kill"),
        Patch(facecolor="none", edgecolor=KILL, hatch="////", label="silent: nothing was completed"),
    ]
    if any(kill.victims for kill in run.kills):
        known.append(Line2D([], [], color=BAD, marker="X", markersize=8, linestyle="none", label="the VM died"))
    panel.legend(handles=known, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(known), frameon=False,
                 borderaxespad=0.1, fontsize=9.5, handlelength=2.6)  # fmt: skip


def _lane(panel: Axes, run: Run, lane: Lane) -> None:
    """One device of one VM: completions per second, in steps."""
    panel.set_title(f"{plain(lane.vm)} {lane.name}: completions per second", loc="left", fontsize=10.5, pad=4)
    colour = COLOURS[lane.name]
    width_ns = max(bin_width(run.end_ns - run.begin_ns), _STEP_NS)
    count = -(-(run.end_ns - run.begin_ns) // width_ns)
    edges = [_seconds(run, run.begin_ns + place * width_ns) for place in range(count)] + [_seconds(run, run.end_ns)]
    done = lane.bins(run.begin_ns, width_ns, count).done
    # The last step ends with the run, and may be too short to say anything.
    widths = [width_ns / 1e9] * (count - 1) + [max(edges[-1] - edges[-2], width_ns / 1e10)]
    per_second = [number / width for number, width in zip(done, widths, strict=True)]
    panel.stairs(per_second, edges, fill=True, color=colour, alpha=0.3, linewidth=0)
    panel.stairs(per_second, edges, color=colour, linewidth=1.1)
    tick = ticks(max([*per_second, 1.0]), 2)
    most = tick * math.ceil(max([*per_second, 1.0]) / tick - 1e-9)
    panel.set_ylim(0, most)
    panel.set_yticks([0, most], ["0", f"{most:,.0f}"])
    panel.grid(axis="y", color=GRID, linewidth=0.7)
    pixel = _seconds(run, run.end_ns) / ((WIDTH - LEFT - RIGHT) * DPI)
    for begin, end in lane.silences(run.kills, run.end_ns):
        left, right = _seconds(run, begin), _seconds(run, end)
        if right - left >= _HATCHED * pixel:
            panel.axvspan(left, right, facecolor="none", edgecolor=KILL, hatch="////", linewidth=0.6)
        else:
            panel.axvspan(left, max(right, left + _VISIBLE * pixel), color=KILL, alpha=0.6, linewidth=0)
    deaths = [_seconds(run, moment) for kill in run.kills for vm, moment in kill.deaths if vm == lane.vm]
    panel.plot(deaths, [0.5] * len(deaths), transform=panel.get_xaxis_transform(), linestyle="none", marker="X",
               markersize=9, color=BAD, markeredgecolor="white", clip_on=False, zorder=4)  # fmt: skip
    if not lane.completed:
        panel.text(0.01, 0.5, "no request was served", transform=panel.transAxes, va="center", color=SOFT)
