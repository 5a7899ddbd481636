"""``vmbus-emu up``: build a machine and leave it running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmbus_emu.cli.attach import named
from vmbus_emu.cli.options import json_option, topology, topology_options
from vmbus_emu.cli.progress import progress_line
from vmbus_emu.cli.ps import ps_lines
from vmbus_emu.cli.table import json_text

if TYPE_CHECKING:
    from vmbus_emu.topology import Topology


@click.command(short_help="Build a machine and start it.")
@topology_options
@json_option
def up(as_json: bool, **options: Any) -> None:
    """Build the machine that TOPOLOGY (a TOML file) and the flags describe, start it, and leave it running.
    Flags override the file; without a file: two VMs, each with a RAM disk and a NIC. Interrupted, it leaves
    nothing behind.

    \b
    Example:
      vmbus-emu up
      vmbus-emu up lab.toml --arch monolithic
      vmbus-emu up --name lab --vms 4 --disk vm2=a.img --policy parent=restart
    """
    wanted = topology(limits=True, **options)
    from vmbus_emu.client import Machine

    machine = Machine(wanted)
    try:
        with progress_line() as progress:
            machine.up(progress=progress)  # cleans up after itself if it does not return
        for line in machine.warnings:
            click.echo(f"warning: {line}", err=True)
        try:
            report = machine.ps(window=0)
        except KeyboardInterrupt:
            machine.down()
            raise
    finally:
        machine.close()
    if as_json:
        click.echo(json_text(report))
        return
    for line in ps_lines(report):
        click.echo(line)
    click.echo(_hint(wanted), err=True)


def _hint(wanted: Topology) -> str:
    flag = named(wanted.name)
    if len(wanted.vms) > 1 and all(vm.nics for vm in wanted.vms):
        return f"Try: vmbus-emu pingall{flag}"
    vm = wanted.vms[0]
    if vm.disks and vm.disks[0].kind != "null":
        return f"Try: vmbus-emu exec{flag} {vm.name} -- sha256 disk0"
    return f"Try: vmbus-emu shell{flag} {vm.name}"
