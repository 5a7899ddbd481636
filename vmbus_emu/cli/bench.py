"""``vmbus-emu bench``: what each architecture's messages cost, with intervals, and whether the numbers can be believed.

The measuring is the package ``bench``; here arguments become jobs and configurations, and runs become text.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from vmbus_emu.cli.errors import Failure
from vmbus_emu.cli.progress import progress_line

if TYPE_CHECKING:
    from bench.jobs import Job
    from bench.machines import Configuration

_ARCHS = ("monolithic", "microkernel", "disaggregated")
_TRANSPORTS = ("zmq", "ring")

json_out = click.option("--json", "json_file", metavar="FILE", type=click.File("w", lazy=False),
                        help="Keep the whole run; - is standard output.")  # fmt: skip
rounds_option = click.option("--rounds", default=None, metavar="N", type=click.IntRange(1, 1000),
                             help="Sample sets of each configuration.  [default: 10]")  # fmt: skip
seed_option = click.option("--seed", metavar="N", type=click.IntRange(0), help="The order of another run, again.")


@click.group(invoke_without_command=True, short_help="Measure what the architectures cost, and compare.")
@json_out
@rounds_option
@seed_option
@click.pass_context
def bench(context: click.Context, json_file: IO[str] | None, rounds: int | None, seed: int | None) -> None:
    """Measure the standard jobs on every architecture and transport, interleaved, on fresh machines, with baselines in
    the same run. Takes about three minutes. Every figure has a 95 % interval over the machines; a run that cannot be
    trusted says why.

    \b
    Example:
      vmbus-emu bench
      vmbus-emu bench --json run.json
      vmbus-emu bench latency --arch all --transport all --size 512,4k,64k,1m --qd 1,32
      vmbus-emu bench compare before.json after.json
    """
    if context.invoked_subcommand is not None:
        return
    from bench.baselines import BASELINES
    from bench.jobs import STANDARD as JOBS
    from bench.machines import STANDARD

    _run(STANDARD, list(JOBS.values()), tuple(BASELINES), rounds, seed, json_file)


@bench.command(short_help="The jobs, configurations and baselines there are.", name="list")
def list_() -> None:
    """Show what can be measured: jobs with their requests, configurations, baselines."""
    from bench.baselines import BASELINES
    from bench.jobs import STANDARD as JOBS
    from bench.machines import STANDARD
    from bench.runner import available

    click.echo("jobs")
    for job in JOBS.values():
        size = f", {job.size} bytes" if job.size else ""
        click.echo(f"  {job.name:16} {job.operation}{size}, depth {job.depth}, {job.seconds:g} s")
    click.echo("configurations")
    for configuration in STANDARD:
        click.echo(f"  {configuration.name}")
    click.echo("baselines")
    here = available()
    for name in BASELINES:
        click.echo(f"  {name}" + ("" if name in here else " (not installed)"))


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


@bench.command(short_help="Chosen jobs, sizes and depths on chosen configurations.")
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
@json_out
@rounds_option
@seed_option
def latency(
    archs: tuple[str, ...], transports: tuple[str, ...], poll: str, names: tuple[str, ...], file: Path | None,
    sizes: tuple[int, ...], depths: tuple[int, ...], rate: float, seconds: float | None, json_file: IO[str] | None,
    rounds: int | None, seed: int | None,
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
    _run(_configurations(archs, transports, poll), jobs, (), rounds, seed, json_file)


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


@bench.command(short_help="Round trips of other mechanisms, on this machine.")
@json_out
@rounds_option
@seed_option
def baseline(json_file: IO[str] | None, rounds: int | None, seed: int | None) -> None:
    """Measure the baselines alone: a call, pipes, sockets, ZeroMQ, shared memory."""
    from bench.baselines import BASELINES

    _run((), [], tuple(BASELINES), rounds, seed, json_file)


@bench.command(short_help="What changed between two runs.")
@click.argument("before", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def compare(before: Path, after: Path, as_json: bool) -> None:
    """Compare two runs that bench --json kept: AFTER / BEFORE with intervals, job by job. Times are in units of the
    baselines that both runs measured, so a slower day of the host is not taken for a slower program.

    \b
    Example:
      vmbus-emu bench compare before.json after.json
    """
    from bench.compare import compare as compared
    from bench.results import BadResults, load
    from bench.table import compare_lines, verdict_lines

    try:
        old, new = load(before), load(after)
    except BadResults as error:
        raise Failure(str(error), "vmbus-emu bench --json FILE makes one") from None
    rows = compared(old, new)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for name, run in ((before, old), (after, new)):
        if not run["stable"]:
            click.echo(f"{name}:")
            for line in verdict_lines(run):
                click.echo(f"  {line}")
    for line in compare_lines(rows):
        click.echo(line)


def _run(
    configurations: Sequence[Configuration], jobs: Sequence[Job], baselines: Sequence[str], rounds: int | None,
    seed: int | None, json_file: IO[str] | None,
) -> None:
    from bench import runner
    from bench.table import run_lines

    command = ["vmbus-emu", *sys.argv[1:]]
    with progress_line() as shown:

        def told(total: int, done: int, what: str) -> None:
            if shown is not None:
                shown({"component": what, "state": "", "done": done, "total": total})

        run: dict[str, Any] = runner.run(
            configurations, jobs, runner.available(baselines), rounds or runner.ROUNDS, seed, told, command
        )
    to_stderr = json_file is not None and json_file.name == "<stdout>"
    if json_file is not None:
        json.dump(run, json_file, separators=(",", ":"))
        json_file.write("\n")
    for line in run_lines(run):
        click.echo(line, err=to_stderr)
    click.echo(f"Again: {shlex.join(command)}" + ("" if seed is not None else f" --seed {run['seed']}"), err=to_stderr)
