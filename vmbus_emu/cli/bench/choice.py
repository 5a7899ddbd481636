"""What the measuring verbs of ``bench`` can be asked for: lists of placements, transports, sizes, depths, jobs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmbus_emu.cli.errors import PROGRAM

if TYPE_CHECKING:
    from bench.jobs import Job
    from bench.machines import Configuration

ARCHS = ("monolithic", "microkernel", "disaggregated")
TRANSPORTS = ("zmq", "ring")
#: By the name of the parameter.
_LISTS = {"archs": ARCHS, "transports": TRANSPORTS, "devices": ("synthetic", "dma", "string", "words")}


def words(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """A list such as ``zmq,ring``, or ``all``."""
    known = _LISTS[parameter.name or ""]
    found = known if value == "all" else tuple(dict.fromkeys(word for word in value.split(",") if word))
    unknown = [word for word in found if word not in known]
    if unknown or not found:
        raise click.BadParameter(f'"{value}": say all, or some of {", ".join(known)}', context, parameter)
    return found


def sizes(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    from bench.jobs import BadJob, size_of

    try:
        found = tuple(size_of(word) for word in (value or "").split(",") if word)
    except BadJob as error:
        raise click.BadParameter(str(error), context, parameter) from None
    if value is not None and not found:
        raise click.BadParameter(f'"{value}" holds no size: give some, such as 512,4k', context, parameter)
    return found


def depths(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        found = tuple(int(word) for word in (value or "").split(",") if word)
    except ValueError:
        raise click.BadParameter(f'"{value}" is not a list of whole numbers', context, parameter) from None
    if value is not None and not found:
        raise click.BadParameter(f'"{value}" holds no depth: give some, such as 1,32', context, parameter)
    return found


def placed(archs: str, condition: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options that choose ``configurations``, which is what comes as an argument: ``--arch`` (``archs`` is the
    default), ``--transport``, ``--poll``. ``condition``: when they count, for their help."""

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(
            *positional: Any, archs: tuple[str, ...], transports: tuple[str, ...], poll: str, **others: Any
        ) -> Any:
            context = click.get_current_context()
            given = {
                name for name in ("transports", "poll")
                if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
            }  # fmt: skip
            made = configurations_of(archs, transports, poll)
            used = {of.transport for of in made}
            if "transports" in given and used == {"call"} and set(transports) != set(TRANSPORTS):
                raise click.UsageError("the monolith calls, so it has no transport: leave --transport out, or --arch")
            if "poll" in given and "ring" not in used:
                raise click.UsageError("--poll says how the ends of a ring wait, and no ring is measured: leave it out")
            return function(*positional, configurations=made, **others)

        for option in reversed((
            click.option("--arch", "archs", default=archs, show_default=True, metavar="LIST", callback=words,
                         help=f"{condition}all, or some of {','.join(ARCHS)}."),
            click.option("--transport", "transports", default="all", show_default=True, metavar="LIST", callback=words,
                         help=f"{condition}all, or some of zmq,ring. The monolith calls."),
            click.option("--poll", type=click.Choice(("never", "adaptive", "always")), default="adaptive",
                         show_default=True, help=f"{condition}how the ends of a ring wait."),
        )):  # fmt: skip
            command = option(command)
        return command

    return decorated


def jobs_of(
    names: Iterable[str], file: Path | None, sizes: Sequence[int], depths: Iterable[int], rate: float,
    seconds: float | None,
) -> list[Job]:
    """The jobs in ``file``, else the standard ones of these names, varied. Raises :class:`bench.jobs.BadJob`."""
    from dataclasses import replace

    from bench.jobs import STANDARD, BadJob, load, varied
    from bench.operations import OPERATIONS

    if file is not None:
        chosen = load(file)
    else:
        unknown = [name for name in names if name not in STANDARD]
        if unknown:
            raise BadJob(f"no job {unknown[0]!r}; there are {', '.join(STANDARD)}")
        chosen = [STANDARD[name] for name in names]
    sizeless = list(dict.fromkeys(job.name for job in chosen if not OPERATIONS[job.operation].largest))
    if sizes and len(sizeless) == len({job.name for job in chosen}):
        raise BadJob(f"{', '.join(sizeless)}: without a size, so leave --size out")
    if sizes and sizeless:
        click.echo(f"{PROGRAM}: {', '.join(sizeless)}: without a size, so --size is for the other jobs", err=True)
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
