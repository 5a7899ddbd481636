"""The options that every measuring verb of ``bench`` has, and what is done with a run when it is over."""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from bench.pins import APART, WAYS
from vmbus_emu.cli.bench import traced
from vmbus_emu.cli.bench.report import drawn, tell_what_is_missing
from vmbus_emu.cli.bench.underway import under_way
from vmbus_emu.cli.errors import Failure
from vmbus_emu.cli.outfile import OutFile, OutFileType, attempt, complain, tell, to_stdout

if TYPE_CHECKING:
    from bench.jobs import Job
    from bench.machines import Configuration
    from bench.measurement import Told

#: A run as text.
Lines = Callable[[Mapping[str, Any]], Iterable[str]]
#: Takes requests of a run apart; or why that could not be written.
Trace = Callable[[dict[str, Any], "Told"], Failure | None]


@dataclass(frozen=True)
class Asked:
    """How to measure, and where to keep what was found. ``None``: not asked for; ``pin_given``: ``pin`` was."""

    rounds: int | None
    seed: int | None
    pin: str
    pin_given: bool
    json_file: OutFile | None
    html_file: OutFile | None
    trace_file: OutFile | None

    @property
    def given(self) -> str:
        """One of the options that was given; empty: none."""
        given = {"--rounds": self.rounds, "--seed": self.seed, "--json": self.json_file, "--html": self.html_file,
                 "--trace": self.trace_file, "--pin": self.pin if self.pin_given else None}  # fmt: skip
        return next((name for name, value in given.items() if value is not None), "")


def measuring(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; they come as one argument ``asked``."""

    @functools.wraps(function)
    def command(
        *positional: Any, rounds: int | None, seed: int | None, pin: str, json_file: OutFile | None,
        html_file: OutFile | None, trace_file: OutFile | None, **others: Any,
    ) -> Any:
        source = click.get_current_context().get_parameter_source("pin")
        pin_given = source is click.core.ParameterSource.COMMANDLINE
        asked = Asked(rounds, seed, pin, pin_given, json_file, html_file, trace_file)
        return function(*positional, asked=asked, **others)

    for option in reversed((
        click.option("--rounds", metavar="N", type=click.IntRange(1, 1000),
                     help="Sample sets of each configuration.  [default: 10; devices 8, boot and throughput 5, "
                     "scale 3]"),
        click.option("--seed", metavar="N", type=click.IntRange(0), help="The order of another run, again."),
        click.option("--pin", type=click.Choice(WAYS), default=APART, show_default=True,
                     help="Put both ends of a channel on processors of their own, on one, or where the kernel likes."),
        click.option("--json", "json_file", metavar="FILE", type=OutFileType(),
                     help="Keep the whole run; - is standard output."),
        click.option("--html", "html_file", metavar="FILE", type=OutFileType(),
                     help="A report as one page; its plots need the extra [report]."),
        click.option("--trace", "trace_file", metavar="FILE", type=OutFileType(),
                     help="Take single requests apart, on machines of their own, after the run: a waterfall here, and "
                     "FILE for Perfetto."),
    )):  # fmt: skip
        command = option(command)
    return command


def measure(
    configurations: Sequence[Configuration], jobs: Sequence[Job], asked: Asked, baselines: Sequence[str] | None = None,
    apart: Sequence[Job] | None = None, rounds: int | None = None, lines: Lines | None = None,
) -> None:
    """Run it and :func:`keep` it: what the standard comparison does, and what chooses jobs only. ``baselines``: if not
    those that bound the configurations; ``apart``: the jobs that ``--trace`` takes apart, if not all; ``rounds``:
    unless asked for; ``lines``: the table, unless the usual."""
    from bench import runner
    from bench.results import BOUNDS

    if baselines is None:
        bounds = [BOUNDS[of.transport, of.poll] for of in configurations if not of.emulated]
        baselines = list(dict.fromkeys(bounds))

    def measured(told: Told, command: list[str]) -> dict[str, Any]:
        return runner.run(
            configurations, jobs, runner.available(baselines), asked.rounds or rounds or runner.ROUNDS, asked.seed,
            told, command, pin=asked.pin,
        )  # fmt: skip

    def trace(run: dict[str, Any], told: Told) -> Failure | None:
        chosen = jobs if apart is None else apart
        return traced.take_apart(run, configurations, chosen, asked.pin, asked.trace_file, told)

    carry_out(measured, asked, lines, None if asked.trace_file is None else trace)


def carry_out(
    measured: Callable[[Told, list[str]], dict[str, Any]], asked: Asked, lines: Lines | None = None,
    trace: Trace | None = None,
) -> None:
    """The run that ``measured(told, command)`` gives, with its progress shown, and :func:`keep` it; ``trace`` takes
    requests of it apart when that is done."""
    with under_way() as told:
        run = measured(told, ["vmbus-emu", *sys.argv[1:]])
    keep(run, asked, lines, trace)


def keep(run: dict[str, Any], asked: Asked, lines: Lines | None = None, trace: Trace | None = None) -> None:
    """Print ``run`` as a table, and write the files that were asked for; before ``trace``, too, as that may be all
    there will be. Fails if a file was not written, or nothing was measured. ``lines``: the table, unless the usual."""
    from bench.table import run_lines

    aside = to_stdout(asked.json_file, asked.html_file, asked.trace_file)
    early = trace is not None
    unwritten = [_write_json(run, asked, early)]
    for line in (lines or run_lines)(run):
        click.echo(line, err=aside)
    unwritten.append(_write_page(run, asked, early))
    if trace is not None:
        unwritten = _trace(run, asked, trace, unwritten)
    if asked.html_file is not None:
        tell_what_is_missing()
    command = run["command"]
    seed = [] if asked.seed is not None else ["--seed", str(run["seed"])]
    click.echo(f"Again: {shlex.join([*command, *seed])}", err=aside)
    complain(unwritten)
    if not _has_figures(run):
        raise Failure("nothing was measured", "the table says why")


def _write_json(run: Mapping[str, Any], asked: Asked, early: bool) -> Failure | None:
    return attempt(asked.json_file, lambda: json.dumps(run, separators=(",", ":")) + "\n", early)


def _write_page(run: Mapping[str, Any], asked: Asked, early: bool) -> Failure | None:
    return attempt(asked.html_file, lambda: drawn(run), early)


def _trace(
    run: dict[str, Any], asked: Asked, trace: Trace, unwritten: Sequence[Failure | None]
) -> list[Failure | None]:
    """Take requests apart, show it, and write all files with it. ``unwritten``: of the files without it."""
    try:
        with under_way("the run is complete, but no request of it is taken apart") as told:
            failure = trace(run, told)
    except BaseException:
        once = replace(asked, json_file=_once(asked.json_file), html_file=_once(asked.html_file))
        tell([*unwritten, _write_json(run, once, False), _write_page(run, once, False)])
        raise
    for line in traced.lines(run, asked.trace_file):
        click.echo(line, err=to_stdout(asked.json_file, asked.html_file, asked.trace_file))
    return [failure, _write_json(run, asked, False), _write_page(run, asked, False)]


def _once(file: OutFile | None) -> OutFile | None:
    return None if file is None or file.again else file


def _has_figures(run: Mapping[str, Any]) -> bool:
    """Whether anything was measured of what the run is about: baselines, if they are all."""
    rows = [row for part in ("results", "scale", "boot", "roles") for row in run.get(part, ())]
    return any(row.get("repetitions") for row in rows or run.get("baselines", ()))
