"""``vmbus-emu stop``: shut one VM down."""

from __future__ import annotations

import click

from vmbus_emu.cli.attach import attached, running_vm
from vmbus_emu.cli.errors import FAILED
from vmbus_emu.cli.options import complete_vms, json_option, name_option, seconds
from vmbus_emu.cli.table import json_text, plural, printable


@click.command(short_help="Shut a VM down in order, or pull its plug.")
@name_option
@json_option
@click.option("--force", is_flag=True, help="Pull the plug: nothing is ended in order, nothing is flushed.")
@click.option("--grace", default="10s", show_default=True, metavar="TIME", callback=seconds,
              help="Give up waiting for a VM that has not shut down by then.")
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
@click.pass_context
def stop(context: click.Context, name: str, as_json: bool, force: bool, grace: float, vm: str) -> None:
    """Have a VM shut down, through its shutdown service: it takes no new commands, ends those that run, and flushes
    its disks. Returns when it is off. No policy starts it again; "vmbus-emu start" does. Status 1 if it does not shut
    down, or could not flush a disk.

    \b
    Example:
      vmbus-emu stop vm1
      vmbus-emu stop vm1 --force
      vmbus-emu start vm1
    """
    vm = running_vm(name, vm)
    with attached(name) as machine:
        report = machine.stop(vm, force, grace)
    if as_json:
        click.echo(json_text({"schema": 1, "name": name, **report}))
    else:
        how = "plug pulled" if report["how"] == "plug pulled" else "off"
        lost = report["unflushed"]
        told = f"; {plural(len(lost), 'disk')} not flushed: {', '.join(lost)}" if lost else ""
        click.echo(printable(f"{vm}: {how} after {report['ms']:.0f} ms{told}"))
    if report["unflushed"]:
        context.exit(FAILED)
