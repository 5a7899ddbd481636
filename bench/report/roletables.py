"""The table of the report about busy roles, as HTML. Pure functions."""

from __future__ import annotations

from itertools import groupby

from bench.report.sentence import ENOUGH
from bench.report.stored import Row, Run, Times, finite, mapped, text, times_of
from bench.report.tables import cell, name, table, within
from bench.table import job_title
from vmbus_emu.client.timeline_svg import text as escaped

_HEAD = (
    "", "p50 µs", "times", "95 %", "p99 µs", "times", "requests/s", "queries/s", "role cores", "load cores", "sets",
)  # fmt: skip


def roles(run: Run) -> str:
    """Every job on every configuration, in every arm."""
    bodies = [
        (head, [_line(row) for row in some])
        for head, some in groupby(run.roles, key=lambda row: job_title(
            text(row.document, "job"), int(row.figure("size") or 0), row.depth, None))
    ]  # fmt: skip
    caption = ("Requests of the VMs beside a role that answers queries as fast as it can, and how many times as long "
               "they take as without one; –: not measured")  # fmt: skip
    return table(caption, _HEAD, bodies)


def _line(row: Row) -> list[str]:
    held = text(row.document, "held_by")
    role = f"{text(row.document, 'role')}: {held}" if held else text(row.document, "role") or "no role"
    title = name(f"{row.place.name}, {role}")
    sets = f'<td class="n">{int(row.figure("repetitions") or 0)}</td>'
    if row.figure("p50_us") is None:
        why = row.failures or "not measured"
        return [title, f'<td class="wrap no" colspan="{len(_HEAD) - 2}">✗ {escaped(why)}</td>', sets]
    half, tail = (times_of(mapped(mapped(row.document.get("times")).get(metric))) for metric in ("p50_us", "p99_us"))
    return [
        title, cell(row.figure("p50_us")), _times(row, half), within(None if half is None else half.interval),
        cell(row.figure("p99_us")), _times(row, tail),
        *(cell(row.figure(one)) for one in ("ops_per_s", "queries_per_s", "role_cpu", "load_cpu")), sets,
    ]  # fmt: skip


def _times(row: Row, times: Times | None) -> str:
    if times is None:
        return cell(None)
    few = (finite(row.document.get("repetitions")) or 0) < ENOUGH
    return cell(times.value, "" if times.significant or few else " n. s.")
