"""Files that a verb writes when it is done: until then, and if it never comes to that, they stay as they are.

What can be wrong with the name is told while options are read, before anything is measured or killed.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from vmbus_emu.cli.errors import FAILED, Failure, error_line

_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
#: What is named here is open already, whatever it is.
_DESCRIPTORS = ("/dev/std", "/dev/fd/", "/proc/")
#: Of a context: which option writes where.
_TAKEN = f"{__name__}.taken"


class OutFile:
    """Where to put a text or an image. ``in_place``: there is nothing to be put in its stead, as with a device."""

    def __init__(self, name: str, in_place: bool = False) -> None:
        self.name = name
        self.to_stdout = name in _STDOUT
        self._in_place = in_place

    @property
    def again(self) -> bool:
        """Whether what is written a second time replaces the first."""
        return not self.to_stdout and not self._in_place

    def is_same(self, path: Path) -> bool:
        """Whether writing would replace ``path``."""
        with suppress(OSError):
            return not self.to_stdout and os.path.samefile(self.name, path)
        return False

    def write(self, content: str | bytes) -> None:
        """All of it, in place of what was there. Raises :class:`Failure`, and what was there is still there, unless
        it is written in place. A reader of standard output that has gone away is none (``BrokenPipeError``)."""
        data = content.encode() if isinstance(content, str) else content
        try:
            if self.to_stdout:
                click.echo(data, nl=False)
            elif self._in_place:
                _write(self.name, data, os.O_TRUNC)
            else:
                _replace(Path(self.name).resolve(), data)
        except BrokenPipeError:
            raise
        except OSError as error:
            if self.to_stdout:
                _give_up_stdout()
            named = "standard output" if self.to_stdout else self.name
            raise Failure(f"{named} was not written: {error.strerror}", "name a file elsewhere") from None


def _write(name: str | Path, data: bytes, flags: int, mode: int | None = None) -> None:
    with open(os.open(name, os.O_WRONLY | flags, 0o666), "wb") as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        file.write(data)


def _replace(path: Path, data: bytes) -> None:
    beside = path.with_name(f".vmbus-emu-{secrets.token_hex(4)}")
    try:
        _write(beside, data, os.O_CREAT | os.O_EXCL, stat.S_IMODE(path.stat().st_mode) if path.exists() else None)
        try:
            beside.replace(path)
        except OSError:     # another file system is mounted there, or the folder lets nobody replace others' files
            _write(path, data, os.O_TRUNC)
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()


def _give_up_stdout() -> None:
    """What it has not taken shall not be offered to it once more at the end."""
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)


class OutFileType(click.File):
    """The name of a file to write; ``-`` is standard output. No two options may write to the same."""

    def __init__(self) -> None:
        super().__init__("w")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, OutFile):
            return value
        in_place = False
        if value not in _STDOUT:
            try:
                in_place = _checked(value)
            except OSError as error:
                self.fail(f'"{value}" cannot be written: {error.strerror}', param, ctx)
        if ctx is not None and param is not None:
            self._take("-" if value in _STDOUT else os.path.realpath(value), in_place, param, ctx)
        return OutFile(value, in_place)

    def _take(self, where: str, in_place: bool, param: click.Parameter, ctx: click.Context) -> None:
        other = ctx.meta.setdefault(_TAKEN, {}).setdefault(where, param.opts[0])
        if other != param.opts[0] and not in_place:
            what = "standard output" if where == "-" else where
            self.fail(f"{other} goes to {what} already: name another file", param, ctx)


def _checked(name: str) -> bool:
    """Whether it is to be written in place. Raises ``OSError`` if it cannot be written at all."""
    folder = os.path.dirname(os.path.realpath(name)) or "."
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        if name.endswith("/") or not name:
            raise
        os.stat(folder)
        _need(folder, os.W_OK | os.X_OK)
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(0, "it is a directory")
    _need(name, os.W_OK)
    if not stat.S_ISREG(mode) or os.path.abspath(name).startswith(_DESCRIPTORS):
        return True
    return not os.access(folder, os.W_OK | os.X_OK)


def _need(path: str, right: int) -> None:
    if not os.access(path, right):
        raise PermissionError(0, "permission denied")


def to_stdout(*files: OutFile | None) -> bool:
    """Whether one of them goes to standard output, so that nothing else may."""
    return any(file is not None and file.to_stdout for file in files)


def attempt(file: OutFile | None, content: Callable[[], str | bytes], early: bool = False) -> Failure | None:
    """Write ``content()`` if that was asked for; ``early``: and if it can be written again. What went wrong is for
    :func:`complain`, when everything else that was found has been shown."""
    try:
        if file is not None and (file.again or not early):
            file.write(content())
    except Failure as failure:
        return failure
    return None


def tell(failures: Iterable[Failure | None]) -> bool:
    """Show them. Whether there are any."""
    found = [failure for failure in failures if failure is not None]
    for failure in found:
        click.echo(error_line(str(failure), failure.hint), err=True)
    return bool(found)


def complain(failures: Iterable[Failure | None]) -> None:
    """Show them and fail, if there are any."""
    if tell(failures):
        raise click.exceptions.Exit(FAILED)
