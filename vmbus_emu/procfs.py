"""What /proc says about a process: its state, and when it started, which with the pid is an identity."""

from __future__ import annotations


def process_state(pid: int) -> str:
    """The kernel's letter for a process's state, empty if there is no such process."""
    fields = stat_fields(pid)
    return fields[0] if fields else ""


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
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
