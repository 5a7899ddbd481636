"""``vmbus-emu down``: end a machine, and sweep what a killed one left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from vmbus_emu.cli.options import name_option
from vmbus_emu.cli.table import printable

#: The steps of a power-off that the user should hear of, and what they mean.
_TOLD = {
    "escalated": "did not stop when asked, killed",
    "waiting": "killed, but not gone yet, usually for I/O",
    "suspended": "otherwise it is killed",
    "killing": "does not answer, killed",
}


@click.command(short_help="End a machine.")
@name_option
@click.option("--timeout", default=10.0, show_default=True, metavar="SECONDS", type=click.FloatRange(0, min_open=True),
              help="Kill what has not ended by then.")
def down(name: str, timeout: float) -> None:
    """End a machine and everything it started. Done is also when nothing was running; files that a killed
    machine left are removed.

    \b
    Example:
      vmbus-emu down
      vmbus-emu down --name lab
    """
    from vmbus_emu.runfolder import RunFolder, sweep

    pid = RunFolder(name).holder()
    if pid is not None and _end(name, timeout):
        click.echo(f"{name}: down")
    elif sweep(name):
        click.echo(f"{name}: was not running; removed what a killed machine left")
    elif RunFolder(name).holder() is None:
        click.echo(f"{name}: nothing to do, it is not running")
    else:
        click.echo(f"{name}: another one has just been started, and is left alone")


def _end(name: str, timeout: float) -> bool:
    """Ask the machine to end; ``False`` if it was gone before we came."""
    from vmbus_emu.client import Machine, NotRunning

    try:
        machine = Machine.attach(name)
    except NotRunning:
        return False
    try:
        machine.down(progress=_tell, timeout=timeout)
    except NotRunning:
        return False
    finally:
        machine.close()
    return True


def _tell(step: Mapping[str, Any]) -> None:
    """Name whom a power-off had to kill or waits for, on a terminal or not. One that goes well needs no words."""
    if step.get("step") in _TOLD and step.get("waiting"):
        click.echo(printable(f"{', '.join(step['waiting'])}: {_TOLD[step['step']]}"), err=True)
