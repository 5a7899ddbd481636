"""``vmbus-emu image build`` and ``image install``: what a monolith boots from.

Its drivers are fixed when its image is built. A new driver means a new image, and a reboot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from vmbus_emu.cli.attach import attached
from vmbus_emu.cli.drain import step_lines
from vmbus_emu.cli.options import json_option, name_option, seconds
from vmbus_emu.cli.table import json_text, plural, printable


@click.command(short_help="Build an image with a set of drivers.")
@json_option
@click.option("--drivers", required=True, metavar="NAME,...", help="Drivers by name, or folders of packages.")
@click.argument("out", metavar="OUT", type=click.Path())
def build(as_json: bool, drivers: str, out: str) -> None:
    """Write the image OUT with the drivers' code, a manifest, and a checksum over the code. Each driver is tried first.

    \b
    Example:
      vmbus-emu image build --drivers nvme,e1000 esx.img
      vmbus-emu up --arch monolithic --image esx.img
    """
    from vmbus_emu import image as images
    from vmbus_emu.client.drivers import try_out

    sources = [source.strip() for source in drivers.split(",") if source.strip()]
    if not sources:
        raise click.UsageError("--drivers names none")
    manifest = images.build([found for source in sources for found in try_out(source)], out)
    if as_json:
        click.echo(json_text({**manifest, "file": out}))
        return
    for driver in manifest["drivers"]:
        click.echo(f"{driver['name']} {driver['version']}  {driver['kind']}  {', '.join(driver['models'])}")
    click.echo(f"{out}: {plural(len(manifest['drivers']), 'driver')}, sha256 {manifest['sha256'][:16]}...")


@click.command(short_help="Boot a running monolith from another image.")
@name_option
@json_option
@click.option("--grace", default="10s", show_default=True, metavar="TIME", callback=seconds,
              help="Kill a VM that has not shut down by then.")
@click.argument("file", metavar="FILE", type=click.Path())
def install(name: str, as_json: bool, grace: float, file: str) -> None:
    """Have the monolith boot from FILE: its VMs shut down one after the other, and it reboots. Prints how long they
    were down. An image without a driver for one of the machine's devices is refused, and nothing happens.

    \b
    Example:
      vmbus-emu image install esx.img
    """
    told = (lambda step: None) if as_json else _tell
    with attached(name) as machine:
        report = machine.install_image(file, grace, told)
    if as_json:
        click.echo(json_text({"schema": 1, "name": name, **report}))
    else:
        click.echo(f"booted from {file}; VMs were down for {report['down_ms'] / 1000:.2f} s")


def _tell(step: Mapping[str, Any]) -> None:
    for line in step_lines(step):
        click.echo(printable(line))
