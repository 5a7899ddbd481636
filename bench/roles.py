"""What a busy role costs the VMs: their disk and network beside a DNS server in the parent partition that is flooded
with queries, with and without a limit of its processor time.

The arms are machines alike but for the role: without one, with one that is busy, with one that is as busy as its limit
allows. All take turns in each round. The role is placed among the hosts, as it belongs to the parent partition; where
its load is, :func:`bench.pins.bystander` says.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from bench import pins, results
from bench.busyrole import OUTSTANDING, ROLE, Busy, Flood, flooded
from bench.costs import Replaced
from bench.doubt import Loads
from bench.jobs import Job
from bench.machines import Configuration, Measured, Unmeasured, make_image, measured, running
from bench.measurement import Measurement, Told, untold
from bench.pins import Places
from bench.runner import loads_of, pinning, placed
from bench.statistics import Ratio, percentile
from vmbus_emu.client import Machine, MachineError

#: Arms: the first is what the others are held against.
NONE, BUSY, LIMITED = "none", "busy", "limited"
ARMS: Mapping[str, str] = {
    NONE: "no role", BUSY: "a busy DNS server in the parent partition",
    LIMITED: "the same, busy as well, with a limit of its CPU time",
}  # fmt: skip
JOBS = ("read-4k", "write-flush-4k", "ping")
#: Rounds of :func:`run`, cores of the limit, seconds of each job.
ROUNDS, CPU_LIMIT, SECONDS = 10, 0.2, 0.5
#: What is held against the arm without a role.
METRICS = ("p50_us", "p99_us", "ops_per_s")
_NO_LIMIT = "no limit"
#: What of a result a row has.
_FIGURES = ("ops_per_s", "p50_us", "p99_us", "cpu_us_per_op", "interval_p50_us", "repetitions", "failed")


class Arm(NamedTuple):
    of: Configuration
    arm: str

    @property
    def name(self) -> str:
        return f"{self.of.name}, {'no role' if self.arm == NONE else f'{ROLE} {self.arm}'}"


@dataclass(slots=True)
class Beside:
    """One job on one machine. Its processor time is without the role's. ``held_by``: what holds the role back, in the
    machine's words; ``processors``: who was pinned where."""

    io: Measured
    held_by: str | None = None
    busy: Busy | None = None
    processors: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What every machine of a run has in common."""

    jobs: Sequence[Job]
    folder: Path
    chance: Random
    where: Places | None
    cpu_limit: float = CPU_LIMIT
    outstanding: int = OUTSTANDING


def sample_set(plan: Plan, one: Arm) -> dict[Job, Beside | str]:
    """Every job once, in random order, on a fresh machine; for one that could not be measured, why."""
    found: dict[Job, Beside | str] = {}
    try:
        with ExitStack() as stack:
            machine = stack.enter_context(running(one.of, plan.folder))
            held_by, load = None, None
            if one.arm != NONE:
                role = machine.add_role(ROLE, plan.cpu_limit if one.arm == LIMITED else None)
                held_by = role["in_force"]["words"]
                load = stack.enter_context(flooded(machine, role, plan.outstanding))
            for job in plan.chance.sample(list(plan.jobs), len(plan.jobs)):
                found[job] = _tried(lambda job=job: _beside(plan, machine, job, load, held_by))  # type: ignore[misc]
    except (MachineError, Unmeasured) as error:
        for job in plan.jobs:
            found.setdefault(job, str(error))
    return found


def _tried(act: Callable[[], Beside]) -> Beside | str:
    try:
        return act()
    except (Unmeasured, Replaced) as why:
        return str(why)
    except (ValueError, KeyError, TypeError, OSError, ZeroDivisionError) as error:
        return f"what the guest told makes no sense: {error!r}"


def _beside(plan: Plan, machine: Machine, job: Job, load: Flood | None, held_by: str | None) -> Beside:
    rows = machine.ps(window=0)["partitions"]
    processors = None if plan.where is None else _pin(rows, plan.where, load)
    before = None if load is None else load.look()
    io = measured(machine, job, plan.folder)
    busy = None if load is None or before is None else load.since(before)
    if plan.where is not None and processors is not None:
        misplaced = pins.misplaced(rows, plan.where)
        if load is not None and os.sched_getaffinity(load.pid) != {processors["load"]}:
            misplaced.append(f"the load is not pinned to processor {processors['load']}")
        io.misplaced = misplaced
    others = {name: us for name, us in io.cpu_us_by_process.items() if name != ROLE}
    return Beside(replace(io, cpu_us=sum(others.values()), cpu_us_by_process=others), held_by, busy, processors)


def _pin(rows: pins.Rows, where: Places, load: Flood | None) -> dict[str, int]:
    pins.pin(rows, where)
    processors = pins.processor_of(rows, where)
    if load is not None:
        processors["load"] = pins.bystander(rows, where)
        try:
            os.sched_setaffinity(load.pid, {processors["load"]})
        except OSError as error:
            raise Unmeasured(f"the load cannot be pinned: {error.strerror}") from None
    return processors


# -- a run ------------------------------------------------------------------------------------------------


def run(
    configurations: Sequence[Configuration], jobs: Sequence[Job], rounds: int = ROUNDS, seed: int | None = None,
    told: Told = untold, command: Sequence[str] = (), pin: str = pins.NONE, cpu_limit: float = CPU_LIMIT,
    outstanding: int = OUTSTANDING,
) -> dict[str, Any]:
    """Measure every configuration in every arm, once in each round. A run, with ``roles``."""
    where, unplaced = placed(pin)
    measurement = Measurement(seed, command, pinning(pin, where))
    contenders = [Arm(of, arm) for of in configurations for arm in ARMS]
    with tempfile.TemporaryDirectory(prefix="vmbus-emu-bench-") as folder:
        make_image(Path(folder) / "image")
        plan = Plan(jobs, Path(folder), measurement.chance, where, cpu_limit, outstanding)
        sets = measurement.rounds(
            contenders, rounds, lambda one: sample_set(plan, one), lambda one: one.name, told)
    columns = {(one, job): [a_set[job] for a_set in found] for one, found in sets.items() for job in jobs}
    rows = [
        row(one, job, columns[one, job], columns[Arm(one.of, NONE), job], cpu_limit)
        for job in jobs for one in contenders
    ]  # fmt: skip
    names = [f"{job.name} on {one.name}" for job in jobs for one in contenders]
    medians = {name: results.measured(one["sets"]["p50_us"]) for name, one in zip(names, rows, strict=True)
               if one["sets"]}  # fmt: skip
    reasons = [f"{name} failed {len(one['failed'])} times: {one['failed'][0]}"
               for name, one in zip(names, rows, strict=True) if one["failed"]]  # fmt: skip
    if len(reasons) > 1:
        reasons = [f"{reasons[0]}; and {len(reasons) - 1} more rows failed"]
    return measurement.document(medians, _loads(columns), [*unplaced, *reasons], roles=rows)


def row(
    one: Arm, job: Job, sets: Sequence[Beside | str], without: Sequence[Beside | str], cpu_limit: float
) -> dict[str, Any]:
    """Over the sample sets; null for what was not measured. ``without``: those without a role, of the same rounds."""
    good = [found for found in sets if isinstance(found, Beside)]
    whole = results.result(job, one.of, [_io(found) for found in sets])
    columns = _columns(sets)
    busy = [found.busy for found in good if found.busy is not None]
    return {
        "job": job.name, **{name: whole[name] for name in ("arch", "transport", "poll", "size", "depth")},
        "arm": one.arm, "role": None if one.arm == NONE else ROLE,
        "cpu_limit": cpu_limit if one.arm == LIMITED else None,
        "held_by": next((found.held_by for found in good if found.held_by is not None), None),
        **{name: whole[name] for name in _FIGURES},
        **{name: statistics.median(getattr(found, name) for found in busy) if busy else None for name in Busy._fields},
        "processors": next((dict(found.processors) for found in good if found.processors is not None), None),
        "times": None if one.arm == NONE else times(columns, _columns(without)),
        "sets": columns if good else None,
    }  # fmt: skip


def _io(found: Beside | str) -> Measured | str:
    return found if isinstance(found, str) else found.io


def _columns(sets: Sequence[Beside | str]) -> dict[str, list[float | None]]:
    """Figures of each sample set, by round; ``None`` where there is none."""
    def column(figure: Callable[[Beside], float | None]) -> list[float | None]:
        return [figure(found) if isinstance(found, Beside) else None for found in sets]

    return {
        "p50_us": column(lambda found: statistics.median(found.io.latencies_ns) / 1000),
        "p99_us": column(lambda found: _us(percentile(sorted(found.io.latencies_ns), 0.99))),
        "ops_per_s": column(lambda found: len(found.io.latencies_ns) / found.io.seconds),
        "queries_per_s": column(lambda found: None if found.busy is None else found.busy.queries_per_s),
    }  # fmt: skip


def _us(ns: float | None) -> float | None:
    return None if ns is None else ns / 1000


def times(
    ours: Mapping[str, Sequence[float | None]], theirs: Mapping[str, Sequence[float | None]]
) -> dict[str, dict[str, Any] | None]:
    """By metric: ours over theirs, of the rounds that have both; ``None``: there is none."""
    found: dict[str, dict[str, Any] | None] = {}
    for metric in METRICS:
        pairs = results.both(ours[metric], theirs[metric])
        ratio = Ratio([one for one, _ in pairs], [other for _, other in pairs]) if pairs else None
        found[metric] = None if ratio is None else {
            "value": ratio.value, "interval": None if ratio.interval is None else list(ratio.interval),
            "significant": ratio.significant,
        }  # fmt: skip
    return found


def _loads(columns: Mapping[tuple[Arm, Job], Sequence[Beside | str]]) -> Loads:
    late: dict[str, float] = {}
    stalled: dict[str, float] = {}
    misplaced: list[str] = []
    for (one, job), found in columns.items():
        loads = loads_of({(one.of, job): [_io(a_set) for a_set in found]})
        late |= {f"{job.name} on {one.name}": value for value in loads.late.values()}
        stalled |= {f"{job.name} on {one.name}": value for value in loads.stalled.values()}
        misplaced += loads.misplaced
    return Loads(late, stalled, misplaced)
