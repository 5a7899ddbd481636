"""What /proc says about a process: its state, what it does, and when it started, which with the pid is an identity."""

from __future__ import annotations

from typing import NamedTuple

_UTIME, _STIME = 11, 12                           # in a stat file, counted from the state
_SWITCHES = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")


class Thread(NamedTuple):
    """What the kernel says of one thread: its state, its CPU time in clock ticks, how often it left a core."""

    state: str
    ticks: int
    switches: int


def first_thread(pid: int) -> Thread | None:
    """The first thread of a process, in which its loop turns; ``None`` if the process is gone or dead."""
    return thread(pid, pid)


def thread(pid: int, number: int) -> Thread | None:
    """A thread of a process, by the kernel's number of it; ``None`` if it is gone or dead."""
    fields = _fields(f"/proc/{pid}/task/{number}/stat")
    if not fields or fields[0] in "ZX":
        return None
    try:
        with open(f"/proc/{pid}/task/{number}/status") as file:
            lines = [line.split(":") for line in file]
    except (FileNotFoundError, ProcessLookupError):
        return None
    switches = sum(int(line[1]) for line in lines if line[0] in _SWITCHES)
    return Thread(fields[0], int(fields[_UTIME]) + int(fields[_STIME]), switches)


def process_state(pid: int) -> str:
    """The kernel's letter for a process's state, empty if there is no such process."""
    fields = stat_fields(pid)
    return fields[0] if fields else ""


def is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger stopped it: it is there, and does nothing until it is continued."""
    return process_state(pid) in ("T", "t")


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 if there is no such process. With the pid, an identity."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields else 0


def has_ended(pid: int, started: int) -> bool:
    """Whether the process of that pid and start time is gone, or dead to its last thread and only unreaped.

    A process that is killed shows as a zombie as soon as its first thread has ended; until the last one has, its
    sockets and locks live on.
    """
    fields = stat_fields(pid)
    return not fields or int(fields[19]) != started or (fields[0] == "Z" and int(fields[17]) <= 1)


def stat_fields(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` from the state on (the name before them may contain anything)."""
    return _fields(f"/proc/{pid}/stat")


def _fields(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
