"""``bench latency`` and ``bench baseline``: chosen jobs on chosen configurations; other mechanisms alone."""

from __future__ import annotations

from pathlib import Path

import click

from vmbus_emu.cli.bench.choice import configurations_of, depths, jobs_of, placed, sizes
from vmbus_emu.cli.bench.options import Asked, measure, measuring


@click.command(short_help="Chosen jobs, sizes and depths on chosen configurations.")
@placed("all")
@click.option("--job", "names", metavar="NAME", multiple=True, help="A standard job (see bench list); several may be "
              "given.  [default: read-4k]")
@click.option("--jobs", "file", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Jobs from a TOML file instead.")
@click.option("--size", "wanted_sizes", metavar="LIST", callback=sizes, help="Bytes per request, such as 512,4k,1m.")
@click.option("--qd", "wanted_depths", metavar="LIST", callback=depths, help="Requests under way, such as 1,32.")
@click.option("--rate", default=0.0, metavar="N", type=click.FloatRange(0, 1e6),
              help="Open loop: so many requests per second, timed from when each was due.")
@click.option("--seconds", default=None, metavar="N", type=click.FloatRange(0, 600, min_open=True),
              help="Of measuring, per job and machine.  [default: 0.3]")
@measuring
def latency(
    archs: tuple[str, ...], transports: tuple[str, ...], poll: str, names: tuple[str, ...], file: Path | None,
    wanted_sizes: tuple[int, ...], wanted_depths: tuple[int, ...], rate: float, seconds: float | None, asked: Asked,
) -> None:
    """Measure chosen jobs on chosen configurations, as bench does with the standard ones.

    \b
    Example:
      vmbus-emu bench latency --arch all --transport all --size 512,4k,64k,1m --qd 1,32
      vmbus-emu bench latency --job null --rate 5000
    """
    from bench.jobs import BadJob

    if file is not None and names:
        raise click.UsageError("--jobs brings its own jobs: leave --job out")
    try:
        jobs = jobs_of(names or ("read-4k",), file, wanted_sizes, wanted_depths, rate, seconds)
    except BadJob as error:
        raise click.UsageError(str(error)) from None
    measure(configurations_of(archs, transports, poll), jobs, (), asked)


@click.command(short_help="Round trips of other mechanisms, on this machine.")
@measuring
def baseline(asked: Asked) -> None:
    """Measure the baselines alone: a call, pipes, sockets, ZeroMQ, shared memory."""
    from bench.baselines import BASELINES

    measure((), [], tuple(BASELINES), asked)
