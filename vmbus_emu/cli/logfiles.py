"""Reading the logs of a machine: ``COMPONENT.log``, and ``.1`` and ``.2`` from before the last rotations.

Used by ``vmbus-emu logs`` and by its completion. The machine writes; here files are only read, while they grow
and rotate. Every line is ``TIMESTAMP text`` with the local time in ISO form, so the order of the texts is the
order of time. Text may come from a guest: nothing is assumed of it.
"""

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from vmbus_emu.runfolder import RunFolder

#: The current file, then the rotated ones, newest first. Opened in this order, a rotation in between shows one
#: file twice but hides none.
_SUFFIXES = ("", ".1", ".2")
_MAX_LINE = 1 << 20
_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line. A line without a time of its own (a traceback's) has that of the line before it."""

    component: str
    time: str
    text: str


def components(folder: RunFolder) -> list[str]:
    """The components that have a log, and the VMs, which may not have one yet."""
    try:
        logged = {entry.name[: -len(".log")] for entry in os.scandir(folder.logs) if entry.name.endswith(".log")}
    except OSError:
        logged = set()
    vms = folder.info().get("vms")
    return sorted(logged.union(vm for vm in (vms if isinstance(vms, list) else ()) if isinstance(vm, str)))


def parse_line(component: str, raw: bytes, before: str = "") -> LogLine:
    """One line of a log; ``before`` is the time of the line before it."""
    text = raw.decode("utf-8", "replace")
    time, _, rest = text.partition(" ")
    if time[:4].isdecimal() and time[4:5] == "-":
        return LogLine(component, time, rest)
    return LogLine(component, before, text)


def last_lines(folder: RunFolder, names: Sequence[str], count: int | None) -> Iterator[LogLine]:
    """The newest ``count`` lines (all if ``None``) of the named components together, in the order of time."""
    followers = [Follower(folder, name) for name in names]
    try:
        yield from newest([follower.new_lines() for follower in followers], count)
    finally:
        for follower in followers:
            follower.close()


def newest(logs: Iterable[Iterable[LogLine]], count: int | None) -> Iterator[LogLine]:
    """The newest ``count`` lines of several logs, each in the order of time, merged."""
    if count is not None:
        # An older line of one log cannot be among the newest of all, so memory stays bounded.
        logs = [deque(log, maxlen=count) for log in logs]
    merged = heapq.merge(*logs, key=lambda line: line.time)
    return merged if count is None else iter(deque(merged, maxlen=count))


class Follower:
    """The lines of one component's log, each once, from the oldest kept, across rotations."""

    def __init__(self, folder: RunFolder, name: str) -> None:
        self._paths = [folder.log(name) + suffix for suffix in _SUFFIXES]
        self._name = name
        self._partial = b""
        self._time = ""
        self._file: BinaryIO | None = None

    def new_lines(self) -> Iterator[LogLine]:
        """What was written since the last call, the first time everything; complete lines only."""
        yield from self._drain()
        for file in self._newer_files():
            # A file is renamed before the newer one is made, and may have grown since we drained it.
            yield from self._drain()
            self.close()
            self._file = file
            yield from self._drain()

    def _newer_files(self) -> list[BinaryIO]:
        """The files written after the one we read, oldest first: two rotations between two looks leave two."""
        newer: list[BinaryIO] = []
        for path in self._paths:
            try:
                file = open(path, "rb")  # noqa: SIM115 - kept, until the next one takes its place
            except OSError:
                continue
            # A descriptor that stays open keeps its inode from being used again, so inodes tell files apart.
            if self._file is not None and _same(file, self._file):
                file.close()
                break
            if newer and _same(file, newer[0]):  # rotated between two opens
                file.close()
                continue
            newer.insert(0, file)
        return newer

    def _drain(self) -> Iterator[LogLine]:
        while self._file is not None and (chunk := self._file.read(_CHUNK)):
            *complete, self._partial = (self._partial + chunk).split(b"\n")
            if len(self._partial) > _MAX_LINE:
                complete.append(self._partial)
                self._partial = b""
            for raw in complete:
                line = parse_line(self._name, raw, self._time)
                self._time = line.time
                yield line

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _same(one: BinaryIO, other: BinaryIO) -> bool:
    return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))
