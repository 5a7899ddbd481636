"""``vmbus-emu role``: services beside the VMs, in the parent partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from vmbus_emu.cli.attach import attached
from vmbus_emu.cli.options import json_option, name_option
from vmbus_emu.cli.table import UNKNOWN, Column, json_text, printable, render

#: As in ``vmbus_emu.topology.data``, which the command line loads late.
_ROLES = ("dns", "files")
_COLUMNS = (
    Column("ROLE"), Column("STATE"), Column("PID", right=True), Column("INC", right=True), Column("LISTENS"),
    Column("CPU LIMIT IN FORCE", shrinks=True),
)  # fmt: skip


@click.group(short_help="Services beside the VMs: a DNS server, a file share.", no_args_is_help=False)
def role() -> None:
    """Roles run in the parent partition, each in a process of its own, on the host's loopback. The monolith refuses
    them: it has no parent partition. docs/roles.md says what they are, and what a CPU limit does on which host.

    \b
    Example:
      vmbus-emu role add dns --cpu-limit 0.5
      vmbus-emu role list
      vmbus-emu role remove dns
    """


@role.command(short_help="Start one, and say where it listens.")
@name_option
@json_option
@click.option("--cpu-limit", metavar="CORES", type=click.FloatRange(0.01, 1024),
              help="So many cores at most, such as 0.5, where this host can enforce it; else idle priority.")
@click.option("--port", default=0, metavar="PORT", type=click.IntRange(0, 65535),
              help="Listen there.  [default: one that is free]")
@click.argument("what", metavar="ROLE", type=click.Choice(_ROLES))
def add(name: str, as_json: bool, cpu_limit: float | None, port: int, what: str) -> None:
    """Start a role: dns (the names of the VMs) or files (logs, crash files and reports over HTTP). Returns when it
    serves.

    \b
    Example:
      vmbus-emu role add dns
      vmbus-emu role add files --cpu-limit 0.2
    """
    with attached(name) as machine:
        added = machine.add_role(what, cpu_limit, port)
    if as_json:
        click.echo(json_text({"schema": 1, "name": name, "role": added}))
        return
    limit = f", {added['in_force']['words']}" if added["cpu_limit"] else ""
    click.echo(printable(f"{what}: {added['state']} (pid {added['pid']}) at {', '.join(added['listens'])}{limit}"))
    if added["hint"]:
        click.echo(printable(f"Try: {added['hint']}"), err=True)


@role.command("list", short_help="Those there are: where they listen, what limits them.")
@name_option
@json_option
def list_(name: str, as_json: bool) -> None:
    """List the roles of a running machine. A role that could not be started says why.

    \b
    Example:
      vmbus-emu role list
      vmbus-emu role list --json
    """
    with attached(name) as machine:
        roles = machine.roles()
    if as_json:
        click.echo(json_text({"schema": 1, "name": name, "roles": roles}))
        return
    if not roles:
        click.echo("There is no role; vmbus-emu role add dns starts one", err=True)
        return
    for line in role_lines(roles):
        click.echo(printable(line))


def role_lines(roles: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table, and what is wrong with those that do not run."""
    rows = [
        [one["name"], one["state"], UNKNOWN if one["pid"] is None else str(one["pid"]), str(one["incarnation"]),
         ", ".join(one["listens"]) or UNKNOWN, one["in_force"]["words"] if one["pid"] is not None else UNKNOWN]
        for one in roles
    ]  # fmt: skip
    faults = [f"{one['name']}: {one['fault']}" for one in roles if one["fault"]]
    return [*render(_COLUMNS, rows), *faults]


@role.command(short_help="End one.")
@name_option
@click.argument("what", metavar="ROLE", type=click.Choice(_ROLES))
def remove(name: str, what: str) -> None:
    """End a role; returns when its process is gone.

    \b
    Example:
      vmbus-emu role remove dns
    """
    with attached(name) as machine:
        machine.remove_role(what)
    click.echo(f"{what}: removed")
