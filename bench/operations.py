"""What a job can ask of a machine, and the guest's command line that does it.

A new kind of request is one more row here: what the guest runs, which sizes it takes, what must be installed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bench.jobs import Job

#: Requests under way at once, at most: a disk's depth.
MOST_DEPTH = 64
_MIB = 1 << 20

#: ``command(job, common)`` is a line for vm1's console; ``common``: its flags for depth, time, pace and samples.
Command = Callable[["Job", str], str]


class Operation(NamedTuple):
    command: Command
    largest: int = 0                #: bytes of one request; 0: it has no size
    whole_sectors: bool = False
    most_depth: int = MOST_DEPTH
    open_loop: bool = True          #: whether it can be asked for at a rate
    lacking: Callable[[], str] = str    #: what is not installed that it needs, and how to get it; empty: nothing

    @property
    def on_disk(self) -> bool:
        """Whether it is a request to a disk, of so many bytes."""
        return self.whole_sectors


def _on_disk(disk: str) -> Command:
    def command(job: Job, common: str) -> str:
        letters = "".join(
            letter for letter, wanted in (("r", job.random), ("t", job.touch), ("c", job.operation == "read")) if wanted
        ) if job.size else ""  # fmt: skip
        size = f" -b {job.size}" if job.size else ""
        return f"iobench -j -o {job.operation}{size}{f' -{letters}' if letters else ''} {common} {disk}"

    return command


def _echo(job: Job, common: str) -> str:
    return f"netbench -b {job.size} {common} vm2"


def _bulk(job: Job, common: str) -> str:
    return f"bulkbench -b {job.size} {common} vm2"


def _whole_load(command: str) -> Command:
    """A load of its own on a disk that it formats."""
    return lambda job, common: f"{command} {common} {MACRO_DISK}"


def _without_apsw() -> str:
    return "" if find_spec("apsw") else "needs apsw: pip install 'vmbus-emu[macro]'"


#: Which disk of vm1 holds what: see :func:`bench.machines.running`.
NULL_DISK, IMAGE_DISK, SCRATCH_DISK, MACRO_DISK = "disk0", "disk1", "disk2", "disk3"

OPERATIONS: Mapping[str, Operation] = {
    "null": Operation(_on_disk(NULL_DISK)),
    "read": Operation(_on_disk(IMAGE_DISK), _MIB, whole_sectors=True),
    "write": Operation(_on_disk(SCRATCH_DISK), _MIB, whole_sectors=True),
    "commit": Operation(_on_disk(SCRATCH_DISK), _MIB, whole_sectors=True),
    "ping": Operation(_echo, 65507),
    "bulk": Operation(_bulk, _MIB, most_depth=4, open_loop=False),
    "sqlite": Operation(_whole_load("sqlitebench"), most_depth=1, open_loop=False, lacking=_without_apsw),
    "kvlog": Operation(_whole_load("kvlog"), most_depth=1, open_loop=False),
    "files": Operation(_whole_load("fileserver"), open_loop=False),
}
