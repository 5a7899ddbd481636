"""Single requests taken apart, on machines started for that: what ``--trace`` does after the measured run.

Each configuration is started in turn traced and untraced, and does the same jobs; the difference of the medians is what
the tracing costs. Machines that are measured are never traced.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from bench import breakdown, pins
from bench.breakdown import Request
from bench.jobs import Job
from bench.machines import Configuration, Unmeasured, make_image, running
from bench.measurement import Told, untold
from bench.operations import OPERATIONS
from bench.pins import Places
from vmbus_emu import tracing
from vmbus_emu.client import Machine, MachineError
from vmbus_emu.placement import PLACEMENTS
from vmbus_emu.witness.samples import Samples
from vmbus_emu.witness.traces import TraceFile

#: What can be taken apart: requests to a disk.
OPERATIONS_TRACED = ("null", "read", "write", "commit")
#: Pairs of machines of each configuration.
_ROUNDS = 2
#: Of each job: requests and seconds at most, and before that to warm up.
_REQUESTS, _SECONDS = 3000, 1.0
_WARM_UP_REQUESTS, _WARM_UP_SECONDS = 500, 0.2
#: Records of one request in one process, at most; a write with its flush is two requests.
_RECORDS = 2 * 4
_PATIENCE_S = 30.0
_VM = "vm1"


class Traced(NamedTuple):
    """``waterfalls``: for the run's document (docs/benchmarks.md). ``examples``: requests of each. ``untraced``: what
    was left out, and why, a line each."""

    waterfalls: list[dict[str, Any]]
    examples: list[tuple[str, list[Request]]]
    untraced: list[str]


def untraceable(job: Job) -> str:
    """Why ``job`` cannot be taken apart; empty: it can."""
    if job.operation not in OPERATIONS_TRACED:
        return f"only requests to a disk are, and {job.operation} is none"
    if job.depth != 1 or job.rate:
        return "only jobs of depth 1 without a rate are"
    return ""


def trace(
    configurations: Sequence[Configuration], jobs: Sequence[Job], where: Places | None = None,
    told: Told = untold, rounds: int = _ROUNDS,
) -> Traced:
    """Take ``jobs`` apart on every configuration."""
    chosen = [job for job in jobs if not untraceable(job)]
    untraced = [f"{job.name} is not taken apart: {untraceable(job)}" for job in jobs if untraceable(job)]
    waterfalls: list[dict[str, Any]] = []
    examples: list[tuple[str, list[Request]]] = []
    total, done = 2 * rounds * len(configurations), 0
    if not chosen:
        return Traced([], [], untraced)
    with tempfile.TemporaryDirectory(prefix="vmbus-emu-bench-") as folder:
        make_image(Path(folder) / "image")
        for configuration in configurations:
            found: dict[Job, list[list[Request]]] = {job: [] for job in chosen}
            latencies: dict[tuple[Job, bool], array[int]] = {
                (job, traced): array("q") for job in chosen for traced in (True, False)
            }
            try:
                for traced in (True, False) * rounds:
                    for job, (seen, taken) in _machine(configuration, chosen, Path(folder), where, traced).items():
                        latencies[job, traced] += taken
                        found[job] += [seen] if traced else []
                    done += 1
                    told(total, done, f"{configuration.name}: {'traced' if traced else 'untraced'}")
            except (Unmeasured, MachineError) as why:  # the measured run is worth more than this
                untraced.append(f"nothing is taken apart on {configuration.name}: {why}")
                continue
            for job in chosen:
                pooled = breakdown.typical([request for seen in found[job] for request in seen])
                if not pooled:
                    untraced.append(f"{job.name} is not taken apart on {configuration.name}: no request was complete")
                    continue
                p50 = {traced: statistics.median(latencies[job, traced]) / 1000 for traced in (True, False)}
                waterfalls.append(waterfall(job, configuration, pooled, p50[True], p50[False]))
                examples.append((f"{job.name}, {configuration.name}", found[job][0]))
    return Traced(waterfalls, examples, untraced)


def waterfall(
    job: Job, of: Configuration, found: Sequence[Request], traced_us: float, untraced_us: float
) -> dict[str, Any]:
    """One row of the run's ``waterfalls``, of the typical requests ``found``."""
    segments = breakdown.means(found)
    return {
        "job": job.name, "arch": of.arch, "transport": of.transport, "poll": of.poll, "size": job.size,
        "requests": len(found), "total_us": sum(segment["us"] for segment in segments),
        "untraced_p50_us": untraced_us, "traced_p50_us": traced_us, "segments": segments,
    }  # fmt: skip


def server(arch: str) -> str:
    """The process that carries a machine's disk drivers."""
    place = PLACEMENTS[arch]["storvsp"]
    return "storvsp" if place == "*" else place


def _machine(
    configuration: Configuration, jobs: Sequence[Job], folder: Path, where: Places | None, traced: bool
) -> dict[Job, tuple[list[Request], array[int]]]:
    """Every job once on a fresh machine: its requests in detail, if they are traced, and their latencies, ns."""
    results = {}
    with ExitStack() as stack:
        files: dict[str, TraceFile] = {}
        if traced:
            capacity = len(jobs) * _RECORDS * (_REQUESTS + _WARM_UP_REQUESTS) + 1000
            calls = configuration.transport == "call"
            for name in {server(configuration.arch)} if calls else {server(configuration.arch), _VM}:
                files[name] = TraceFile.create(capacity)
                stack.callback(files[name].close)
        environment = tracing.environment(files) if traced else None
        machine = stack.enter_context(running(configuration, folder, environment=environment))
        if where is not None:
            pins.pin(machine.ps(window=0)["partitions"], where)
        for job in jobs:
            _load(machine, job, _WARM_UP_REQUESTS, _WARM_UP_SECONDS)
            begin = time.monotonic_ns()
            latencies = _load(machine, job, _REQUESTS, _SECONDS)
            results[job] = (_requests(configuration, job, files, begin) if traced else [], latencies)
    return results


def _load(machine: Machine, job: Job, requests: int, seconds: float) -> array[int]:
    """Run ``job``; the latencies as the load saw them, ns."""
    samples = Samples.create(requests)
    try:
        line = OPERATIONS[job.operation].command(job, f"-d 1 -n {requests} -T {seconds} -S {samples.path}")
        result = machine.exec(_VM, line, timeout=seconds + _PATIENCE_S)
        if result.status:
            raise Unmeasured(f"{job.name}: {result.stderr.decode(errors='replace').strip()}")
        return samples.values()
    finally:
        samples.close()


def _requests(
    configuration: Configuration, job: Job, files: Mapping[str, TraceFile], begin: int
) -> list[Request]:
    end = time.monotonic_ns()
    records = {name: file.records(begin, end) for name, file in files.items()}
    if any(file.full for file in files.values()):
        raise Unmeasured(f"{job.name}: more requests than there is room for")
    host = server(configuration.arch)
    if configuration.transport == "call":  # the monolith's one process is named after the hypervisor in it
        found = breakdown.requests({"monolith": records[host]}, "call", "monolith", "monolith")
    else:
        found = breakdown.requests(records, configuration.transport, _VM, host)
    return breakdown.followed_by_flush(found) if job.operation == "commit" else found
