"""``vmbus-emu start``: start a VM that died or was stopped."""

from __future__ import annotations

import click

from vmbus_emu.cli.attach import attached, running_vm
from vmbus_emu.cli.options import complete_vms, json_option, name_option
from vmbus_emu.cli.table import json_text


@click.command(short_help="Start a VM that died or was stopped.")
@name_option
@json_option
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
def start(name: str, as_json: bool, vm: str) -> None:
    """Start a VM that is dead or off again, with the disks it had. Returns when it is ready.

    \b
    Example:
      vmbus-emu kill vm1
      vmbus-emu start vm1
    """
    vm = running_vm(name, vm)
    with attached(name) as machine:
        started = machine.start(vm)
    if as_json:
        click.echo(json_text({"schema": 1, **started}))
    else:
        click.echo(f"{vm}: ready (pid {started['pid']}, incarnation {started['incarnation']})")
