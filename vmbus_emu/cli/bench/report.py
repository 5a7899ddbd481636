"""``bench report``: a kept run as a page, on any machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import click

from vmbus_emu.cli.errors import PROGRAM, Failure
from vmbus_emu.cli.pictures import to_stdout
from vmbus_emu.cli.table import printable


@click.command(short_help="A kept run as a page.")
@click.argument("file", metavar="RUN", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--html", "html_file", metavar="FILE", required=True, type=click.File("w", encoding="utf-8"),
              help="The page; - is standard output.")
def report(file: Path, html_file: IO[str]) -> None:
    """Draw a run that bench --json kept, as one page that needs nothing else. Its plots need the extra [report].

    \b
    Example:
      vmbus-emu bench report run.json --html report.html
    """
    from bench.report.sentence import summary
    from bench.report.stored import Run
    from bench.results import BadResults, load

    try:
        run = load(file)
    except BadResults as error:
        raise Failure(str(error), "vmbus-emu bench --json FILE makes one") from None
    write_page(run, html_file)
    click.echo(printable(summary(Run(run))), err=to_stdout(html_file))


def write_page(run: Mapping[str, Any], file: IO[str]) -> None:
    """The page of ``run``. Without plots, one line on standard error says what to install."""
    from bench.report.page import HINT, MISSING, can_draw, page

    # When it is first used it says that it looks for fonts, or that it finds no place to remember them.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    file.write(page(run))
    if not can_draw():
        click.echo(f"{PROGRAM}: the report has no plots: {MISSING}; {HINT}", err=True)
