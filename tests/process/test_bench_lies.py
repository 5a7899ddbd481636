"""The benchmark catches lies: a receiver that sleeps, data that does not arrive, a load that stands still, an arm that
is not pinned like the others. Each is told to the real thing: a copy of the product with a doctored driver, a VM that
is stopped, an affinity that somebody changes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench import ab, doubt, pins, runner
from bench.compare import compare, doubts
from bench.costs import Replaced
from bench.jobs import STANDARD, Job
from bench.machines import Configuration, Measured, make_image, measured, running
from bench.machines import run as run_job
from vmbus_emu.witness.samples import Samples

if TYPE_CHECKING:
    from conftest import Lab

MONOLITH, ZMQ = Configuration("monolithic", "call"), Configuration("microkernel", "zmq")
ROOT = Path(runner.__file__).parents[1]
READ = replace(STANDARD["read-4k"], seconds=0.05)
WRITE = replace(STANDARD["write-flush-4k"], seconds=0.05)

@pytest.fixture(autouse=True)
def _below_the_lab(lab: Lab) -> None:
    """Machines that the benchmark starts are looked after like the lab's own."""


@pytest.fixture
def doctored(tmp_path: Path) -> Callable[[str, str], Path]:
    """A copy of the product in which one line of drivers/disk.py is another."""

    def make(line: str, lie: str) -> Path:
        folder = tmp_path / "doctored"
        for name in ("vmbus_emu", "partitions", "drivers"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        driver = folder / "drivers" / "disk.py"
        text = driver.read_text()
        assert text.count(line) == 1, f"drivers/disk.py has {text.count(line)} lines {line!r} to doctor"
        driver.write_text(text.replace(line, lie))
        return folder

    return make


def measured_from(folder: Path, job: Job, tmp_path: Path) -> Measured | str:
    """One sample set of the product in ``folder``."""
    side = ab.tree(str(folder), ROOT, tmp_path / "side")
    make_image(tmp_path / "image")
    return ab.one_set(side, ZMQ, [job], tmp_path, 1, None)[job]


def test_a_receiver_that_sleeps_is_found_between_two_versions(doctored: Callable[[str, str], Path]) -> None:
    liar = doctored("            done = os.preadv(self._fd, pieces,", "            __import__('time').sleep(0.001)\n"
                    "            done = os.preadv(self._fd, pieces,")  # fmt: skip
    runs = ab.run((str(ROOT), str(liar)), [MONOLITH], [READ], ROOT, rounds=8, seed=1, pin="together")
    (row,) = [row for row in compare(*runs, paired=True) if row["metric"] == "p50_us"]
    assert row["significant"]
    assert row["after"] - row["before"] >= 1000
    assert runs[0]["environment"]["version"] == str(ROOT)


def test_data_that_a_driver_does_not_deliver_fails_the_job(
    doctored: Callable[[str, str], Path], tmp_path: Path
) -> None:
    liar = doctored("            done = os.preadv(self._fd, pieces, request.lba * BLOCK_SIZE, os.RWF_NOWAIT)",
                    "            done = request.blocks * BLOCK_SIZE")  # fmt: skip
    found = measured_from(liar, READ, tmp_path)
    assert isinstance(found, str)
    assert "brought something else than was written there" in found


def test_data_that_a_driver_acknowledges_and_forgets_fails_the_job(
    doctored: Callable[[str, str], Path], tmp_path: Path
) -> None:
    line = "            self._complete(request, self._write_now(request))"
    liar = doctored(line, "            self._complete(request, OK)")
    found = measured_from(liar, WRITE, tmp_path)
    assert isinstance(found, str)
    assert "acknowledged is not there" in found


def turns(pid: int) -> int:
    """How often a process was given a processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[2])


def test_a_load_that_stands_still_is_found(tmp_path: Path, wait: Callable[..., None]) -> None:
    """The VM is stopped for a third of its time; requests stand at fixed times, and it cannot keep them."""
    job = replace(STANDARD["null"], seconds=0.6, rate=500.0)
    make_image(tmp_path / "image")
    samples = Samples.create(10_000)
    with running(ZMQ, tmp_path) as machine:
        honest = run_job(machine, job, samples, job.seconds)
        vm1 = next(row["pid"] for row in machine.ps(window=0)["partitions"] if row["name"] == "vm1")
        stalled: dict[str, Any] = {}
        load = threading.Thread(target=lambda: stalled.update(run_job(machine, job, samples, job.seconds)))
        load.start()
        before = turns(vm1)
        wait(lambda: turns(vm1) > before + 50, "the load to be at work")
        os.kill(vm1, signal.SIGSTOP)
        threading.Event().wait(0.2)         # what is injected: the stall itself
        os.kill(vm1, signal.SIGCONT)
        load.join(30)
    samples.close()
    told = [one["late_p99_us"] * job.rate / 1e6 for one in (honest, stalled)]
    assert told[1] > 50 > told[0]       # 200 ms are 100 intervals; a busy host makes some, too
    loads = doubt.Loads({"null": told[1]}, {}, [])
    (reason,) = doubt.doubts({"steal": 0.0, "foreign_cpus": 0.0}, {}, loads)
    assert "late" in reason


def test_an_arm_that_is_not_pinned_like_the_other_makes_the_run_unstable(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("one processor: nobody can be pinned otherwise than the others")
    honest = pins.pin

    def pin(rows: Any, where: Any) -> None:
        if any(row["name"] == "parent" for row in rows):    # the microkernel's arm; the monolith's is let go
            honest(rows, where)

    jobs = [replace(STANDARD["null"], seconds=0.05)]
    pinned = runner.run([MONOLITH, ZMQ], jobs, (), rounds=1, seed=1, pin="together")
    monkeypatch.setattr(pins, "pin", pin)
    half = runner.run([MONOLITH, ZMQ], jobs, (), rounds=1, seed=1, pin="together")
    assert not any("pinned" in reason for reason in pinned["reasons"])
    (reason,) = [reason for reason in half["reasons"] if "pinned" in reason]
    assert reason.startswith("monolithic: ")
    assert not half["stable"]
    free = runner.run([ZMQ], jobs, (), rounds=1, seed=1, pin="none")
    assert doubts(pinned, free) == ["the runs differ in pinning: together before, none after"]


def test_a_process_that_is_replaced_meanwhile_fails_its_job_and_the_next_is_measured_whole(tmp_path: Path) -> None:
    ring = Configuration("microkernel", "ring", "adaptive")
    make_image(tmp_path / "image")
    job = replace(STANDARD["null"], seconds=0.4)
    with running(ring, tmp_path) as machine:
        parent = next(row["pid"] for row in machine.ps(window=0)["partitions"] if row["name"] == "parent")
        killer = threading.Timer(0.25, os.kill, (parent, signal.SIGKILL))   # in the middle of the job
        killer.start()
        with pytest.raises(Replaced, match="parent"):
            measured(machine, job, tmp_path)
        killer.join()
        found = measured(machine, job, tmp_path)
    assert found.counters["packets"] == pytest.approx(2.0, abs=0.01)
    assert found.cpu_us_by_process["parent"] > 0


def test_a_hog_beside_a_run_makes_it_unstable() -> None:
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        run = runner.run([MONOLITH], [replace(STANDARD["null"], seconds=0.3)], (), rounds=3, seed=1, pin="together")
    finally:
        hog.kill()
        hog.wait(10)
    assert [reason for reason in run["reasons"] if "other processes used" in reason]
    assert run["environment"]["watched"]["foreign_cpus"] > 0.25
    assert not run["stable"]
