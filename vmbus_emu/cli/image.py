"""``vmbus-emu image``: what is in a disk image, without a machine."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import click

from vmbus_emu.cli.errors import Failure

_PIECE = 1 << 20


@click.group(short_help="Look into disk images; build what a monolith boots from.")
def image() -> None:
    """Take things out of the image of a disk, while no machine uses it; build and install what a monolith boots from.

    \b
    Example:
      vmbus-emu image extract disk.img db.sqlite
    """


@image.command(short_help="Copy the SQLite database out of an image.")
@click.argument("source", metavar="IMAGE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("target", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE, and the journals beside it.")
def extract(source: Path, target: Path, force: bool) -> None:
    """Copy the database that sqlitebench left on a disk to FILE, for sqlite3 and everything else that reads SQLite's
    files. If the VM died in the middle of a transaction, its journal is put beside it: whoever opens FILE next rolls
    that transaction back. The disk's machine must be down.

    \b
    Example:
      vmbus-emu image extract disk.img db.sqlite
      sqlite3 db.sqlite 'PRAGMA integrity_check'
    """
    from vmbus_emu.protocol.database import SECTOR, NoDatabase, decode

    journal = Path(f"{target}-journal")
    beside = [journal, Path(f"{target}-wal"), Path(f"{target}-shm")]
    in_the_way = [path for path in (target, *beside) if path.exists()]
    if in_the_way and not force:
        raise Failure(f"{in_the_way[0]} exists", "choose another name, or say --force to replace it")
    try:
        with source.open("rb") as disk:
            _claim(disk, source)
            try:
                found = decode(disk.read(SECTOR), os.fstat(disk.fileno()).st_size)
            except NoDatabase as why:
                raise Failure(f"{source}: {why}", "name the image of a disk that sqlitebench wrote") from None
            for path in beside:  # with another database's journal SQLite would destroy this one
                with suppress(FileNotFoundError):
                    path.unlink()
            if found.journal_length:
                _copy(disk, found.journal_start, found.journal_length, journal)
            _copy(disk, found.database_start, found.database_length, target)
    except OSError as error:
        raise Failure(f"{error.filename or source}: {error.strerror}", "choose another file") from None
    click.echo(f"{target}: {found.database_length} bytes")
    if found.journal_length:
        click.echo(
            f"{journal}: {found.journal_length} bytes; a transaction was under way, and whoever opens {target} next "
            "rolls it back: keep both together"
        )


def _claim(disk: BinaryIO, source: Path) -> None:
    """Until it is closed no machine takes the image."""
    try:
        fcntl.flock(disk, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Failure(
            f"{source} is in use by a running machine, which may be writing to it", "take that down first: "
            "vmbus-emu down"
        ) from None


def _copy(disk: BinaryIO, start: int, length: int, target: Path) -> None:
    disk.seek(start)
    with target.open("wb") as out:
        while length:
            piece = disk.read(min(length, _PIECE))
            if not piece:
                raise Failure(f"{disk.name} ends before its database does", "take a whole copy of the image")
            out.write(piece)
            length -= len(piece)
