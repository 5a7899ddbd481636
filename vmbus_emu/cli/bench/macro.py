"""``bench macro``: whole workloads, where the messages are only a part of what is done."""

from __future__ import annotations

import click

from vmbus_emu.cli.bench.options import Asked, measure, measuring


@click.command(short_help="Databases and files: whole workloads on every architecture.")
@measuring
def macro(asked: Asked) -> None:
    """Measure whole workloads on the standard configurations: commits of an SQLite database in the guest, puts of a
    key-value log with a flush each, the mixed requests of a file server. Each checks what it has written; the
    processor time of that counts. Takes about a minute and a half; SQLite needs the extra [macro].

    \b
    Example:
      vmbus-emu bench macro
      vmbus-emu bench macro --rounds 3 --json macro.json
    """
    from bench.jobs import MACRO
    from bench.machines import STANDARD

    measure(STANDARD, list(MACRO.values()), (), asked)
