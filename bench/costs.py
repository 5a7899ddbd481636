"""What a machine's processes have used, read outside of measured windows: the kernel's own sums, to the nanosecond."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def processes(rows: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Pid to name of every process of a machine: what ``ps`` shows, and the front door, which is no component."""
    found: dict[int, str] = {}
    for row in rows:
        if row["pid"]:
            found[row["pid"]] = row["host"]
        front = (row["counters"] or {}).get("front_pid")
        if front:
            found[front] = "front"
    return found


def costs(pids: Mapping[int, str]) -> dict[str, tuple[int, int]]:
    """ns on a processor and context switches, by process. One that has ended is left out."""
    found: dict[str, tuple[int, int]] = {}
    for pid, name in pids.items():
        used = switches = 0
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                used += int((task / "schedstat").read_text().split()[0])
                lines = (task / "status").read_text().splitlines()
                switches += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
        except (OSError, ValueError):
            continue
        found[name] = used, switches
    return found


def used_ns(before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]) -> int:
    """Processor time in between, of those that lived through it."""
    return sum(after[name][0] - used for name, (used, _) in before.items() if name in after)
