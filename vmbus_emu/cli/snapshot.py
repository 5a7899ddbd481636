"""``vmbus-emu snapshot``: a consistent copy of a VM's disk."""

from __future__ import annotations

import click

from vmbus_emu.cli.attach import attached, running_vm
from vmbus_emu.cli.options import complete_vms, json_option, name_option
from vmbus_emu.cli.table import json_text, printable


@click.command(short_help="Copy a VM's disk while it runs.")
@name_option
@json_option
@click.option("--disk", default="disk0", show_default=True, metavar="DISK", help="Which of its disks.")
@click.option("--no-quiesce", is_flag=True, help="Do not ask the VM; copy what a power failure would leave.")
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
@click.argument("file", metavar="FILE", type=click.Path())
def snapshot(name: str, as_json: bool, disk: str, no_quiesce: bool, vm: str, file: str) -> None:
    """Copy a VM's disk into FILE, which must not exist, as a raw image with its holes. The VM is asked to hold still
    (VSS): databases in it (sqlitebench, kvlog) end their transactions, what it was writing ends and is flushed, what it
    wants to write then waits, and nothing of it fails. It is let go when the copy is made. If it does not hold still,
    there is no copy.

    With --no-quiesce nobody asks: the VM is stopped for as long as the copy takes, whatever it is doing. A database in
    the copy may need its journal (vmbus-emu image extract brings it along). In the monolith all VMs stop, for there
    they are one process.

    \b
    Example:
      vmbus-emu snapshot vm1 copy.img
      vmbus-emu snapshot vm1 crashed.img --no-quiesce
    """
    vm = running_vm(name, vm)
    with attached(name) as machine:
        report = machine.snapshot(vm, file, disk, quiesce=not no_quiesce)
    if as_json:
        click.echo(json_text({"schema": 1, "name": name, **report}))
        return
    held = ""
    if report["quiesced"]:
        held = f", {vm} held still for {report['frozen_ms']:.0f} ms"
    elif report["stopped_ms"] is not None:
        held = f", {vm} was stopped for {report['stopped_ms']:.0f} ms"
    click.echo(printable(
        f"{report['disk']}: {report['bytes']} bytes ({report['data_bytes']} of data) in {report['ms']:.0f} ms{held}"
    ))
