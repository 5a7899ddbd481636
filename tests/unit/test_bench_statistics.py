"""Intervals and ratios of sample sets: they hold what they promise on data whose truth is known."""

from __future__ import annotations

import random

import pytest

from bench.statistics import BEYOND, Ratio, median_interval, percentile


@pytest.mark.parametrize(("count", "share", "told"), [
    (1001, 0.99, True), (1000, 0.99, False), (21, 0.5, True), (20, 0.5, False), (10_001, 0.999, True),
])
def test_a_percentile_is_told_only_with_enough_beyond_it(count: int, share: float, told: bool) -> None:
    found = percentile(list(range(count)), share)
    assert (found is not None) == told
    if found is not None:
        assert found == int(count * share)
        assert sum(value > found for value in range(count)) >= BEYOND


def test_an_interval_of_few_sets_is_none() -> None:
    assert median_interval([1.0, 2.0]) is None
    assert median_interval([1.0, 1.0, 1.0]) == (1.0, 1.0)


def test_intervals_hold_the_median_about_as_often_as_they_say() -> None:
    chance = random.Random(1)
    held = 0
    for case in range(200):
        interval = median_interval([chance.lognormvariate(0, 0.3) for _ in range(12)], case)
        assert interval is not None
        held += interval[0] <= 1 <= interval[1]
    assert held >= 170


def test_a_ratio_of_the_same_is_not_significant_and_of_others_is() -> None:
    chance = random.Random(2)
    wrong = right = 0
    for case in range(100):
        moods = [chance.lognormvariate(0, 0.5) for _ in range(10)]      # of the host, in each round
        one = [mood * chance.lognormvariate(0, 0.05) for mood in moods]
        other = [mood * chance.lognormvariate(0, 0.05) for mood in moods]
        slower = [1.3 * value for value in other]
        wrong += Ratio(one, other, seed=case).significant
        found = Ratio(slower, one, seed=case)
        right += found.significant
        assert found.value == pytest.approx(1.3, rel=0.1)
    assert wrong <= 4
    assert right >= 95


def test_twenty_pairs_of_runs_of_the_same_program_differ_in_two_at_most() -> None:
    chance = random.Random(3)
    differ = 0
    for case in range(20):
        one, other = ([chance.lognormvariate(0, 0.1) for _ in range(10)] for _ in range(2))
        differ += Ratio(one, other, paired=False, seed=case).significant
    assert differ <= 2


def test_a_tiny_difference_is_not_told_however_certain() -> None:
    assert not Ratio([1.01] * 10, [1.0] * 10).significant
    assert Ratio([1.1] * 10, [1.0] * 10).significant


@pytest.mark.parametrize(("ours", "theirs", "paired"), [
    ([], [1.0], False), ([1.0], [], True), ([1.0, 2.0], [1.0], True),
])
def test_nothing_is_not_compared(ours: list[float], theirs: list[float], paired: bool) -> None:
    with pytest.raises(ValueError, match="nothing"):
        Ratio(ours, theirs, paired)
