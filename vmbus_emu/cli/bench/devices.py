"""``bench devices``: what emulated devices cost, beside synthetic ones."""

from __future__ import annotations

import click

from vmbus_emu.cli.bench.choice import sizes, words
from vmbus_emu.cli.bench.options import Asked, measure, measuring


@click.command(short_help="Emulated devices, by DMA, string I/O and words, beside synthetic ones.")
@click.option("--arch", "archs", default="microkernel,monolithic", show_default=True, metavar="LIST", callback=words,
              help="all, or some of monolithic,microkernel,disaggregated. The others are held against the first, with "
              "synthetic devices.")
@click.option("--devices", default="all", show_default=True, metavar="LIST", callback=words,
              help="all, or some of synthetic,dma,string,words.")
@click.option("--size", "wanted", metavar="LIST", callback=sizes,
              help="Also reads of so many bytes, such as 512,64k; at most 64k with words.")
@click.option("--seconds", default=0.25, show_default=True, metavar="N", type=click.FloatRange(0, 30, min_open=True),
              help="Of measuring, per job and machine; of disks by words, 16 times as long.")
@measuring
def devices(
    archs: tuple[str, ...], devices: tuple[str, ...], wanted: tuple[int, ...], seconds: float, asked: Asked
) -> None:
    """Measure what a VM without integration services pays: reads of 4 KiB, writes with a flush, and echoes between two
    such VMs, by emulated IDE disks and network adapters; and the same with synthetic devices. Each access to a register
    is an intercept, counted per request; in the monolith it is a call. Eight rounds; takes about four minutes, most of
    them by words. Fewer than eight rounds can call no difference significant.

    \b
    Example:
      vmbus-emu bench devices
      vmbus-emu bench devices --arch microkernel --devices synthetic,dma --size 64k,1m
    """
    from bench.devices import ROUNDS, configurations, jobs
    from bench.devicetable import device_lines
    from bench.jobs import BadJob

    if asked.trace_file is not None:
        raise click.UsageError("bench devices takes no requests apart: --trace goes with bench and bench latency")
    chosen = configurations(archs, devices)
    try:
        todo = jobs(wanted, seconds, chosen)
    except BadJob as error:
        raise click.UsageError(str(error)) from None
    measure(chosen, todo, asked, rounds=ROUNDS, lines=device_lines)
