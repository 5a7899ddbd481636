"""A run: rounds of sample sets, all configurations and baselines in each, in random order.

What is compared is interleaved, so the host's moods are everybody's. Nothing is drawn while something is measured:
``told`` is called between the windows.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import environment, results
from bench.baselines import BASELINES
from bench.jobs import Job
from bench.machines import Configuration, Measured, make_image, sample_set

#: Sample sets of each configuration: fewer give no interval worth its name.
ROUNDS = 10
_BASELINE_S = 0.15
_BASELINE_LIMIT_S = 30.0

#: How many steps there are, how many are done, and what was done last.
Told = Callable[[int, int, str], Any]


def run(
    configurations: Sequence[Configuration], jobs: Sequence[Job], baselines: Sequence[str], rounds: int = ROUNDS,
    seed: int | None = None, told: Told = lambda total, done, what: None, command: Sequence[str] = (),
    pin: str = "none",
) -> dict[str, Any]:
    """Measure, and give what :mod:`bench.results` documents. ``command``: what reproduces it."""
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    chance = random.Random(seed)
    described = environment.describe()
    watch = environment.Watch()
    total = rounds * (len(configurations) * len(jobs) + len(baselines))
    done = 0
    sets: dict[tuple[Configuration, Job], list[Measured | str]] = {(c, j): [] for c in configurations for j in jobs}
    based: dict[str, list[array[int]]] = {name: [] for name in baselines}

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
                    latencies = measured_baseline(one)
                    if latencies is not None:
                        based[one].append(latencies)
                    step(one)
                    continue
                found = sample_set(
                    one, jobs, Path(folder), chance,
                    lambda job, one=one: step(f"{one.name}: {job.name}"),   # type: ignore[misc]
                )  # fmt: skip
                for job, what in found.items():
                    sets[one, job].append(what)
                    if isinstance(what, Measured):
                        watch.ours(what.cpu_us * len(what.latencies_ns) / 1e6)
    watched = watch.end()
    rows = [results.result(job, one, sets[one, job]) for job in jobs for one in configurations]
    bases = [results.baseline(name, based[name]) for name in baselines]
    medians = {
        f"{row['job']} on {Configuration(row['arch'], row['transport'], row['poll']).name}": row["sets"]["p50_us"]
        for row in rows if "sets" in row
    }  # fmt: skip
    reasons = environment.doubts(watched, medians, (), ())
    return {
        "schema": results.SCHEMA, "environment": described | {"watched": watched}, "stable": not reasons,
        "reasons": reasons, "seed": seed, "command": list(command),
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "results": rows, "baselines": bases, "ratios": results.ratios(rows, bases),
    }  # fmt: skip


def available(names: Sequence[str] = tuple(BASELINES)) -> list[str]:
    """The baselines that can be measured here: iceoryx2 only when it is installed."""
    from importlib.util import find_spec

    return [name for name in names if name != "iceoryx2" or find_spec("iceoryx2") is not None]


def measured_baseline(name: str, seconds: float = _BASELINE_S) -> array[int] | None:
    """Latencies in ns, from fresh processes; ``None`` if it does not work here."""
    command = [sys.executable, "-m", "bench.baselines", name, str(seconds)]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=_BASELINE_LIMIT_S, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return array("q", json.loads(ended.stdout)["latencies_ns"])
