"""What is measured, as data: one job is one kind of request, of a size, at a depth or a rate.

The standard jobs have fixed names. Others are made of them by ``--size``, ``--qd`` and ``--rate``, or come from a
file::

    [[job]]
    name = "scan"
    operation = "read"          # see bench/operations.py
    size = "64k"
    depth = 8
    random = true
    seconds = 0.5
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.operations import OPERATIONS
from vmbus_emu.topology.data import parse_size

_SECTOR = 512


class BadJob(ValueError):
    """What is wrong with a job, in one line."""


@dataclass(frozen=True, slots=True)
class Job:
    """``size`` in bytes; ``rate`` in requests per second, 0: as fast as ``depth`` allows; ``seconds`` of measuring."""

    name: str
    operation: str
    size: int = 0
    depth: int = 1
    rate: float = 0.0
    random: bool = True
    touch: bool = False
    seconds: float = 0.3

    def fault(self) -> str:
        """What cannot be measured about it; empty: nothing."""
        operation = OPERATIONS.get(self.operation)
        if operation is None:
            return f"operation {self.operation!r} is none of {', '.join(OPERATIONS)}"
        if not 1 <= self.depth <= operation.most_depth:
            return f"a depth of {self.depth} is not between 1 and {operation.most_depth}"
        if not 0 < self.seconds <= 600 or not 0 <= self.rate <= 1e6:
            return "seconds must be above 0 and at most 600, the rate from 0 to 1,000,000"
        if self.rate and not operation.open_loop:
            return f"{self.operation} has no rate: each request waits for the last"
        if self.rate and self.rate * self.seconds < 1:
            return f"at {self.rate:g} requests per second none is due within {self.seconds:g} s"
        if operation.largest and not 0 < self.size <= operation.largest:
            return f"a {self.operation} has 1 to {operation.largest} bytes, not {self.size}"
        if operation.whole_sectors and self.size % _SECTOR:
            return f"{self.size} bytes are no whole sectors of {_SECTOR}"
        return ""


STANDARD: Mapping[str, Job] = {
    job.name: job
    for job in (
        Job("null", "null"),
        Job("read-4k", "read", 4096),
        Job("write-flush-4k", "commit", 4096),
        Job("ping", "ping", 56),
        Job("read-1m", "read", 1 << 20, touch=True),
        Job("sqlite-commit", "sqlite"),
    )
}

#: Whole workloads: what ``bench macro`` runs.
MACRO: Mapping[str, Job] = {
    job.name: job
    for job in (STANDARD["sqlite-commit"], Job("kv-put", "kvlog"), Job("file-server", "files", depth=4))
}

#: Between two VMs, beside the standard echo: what ``bench network`` runs. A frame takes at most 1,500 bytes, and no
#: stack here makes fragments; more than two units of 64 KiB are more frames than a receiver has room for.
NETWORK: Mapping[str, Job] = {
    job.name: job for job in (STANDARD["ping"], Job("ping-1400", "ping", 1400), Job("bulk", "bulk", 65536, depth=2))
}


def varied(jobs: Iterable[Job], sizes: Iterable[int], depths: Iterable[int], rate: float) -> list[Job]:
    """Each of ``jobs`` at every size and depth, once; an empty list leaves what the job has. Raises :class:`BadJob`,
    also for two jobs that a run could not tell from each other."""
    made: dict[tuple[Any, ...], Job] = {}
    for job in jobs:
        for size in list(sizes) or [job.size]:
            for depth in list(depths) or [job.depth]:
                sized = size if OPERATIONS[job.operation].largest else 0
                one = replace(job, size=sized, depth=depth, rate=rate or job.rate)
                if made.setdefault(_told_by(one), checked(one)) != one:
                    raise BadJob(f"two jobs named {one.name} have the same size, depth and rate: name them apart")
    return list(made.values())


def _told_by(job: Job) -> tuple[Any, ...]:
    """What tells a job from the others of a run."""
    return job.name, job.size, job.depth, job.rate


def checked(job: Job) -> Job:
    fault = job.fault()
    if fault:
        raise BadJob(f"job {job.name}: {fault}")
    return job


def load(path: Path) -> list[Job]:
    """The jobs in a file. Raises :class:`BadJob`."""
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadJob(f"{path}: {error}") from None
    rows = document.get("job")
    if set(document) != {"job"} or not isinstance(rows, list) or not rows:
        raise BadJob(f"{path}: it must hold [[job]] tables and nothing else")
    jobs = [checked(_job(path, row)) for row in rows]
    told = {_told_by(job) for job in jobs}
    for job in jobs:
        if _told_by(job) not in told:
            raise BadJob(f"{path}: two jobs named {job.name} have the same size, depth and rate: name them apart")
        told.remove(_told_by(job))
    return jobs


def _job(path: Path, row: Any) -> Job:
    types: dict[str, tuple[type, ...]] = {
        "name": (str,), "operation": (str,), "size": (int, str), "depth": (int,), "rate": (int, float),
        "random": (bool,), "touch": (bool,), "seconds": (int, float),
    }  # fmt: skip
    if not isinstance(row, dict):
        raise BadJob(f"{path}: a job is a table")
    for name, value in row.items():
        if name not in types:
            raise BadJob(f"{path}: a job has no {name!r}; it has {', '.join(types)}")
        if type(value) not in types[name]:
            raise BadJob(f"{path}: {name} = {value!r} is not of type {types[name][0].__name__}")
    for name in ("name", "operation"):
        if name not in row:
            raise BadJob(f"{path}: a job needs a {name}")
    return Job(**{**row, "size": size_of(row.get("size", 0))})


def size_of(value: int | str) -> int:
    """Bytes of ``512``, ``4k``, ``1m`` or what a topology takes. Raises :class:`BadJob`."""
    short = isinstance(value, str) and len(value) > 1 and value[-1] in "kKmM"
    size = parse_size(f"{value[:-1]}{value[-1].upper()}iB" if short else value)  # type: ignore[index]
    if size is None:
        raise BadJob(f"{value!r} is not a size, such as 512, 4k or 1m")
    return size
