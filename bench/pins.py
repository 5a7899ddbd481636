"""Where the processes of a machine run, and those of a baseline: both ends of a channel on processors of their own, or
on one, or where the kernel likes.

Where two processes land makes a round trip 3 us or 70 long, so what is left to chance is most of what is measured.
``apart``: whoever serves guests has the second half of the processors; guests take turns on all of them, the first one
on the first. (Two guests that look at their rings on one processor keep it from each other: an echo between them took
300 us on one machine and 1,100 on the next.) Threads are placed one by one: the monolith's VMs are threads, and bear
the names of their VMs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

APART, TOGETHER, NONE = "apart", "together", "none"
WAYS = (APART, TOGETHER, NONE)
#: Whose processor is chosen first, of those that serve.
_FIRST = ("storvsp", "netvsp", "parent", "hypervisor")
#: Roles of those that no load from outside is to sit with, if it can be helped.
_BESIDE_LOADS = ("child", "parent", "storvsp", "netvsp", "role")
_CPUS = Path("/sys/devices/system/cpu")

Rows = Sequence[Mapping[str, Any]]


class Unpinnable(Exception):
    """Why processes cannot be placed as was asked for."""


class Places(NamedTuple):
    """Numbers of processors, to be given out in turn."""

    guests: tuple[int, ...]
    hosts: tuple[int, ...]


def processors() -> list[int]:
    """One of each core, of those that this process may use: two threads of one core are no two processors."""
    cores: dict[Any, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        try:
            core = tuple(
                (_CPUS / f"cpu{cpu}" / "topology" / name).read_text() for name in ("physical_package_id", "core_id")
            )
        except OSError:
            core = (str(cpu),)
        cores.setdefault(core, cpu)
    return list(cores.values())


def places(way: str, cpus: Sequence[int]) -> Places | None:
    """``None``: nobody is placed. Raises :class:`Unpinnable`."""
    if way == NONE:
        return None
    if way == TOGETHER:
        return Places((cpus[0],), (cpus[0],))
    if len(cpus) < 2:
        raise Unpinnable("there is one processor, so both ends share it: ask for --pin together, or use a larger host")
    return Places(tuple(cpus), tuple(cpus[len(cpus) // 2 :]))


def _wanted(rows: Rows, where: Places) -> Iterator[tuple[int, str, int]]:
    """Every thread of the processes in ``rows`` (of ``ps --json``): its id, whose it is, and its processor."""
    guests = {row["name"]: where.guests[index % len(where.guests)] for index, row in enumerate(
        row for row in rows if row["role"] == "child")}  # fmt: skip
    hosts: dict[int, str] = {}
    for name in (*_FIRST, *(row["host"] for row in rows)):
        for row in rows:
            if row["name"] == name and row["pid"]:
                hosts.setdefault(row["pid"], row["host"])
    for index, (pid, name) in enumerate(hosts.items()):
        own = guests.get(name, where.hosts[index % len(where.hosts)])
        for thread, title in threads(pid):
            yield thread, name if thread == pid else f"{name}'s thread {title}", guests.get(title, own)


def processor_of(rows: Rows, where: Places) -> dict[str, int]:
    """Every process' processor, by its name."""
    pids = {row["pid"] for row in rows}
    return {name: cpu for thread, name, cpu in _wanted(rows, where) if thread in pids}


def bystander(rows: Rows, where: Places) -> int:
    """The processor on which a load from outside of the machine disturbs least what is measured: one that no VM, nobody
    who serves them, and no role has. If there is none, as with two or three processors, that of the role: what the
    load takes there it takes from those who share it with the role, but nothing from vm1."""
    processor = processor_of(rows, where)
    known = [(row["role"], processor[row["name"]]) for row in rows if row["name"] in processor]
    taken = {cpu for role, cpu in known if role in _BESIDE_LOADS}
    free = [cpu for cpu in where.guests if cpu not in taken]
    return free[-1] if free else next((cpu for role, cpu in known if role == "role"), where.hosts[0])


def threads(pid: int) -> Iterator[tuple[int, str]]:
    """Ids and names; nothing of a process that has ended."""
    try:
        for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
            yield int(task.name), (task / "comm").read_text().strip()
    except OSError:
        return


def pin(rows: Rows, where: Places) -> None:
    """Place every thread there is now; those that it makes later inherit it. :func:`misplaced` sees what failed."""
    for thread, _, cpu in _wanted(rows, where):
        try:
            os.sched_setaffinity(thread, {cpu})
        except OSError:
            continue


def misplaced(rows: Rows, where: Places) -> list[str]:
    """Who may run elsewhere than wanted, as the kernel tells it."""
    wrong = []
    for thread, whose, cpu in _wanted(rows, where):
        try:
            allowed = os.sched_getaffinity(thread)
        except OSError:
            continue
        if allowed != {cpu}:
            wrong.append(f"{whose} is not pinned to processor {cpu}")
    return wrong
