"""Two stored runs side by side: what is the same job on the same configuration, and what changed.

Two runs are two days: what the host did differently is in every difference. So where both runs measured the same
baseline, times are compared in units of it, job by job; and what remains must hold at a high confidence, since many
rows are looked at.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from bench.results import METRICS
from bench.statistics import Ratio

Run = Mapping[str, Any]
_KEY = ("job", "arch", "transport", "poll", "size", "depth", "rate", "vms")


def compare(before: Run, after: Run, paired: bool = False) -> list[dict[str, Any]]:
    """One row per job, configuration and metric that both runs have: ``after / before``. ``paired``: both were made in
    the same rounds (:mod:`bench.ab`)."""
    known = {tuple(row.get(name) for name in _KEY): row for row in before["results"] if "sets" in row}
    pace = 1.0 if paired else _pace(before, after)
    rows = []
    for row in after["results"]:
        old = known.get(tuple(row.get(name) for name in _KEY))
        if old is None or "sets" not in row:
            continue
        for metric in METRICS:
            ours, theirs = row["sets"].get(metric), old["sets"].get(metric)
            if not ours or not theirs or not all(theirs):
                continue
            # A slower host makes times longer and rates lower.
            scale = pace if metric == "ops_per_s" else 1 / pace
            alike = paired and len(ours) == len(theirs)
            ratio = Ratio([value * scale for value in ours], theirs, paired=alike)
            rows.append({
                **{name: row.get(name) for name in _KEY}, "metric": metric,
                "before": statistics.median(theirs), "after": statistics.median(ours), "value": ratio.value,
                "interval": None if ratio.interval is None else list(ratio.interval),
                "significant": ratio.significant,
            })  # fmt: skip
    return rows


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


def _pace(before: Run, after: Run) -> float:
    """How much slower the host was in the second run: the median over what no code of ours is in."""
    old = {row["baseline"]: row["p50_us"] for row in before.get("baselines", ()) if row["p50_us"]}
    ratios = [
        row["p50_us"] / old[row["baseline"]]
        for row in after.get("baselines", ()) if row["p50_us"] and row["baseline"] in old
    ]
    return statistics.median(ratios) if ratios else 1.0
