"""``bench scale`` and ``bench boot``: machines with many VMs, and how long they take to come up and to go down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from vmbus_emu.cli.bench.choice import configurations_of, placed
from vmbus_emu.cli.bench.options import PINS, Asked, carry_out, measuring


def _counts(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    words = [word for word in value.split(",") if word]
    counts = tuple(int(word) for word in words if word.isascii() and word.isdigit() and 0 < int(word) < 100_000)
    if not words or len(counts) != len(words):
        raise click.BadParameter(f'"{value}": give numbers of VMs, such as 1,2,64', context, parameter)
    return tuple(sorted(set(counts)))


def _vms_option(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--vms", "counts", default=default, show_default=True, metavar="LIST", callback=_counts,
                        help="How many VMs the machines have.")  # fmt: skip


def _check(asked: Asked, verb: str) -> None:
    """Whole machines use all processors, and no request of theirs is taken apart."""
    if asked.trace_file is not None:
        raise click.UsageError(f"bench {verb} takes no requests apart: --trace goes with bench and bench latency")
    if asked.pin not in (PINS[0], "none"):
        raise click.UsageError(f"bench {verb} pins nobody, its machines use all processors: leave --pin out")


@click.command(short_help="Machines of 1 to 64 VMs: memory, idle cost, everybody busy.")
@placed("monolithic,microkernel")
@_vms_option("1,2,4,8,16,32,64")
@click.option("--seconds", default=1.0, show_default=True, metavar="N", type=click.FloatRange(0, 60, min_open=True),
              help="The window in which all VMs are busy.")
@click.option("--idle", default=2.0, show_default=True, metavar="N", type=click.FloatRange(0.1, 600),
              help="Seconds in which nobody does anything.")
@measuring
def scale(
    archs: tuple[str, ...], transports: tuple[str, ...], poll: str, counts: tuple[int, ...], seconds: float,
    idle: float, asked: Asked,
) -> None:
    """Measure machines of 1 to 64 VMs, further by --vms: boot, memory of each VM, processor time of the idle machine,
    and what all VMs get done, reading 4 KiB of their RAM disks, four at a time, all in the same window: in all, the
    smallest share over the largest, p50 and p99. Three rounds; takes about five minutes.

    \b
    Example:
      vmbus-emu bench scale
      vmbus-emu bench scale --arch microkernel --transport ring --vms 1,64,128 --rounds 5
    """
    from bench import scale as measuring_scale
    from bench.scale import Lengths

    _check(asked, "scale")
    configurations = configurations_of(archs, transports, poll)
    carry_out(
        lambda told, command: measuring_scale.run(
            configurations, counts, asked.rounds or measuring_scale.ROUNDS, asked.seed, told, command,
            Lengths(idle, seconds),
        ),
        asked,
    )  # fmt: skip


@click.command(short_help="How long machines take to come up and to go down.")
@placed("all")
@_vms_option("1,4,16,64")
@measuring
def boot(archs: tuple[str, ...], transports: tuple[str, ...], poll: str, counts: tuple[int, ...], asked: Asked) -> None:
    """Time the user's commands, minus the start of a Python with the same libraries: up, until all channels are open;
    the first I/O after it; down. Five rounds; takes about three minutes.

    \b
    Example:
      vmbus-emu bench boot
      vmbus-emu bench boot --arch microkernel --vms 64 --rounds 10
    """
    from bench import boot as measuring_boot

    _check(asked, "boot")
    configurations = configurations_of(archs, transports, poll)
    carry_out(
        lambda told, command: measuring_boot.run(
            configurations, counts, asked.rounds or measuring_boot.ROUNDS, asked.seed, told, command
        ),
        asked,
    )  # fmt: skip
