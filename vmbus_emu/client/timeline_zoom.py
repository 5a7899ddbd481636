"""Drawings of the timeline page: the moments around one kill, with the steps of the recovery and who was served."""

from __future__ import annotations

from vmbus_emu.client.timeline_data import INTERRUPTED, NEVER, NO_LOAD, SILENT, Effect, Kill, Lane, Run
from vmbus_emu.client.timeline_svg import duration, number, text, ticks

#: The first kills are shown, and the worst of the others.
FIRST, WORST = 5, 3
#: Devices in one drawing: those that were silent longest.
LANES = 6
_WIDTH, _LEFT, _RIGHT = 480, 116, 92
_PLOT = _WIDTH - _LEFT - _RIGHT
_TOP, _STEP, _LANE, _AXIS = 16, 20, 22, 36
#: What has no room as it is called elsewhere.
_SHORT = {NEVER: "never again", NO_LOAD: "no load"}
_LEAST_NS, _MOST_NS = 10_000_000, 2_000_000_000


def chosen(run: Run) -> list[tuple[Kill, bool]]:
    """The kills that get a drawing, in the order of time, and whether each is among the worst."""
    worst = sorted(run.kills, key=lambda kill: _badness(run, kill), reverse=True)[:WORST]
    shown = sorted({*range(1, FIRST + 1), *(kill.number for kill in worst)})
    return [(run.kills[n - 1], run.kills[n - 1] in worst and len(run.kills) > WORST)
            for n in shown if n <= len(run.kills)]  # fmt: skip


def _badness(run: Run, kill: Kill) -> tuple[float, int, float]:
    """Never served again is worse than dead VMs, and these are worse than a long recovery."""
    silences = [lane.effect(kill).silence_ns for lanes in run.lanes.values() for lane in lanes]
    longest = max(silences, default=0.0)
    return float(longest == float("inf")), len(kill.victims), longest


def zoom(run: Run, kill: Kill, mark: str) -> str:
    """The drawing of one kill. ``mark``: what begins its ids."""
    lanes = [(vm, lane, lane.effect(kill)) for vm, lanes in run.lanes.items() for lane in lanes]
    lanes.sort(key=lambda one: one[2].silence_ns, reverse=True)
    hidden = len(lanes) - LANES
    order = {vm: place for place, vm in enumerate(run.lanes)}
    lanes = sorted(lanes[:LANES], key=lambda one: (order[one[0]], one[1].name))
    after = _after(kill, [effect for _, _, effect in lanes])
    before = max(after // 6, 500_000)
    scale = _PLOT / (before + after)
    zero = _LEFT + before * scale
    steps_end = _TOP + _STEP * len(kill.steps)
    bottom = steps_end + 8 + _LANE * len(lanes) + (14 if hidden > 0 else 0)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {bottom + _AXIS}" role="img" aria-labelledby="{mark}t {mark}d">',
        f'<title id="{mark}t">Kill {kill.number}: {text(kill.component)}</title>',
        f'<desc id="{mark}d">{text(_described(kill, lanes))}</desc>',
        _axis(before, after, scale, zero, bottom),
    ]
    for place, (name, begin, end) in enumerate(kill.steps):
        parts.append(_step(name, begin, end, kill.killed_ns, _TOP + place * _STEP, zero, scale))
    parts.append(f'<path class="rule" d="M0 {steps_end + 3}H{_WIDTH}"/>')
    for place, (vm, lane, effect) in enumerate(lanes):
        y = steps_end + 8 + place * _LANE
        parts.append(_lane(vm, lane, effect, y, (kill.killed_ns - before, kill.killed_ns + after), scale))
    if hidden > 0:
        parts.append(f'<text x="0" y="{bottom - 3}">and {hidden} more devices, silent for less long</text>')
    parts.append(f'<g class="kill"><path d="M{number(zero)} 10V{bottom}"/>'
                 f'<path class="tip" d="M{number(zero - 4.5)} 3h9l-4.5 8z"/></g></svg>')
    return "\n".join(parts)


def _after(kill: Kill, effects: list[Effect]) -> int:
    """How much of the time after the kill is shown, in ns: all that it led to, and a little more."""
    ends = [end - kill.killed_ns for _, _, end in kill.steps if end]
    ends += [effect.end_ns - kill.killed_ns for effect in effects if effect.what in SILENT and effect.end_ns]
    if any(effect.what in SILENT and effect.end_ns is None for effect in effects):
        ends.append(max([*ends, 0]) * 2 or 100_000_000)
    return min(max(int(max([*ends, 0]) * 1.15), _LEAST_NS), _MOST_NS)


def _described(kill: Kill, lanes: list[tuple[str, Lane, Effect]]) -> str:
    """The drawing in words."""
    words = [f"{name} took {duration(end - begin)}" if begin and end else f"{name} did not happen"
             for name, begin, end in kill.steps]  # fmt: skip
    words += [f"{vm} {lane.name}: {told(effect)}" for vm, lane, effect in lanes]
    return "; ".join(words) + "."


def told(effect: Effect) -> str:
    """An effect in words."""
    return f"silent for {duration(effect.silence_ns)}" if effect.what == INTERRUPTED else effect.what


def _axis(before: int, after: int, scale: float, zero: float, bottom: float) -> str:
    step = ticks((before + after) / 1e6, 5)
    parts = ['<g class="axis">']
    for index in range(-int(before / 1e6 / step), int(after / 1e6 / step) + 1):
        x = number(zero + index * step * 1e6 * scale)
        parts.append(f'<path class="grid" d="M{x} {_TOP - 4}V{bottom}"/>'
                     f'<text class="m" x="{x}" y="{bottom + 15}">{index * step:g}</text>')
    parts.append(f'<text class="m" x="{number(_LEFT + _PLOT / 2)}" y="{bottom + 31}">ms from the kill</text></g>')
    return "".join(parts)


def _step(name: str, begin: int | None, end: int | None, kill: int, y: float, zero: float, scale: float) -> str:
    """One step of the recovery: its name, when it was, how long it took."""
    kind = "whole" if name == "first reply" else "step"
    parts = [f'<text x="0" y="{y + 12}">{name}</text>']
    took = "–"
    if begin and end:
        left, right = (min(zero + (moment - kill) * scale, _LEFT + _PLOT) for moment in (begin, end))
        parts.append(f'<rect class="{kind}" x="{number(left)}" y="{y + 3}" '
                     f'width="{number(max(1.5, right - left))}" height="10"/>')
        took = duration(end - begin)
    parts.append(f'<text class="e" x="{_WIDTH}" y="{y + 12}">{took}</text>')
    return "".join(parts)


def _lane(vm: str, lane: Lane, effect: Effect, y: float, window: tuple[int, int], scale: float) -> str:
    """One device: a stroke for each completion, and its silence."""
    begin, end = window
    name = vm if len(vm) <= 8 else vm[:7] + "…"
    parts = [f'<g class="{lane.name}"><text x="0" y="{y + 14}">{text(name)} {lane.name}</text>']
    if effect.what in SILENT:
        left, right = max(effect.begin_ns, begin), min(effect.end_ns or end, end)
        parts.append(f'<rect class="silent" x="{number(_LEFT + (left - begin) * scale)}" y="{y + 2}" '
                     f'width="{number(max(1.5, (right - left) * scale))}" height="16"/>')
    places = sorted({round((moment - begin) * scale) for moment in lane.between(begin, end)})
    parts.append(f'<path class="tick" d="{"".join(f"M{_LEFT + place} {y + 4}v12" for place in places)}"/>')
    said = duration(effect.silence_ns) if effect.what == INTERRUPTED else _SHORT.get(effect.what, effect.what)
    parts.append(f'<text class="e" x="{_WIDTH}" y="{y + 14}">{said}</text></g>')
    return "".join(parts)
