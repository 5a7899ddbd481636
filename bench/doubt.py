"""What speaks against the numbers of a run.

A :class:`Watch` looks at the host while the run goes on, the loads tell what they saw of themselves, and what exceeds a
limit is a reason to doubt, with what to do about it. Such a run is *unstable*: its numbers are shown, and shown as
such.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

#: Share of the processors' time that the host's hypervisor may have taken away.
MOST_STEAL = 0.02
#: Processors that others may have kept busy.
MOST_FOREIGN = 0.25
#: Coefficient of variation of a job's medians over sample sets.
MOST_VARIATION = 0.35
#: Intervals by which an open-loop load may submit late, at the 99th percentile of its requests.
MOST_LATE = 0.5
#: Share of its time for which a closed-loop load may not use the room that it has.
MOST_STALLED = 0.05


class Loads(NamedTuple):
    """What the loads of a run say of themselves, the worst by job and configuration."""

    late: Mapping[str, float]       #: of open loops, intervals at the 99th percentile
    stalled: Mapping[str, float]    #: shares of their time
    misplaced: Iterable[str]        #: who was not pinned as was wanted


class Watch:
    """Between its making and :meth:`end`: how much of the host others had."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._times = psutil.cpu_times()
        self._own = _own_seconds()
        self._pressure = _pressure_us()
        #: Seconds on a processor of processes of ours that have ended, as they are told: :meth:`ours`.
        self._measured = 0.0

    def ours(self, seconds: float) -> None:
        """Somebody of ours used so much processor time."""
        self._measured += seconds

    def end(self) -> dict[str, Any]:
        """Shares of the run's time, of one processor each; ``None`` for what the kernel does not tell."""
        elapsed = max(time.monotonic() - self._began, 1e-9)
        now = psutil.cpu_times()
        cores = os.cpu_count() or 1
        busy = sum(
            getattr(now, name, 0.0) - getattr(self._times, name, 0.0)
            for name in ("user", "nice", "system", "irq", "softirq")
        )
        foreign = busy - (_own_seconds() - self._own) - self._measured
        pressure, before = _pressure_us(), self._pressure
        return {
            "elapsed_s": round(elapsed, 3),
            "steal": (getattr(now, "steal", 0.0) - getattr(self._times, "steal", 0.0)) / elapsed / cores,
            "foreign_cpus": max(0.0, foreign / elapsed),
            "pressure": None if pressure is None or before is None else (pressure - before) / 1e6 / elapsed,
        }


def _own_seconds() -> float:
    """Of this process and of all its children that were waited for."""
    mine = os.times()
    return mine.user + mine.system + mine.children_user + mine.children_system


def _pressure_us() -> int | None:
    try:
        line = Path("/proc/pressure/cpu").read_text().partition("\n")[0]
    except OSError:
        return None
    return next((int(field[6:]) for field in line.split() if field.startswith("total=")), None)


def doubts(watched: Mapping[str, Any], medians: Mapping[str, Sequence[float]], loads: Loads) -> list[str]:
    """Why the numbers of a run are not to be trusted, and what to do. ``watched``: what :meth:`Watch.end` gave;
    ``medians``: by job and configuration, over the sample sets."""
    reasons = []
    if watched["steal"] > MOST_STEAL:
        reasons.append(
            f"the host took away {100 * watched['steal']:.0f} % of the processors (steal): measure at another time, or "
            "on a machine of your own"
        )
    if watched["foreign_cpus"] > MOST_FOREIGN:
        reasons.append(
            f"other processes used {watched['foreign_cpus']:.2f} processors meanwhile: end them, see top"
        )
    wild = {name: _variation(values) for name, values in medians.items() if len(values) >= 3}
    worst = _worst(wild)
    if worst and wild[worst] > MOST_VARIATION:
        reasons.append(
            f"{worst} varied by {100 * wild[worst]:.0f} % from one machine to the next: run it longer, on a quiet host"
        )
    late = _worst(loads.late)
    if late and loads.late[late] > MOST_LATE:
        reasons.append(
            f"the load of {late} was {loads.late[late]:.1f} intervals late at its 99th percentile: ask for a lower rate"
        )
    stalled = _worst(loads.stalled)
    if stalled and loads.stalled[stalled] > MOST_STALLED:
        reasons.append(
            f"the load of {stalled} stood still for {100 * loads.stalled[stalled]:.0f} % of its time: what it did not "
            "ask for was not measured; see what else its process does"
        )
    misplaced = sorted(set(loads.misplaced))
    if misplaced:
        more = f" and {len(misplaced) - 1} more" if len(misplaced) > 1 else ""
        reasons.append(
            f"{misplaced[0]}{more}, so configurations are not alike: measure where you may set affinities, or ask for "
            "--pin none"
        )
    return reasons


def _worst(figures: Mapping[str, float]) -> str:
    return max(figures, key=lambda name: figures[name], default="")


def _variation(values: Sequence[float]) -> float:
    """Robust: the median distance from the median, scaled to a standard deviation, over the median."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values) / middle if middle else 0.0
