"""What became of machines with many VMs, and throughput against depth, as text. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from bench.machines import Configuration
from bench.table import baseline_lines, between, bound_lines, bounds_of, number, verdict_lines

Row = Mapping[str, Any]
_MIB = 1 << 20


def _name(row: Row) -> str:
    return Configuration.of(row).name


def _by_configuration(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Configurations in the order of their first rows, each with its rows by number of VMs."""
    order = list(dict.fromkeys(_name(row) for row in rows))
    for name, some in groupby(sorted(rows, key=lambda row: (order.index(_name(row)), row["vms"])), key=_name):
        yield name, list(some)


def _why(row: Row) -> str:
    return "; ".join(sorted(set(row.get("failed") or ()))) or "not measured"


def scale_lines(rows: Sequence[Row]) -> Iterator[str]:
    """One line for each number of VMs."""
    for name, some in _by_configuration(rows):
        yield ""
        yield (
            f"{name + ': VMs':>26} {'boot ms':>8} {'1st I/O':>8} {'MiB/VM':>7} {'idle %':>7} {'reads/s':>9} "
            f"{'':20} {'fair':>5} {'p50 us':>8} {'p99 us':>8} {'CPU us':>7}"
        )
        for row in some:
            if not row["repetitions"]:
                yield f"{row['vms']:>26} {'-':>8} {_why(row)}"
                continue
            memory = row["uss_per_vm_bytes"]
            yield (
                f"{row['vms']:>26} {number(row['boot_ms']):>8} {number(row['first_io_ms']):>8} "
                f"{number(None if memory is None else memory / _MIB):>7} {number(row['idle_cpu_percent']):>7} "
                f"{number(row['ops_per_s']):>9} {between(row['interval_ops_per_s']):20} {number(row['fairness']):>5} "
                f"{number(row['p50_us']):>8} {number(row['p99_us']):>8} {number(row['cpu_us_per_op']):>7}"
            )
            if row.get("failed"):
                yield f"{'':26} {len(row['failed'])} not measured: {_why(row)}"


def boot_lines(rows: Sequence[Row]) -> Iterator[str]:
    """One line for each number of VMs."""
    for name, some in _by_configuration(rows):
        yield ""
        yield f"{name + ': VMs':>26} {'up ms':>8} {'':18} {'1st I/O':>8} {'down ms':>8}"
        for row in some:
            if not row["repetitions"]:
                yield f"{row['vms']:>26} {'-':>8} {_why(row)}"
                continue
            yield (
                f"{row['vms']:>26} {number(row['up_ms']):>8} {between(row['interval_up_ms']):18} "
                f"{number(row['first_io_ms']):>8} {number(row['down_ms']):>8}"
            )


def throughput_lines(run: Mapping[str, Any]) -> Iterator[str]:
    """Requests per second, a column for each depth, and bytes per second at the best of them."""
    bounds = bounds_of(run)
    for (job, size), some in groupby(run["results"], key=lambda row: (row["job"], row["size"])):
        rows = list(some)
        depths = sorted({row["depth"] for row in rows})
        yield ""
        yield f"{job + ', requests/s at depth':32}" + "".join(f"{depth:>10}" for depth in depths) + (
            f"{'best MB/s':>12}" if size else ""
        )
        for name in dict.fromkeys(_name(row) for row in rows):
            mine = {row["depth"]: row for row in rows if _name(row) == name}
            rates = [mine[depth]["ops_per_s"] if depth in mine else None for depth in depths]
            best = max((rate for rate in rates if rate is not None), default=None)
            moved = f"{number(None if best is None else best * size / 1e6):>12}" if size else ""
            yield f"  {name:30}" + "".join(f"{number(rate):>10}" for rate in rates) + moved
            for why in sorted({reason for row in mine.values() for reason in row["failed"]}):
                yield f"    not measured: {why}"
        yield from bound_lines([row for row in rows if row["depth"] == 1], bounds)
    yield from baseline_lines(run["baselines"])
    yield ""
    yield from verdict_lines(run)
