"""``vmbus-emu driver``: the physical devices, their drivers, and new ones under running VMs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from vmbus_emu.cli.attach import attached
from vmbus_emu.cli.errors import FAILED
from vmbus_emu.cli.options import json_option, name_option
from vmbus_emu.cli.table import Column, json_text, printable, render

_COLUMNS = (Column("DEVICE"), Column("MODEL"), Column("DRIVER"), Column("VERSION"), Column("USED BY", shrinks=True))


@click.group(short_help="The physical devices and their drivers; load one while VMs run.")
def driver() -> None:
    """Which driver each physical device has, and new drivers under running VMs. The monolith's are fixed when its
    image is built (vmbus-emu image build).

    \b
    Example:
      vmbus-emu driver list
      vmbus-emu driver add examples/driver-megaraid
    """


@driver.command("list", short_help="Every physical device and its driver.")
@name_option
@json_option
def list_(name: str, as_json: bool) -> None:
    """Every physical device: its model, its driver, and who needs it. A version is known of drivers that were added.

    \b
    Example:
      vmbus-emu driver list --json
    """
    with attached(name) as machine:
        devices = machine.drivers()
    if as_json:
        click.echo(json_text({"schema": 1, "name": name, "devices": devices}))
        return
    for line in device_lines(devices):
        click.echo(line)


def device_lines(devices: Sequence[Mapping[str, Any]]) -> list[str]:
    """The devices as a table."""
    return render(_COLUMNS, [
        [one["device"], one["model"], one["driver"] or "none", one["version"] or "-", ", ".join(one["users"]) or "-"]
        for one in devices
    ])  # fmt: skip


@driver.command(short_help="Load a driver while VMs run.")
@name_option
@json_option
@click.argument("source", metavar="PATH|PACKAGE", type=click.Path())
@click.pass_context
def add(context: click.Context, name: str, as_json: bool, source: str) -> None:
    """Load the drivers of a package: a folder with a pyproject.toml, or one that is installed. They are tried first,
    in a process of their own, with a scratch device of each model that they claim and that this machine has; one that
    is of no use is told, and no machine has seen it. Then the parent's driver store loads them, and gives them the
    devices that they know. Requests of VMs wait meanwhile, and none fails. Status 1 if a device was not taken.

    \b
    Example:
      vmbus-emu driver add examples/driver-megaraid
      vmbus-emu driver add nvme
    """
    with attached(name) as machine:
        bound = machine.add_driver(source)
    if as_json:
        click.echo(json_text({"schema": 1, "name": name, "bound": bound}))
    else:
        for one in bound:
            click.echo(printable(bound_line(one)))
    if any(one["error"] for one in bound):
        context.exit(FAILED)


def bound_line(one: Mapping[str, Any]) -> str:
    """What came of a driver for one device."""
    if one["error"]:
        return f"{one['device']}: not driven by {one['driver']}: {one['error']}"
    before = f", before by {one['was']}" if one["was"] else ", before by none"
    held = f"requests were held for {one['held_ms']:.1f} ms"
    return f"{one['device']}: driven by {one['driver']} {one['version']}{before}; {held}"
