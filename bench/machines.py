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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from bench import pins
from bench.costs import Replaced, processes, spent
from bench.jobs import Job
from bench.operations import OPERATIONS
from bench.pins import Places
from vmbus_emu.client import Machine, MachineError
from vmbus_emu.device import BLOCK_SIZE
from vmbus_emu.witness.samples import Samples

#: Bytes of the image that is read; it stays in the page cache.
IMAGE_BYTES = 64 << 20
#: Before a job is measured it runs for this share of its time.
_WARM_UP = 0.2
#: Room for so many requests per second.
_MOST_PER_S = 1_500_000
#: And so many in all: 256 MiB.
_MOST_SAMPLES = 1 << 25
_WRITES = ("write", "commit")
SYNTHETIC = "synthetic"
#: How the emulated IDE disks move their data, in the words of a configuration's name.
MODES: Mapping[str, str] = {"dma": "DMA", "string": "string I/O", "words": "words"}
#: See :func:`slowness`.
WORDS_SLOWNESS = 16.0
#: What a guest may take beyond the job's time.
_PATIENCE_S = 60.0


class Configuration(NamedTuple):
    """Where the components are and how they speak: ``call`` in the monolith; only rings have ``poll``. ``devices``:
    ``synthetic``, or the mode of the IDE disks of VMs without integration services (``hdparm``); these have no
    channels, so their ``transport`` is nobody's."""

    arch: str
    transport: str
    poll: str | None = None
    devices: str = SYNTHETIC

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Configuration:
        """That of a stored row. Rows of earlier versions have no ``devices``."""
        return cls(row["arch"], row["transport"], row["poll"], row.get("devices") or SYNTHETIC)

    @property
    def fields(self) -> dict[str, str | None]:
        """As a row stores it."""
        return self._asdict()

    @property
    def emulated(self) -> bool:
        return self.devices != SYNTHETIC

    @property
    def name(self) -> str:
        if self.emulated:
            return f"{self.arch}, IDE by {MODES.get(self.devices, self.devices)}"
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
    #: What of its time the load did not ask though it could have, and how late it was, in intervals, at the 99th
    #: percentile (open loops only).
    stalled: float | None = None
    late: float | None = None
    misplaced: Sequence[str] = ()       #: who was not pinned as was wanted
    memory_bytes: float | None = None   #: of all processes of the machine, as much as would be free without them
    received: Mapping[str, float] = field(default_factory=dict)     #: what the other end says of a bulk transfer


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
def running(
    configuration: Configuration, folder: Path, vms: int = 2, environment: Mapping[str, str] | None = None
) -> Iterator[Machine]:
    """A fresh machine. Every VM has a null disk; vm1 also the image ``image`` of ``folder``, one to write on, and one
    for file systems and databases (:mod:`bench.operations` says which is which). Raises :class:`MachineError`."""
    services = not configuration.emulated
    document: dict[str, Any] = {
        "name": f"bench-{os.getpid()}", "arch": configuration.arch,
        "vm": [
            {"name": f"vm{number}", "disk": [{"null": "1TiB"}], "integration_services": services}
            for number in range(1, vms + 1)
        ],
    }
    document["vm"][0]["disk"] += [
        {"file": str(folder / "image")},
        *({"file": str(folder / name), "size": IMAGE_BYTES} for name in ("scratch", "macro")),
    ]
    if configuration.transport != "call":
        document["transport"] = configuration.transport
    if configuration.poll is not None:
        document["poll"] = configuration.poll
    # A version of some time ago, which bench.ab measures, knows no environment.
    with Machine(document, environment) if environment else Machine(document) as machine:
        if configuration.emulated:
            for disk in range(len(document["vm"][0]["disk"])):
                chosen = machine.exec("vm1", f"hdparm disk{disk} {configuration.devices}", timeout=_PATIENCE_S)
                if chosen.status:
                    raise MachineError(f"vm1: {chosen.stderr.decode(errors='replace').strip()}")
        yield machine


def sample_set(
    configuration: Configuration, jobs: Sequence[Job], folder: Path, chance: random.Random,
    done: Callable[[Job], Any] = lambda job: None, where: Places | None = None,
) -> dict[Job, Measured | str]:
    """Every job once, in random order; for one that could not be measured, why. ``done`` is called after each."""
    results: dict[Job, Measured | str] = {}
    try:
        with running(configuration, folder) as machine:
            placed: Mapping[int, str] = {}
            for job in chance.sample(list(jobs), len(jobs)):
                rows = machine.ps(window=0)["partitions"]
                if where is not None and processes(rows) != placed:  # at first, and when somebody was replaced
                    pins.pin(rows, where)
                    placed = processes(rows)
                longer = replace(job, seconds=job.seconds * slowness(configuration, job))
                results[job] = _tried(machine, longer, folder)
                if where is not None and isinstance(found := results[job], Measured):
                    found.misplaced = pins.misplaced(rows, where)
                done(job)
    except MachineError as error:  # it did not come up, or died: what it did before that counts
        for job in jobs:
            if job not in results:
                results[job] = f"the machine failed: {error}"
                done(job)
    return results


def slowness(configuration: Configuration, job: Job) -> float:
    """How many times longer than elsewhere a job is measured: where every word of its data is an intercept, a window of
    the usual length would end within its first request."""
    by_words = configuration.devices == "words" and configuration.arch != "monolithic"
    return WORDS_SLOWNESS if by_words and OPERATIONS[job.operation].on_disk else 1.0


def _tried(machine: Machine, job: Job, folder: Path) -> Measured | str:
    try:
        if lacking := OPERATIONS[job.operation].lacking():
            return lacking
        return measured(machine, job, folder)
    except (Unmeasured, Replaced) as why:
        return str(why)
    except (ValueError, KeyError, TypeError, OSError, ZeroDivisionError) as error:
        # A guest can say anything; that is its job's failure, not the run's.
        return f"{job.name}: what the guest told makes no sense: {error!r}"


def measured(machine: Machine, job: Job, folder: Path) -> Measured:
    """``job`` in vm1 of a running machine. Raises :class:`Unmeasured`, or what a nonsensical answer makes."""
    mark = random.SystemRandom().randrange(1, 1 << 32) if job.operation in _WRITES else 0
    room = min(int(min(job.rate or _MOST_PER_S, _MOST_PER_S) * job.seconds) + 1000, _MOST_SAMPLES)
    samples = Samples.create(room)
    try:
        run(machine, job, samples, job.seconds * _WARM_UP)
        # The command itself costs, too: it maps the samples, chooses places, formats what it needs.
        _, fixed = spent(machine, lambda: run(machine, job, samples, 0.0, mark))
        told, whole = spent(machine, lambda: run(machine, job, samples, job.seconds, mark))
        if samples.full:
            raise Unmeasured(f"{job.name}: more requests than there is room for: ask for fewer seconds")
        latencies = samples.values()
    finally:
        samples.close()
    count = len(latencies)
    if mark:
        look_for(folder / "scratch", job, told["written"], mark)
    if not count:
        raise Unmeasured(f"{job.name}: no request was served in {job.seconds:g} s")
    if told.get("lost") and "received" not in told:
        raise Unmeasured(f"{job.name}: {told['lost']} of {count + told['lost']} requests were lost")
    cost = whole.beyond(fixed)
    cpu = {name: ns / count / 1000 for name, ns in cost.ns.items()}
    return Measured(
        latencies, told["seconds"], sum(cpu.values()), cpu, cost.switches / count,
        {name: value / count for name, value in cost.counters.items()},
        None if told.get("stalled_s") is None else told["stalled_s"] / told["seconds"],
        None if told.get("late_p99_us") is None else told["late_p99_us"] * job.rate / 1e6,
        memory_bytes=whole.memory_bytes, received=told.get("received", {}),
    )  # fmt: skip


def run(
    machine: Machine, job: Job, samples: Samples, seconds: float, mark: int = 0, vm: str = "vm1"
) -> dict[str, Any]:
    """Run ``job`` for ``seconds``; the latencies are in ``samples`` afterwards. What it writes bears ``mark``."""
    interval = f" -i {1 / job.rate:.9f}" if job.rate else ""
    marked = f" -N {mark}" if mark else ""
    common = f"-d {job.depth} -T {seconds:.3f}{interval}{marked} -S {shlex.quote(samples.path)}"
    command = OPERATIONS[job.operation].command(job, common)
    result = machine.exec(vm, command, timeout=seconds + _PATIENCE_S)
    if result.status:
        lines = result.stderr.decode(errors="replace").strip().splitlines() or [f"status {result.status}"]
        raise Unmeasured(f"{job.name}: {lines[-1]}")
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def look_for(path: Path, job: Job, written: Sequence[int], mark: int) -> None:
    """Whether what was acknowledged, at blocks ``written``, is in the image, read from outside of the machine. Raises
    :class:`Unmeasured`."""
    last = job.size // BLOCK_SIZE - 1
    with path.open("rb") as image:
        for place in written:
            for block in (place, place + last):
                if os.pread(image.fileno(), 8, block * BLOCK_SIZE) != (block ^ mark).to_bytes(8, "little"):
                    raise Unmeasured(f"{job.name}: what was written to block {block} and acknowledged is not there")
