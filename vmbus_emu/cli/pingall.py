"""``vmbus-emu pingall``: every VM pings every other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from vmbus_emu.cli.attach import attached
from vmbus_emu.cli.errors import FAILED
from vmbus_emu.cli.options import json_option, name_option
from vmbus_emu.cli.table import UNKNOWN, Column, json_text, plural, printable, render

#: Up to here the full matrix fits a terminal.
MATRIX_VMS = 12
#: Failed pairs that are named one by one.
_NAMED_FAILURES = 5
_SUMMARY = (
    Column("VM", shrinks=True), Column("REACHES", right=True), Column("REACHED BY", right=True),
    Column("MIN ms", right=True), Column("AVG ms", right=True), Column("MAX ms", right=True),
)
Pair = Mapping[str, Any]


@click.command(short_help="Let every VM ping every other.")
@name_option
@json_option
@click.option("--count", default=1, show_default=True, metavar="N", type=click.IntRange(1, 1000),
              help="Pings per pair.")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0, min_open=True),
              help="Give up when nothing was heard for so long (30).")
@click.pass_context
def pingall(context: click.Context, name: str, as_json: bool, count: int, timeout: float | None) -> None:
    """Let every VM ping every other one and show the round-trip times in milliseconds, senders down, receivers
    across; with more than 12 VMs, one line per VM. Ends with status 1 if a ping failed.

    \b
    Example:
      vmbus-emu pingall
      vmbus-emu pingall --count 10 --json
    """
    with attached(name) as machine:
        report = machine.pingall(count=count) if timeout is None else machine.pingall(count=count, timeout=timeout)
    if as_json:
        click.echo(json_text(report))
    else:
        for line in pingall_lines(report):
            click.echo(line)
    if not all(pair["ok"] for pair in report["pairs"]):
        context.exit(FAILED)


def pingall_lines(report: Mapping[str, Any]) -> list[str]:
    """The matrix or the summary, the first failures by name, and one closing line."""
    names: Sequence[str] = report["vms"]
    pairs: Sequence[Pair] = report["pairs"]
    table = _matrix(names, pairs) if len(names) <= MATRIX_VMS else _summary(names, pairs)
    failed = [pair for pair in pairs if not pair["ok"]]
    lines = [
        f"{pair['from']} -> {pair['to']}: {printable(str(pair.get('error') or 'no answer'))}"
        for pair in failed[:_NAMED_FAILURES]
    ]
    if len(failed) > _NAMED_FAILURES:
        lines.append(f"… and {plural(len(failed) - _NAMED_FAILURES, 'more pair')}")
    sent, received = report["sent"], report["received"]
    lines.append(f"{received} of {plural(sent, 'ping')} answered in {report['elapsed_s']:.2f} s")
    return [*table, *lines]


def _matrix(names: Sequence[str], pairs: Sequence[Pair]) -> list[str]:
    by_ends = {(pair["from"], pair["to"]): pair for pair in pairs}
    columns = [Column("", shrinks=True), *(Column(name, right=True, shrinks=True) for name in names)]
    return render(columns, [[source, *(_cell(by_ends.get((source, to))) for to in names)] for source in names])


def _cell(pair: Pair | None) -> str:
    if pair is None:
        return "."
    return _milliseconds(pair.get("rtt_ms")) if pair["ok"] else "FAIL"


def _milliseconds(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}"


def _summary(names: Sequence[str], pairs: Sequence[Pair]) -> list[str]:
    sent: dict[str, list[Pair]] = {name: [] for name in names}
    arriving: dict[str, list[Pair]] = {name: [] for name in names}
    for pair in pairs:
        sent.setdefault(pair["from"], []).append(pair)
        arriving.setdefault(pair["to"], []).append(pair)
    rows = []
    for name in names:
        times = [pair["rtt_ms"] for pair in sent[name] if pair["ok"] and pair.get("rtt_ms") is not None]
        spread = (min(times), sum(times) / len(times), max(times)) if times else (None, None, None)
        rows.append([name, _share(sent[name]), _share(arriving[name]), *(_milliseconds(value) for value in spread)])
    return render(_SUMMARY, rows)


def _share(pairs: Sequence[Pair]) -> str:
    return f"{sum(1 for pair in pairs if pair['ok'])}/{len(pairs)}"
