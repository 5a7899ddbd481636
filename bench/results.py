"""What a run found, as it is stored: JSON, versioned; what was not measured is null, never 0.

Documented in docs/benchmarks.md. :func:`load` takes every version there has been.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.jobs import Job
from bench.machines import Configuration, Measured
from bench.statistics import Ratio, median_interval, percentile

SCHEMA = 1
#: Figures over which sample sets are compared.
METRICS = ("p50_us", "cpu_us_per_op", "ops_per_s")
#: Points of the stored distribution: the quantile of every half percent. Who draws it ends where the samples do.
_POINTS = 200

#: Which baseline bounds the messages of a configuration from below.
BOUNDS: Mapping[tuple[str, str | None], str] = {
    ("call", None): "call", ("zmq", None): "pyzmq-msgpack", ("ring", "never"): "eventfd",
    ("ring", "adaptive"): "shm-spin", ("ring", "always"): "shm-spin",
}  # fmt: skip

#: How often each that is counted passes from one process to another. An intercept goes to the hypervisor, to the
#: worker, and back the same way; the first step back is the worker's hypercall, which is counted as that.
_CROSSINGS: Mapping[str, int] = {
    "packets": 1, "messages": 1, "hypercalls": 1, "intercepts": 3, "interrupts": 1, "frames": 1,
}  # fmt: skip

#: Parts of every run, and what each of its results has.
_ALWAYS = ("baselines", "ratios")
_ROW = {"job", "arch", "transport", "poll", "size", "depth"}

Result = dict[str, Any]


class BadResults(ValueError):
    """Why a file holds no results, in one line."""


def result(job: Job, of: Configuration, sets: Sequence[Measured | str], vms: int = 2) -> Result:
    """One row: ``job`` on a configuration, over its sample sets; of those that failed, why."""
    good = [one for one in sets if isinstance(one, Measured)]
    row: Result = {
        "job": job.name, **of.fields, "size": job.size, "depth": job.depth, "rate": job.rate or None, "vms": vms,
        "ops_per_s": None, "p50_us": None, "p99_us": None, "p999_us": None, "cpu_us_per_op": None,
        "interval_p50_us": None, "repetitions": len(good), "failed": [one for one in sets if isinstance(one, str)],
    }  # fmt: skip
    if not good:
        return row
    pooled = sorted(ns / 1000 for one in good for ns in one.latencies_ns)
    # By round: what is compared within a round finds its other half at the same place.
    columns: dict[str, list[float | None]] = {
        "p50_us": [_of_set(one, lambda good: statistics.median(good.latencies_ns) / 1000) for one in sets],
        "ops_per_s": [_of_set(one, lambda good: len(good.latencies_ns) / good.seconds) for one in sets],
        "cpu_us_per_op": [_of_set(one, lambda good: good.cpu_us) for one in sets],
    }
    row |= {name: statistics.median(measured(values)) for name, values in columns.items()}
    row |= {"p99_us": percentile(pooled, 0.99), "p999_us": percentile(pooled, 0.999)}
    interval = median_interval(measured(columns["p50_us"]))
    row["interval_p50_us"] = None if interval is None else list(interval)
    row["sets"] = columns
    row["distribution_us"] = [pooled[len(pooled) * point // _POINTS] for point in range(_POINTS)]
    names = sorted({name for one in good for name in one.cpu_us_by_process})
    row["cpu_us_by_process"] = {
        name: statistics.median(one.cpu_us_by_process.get(name, 0.0) for one in good) for name in names
    }
    row["switches_per_op"] = statistics.median(one.switches for one in good)
    row["per_op"] = {
        name: statistics.median(one.counters[name] for one in good) for name in good[0].counters
        if any(one.counters[name] for one in good)
    }  # fmt: skip
    if good[0].received:
        row["received"] = {name: statistics.median(one.received[name] for one in good) for name in good[0].received}
    # Each takes what is asked or answered from one address space into another.
    row["crossings_per_op"] = sum(times * row["per_op"].get(name, 0.0) for name, times in _CROSSINGS.items())
    memory = [one.memory_bytes for one in good if one.memory_bytes is not None]
    row["memory_bytes"] = statistics.median(memory) if memory else None
    return row


def _of_set(one: Measured | str, figure: Callable[[Measured], float]) -> float | None:
    return figure(one) if isinstance(one, Measured) else None


def measured(column: Iterable[float | None]) -> list[float]:
    """What of a column was measured."""
    return [value for value in column if value is not None]


def baseline(name: str, sets: Sequence[Sequence[int] | str]) -> Result:
    """One row of a baseline: latencies of its sample sets, ns; of those that failed, why."""
    good = [one for one in sets if not isinstance(one, str)]
    row: Result = {
        "baseline": name, "p50_us": None, "p99_us": None, "interval_p50_us": None, "repetitions": len(good),
        "failed": [one for one in sets if isinstance(one, str)],
    }  # fmt: skip
    if not good:
        return row
    medians = [None if isinstance(one, str) else statistics.median(one) / 1000 for one in sets]
    interval = median_interval(measured(medians))
    pooled = sorted(ns / 1000 for one in good for ns in one)
    return row | {
        "p50_us": statistics.median(measured(medians)), "p99_us": percentile(pooled, 0.99),
        "interval_p50_us": None if interval is None else list(interval), "sets": {"p50_us": medians},
    }  # fmt: skip


def ratios(rows: Sequence[Result], baselines: Sequence[Result]) -> list[Result]:
    """Each configuration against the first one of its job, by every metric, and messages against what bounds them."""
    found: list[Result] = []
    for row in rows:
        if "sets" not in row:
            continue
        first = next(one for one in rows if _same_job(one, row))
        if first is not row and "sets" in first:
            for metric in METRICS:
                found.append(_ratio(row, metric, first["sets"][metric], _of(first)))
        of = Configuration.of(row)
        bound = None if of.emulated else BOUNDS.get((of.transport, of.poll))
        base = next((one for one in baselines if one["baseline"] == bound and "sets" in one), None)
        if row["depth"] == 1 and base is not None:
            found.append(_ratio(row, "p50_us", base["sets"]["p50_us"], {"baseline": bound}))
    return [one for one in found if one]


def _same_job(one: Result, other: Result) -> bool:
    return all(one[name] == other[name] for name in ("job", "size", "depth", "rate", "vms"))


def _of(row: Result) -> Result:
    return dict(Configuration.of(row).fields)


def _ratio(row: Result, metric: str, theirs: Sequence[float | None], to: Result) -> Result:
    pairs = both(row["sets"][metric], theirs)
    if not pairs:
        return {}
    ratio = Ratio([one for one, _ in pairs], [other for _, other in pairs])
    return {
        **{name: row[name] for name in ("job", "size", "depth", "rate", "vms")},
        "metric": metric, "of": _of(row), "to": to,
        "value": ratio.value, "interval": None if ratio.interval is None else list(ratio.interval),
        "significant": ratio.significant,
    }  # fmt: skip


def both(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[tuple[float, float]]:
    """Of two columns of the same rounds: the rounds in which both were measured."""
    return [(one, other) for one, other in zip(ours, theirs, strict=False) if one is not None and other]


def load(path: Path) -> Result:
    """A stored run. Raises :class:`BadResults`."""
    try:
        run = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadResults(f"{path}: {error}") from None
    if not isinstance(run, dict) or not isinstance(run.get("results"), list):
        raise BadResults(f"{path}: no run of vmbus-emu bench")
    if run.get("schema") != SCHEMA:
        raise BadResults(f"{path}: its schema is {run.get('schema')!r}; this version reads {SCHEMA}")
    for name, kind in (("environment", dict), ("stable", bool), ("reasons", list)):
        if not isinstance(run.get(name), kind):
            raise BadResults(f"{path}: its {name} is missing or damaged")
    for name in ("results", "baselines", "ratios", "scale", "boot", "roles", "waterfalls"):
        rows = run.setdefault(name, []) if name in _ALWAYS else run.get(name, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise BadResults(f"{path}: its {name} are damaged")
    if not all(set(row) >= _ROW for row in run["results"]):
        raise BadResults(f"{path}: one of its results lacks {', '.join(sorted(_ROW))}")
    return run
