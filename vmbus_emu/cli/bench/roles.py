"""``bench roles``: what a busy role in the parent partition costs the VMs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmbus_emu.cli.bench.choice import placed
from vmbus_emu.cli.bench.options import Asked, carry_out, measuring
from vmbus_emu.cli.errors import Failure

if TYPE_CHECKING:
    from bench.machines import Configuration


@click.command(short_help="A busy DNS server in the parent partition: what it costs the VMs.")
@placed("microkernel")
@click.option("--cpu-limit", default=0.2, show_default=True, metavar="CORES", type=click.FloatRange(0.01, 1024),
              help="The limit of the third arm, where this host can enforce one; else the role has idle priority.")
@click.option("--queries", default=16, show_default=True, metavar="N", type=click.IntRange(1, 256),
              help="Queries that the load keeps under way.")
@click.option("--seconds", default=0.5, show_default=True, metavar="N", type=click.FloatRange(0, 600, min_open=True),
              help="Of measuring, per job and machine.")
@measuring
def roles(
    configurations: list[Configuration], cpu_limit: float, queries: int, seconds: float, asked: Asked
) -> None:
    """Measure reads, writes with a flush and echoes of VMs on machines alike but for a role beside them: none; a DNS
    server that a load from outside keeps busy; the same with a CPU limit. Says how many queries it answered, and what
    processor time it and its load took. Ten rounds; takes about five minutes; needs the extra [roles].

    \b
    Example:
      vmbus-emu bench roles
      vmbus-emu bench roles --transport ring --cpu-limit 0.5 --json roles.json
    """
    from dataclasses import replace

    from bench import busyrole
    from bench import roles as measuring_roles
    from bench.jobs import STANDARD, BadJob, checked
    from bench.roletable import run_lines
    from vmbus_emu.topology.data import NO_ROLES

    if any(of.arch == "monolithic" for of in configurations):
        raise click.UsageError(f"{NO_ROLES}: --arch microkernel, or disaggregated")
    if asked.trace_file is not None:
        raise click.UsageError("bench roles takes no requests apart: --trace goes with bench and bench latency")
    try:
        jobs = [checked(replace(STANDARD[name], seconds=seconds)) for name in measuring_roles.JOBS]
    except BadJob as error:
        raise click.UsageError(str(error)) from None
    if lacking := busyrole.lacking():
        raise Failure(f"the role dns needs {lacking}, which is not installed",
                      "pip install 'vmbus-emu[roles]' (in a checkout: pip install -e '.[roles]')")  # fmt: skip
    carry_out(
        lambda told, command: measuring_roles.run(
            configurations, jobs, asked.rounds or measuring_roles.ROUNDS, asked.seed, told, command, asked.pin,
            cpu_limit, queries,
        ),
        asked, run_lines,
    )  # fmt: skip
