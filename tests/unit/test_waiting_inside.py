"""While SQLite waits for its disk the guest goes on, and whatever ends the wait ends the command."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from partitions.child.blocking_disk import BlockingDisk, DiskFailure
from partitions.child.power_off import power_off
from tests.waiting_guests import DEADLINE, Bench, Disk
from vmbus_emu.device import BlockRequest, Status
from vmbus_emu.loop import Loop
from vmbus_emu.task import Cancelled, Task


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_while_sqlite_waits_other_commands_run(bench: Bench) -> None:
    session = bench.start("sqlitebench", "-T", "0.05", "disk0")
    disk = bench.stop_disk()
    assert bench.run("echo", "hello") == (0, "hello\n")
    assert bench.run("sha256", "disk1")[0] == 0
    assert not bench.ended(session)
    disk.stopped = False
    bench.do(disk.serve)
    assert bench.end(session)[0] == 0


def test_a_cancelled_sqlitebench_ends_at_once_and_its_database_is_closed(bench: Bench) -> None:
    session = bench.start("sqlitebench", "-T", "60", "disk0")
    disk = bench.stop_disk()
    for _ in range(2):
        bench.cancel(session)
    assert bench.end(session)[0] == 130
    disk.stopped = False
    bench.do(disk.serve)
    assert bench.run("sqlitebench", "-T", "0.02", "disk0")[0] == 0


def test_one_that_is_cancelled_at_any_time_ends(bench: Bench) -> None:
    disk = bench.disks["disk0"]
    for writes in range(20, 60):
        session = bench.start("sqlitebench", "-T", "60", "disk0")
        bench.until(partial(disk.has_written, disk.writes + writes))
        bench.cancel(session)
        assert bench.end(session)[0] == 130


def test_two_databases_at_once(bench: Bench) -> None:
    sessions = [bench.start("sqlitebench", "-T", "0.2", disk) for disk in bench.disks]
    ends = [bench.end(session) for session in sessions]
    assert [status for status, _ in ends] == [0, 0]
    assert all(json.loads(told)["requests"] > 5 for _, told in ends)


def test_two_databases_whose_disks_stop_are_both_cancelled(bench: Bench) -> None:
    sessions = [bench.start("sqlitebench", "-T", "60", disk) for disk in bench.disks]
    bench.until(lambda: all(disk.writes > 10 for disk in bench.disks.values()))
    for disk in bench.disks.values():
        disk.stopped = True
    bench.until(lambda: any(disk.pending for disk in bench.disks.values()))
    for session in sessions:
        bench.cancel(session)
    assert [bench.end(session)[0] for session in sessions] == [130, 130]


def test_one_disk_has_one_database_at_a_time(bench: Bench) -> None:
    first = bench.start("sqlitebench", "-T", "0.2", "disk0")
    bench.until(lambda: bench.disks["disk0"].writes > 10)
    status, told = bench.run("sqlitebench", "-T", "0.2", "disk0")
    assert status == 1
    assert "in use" in told
    assert bench.end(first)[0] == 0


def test_a_power_off_ends_it(bench: Bench) -> None:
    session = bench.start("sqlitebench", "-T", "60", "disk0")
    bench.until(lambda: bench.disks["disk0"].writes > 10)
    tasks: list[Task[list[str]]] = []
    bench.do(lambda: tasks.append(Task(bench.loop, power_off(bench.guest, 0.01))))
    bench.until(lambda: bool(tasks) and tasks[0].done)
    assert tasks[0].result() == []
    assert bench.end(session)[0] == 130


def test_a_bug_in_what_runs_meanwhile_ends_the_guest(bench: Bench) -> None:
    class Bug(Exception):
        pass

    def fail() -> None:
        raise Bug

    bench.start("sqlitebench", "-T", "60", "disk0")
    bench.stop_disk()
    bench.do(fail)
    bench.thread.join(DEADLINE)
    assert isinstance(bench.died_of, Bug)


def test_a_disk_in_another_thread_wakes_it(loop: Loop) -> None:
    """As in the monolith, where a worker's completion comes from its own thread."""

    def submit(request: BlockRequest) -> None:
        threading.Thread(target=loop.call_soon_threadsafe, args=(request.finish, Status.OK)).start()

    device: Any = SimpleNamespace(submit=submit, allocate=lambda nbytes: memoryview(bytearray(nbytes)), info=Disk.info)
    disk = BlockingDisk(loop, device, lambda: False)
    done: list[int] = []

    def use() -> None:
        for number in range(50):
            disk.flush()
            done.append(number)

    loop.call_soon(use)
    assert loop.run_until(lambda: len(done) == 50, DEADLINE)


def test_after_a_failure_nothing_more_is_asked_of_the_disk(loop: Loop) -> None:
    asked: list[BlockRequest] = []

    def submit(request: BlockRequest) -> None:
        asked.append(request)
        request.finish(Status.GONE)

    device: Any = SimpleNamespace(submit=submit, allocate=lambda nbytes: memoryview(bytearray(nbytes)), info=Disk.info)
    disk = BlockingDisk(loop, device, lambda: False)
    for call in (disk.flush, lambda: disk.read(0, 4096), lambda: disk.write([(0, bytes(512))])):
        with pytest.raises(DiskFailure, match="flush: GONE"):
            call()  # type: ignore[operator]
    assert len(asked) == 1


def test_a_stopped_loop_ends_the_wait(loop: Loop) -> None:
    device: Any = SimpleNamespace(
        submit=lambda request: loop.call_soon(loop.stop), allocate=lambda nbytes: memoryview(bytearray(nbytes)),
        info=Disk.info,
    )  # fmt: skip
    disk = BlockingDisk(loop, device, lambda: False)

    def use() -> None:
        with pytest.raises(Cancelled):
            disk.flush()
        ended.append(True)

    ended: list[bool] = []
    loop.call_soon(use)
    loop.run()
    assert ended == [True]
