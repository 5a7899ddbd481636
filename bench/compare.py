"""Two stored runs side by side: what is the same job on the same configuration, and what changed.

Two runs are two days: what the host did differently is in every difference. So where both runs measured the same
baseline, times are compared in units of it, job by job; and what remains must hold at a high confidence, since many
rows are looked at.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from bench.machines import Configuration
from bench.results import METRICS, both, measured
from bench.statistics import Ratio

Run = Mapping[str, Any]
_REQUEST = ("job", "size", "depth", "rate", "vms")


def compare(before: Run, after: Run, paired: bool = False) -> list[dict[str, Any]]:
    """One row per job, configuration and metric that both runs have: ``after / before``. ``paired``: both were made in
    the same rounds (:mod:`bench.ab`)."""
    known = {_key(row): row for row in before["results"] if "sets" in row}
    paces = Pace(1.0, 1.0, 1.0) if paired else pace(before, after)
    rows = []
    for row in after["results"]:
        old = known.get(_key(row))
        if old is None or "sets" not in row:
            continue
        for metric in METRICS:
            ours, theirs = row["sets"].get(metric, ()), old["sets"].get(metric, ())
            if paired:
                pairs = both(ours, theirs)
                ours, theirs = [one for one, _ in pairs], [other for _, other in pairs]
            else:
                ours, theirs = measured(ours), measured(theirs)
            if not ours or not theirs or not all(theirs):
                continue
            # A slower host makes times longer and rates lower. How much slower it was is not known better than its
            # baselines agree, so a difference must hold at either end.
            scales = [one if metric == "ops_per_s" else 1 / one for one in paces]
            found = [Ratio([value * scale for value in ours], theirs, paired=paired) for scale in scales]
            ratio = found[0]
            rows.append({
                **{name: row.get(name) for name in _REQUEST}, **Configuration.of(row).fields, "metric": metric,
                "before": statistics.median(theirs), "after": statistics.median(ours) * scales[0],
                "after_as_measured": statistics.median(ours), "value": ratio.value,
                "interval": None if ratio.interval is None else list(ratio.interval),
                "significant": all(one.significant for one in found)
                and len({one.value > 1 for one in found}) == 1,
            })  # fmt: skip
    return rows


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return Configuration.of(row), *(row.get(name) for name in _REQUEST)


class Pace(NamedTuple):
    """How much slower the host was in the second run: the median of what no code of ours is in, and where the middle
    half of it lies."""

    middle: float
    low: float
    high: float


def pace(before: Run, after: Run) -> Pace:
    """Of the baselines that both runs measured; without any, 1."""
    old = {row["baseline"]: row["p50_us"] for row in before.get("baselines", ()) if row["p50_us"]}
    ratios = sorted(
        row["p50_us"] / old[row["baseline"]]
        for row in after.get("baselines", ()) if row["p50_us"] and row["baseline"] in old
    )
    if not ratios:
        return Pace(1.0, 1.0, 1.0)
    return Pace(statistics.median(ratios), ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4])


def doubts(before: Run, after: Run) -> list[str]:
    """What the two runs do not have in common, so that a difference may be none of the program's."""
    told = []
    for name, what in (
        ("cpu", "processor"), ("cores", "number of cores"), ("python", "Python"), ("gil", "GIL"), ("kernel", "kernel"),
        ("pinning", "pinning"),
    ):  # fmt: skip
        ours, theirs = after["environment"].get(name), before["environment"].get(name)
        if ours != theirs:
            told.append(f"the runs differ in {what}: {_words(theirs)} before, {_words(ours)} after")
    return told


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("asked"))
    return "unknown" if value is None else str(value)
