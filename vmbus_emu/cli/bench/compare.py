"""``bench compare``: what changed between two runs, or between two versions of the program."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.pins import APART, WAYS
from vmbus_emu.cli.bench.choice import jobs_of, placed
from vmbus_emu.cli.bench.underway import under_way
from vmbus_emu.cli.errors import Failure

if TYPE_CHECKING:
    from bench.machines import Configuration

#: What --ab measures unless it is told otherwise: the way there and back, with and without data, where nothing else is.
_AB_JOBS = ("null", "read-4k")


@click.command(short_help="What changed between two runs, or two versions.")
@click.argument("before")
@click.argument("after")
@click.option("--ab", is_flag=True, help="BEFORE and AFTER are versions of the program: revisions of the checkout "
              "here, or directories with one. Measured in turns, now.")
@placed("monolithic,microkernel", "With --ab: ")
@click.option("--job", "names", metavar="NAME", multiple=True, help="With --ab: a standard job; several may be given.  "
              "[default: null, read-4k]")
@click.option("--seconds", metavar="N", type=click.FloatRange(0, 600, min_open=True),
              help="With --ab: of measuring, per job and machine.  [default: 0.25]")
@click.option("--rounds", metavar="N", type=click.IntRange(1, 1000), help="With --ab: sample sets of each side.  "
              "[default: 20]")
@click.option("--seed", metavar="N", type=click.IntRange(0), help="With --ab: the order of another run, again.")
@click.option("--pin", type=click.Choice(WAYS), default=APART, show_default=True,
              help="With --ab: where both ends of a channel run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def compare(
    context: click.Context, before: str, after: str, ab: bool, configurations: list[Configuration],
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
        for name in ("archs", "transports", "poll", "names", "seconds", "rounds", "seed", "pin"):
            if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                option = next(one.opts[0] for one in context.command.params if one.name == name)
                raise click.UsageError(f"{option} goes with --ab: two kept runs are as they are")
        runs = _kept(before, after)
    else:
        runs = _measured(before, after, configurations, names, seconds, rounds, seed, pin)
    _show((before, after), runs, ab, as_json)


def _kept(before: str, after: str) -> Sequence[dict[str, Any]]:
    from bench.results import BadResults, load

    try:
        return load(Path(before)), load(Path(after))
    except BadResults as error:
        raise Failure(str(error), "vmbus-emu bench --json FILE makes one; --ab compares versions") from None


def _measured(
    before: str, after: str, configurations: Sequence[Configuration], names: tuple[str, ...], seconds: float | None,
    rounds: int | None, seed: int | None, pin: str,
) -> Sequence[dict[str, Any]]:
    from bench import ab
    from bench.jobs import BadJob

    try:
        jobs = jobs_of(names or _AB_JOBS, None, (), (), 0.0, seconds)
    except BadJob as error:
        raise click.UsageError(str(error)) from None
    with under_way() as told:
        try:
            return ab.run((before, after), configurations, jobs, Path.cwd(), rounds or ab.ROUNDS, seed, pin, told,
                          ["vmbus-emu", *sys.argv[1:]])  # fmt: skip
        except ab.BadVersion as error:
            raise Failure(str(error), "say a revision of the checkout you are in, or a directory with one") from None


def _show(names: tuple[str, str], runs: Sequence[Mapping[str, Any]], ab: bool, as_json: bool) -> None:
    from bench.compare import compare as compared
    from bench.compare import doubts
    from bench.table import compare_lines

    rows = compared(runs[0], runs[1], paired=ab)
    told = {"rows": rows, "doubts": doubts(runs[0], runs[1]),
            "runs": [_of_run(name, run) for name, run in zip(names, runs, strict=True)]}  # fmt: skip
    if as_json:
        click.echo(json.dumps(told, indent=2))
    else:
        for line in _lines(told):
            click.echo(line)
    if not rows:
        parts = "; ".join(f"{name} has {_parts(run)}" for name, run in zip(names, runs, strict=True))
        raise Failure(f"the runs have no figures of the same job on the same configuration: {parts}",
                      "only what bench, bench latency, throughput, network and macro measure is compared")
    if not as_json:
        for line in compare_lines(rows):
            click.echo(line)


def _of_run(name: str, run: Mapping[str, Any]) -> dict[str, Any]:
    """What should be known of a run, whatever it is compared to."""
    failed = [f"{row['job']} on {row['arch']}: {row['failed'][0]}" for row in run["results"] if row.get("failed")]
    return {"name": name, "stable": run["stable"], "reasons": run["reasons"], "failed": failed}


def _lines(told: Mapping[str, Any]) -> Iterator[str]:
    from bench.table import verdict_lines

    for run in told["runs"]:
        if run["failed"] or not run["stable"]:
            yield f"{run['name']}:"
            for line in (*([] if run["stable"] else verdict_lines(run)), *run["failed"]):
                yield f"  {line}"
    for reason in told["doubts"]:
        yield f"NOT ALIKE: {reason}."


def _parts(run: Mapping[str, Any]) -> str:
    """What a run holds, in words."""
    jobs = ", ".join(dict.fromkeys(str(row["job"]) for row in run["results"]))
    others = [part for part in ("baselines", "scale", "boot", "roles") if run.get(part)]
    return ", ".join([*([f"results of {jobs}"] if jobs else []), *others]) or "nothing"
