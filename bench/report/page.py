"""A run as a page: one HTML file that needs nothing else, no network, and is whole without its script.

What is in it comes from the run and is escaped. Without matplotlib (the extra ``[report]``) it has the tables, and
says how to get the plots.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.report import bars, curves, roletables, surroundings, tables
from bench.report.drawing import Picture
from bench.report.sentence import ENOUGH, few, summary
from bench.report.stored import Group, Run
from bench.report.style import SCRIPT, STYLE
from vmbus_emu.client.timeline_svg import text
from vmbus_emu.client.timeline_words import plural

#: What to install for the plots.
MISSING = "matplotlib is not installed"
HINT = "pip install 'vmbus-emu[report]', in a checkout pip install -e '.[report]'"

#: Figures of a scale or boot run that are drawn: title, kind of its axis, and its unit in those of the axis.
_SCALED: Mapping[str, tuple[str, str, float]] = {
    "ops_per_s": ("Throughput of all VMs together", "rate", 1.0), "p99_us": ("p99 latency, all VMs busy", "time", 1e3),
    "boot_ms": ("Boot, until all channels are open", "time", 1e6),
    "uss_per_vm_bytes": ("Memory per VM", "memory", 1 / (1 << 20)),
    "idle_cpu_percent": ("CPU of the idle machine, of one processor", "percent", 1.0),
}  # fmt: skip
_BOOTED: Mapping[str, tuple[str, str, float]] = {
    "up_ms": ("Up, until all channels are open", "time", 1e6),
    "first_io_ms": ("Until the first request is complete", "time", 1e6), "down_ms": ("Down", "time", 1e6),
}  # fmt: skip
_LOGARITHMIC = "Both axes are logarithmic; strokes are 95 % intervals."
_METHOD = (
    "Each sample set is one fresh machine that does every job once, in random order, each after a warm-up. "
    "Configurations and baselines take turns in every round, so that the host's moods are everybody's, and ratios are "
    "taken within rounds. Intervals are of medians over sample sets (95 %, bootstrap), and a percentile is given only "
    "with ten requests beyond it."
)


def can_draw() -> bool:
    """Whether there will be plots. Loads matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def page(document: Mapping[str, Any]) -> str:
    """The page of a run (the shape of ``vmbus-emu bench --json``)."""
    run, drawn = Run(document), can_draw()
    parts = [_head(run)]
    if not drawn:
        parts.append(f'<p class="verdict">Without plots: {MISSING}. To have them: {text(HINT)}, and then '
                     "<code>vmbus-emu bench report run.json --html report.html</code>.</p>")
    parts += _sections(run, (lambda found: list(found())) if drawn else (lambda found: []))
    parts += [_method(run), _data(document)]
    title = f"Benchmarks of {run.document.get('ended') or run.environment.get('began') or 'an unknown day'}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body><main>{''.join(parts)}</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


#: Draws what it is given, or leaves it.
_Draws = Callable[[Callable[[], Iterable[Picture]]], list[Picture]]


def _head(run: Run) -> str:
    told = [run.environment.get("cpu"), run.document.get("ended") or run.environment.get("began")]
    machine = " · ".join(text(word) for word in told if word)
    return (f"<header><h1>What the architecture costs</h1>"
            f'<p class="soft">vmbus-emu bench{" · " if machine else ""}{machine}</p></header>'
            f'<p class="lead">{text(summary(run))}</p>{_verdict(run)}')  # fmt: skip


def _verdict(run: Run) -> str:
    if run.stable:
        return ('<p class="verdict good"><span aria-hidden="true">✓ </span>The run is stable: nothing was seen that '
                "speaks against its numbers.</p>")  # fmt: skip
    if not run.reasons:
        words = "The run is unstable; why was not kept." if run.document.get("stable") is False else (
            "Whether the run was stable is not known.")  # fmt: skip
        return f'<p class="verdict bad"><span aria-hidden="true">✗ </span>{words}</p>'
    reasons = "".join(f"<li>{text(reason)}.</li>" for reason in run.reasons)
    return (f'<div class="verdict bad"><b><span aria-hidden="true">✗ </span>Unstable: do not rely on these numbers, '
            f"for {plural(len(run.reasons), 'reason')}.</b><ul>{reasons}</ul></div>")  # fmt: skip


def _sections(run: Run, draw: _Draws) -> Iterator[str]:
    if run.groups:
        yield "<h2>What each request takes</h2>" + tables.tax(run) + _few(run) + tables.received(run)
        apart = _outer(run.groups)
        told = "" if len(apart) == len(run.groups) else "Of several depths, the least and the greatest. "
        yield _grid([*draw(lambda: bars.ratios(run, apart, "r")), *draw(lambda: bars.mechanisms(run, "m"))], told)
        yield _drawn("How latencies are distributed", draw(lambda: curves.distributions(apart, "d")),
                     f"{told}That share of the requests took at most so long. The scale widens at its upper end, and "
                     "a curve ends where there are too few requests to go on.")  # fmt: skip
        yield _drawn("Throughput against depth", draw(lambda: curves.depths(run, "q")),
                     _LOGARITHMIC)  # fmt: skip
        yield _drawn("Whose processor time a request takes", draw(lambda: bars.processor_time(apart, "c")),
                     "Of every process of the machine, guests included: one that waits by looking uses time, too. The "
                     "parts are medians, and need not add up to the median of the whole, which stands behind.",
                     tables.processor_time(run.groups))  # fmt: skip
    if run.waterfalls or run.untraced:
        left_out = "".join(f"{what}. " for what in run.untraced)
        yield _drawn("Where the time of a single request goes", draw(lambda: bars.waterfalls(run, "w")),
                     f"{left_out}Means over requests of about median length, on machines of their own: taking a "
                     "request apart takes time itself, so the same request is slower here than above.",
                     tables.waterfalls(run))  # fmt: skip
    if run.scale:
        yield ("<h2>With more VMs</h2>" + tables.busy(run) + tables.idle(run)
               + _grid(draw(lambda: curves.growth(run.scale, _SCALED, "s")), _LOGARITHMIC))  # fmt: skip
    if run.boot:
        yield ("<h2>Up and down</h2>" + tables.boot(run)
               + _grid(draw(lambda: curves.growth(run.boot, _BOOTED, "b")), _LOGARITHMIC))  # fmt: skip
    if run.roles:
        yield "<h2>Beside a busy role</h2>" + roletables.roles(run)
    if run.baselines:
        yield "<h2>Other mechanisms on this machine</h2>" + tables.baselines(run) + tables.bounds(run)


def _few(run: Run) -> str:
    words = []
    if any(few(group) for group in run.groups if len(group.measured) > 1):
        words.append("There are too few sample sets for any difference to be called significant: "
                     f"{ENOUGH} are needed, --rounds asks for more.")  # fmt: skip
    words.append("n. s.: not significantly other than the first.")
    return f'<p class="soft">{text(" ".join(words))}</p>'


def _outer(groups: Sequence[Group]) -> list[Group]:
    """Of groups that differ in nothing but depth, the first and the last."""
    alike: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        alike.setdefault((group.job, group.size, group.rate, group.rows[0].vms), []).append(group)
    ordered = [sorted(some, key=lambda group: group.depth) for some in alike.values()]
    return [group for some in ordered for group in (some[:1] + some[1:][-1:])]


def _drawn(title: str, pictures: Sequence[Picture], note: str, numbers: str = "") -> str:
    """A section of pictures and their numbers: nothing if there is neither."""
    if not pictures:
        return f'<h2>{text(title)}</h2><p class="soft">{text(note)}</p>{numbers}' if numbers else ""
    below = f"<details><summary>The same as a table</summary>{numbers}</details>" if numbers else ""
    return f'<h2>{text(title)}</h2>{_grid(pictures, note)}{below}'


def _grid(pictures: Sequence[Picture], note: str = "") -> str:
    figures = "".join(
        f"<figure><figcaption><b>{text(one.title)}</b>{'. ' if one.note else ''}{text(one.note)}</figcaption>"
        f"{one.svg}</figure>"
        for one in pictures
    )
    above = f'<p class="soft">{text(note)}</p>' if note else ""
    return f'{above}<div class="plots">{figures}</div>' if figures else ""


def _method(run: Run) -> str:
    rows = [*surroundings.told(run.environment), *((name, str(run.document[key])) for name, key in (
        ("Ended", "ended"), ("Seed", "seed")) if run.document.get(key) is not None)]  # fmt: skip
    facts = "".join(f"<dt>{text(name)}</dt><dd>{text(words)}</dd>" for name, words in rows)
    return (f"<h2>How it was measured</h2><p>{text(_METHOD)} What each figure is, and what it is not, stands in "
            "<code>docs/benchmarks.md</code>.</p><h3>The same run once more</h3>"
            f"<pre>{text(run.again)}</pre><h3>What it was measured on</h3>"
            + (f'<dl class="told">{facts}</dl>' if facts else "<p>Nothing is known of it.</p>"))  # fmt: skip


def _data(document: Mapping[str, Any]) -> str:
    """The document itself, so that no character of it can end the element, or mean something in XML."""
    kept = json.dumps(document, separators=(",", ":"))
    for letter in "<>&":
        kept = kept.replace(letter, f"\\u{ord(letter):04x}")
    return ('<h2>The data</h2><p>All that the run found is in this page, as JSON, in its element <code>run</code>.'
            '<span id="offer" hidden="hidden"> <a id="download" href="#run">Download the data</a>.</span> '
            "<code>vmbus-emu bench compare</code> takes it beside another run's.</p>"
            f'<script type="application/json" id="run">{kept}</script>')  # fmt: skip
