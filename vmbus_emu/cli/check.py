"""``vmbus-emu check``: judge a stored run again, without the machine that it was made on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vmbus_emu.cli.chaos import chaos_lines
from vmbus_emu.cli.errors import FAILED, Failure
from vmbus_emu.cli.options import json_option
from vmbus_emu.cli.outfile import OutFile, complain, to_stdout
from vmbus_emu.cli.pictures import draw, picture_options
from vmbus_emu.cli.table import json_text

#: What the judged part of a run consists of, as ``--json`` prints it.
_JUDGED = ("schema", "machine", "operations", "findings", "kills", "vms")


@click.command(short_help="Judge a stored run again.")
@json_option
@picture_options
@click.argument("file", metavar="FILE", type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path))
@click.pass_context
def check(
    context: click.Context, as_json: bool, file: Path, html_file: OutFile | None, png_file: OutFile | None
) -> None:
    """Judge a run that chaos --json FILE kept again, from its recorded histories and what was read back. Status 1
    if a write was lost, or if the judgement differs from the stored one.

    \b
    Example:
      vmbus-emu chaos --kill storvsp --for 10s --json run.json
      vmbus-emu check run.json
      vmbus-emu check run.json --png run.png
    """
    from vmbus_emu.client.judging import NotARun, failed, judged

    if any(drawn is not None and drawn.is_same(file) for drawn in (html_file, png_file)):
        raise click.UsageError(f"{file} is the run itself: name another file to draw it", context)
    stored = _read(file)
    try:
        run = judged(stored)
    except NotARun as error:
        raise Failure(f"{file} cannot be judged: {error}", "check takes what chaos --json FILE wrote") from None
    differing = [
        f"{name}: stored {stored['operations'].get(name)}, found {number}"
        for name, number in run["operations"].items() if stored["operations"].get(name) != number
    ]  # fmt: skip
    to_stderr = to_stdout(html_file, png_file)
    if as_json:
        click.echo(json_text({**{key: run[key] for key in _JUDGED}, "differs": differing}), err=to_stderr)
    else:
        for line in [*chaos_lines(run), *(f"! not as stored: {line}" for line in differing)]:
            click.echo(line, err=to_stderr)
    complain(draw(run, html_file, png_file))
    if failed(run) or differing:
        context.exit(FAILED)


def _read(file: Path) -> Any:
    try:
        stored = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise Failure(f"{file} is not JSON: {error}", "check takes what chaos --json FILE wrote") from None
    if not isinstance(stored, dict) or not isinstance(stored.get("operations"), dict):
        raise Failure(f"{file} is not a run", "check takes what chaos --json FILE wrote")
    return stored
