"""The pictures of a run with kills, of the verbs that have such a run: a page (``--html``), an image (``--png``).

Whatever can be wrong with the options is told while they are read: before anything is killed.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import click

from vmbus_emu.cli.errors import Failure
from vmbus_emu.cli.outfile import OutFile, OutFileType, attempt

F = TypeVar("F", bound=Callable[..., Any])
_DRAWS = "matplotlib"


class _Image(OutFileType):
    """A file for an image. The extra is looked for, and not loaded: it would take memory and time from a run."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not installed(_DRAWS):
            raise Failure(f"--png needs {_DRAWS}, which is not installed",
                          "pip install 'vmbus-emu[report]', in a checkout pip install -e '.[report]'")
        return super().convert(value, param, ctx)


def installed(module: str) -> bool:
    """Whether it could be imported; it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def picture_options(function: F) -> F:
    """``--html`` and ``--png``, as ``html_file`` and ``png_file``."""
    html = click.option("--html", "html_file", metavar="FILE", type=OutFileType(),
                        help="Draw it as a page.")  # fmt: skip
    png = click.option("--png", "png_file", metavar="FILE", type=_Image(),
                       help="Draw it as an image, with distributions; needs the extra [report].")
    return html(png(function))


def draw(run: Mapping[str, Any], html_file: OutFile | None, png_file: OutFile | None) -> list[Failure | None]:
    """Draw what was asked for, without the histories that were destroyed: the findings tell of these. What could not
    be written is for :func:`vmbus_emu.cli.outfile.complain`."""
    if html_file is not None or png_file is not None:
        run = {**run, "histories": {vm: _readable(kinds) for vm, kinds in run["histories"].items()}}
    return [attempt(html_file, lambda: _page(run)), attempt(png_file, lambda: _image(run))]


def _page(run: Mapping[str, Any]) -> str:
    from vmbus_emu.client.timeline import page

    return page(run)


def _image(run: Mapping[str, Any]) -> bytes:
    # When it is first used it says that it looks for fonts, or that it finds no place to remember them.
    logging.getLogger(_DRAWS).setLevel(logging.ERROR)
    from vmbus_emu.client.plot import png

    return png(run)


def _readable(kinds: Mapping[str, Any]) -> dict[str, Any]:
    from vmbus_emu.witness import history

    readable = {}
    for kind, data in kinds.items():
        with suppress(ValueError):
            history.load(data)
            readable[kind] = data
    return readable
