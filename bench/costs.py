"""What a machine's processes have used, read outside of measured windows: the kernel's own sums, to the nanosecond, and
what the components count themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vmbus_emu.client import Machine

Answer = TypeVar("Answer")
#: What passes through the hypervisor, which counts all of it. Who makes a call or answers an intercept counts it, too.
_BY_HYPERVISOR = ("messages", "hypercalls", "intercepts", "interrupts")
#: What is counted at one place each. ``accesses``: to emulated devices by calls, in the monolith; ``frames``: over the
#: cables of emulated network adapters.
_APART = ("packets", "bytes", "doorbells", "copies", "accesses", "frames")
_COUNTERS = (*_APART, *_BY_HYPERVISOR)


class Replaced(Exception):
    """A process died meanwhile, and what it had used and counted went with it."""


class Spent(NamedTuple):
    """Of a whole machine, while something ran. ``memory_bytes`` (USS) is of the end."""

    ns: Mapping[str, int]           #: on a processor, by process
    switches: int
    counters: Mapping[str, float]
    memory_bytes: float | None

    def beyond(self, less: Spent) -> Spent:
        """What was spent beyond something that is part of it."""
        return Spent(
            {name: max(0, ns - less.ns.get(name, 0)) for name, ns in self.ns.items()},
            max(0, self.switches - less.switches),
            {name: max(0.0, value - less.counters[name]) for name, value in self.counters.items()}, self.memory_bytes,
        )  # fmt: skip


def spent(machine: Machine, act: Callable[[], Answer]) -> tuple[Answer, Spent]:
    """What ``act`` gives, and what the machine spent meanwhile. Raises :class:`Replaced`."""
    rows = machine.ps(window=0)["partitions"]
    pids = processes(rows)
    before = costs(pids)
    answer = act()
    after = costs(pids)
    later = machine.ps(window=0)["partitions"]
    if gone := set(pids.items()) ^ set(processes(later).items()):
        raise Replaced(f"{', '.join(sorted({name for _, name in gone}))} died or was replaced meanwhile")
    was, now = _counted(rows), _counted(later)
    return answer, Spent(
        {name: after[name][0] - used for name, (used, _) in before.items()},
        sum(after[name][1] - switches for name, (_, switches) in before.items()),
        {name: now[name] - was[name] for name in _COUNTERS}, sum(row["uss_bytes"] or 0 for row in later) or None,
    )  # fmt: skip


def _counted(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    by_role = [(row["role"], row["counters"] or {}) for row in rows]
    return {
        name: float(sum(
            counters.get(name) or 0 for role, counters in by_role if name in _APART or role == "hypervisor"
        )) for name in _COUNTERS
    }  # fmt: skip


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
