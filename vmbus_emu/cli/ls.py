"""``vmbus-emu ls``: the machines of this user, running or left over."""

from __future__ import annotations

import time
from typing import Any

import click

from vmbus_emu.cli.attach import named
from vmbus_emu.cli.options import json_option
from vmbus_emu.cli.table import UNKNOWN, Column, json_text, printable, render
from vmbus_emu.procfs import is_stopped

_COLUMNS = (
    Column("NAME", shrinks=True), Column("STATE"), Column("PID", right=True), Column("ARCH"), Column("TRANSPORT"),
    Column("VMS", right=True), Column("CREATED"),
)
_FIELDS = ("arch", "transport", "vms", "created")


@click.command(short_help="List machines, running or left over.")
@json_option
def ls(as_json: bool) -> None:
    """List the machines of this user. A stale one was killed and left files, which the next up or down of its
    name removes.

    \b
    Example:
      vmbus-emu ls
      vmbus-emu ls --json
    """
    from vmbus_emu.runfolder import list_machines

    machines = [
        {"name": entry.name, "pid": entry.pid, "stale": entry.stale, **{key: entry.info.get(key) for key in _FIELDS}}
        for entry in list_machines()
    ]
    if as_json:
        click.echo(json_text({"schema": 1, "machines": machines}))
    elif machines:
        for line in render(_COLUMNS, [_row(machine) for machine in machines]):
            click.echo(line)
        stale = [str(machine["name"]) for machine in machines if machine["stale"]]
        if stale:
            click.echo(f"Remove what a killed machine left: vmbus-emu down{named(stale[0])}", err=True)
        stopped = [str(machine["pid"]) for machine in machines if _is_stopped(machine)]
        if stopped:
            click.echo(f"Continue what a signal stopped: kill -CONT {' '.join(stopped)}", err=True)
    else:
        click.echo("No machine is running; start one with vmbus-emu up", err=True)


def _row(machine: dict[str, Any]) -> list[str]:
    vms = machine["vms"]
    return [
        machine["name"],
        "stale" if machine["stale"] else "stopped" if _is_stopped(machine) else "running",
        UNKNOWN if machine["pid"] is None else str(machine["pid"]),
        _text(machine["arch"]),
        "call" if machine["arch"] == "monolithic" else _text(machine["transport"]),
        str(len(vms)) if isinstance(vms, list) else UNKNOWN,
        _created(machine["created"]),
    ]


def _is_stopped(machine: dict[str, Any]) -> bool:
    """Whether a signal stopped it, so that it answers nobody."""
    return machine["pid"] is not None and is_stopped(machine["pid"])


def _text(value: object) -> str:
    return UNKNOWN if value is None else printable(str(value))


def _created(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1 << 40:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    return _text(value)[:19]
