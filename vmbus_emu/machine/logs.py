"""Logs per component: the machine reads each process's standard error and writes time-stamped lines, rotated.

Line format: ``2026-01-31T12:00:00.123456 text``. ``NAME.log`` is current, ``NAME.log.1`` and ``.2`` are older.
The process cannot outrun the disk: when the machine is busy, the pipe fills and the writer waits.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections import deque

ROTATE_BYTES = 1 << 20
KEEP = 2
_TAIL_LINES = 100
_LONGEST_LINE = 8192


def stamp() -> str:
    """The local time with microseconds."""
    return datetime.datetime.now().isoformat(timespec="microseconds")


class LogFile:
    """One component's log over all its incarnations."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._size = 0
        self._partial = b""
        #: The last lines, for the message that reports a death: all of a traceback, usually.
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def write(self, data: bytes) -> None:
        """Append what a process wrote; lines are completed across calls."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _LONGEST_LINE:
            lines.append(self._partial)
            self._partial = b""
        self._append(lines)

    def line(self, text: str) -> None:
        """Append one line of the machine's own."""
        self._append([text.encode()])

    def end_of_stream(self) -> None:
        """The process is gone: its last, unfinished line counts."""
        if self._partial:
            self._append([self._partial])
            self._partial = b""

    def _append(self, lines: list[bytes]) -> None:
        if not lines:
            return
        now = stamp().encode()
        for line in lines:
            self.tail.append(line.decode(errors="replace"))
        data = b"".join(now + b" " + line + b"\n" for line in lines)
        with contextlib.suppress(OSError):  # a full disk costs lines, not the machine
            if self._fd < 0:
                self._open()
            if self._size and self._size + len(data) > ROTATE_BYTES:
                self._rotate()
            self._size += os.write(self._fd, data)

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        for number in range(KEEP, 0, -1):
            older = self._path if number == 1 else f"{self._path}.{number - 1}"
            with contextlib.suppress(FileNotFoundError):
                os.replace(older, f"{self._path}.{number}")
        self._open()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
