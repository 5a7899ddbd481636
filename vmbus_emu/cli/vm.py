"""``vmbus-emu vm``: VMs that come and go while the machine runs."""

from __future__ import annotations

from typing import Any

import click

from vmbus_emu.cli.attach import attached, named, running_vm
from vmbus_emu.cli.options import complete_vms, json_option, name_option
from vmbus_emu.cli.start import start
from vmbus_emu.cli.table import json_text


@click.group(short_help="Add a VM, stop, start or remove one, while the others run.")
def vm() -> None:
    """Create, stop, start and remove VMs while the machine runs. Management does it, by hypercalls; in the monolith,
    calls do. No other VM notices.

    \b
    Example:
      vmbus-emu vm add vm3 --memory 32MiB --disk a.img
      vmbus-emu vm stop vm3
      vmbus-emu vm start vm3
      vmbus-emu vm remove vm3
    """


@vm.command(short_help="Add a VM, and start it.")
@name_option
@json_option
@click.option("--memory", metavar="SIZE", help="Its memory.  [default: 16MiB]")
@click.option("--disk", "disks", multiple=True, metavar="FILE", type=click.Path(),
              help="Image file for a disk. Repeatable.  [default: a RAM disk of 64 MiB]")
@click.option("--ram", metavar="SIZE", help="A RAM disk of that size, instead.")
@click.option("--switch", metavar="SWITCH", help="The switch of its NIC.  [default: the first]")
@click.option("--no-services", is_flag=True, help="Without integration services: its devices are emulated.")
@click.argument("vm", metavar="NAME")
def add(
    name: str, as_json: bool, memory: str | None, disks: tuple[str, ...], ram: str | None, switch: str | None,
    no_services: bool, vm: str,
) -> None:
    """Add a VM and start it; returns when it is ready. It gets a MAC and an address as a VM of the topology does, and
    the others know its name. If it does not start, nothing is left of it.

    \b
    Example:
      vmbus-emu vm add vm3
      vmbus-emu vm add db --memory 64MiB --disk db.img
    """
    document: dict[str, Any] = {}
    if memory is not None:
        document["memory"] = memory
    if ram is not None:
        if disks:
            raise click.UsageError("--ram or --disk, not both")
        document["disk"] = [{"ram": ram}]
    if switch is not None:
        document["nic"] = [{"switch": switch}]
    if no_services:
        document["integration_services"] = False
    with attached(name) as machine:
        added = machine.add_vm(vm, disks, **document)
    if as_json:
        click.echo(json_text({"schema": 1, **added}))
    else:
        click.echo(f"{vm}: ready (pid {added['pid']}, address {added['address']})")


@vm.command(short_help="Cut a VM's power.")
@name_option
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
def stop(name: str, vm: str) -> None:
    """Cut the power of VM: its partition and its process end, whatever it does. What its disks have acknowledged is
    there when it starts again. It stays off until then.

    \b
    Example:
      vmbus-emu vm stop vm2
    """
    vm = running_vm(name, vm)
    with attached(name) as machine:
        machine.stop_vm(vm)
    click.echo(f"{vm}: off; vmbus-emu start{named(name)} {vm} starts it")


@vm.command(short_help="Take a VM away.")
@name_option
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
def remove(name: str, vm: str) -> None:
    """Take VM away, running or not: its partition, its process, its ports. Image files stay; a RAM disk is gone.

    \b
    Example:
      vmbus-emu vm remove vm3
    """
    vm = running_vm(name, vm)
    with attached(name) as machine:
        machine.remove_vm(vm)
    click.echo(f"{vm}: removed")


vm.add_command(start)
