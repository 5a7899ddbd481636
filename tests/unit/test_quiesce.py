"""Freeze and thaw of a guest's disks: through storvsc, and through the monolith's boundary."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from drivers.disk import NullDisk
from partitions.boundary import BoundDisk, DeviceLock
from partitions.child.quiesce import Quiesce
from partitions.child.storvsc import StorVsc
from partitions.child.writers import Writers
from partitions.parent.storvsp import StorVspSession
from vmbus_emu.channel import channel_pair
from vmbus_emu.device import BlockInfo, BlockRequest, BlockStats, Op, Status
from vmbus_emu.loop import Loop

BLOCKS = 64


class Driver(NullDisk):
    """A disk that says what it was asked. ``slow``: what changes it completes when the test says so."""

    def __init__(self) -> None:
        super().__init__(BlockInfo(BLOCKS, serial="s"))
        self.order: list[tuple[Op, int]] = []
        self.slow = False
        self.waiting: list[BlockRequest] = []
        self.flushes = Status.OK

    def submit(self, request: BlockRequest) -> None:
        op = Op(request.op)
        self.order.append((op, request.lba))
        if self.slow and op in (Op.WRITE, Op.UNMAP, Op.READ):
            self.waiting.append(request)
        else:
            request.finish(self.flushes if op is Op.FLUSH else Status.OK)

    def complete(self) -> None:
        waiting, self.waiting = self.waiting, []
        for request in waiting:
            request.finish(Status.OK)

    def stats(self) -> BlockStats:
        return BlockStats(outstanding=len(self.waiting))


class Bench:
    """``disk`` is what the guest has, ``driver`` what lies below."""

    def __init__(self, kind: str) -> None:
        self.loop = Loop()
        self.driver = Driver()
        self.lines: list[str] = []
        self.writers = Writers()
        self.ends: list[Any] = []
        self.disk: Any
        if kind == "call":
            self.disk = BoundDisk(self.driver, DeviceLock("d"), self.loop)
        else:
            self.near, self.far = channel_pair()
            self.session = StorVspSession(self.far, self.driver)
            self.disk = StorVsc(self.loop, "disk0", self.lines.append)
            self.attach()

    def attach(self) -> None:
        attached = self.disk.attach(self.near)
        self.until(lambda: attached.done)
        assert attached.result() is True

    def turn(self) -> None:
        if hasattr(self, "near"):
            while self.near.deliver() + self.far.deliver():
                pass
        self.loop.step(0.0)

    def settle(self) -> None:
        for _ in range(20):
            self.turn()

    def until(self, condition: Any) -> None:
        end = time.monotonic() + 5
        while not condition():
            self.turn()
            assert time.monotonic() < end

    def submit(self, op: Op, lba: int = 0) -> BlockRequest:
        buffer = memoryview(bytearray(512)) if op in (Op.READ, Op.WRITE) else None
        request = BlockRequest(op, lba, 0 if op is Op.FLUSH else 1, buffer)
        self.disk.submit(request)
        return request

    def quiesce(self, longest_s: float = 5.0) -> Quiesce:
        return Quiesce(self.loop, {"disk0": self.disk}, self.writers, self.lines.append, longest_s, writers_s=0.02)


@pytest.fixture(params=["channel", "call"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.loop.close()


def test_frozen_means_that_what_was_under_way_has_ended_and_is_flushed(bench: Bench) -> None:
    bench.driver.slow = True
    before = bench.submit(Op.WRITE, 1)
    bench.settle()
    quiesce = bench.quiesce()
    quiesce.freeze(bench.ends.append)
    bench.settle()
    assert (bench.ends, bench.driver.order) == ([], [(Op.WRITE, 1)])
    bench.driver.slow = False
    bench.driver.complete()
    bench.until(lambda: bench.ends)
    assert (bench.ends, before.status) == ([True], Status.OK)
    assert bench.driver.order == [(Op.WRITE, 1), (Op.FLUSH, 0)]


def test_what_would_change_the_disk_waits_reads_do_not_and_nothing_fails(bench: Bench) -> None:
    quiesce = bench.quiesce()
    quiesce.freeze(bench.ends.append)
    bench.until(lambda: bench.ends == [True])
    held = [bench.submit(Op.WRITE, 1), bench.submit(Op.UNMAP, 2), bench.submit(Op.WRITE, 3)]
    read, flush = bench.submit(Op.READ, 9), bench.submit(Op.FLUSH)
    bench.until(lambda: read.status is not None and flush.status is not None)
    bench.settle()
    assert [request.status for request in held] == [None] * 3
    assert [op for op, _ in bench.driver.order if op in (Op.WRITE, Op.UNMAP)] == []
    assert quiesce.thaw()
    bench.until(lambda: all(request.status is not None for request in held))
    assert [request.status for request in held] == [Status.OK] * 3
    assert [one for one in bench.driver.order if one[0] in (Op.WRITE, Op.UNMAP)] == [
        (Op.WRITE, 1), (Op.UNMAP, 2), (Op.WRITE, 3)]
    after = bench.submit(Op.WRITE, 4)
    bench.until(lambda: after.status is Status.OK)


def test_reads_that_never_cease_do_not_keep_it_from_freezing(bench: Bench) -> None:
    bench.driver.slow = True
    reads = [bench.submit(Op.READ, 1)]
    quiesce = bench.quiesce()
    quiesce.freeze(bench.ends.append)
    end = time.monotonic() + 5
    while not bench.ends:
        reads.append(bench.submit(Op.READ, 2))
        bench.driver.complete()
        bench.turn()
        assert time.monotonic() < end
    assert bench.ends == [True]
    bench.driver.slow = False
    quiesce.thaw()

    def all_done() -> bool:
        bench.driver.complete()
        return all(read.status in (Status.OK, Status.BUSY) for read in reads)

    bench.until(all_done)


def test_credit_holds_while_it_is_frozen(bench: Bench) -> None:
    quiesce = bench.quiesce()
    quiesce.freeze(bench.ends.append)
    bench.until(lambda: bench.ends == [True])
    held = [bench.submit(Op.WRITE, lba % BLOCKS) for lba in range(64)]
    assert bench.submit(Op.WRITE).status is Status.BUSY
    quiesce.thaw()
    bench.until(lambda: all(request.status is Status.OK for request in held))


def test_a_thaw_before_it_is_frozen_ends_the_freeze(bench: Bench) -> None:
    bench.driver.slow = True
    write = bench.submit(Op.WRITE, 1)
    quiesce = bench.quiesce()
    quiesce.freeze(bench.ends.append)
    bench.settle()
    assert not quiesce.thaw(), "it was not frozen"
    assert bench.ends == [False]
    bench.driver.slow = False
    bench.driver.complete()
    bench.until(lambda: write.status is Status.OK)
    quiesce.freeze(bench.ends.append)
    bench.until(lambda: len(bench.ends) == 2)
    assert bench.ends == [False, True]
    quiesce.freeze(bench.ends.append)
    assert bench.ends == [False, True, False], "one at a time"


def test_nobody_has_to_thaw_it(bench: Bench) -> None:
    quiesce = bench.quiesce(0.02)
    quiesce.freeze(bench.ends.append)
    bench.until(lambda: bench.ends == [True])
    write = bench.submit(Op.WRITE, 1)
    bench.until(lambda: write.status is Status.OK)
    assert not quiesce.thaw(), "whoever comes now is told that it did not hold"
    assert any("nobody thawed" in line for line in bench.lines)


def test_a_disk_that_cannot_be_flushed_is_not_frozen(bench: Bench) -> None:
    bench.driver.flushes = Status.IO_ERROR
    quiesce = bench.quiesce()
    quiesce.freeze(bench.ends.append)
    bench.until(lambda: bench.ends == [False])
    write = bench.submit(Op.WRITE, 1)
    bench.until(lambda: write.status is Status.OK)


def test_a_channel_that_comes_back_meanwhile_lets_no_write_through() -> None:
    bench = Bench("channel")
    quiesce = bench.quiesce()
    quiesce.freeze(bench.ends.append)
    bench.until(lambda: bench.ends == [True])
    write = bench.submit(Op.WRITE, 1)
    bench.near, bench.far = channel_pair()
    bench.session = StorVspSession(bench.far, bench.driver)
    bench.attach()
    bench.settle()
    assert write.status is None
    quiesce.thaw()
    bench.until(lambda: write.status is Status.OK)
    bench.loop.close()


# -- writers ----------------------------------------------------------------------------------------------


def test_a_writer_ends_its_transaction_on_disks_that_still_work_and_rests_until_the_thaw(bench: Bench) -> None:
    quiesce, writers = bench.quiesce(5.0), bench.writers
    with writers.joined("w") as writer:
        assert writer.rest().done, "nothing is held"
        quiesce.freeze(bench.ends.append)
        bench.settle()
        last = bench.submit(Op.WRITE, 1)
        bench.until(lambda: last.status is Status.OK)
        assert (bench.ends, writer.held) == ([], True)
        rest = writer.rest()
        bench.until(lambda: bench.ends == [True])
        assert bench.driver.order == [(Op.WRITE, 1), (Op.FLUSH, 0)]
        assert not rest.done
        with writers.joined("comes late") as late:
            waits = late.rest()
            assert not waits.done
            assert quiesce.thaw()
            assert (rest.done, waits.done, writer.held) == (True, True, False)
        quiesce.freeze(bench.ends.append)
        bench.settle()
        assert bench.ends == [True], "it is asked again"
        again = writer.rest()
        bench.until(lambda: bench.ends == [True, True])
        assert not again.done


def test_a_writer_that_does_not_come_to_rest_is_named_and_nothing_is_held(bench: Bench) -> None:
    quiesce = bench.quiesce(5.0)
    with bench.writers.joined("rests") as rests, bench.writers.joined("works") as works:
        quiesce.freeze(bench.ends.append)
        rest = rests.rest()
        bench.until(lambda: bench.ends == [False])
        assert any("no end of a transaction within 0.02 s: works" in line for line in bench.lines), bench.lines
        assert rest.done
        assert works.rest().done
    assert bench.driver.order == []
    assert not quiesce.thaw()


def test_who_leaves_is_not_waited_for_and_a_thaw_ends_the_wait(bench: Bench) -> None:
    quiesce = bench.quiesce(5.0)
    with bench.writers.joined("one"):
        quiesce.freeze(bench.ends.append)
        bench.settle()
        assert bench.ends == []
    bench.until(lambda: bench.ends == [True])
    quiesce.thaw()
    with bench.writers.joined("two") as two:
        quiesce.freeze(bench.ends.append)
        assert not quiesce.thaw(), "before anything else happened"
        bench.settle()
        assert (bench.ends, two.held, two.rest().done) == ([True, False], False, True)
        write = bench.submit(Op.WRITE, 1)
        bench.until(lambda: write.status is Status.OK)
