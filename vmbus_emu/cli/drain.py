"""``vmbus-emu drain``: shut the VMs down in order, and reboot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from vmbus_emu.cli.attach import attached, named
from vmbus_emu.cli.errors import FAILED, INTERRUPTED
from vmbus_emu.cli.options import json_option, name_option, seconds
from vmbus_emu.cli.table import json_text, plural, printable


@click.command(short_help="Shut the VMs down in order, and reboot.")
@name_option
@json_option
@click.option("--grace", default="10s", show_default=True, metavar="TIME", callback=seconds,
              help="Kill a VM that has not shut down by then.")
@click.pass_context
def drain(context: click.Context, name: str, as_json: bool, grace: float) -> None:
    """Shut the VMs down one after the other and reboot the machine; the VMs boot again from their disks. A VM that
    shuts down takes no new commands, ends those that run, and flushes its disks. It needs no hypervisor: this is
    the orderly end of a machine whose hypervisor died under policy "degraded". Once begun it goes on, also when this
    command is interrupted. Status 1 if a VM was killed or could not flush a disk.

    \b
    Example:
      vmbus-emu drain
      vmbus-emu drain --grace 30s --json
    """
    told = (lambda step: None) if as_json else _tell
    with attached(name) as machine:
        try:
            report = machine.drain(grace, told)
        except KeyboardInterrupt:
            click.echo(f"the drain goes on without you; vmbus-emu watch{named(name)} shows it", err=True)
            context.exit(INTERRUPTED)
    if as_json:
        click.echo(json_text({"schema": 1, "name": name, **report}))
    else:
        click.echo(f"rebooted in {report['reboot_ms'] / 1000:.2f} s")
    if any(vm["how"] in ("killed", "died") or vm["unflushed"] for vm in report["vms"]):
        context.exit(FAILED)


def _tell(step: Mapping[str, Any]) -> None:
    for line in step_lines(step):
        click.echo(printable(line))


def step_lines(step: Mapping[str, Any]) -> list[str]:
    """What a step of a drain means to the user; most of them one line."""
    match step["step"]:
        case "draining" if step["degraded_s"] is not None:
            return [
                f"degraded for {step['degraded_s']:.1f} s before: the VMs kept running for that time, "
                "which policy reboot would have cut short"
            ]
        case "vm":
            return [f"{step['vm']}  {_ending(step)}"]
    return []


def _ending(vm: Mapping[str, Any]) -> str:
    spent = _span(vm["ms"])
    match vm["how"]:
        case "off" if not vm["unflushed"]:
            return f"flushed and off after {spent}"
        case "off":
            lost = ", ".join(vm["unflushed"])
            return f"off after {spent}; {plural(len(vm['unflushed']), 'disk')} not flushed: {lost}"
        case "killed":
            return f"killed after {spent}: did not shut down"
        case "died":
            return f"died after {spent}, before it had shut down"
    return "was not running"


def _span(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.3g} s"
