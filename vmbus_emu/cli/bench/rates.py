"""``bench throughput`` and ``bench network``: what goes through, with more requests under way, and between VMs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from vmbus_emu.cli.bench.choice import configurations_of, depths, placed
from vmbus_emu.cli.bench.options import Asked, measure, measuring

if TYPE_CHECKING:
    from bench.jobs import Job

_ROUNDS = 5
_JOBS = ("null", "read-4k", "read-1m")
#: Bytes under way, of all requests of one load: more only waits for memory.
_MOST_UNDER_WAY = 8 << 20


@click.command(short_help="Requests and bytes per second against depth.")
@placed("all")
@click.option("--qd", "wanted", default="1,2,4,8,16,32,64", show_default=True, metavar="LIST", callback=depths,
              help="Requests under way; at most 8 MiB of them.")
@click.option("--seconds", default=0.2, show_default=True, metavar="N", type=click.FloatRange(0, 600, min_open=True),
              help="Of measuring, per job, depth and machine.")
@measuring
def throughput(
    archs: tuple[str, ...], transports: tuple[str, ...], poll: str, wanted: tuple[int, ...], seconds: float,
    asked: Asked,
) -> None:
    """Measure how many null requests, reads of 4 KiB and reads of 1 MiB a second a VM gets done with more and more of
    them under way. Five rounds; takes about four minutes.

    \b
    Example:
      vmbus-emu bench throughput
      vmbus-emu bench throughput --arch microkernel --qd 1,32
    """
    from bench.jobs import BadJob
    from bench.scaletable import throughput_lines

    try:
        jobs = throughput_jobs(wanted, seconds)
    except BadJob as error:
        raise click.UsageError(str(error)) from None
    if not jobs:
        raise click.UsageError("no depth to measure: --qd 1,32, for example")
    measure(configurations_of(archs, transports, poll), jobs, (), asked, rounds=_ROUNDS, lines=throughput_lines)


def throughput_jobs(wanted: tuple[int, ...], seconds: float) -> list[Job]:
    """Each job at every depth that its size allows. Raises :class:`bench.jobs.BadJob`."""
    from bench.jobs import STANDARD, varied

    jobs = [replace(STANDARD[name], seconds=seconds) for name in _JOBS]
    every = varied(jobs, (), wanted, 0) if wanted else []
    return [job for job in every if job.depth == 1 or job.depth * job.size <= _MOST_UNDER_WAY]


@click.command(short_help="Echoes and bulk transfer between two VMs.")
@placed("all")
@click.option("--seconds", default=0.3, show_default=True, metavar="N", type=click.FloatRange(0, 600, min_open=True),
              help="Of measuring, per job and machine.")
@measuring
def network(
    archs: tuple[str, ...], transports: tuple[str, ...], poll: str, seconds: float, asked: Asked
) -> None:
    """Measure the network between two VMs: echoes of 56 and of 1,400 bytes, and as many bytes as a window of two
    64 KiB units allows, in datagrams, counted and compared by the VM that receives them. Takes about a minute.

    \b
    Example:
      vmbus-emu bench network
      vmbus-emu bench network --arch monolithic,microkernel --transport ring
    """
    from bench.jobs import NETWORK, BadJob, checked

    try:
        jobs = [checked(replace(job, seconds=seconds)) for job in NETWORK.values()]
    except BadJob as error:
        raise click.UsageError(str(error)) from None
    measure(configurations_of(archs, transports, poll), jobs, (), asked)
