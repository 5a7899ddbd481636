"""``bench compare``: what changed between two runs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vmbus_emu.cli.errors import Failure


@click.command(short_help="What changed between two runs.")
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
