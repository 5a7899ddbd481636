"""A guest that shuts down: commands end, what they wrote is flushed, and a disk that cannot be is named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from drivers.disk import FileDisk, NullDisk
from drivers.workers import IoWorkers
from partitions.child.guest import Guest
from partitions.child.power_off import power_off
from vmbus_emu.device import BlockInfo, BlockRequest, Op, Status
from vmbus_emu.loop import Loop
from vmbus_emu.task import Task

CONFIG = {"name": "vm1", "address": "10.0.0.1", "prefix": 16, "memory_bytes": 1 << 24, "hosts": {}}


class SlowDisk(NullDisk):
    """Completes nothing before the test says so. ``ends``: how flushes end."""

    def __init__(self, ends: Status = Status.OK) -> None:
        super().__init__(BlockInfo(2048))
        self.waiting: list[BlockRequest] = []
        self.order: list[Op] = []
        self.ends = ends

    def submit(self, request: BlockRequest) -> None:
        self.order.append(Op(request.op))
        if request.op is Op.FLUSH:
            request.finish(self.ends)
        else:
            self.waiting.append(request)

    def stats(self) -> Any:
        class Stats:
            outstanding = len(self.waiting)

        return Stats()


class Bench:
    def __init__(self, disks: dict[str, Any]) -> None:
        self.loop = Loop()
        self.said: list[dict[str, Any]] = []
        self.guest = Guest(self.loop, CONFIG, disks, {}, self.said.append, lambda line: None)

    def start(self, number: int, *argv: str) -> None:
        self.guest.console.handle({"t": "exec", "session": number, "argv": list(argv)})

    def status(self, number: int) -> int | None:
        exits = (m["status"] for m in self.said if m["t"] == "exit" and m["session"] == number)
        return next(exits, None)

    def power_off(self, patience_s: float = 0.0) -> Task[list[str]]:
        return Task(self.loop, power_off(self.guest, patience_s))

    def result(self, task: Task[list[str]]) -> list[str]:
        assert self.loop.run_until(lambda: task.done, 5.0)
        return task.result()


@pytest.fixture
def slow() -> SlowDisk:
    return SlowDisk()


@pytest.fixture
def bench(slow: SlowDisk) -> Iterator[Bench]:
    made = Bench({"disk0": slow})
    yield made
    made.loop.close()


def test_a_command_that_ends_in_time_ends_well_and_one_that_does_not_is_cancelled(bench: Bench) -> None:
    bench.start(1, "cat")
    bench.start(2, "sleep", "1000")
    task = bench.power_off(0.05)
    bench.loop.step(0.0)
    bench.guest.console.handle({"t": "stdin", "session": 1, "data": b"last", "end": True})
    assert bench.result(task) == []
    assert (bench.status(1), bench.status(2)) == (0, 130)


def test_it_waits_for_nothing_when_no_command_runs(bench: Bench) -> None:
    assert bench.result(bench.power_off(1000.0)) == []


def test_no_command_begins_any_more(bench: Bench) -> None:
    bench.start(1, "sleep", "1000")
    task = bench.power_off(1000.0)
    bench.loop.step(0.0)
    bench.start(2, "echo", "hello")
    assert bench.loop.run_until(lambda: bench.status(2) is not None, 5.0)
    (told,) = (message for message in bench.said if message["t"] == "out")
    assert (bench.status(2), told["stream"], told["data"]) == (
        1, 2, b"vm1 is shutting down and takes no commands\n")
    assert not task.done
    bench.guest.console.handle({"t": "cancel", "session": 1})
    assert bench.result(task) == []


def test_what_a_cancelled_command_had_under_way_completes_before_the_flush(bench: Bench, slow: SlowDisk) -> None:
    bench.start(1, "write", "disk0", "0", "x" * 512)
    assert bench.loop.run_until(lambda: bool(slow.waiting), 5.0)
    task = bench.power_off(0.0)
    assert not bench.loop.run_until(lambda: Op.FLUSH in slow.order, 0.02)
    slow.waiting.pop().finish(Status.OK)
    assert bench.result(task) == []
    assert slow.order == [Op.WRITE, Op.FLUSH]


def test_every_disk_is_flushed_and_one_that_is_gone_is_named() -> None:
    disks = {"disk0": SlowDisk(Status.GONE), "disk1": SlowDisk(), "disk2": SlowDisk(Status.IO_ERROR)}
    bench = Bench(disks)
    assert bench.result(bench.power_off()) == ["disk0: flush: the disk is gone", "disk2: flush: I/O error"]
    assert [disk.order for disk in disks.values()] == [[Op.FLUSH]] * 3
    assert "not flushed: disk0: flush: the disk is gone, disk2" in bench.guest.dmesg[-1]
    bench.loop.close()


def test_a_real_disk_is_really_flushed(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    (tmp_path / "image").write_bytes(bytes(4096))
    fd = os.open(tmp_path / "image", os.O_RDWR)
    bench = Bench({})
    bench.guest.disks = {"disk0": FileDisk(fd, BlockInfo(8), IoWorkers(bench.loop))}
    assert bench.result(bench.power_off()) == []
    assert synced == [fd]
    os.close(fd)
    bench.loop.close()
