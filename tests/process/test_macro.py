"""Databases and files in real guests: what they committed is in the image, whoever was killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from bench.jobs import MACRO
from bench.machines import Configuration, Measured, make_image, sample_set
from vmbus_emu.client import ExecResult, Machine, MachineError
from vmbus_emu.witness.samples import Samples

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

MIB = 1 << 20
PLACEMENTS = [("monolithic", None), ("microkernel", "zmq"), ("microkernel", "ring"), ("disaggregated", "ring")]


def up(lab: Lab, arch: str, transport: str | None) -> Machine:
    disk = {"file": str(lab.folder / "disk.img"), "size": 16 * MIB}
    more = {} if transport is None else {"transport": transport}
    return lab.up(arch, vm=[{"name": "vm1", "disk": [disk]}], **more)


class Committing:
    """``sqlitebench`` in vm1, on a thread and a connection of its own."""

    def __init__(self, lab: Lab, seconds: float) -> None:
        self.machine = lab.attach()
        self.result: ExecResult | MachineError | None = None
        self._seconds = seconds
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self.machine.exec("vm1", f"sqlitebench -T {self._seconds} disk0", timeout=30)
        except MachineError as error:
            self.result = error

    def end(self) -> ExecResult | MachineError | None:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.result


def commits_are_under_way(machine: Machine, wait: Wait, more: int = 100) -> None:
    """By the guest's own count of writes, which another command reads while SQLite waits."""
    until = writes(machine) + more
    wait(lambda: writes(machine) >= until, "transactions are committed")


def writes(machine: Machine) -> int:
    return int(machine.exec("vm1", "iostat").stdout.splitlines()[1].split()[2])


def extracted(lab: Lab) -> tuple[int, int, bool]:
    """Of the database in the image, read by another SQLite: commits counted, rows, and whether a journal was there."""
    target = lab.folder / "db.sqlite"
    status, _, errors = lab.cli("image", "extract", str(lab.folder / "disk.img"), str(target), "--force")
    assert status == 0, errors
    journal = Path(f"{target}-journal").exists()
    with closing(sqlite3.connect(target)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        ((commits,),) = connection.execute("SELECT commits FROM counter").fetchall()
        ((rows,),) = connection.execute("SELECT count(*) FROM event").fetchall()
    return commits, rows, journal


@pytest.mark.parametrize(("arch", "transport"), PLACEMENTS)
def test_the_loads_run_in_every_placement_and_the_commits_are_in_the_image(
    lab: Lab, arch: str, transport: str | None
) -> None:
    machine = up(lab, arch, transport)
    samples = Samples.create(1_000_000)
    for load in ("fileserver -d 4", "kvlog", "sqlitebench -d 1"):
        result = machine.exec("vm1", f"{load} -T 0.2 -S {samples.path} disk0")
        assert result.status == 0, result.stderr
        told = json.loads(result.stdout)
        assert len(samples) == told["requests"] > 0
        assert 0.2 <= told["seconds"] < 10
        assert min(samples.values()) > 0
    samples.close()
    status, _, errors = lab.cli("image", "extract", str(lab.folder / "disk.img"), str(lab.folder / "db"))
    assert status == 1
    assert "in use by a running machine" in errors
    machine.down()
    assert extracted(lab) == (told["requests"], told["requests"], False)


@pytest.mark.parametrize("transport", ["zmq", "ring"])
@pytest.mark.parametrize(("arch", "victim"), [("microkernel", "parent"), ("disaggregated", "storvsp")])
def test_a_vsp_that_is_killed_twice_costs_no_commit(
    lab: Lab, wait: Wait, arch: str, victim: str, transport: str
) -> None:
    machine = up(lab, arch, transport)
    committing = Committing(lab, 1.5)
    for _ in range(2):
        commits_are_under_way(machine, wait, 30)
        before = lab.rows(machine)[victim]["incarnation"]
        os.kill(lab.rows(machine)[victim]["pid"], signal.SIGKILL)
        wait(lambda before=before: lab.rows(machine)[victim]["incarnation"] > before, f"{victim} is back")
    result = committing.end()
    assert isinstance(result, ExecResult)
    assert result.status == 0, result.stderr
    commits = json.loads(result.stdout)["requests"]
    machine.down()
    assert extracted(lab) == (commits, commits, False)


@pytest.mark.parametrize(("arch", "victim"), [("microkernel", "vm1"), ("microkernel", "parent"), ("monolithic", "vm1")])
def test_what_dies_in_a_transaction_leaves_a_database_that_sqlite_recovers(
    lab: Lab, wait: Wait, arch: str, victim: str
) -> None:
    disk = {"file": str(lab.folder / "disk.img"), "size": 16 * MIB}
    machine = lab.up(arch, vm=[{"name": "vm1", "disk": [disk]}], policy=lab.NOTHING_FOLLOWS)
    committing = Committing(lab, 60)
    commits_are_under_way(machine, wait)
    lab.kill(machine, victim)
    machine.down(timeout=5)
    committing.end()
    commits, rows, _ = extracted(lab)
    assert commits == rows > 5


@pytest.mark.parametrize("arch", ["monolithic", "microkernel"])
def test_down_does_not_wait_for_a_database(lab: Lab, wait: Wait, arch: str) -> None:
    machine = up(lab, arch, None)
    committing = Committing(lab, 60)
    commits_are_under_way(machine, wait)
    machine.down(timeout=5)
    committing.end()
    commits, rows, _ = extracted(lab)
    assert commits == rows > 5


def test_the_jobs_of_bench_macro_are_measured_and_cost_something(lab: Lab) -> None:
    make_image(lab.folder / "image", MIB)
    jobs = [replace(job, seconds=0.1) for job in MACRO.values()]
    found = sample_set(Configuration("microkernel", "ring", "adaptive"), jobs, lab.folder, Random(1))
    for job, what in found.items():
        assert isinstance(what, Measured), what
        assert (len(what.latencies_ns) > 5, what.seconds >= 0.1, what.cpu_us > 1) == (True, True, True), job
        assert what.counters["packets"] > 1, job


def test_an_interrupted_load_ends_at_once_and_leaves_the_disk_to_the_next(lab: Lab, wait: Wait) -> None:
    machine = up(lab, "microkernel", "zmq")
    program = lab.program("exec", "--name", "m", "vm1", "--", "sqlitebench", "-T", "60", "disk0")
    commits_are_under_way(machine, wait)
    program.send_signal(signal.SIGINT)
    assert program.wait(10) == 130
    assert machine.exec("vm1", "sqlitebench -T 0.05 disk0").status == 0
