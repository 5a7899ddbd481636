"""One sample set: a fresh machine of one configuration that does every job once, in random order, and what it cost.

Costs are read outside of the measured windows: processor time of every thread of every process of the machine to the
nanosecond (schedstat), context switches, and the counters that the components keep (``ps --json``).
"""

from __future__ import annotations

import json
import os
import random
import shlex
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench.jobs import Job
from bench.operations import OPERATIONS
from vmbus_emu.client import Machine
from vmbus_emu.device import BLOCK_SIZE
from vmbus_emu.witness.samples import Samples

#: Bytes of the image that is read; it stays in the page cache.
IMAGE_BYTES = 64 << 20
#: Before a job is measured it runs for this share of its time.
_WARM_UP = 0.2
#: Room for so many requests per second.
_MOST_PER_S = 1_500_000
#: What a guest may take beyond the job's time.
_PATIENCE_S = 60.0
_COUNTERS = ("packets", "doorbells", "copies", "messages", "hypercalls", "intercepts")


class Configuration(NamedTuple):
    """Where the components are and how they speak: ``call`` in the monolith; only rings have ``poll``."""

    arch: str
    transport: str
    poll: str | None = None

    @property
    def name(self) -> str:
        told = [self.arch] if self.transport == "call" else [self.arch, self.transport]
        return " ".join(told + ([f"--poll {self.poll}"] if self.poll not in (None, "adaptive") else []))


#: What the standard comparison compares; the others are held against the first.
STANDARD = (
    Configuration("monolithic", "call"), Configuration("microkernel", "zmq"),
    Configuration("microkernel", "ring", "adaptive"), Configuration("disaggregated", "zmq"),
    Configuration("disaggregated", "ring", "adaptive"),
)  # fmt: skip


class Unmeasured(Exception):
    """Why a job could not be measured."""


@dataclass(slots=True)
class Measured:
    """One job on one machine. Costs are per request."""

    latencies_ns: array[int]
    seconds: float
    cpu_us: float
    cpu_us_by_process: Mapping[str, float]
    switches: float
    counters: Mapping[str, float]


def make_image(path: Path, nbytes: int = IMAGE_BYTES) -> Path:
    """An image whose every block begins with its number, so that a read that brings another block is found out."""
    chance = random.Random(7)
    rest = [chance.randbytes(BLOCK_SIZE - 8) for _ in range(64)]
    with path.open("wb") as file:
        for first in range(0, nbytes // BLOCK_SIZE, 2048):
            last = min(first + 2048, nbytes // BLOCK_SIZE)
            file.write(b"".join(lba.to_bytes(8, "little") + rest[lba % 64] for lba in range(first, last)))
    return path


@contextmanager
def running(configuration: Configuration, folder: Path, vms: int = 2) -> Iterator[Machine]:
    """A fresh machine. Every VM has a null disk; vm1 also the image ``image`` of ``folder``, one to write on, and one
    for file systems and databases (:mod:`bench.operations` says which is which)."""
    document: dict[str, Any] = {
        "name": f"bench-{os.getpid()}", "arch": configuration.arch,
        "vm": [{"name": f"vm{number}", "disk": [{"null": "1TiB"}]} for number in range(1, vms + 1)],
    }
    document["vm"][0]["disk"] += [
        {"file": str(folder / "image")},
        *({"file": str(folder / name), "size": IMAGE_BYTES} for name in ("scratch", "macro")),
    ]
    if configuration.transport != "call":
        document["transport"] = configuration.transport
    if configuration.poll is not None:
        document["poll"] = configuration.poll
    with Machine(document) as machine:
        yield machine


def sample_set(
    configuration: Configuration, jobs: Sequence[Job], folder: Path, chance: random.Random,
    done: Callable[[Job], Any] = lambda job: None,
) -> dict[Job, Measured | str]:
    """Every job once, in random order; for one that could not be measured, why. ``done`` is called after each."""
    results: dict[Job, Measured | str] = {}
    with running(configuration, folder) as machine:
        pids = {row["pid"]: row["host"] for row in machine.ps(window=0)["partitions"] if row["pid"]}
        for job in chance.sample(list(jobs), len(jobs)):
            try:
                results[job] = measured(machine, job, pids)
            except Unmeasured as why:
                results[job] = str(why)
            done(job)
    return results


def measured(machine: Machine, job: Job, pids: Mapping[int, str]) -> Measured:
    """``job`` in vm1 of a running machine; ``pids``: its processes. Raises :class:`Unmeasured`."""
    samples = Samples.create(int(min(job.rate or _MOST_PER_S, _MOST_PER_S) * job.seconds) + 1000)
    try:
        run(machine, job, samples, job.seconds * _WARM_UP)
        counters = _counters(machine)
        before = _costs(pids)
        told = run(machine, job, samples, job.seconds)
        after = _costs(pids)
        counted = {name: value - counters[name] for name, value in _counters(machine).items()}
        if samples.full:
            raise Unmeasured(f"{job.name}: more requests than there is room for")
        latencies = samples.values()
    finally:
        samples.close()
    count = len(latencies)
    if not count:
        raise Unmeasured(f"{job.name}: no request was served in {job.seconds:g} s")
    cpu = {name: (after[name][0] - used) / count / 1000 for name, (used, _) in before.items() if name in after}
    switches = sum(after[name][1] - was for name, (_, was) in before.items() if name in after)
    return Measured(
        latencies, told["seconds"], sum(cpu.values()), cpu, switches / count,
        {name: value / count for name, value in counted.items()},
    )  # fmt: skip


def run(machine: Machine, job: Job, samples: Samples, seconds: float, vm: str = "vm1") -> dict[str, Any]:
    """Run ``job`` for ``seconds``; the latencies are in ``samples`` afterwards."""
    interval = f" -i {1 / job.rate:.9f}" if job.rate else ""
    common = f"-d {job.depth} -T {seconds:.3f}{interval} -S {shlex.quote(samples.path)}"
    command = OPERATIONS[job.operation].command(job, common)
    result = machine.exec(vm, command, timeout=seconds + _PATIENCE_S)
    if result.status:
        raise Unmeasured(f"{job.name}: {result.stderr.decode(errors='replace').strip().splitlines()[-1:] or ['?']}")
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def _counters(machine: Machine) -> dict[str, float]:
    rows = machine.ps(window=0)["partitions"]
    return {
        name: float(sum((row["counters"] or {}).get(name) or 0 for row in rows)) for name in _COUNTERS
    }  # fmt: skip


def _costs(pids: Mapping[int, str]) -> dict[str, tuple[int, int]]:
    """ns on a processor and context switches, by process. One that has ended is left out."""
    costs: dict[str, tuple[int, int]] = {}
    for pid, name in pids.items():
        used = switches = 0
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                used += int((task / "schedstat").read_text().split()[0])
                lines = (task / "status").read_text().splitlines()
                switches += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
        except (OSError, ValueError):
            continue
        costs[name] = used, switches
    return costs
