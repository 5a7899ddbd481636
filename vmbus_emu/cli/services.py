"""``vmbus-emu services``: install a VM's integration services, or remove them."""

from __future__ import annotations

import click

from vmbus_emu.cli.attach import attached, running_vm
from vmbus_emu.cli.options import complete_vms, json_option, name_option
from vmbus_emu.cli.table import json_text


@click.command(short_help="Install or remove a VM's integration services.")
@name_option
@json_option
@click.argument("what", metavar="install|remove", type=click.Choice(("install", "remove")))
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
def services(name: str, as_json: bool, what: str, vm: str) -> None:
    """Give a VM integration services, or take them away: it shuts down in order and starts again with synthetic
    devices over VMBus, or with emulated ones. Its disks, its addresses and its data stay. Returns when it is ready.

    \b
    Example:
      vmbus-emu services remove vm2
      vmbus-emu services install vm2
    """
    vm = running_vm(name, vm)
    with attached(name) as machine:
        changed = machine.services(vm, what == "install")
    if as_json:
        click.echo(json_text({"schema": 1, **changed}))
        return
    devices = "synthetic devices over VMBus" if what == "install" else "emulated devices"
    click.echo(f"{vm}: ready with {devices} (pid {changed['pid']}, incarnation {changed['incarnation']})")
