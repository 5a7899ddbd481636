"""``vmbus-emu demo``: experiments that run by themselves and print what they showed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from vmbus_emu.cli.blast import lines, markdown
from vmbus_emu.cli.errors import FAILED
from vmbus_emu.cli.outfile import OutFile, OutFileType, attempt, complain, to_stdout
from vmbus_emu.cli.progress import progress_line
from vmbus_emu.cli.signals import ended_like_an_interrupt

_ARCHES = ("microkernel", "disaggregated", "monolithic")
#: Policies after which a component stays dead.
_FINAL = ("halt", "degraded")
_OUTPUT = OutFileType()


def _complete_policies(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from vmbus_emu.topology.data import POLICIES_OF

    words = (f"{role}={policy}" for role, fitting in POLICIES_OF.items() for policy in fitting if policy not in _FINAL)
    return [word for word in words if word.startswith(incomplete)]


@click.group(short_help="Experiments that run by themselves.", no_args_is_help=False)
def demo() -> None:
    """Experiments that run by themselves, on machines of their own, and print what they showed.

    \b
    Example:
      vmbus-emu demo isolation
      vmbus-emu demo isolation --html isolation.html
    """


@demo.command(short_help="The same kills in every placement, in one table.")
@click.option("--arch", "arches", metavar="ARCH", multiple=True, type=click.Choice(_ARCHES),
              help=f"Only this placement: {', '.join(_ARCHES)}. Repeatable.")
@click.option("--transport", default="zmq", show_default=True, metavar="TRANSPORT", type=click.Choice(("zmq", "ring")),
              help="What carries channel data: zmq or ring.")
@click.option("--policy", "policies", multiple=True, metavar="ROLE=POLICY", shell_complete=_complete_policies,
              help="What a role's death leads to: restart, standby, reboot or recover. Repeatable.")
@click.option("--json", "json_file", metavar="FILE", type=_OUTPUT, help="Keep the table as data; - is standard output.")
@click.option("--html", "html_file", metavar="FILE", type=_OUTPUT, help="Draw all runs, in time, as a page.")
@click.option("--markdown", "markdown_file", metavar="FILE", type=_OUTPUT, help="Keep the table for a document.")
@click.pass_context
def isolation(
    context: click.Context, arches: tuple[str, ...], transport: str, policies: tuple[str, ...],
    json_file: OutFile | None, html_file: OutFile | None, markdown_file: OutFile | None,
) -> None:
    """Kill drivers, parent, a worker, management, a role, hypervisor and a VM in each placement, while three VMs, one
    of them with emulated devices, overwrite their disks and ping each other; then read back. One table says what each
    kill was to each VM. Takes about half a minute, on machines named demo-ARCH, which are gone afterwards. Status 1 if
    an acknowledged write was lost, something was there that was never written or came twice, or what should come back
    did not.

    \b
    --json: {"schema", "demo", "placements", "transport", "policy", "host", "elapsed_s", "operations", "findings",
    "usual_pause_ms", "emulated", "rows": [{"component", "what", "fault", "words", "policy", "cells": {ARCH: {"killed",
    "host", "carried", "rebooted", "missing", "detect_ms" ..., "vms": {VM: {"outcome", "runs_again", "disk",
    "disk_gap_ms", "disk_pause_ms", "network" ...}}}}}]}; docs/isolation.md explains it.

    \b
    Example:
      vmbus-emu demo isolation
      vmbus-emu demo isolation --transport ring --policy storvsp=standby --policy parent=standby
      vmbus-emu demo isolation --html isolation.html --json isolation.json
    """
    from vmbus_emu.client import demo as demos

    for text in policies:
        if text.partition("=")[2] in _FINAL:
            raise click.UsageError(f'--policy "{text}": what is dead would stay dead, and the next kill needs it; '
                                   "try restart, standby, reboot or recover", context)  # fmt: skip
    chosen = [arch for arch in _ARCHES if arch in (arches or _ARCHES)]
    with ended_like_an_interrupt(), progress_line() as progress:
        report = demos.isolation(chosen, transport, policies, progress or (lambda event: None))
    runs = report.pop("runs")
    command = " ".join(("vmbus-emu demo isolation", *(f"--arch {arch}" for arch in arches),
                        *(["--transport ring"] if transport == "ring" else []),
                        *(f"--policy {text}" for text in policies)))  # fmt: skip
    unwritten = [
        attempt(html_file, lambda: _drawn(runs)),
        attempt(json_file, lambda: json.dumps(report, indent=1) + "\n"),
        attempt(markdown_file, lambda: markdown(report, command)),
    ]
    to_stderr = to_stdout(json_file, html_file, markdown_file)
    for line in lines(report):
        click.echo(line, err=to_stderr)
    complain(unwritten)
    click.echo(_page(html_file, command), err=True)
    if demos.failed(report):
        context.exit(FAILED)


def _drawn(runs: list[Mapping[str, Any]]) -> str:
    from vmbus_emu.client.timeline import pages

    return pages(runs)


def _page(html_file: OutFile | None, command: str) -> str:
    if html_file is None:
        return f"Try: {command} --html isolation.html draws what happened when"
    return f"The runs in time: {html_file.name}"
