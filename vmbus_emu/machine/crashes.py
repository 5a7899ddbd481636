"""What a process of the host had to say at its end, kept in a file: the purple screen, and the last lines of its log.

``crashes/COMPONENT-INCARNATION.txt`` in the run folder: a header (``name: value`` lines), then the section
``screen:`` with what the process wrote when it failed, and ``last log lines:``; a section's lines are indented by two
blanks. A process that is killed from outside leaves no screen. Of the files the last :data:`KEPT` stay.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from vmbus_emu.loop import Loop
from vmbus_emu.machine.logs import stamp
from vmbus_emu.machine.supervisor import Process, Supervisor

#: Files that stay in the folder.
KEPT = 16
#: Whoever replaces the dead process needs the CPU first.
WRITE_AFTER_S = 0.02
#: Roles whose processes carry the host, or a part of it.
HOST_ROLES = frozenset(("hypervisor", "parent", "storvsp", "netvsp"))
#: How a screen begins: the monolith's panic, the interpreter's last words at a signal, an exception nobody caught.
PANIC, FATAL, TRACEBACK = "*** HOST PANIC", "Fatal Python error", "Traceback (most recent call last)"
SCREEN, LOG = "screen:", "last log lines:"


class Words(NamedTuple):
    """A dead process's last lines, taken apart. ``reason``: the one that says most; empty if it said nothing."""

    reason: str
    screen: Sequence[str]
    log: Sequence[str]


def last_words(tail: Collection[str]) -> Words:
    """The end of a log: where the screen begins in it, if there is one."""
    lines = list(tail)
    for beginning in (PANIC, FATAL, TRACEBACK):
        at = next((at for at, line in enumerate(lines) if line.startswith(beginning)), None)
        if at is not None:
            reason = lines[-1] if beginning == TRACEBACK else lines[at]
            return Words(reason, lines[at:], lines[:at])
    return Words(lines[-1] if lines else "", (), lines)


class Crashes:
    """The captures of one machine. ``folder`` is made with the first."""

    def __init__(self, loop: Loop, folder: Path, machine: str, supervisor: Supervisor) -> None:
        self._loop = loop
        self._folder = folder
        self._machine = machine
        self._supervisor = supervisor
        self._names: deque[str] = deque()

    def capture(self, process: Process, carried: Sequence[str]) -> str:
        """Keep the last words of ``process``, which was reaped; the name of the file, which is there soon."""
        tail = self._supervisor.log(process.name).tail
        words = last_words(tail)
        tail.clear()  # or the next incarnation's end would be told in this one's words
        name = f"{process.name}-{process.incarnation}.txt"
        self._loop.call_later(WRITE_AFTER_S, self._write, name, self._text(process, carried, words))
        return name

    def _text(self, process: Process, carried: Sequence[str], words: Words) -> str:
        header = {
            "machine": self._machine, "time": stamp(), "component": process.name, "carried": ", ".join(carried),
            "pid": process.pid, "incarnation": process.incarnation, "ended": process.ending,
        }  # fmt: skip
        screen = words.screen or [f"none: it was {process.ending}, and said nothing about that"]
        sections = (SCREEN, *_indented(screen), "", LOG, *_indented(words.log or ["none"]))
        return "\n".join([*(f"{key + ':':13}{value}" for key, value in header.items()), "", *sections, ""])

    def _write(self, name: str, text: str) -> None:
        with contextlib.suppress(OSError):  # a full disk costs the capture, not the machine
            self._folder.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(text.encode(errors="replace"))
        self._names.append(name)
        while len(self._names) > KEPT:
            with contextlib.suppress(OSError):
                os.unlink(self._folder / self._names.popleft())


def _indented(lines: Collection[str]) -> list[str]:
    return [f"  {line}" for line in lines]
