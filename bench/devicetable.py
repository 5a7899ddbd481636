"""What emulated devices cost, as text. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from bench.machines import Configuration
from bench.report.sentence import ENOUGH
from bench.table import Row, baseline_lines, job_title, number, ratio_key, ratios_of, sure, verdict_lines

_MIB = 1 << 20


def device_lines(run: Mapping[str, Any]) -> Iterator[str]:
    """The whole run."""
    ratios = ratios_of(run)
    rows: Sequence[Row] = run["results"]
    for head, some in groupby(rows, key=lambda row: (row["job"], row["size"], row["depth"], row["rate"])):
        yield ""
        yield (
            f"{job_title(*head):34} {'p50 us':>8} {'times':>7} {'':21} {'p99 us':>8} {'req/s':>8} {'MiB/s':>7} "
            f"{'CPU us':>8} {'intercepts':>11}"
        )
        yield from (_line(row, ratios.get(ratio_key(row))) for row in some)
    if any(accesses(row) is not None for row in rows):
        yield "In brackets: accesses that are calls, in the monolith."
    if 0 < max((row["repetitions"] for row in rows), default=0) < ENOUGH:
        yield f"With fewer than {ENOUGH} sample sets no difference can be called significant: --rounds {ENOUGH} can."
    yield from baseline_lines(run["baselines"])
    yield ""
    yield from verdict_lines(run)


def _line(row: Row, ratio: Row | None) -> str:
    name = Configuration.of(row).name
    if row["p50_us"] is None:
        return f"  {name:32} {'-':>8} {'; '.join(sorted(set(row['failed'])))}"
    told = ("", "") if ratio is None else (number(ratio["value"]), sure(ratio))
    moved = row["ops_per_s"] * row["size"] / _MIB if row["job"] != "ping" else None
    return (
        f"  {name:32} {number(row['p50_us']):>8} {told[0]:>7} {told[1]:21} {number(row['p99_us']):>8} "
        f"{number(row['ops_per_s']):>8} {number(moved):>7} {number(row['cpu_us_per_op']):>8} {intercepts(row):>11}"
    )


def accesses(row: Row) -> float | None:
    """Accesses to registers per request that are calls; ``None``: none are."""
    value: float | None = (row.get("per_op") or {}).get("accesses")
    return value


def intercepts(row: Row) -> str:
    """Per request; in brackets accesses that cost none. ``-``: neither."""
    calls = accesses(row)
    if calls is not None:
        return f"({_count(calls)})"
    return _count((row.get("per_op") or {}).get("intercepts"))


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}".removesuffix(".0")
