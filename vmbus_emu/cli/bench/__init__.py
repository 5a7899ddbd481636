"""``vmbus-emu bench``: what each architecture's messages cost, with intervals, and whether the numbers can be believed.

The measuring is the package ``bench``; here arguments become jobs and configurations, and runs become text.
"""

from __future__ import annotations

import click

from vmbus_emu.cli.bench.catalogue import list_
from vmbus_emu.cli.bench.chosen import baseline, latency
from vmbus_emu.cli.bench.compare import compare
from vmbus_emu.cli.bench.devices import devices
from vmbus_emu.cli.bench.macro import macro
from vmbus_emu.cli.bench.options import Asked, measure, measuring
from vmbus_emu.cli.bench.rates import network, throughput
from vmbus_emu.cli.bench.report import report
from vmbus_emu.cli.bench.roles import roles
from vmbus_emu.cli.bench.scale import boot, scale


@click.group(invoke_without_command=True, short_help="Measure what the architectures cost, and compare.")
@measuring
@click.pass_context
def bench(context: click.Context, asked: Asked) -> None:
    """Measure the standard jobs on every architecture and transport, interleaved, on fresh machines, with baselines in
    the same run. Takes about three minutes. Every figure has a 95 % interval over the machines; a run that cannot be
    trusted says why.

    \b
    Example:
      vmbus-emu bench
      vmbus-emu bench --json run.json --html report.html
      vmbus-emu bench latency --arch all --transport all --size 512,4k,64k,1m --qd 1,32
      vmbus-emu bench compare before.json after.json
    """
    if context.invoked_subcommand is not None:
        if asked.given:
            raise click.UsageError(f"{asked.given} goes behind {context.invoked_subcommand}, not before it")
        return
    from bench.baselines import BASELINES
    from bench.jobs import STANDARD as JOBS
    from bench.machines import STANDARD

    apart = [JOBS[name] for name in ("null", "read-4k")]
    measure(STANDARD, list(JOBS.values()), asked, tuple(BASELINES), apart)


for _verb in (latency, throughput, network, devices, roles, scale, boot, baseline, macro, compare, report, list_):
    bench.add_command(_verb)
