"""``vmbus-emu plan``: what ``up`` would start, without starting it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from vmbus_emu.cli.options import json_option, topology, topology_options
from vmbus_emu.cli.table import Column, json_text, plural, render

if TYPE_CHECKING:
    from vmbus_emu.plan import Plan
    from vmbus_emu.topology import Topology

_COMPONENTS = (Column("PROCESS", shrinks=True), Column("COMPONENT", shrinks=True), Column("ROLE"), Column("WHAT"))
_LINKS = (Column("FROM", shrinks=True), Column("KIND"), Column("TO", shrinks=True), Column("NOTE"))


@click.command(short_help="Show what up would start, and start nothing.")
@topology_options
@json_option
def plan(as_json: bool, **options: Any) -> None:
    """Show which process would carry which component, and what would link them, for the machine that TOPOLOGY
    and the flags describe. Nothing is started.

    \b
    Example:
      vmbus-emu plan --arch monolithic
      vmbus-emu plan lab.toml --json
    """
    wanted = topology(limits=False, **options)
    from vmbus_emu.plan import plan as placed

    result = placed(wanted)
    if as_json:
        carried = "call" if wanted.arch == "monolithic" else wanted.transport
        head = {"schema": 1, "name": wanted.name, "arch": wanted.arch, "transport": carried}
        click.echo(json_text({**head, **asdict(result)}))
        return
    for line in plan_lines(wanted, result):
        click.echo(line)


def plan_lines(wanted: Topology, result: Plan) -> list[str]:
    """A headline, a table of processes and their components, a table of links."""
    carried = "calls" if wanted.arch == "monolithic" else wanted.transport
    headline = (
        f"{wanted.name}: {wanted.arch} over {carried}, {plural(len(wanted.vms), 'VM')} "
        f"in {plural(len(result.processes), 'process', 'es')}"
    )
    components = [
        # A process is named once; the rows below it are what else dies with it.
        [process.name if index == 0 else "", component.name, component.role, component.what]
        for process in result.processes
        for index, component in enumerate(process.components)
    ]
    links = [[link.source, link.kind, link.target, link.note or ""] for link in result.links]
    return [headline, *render(_COMPONENTS, components), "", *render(_LINKS, links)]
