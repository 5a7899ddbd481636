"""The options that every measuring verb of ``bench`` has, and what is done with a run when it is over."""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import click

from vmbus_emu.cli.pictures import to_stdout
from vmbus_emu.cli.progress import progress_line

if TYPE_CHECKING:
    from bench.jobs import Job
    from bench.machines import Configuration

_DRAWS = "matplotlib"
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
                     help="Sample sets of each configuration.  [default: 10]"),
        click.option("--seed", metavar="N", type=click.IntRange(0), help="The order of another run, again."),
        click.option("--pin", type=click.Choice(PINS), default="apart", show_default=True,
                     help="Put both ends of a channel on processors of their own, on one, or where the kernel likes."),
        click.option("--json", "json_file", metavar="FILE", type=click.File("w", lazy=False),
                     help="Keep the whole run; - is standard output."),
        click.option("--html", "html_file", metavar="FILE", type=click.File("w", lazy=False),
                     help="A report as one page; its plots need the extra [report]."),
        click.option("--trace", "trace_file", metavar="FILE", type=click.File("w", lazy=False),
                     help="Take single requests apart, on machines of their own, after the run: a waterfall here, and "
                     "FILE for Perfetto."),
    )):  # fmt: skip
        command = option(command)
    return command


def measure(
    configurations: Sequence[Configuration], jobs: Sequence[Job], baselines: Sequence[str], asked: Asked
) -> dict[str, Any]:
    """Run it and :func:`keep` it: what the standard comparison does, and what chooses jobs only."""
    from bench import runner

    command = ["vmbus-emu", *sys.argv[1:]]
    with progress_line() as shown:

        def told(total: int, done: int, what: str) -> None:
            if shown is not None:
                shown({"component": what, "state": "", "done": done, "total": total})

        run = runner.run(
            configurations, jobs, runner.available(baselines), asked.rounds or runner.ROUNDS, asked.seed, told, command,
            pin=asked.pin,
        )  # fmt: skip
    keep(run, asked)
    return run


def keep(run: dict[str, Any], asked: Asked) -> None:
    """Print ``run`` as a table, and write the files that were asked for."""
    from bench.table import run_lines

    aside = to_stdout(asked.json_file, asked.html_file, asked.trace_file)
    if asked.json_file is not None:
        json.dump(run, asked.json_file, separators=(",", ":"))
        asked.json_file.write("\n")
    for line in run_lines(run):
        click.echo(line, err=aside)
    command = run["command"]
    seed = [] if asked.seed is not None else ["--seed", str(run["seed"])]
    click.echo(f"Again: {shlex.join([*command, *seed])}", err=aside)
