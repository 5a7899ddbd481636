"""Drawings of the timeline page: a VM's service over a run.

Colours and fonts are the page's classes (:mod:`vmbus_emu.client.timeline_style`), so one drawing serves light, dark
and paper. What differs in colour differs in place, dash or hatch, too.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence

from vmbus_emu.client.timeline_data import INTERRUPTED, SILENT, Bins, Lane, Run, bin_width

_WIDTH, _LEFT, _RIGHT = 1000, 66, 10
_PLOT = _WIDTH - _LEFT - _RIGHT
_FLAGS = 26                     # height of the kills' labels
_TITLE, _SERVICE, _BETWEEN, _LATENCY, _AFTER = 20, 72, 12, 128, 16
_LANE = _TITLE + _SERVICE + _BETWEEN + _LATENCY + _AFTER
_AXIS = 36
_LETTER = 7.0                   # about the width of a letter of a flag
_MANY = 25                      # kills whose lines would hide what is behind them
_UNPRINTABLE = re.compile("[^\t\n -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text(value: object) -> str:
    """``value`` for HTML, XML and UTF-8, whatever is in it."""
    return html.escape(_UNPRINTABLE.sub("\ufffd", str(value)))


def duration(ns: float) -> str:
    """For people: three digits at most."""
    for unit, name in ((1, "ns"), (1e3, "µs"), (1e6, "ms")):
        if ns < 999.5 * unit:
            return f"{ns / unit:.2g} {name}" if ns < 9.95 * unit else f"{ns / unit:.0f} {name}"
    return f"{ns / 1e9:.3g} s" if ns < 999.5e9 else f"{ns / 1e9:.0f} s"


def number(value: float) -> str:
    """A coordinate: to a tenth."""
    return f"{round(value, 1):g}" if abs(value) < 1e5 else f"{value:.0f}"


def ticks(span: float, most: int) -> float:
    """A round step that divides ``span`` in at most ``most``."""
    step = 10.0 ** math.floor(math.log10(span / most)) if span > 0 else 1.0
    return next((step * factor for factor in (1, 2, 5) if step * factor * most >= span * 0.999), step * 10)


def vm_chart(run: Run, vm: str, mark: str) -> str:
    """The service of one VM. ``mark``: what begins this drawing's ids."""
    lanes = run.lanes[vm]
    width_ns = bin_width(run.end_ns - run.begin_ns)
    count = -(-(run.end_ns - run.begin_ns) // width_ns)
    scale = _PLOT / (run.end_ns - run.begin_ns)
    height = _FLAGS + _LANE * len(lanes) + _AXIS
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="{mark}t {mark}d">',
        f'<title id="{mark}t">Service of {text(vm)}</title>',
        f'<desc id="{mark}d">{text(_described(run, vm))}</desc>',
        _time_axis(run, height - _AXIS, scale),
        *_flags(run, vm, height - _AXIS, scale),
    ]
    for place, lane in enumerate(lanes):
        top = _FLAGS + place * _LANE + _TITLE
        parts += [
            f'<g class="{lane.name}">',
            _service(lane, lane.bins(run.begin_ns, width_ns, count), top, width_ns, width_ns * scale),
            *_shades(run, lane, top, scale),
            "</g>",
        ]
    return "\n".join([*parts, "</svg>"])


def _described(run: Run, vm: str) -> str:
    """The drawing in words."""
    words = [f"{duration(run.end_ns - run.begin_ns)} of load, {len(run.kills)} kills."]
    for lane in run.lanes[vm]:
        effects = [lane.effect(kill) for kill in run.kills]
        hit = [effect for effect in effects if effect.what == INTERRUPTED]
        ends = [effect for effect in effects if effect.what in SILENT]
        words.append(f"The {lane.name} completed {len(lane.completed)} requests. Interruptions: {len(hit)}"
                     + (f", for at most {duration(max(effect.silence_ns for effect in hit))}" if hit else "")
                     + ("; in the end, for good." if any(effect.end_ns is None for effect in ends) else "."))
    return " ".join(words)


def _time_axis(run: Run, bottom: float, scale: float) -> str:
    span = (run.end_ns - run.begin_ns) / 1e9
    step = ticks(span, 12)
    parts = ['<g class="axis">']
    for index in range(int(span / step + 1e-9) + 1):
        x = number(_LEFT + index * step * 1e9 * scale)
        parts.append(f'<path class="grid" d="M{x} {_FLAGS}V{bottom}"/>'
                     f'<text class="m" x="{x}" y="{bottom + 16}">{index * step:g}</text>')
    parts.append(f'<text class="e" x="{_WIDTH - _RIGHT}" y="{bottom + 32}">seconds since the start</text></g>')
    return "".join(parts)


def _service(lane: Lane, bins: Bins, top: float, width_ns: int, step: float) -> str:
    """Both panels of one device."""
    per_second = [done * 1e9 / width_ns for done in bins.done]
    # The last bin ends with the run.
    rest = _PLOT / step - len(per_second) + 1
    per_second[-1] /= max(rest, 0.1)
    tick = ticks(max([*per_second, 1.0]), 2)
    most = tick * math.ceil(max([*per_second, 1.0]) / tick - 1e-9)
    bottom = top + _SERVICE
    parts = [f'<text class="h over" x="{_LEFT}" y="{top - 7}">{lane.name}: completions per second</text>']
    for index in range(round(most / tick) + 1):
        parts.append(_level(bottom - _SERVICE * index * tick / most, f"{index * tick:g}"))
    heights = [bottom - _SERVICE * value / most for value in per_second]
    parts.append(f'<path class="done" d="M{_LEFT} {bottom}{_steps(heights, step)}V{bottom}Z"/>')
    return "".join(parts) + _latencies(lane, bins, bottom + _BETWEEN, step)


def _level(y: float, label: str) -> str:
    return (f'<path class="grid" d="M{_LEFT} {number(y)}H{_WIDTH - _RIGHT}"/>'
            f'<text class="e" x="{_LEFT - 7}" y="{number(y + 4)}">{label}</text>')


def _latencies(lane: Lane, bins: Bins, top: float, step: float) -> str:
    both = [spread for spread in (*bins.corrected, *bins.uncorrected) if spread]
    if not both:
        return f'<text x="{_LEFT + 8}" y="{top + 40}">no request was served</text>'
    low = math.floor(math.log10(max(1, min(spread[0] for spread in both))))
    high = max(low + 1, math.ceil(math.log10(max(2, *(spread[1] for spread in both)))))
    decade = _LATENCY / (high - low)

    def y(ns: float) -> float:
        return top + _LATENCY - (math.log10(max(ns, 10.0**low)) - low) * decade

    # A label each 20 px at most, whatever the range.
    every = math.ceil(20 / decade)
    parts = [_level(y(10.0**power), duration(10.0**power)) for power in range(low, high + 1, every)]
    for first, run in _pieces(bins.corrected):
        x = _LEFT + first * step
        upper, lower = [y(most) for _, most in run], [y(half) for half, _ in run]
        back = _steps(lower[::-1], -step, x + len(run) * step)
        parts.append(f'<path class="band" d="M{number(x)} {number(upper[0])}{_steps(upper, step, x)}{back}Z"/>')
    for kind, index, spreads in (
        ("corrected", 1, bins.corrected), ("corrected", 0, bins.corrected),
        ("uncorrected", 1, bins.uncorrected), ("uncorrected half", 0, bins.uncorrected),
    ):  # fmt: skip
        path = "".join(
            f"M{number(_LEFT + first * step)} {number(y(run[0][index]))}"
            + _steps([y(spread[index]) for spread in run], step, _LEFT + first * step)
            for first, run in _pieces(spreads)
        )
        parts.append(f'<path class="{kind}" d="{path}"/>')
    crosses = [_LEFT + (place + 0.5) * step for place, unserved in enumerate(bins.unserved) if unserved]
    if crosses:
        path = "".join(f"M{number(x - 3)} {number(top + 2)}l6 6m0-6l-6 6" for x in crosses)
        parts.append(f'<path class="unserved" d="{path}"/>')
    parts.append(f'<text class="h over" x="{_LEFT + 6}" y="{top + 14}">latency</text>')
    return "".join(parts)


def _pieces(spreads: Sequence[tuple[int, int] | None]) -> Iterable[tuple[int, list[tuple[int, int]]]]:
    """Runs of bins that have something: the first one's index, and what they have."""
    piece: list[tuple[int, int]] = []
    for index, spread in enumerate([*spreads, None]):
        if spread:
            piece.append(spread)
        elif piece:
            yield index - len(piece), piece
            piece = []


def _steps(heights: Sequence[float], step: float, x: float = _LEFT) -> str:
    """A path through ``heights``, each ``step`` wide, from ``x`` on."""
    parts: list[str] = []
    last = ""
    for index, height in enumerate(heights, 1):
        y = number(height)
        if y == last:
            parts.pop()
        else:
            parts.append(f"V{y}")
            last = y
        parts.append(f"H{number(min(x + index * step, _LEFT + _PLOT))}")
    return "".join(parts)


def _shades(run: Run, lane: Lane, top: float, scale: float) -> list[str]:
    """What is hatched: the device was silent."""
    return [
        f'<rect class="silent" x="{number(_LEFT + (begin - run.begin_ns) * scale)}" y="{number(top)}" '
        f'width="{number(max(1.5, (end - begin) * scale))}" height="{_SERVICE + _BETWEEN + _LATENCY}">'
        f"<title>{lane.name} silent for {duration(end - begin)}</title></rect>"
        for begin, end in lane.silences(run.kills, run.end_ns)
    ]


def _flags(run: Run, vm: str, bottom: float, scale: float) -> list[str]:
    """The kills: a line through everything, with a number, and the component's name where there is room for it."""
    parts = [f'<g class="kill{" many" if len(run.kills) > _MANY else ""}">']
    places = [_LEFT + (kill.killed_ns - run.begin_ns) * scale for kill in run.kills]
    free = 0.0
    for kill, x, after in zip(run.kills, places, [*places, float(_WIDTH + 40)][1:], strict=True):
        label = f"{kill.number} {kill.component}"
        if vm in kill.victims:
            label += f": {vm} died"
        title = f"kill {kill.number}: {kill.component} at {(kill.killed_ns - run.begin_ns) / 1e9:.2f} s"
        parts.append(f'<g><title>{text(title)}</title><path d="M{number(x)} 20V{bottom}"/>'
                     f'<path class="tip" d="M{number(x - 4.5)} 13h9l-4.5 8z"/>')
        for words in (label, str(kill.number)):
            wide = len(words) * _LETTER + 4
            begin = min(x - 4, _WIDTH - wide)
            if begin >= free and (begin + wide < after - 4 or words != label):
                parts.append(f'<text x="{number(begin)}" y="10">{text(words)}</text>')
                free = begin + wide
                break
        parts.append("</g>")
    return [*parts, "</g>"]
