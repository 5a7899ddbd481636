"""A run, and a comparison of two, as text. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from bench.jobs import NETWORK, STANDARD
from bench.machines import Configuration

Row = Mapping[str, Any]

#: What a reader should know of each standard job.
_TITLES = {
    "null": "null request", "read-4k": "4 KiB random read, cached", "write-flush-4k": "4 KiB write and flush",
    "ping": "echo request between two VMs", "read-1m": "1 MiB read, cached, every byte touched",
    "sqlite-commit": "transaction of SQLite in a VM", "ping-1400": "echo of 1,400 bytes between two VMs",
    "bulk": "64 KiB to another VM",
}  # fmt: skip


def number(value: float | None) -> str:
    """With as many digits as it is good for."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def between(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"({number(interval[0])} to {number(interval[1])})"


def sure(ratio: Row) -> str:
    """The interval of a ratio, and whether there may be no difference at all (n.s.: not significant)."""
    return f"{between(ratio['interval'])}{'' if ratio['significant'] else ' n.s.'}".strip()


def job_title(job: str, size: int, depth: int, rate: float | None) -> str:
    """A job's name for people. Of a standard job that was given another size, the standard words would be wrong."""
    standard = STANDARD.get(job) or NETWORK.get(job)
    as_usual = job in _TITLES and (standard is None or standard.size == size)
    title = _TITLES[job] if as_usual else job
    if not as_usual or depth != (standard.depth if standard else 1):
        title += f", {size} bytes, depth {depth}" if size else f", depth {depth}"
    return title + (f", {rate:g}/s" if rate else "")


def crossings(row: Row) -> str:
    """Times that a request or its answer went from one process to another."""
    value = row.get("crossings_per_op")
    return "-" if value is None else f"{value:.1f}".removesuffix(".0")


def run_lines(run: Mapping[str, Any]) -> Iterator[str]:
    """The whole run."""
    from bench.scaletable import boot_lines, scale_lines

    environment = run["environment"]
    yield (
        f"{environment['cpu'] or 'unknown processor'}, {environment['cores']} cores, Python {environment['python']}"
        f"{'' if environment['gil'] else ' without GIL'}, libzmq {environment['zmq']}, load {environment['load']:.2f}"
    )
    ratios = ratios_of(run)
    bounds = bounds_of(run)
    for head, rows in groupby(run["results"], key=lambda row: (row["job"], row["size"], row["depth"], row["rate"])):
        yield ""
        yield from _job_lines(head, list(rows), ratios, bounds)
    yield from scale_lines(run.get("scale", ()))
    yield from boot_lines(run.get("boot", ()))
    yield from baseline_lines(run["baselines"])
    yield ""
    yield from verdict_lines(run)


def _job_lines(
    head: tuple[Any, ...], rows: Sequence[Row], ratios: Mapping[Any, Row], bounds: Mapping[Any, Row]
) -> Iterator[str]:
    title = job_title(*head)
    yield f"{title:38} {'p50 us':>8} {'':18} {'times':>7} {'':19} {'p99 us':>8} {'CPU us':>8} {'crosses':>7}"
    for row in rows:
        name = Configuration.of(row).name
        if row["p50_us"] is None:
            yield f"  {name:36} {'-':>8} {'; '.join(sorted(set(row['failed'])))}"
            continue
        ratio = ratios.get(ratio_key(row))
        told = ("", "") if ratio is None else (number(ratio["value"]), sure(ratio))
        yield (
            f"  {name:36} {number(row['p50_us']):>8} {between(row['interval_p50_us']):18} {told[0]:>7} {told[1]:19} "
            f"{number(row['p99_us']):>8} {number(row['cpu_us_per_op']):>8} {crossings(row):>7}"
        )
    for row in rows:
        if row.get("received"):
            yield f"    {Configuration.of(row).name} {received(row['received'])}"
    yield from bound_lines(rows, bounds)


def ratios_of(run: Mapping[str, Any]) -> dict[Any, Row]:
    """Of medians to those of the first configuration, by :func:`ratio_key`."""
    return {ratio_key(one): one for one in run["ratios"] if "arch" in one["to"] and one["metric"] == "p50_us"}


def bounds_of(run: Mapping[str, Any]) -> dict[Any, Row]:
    """For :func:`bound_lines`."""
    return {ratio_key(ratio): ratio for ratio in run["ratios"] if "baseline" in ratio["to"]}


def bound_lines(rows: Sequence[Row], bounds: Mapping[Any, Row]) -> Iterator[str]:
    """How far each is from the baseline that bounds it, where that is known."""
    for row in rows:
        bound = bounds.get(ratio_key(row))
        if bound is not None:
            name = Configuration.of(row).name
            yield f"    {name} is {number(bound['value'])} times {bound['to']['baseline']} {sure(bound)}".rstrip()


def baseline_lines(rows: Sequence[Row]) -> Iterator[str]:
    """What others take."""
    if rows:
        yield ""
        yield f"{'round trip of 64 bytes, baselines':38} {'p50 us':>8} {'':18} {'p99 us':>8}"
    for row in rows:
        if row["p50_us"] is None:
            yield f"  {row['baseline']:36} {'-':>8} {'; '.join(sorted(set(row.get('failed', ()))))}".rstrip()
            continue
        yield (
            f"  {row['baseline']:36} {number(row['p50_us']):>8} {between(row['interval_p50_us']):18} "
            f"{number(row['p99_us']):>8}"
        )


def received(told: Mapping[str, float]) -> str:
    """What the other end says of a bulk transfer."""
    lost = round(told["lost_frames"])
    words = "none" if not lost else "1 frame" if lost == 1 else f"{lost} frames"
    return f"received {number(told['mbit_per_s'])} Mbit/s, {number(told['frames_per_s'])} frames/s, lost {words}"


def ratio_key(row: Row) -> tuple[Any, ...]:
    """What a result and its ratios have in common."""
    of = row.get("of", row)
    return row["job"], row["size"], row["depth"], row.get("rate"), Configuration.of(of)


def verdict_lines(run: Mapping[str, Any]) -> Iterator[str]:
    if run["stable"]:
        yield "The run is stable."
    for reason in run["reasons"]:
        yield f"UNSTABLE: {reason}."


def compare_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Of :func:`bench.compare.compare`."""
    for (job, size, depth), some in groupby(rows, key=lambda row: (row["job"], row["size"], row["depth"])):
        yield f"{job}, {size} bytes, depth {depth}"
        for row in some:
            name = Configuration.of(row).name
            told = "" if row["significant"] else "not significant"
            yield (
                f"  {name:34} {row['metric']:14} {number(row['before']):>9} -> {number(row['after']):>9}  "
                f"x {row['value']:.3f} {between(row['interval']):18} {told}"
            ).rstrip()
    count = sum(row["significant"] for row in rows)
    yield f"{count} of {len(rows)} figures differ significantly."
