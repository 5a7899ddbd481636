"""``vmbus-emu image``: what is in a disk image, without a machine."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import click

from vmbus_emu.cli.errors import Failure

_PIECE = 1 << 20
#: What copies are called until they are complete.
_DATABASE, _JOURNAL = "database", "journal"


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
    files. If the VM died in the middle of a transaction, or IMAGE was made by snapshot --no-quiesce in one, the
    database's journal is copied to FILE-journal: whoever opens FILE next rolls that transaction back, and so keep both
    together. A quiesced snapshot needs none. IMAGE must not be in use: name a snapshot, or take its machine down.

    \b
    Example:
      vmbus-emu image extract disk.img db.sqlite
      sqlite3 db.sqlite 'PRAGMA integrity_check'
    """
    from vmbus_emu.protocol.database import SECTOR, NoDatabase, decode, is_hot

    journal = Path(f"{target}-journal")
    paths = (target, journal, Path(f"{target}-wal"), Path(f"{target}-shm"))
    in_the_way = [path for path in paths if os.path.lexists(path)]
    for path in in_the_way:
        if path.exists() and path.samefile(source):
            raise Failure(f"{path} is the image itself, which would be lost", "choose another name")
        if force and (path.is_symlink() or not path.is_file()):
            raise Failure(f"{path} is no file of its own", "choose another name")
    if in_the_way and not force:
        raise Failure(f"{in_the_way[0]} exists", "choose another name, or say --force to replace it")
    try:
        with source.open("rb") as disk:
            _claim(disk, source)
            try:
                found = decode(disk.read(SECTOR), os.fstat(disk.fileno()).st_size)
            except NoDatabase as why:
                raise Failure(f"{source}: {why}", "name the image of a disk that sqlitebench wrote") from None
            disk.seek(found.journal_start)
            hot = is_hot(disk.read(min(1, found.journal_length)))
            with _folders_beside(target) as (new, old):
                _copy(disk, found.database_start, found.database_length, new / _DATABASE)
                if hot:
                    _copy(disk, found.journal_start, found.journal_length, new / _JOURNAL)
                _put(new, old, paths)
    except OSError as error:
        raise Failure(f"{source} cannot be copied to {target}: {error.strerror}", "choose another file") from None
    click.echo(f"{target}: {found.database_length} bytes")
    if hot:
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
            "vmbus-emu ls shows which there are, vmbus-emu down --name NAME ends one"
        ) from None


@contextmanager
def _folders_beside(target: Path) -> Iterator[tuple[Path, Path]]:
    """Two, for what is new and for what is old, which are gone afterwards; but not what is in the second one."""
    folder = Path(tempfile.mkdtemp(prefix=".vmbus-emu-", dir=target.parent))
    new, old = folder / "new", folder / "old"
    new.mkdir()
    old.mkdir()
    try:
        yield new, old
    finally:
        shutil.rmtree(new)
        with suppress(OSError):
            old.rmdir()
            folder.rmdir()


def _put(new: Path, old: Path, paths: Sequence[Path]) -> None:
    """Replace the database and its journals, ``paths``, by the copies in ``new``, or leave them as they are. At no time
    a database stands beside another one's journal: SQLite would destroy it."""
    target, journal = paths[:2]
    away: list[Path] = []
    placed: list[Path] = []
    try:
        for path in paths:
            if path.exists():
                path.rename(old / path.name)
                away.append(path)
        for copy, path in ((new / _JOURNAL, journal), (new / _DATABASE, target)):
            if copy.exists():
                copy.rename(path)
                placed.append(path)
    except BaseException:
        for path in reversed(placed):
            path.unlink()
        for path in reversed(away):
            (old / path.name).rename(path)
        raise
    for path in away:
        (old / path.name).unlink()


def _copy(disk: BinaryIO, start: int, length: int, target: Path) -> None:
    disk.seek(start)
    with target.open("wb") as out:
        while length:
            piece = disk.read(min(length, _PIECE))
            if not piece:
                raise Failure(f"{disk.name} ends before its database does", "take a whole copy of the image")
            out.write(piece)
            length -= len(piece)
