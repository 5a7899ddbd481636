"""What the distributions of a run are drawn from: how long its requests took, and how long its kills interrupted it.

Spans are ns; what never ended is infinite, and counts. A percentile is told only if enough samples lie beyond it:
of fewer, one more sample could make it anything.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping

from vmbus_emu.client.timeline_data import DIED, INTERRUPTED, NEVER, Kill, Lane, Run
from vmbus_emu.client.timeline_svg import duration
from vmbus_emu.client.timeline_words import WRONG, killed, plural

#: Kinds of service, in the order in which they are drawn.
KINDS = ("disk", "network")
#: So many samples must lie beyond a percentile that is told.
BEYOND = 10
#: The percentiles that are looked for, as shares.
SHARES = (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
#: Points that a curve is drawn with at most, about.
_POINTS = 1500


class Samples:
    """Spans, in ascending order; those that never ended are the last."""

    def __init__(self, spans: Iterable[float], never: int = 0) -> None:
        """``never``: how many there are besides that never ended."""
        self.spans = sorted([*spans, *[math.inf] * never])
        self.ended = bisect_left(self.spans, math.inf)      #: how many did

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def never(self) -> int:
        return len(self.spans) - self.ended

    @property
    def longest(self) -> float | None:
        """Of those that ended."""
        return self.spans[self.ended - 1] if self.ended else None

    def percentile(self, share: float) -> float | None:
        """``None``: it cannot be told."""
        place = int(len(self.spans) * share + 1e-9)
        if len(self.spans) - 1 - place < BEYOND or self.spans[place] == math.inf:
            return None
        return self.spans[place]

    @property
    def percentiles(self) -> dict[float, float]:
        """Those of :data:`SHARES` that can be told."""
        told = {share: self.percentile(share) for share in SHARES}
        return {share: span for share, span in told.items() if span is not None}

    def steps(self) -> list[tuple[float, float]]:
        """The distribution, as ``(span, share of all that took at most so long)``: of each that ended."""
        return [(span, number / len(self.spans)) for number, span in enumerate(self.spans[: self.ended], 1)]

    def tail_steps(self) -> list[tuple[float, float]]:
        """The same up to where :data:`BEYOND` lie beyond, with only as many points as can be seen of it on a scale of
        nines (:func:`nines`)."""
        last = min(self.ended, len(self.spans) - BEYOND)
        most = nines(1 - BEYOND / len(self.spans)) if last > 0 else 0.0
        found: list[tuple[float, float]] = []
        drawn = -1
        for number, span in enumerate(self.spans[: max(last, 0)], 1):
            share = number / len(self.spans)
            level = int(nines(share) / most * _POINTS) if most else 0
            if level != drawn or number == last:
                found.append((span, share))
                drawn = level
        return found

    def told(self) -> str:
        """The figures in words: what percentiles there are, and the longest."""
        shown = self.percentiles
        words = [f"p{100 * share:g} {duration(shown[share])}" for share in (0.5, 0.99, 0.999) if share in shown]
        if self.longest is not None:
            words.append(f"longest {duration(self.longest)}")
        return ", ".join(words)


def nines(share: float) -> float:
    """Where a share stands on a scale on which 0.9, 0.99 and 0.999 are as far apart as 0 and 0.9."""
    return -math.log10(1 - share)


def latencies(run: Run, kind: str) -> tuple[Samples, Samples]:
    """Of all requests of a kind of service: corrected (from the planned time), and from the submission."""
    found = [lane.latencies for lane in lanes_of(run, kind)]
    never = sum(unserved for _, _, unserved in found)
    return (Samples((span for corrected, _, _ in found for span in corrected), never),
            Samples((span for _, uncorrected, _ in found for span in uncorrected), never))


def gaps(run: Run, kind: str) -> Samples:
    """How long a kind of service was gone after each kill that cost somebody his channel, his VM, or all answers for
    good: from the kill until it was served again, in the VM for which that took longest.

    Who kept his channel and was served late only paused, and on a busy host that need not be the kill's doing.
    """
    found = []
    for kill in (kill for kill in run.kills if not kill.aside):
        hit = [lane.effect(kill) for lane in lanes_of(run, kind) if _is_hit(lane, kill)]
        if any(effect.end_ns is None for effect in hit):
            found.append(math.inf)
        elif hit:
            found.append(dict(kill.gaps).get(kind, max(effect.silence_ns for effect in hit)))
    return Samples(found)


def _is_hit(lane: Lane, kill: Kill) -> bool:
    what = lane.effect(kill).what
    return what in (NEVER, DIED) or (what == INTERRUPTED and (lane.vm, lane.name) in kill.cut)


def lanes_of(run: Run, kind: str) -> list[Lane]:
    return [lane for lanes in run.lanes.values() for lane in lanes if lane.name == kind]


# -- in words ---------------------------------------------------------------------------------------


def sentence(run: Run, interruptions: Mapping[str, Samples]) -> str:
    """The title: what was killed, what was lost, for how long which service was gone."""
    words = [_lost(run)]
    for kind, samples in interruptions.items():
        if samples.ended:
            words.append(f"{kind} gap: {samples.told()} (n = {len(samples):,})")
        if samples.never:
            words.append(f"{kind} gone for good after {plural(samples.never, 'kill')}")
        if run.kills and not samples and any(lanes_of(run, kind)):
            words.append(f"{kind} not interrupted")
    return f"{killed(run)}: {'; '.join(words)}"


def _lost(run: Run) -> str:
    counts = run.operations
    wrong = [f"{counts[what]:,} {what}" for what in WRONG if counts.get(what)]
    if "lost" not in counts:
        return "it was not judged what was lost"
    if wrong:
        return f"the disks do not hold what they must ({', '.join(wrong)})"
    writes = f"0 of {counts.get('acknowledged', 0):,} acknowledged writes"
    findings = len(run.findings)
    return f"{writes} known to be lost, but {plural(findings, 'finding')}" if findings else f"{writes} lost"
