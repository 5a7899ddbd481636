"""Two versions of the program against each other, interleaved in one run: ``vmbus-emu bench compare --ab A B``.

A version is a revision of the checkout or a directory with one. Of each, the product (partitions, drivers and
``vmbus_emu``) is put beside the *present* ``bench``: both are measured with the same instrument. Each sample set
is a process of its own that imports from there: ``python -m bench.ab`` with the order on its standard input.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import results
from bench.jobs import Job
from bench.machines import Configuration, Measured, make_image, sample_set
from bench.measurement import Measurement, Told, untold
from bench.pins import NONE, Places
from bench.runner import failures, loads_of, pinning, placed

#: Sample sets of each side: a difference must show in 17 of 20 to be told (the sign test of bench.statistics).
ROUNDS = 20
_PRODUCT = ("vmbus_emu", "partitions", "drivers")
_BENCH = Path(__file__).parent
#: What a sample set may take beyond its jobs' times; one that hangs is a fault of the version.
_PATIENCE_S = 120.0


class BadVersion(ValueError):
    """Why something is no version that can be measured, in one line."""


def tree(version: str, checkout: Path, into: Path) -> Path:
    """A folder below ``into`` with the product of ``version`` and the present bench. Raises :class:`BadVersion`."""
    into.mkdir(parents=True)
    if Path(version).is_dir():
        missing = [name for name in _PRODUCT if not (Path(version) / name).is_dir()]
        if missing:
            raise BadVersion(f"{version}: it holds no {', '.join(missing)}")
        for name in _PRODUCT:
            shutil.copytree(Path(version) / name, into / name, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        try:
            top = subprocess.run(
                ["git", "-C", str(checkout), "rev-parse", "--show-toplevel"], capture_output=True, check=True
            ).stdout.decode().strip()
            packed = subprocess.run(
                ["git", "-C", top, "archive", "--format=tar", version, "--", *_PRODUCT],
                capture_output=True, check=True,
            ).stdout  # fmt: skip
        except OSError as error:
            raise BadVersion(f"git cannot be run: {error}") from None
        except subprocess.CalledProcessError as error:
            lines = error.stderr.decode(errors="replace").strip().splitlines() or ["git failed"]
            raise BadVersion(f"{version!r} is no revision of {checkout}, and no directory: {lines[-1]}") from None
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(into, filter="data")
    shutil.copytree(_BENCH, into / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    return into


def one_set(
    folder: Path, configuration: Configuration, jobs: Sequence[Job], data: Path, seed: int, where: Places | None
) -> dict[Job, Measured | str]:
    """One sample set of the version in ``folder``, in a process of its own. Raises :class:`BadVersion`."""
    order = {
        "configuration": list(configuration), "jobs": [_fields(job) for job in jobs], "data": str(data), "seed": seed,
        "where": None if where is None else [list(where.guests), list(where.hosts)],
    }  # fmt: skip
    limit = _PATIENCE_S + 2 * sum(job.seconds for job in jobs)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "bench.ab"], input=json.dumps(order), capture_output=True, text=True, cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder)}, timeout=limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BadVersion(f"it does not end: {configuration.name} took more than {limit:.0f} s") from None
    if ended.returncode:
        raise BadVersion(f"it cannot be measured: {(ended.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    found = json.loads(ended.stdout)
    return {
        job: what if isinstance(what, str) else Measured(**{**what, "latencies_ns": array("q", what["latencies_ns"])})
        for job, what in zip(jobs, found, strict=True)
    }


def _fields(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in Job.__slots__}


def run(
    versions: Sequence[str], configurations: Sequence[Configuration], jobs: Sequence[Job], checkout: Path,
    rounds: int = ROUNDS, seed: int | None = None, pin: str = NONE, told: Told = untold, command: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Measure two versions; a run document of each (:mod:`bench.results`), whose sample sets belong together, round by
    round. Raises :class:`BadVersion`."""
    where, unplaced = placed(pin)
    measurement = Measurement(seed, command, pinning(pin, where))
    with tempfile.TemporaryDirectory(prefix="vmbus-emu-ab-") as folder:
        work = Path(folder)
        trees = [tree(version, checkout, work / f"side{side}") for side, version in enumerate(versions)]
        make_image(work / "image")

        def measured(turn: tuple[Configuration, int]) -> dict[Job, Measured | str]:
            one, side = turn
            return one_set(trees[side], one, jobs, work, measurement.chance.randrange(1 << 32), where)

        turns = [(one, side) for one in configurations for side in range(len(versions))]
        found = measurement.rounds(
            turns, rounds, measured, lambda turn: f"{turn[0].name}: {versions[turn[1]]}", told)
    documents = []
    for side, version in enumerate(versions):
        sets = {(one, job): [a_set[job] for a_set in found[one, side]] for one in configurations for job in jobs}
        rows = [results.result(job, one, sets[one, job]) for job in jobs for one in configurations]
        medians = {
            f"{row['job']} on {row['arch']} of {version}": results.measured(row["sets"]["p50_us"])
            for row in rows if "sets" in row
        }  # fmt: skip
        made = measurement.document(medians, loads_of(sets), [*unplaced, *failures(rows, ())], rows)
        made["environment"]["version"] = version
        documents.append(made)
    return documents


def main() -> None:
    """A sample set, as the order on standard input says, to standard output."""
    order = json.load(sys.stdin)
    jobs = [Job(**job) for job in order["jobs"]]
    where = None if order["where"] is None else Places(*(tuple(some) for some in order["where"]))
    found = sample_set(
        Configuration(*order["configuration"]), jobs, Path(order["data"]), random.Random(order["seed"]), where=where
    )
    json.dump([
        what if isinstance(what := found[job], str)
        else {name: getattr(what, name) for name in Measured.__slots__} | {"latencies_ns": what.latencies_ns.tolist()}
        for job in jobs
    ], sys.stdout)  # fmt: skip


if __name__ == "__main__":
    main()
