"""Percentiles that the samples can carry, and bootstrapped intervals of medians and of ratios.

One *sample set* is what one fresh machine gave for one job. Requests within a set are alike, sets are not: where the
processes landed, how the memory lies, what else the host did. So intervals are over sets, whose medians are drawn again
and again; what was measured in the same round is compared within it.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence

#: Samples that must lie beyond a percentile for it to say something.
BEYOND = 10
#: Draws of one interval.
DRAWS = 2000
#: Share of cases in which an interval holds the true value.
CONFIDENCE = 0.95
#: How often a difference that is none may be called significant: seldom, for many are looked at in one table. Intervals
#: of ten values are too narrow for that, so ranks decide.
RISK = 0.01
#: Adjacent rounds that are drawn together: the host's moods last longer than one round.
BLOCK = 2
#: A ratio this near to 1 is not told as a difference, whatever the interval: placement alone makes as much.
LEAST = 0.03

Interval = tuple[float, float]


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Of values in ascending order; ``None`` with fewer than :data:`BEYOND` of them beyond it."""
    place = int(len(ordered) * share)
    return ordered[place] if len(ordered) - place - 1 >= BEYOND else None


def median_interval(values: Sequence[float], seed: int = 0) -> Interval | None:
    """An interval of the median over sample sets; ``None`` of fewer than three."""
    if len(values) < 3:
        return None
    return _between(_draws(len(values), lambda drawn: statistics.median(values[index] for index in drawn), seed))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The same without chance: the widest order statistics that are needed, all of them below six values."""
    ordered, count = sorted(values), len(values)
    cut, tail = 0, 0.5**count
    while 2 * (tail + math.comb(count, cut + 1) * 0.5**count) <= 0.05:
        cut += 1
        tail += math.comb(count, cut) * 0.5**count
    return ordered[cut], ordered[-1 - cut]


class Ratio:
    """``ours / theirs`` of two columns of sample sets: ``value``, ``interval`` and whether it is ``significant``."""

    def __init__(self, ours: Sequence[float], theirs: Sequence[float], paired: bool = True, seed: int = 0) -> None:
        """``paired``: the columns were measured in the same rounds, one value of each per round. Else they come from
        two runs, and every difference between the two days is in it, too."""
        if not ours or not theirs or (paired and len(ours) != len(theirs)):
            raise ValueError("nothing to compare")
        ratios: list[float] = []
        if paired:
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            self.value = statistics.median(ratios)
            draws = _draws(len(ratios), lambda drawn: statistics.median(ratios[index] for index in drawn), seed)
        else:
            self.value = statistics.median(ours) / statistics.median(theirs)
            chance = random.Random(seed)
            draws = sorted(
                statistics.median(ours[index] for index in _drawn(len(ours), chance))
                / statistics.median(theirs[index] for index in _drawn(len(theirs), chance))
                for _ in range(DRAWS)
            )
        enough = min(len(ours), len(theirs)) >= 3
        self.interval: Interval | None = _between(draws) if enough else None
        chance_of_it = _signs(ratios) if paired else _ranks(ours, theirs)
        self.significant = enough and chance_of_it <= RISK and abs(self.value - 1) > LEAST


def _draws(count: int, figure: Callable[[Sequence[int]], float], seed: int) -> list[float]:
    chance = random.Random(seed)
    return sorted(figure(_drawn(count, chance)) for _ in range(DRAWS))


def _drawn(count: int, chance: random.Random) -> list[int]:
    """Numbers of sets, drawn with replacement in blocks of neighbours."""
    drawn: list[int] = []
    while len(drawn) < count:
        first = chance.randrange(count)
        drawn += [(first + step) % count for step in range(BLOCK)]
    return drawn[:count]


def _between(ordered: Sequence[float]) -> Interval:
    cut = int(len(ordered) * (1 - CONFIDENCE) / 2)
    return ordered[cut], ordered[-1 - cut]


def _signs(ratios: Sequence[float]) -> float:
    """How likely so many ratios lie on one side of 1 if neither side is (sign test, exact, two-sided)."""
    apart = [ratio for ratio in ratios if ratio != 1]
    fewer = min(sum(ratio > 1 for ratio in apart), sum(ratio < 1 for ratio in apart))
    return min(1.0, 2 * sum(math.comb(len(apart), index) for index in range(fewer + 1)) / float(2 ** len(apart)))


def _ranks(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How likely two columns from one source have ranks so far apart (Mann-Whitney, normal approximation with
    correction for continuity, two-sided)."""
    wins = sum((a > b) + (a == b) / 2 for a in ours for b in theirs)
    expected = len(ours) * len(theirs) / 2
    deviation = math.sqrt(len(ours) * len(theirs) * (len(ours) + len(theirs) + 1) / 12)
    return math.erfc(max(0.0, abs(wins - expected) - 0.5) / deviation / math.sqrt(2))
