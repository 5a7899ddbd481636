"""``bench compare``: what changed between two runs, or between two versions of the program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from vmbus_emu.cli.bench.choice import configurations_of, jobs_of, words
from vmbus_emu.cli.bench.options import PINS
from vmbus_emu.cli.errors import Failure
from vmbus_emu.cli.progress import progress_line

#: What --ab measures unless it is told otherwise: the way there and back, with and without data, where nothing else is.
_AB_JOBS = ("null", "read-4k")


@click.command(short_help="What changed between two runs, or two versions.")
@click.argument("before")
@click.argument("after")
@click.option("--ab", is_flag=True, help="BEFORE and AFTER are versions of the program: revisions of the checkout "
              "here, or directories with one. Measured in turns, now.")
@click.option("--arch", "archs", default="monolithic,microkernel", show_default=True, metavar="LIST",
              callback=words, help="With --ab: all, or some of monolithic,microkernel,disaggregated.")
@click.option("--transport", "transports", default="all", show_default=True, metavar="LIST", callback=words,
              help="With --ab: all, or some of zmq,ring.")
@click.option("--job", "names", metavar="NAME", multiple=True, help="With --ab: a standard job; several may be given.  "
              "[default: null, read-4k]")
@click.option("--seconds", metavar="N", type=click.FloatRange(0, 600, min_open=True),
              help="With --ab: of measuring, per job and machine.  [default: 0.3]")
@click.option("--rounds", metavar="N", type=click.IntRange(1, 1000), help="With --ab: sample sets of each side.  "
              "[default: 20]")
@click.option("--seed", metavar="N", type=click.IntRange(0), help="With --ab: the order of another run, again.")
@click.option("--pin", type=click.Choice(PINS), default="apart", show_default=True,
              help="With --ab: where both ends of a channel run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def compare(
    context: click.Context, before: str, after: str, ab: bool, archs: tuple[str, ...], transports: tuple[str, ...],
    names: tuple[str, ...], seconds: float | None, rounds: int | None, seed: int | None, pin: str, as_json: bool,
) -> None:
    """Compare two runs that bench --json kept: AFTER / BEFORE with intervals, job by job. Times are in units of the
    baselines that both runs measured, so a slower day of the host is not taken for a slower program.

    With --ab, compare two versions of the program in one run: their machines take turns, so the host's moods are
    everybody's, and smaller differences show.

    \b
    Example:
      vmbus-emu bench compare before.json after.json
      vmbus-emu bench compare --ab HEAD~1 HEAD
      vmbus-emu bench compare --ab main ../other-checkout --arch monolithic --job read-4k
    """
    if not ab:
        for name in ("archs", "transports", "names", "seconds", "rounds", "seed", "pin"):
            if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                option = next(one.opts[0] for one in context.command.params if one.name == name)
                raise click.UsageError(f"{option} goes with --ab: two kept runs are as they are")
        runs = _kept(before, after)
    else:
        runs = _measured(before, after, archs, transports, names, seconds, rounds, seed, pin)
    _show((before, after), runs, ab, as_json)


def _kept(before: str, after: str) -> Sequence[dict[str, Any]]:
    from bench.results import BadResults, load

    try:
        return load(Path(before)), load(Path(after))
    except BadResults as error:
        raise Failure(str(error), "vmbus-emu bench --json FILE makes one; --ab compares versions") from None


def _measured(
    before: str, after: str, archs: tuple[str, ...], transports: tuple[str, ...], names: tuple[str, ...],
    seconds: float | None, rounds: int | None, seed: int | None, pin: str,
) -> Sequence[dict[str, Any]]:
    from bench import ab
    from bench.jobs import BadJob

    try:
        jobs = jobs_of(names or _AB_JOBS, None, (), (), 0.0, seconds)
    except BadJob as error:
        raise click.UsageError(str(error)) from None
    with progress_line() as shown:

        def told(total: int, done: int, what: str) -> None:
            if shown is not None:
                shown({"component": what, "state": "", "done": done, "total": total})

        try:
            return ab.run((before, after), configurations_of(archs, transports, "adaptive"), jobs, Path.cwd(),
                          rounds or ab.ROUNDS, seed, pin, told)  # fmt: skip
        except ab.BadVersion as error:
            raise Failure(str(error), "say a revision of the checkout you are in, or a directory with one") from None


def _show(names: tuple[str, str], runs: Sequence[dict[str, Any]], ab: bool, as_json: bool) -> None:
    from bench.compare import compare as compared
    from bench.compare import doubts
    from bench.table import compare_lines, verdict_lines

    rows = compared(runs[0], runs[1], paired=ab)
    apart = doubts(runs[0], runs[1])
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for name, run in zip(names, runs, strict=True):
        failed = [f"{row['job']} on {row['arch']}: {row['failed'][0]}" for row in run["results"] if row.get("failed")]
        if failed or not run["stable"]:
            click.echo(f"{name}:")
            for line in (*([] if run["stable"] else verdict_lines(run)), *failed):
                click.echo(f"  {line}")
    for reason in apart:
        click.echo(f"NOT ALIKE: {reason}.")
    for line in compare_lines(rows):
        click.echo(line)
