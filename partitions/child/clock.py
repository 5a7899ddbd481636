"""A guest's own clock: an oscillator that is off by a settable rate, and what disciplines it.

It is set (stepped) when the host says so, and by samples it is slewed: its rate is corrected by what the samples say of
the oscillator, and the error that is there already is worked off until the next sample is due. It never runs
backwards but by a step. Before it is set for the first time it stands at :data:`UNSET_NS`: no battery-backed clock is
emulated.

Times are nanoseconds since 1970. ``monotonic`` (nanoseconds) stands for the hypervisor's reference time, which has no
drift.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: 2000-01-01.
UNSET_NS = 946_684_800_000_000_000
#: What the clock is slewed by at most beside its correction, as a share of time; chrony's limit.
MAX_SLEW = 0.083333
#: What the correction of its rate is at most.
MAX_CORRECTION = 0.5
#: An error beyond this is not slewed but stepped.
STEP_BEYOND_NS = 5_000_000_000
#: Samples less than this apart say nothing of a rate.
_LEAST_APART_NS = 10_000_000
#: Between two samples, before it is known how often they come.
_FIRST_PERIOD_NS = 1_000_000_000


class GuestClock:
    """``drift_ppm``: how much too fast the oscillator is; it may be changed at any time."""

    def __init__(self, drift_ppm: float = 0.0, monotonic: Callable[[], int] = time.monotonic_ns) -> None:
        self._monotonic = monotonic
        self._drift = drift_ppm / 1e6
        # The oscillator: it showed _raw at _raw_at. The clock: it showed _time when the oscillator showed _from.
        self._raw, self._raw_at = 0.0, monotonic()
        self._time, self._from = UNSET_NS, 0.0
        self._correction = 0.0
        self._slew, self._slew_until = 0.0, 0.0     # until the oscillator shows so much
        self._last: tuple[int, float] | None = None  # the last sample: host's time, oscillator's
        self.steps = self.samples = 0
        #: By how much the clock was off at the last step or sample (host's time less its own).
        self.last_error_ns = 0

    @property
    def drift_ppm(self) -> float:
        return self._drift * 1e6

    @drift_ppm.setter
    def drift_ppm(self, ppm: float) -> None:
        self._raw, self._raw_at = self._oscillator(), self._monotonic()
        self._drift = ppm / 1e6

    @property
    def correction_ppm(self) -> float:
        """What its rate is corrected by now."""
        return self._correction * 1e6

    @property
    def is_set(self) -> bool:
        return self.steps > 0

    def now(self) -> int:
        return self._at(self._oscillator())

    def _oscillator(self) -> float:
        return self._raw + (self._monotonic() - self._raw_at) * (1 + self._drift)

    def _at(self, raw: float) -> int:
        elapsed = raw - self._from
        slewed = max(0.0, min(raw, self._slew_until) - self._from)
        return self._time + round(elapsed * (1 + self._correction) + slewed * self._slew)

    def _rebase(self, raw: float) -> None:
        self._time, self._from = self._at(raw), raw

    def step(self, host_ns: int) -> None:
        """Set it."""
        raw = self._oscillator()
        self.last_error_ns = host_ns - self._at(raw)
        self._time, self._from = host_ns, raw
        self._slew, self._slew_until = 0.0, raw
        self._last = (host_ns, raw)
        self.steps += 1

    def sample(self, host_ns: int) -> None:
        """The host's time is ``host_ns`` now."""
        raw = self._oscillator()
        error = host_ns - self._at(raw)
        if not self.is_set or abs(error) > STEP_BEYOND_NS:
            self.step(host_ns)
            return
        self.samples += 1
        self.last_error_ns = error
        self._rebase(raw)
        period = _FIRST_PERIOD_NS
        if self._last is not None and raw - self._last[1] >= _LEAST_APART_NS:
            host_before, raw_before = self._last
            period = round(raw - raw_before)
            seen = (host_ns - host_before) / (raw - raw_before) - 1
            self._correction = max(-MAX_CORRECTION, min(MAX_CORRECTION, seen))
            self._last = (host_ns, raw)
        self._slew = max(-MAX_SLEW, min(MAX_SLEW, error / period))
        self._slew_until = raw + period
