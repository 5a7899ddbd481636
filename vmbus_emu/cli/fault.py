"""``vmbus-emu fault``: faults that last, and end no process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from vmbus_emu.cli.attach import attached
from vmbus_emu.cli.options import complete_components, json_option, name_option, seconds
from vmbus_emu.cli.table import Column, json_text, render

#: As they are typed, up to the value; :mod:`vmbus_emu.faults` says what fits which component.
LASTING = ("slow=", "error=", "drop=")
_COLUMNS = (Column("COMPONENT", shrinks=True), Column("FAULT"), Column("HOST", shrinks=True), Column("PID", right=True),
            Column("INC", right=True), Column("ENDS IN", right=True))  # fmt: skip


def complete_lasting(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Beginnings of faults."""
    return [fault for fault in LASTING if fault.startswith(incomplete)]


@click.command(short_help="Make a driver slow, failing or lossy; without arguments: say which are.")
@name_option
@json_option
@click.option("--for", "seconds", metavar="TIME", callback=seconds, help="Clear it after this time.")
@click.option("--seed", default=0, metavar="N", type=click.IntRange(0, (1 << 63) - 1),
              help="Which requests it hits: the same with the same seed.  [default: 0]")
@click.option("--clear", is_flag=True, help="Take the faults of COMPONENT away, or all.")
@click.argument("component", metavar="[COMPONENT]", required=False, shell_complete=complete_components)
@click.argument("faults", metavar="[FAULT]...", nargs=-1, shell_complete=complete_lasting)
@click.pass_context
def fault(
    context: click.Context, name: str, as_json: bool, seconds: float, seed: int, clear: bool, component: str | None,
    faults: tuple[str, ...],
) -> None:
    """Give the drivers of COMPONENT (storvsp or netvsp) faults that last: slow=TIME, every request or frame reaches
    them later; error=SHARE, so many disk requests fail; drop=SHARE, so many frames are lost. They stay until --for is
    over, until they are cleared, or until the process ends: its next incarnation begins without faults. Prints the
    faults that are on. What ends a process is for kill.

    \b
    Example:
      vmbus-emu fault storvsp slow=50ms error=1% --for 5s
      vmbus-emu fault netvsp drop=1%
      vmbus-emu fault
      vmbus-emu fault --clear
    """
    if clear and (faults or seconds):
        raise click.UsageError("--clear takes at most a component", context)
    if component is not None and not clear and not faults:
        raise click.UsageError(f"which fault shall {component} have? slow=50ms, error=1% or drop=1%", context)
    if component is None and seconds:
        raise click.UsageError("--for needs a component and a fault", context)
    with attached(name) as machine:
        if clear:
            on = machine.clear_faults(component or "")
        elif component is None:
            on = machine.faults()
        else:
            on = machine.fault(component, *faults, seconds=seconds, seed=seed)
    if as_json:
        click.echo(json_text({"schema": 1, "name": name, "faults": on}))
    else:
        for line in fault_lines(on):
            click.echo(line)


def fault_lines(on: Sequence[Mapping[str, Any]]) -> list[str]:
    """The faults that are on, as a table."""
    if not on:
        return ["no faults are on"]
    return render(_COLUMNS, [
        [one["component"], one["fault"], one["host"], str(one["pid"]), str(one["incarnation"]),
         "-" if one["left_s"] is None else f"{one['left_s']:.1f}s"] for one in on
    ])  # fmt: skip
