"""What a busy role costs the VMs, as text. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from bench.machines import Configuration
from bench.report.sentence import ENOUGH
from bench.table import Row, job_title, number, sure, verdict_lines


def run_lines(run: Mapping[str, Any]) -> Iterator[str]:
    """The whole run."""
    rows: Sequence[Row] = run["roles"]
    for head, some in groupby(rows, key=lambda row: (row["job"], row["size"], row["depth"])):
        yield ""
        yield (
            f"{job_title(*head, None):34} {'p50 us':>8} {'times':>6} {'':20} {'p99 us':>8} {'times':>6} {'req/s':>8} "
            f"{'queries/s':>9} {'role':>5} {'load':>5}"
        )
        for name, arms in groupby(some, key=lambda row: Configuration.of(row).name):
            yield from (_line(name, row) for row in arms)
    yield ""
    yield from _notes(rows)
    yield from verdict_lines(run)


def arm_name(row: Row) -> str:
    """As in ``dns, limited``."""
    return "no role" if row["role"] is None else f"{row['role']}, {row['arm']}"


def _line(name: str, row: Row) -> str:
    words = f"{name}, {arm_name(row)}"
    if row["p50_us"] is None:
        return f"  {words:32} {'-':>8} {'; '.join(sorted(set(row['failed'])))}"
    half, tail = ((row["times"] or {}).get(metric) for metric in ("p50_us", "p99_us"))
    told = ("", "") if half is None else (number(half["value"]), sure(half))
    queries = "" if row["role"] is None else number(row["queries_per_s"])
    cores = ["" if row["role"] is None else number(row[whose]) for whose in ("role_cpu", "load_cpu")]
    return (
        f"  {words:32} {number(row['p50_us']):>8} {told[0]:>6} {told[1]:20} {number(row['p99_us']):>8} "
        f"{'' if tail is None else number(tail['value']):>6} {number(row['ops_per_s']):>8} {queries:>9} "
        f"{cores[0]:>5} {cores[1]:>5}"
    ).rstrip()


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    """What the columns do not say."""
    yield "Times: against the same without a role. Role, load: processor time, in cores; the load asks, from outside."
    for words in dict.fromkeys(row["held_by"] for row in rows if row["arm"] == "limited" and row["held_by"]):
        yield f"Limited: {words}."
    for words in dict.fromkeys(map(placement, rows)):
        if words:
            yield words
    if 0 < max((row["repetitions"] for row in rows), default=0) < ENOUGH:
        yield f"With fewer than {ENOUGH} sample sets no difference can be called significant: --rounds {ENOUGH} can."


def placement(row: Row) -> str:
    """Who was on which processor, of those that matter; empty where nobody was pinned, or there is no role."""
    processors = row.get("processors") or {}
    if row["role"] is None or "load" not in processors:
        return ""
    names = [name for name in ("vm1", "vm2", "parent", "storvsp", "netvsp", row["role"]) if name in processors]
    told = ", ".join(f"{name} {processors[name]}" for name in (*names, "load"))
    return f"Processors: {told}."
