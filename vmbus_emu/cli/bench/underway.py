"""While something is measured: its progress, and what a signal means then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from vmbus_emu.cli.errors import PROGRAM
from vmbus_emu.cli.progress import progress_line
from vmbus_emu.cli.signals import ended_like_an_interrupt

if TYPE_CHECKING:
    from bench.measurement import Told


@contextmanager
def under_way(lost: str = "nothing of this run is kept") -> Iterator[Told]:
    """Yields what to call between the steps. Ctrl-C, SIGTERM and SIGHUP end the block with its machines, and ``lost``
    is said."""
    with ended_like_an_interrupt():
        try:
            with progress_line() as shown:

                def told(total: int, done: int, what: str) -> None:
                    if shown is not None:
                        shown({"component": what, "state": "", "done": done, "total": total})

                yield told
        except KeyboardInterrupt:
            click.echo(f"{PROGRAM}: interrupted: {lost}", err=True)
            raise
