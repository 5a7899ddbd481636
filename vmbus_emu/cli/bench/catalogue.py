"""``bench list``: what can be measured."""

from __future__ import annotations

import click

from vmbus_emu.cli.bench.choice import ARCHS


@click.command(short_help="The jobs, configurations and baselines there are.", name="list")
def list_() -> None:
    """Show what can be measured: jobs with their requests, configurations, baselines."""
    from bench import busyrole
    from bench.baselines import BASELINES
    from bench.devices import configurations
    from bench.jobs import MACRO, NETWORK
    from bench.jobs import STANDARD as JOBS
    from bench.machines import MODES, STANDARD
    from bench.operations import OPERATIONS
    from bench.roles import ARMS
    from bench.runner import available

    click.echo("jobs")
    for name, job in {**JOBS, **MACRO, **NETWORK}.items():
        size = f", {job.size} bytes" if job.size else ""
        lacking = OPERATIONS[job.operation].lacking()
        only = "" if name in JOBS else f", bench {'macro' if name in MACRO else 'network'} only"
        told = only + (f" ({lacking})" if lacking else "")
        click.echo(f"  {name:16} {job.operation}{size}, depth {job.depth}, {job.seconds:g} s{told}")
    click.echo("configurations")
    for configuration in STANDARD:
        click.echo(f"  {configuration.name}")
    click.echo("configurations with emulated devices, bench devices only")
    for configuration in configurations(ARCHS, MODES):
        click.echo(f"  {configuration.name}")
    lacking = busyrole.lacking()
    click.echo("arms, bench roles only" + (f" (needs {lacking}: pip install 'vmbus-emu[roles]')" if lacking else ""))
    for arm, words in ARMS.items():
        click.echo(f"  {arm:16} {words}")
    click.echo("baselines")
    here = available()
    for name in BASELINES:
        click.echo(f"  {name}" + ("" if name in here else " (not installed)"))
