"""iobench's closed loop: it keeps its depth, stops when told, and waits where others have taken the disk's depth."""

from __future__ import annotations

import time
from typing import Any

import pytest

from partitions.child.commands import iobench
from partitions.child.commands.iobench import Load, Plan
from vmbus_emu.device import BlockInfo, BlockRequest, BlockStats, Op, Status
from vmbus_emu.loop import Loop

DEADLINE = 10.0


class Disk:
    """Keeps requests until they are answered; beyond ``depth`` it is busy."""

    info = BlockInfo(1 << 20)

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.waiting: list[BlockRequest] = []
        self.refused = self.most = 0

    def submit(self, request: BlockRequest) -> None:
        if len(self.waiting) >= self.depth:
            self.refused += 1
            request.finish(Status.BUSY)
            return
        self.waiting.append(request)
        self.most = max(self.most, len(self.waiting))

    def allocate(self, nbytes: int) -> memoryview:
        return memoryview(bytearray(nbytes))

    def stats(self) -> BlockStats:
        return BlockStats()

    def answer(self, status: Status = Status.OK) -> None:
        self.waiting.pop(0).finish(status)


class Recorded(Load):
    latencies: list[int]


def load(disk: Disk, depth: int, number: int, **more: Any) -> tuple[Loop, Recorded]:
    loop, latencies = Loop(), []
    plan = Plan(Op.READ, 4096, [0, 8, 16], depth, number, touch=True)._replace(**more)
    made = Recorded(loop, disk, plan, latencies.append)
    made.latencies = latencies
    made.start()
    return loop, made


def test_it_keeps_its_depth_and_ends_with_the_last() -> None:
    disk = Disk(64)
    loop, made = load(disk, 4, 10)
    done = 0
    while disk.waiting:
        assert len(disk.waiting) == min(4, 10 - done)
        disk.answer()
        done += 1
    assert (done, disk.most, len(made.latencies), made.finished.done, made.failed) == (10, 4, 10, True, None)
    loop.close()


def test_what_is_stopped_submits_nothing_more() -> None:
    disk = Disk(64)
    loop, made = load(disk, 4, 1000)
    made.stop()
    for _ in range(4):
        disk.answer()
    assert loop.run_until(lambda: made.finished.done, DEADLINE)
    assert disk.waiting == []
    loop.close()


def test_a_busy_disk_is_asked_again_and_nothing_is_lost() -> None:
    disk = Disk(2)
    loop, made = load(disk, 5, 20)
    while not made.finished.done:
        assert loop.run_until(lambda: bool(disk.waiting) or made.finished.done, DEADLINE)
        while disk.waiting:
            disk.answer()
    assert (len(made.latencies), made.failed, disk.most) == (20, None, 2)
    assert disk.refused > 0
    loop.close()


def test_an_error_ends_it() -> None:
    disk = Disk(64)
    loop, made = load(disk, 3, 100)
    disk.answer(Status.IO_ERROR)
    disk.answer()
    disk.answer()
    assert (made.finished.done, made.failed, disk.waiting) == (True, Status.IO_ERROR, [])
    loop.close()


def test_a_commit_is_over_when_its_flush_is() -> None:
    disk = Disk(64)
    loop, made = load(disk, 2, 4, op=Op.WRITE, flush=True, touch=False)
    seen = []
    while disk.waiting:
        seen.append(Op(disk.waiting[0].op))
        before = made.completed
        disk.answer()
        assert (made.completed > before) == (seen[-1] is Op.FLUSH)
    assert (seen.count(Op.WRITE), seen.count(Op.FLUSH), len(made.latencies)) == (4, 4, 4)
    loop.close()


def test_what_is_read_is_held_against_what_should_be_there() -> None:
    disk = Disk(64)
    loop, made = load(disk, 1, 3, check=True)
    for lie in (False, True, False):
        request = disk.waiting[0]
        for block in range(request.blocks):
            at = block * 512
            request.buffer[at : at + 8] = (request.lba + block).to_bytes(8, "little")
        if lie:
            request.buffer[7 * 512] ^= 1
        disk.answer()
    assert (made.completed, made.wrong) == (3, 1)
    loop.close()


def test_an_open_loop_counts_from_the_time_that_was_planned() -> None:
    disk = Disk(64)
    loop, made = load(disk, 1, 5, interval_ns=1_000_000, duration_ns=5_000_000)
    begin = time.monotonic_ns()
    assert loop.run_until(lambda: time.monotonic_ns() - begin > 8_000_000, DEADLINE)
    while not made.finished.done:
        assert loop.run_until(lambda: bool(disk.waiting) or made.finished.done, DEADLINE)
        while disk.waiting:
            disk.answer()
    assert made.completed == 5
    assert sorted(made.latencies, reverse=True) == made.latencies   # each later one was planned 1 ms later
    assert made.latencies[0] - made.latencies[-1] == pytest.approx(4_000_000, abs=2_000_000)
    loop.close()


class Clock:
    """``time`` as iobench sees it: it stands still until told otherwise."""

    def __init__(self) -> None:
        self.ns = 10**9

    def monotonic_ns(self) -> int:
        return self.ns


def test_a_closed_loop_that_stands_still_says_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(iobench, "time", clock)
    disk = Disk(64)
    loop, made = load(disk, 1, 4)
    disk.answer()
    assert made.lateness.report() == {"late_p99_us": None, "stalled_s": 0.0}
    # The next completion makes room, and what takes the generator's time comes before it is used.
    answered = disk.waiting.pop(0)
    made._pumping = True
    answered.finish(Status.OK)
    made._pumping = False
    clock.ns += 50_000_000
    made._pump()
    assert made.lateness.report()["stalled_s"] == 0.05
    disk.answer()
    assert made.lateness.report()["stalled_s"] == 0.05
    loop.close()


def test_an_open_loop_says_how_late_it_was() -> None:
    disk = Disk(64)
    loop, made = load(disk, 1, 50, interval_ns=1_000_000, duration_ns=20_000_000)
    # The device holds the only slot for ten intervals, so nine requests find their time long past.
    held = time.monotonic_ns() + 10_000_000
    while time.monotonic_ns() < held:
        loop.step(0.001)
    while not made.finished.done:
        if disk.waiting:
            disk.answer()
        loop.step(0.001)
    late = made.lateness.report()["late_p99_us"]
    assert late is not None
    assert late > 5_000
    loop.close()


def test_what_is_written_is_stamped_in_its_first_and_its_last_block() -> None:
    disk = Disk(64)
    loop, made = load(disk, 1, 3, op=Op.WRITE, touch=False, stamp=0xABC)
    for place in (0, 8, 16):
        (request,) = disk.waiting
        assert request.lba == place
        for block in (0, 7):
            assert int.from_bytes(request.buffer[512 * block : 512 * block + 8], "little") == (place + block) ^ 0xABC
        disk.answer()
    assert made.finished.done
    assert made.written() == {"written": [0, 8, 16]}
    loop.close()
