"""The lower part of the picture of a run: how long requests took, counted in both ways, and how long each kill cost.

Shares of requests stand on a scale of nines, or the few that met a kill could not be seen. A curve ends where a
percentile could not be told any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from vmbus_emu.client.plot_samples import BEYOND, KINDS, Samples, latencies, nines
from vmbus_emu.client.plot_sheet import COLOURS, INK, SOFT, WIDTH, Sheet, span_axis, wrapped
from vmbus_emu.client.timeline_data import Run
from vmbus_emu.client.timeline_words import plural

_HEAD, _PANEL, _AXIS, _NOTE, _AFTER = 1.3, 2.5, 0.55, 0.2, 0.15        # heights, in inches
_TITLE, _UNDER = 0.05, 0.26                                             # of their upper edges, from the top
HEIGHT = _HEAD + _PANEL + _AXIS + 2 * _NOTE + _AFTER
_NOTES = (
    "Corrected: from the time a request was planned for, whether or not the device kept up; uncorrected: from its "
    "submission, so requests that an outage held back look fast.",
    f"Only percentiles with at least {BEYOND} samples beyond them are told and drawn.",
)
_DEATH = " A VM that is dead asks for nothing: its time without service is in the right panel alone."
_BEGIN, _END, _BETWEEN = 0.85, WIDTH - 0.4, 0.75
_EACH = (_END - _BEGIN - 2 * _BETWEEN) / 3
#: Up to so many kills, each has its mark.
_MARKED = 80
#: So many letters of a legend fit.
_LETTERS = 38


def draw(sheet: Sheet, run: Run, interruptions: Mapping[str, Samples]) -> None:
    """A panel for the latencies of each kind of service, and one for its interruptions."""
    sheet.skip(_HEAD)
    places = [_BEGIN + number * (_EACH + _BETWEEN) for number in range(3)]
    *both, last = sheet.panels(_PANEL, [(place, place + _EACH) for place in places])
    for kind, panel in zip(KINDS, both, strict=True):
        _latencies(panel, kind, *latencies(run, kind))
    both[0].set_ylabel("share of all requests")
    _gaps(last, run, interruptions)
    sheet.skip(_AXIS)
    dead = any(kill.victims for kill in run.kills)
    for note in (_NOTES[0], _NOTES[1] + _DEATH * dead):
        sheet.say(note, _NOTE, size=9, color=SOFT)
    sheet.skip(_AFTER)


def _titled(panel: Axes, title: str, under: str, label: str) -> None:
    """Both stand above the legend, which stands above the panel."""
    for words, down, looks in ((title, _TITLE, {"weight": "bold", "size": 11}), (under, _UNDER, {"color": SOFT})):
        panel.text(0, 1 + (_HEAD - down) / _PANEL, words, transform=panel.transAxes, va="top", **looks)
    panel.set_xlabel(label)
    panel.tick_params(labelsize=9.5)


def _legend(panel: Axes) -> None:
    panel.legend(loc="lower left", bbox_to_anchor=(-0.03, 1.0), frameon=False, borderaxespad=0.1, fontsize=9.5,
                 handlelength=2.8, labelspacing=0.25)  # fmt: skip


def _fitted(words: str) -> str:
    return "\n".join(wrapped(words, _LETTERS, 3))


def _latencies(panel: Axes, kind: str, corrected: Samples, uncorrected: Samples) -> None:
    under = plural(len(corrected), "request")
    if corrected.never:
        under += f", {corrected.never:,} failed or never answered"
    _titled(panel, f"Latency, {kind}", under, "latency")
    both: tuple[tuple[Samples, str, dict[str, Any]], ...] = (
        (corrected, "corrected", {"color": COLOURS[kind], "linestyle": "-", "linewidth": 2.0, "marker": "o"}),
        (uncorrected, "uncorrected", {"color": INK, "linestyle": (0, (4, 2)), "linewidth": 1.4, "marker": "s",
                                      "markerfacecolor": "white"}),
    )  # fmt: skip
    curves = [(samples, samples.tail_steps(), name, looks) for samples, name, looks in both]
    spans = [span for samples, steps, _, _ in curves if samples.percentiles for span, _ in steps]
    if not spans:
        _nothing(panel, "too few to tell any percentile" if len(corrected) else "no request is known")
        return
    span_axis(panel, spans)
    for samples, steps, name, looks in curves:
        shown = samples.percentiles
        marker = {"marker": looks.pop("marker"), "markerfacecolor": looks.pop("markerfacecolor", looks["color"])}
        panel.plot([steps[0][0], *(span for span, _ in steps)], [0.0, *(nines(share) for _, share in steps)],
                   drawstyle="steps-post", **looks)  # fmt: skip
        panel.plot(list(shown.values()), [nines(share) for share in shown], linestyle="none", markersize=5.5,
                   color=looks["color"], **marker)  # fmt: skip
        panel.plot([], [], **looks, **marker, markersize=5.5, label=_fitted(f"{name}: {samples.told()}"))
    told = sorted({share for samples, *_ in curves for share in samples.percentiles})
    panel.set_ylim(0, 1.04 * max(nines(share) for _, steps, _, _ in curves for _, share in steps))
    panel.set_yticks([0, *(nines(share) for share in told)], ["0 %", *(f"{100 * share:g} %" for share in told)])
    _legend(panel)


def _gaps(panel: Axes, run: Run, interruptions: Mapping[str, Samples]) -> None:
    kills = sum(not kill.aside for kill in run.kills)
    _titled(panel, "Time without service, per kill", plural(kills, "kill"),
            "until served again, in the VM hit worst")  # fmt: skip
    looks: dict[str, dict[str, Any]] = {
        "disk": {"linestyle": "-", "linewidth": 2.0, "marker": "o"},
        "network": {"linestyle": (0, (4, 2)), "linewidth": 1.6, "marker": "s", "markerfacecolor": "white"},
    }
    spans = [span for samples in interruptions.values() for span, _ in samples.steps()]
    if not spans:
        ends = [f"{kind}: never served again" for kind, samples in interruptions.items() if samples.never]
        calm = "no kill interrupted any service" if any(map(any, run.lanes.values())) else "no request is known"
        _nothing(panel, "\n".join(ends) or (calm if kills else "nothing was killed"))
        return
    span_axis(panel, spans)
    for kind, samples in interruptions.items():
        if samples.ended:
            steps = samples.steps()
            never = f"; {samples.never:,} for good" if samples.never else ""
            panel.plot([steps[0][0], *(span for span, _ in steps)], [0.0, *(share for _, share in steps)],
                       label=_fitted(f"{kind}, n = {len(samples):,}: {samples.told()}{never}"),
                       drawstyle="steps-post", color=COLOURS[kind], markersize=5,
                       markevery=range(1, len(steps) + 1) if len(steps) <= _MARKED else [], **looks[kind])  # fmt: skip
    panel.set_ylim(0, 1.04)
    panel.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    panel.set_ylabel("share of interruptions")
    _legend(panel)


def _nothing(panel: Axes, words: str) -> None:
    panel.set_axis_off()
    panel.text(0.5, 0.5, words, transform=panel.transAxes, ha="center", va="center", color=SOFT, size=11)
