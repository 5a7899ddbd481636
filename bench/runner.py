"""A run: rounds of sample sets, all configurations and baselines in each, in random order.

What is compared is interleaved, so the host's moods are everybody's. Nothing is drawn while something is measured:
``told`` is called between the windows.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import pins, results
from bench.baselines import BASELINES
from bench.doubt import Loads
from bench.jobs import Job
from bench.machines import Configuration, Measured, make_image, sample_set
from bench.measurement import Measurement, Told, untold
from bench.operations import OPERATIONS
from bench.pins import Places

#: Sample sets of each configuration: fewer give no interval worth its name.
ROUNDS = 10
_BASELINE_S = 0.15
_BASELINE_LIMIT_S = 30.0


def run(
    configurations: Sequence[Configuration], jobs: Sequence[Job], baselines: Sequence[str], rounds: int = ROUNDS,
    seed: int | None = None, told: Told = untold, command: Sequence[str] = (), pin: str = pins.NONE,
) -> dict[str, Any]:
    """Measure, and give what :mod:`bench.results` documents. ``command``: what reproduces it; ``pin``: one of
    :data:`bench.pins.WAYS`."""
    where, unplaced = placed(pin)
    measurement = Measurement(seed, command, pinning(pin, where))
    chance = measurement.chance
    total = rounds * (len(configurations) * len(jobs) + len(baselines))
    done = 0
    sets: dict[tuple[Configuration, Job], list[Measured | str]] = {(c, j): [] for c in configurations for j in jobs}
    based: dict[str, list[array[int] | str]] = {name: [] for name in baselines}

    def step(what: str) -> None:
        nonlocal done
        done += 1
        told(total, done, what)

    with tempfile.TemporaryDirectory(prefix="vmbus-emu-bench-") as folder:
        make_image(Path(folder) / "image")
        for _ in range(rounds):
            contenders: list[Configuration | str] = [*configurations, *baselines]
            for one in chance.sample(contenders, len(contenders)):
                if isinstance(one, str):
                    based[one].append(measured_baseline(one, where))
                    step(one)
                    continue
                found = sample_set(
                    one, jobs, Path(folder), chance,
                    lambda job, one=one: step(f"{one.name}: {job.name}"), where,    # type: ignore[misc]
                )  # fmt: skip
                for job, what in found.items():
                    sets[one, job].append(what)
    rows = [results.result(job, one, sets[one, job]) for job in jobs for one in configurations]
    bases = [results.baseline(name, based[name]) for name in baselines]
    medians = {
        f"{row['job']} on {Configuration.of(row).name}": row["sets"]["p50_us"]
        for row in rows if "sets" in row
    } | {f"baseline {row['baseline']}": row["sets"]["p50_us"] for row in bases if "sets" in row}  # fmt: skip
    # What is not installed was not to be measured.
    wanted = {job.name for job in jobs if not OPERATIONS[job.operation].lacking()}
    return measurement.document(
        {name: results.measured(column) for name, column in medians.items()}, loads_of(sets),
        [*unplaced, *failures([row for row in rows if row["job"] in wanted], bases)], rows, bases,
    )  # fmt: skip


def failures(rows: Sequence[results.Result], bases: Sequence[results.Result]) -> list[str]:
    """What was to be measured and was not, as one reason to doubt the rest; the first is told."""
    failed = [
        f"{row['job']} on {Configuration.of(row).name} failed "
        f"{len(row['failed'])} times: {row['failed'][0]}" for row in rows if row["failed"]
    ] + [f"baseline {row['baseline']} failed {len(row['failed'])} times: {row['failed'][0]}"
         for row in bases if row["failed"]]  # fmt: skip
    return failed if len(failed) < 2 else [f"{failed[0]}; and {len(failed) - 1} more rows failed"]


def placed(pin: str) -> tuple[Places | None, list[str]]:
    """Where processes go, and why not as was asked for."""
    try:
        return pins.places(pin, pins.processors()), []
    except pins.Unpinnable as why:
        return None, [str(why)]


def pinning(pin: str, where: Places | None) -> dict[str, Any]:
    """For the description of a run: what was asked for, and what came of it."""
    return {"asked": pin, **(where._asdict() if where is not None else {})}


def loads_of(sets: dict[tuple[Configuration, Job], list[Measured | str]]) -> Loads:
    """Stalls and lateness are told by their median over the sets: once is the host's mood, which the medians bear."""
    late, stalled, misplaced = {}, {}, []
    for (configuration, job), found in sets.items():
        good = [one for one in found if isinstance(one, Measured)]
        if not good:
            continue
        name = f"{job.name} on {configuration.name}"
        if standing := [one.stalled for one in good if one.stalled is not None]:
            stalled[name] = statistics.median(standing)
        if behind := [one.late for one in good if one.late is not None]:
            late[name] = statistics.median(behind)
        misplaced += [f"{configuration.name}: {who}" for one in good for who in one.misplaced]
    return Loads(late, stalled, misplaced)


def available(names: Sequence[str] = tuple(BASELINES)) -> list[str]:
    """The baselines that can be measured here: iceoryx2 only when it is installed."""
    from importlib.util import find_spec

    return [name for name in names if name != "iceoryx2" or find_spec("iceoryx2") is not None]


def measured_baseline(name: str, where: Places | None, seconds: float = _BASELINE_S) -> array[int] | str:
    """Latencies in ns, from fresh processes; or why there are none."""
    command = [sys.executable, "-m", "bench.baselines", name, str(seconds)]
    if where is not None:
        command += [str(where.guests[0]), str(where.hosts[0])]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=_BASELINE_LIMIT_S, check=True)
    except subprocess.CalledProcessError as error:
        lines: list[str] = error.stderr.decode(errors="replace").strip().splitlines()
        return (lines or [f"status {error.returncode}"])[-1]
    except (subprocess.SubprocessError, OSError) as error:
        return str(error)
    latencies: list[int] = json.loads(ended.stdout)["latencies_ns"]
    return array("q", latencies)
