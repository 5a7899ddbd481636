"""The options that every measuring verb of ``bench`` has, and what is done with a run when it is over."""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import click

from vmbus_emu.cli.bench import traced
from vmbus_emu.cli.bench.report import write_page
from vmbus_emu.cli.pictures import to_stdout
from vmbus_emu.cli.progress import progress_line

if TYPE_CHECKING:
    from bench.jobs import Job
    from bench.machines import Configuration

#: A run as text, and how far a run is: steps in all, steps done, what is done now.
Lines = Callable[[Mapping[str, Any]], Iterable[str]]
Told = Callable[[int, int, str], Any]
PINS = ("apart", "together", "none")


@dataclass(frozen=True)
class Asked:
    """How to measure, and where to keep what was found. ``None``: not asked for."""

    rounds: int | None
    seed: int | None
    pin: str
    json_file: IO[str] | None
    html_file: IO[str] | None
    trace_file: IO[str] | None

    @property
    def given(self) -> str:
        """One of the options that was given; empty: none."""
        given = {"--rounds": self.rounds, "--seed": self.seed, "--json": self.json_file, "--html": self.html_file,
                 "--trace": self.trace_file, "--pin": None if self.pin == PINS[0] else self.pin}  # fmt: skip
        return next((name for name, value in given.items() if value is not None), "")


def measuring(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; they come as one argument ``asked``."""

    @functools.wraps(function)
    def command(
        *positional: Any, rounds: int | None, seed: int | None, pin: str, json_file: IO[str] | None,
        html_file: IO[str] | None, trace_file: IO[str] | None, **others: Any,
    ) -> Any:
        return function(*positional, asked=Asked(rounds, seed, pin, json_file, html_file, trace_file), **others)

    for option in reversed((
        click.option("--rounds", metavar="N", type=click.IntRange(1, 1000),
                     help="Sample sets of each configuration.  [default: 10; scale 3, boot and throughput 5]"),
        click.option("--seed", metavar="N", type=click.IntRange(0), help="The order of another run, again."),
        click.option("--pin", type=click.Choice(PINS), default="apart", show_default=True,
                     help="Put both ends of a channel on processors of their own, on one, or where the kernel likes."),
        click.option("--json", "json_file", metavar="FILE", type=click.File("w", lazy=False),
                     help="Keep the whole run; - is standard output."),
        click.option("--html", "html_file", metavar="FILE", type=click.File("w", encoding="utf-8", lazy=False),
                     help="A report as one page; its plots need the extra [report]."),
        click.option("--trace", "trace_file", metavar="FILE", type=click.File("w", lazy=False),
                     help="Take single requests apart, on machines of their own, after the run: a waterfall here, and "
                     "FILE for Perfetto."),
    )):  # fmt: skip
        command = option(command)
    return command


def measure(
    configurations: Sequence[Configuration], jobs: Sequence[Job], baselines: Sequence[str], asked: Asked,
    apart: Sequence[Job] | None = None, rounds: int | None = None, lines: Lines | None = None,
) -> dict[str, Any]:
    """Run it and :func:`keep` it: what the standard comparison does, and what chooses jobs only. ``apart``: the jobs
    that ``--trace`` takes apart, if not all; ``rounds``: unless asked for; ``lines``: the table, unless the usual."""
    from bench import runner

    def measured(told: Told, command: list[str]) -> dict[str, Any]:
        run = runner.run(
            configurations, jobs, runner.available(baselines), asked.rounds or rounds or runner.ROUNDS, asked.seed,
            told, command, pin=asked.pin,
        )  # fmt: skip
        if asked.trace_file is not None:
            chosen = jobs if apart is None else apart
            traced.take_apart(run, configurations, chosen, asked.pin, asked.trace_file, told)
        return run

    return carry_out(measured, asked, lines)


def carry_out(
    measured: Callable[[Told, list[str]], dict[str, Any]], asked: Asked, lines: Lines | None = None
) -> dict[str, Any]:
    """The run that ``measured(told, command)`` gives, with its progress shown, and :func:`keep` it."""
    command = ["vmbus-emu", *sys.argv[1:]]
    with progress_line() as shown:

        def told(total: int, done: int, what: str) -> None:
            if shown is not None:
                shown({"component": what, "state": "", "done": done, "total": total})

        run = measured(told, command)
    keep(run, asked, lines)
    return run


def keep(run: dict[str, Any], asked: Asked, lines: Lines | None = None) -> None:
    """Print ``run`` as a table, and write the files that were asked for. ``lines``: the table, unless the usual."""
    from bench.table import run_lines

    aside = to_stdout(asked.json_file, asked.html_file, asked.trace_file)
    if asked.json_file is not None:
        json.dump(run, asked.json_file, separators=(",", ":"))
        asked.json_file.write("\n")
    for line in (lines or run_lines)(run):
        click.echo(line, err=aside)
    if asked.trace_file is not None:
        for line in traced.lines(run, asked.trace_file):
            click.echo(line, err=aside)
    if asked.html_file is not None:
        write_page(run, asked.html_file)
    command = run["command"]
    seed = [] if asked.seed is not None else ["--seed", str(run["seed"])]
    click.echo(f"Again: {shlex.join([*command, *seed])}", err=aside)
