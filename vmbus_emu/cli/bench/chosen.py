"""``bench latency`` and ``bench baseline``: chosen jobs on chosen configurations; other mechanisms alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmbus_emu.cli.bench.options import Asked, measure, measuring

if TYPE_CHECKING:
    from bench.jobs import Job
    from bench.machines import Configuration

_ARCHS = ("monolithic", "microkernel", "disaggregated")
_TRANSPORTS = ("zmq", "ring")


def _words(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """A list such as ``zmq,ring``, or ``all``."""
    known = _ARCHS if parameter.name == "archs" else _TRANSPORTS
    words = known if value == "all" else tuple(word for word in value.split(",") if word)
    unknown = [word for word in words if word not in known]
    if unknown or not words:
        raise click.BadParameter(f'"{value}": say all, or some of {", ".join(known)}', context, parameter)
    return words


def _sizes(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    from bench.jobs import BadJob, size_of

    try:
        return tuple(size_of(word) for word in (value or "").split(",") if word)
    except BadJob as error:
        raise click.BadParameter(str(error), context, parameter) from None


def _depths(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in (value or "").split(",") if word)
    except ValueError:
        raise click.BadParameter(f'"{value}" is not a list of whole numbers', context, parameter) from None


@click.command(short_help="Chosen jobs, sizes and depths on chosen configurations.")
@click.option("--arch", "archs", default="all", show_default=True, metavar="LIST", callback=_words,
              help="all, or some of monolithic,microkernel,disaggregated.")
@click.option("--transport", "transports", default="all", show_default=True, metavar="LIST", callback=_words,
              help="all, or some of zmq,ring. The monolith calls.")
@click.option("--poll", type=click.Choice(("never", "adaptive", "always")), default="adaptive", show_default=True,
              help="How the ends of a ring wait.")
@click.option("--job", "names", metavar="NAME", multiple=True, help="A standard job (see bench list); several may be "
              "given.  [default: read-4k]")
@click.option("--jobs", "file", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Jobs from a TOML file instead.")
@click.option("--size", "sizes", metavar="LIST", callback=_sizes, help="Bytes per request, such as 512,4k,1m.")
@click.option("--qd", "depths", metavar="LIST", callback=_depths, help="Requests under way, such as 1,32.")
@click.option("--rate", default=0.0, metavar="N", type=click.FloatRange(0, 1e6),
              help="Open loop: so many requests per second, timed from when each was due.")
@click.option("--seconds", default=None, metavar="N", type=click.FloatRange(0, 600, min_open=True),
              help="Of measuring, per job and machine.  [default: 0.3]")
@measuring
def latency(
    archs: tuple[str, ...], transports: tuple[str, ...], poll: str, names: tuple[str, ...], file: Path | None,
    sizes: tuple[int, ...], depths: tuple[int, ...], rate: float, seconds: float | None, asked: Asked,
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
        jobs = _jobs(names or ("read-4k",), file, sizes, depths, rate, seconds)
    except BadJob as error:
        raise click.UsageError(str(error)) from None
    measure(_configurations(archs, transports, poll), jobs, (), asked)


def _jobs(
    names: Iterable[str], file: Path | None, sizes: Iterable[int], depths: Iterable[int], rate: float,
    seconds: float | None,
) -> list[Job]:
    from dataclasses import replace

    from bench.jobs import STANDARD, BadJob, load, varied

    if file is not None:
        chosen = load(file)
    else:
        unknown = [name for name in names if name not in STANDARD]
        if unknown:
            raise BadJob(f"no job {unknown[0]!r}; there are {', '.join(STANDARD)}")
        chosen = [STANDARD[name] for name in names]
    if seconds is not None:
        chosen = [replace(job, seconds=seconds) for job in chosen]
    return varied(chosen, sizes, depths, rate)


def _configurations(archs: Iterable[str], transports: Iterable[str], poll: str) -> list[Configuration]:
    from bench.machines import Configuration

    made = []
    for arch in archs:
        for transport in ("call",) if arch == "monolithic" else transports:
            made.append(Configuration(arch, transport, poll if transport == "ring" else None))
    return made


@click.command(short_help="Round trips of other mechanisms, on this machine.")
@measuring
def baseline(asked: Asked) -> None:
    """Measure the baselines alone: a call, pipes, sockets, ZeroMQ, shared memory."""
    from bench.baselines import BASELINES

    measure((), [], tuple(BASELINES), asked)
