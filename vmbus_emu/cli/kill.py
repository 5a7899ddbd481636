"""``vmbus-emu kill``: end a component, and say what it cost."""

from __future__ import annotations

import click

from vmbus_emu import crashpoints
from vmbus_emu.cli.attach import attached, named
from vmbus_emu.cli.errors import FAILED
from vmbus_emu.cli.options import F, complete_components, json_option, name_option
from vmbus_emu.cli.runs import kill_lines, without_histories
from vmbus_emu.cli.table import json_text

#: What a component may be struck by; ``vmbus_emu.faults`` says what fits which.
FAULTS = ("kill", "hang", "segv", "oom", "exit", "panic", "stop", "scribble")


def complete_faults(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of faults."""
    return [fault for fault in FAULTS if fault.startswith(incomplete)]


def checked_fault(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """The machine knows what fits which component; this knows the names."""
    if value.partition("=")[0] not in FAULTS:
        raise click.BadParameter(f'"{value}" is none of {", ".join(FAULTS)}', context, parameter)
    return value


def fault_option(function: F) -> F:
    """``--fault`` of ``kill`` and ``chaos``."""
    return click.option(
        "--fault", default="kill", show_default=True, metavar="FAULT", shell_complete=complete_faults,
        callback=checked_fault, help=f"How: {', '.join(FAULTS)}.",
    )(function)  # fmt: skip


def complete_steps(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of steps that the component comes by."""
    component = context.params.get("component") or ""
    return [step for step in crashpoints.fitting(component) or crashpoints.STEPS if step.startswith(incomplete)]


def checked_step(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Names and numbers; what fits which component is asked when that is known."""
    try:
        return str(crashpoints.parse(value)) if value else ""
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


@click.command(short_help="Kill a component, and say who survived and for how long nobody was served.")
@name_option
@json_option
@fault_option
@click.option("--timeout", default=15.0, show_default=True, metavar="SECONDS", type=click.FloatRange(0, min_open=True),
              help="Wait so long for what should follow.")
@click.option("--at", default="", metavar="STEP[:N]", shell_complete=complete_steps, callback=checked_step,
              help="Die at that step, the Nth time it is reached (1): "
              + "; ".join(f"{', '.join(crashpoints.fitting(role))} ({role})" for role in crashpoints.INSTALLERS) + ".")
@click.argument("component", metavar="COMPONENT", shell_complete=complete_components)
@click.pass_context
def kill(
    context: click.Context, name: str, as_json: bool, fault: str, timeout: float, at: str, component: str
) -> None:
    """Kill the process that carries COMPONENT (a name that ps shows, or "machine" for all of it), while every VM reads
    its disk and pings its neighbour. Says who survived, how long each VM was not served, and how the time was spent:
    until the death was noticed, the replacement was ready, the devices had channels again, and the first request
    was answered. Nothing is written to the disks. Status 1 if a request was lost, or what should come back did not.

    With --at it dies at a step of its work. A step of negotiation is reached by a process that begins, so the one that
    runs is killed at once, and its replacement dies there. Status 1 if nobody came to the step within 5 seconds.

    \b
    Example:
      vmbus-emu kill parent
      vmbus-emu kill storvsp --fault segv
      vmbus-emu kill storvsp --at complete
      vmbus-emu kill vm1 --json
    """
    if at:
        _check_step(context, component, at, fault)
    with attached(name) as machine:
        from vmbus_emu.client.judging import failed

        run = machine.kill(component, fault, timeout, at)
    if as_json:
        click.echo(json_text(without_histories(run)))
    else:
        for line in kill_lines(run):
            click.echo(line)
        if component == "machine":
            click.echo(f"vmbus-emu down{named(name)} removes the files it left", err=True)
        elif run["machine"]["arch"] == "monolithic" and any("crash" in event for event in run["events"]):
            click.echo(f"Try: vmbus-emu logs --crash{named(name)}", err=True)
    if failed(run):
        context.exit(FAILED)


def _check_step(context: click.Context, component: str, at: str, fault: str) -> None:
    """Raise a usage error for what no machine has: components and steps that do not fit."""
    step = crashpoints.parse(at).step
    why = crashpoints.refusal(component, step)
    if why:
        raise click.UsageError(f"{component} cannot die at {step}: {why}", context)
    if fault not in crashpoints.FAULTS:
        raise click.UsageError(f"--at {step} with --fault {fault}: try {', '.join(crashpoints.FAULTS)}", context)
