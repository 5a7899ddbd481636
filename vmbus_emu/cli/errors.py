"""What an exception means to the user: lines for standard error and an exit status.

``main`` asks :func:`explain` about whatever ended a verb. An exception that is none of the expected kinds is a
bug of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
import sys

import click

PROGRAM = "vmbus-emu"
FAILED = 1
USAGE = 2
INTERRUPTED = 130


class Failure(Exception):
    """A verb cannot do what it was asked. One line, and ``hint``: what to try."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.hint = hint


def error_line(what: str, hint: str = "") -> str:
    """``vmbus-emu: error: what; what to try``, on one line."""
    text = f"{what.strip().rstrip('.')}; {hint}" if hint else what
    return f"{PROGRAM}: error: {' '.join(text.split())}"


def explain(error: Exception) -> tuple[list[str], int] | None:
    """The lines to show and the exit status; ``None`` if ``error`` is a bug."""
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx is not None else PROGRAM
        return [error_line(error.format_message(), f"see {command} --help")], USAGE
    if isinstance(error, click.ClickException):
        return [error_line(error.format_message())], error.exit_code
    if isinstance(error, Failure):
        return [error_line(str(error), error.hint)], FAILED
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return [error_line(f"{error.filename or 'nothing more can be written'}: {error.strerror}", "make room")], FAILED

    from vmbus_emu.runfolder import RunFolderError
    from vmbus_emu.topology.data import TopologyErrors

    if isinstance(error, TopologyErrors):
        # Each line names its file and key, as a compiler does: editors find the place.
        return list(error.lines), USAGE
    if isinstance(error, RunFolderError) or is_machine_error(error):
        return [error_line(str(error), getattr(error, "hint", ""))], FAILED
    return None


def is_machine_error(error: BaseException) -> bool:
    """Whether the client raised it on purpose. A client that was never loaded raised nothing."""
    client = sys.modules.get("vmbus_emu.client")
    return client is not None and isinstance(error, client.MachineError)
