"""``vmbus-emu ps``: one row per component, and the table that ``up`` ends with."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

import click

from vmbus_emu.cli.attach import attached
from vmbus_emu.cli.options import json_option, name_option
from vmbus_emu.cli.table import UNKNOWN, Column, age, json_text, rate, render, size

_COLUMNS = (
    Column("NAME", shrinks=True), Column("ROLE", shrinks=True), Column("HOST", shrinks=True), Column("PID", right=True),
    Column("STATE", shrinks=True), Column("BEAT"), Column("INC", right=True), Column("CPU%", right=True),
    Column("USS", right=True), Column("IO/S", right=True), Column("LAST", right=True),
)
#: States in which the way a process ended is worth a word.
_ENDED = frozenset(("dead", "halted"))


@click.command(short_help="Show every component: where it runs and how it is.")
@name_option
@json_option
@click.option("--window", default=0.25, show_default=True, metavar="SECONDS", type=click.FloatRange(0.01, 60),
              help="Measure CPU% and IO/S over this time.")
def ps(name: str, as_json: bool, window: float) -> None:
    """Show every component: its role, the component whose process carries it (HOST), its state, whether it
    answers heartbeats (BEAT: ok or lost), its incarnation, what it uses and when it last did I/O.

    \b
    Example:
      vmbus-emu ps
      vmbus-emu ps --json
    """
    with attached(name) as machine:
        report = machine.ps(window=window)
    if as_json:
        click.echo(json_text(report))
    else:
        for line in ps_lines(report):
            click.echo(line)


def ps_lines(report: Mapping[str, Any]) -> list[str]:
    """A ``ps`` report as a headline and a table of at most 100 columns."""
    carried = "calls" if report.get("transport") == "call" else report.get("transport")
    headline = f"{report.get('name')}: {report.get('arch')} over {carried}, {report.get('state')}"
    return [headline, *render(_COLUMNS, [_row(partition) for partition in report["partitions"]])]


def _row(partition: Mapping[str, Any]) -> list[str]:
    def number(key: str, form: str = "d") -> str:
        value = partition.get(key)
        return UNKNOWN if value is None else format(value, form)

    return [
        str(partition["name"]),
        str(partition.get("role", UNKNOWN)),
        str(partition.get("host") or UNKNOWN),
        number("pid"),
        _state(partition),
        str(partition.get("heartbeat") or UNKNOWN),
        number("incarnation"),
        number("cpu_percent", ".1f"),
        size(partition.get("uss_bytes")),
        rate(partition.get("io_per_s")),
        age(partition.get("last_io_age_s")),
    ]


def _state(partition: Mapping[str, Any]) -> str:
    """``dead (SIGKILL)``, ``dead (exit 3)``, or the bare state."""
    state = str(partition.get("state", UNKNOWN))
    if state not in _ENDED:
        return state
    killer, exit_code = partition.get("signal"), partition.get("exit_code")
    if state == "halted" and exit_code == 0:    # it was shut down
        return state
    if killer is not None:
        return f"{state} ({_signal_name(killer)})"
    return state if exit_code is None else f"{state} (exit {exit_code})"


def _signal_name(value: object) -> str:
    try:
        return signal.Signals(value).name if isinstance(value, int) else str(value)
    except ValueError:
        return f"signal {value}"
