"""What the measuring verbs of ``bench`` can be asked for: lists of placements, transports, sizes, depths, jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bench.jobs import Job
    from bench.machines import Configuration

ARCHS = ("monolithic", "microkernel", "disaggregated")
TRANSPORTS = ("zmq", "ring")


def words(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """A list such as ``zmq,ring``, or ``all``."""
    known = ARCHS if parameter.name == "archs" else TRANSPORTS
    found = known if value == "all" else tuple(word for word in value.split(",") if word)
    unknown = [word for word in found if word not in known]
    if unknown or not found:
        raise click.BadParameter(f'"{value}": say all, or some of {", ".join(known)}', context, parameter)
    return found


def sizes(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    from bench.jobs import BadJob, size_of

    try:
        return tuple(size_of(word) for word in (value or "").split(",") if word)
    except BadJob as error:
        raise click.BadParameter(str(error), context, parameter) from None


def depths(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in (value or "").split(",") if word)
    except ValueError:
        raise click.BadParameter(f'"{value}" is not a list of whole numbers', context, parameter) from None


def placed(archs: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options that choose configurations: ``archs`` (that is the default), ``transports``, ``poll``."""

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed((
            click.option("--arch", "archs", default=archs, show_default=True, metavar="LIST", callback=words,
                         help=f"all, or some of {','.join(ARCHS)}."),
            click.option("--transport", "transports", default="all", show_default=True, metavar="LIST", callback=words,
                         help="all, or some of zmq,ring. The monolith calls."),
            click.option("--poll", type=click.Choice(("never", "adaptive", "always")), default="adaptive",
                         show_default=True, help="How the ends of a ring wait."),
        )):  # fmt: skip
            function = option(function)
        return function

    return decorated


def jobs_of(
    names: Iterable[str], file: Path | None, sizes: Iterable[int], depths: Iterable[int], rate: float,
    seconds: float | None,
) -> list[Job]:
    """The jobs in ``file``, else the standard ones of these names. Raises :class:`bench.jobs.BadJob`."""
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


def configurations_of(archs: Iterable[str], transports: Iterable[str], poll: str) -> list[Configuration]:
    """Every one of them; the monolith has no transport."""
    from bench.machines import Configuration

    made = []
    for arch in archs:
        for transport in ("call",) if arch == "monolithic" else transports:
            made.append(Configuration(arch, transport, poll if transport == "ring" else None))
    return made
