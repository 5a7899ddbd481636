"""A guest's clock, with a clock of ours under it."""

from __future__ import annotations

import pytest

from partitions.child.clock import MAX_SLEW, UNSET_NS, GuestClock

S = 1_000_000_000
HOST = 1_700_000_000 * S


class Time:
    """The reference time, and a host whose time is HOST when it is 0."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns

    @property
    def host(self) -> int:
        return HOST + self.ns


@pytest.fixture
def time() -> Time:
    return Time()


def test_a_clock_that_was_never_set_runs_from_the_year_2000(time: Time) -> None:
    clock = GuestClock(monotonic=time)
    time.ns = 5 * S
    assert clock.now() == UNSET_NS + 5 * S
    assert not clock.is_set


@pytest.mark.parametrize("ppm", [0, 50, -50, 100_000, -100_000])
def test_left_alone_it_runs_off_at_its_rate(time: Time, ppm: int) -> None:
    clock = GuestClock(ppm, time)
    clock.step(HOST)
    time.ns = 100 * S
    assert clock.now() - time.host == ppm * 100_000


def test_a_drift_that_is_set_later_counts_from_then_on(time: Time) -> None:
    clock = GuestClock(monotonic=time)
    clock.step(HOST)
    time.ns = 10 * S
    clock.drift_ppm = 1000
    assert clock.now() == time.host
    time.ns = 20 * S
    assert clock.now() - time.host == 10_000_000


@pytest.mark.parametrize("ppm", [50, -50, 1000, 100_000, -100_000])
def test_samples_bring_it_back_without_a_jump_or_a_step_back(time: Time, ppm: int) -> None:
    clock = GuestClock(ppm, time)
    clock.step(HOST)
    before = clock.now()
    errors = []
    for tick in range(1, 600):
        time.ns = tick * S // 10
        now = clock.now()
        assert 0 < now - before < 2 * S // 10, "it goes on, and never leaps"
        before = now
        if tick % 50 == 0:
            errors.append(abs(time.host - now))
            clock.sample(time.host)
            assert clock.now() == now, "a sample is not a step"
    assert clock.steps == 1
    assert errors[0] == abs(ppm) * 5000
    assert max(errors[-3:]) < 5_000, "within five microseconds"
    assert clock.correction_ppm == pytest.approx(-ppm / (1 + ppm / 1e6), rel=1e-6)


def test_the_rate_never_differs_by_more_than_the_slew_allows(time: Time) -> None:
    clock = GuestClock(monotonic=time)
    clock.step(HOST - 4 * S)
    time.ns = S
    clock.sample(time.host)
    start = clock.now()
    time.ns += S
    # Its rate was right; the sample says that of the oscillator nothing was wrong but four seconds in one.
    rate = (clock.now() - start) / S - 1
    assert 0 < rate <= 0.5 + MAX_SLEW + 1e-9


def test_a_large_error_and_the_first_sample_are_steps(time: Time) -> None:
    clock = GuestClock(monotonic=time)
    clock.sample(HOST)
    assert (clock.now(), clock.steps, clock.samples) == (HOST, 1, 0)
    time.ns = S
    clock.sample(time.host + 6 * S)
    assert (clock.now(), clock.steps) == (time.host + 6 * S, 2)
    assert clock.last_error_ns == 6 * S
