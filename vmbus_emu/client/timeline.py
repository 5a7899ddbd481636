"""A run with kills as a page: one HTML file that needs nothing else, no script, no network.

What is in it comes from the run (the shape of ``vmbus-emu chaos --json``) and is escaped: names may be anybody's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmbus_emu.client.timeline_data import (
    DIED,
    INTERRUPTED,
    NEVER,
    NO_LOAD,
    SILENT_BEFORE,
    WENT_ON,
    Effect,
    Kill,
    Run,
    bin_width,
    read_together,
)
from vmbus_emu.client.timeline_style import HATCH, LEGEND, STYLE
from vmbus_emu.client.timeline_svg import duration, text, vm_chart
from vmbus_emu.client.timeline_words import WRONG, heading, machine, place, plural, verdict
from vmbus_emu.client.timeline_zoom import chosen, told, zoom

#: VMs that get a drawing: of more than these, the ones that it went worst for.
CHARTS = 16
_COUNTS = {
    "attempted": "attempted", "acknowledged": "acknowledged", "lost": "lost", "unexpected": "unexpected",
    "duplicated": "duplicated", "recovered": "recovered", "failed": "failed", "network_lost": "frames lost",
}  # fmt: skip
#: Outcomes of a kill, the worst last, with their class and mark.
_OUTCOMES = {
    NO_LOAD: ("none", "–"), SILENT_BEFORE: ("none", "–"), WENT_ON: ("fine", "✓"), INTERRUPTED: ("hurt", "↻"),
    NEVER: ("never", "✗"), DIED: ("dead", "✗"),
}  # fmt: skip


def page(run: Mapping[str, Any]) -> str:
    """The page of one run. ``ValueError``: a history in it is none."""
    read = Run(run)
    title = heading(read)
    return _document(title, f"<header><h1>{text(title)}</h1>{machine(read)}</header>{_body(read, 'a', 2)}")


def pages(runs: Sequence[Mapping[str, Any]]) -> str:
    """One page of several runs: what the same kills did in each placement, in one table, and then each run."""
    read = read_together(runs)
    places = list(dict.fromkeys(place(run) for run in read))
    title = f"The same kills in {plural(len(places), 'placement')}: who was hit" if read else "No runs"
    parts = [f"<header><h1>{text(title)}</h1></header>"]
    if not read:
        return _document(title, "".join(parts))
    parts += [_matrix(read, places), '<nav aria-label="Runs"><ol>']
    parts += [f'<li><a href="#run{n}">{text(place(run))}</a>: {text(heading(run))}</li>'
              for n, run in enumerate(read, 1)]  # fmt: skip
    parts.append("</ol></nav>")
    for n, run in enumerate(read, 1):
        parts.append(f'<section id="run{n}"><h2>{n}. {text(place(run))}</h2><p><b>{text(heading(run))}</b></p>'
                     f"{machine(run)}{_body(run, f'r{n}', 3)}</section>")
    return _document(title, "".join(parts))


def _document(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body>{HATCH}<main>{body}</main></body></html>\n"
    )


# -- parts of a run -----------------------------------------------------------------------------------------------


def _body(run: Run, mark: str, level: int) -> str:
    """Everything of a run below its heading. ``mark``: what begins the ids in it."""
    def titled(words: str) -> str:
        return f"<h{level}>{text(words)}</h{level}>"

    parts = [verdict(run), _facts(run)]
    if run.lanes:
        parts += [titled("What it was to each VM"), _vms(run), titled("Service over time"), _how(run), LEGEND]
        shown = worst_vms(run, CHARTS)
        if len(shown) < len(run.lanes):
            parts.append(f"<p>Of {len(run.lanes)} VMs, the {len(shown)} that it went worst for:</p>")
        for index, vm in enumerate(shown):
            parts.append(f"<h{level + 1}>{text(vm)}</h{level + 1}>" + _chart(run, vm, f"{mark}v{index}"))
    if run.kills:
        parts += [titled("Around the kills"), _zooms(run, mark), titled("All kills"), _kills(run)]
    if run.findings:
        rows = [[f'<td class="wrap">{text(finding)}</td>'] for finding in run.findings]
        parts += [titled("Findings"), _table("What the check found wrong", ["finding"], rows, 0)]
    return "\n".join(parts)


def _facts(run: Run) -> str:
    cells = []
    for key, name in _COUNTS.items():
        if key in run.operations:
            bad = ' class="bad"' if key in WRONG and run.operations[key] else ""
            cells.append(f"<div{bad}><dt>{name}</dt><dd>{run.operations[key]:,}</dd></div>")
    return f'<dl class="facts">{"".join(cells)}</dl>' if cells else ""


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int, kind: str = "") -> str:
    """``head`` and ``rows`` are HTML; columns from ``numbers_from`` on are to the right (0: none)."""
    right = ' class="n"'
    titles = "".join(f'<th scope="col"{right if numbers_from and n >= numbers_from else ""}>{name}</th>'
                     for n, name in enumerate(head))  # fmt: skip
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table class="{kind}">'
            f"<caption><span>{text(caption)}</span></caption><thead><tr>{titles}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>")


def _row(name: str) -> str:
    return f'<th scope="row">{text(name)}</th>'


def _number(value: object, unit: str = "") -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        shown = duration(value * 1e6) if unit == "ms" else str(value) if unit == "id" else f"{value:,}"
    else:
        shown = "–" if value is None else text(value)
    return f'<td class="n">{shown}</td>'


def _vms(run: Run) -> str:
    columns = {
        "disk_gap_ms": ("longest disk gap", "ms"), "network_gap_ms": ("longest network gap", "ms"),
        "in_flight": ("in flight", ""), "resubmitted": ("resubmitted", ""), "failed": ("failed", ""),
        "lost": ("lost", ""), "p50_ms": ("p50", "ms"), "p99_ms": ("p99", "ms"),
    }  # fmt: skip
    rows = []
    for vm in run.lanes:
        figures = run.figures.get(vm, {})
        survived = figures.get("survived")
        said = ("<td>–</td>" if survived is None else
                '<td class="yes">✓ survived</td>' if survived else '<td class="no">✗ died</td>')  # fmt: skip
        rows.append([_row(vm), said, *(_number(figures.get(key), unit) for key, (_, unit) in columns.items())])
    return _table("Gap: from a kill until requests are served again; –: that did not happen, or nothing was asked. "
                  "Latencies of the disk, from the planned times.",
                  ["VM", "", *(name for name, _ in columns.values())], rows, 2)  # fmt: skip


def _how(run: Run) -> str:
    width = duration(bin_width(run.end_ns - run.begin_ns))
    return (f'<p class="soft">Each step is {width} wide. Requests are planned for fixed times, whether the device '
            "keeps up or not. Counted from those times, an outage shows in every request that had to wait for it; "
            "counted from the submission, most of them look fast.</p>")  # fmt: skip


def worst_vms(run: Run, most: int) -> list[str]:
    """At most so many VMs, in their order: those that it went worst for."""
    def badness(vm: str) -> tuple[bool, float]:
        silences = [lane.effect(kill).silence_ns for lane in run.lanes[vm] for kill in run.kills]
        return not run.survived.get(vm, True), max(silences, default=0)

    worst = set(sorted(run.lanes, key=badness, reverse=True)[:most])
    return [vm for vm in run.lanes if vm in worst]


def _chart(run: Run, vm: str, mark: str) -> str:
    if not any(run.lanes[vm]):
        return '<p class="soft">No history of it was kept.</p>'
    return (f'<figure><div class="scroll" tabindex="0" role="region" aria-label="Service of {text(vm)}">'
            f"{vm_chart(run, vm, mark)}</div></figure>")


def _zooms(run: Run, mark: str) -> str:
    parts = ['<p class="soft">A stroke is a completed request, hatched is silence; on the right, how long it took. '
             "“First reply” is the whole time from the kill until somebody is served.</p>",
             '<div class="zooms">']  # fmt: skip
    for kill, worst in chosen(run):
        words = [f"{_at(run, kill)} s"]
        if kill.host != kill.component:
            words.append(f"with {kill.host}")
        if kill.fault != "kill":
            words.append(f"“{kill.fault}”")
        if worst:
            words.append("one of the worst")
        parts.append(f"<figure><figcaption><b>{kill.number} {text(kill.component)}</b> {text(', '.join(words))}"
                     f"</figcaption>{zoom(run, kill, f'{mark}k{kill.number}')}</figure>")
    return "".join(parts) + "</div>"


def _at(run: Run, kill: Kill) -> str:
    return f"{(kill.killed_ns - run.begin_ns) / 1e9:.2f}"


def _kills(run: Run) -> str:
    rows = []
    for kill in run.kills:
        host = f" <small>with {text(kill.host)}</small>" if kill.host != kill.component else ""
        died = f'<td class="no">✗ {text(", ".join(sorted(kill.victims)))}</td>' if kill.victims else "<td>–</td>"
        aside = " <small>to go on</small>" if kill.aside else ""
        steps = [(end - begin) / 1e6 if begin and end else None for _, begin, end in kill.steps]
        rows.append([
            f'<th scope="row" class="n">{kill.number}</th>', f"<td>{text(kill.component)}{host}</td>",
            f"<td>{text(kill.fault)}{aside}</td>", died, f'<td class="n">{_at(run, kill)} s</td>',
            _number(kill.pid, "id"), _number(kill.incarnation), *(_number(step, "ms") for step in steps),
            *(_worst(run.worst(kill, kind)) for kind in ("disk", "network")),
        ])  # fmt: skip
    head = ["#", "component", "fault", "VMs that died", "at", "pid", "inc.", "detect", "start", "renegotiate",
            "first reply", "disk silent", "network silent"]  # fmt: skip
    return _table("Silent: the longest time without a completion that the kill caused, in the VM that was hit most",
                  head, rows, 4)  # fmt: skip


def _worst(found: tuple[str, Effect] | None) -> str:
    if found is None or found[1].what in (NO_LOAD, SILENT_BEFORE):
        return '<td class="n">–</td>'
    vm, effect = found
    shown = "for good" if effect.end_ns is None else duration(effect.silence_ns)
    return f'<td class="n">{shown} <small>{text(vm)}</small></td>'


# -- several runs -------------------------------------------------------------------------------------------------


def _matrix(runs: Sequence[Run], places: Sequence[str]) -> str:
    """What was killed, by placement: what that was to each VM, the worst of them."""
    cells: dict[tuple[str, str], list[tuple[Run, Kill]]] = {}
    for run in runs:
        for kill in run.kills:
            if not kill.aside:
                cells.setdefault((kill.label, place(run)), []).append((run, kill))
    labels = list(dict.fromkeys(label for label, _ in cells))
    rows = [[_row(label), *(_cell(cells.get((label, where), ())) for where in places)] for label in labels]
    head = ["killed", *(text(where) for where in places)]
    return _table("What the kill of a component was to each VM; of several kills, the worst. ✓ went on, "
                  "↻ interrupted, ✗ died or was never served again. A network of which only the other end was "
                  "hit does not count.", head, rows, 0, "matrix")  # fmt: skip


def _cell(kills: Sequence[tuple[Run, Kill]]) -> str:
    if not kills:
        return '<td class="soft">not killed</td>'
    items = []
    for vm in dict.fromkeys(vm for run, _ in kills for vm in run.lanes):
        hit = [(run, kill) for run, kill in kills if vm in run.lanes]
        dead = [kill for _, kill in hit if vm in kill.victims]
        lanes: dict[str, list[Effect]] = {}
        for run, kill in hit:
            for lane in run.lanes[vm]:
                if lane.tells(kill):
                    lanes.setdefault(lane.name, []).append(lane.effect(kill))
        worst = {name: max(effects, key=_severity) for name, effects in lanes.items() if effects}
        outcome = DIED if dead else max(worst.values(), key=_severity).what if worst else NO_LOAD
        words = "; ".join(f"{name} {told(effect)}" for name, effect in worst.items()) or "not observed"
        if len(worst) > 1 and outcome == WENT_ON:
            words = WENT_ON
        if dead:
            longest = max((effect.silence_ns for effect in worst.values()), default=0.0)
            again = all(vm in kill.revived for kill in dead)
            words = "died" if not again else "died, then ran again"
            if again and 0 < longest < float("inf"):
                words += f", served after {duration(longest)}"
        kind, sign = _OUTCOMES[outcome]
        items.append(f'<li class="{kind}"><span aria-hidden="true">{sign}</span><b>{text(vm)}</b> '
                     f"{text(words).replace(' ms', '&#160;ms')}</li>")      # a number stays with its unit
    # A VM that shares a process dies without it: it is a thread of the monolith.
    hosts = sorted({kill.host for run, kill in kills if kill.component not in (kill.host, *run.lanes)})
    note = f"<small>with {text(', '.join(hosts))}</small>" if hosts else ""
    return f"<td><ul>{''.join(items)}</ul>{note}</td>"


def _severity(effect: Effect) -> tuple[int, float]:
    return list(_OUTCOMES).index(effect.what), effect.silence_ns
