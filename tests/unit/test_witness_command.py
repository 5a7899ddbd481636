"""The witness's loads: the times they keep, and that the checker finds every lie that a disk tells them, and no other.

The disk is a model in memory that serves what is outstanding in any order that overlaps allow. Each liar is the same
disk with one fault, and what it did is counted against a second, honest medium.

Long, because every lie is told to the same model of a disk.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import Any

import pytest

from drivers.disk import FileDisk
from drivers.switch import Switch
from drivers.workers import IoWorkers
from partitions.child.commands import netwitness, witness
from partitions.child.commands.witness import Load, Plan
from partitions.child.guest import Guest
from partitions.child.inet import IpStack
from vmbus_emu.device import BlockInfo, BlockRequest, BlockStats, Buffer, Op, PortInfo, PortStats, Receiver, Status
from vmbus_emu.loop import Loop
from vmbus_emu.witness import stamp
from vmbus_emu.witness.check import Verdict, judge
from vmbus_emu.witness.history import REQUEST, WRITE, History, Operation
from vmbus_emu.witness.stamp import State

DEADLINE = 20.0
SECTOR = 512
SECTORS = 256
HOUR_NS = 3600 * 10**9
SEEDS = range(25)


class Disk:
    """Serves one outstanding request in each round of the loop, picked at random."""

    info = BlockInfo(SECTORS)

    def __init__(self, loop: Loop, seed: int) -> None:
        self.loop = loop
        self.chance = random.Random(seed)
        self.medium = bytearray(SECTORS * SECTOR)
        self.honest = bytearray(SECTORS * SECTOR)      # what would be there without lies
        self.pending: list[BlockRequest] = []
        self.served = self.lies = 0
        self.dead = self._due = False

    def allocate(self, nbytes: int) -> memoryview:
        return memoryview(bytearray(nbytes))

    def stats(self) -> BlockStats:
        return BlockStats()

    def submit(self, request: BlockRequest) -> None:
        self.pending.append(request)
        self._work_later()

    def _work_later(self) -> None:
        if self.pending and not self._due and not self.dead:
            self._due = True
            self.loop.call_soon(self._work)

    def free(self) -> list[BlockRequest]:
        """The outstanding requests that no earlier one holds back."""
        return [
            one for index, one in enumerate(self.pending)
            if not any(before.lba < one.lba + one.blocks and one.lba < before.lba + before.blocks
                       for before in self.pending[:index])
        ]  # fmt: skip

    def _work(self) -> None:
        self._due = False
        if not self.dead:
            request = self.chance.choice(self.free())
            self.pending.remove(request)
            self.served += 1
            self.serve(request)
            self._work_later()

    def serve(self, request: BlockRequest) -> None:
        if request.op is Op.WRITE:
            place = slice(request.lba * SECTOR, (request.lba + request.blocks) * SECTOR)
            self.honest[place] = request.buffer  # type: ignore[assignment]
            self.put(request, place)
        elif request.op is Op.READ:
            place = slice(request.lba * SECTOR, (request.lba + request.blocks) * SECTOR)
            memoryview(request.buffer)[:] = self.medium[place]  # type: ignore[arg-type]
        self.complete(request)

    def put(self, request: BlockRequest, place: slice) -> None:
        self.medium[place] = self.honest[place]

    def complete(self, request: BlockRequest) -> None:
        request.finish(Status.OK)

    def die(self) -> None:
        """Of what is under way, any sectors may be there already."""
        self.dead = True
        self.apply_some()

    def apply_some(self) -> None:
        for request in self.free():
            if request.op is Op.WRITE:
                for sector in range(request.blocks):
                    if self.chance.random() < 0.5:
                        data = bytes(request.buffer)[sector * SECTOR : (sector + 1) * SECTOR]  # type: ignore[arg-type]
                        at = (request.lba + sector) * SECTOR
                        self.medium[at : at + SECTOR] = data

    def differs(self) -> int:
        """Sectors that hold something else than they should."""
        return sum(self.medium[at : at + SECTOR] != self.honest[at : at + SECTOR]
                   for at in range(0, len(self.medium), SECTOR))  # fmt: skip


class Dropping(Disk):
    """Acknowledges a write that it did not make."""

    def put(self, request: BlockRequest, place: slice) -> None:
        if self.chance.random() < 0.25:
            self.lies += 1
        else:
            super().put(request, place)


class Replaying(Disk):
    """Makes an old write once more, after a newer one of the same place."""

    def __init__(self, loop: Loop, seed: int) -> None:
        super().__init__(loop, seed)
        self.old: list[tuple[slice, bytes]] = []

    def put(self, request: BlockRequest, place: slice) -> None:
        if any(self.medium[place]):
            self.old.append((place, bytes(self.medium[place])))
        super().put(request, place)
        if self.old and self.chance.random() < 0.1:
            self.lies += 1
            replayed, content = self.chance.choice(self.old)
            self.medium[replayed] = content


class Doubling(Disk):
    """Completes a request twice, the second time at once or much later."""

    def complete(self, request: BlockRequest) -> None:
        super().complete(request)
        if self.chance.random() < 0.1:
            self.lies += 1
            if self.chance.random() < 0.5:
                request.on_done(request)
            else:
                self.loop.call_soon(self.loop.call_soon, request.on_done, request)


class Tearing(Disk):
    """Leaves a sector half written."""

    def put(self, request: BlockRequest, place: slice) -> None:
        old = self.medium[place]
        super().put(request, place)
        if self.chance.random() < 0.1:
            self.lies += 1
            self.medium[place.start + 256 : place.start + SECTOR] = old[256:SECTOR]


class Misdirecting(Disk):
    """Puts a write somewhere else."""

    def put(self, request: BlockRequest, place: slice) -> None:
        if self.chance.random() < 0.1:
            self.lies += 1
            at = self.chance.choice([at for at in range(0, len(self.medium), SECTOR * 8) if at != place.start])
            self.medium[at : at + len(request.buffer)] = bytes(request.buffer)  # type: ignore[arg-type]
        else:
            super().put(request, place)


class Faulty(Disk):
    """Is busy now and then, and fails now and then, having done all, some, or nothing of it. That is no lie."""

    def serve(self, request: BlockRequest) -> None:
        fate = self.chance.random()
        if fate < 0.2:
            request.finish(Status.BUSY)
        elif fate < 0.3:
            if request.op is Op.WRITE:
                self.pending.insert(0, request)
                self.apply_some()
                self.pending.remove(request)
            request.finish(Status.IO_ERROR)
        else:
            super().serve(request)


class Dying(Disk):
    """Dies at a random moment, for good, with the answer to the last request sent or not."""

    def complete(self, request: BlockRequest) -> None:
        dies = self.served > 50 and self.chance.random() < 0.1
        if not dies or self.chance.random() < 0.5:
            super().complete(request)
        if dies:
            self.die()


class Recovering(Disk):
    """Dies over and over, and is replaced by one that gets all that is outstanding again."""

    def complete(self, request: BlockRequest) -> None:
        if self.chance.random() < 0.1:
            self.pending.insert(0, request)     # done, and the answer lost
            self.apply_some()
        else:
            super().complete(request)


class Run:
    """A load over one disk until its history is full, and what the checker says."""

    def __init__(
        self, kind: Callable[[Loop, int], Disk], seed: int, mix: str = "mixed", depth: int = 8, capacity: int = 400,
        nbytes: int = 4096,
    ) -> None:
        self.loop = Loop()
        self.disk = kind(self.loop, seed)
        self.first = 1
        self.capacity = capacity
        self.plan = Plan(mix, nbytes, depth, 0, HOUR_NS, SECTORS * SECTOR // nbytes, 3, seed)
        self.again()

    def again(self) -> None:
        start: dict[int, State] = dict(enumerate(stamp.read_all(self.disk.medium)))
        history = History.create(self.capacity, self.first)
        load = Load(self.loop, self.disk, history, self.plan)
        load.start()
        assert self.loop.run_until(lambda: load.finished.done or self.disk.dead, DEADLINE)
        for _ in range(4):
            self.loop.step(0.0)     # completions that come too late
        self.operations: list[Operation] = list(history)
        self.states = dict(enumerate(stamp.read_all(self.disk.medium)))
        self.verdict: Verdict = judge(self.operations, self.states, start)
        self.first += self.capacity
        history.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.loop.close()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [Disk, Faulty, Dying, Recovering])
@pytest.mark.parametrize("mix", ["write", "mixed", "flush"])
def test_nothing_is_found_against_an_honest_disk(kind: type[Disk], mix: str, seed: int) -> None:
    with Run(kind, seed, mix) as run:
        assert run.verdict.findings == []
        assert run.verdict.good
        assert run.verdict.attempted > 10
        assert run.verdict.attempted >= run.verdict.acknowledged + run.verdict.failed
        if kind is not Dying:
            assert run.verdict.attempted == run.verdict.acknowledged + run.verdict.failed
        assert bool(run.verdict.failed) is (kind is Faulty)


@pytest.mark.parametrize("kind", [Disk, Faulty, Recovering])
def test_a_second_run_judges_from_where_the_first_ended(kind: type[Disk]) -> None:
    with Run(kind, 1, capacity=60) as run:
        run.plan = run.plan._replace(nbytes=1024, slots=SECTORS // 2, seed=9)
        run.again()
        assert run.verdict.findings == []
        run.disk.medium[:] = run.disk.medium[SECTOR:] + bytes(SECTOR)
        run.capacity = 20
        run.again()
        assert run.verdict.findings == []      # a start may be anything


def test_a_death_leaves_attempts_and_some_are_recovered() -> None:
    recovered = pending = 0
    for seed in SEEDS:
        with Run(Dying, seed, "write") as run:
            pending += run.verdict.attempted - run.verdict.acknowledged
            recovered += run.verdict.recovered
    assert 0 < recovered < pending * 8


def overlapping(operations: list[Operation]) -> int:
    writes = [one for one in operations if one.kind == WRITE]
    return sum(
        one.lba == other.lba and other.submitted_ns < one.submitted_ns < other.completed_ns
        for one in writes for other in writes
    )  # fmt: skip


def test_outstanding_writes_do_overlap() -> None:
    with Run(Disk, 1, "write") as run:
        assert overlapping(run.operations) > 10


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mix", ["write", "mixed"])
def test_a_write_dropped_after_its_acknowledgement_is_lost(mix: str, seed: int) -> None:
    with Run(Dropping, seed, mix) as run:
        assert run.disk.lies
        assert run.verdict.lost == run.disk.differs() > 0
        assert run.verdict.unexpected == 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mix", ["write", "mixed"])
def test_an_old_write_replayed_is_lost_and_seen_again(mix: str, seed: int) -> None:
    with Run(Replaying, seed, mix) as run:
        assert run.disk.lies
        assert run.verdict.lost == run.disk.differs()
        assert run.verdict.unexpected == 0
        assert run.verdict.lost + run.verdict.duplicated > 0
        assert bool(run.verdict.duplicated) is (mix == "mixed")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mix", ["write", "mixed", "flush"])
def test_every_doubled_completion_is_found(mix: str, seed: int) -> None:
    with Run(Doubling, seed, mix) as run:
        assert run.verdict.duplicated == run.disk.lies > 0
        assert (run.verdict.lost, run.verdict.unexpected) == (0, 0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("kind", "sectors"), [(Tearing, 1), (Misdirecting, 8)])
def test_what_nobody_put_there_is_unexpected(kind: type[Disk], sectors: int, seed: int) -> None:
    with Run(kind, seed, "write") as run:
        strange = sum(
            not isinstance(state, stamp.Stamp | None) or (state is not None and state.lba != lba)
            for lba, state in run.states.items()
        )
        assert run.verdict.unexpected == strange > 0
        assert run.verdict.lost == run.disk.differs() - strange
    with Run(kind, seed, "mixed") as run:
        assert run.verdict.unexpected > 0


# -- times --------------------------------------------------------------------------------------------------------


class Slow(Disk):
    """Answers when the test says so."""

    def _work_later(self) -> None:
        pass

    def answer(self) -> None:
        self.serve(self.pending.pop(0))


INTERVAL_NS = 100_000


@pytest.fixture
def history() -> Iterator[History]:
    made = History.create(4096)
    yield made
    made.close()


def plan(**changes: Any) -> Plan:
    return Plan("write", 4096, 4, INTERVAL_NS, 50 * INTERVAL_NS, 32, 3, 1)._replace(**changes)


def test_requests_keep_their_planned_times_when_the_disk_is_behind(loop: Loop, history: History) -> None:
    disk = Slow(loop, 1)
    load = Load(loop, disk, history, plan())
    load.start()
    assert not loop.run_until(lambda: load.finished.done, 0.02)
    assert len(disk.pending) == 4       # long past the end, and no more than the depth
    resumed = monotonic_ns()
    while not load.finished.done:
        disk.answer()
    planned = [one.planned_ns for one in history]
    assert [later - planned[0] for later in planned] == [INTERVAL_NS * number for number in range(50)]
    assert all(one.planned_ns <= one.submitted_ns < one.completed_ns for one in history)
    assert [one.submitted_ns > resumed for one in history] == [False] * 4 + [True] * 46
    report = load.report()
    assert (report["submitted"], report["ended"], report["start_ns"]) == ({"WRITE": 50}, {"OK": 50}, planned[0])


def test_a_disk_that_keeps_up_is_asked_at_the_planned_times(loop: Loop, history: History) -> None:
    load = Load(loop, Disk(loop, 1), history, plan(interval_ns=10 * INTERVAL_NS, duration_ns=100 * INTERVAL_NS))
    load.start()
    assert loop.run_until(lambda: load.finished.done, DEADLINE)
    assert len(history) == 10
    assert min(one.submitted_ns - one.planned_ns for one in history) < 10**6
    assert judge(history, {}).acknowledged == 10


def test_a_closed_loop_plans_what_it_submits(loop: Loop, history: History) -> None:
    disk = Slow(loop, 1)
    load = Load(loop, disk, history, plan(interval_ns=0, duration_ns=HOUR_NS))
    load.start()
    for _ in range(20):
        disk.answer()
        assert len(disk.pending) == 4
    assert all(one.planned_ns == one.submitted_ns for one in history)
    load.stop()
    while disk.pending:
        assert not load.finished.done
        disk.answer()
    assert load.finished.done
    assert len(history) == 24


def test_a_disk_that_is_gone_ends_the_load(loop: Loop, history: History) -> None:
    disk = Slow(loop, 1)
    load = Load(loop, disk, history, plan(duration_ns=HOUR_NS, interval_ns=0))
    load.start()
    while disk.pending:
        disk.pending.pop().finish(Status.GONE)
    assert (load.finished.done, load.failed) == (True, 4)
    assert [one.status for one in history] == [Status.GONE] * 4


def test_a_busy_disk_is_asked_again_before_anything_new(loop: Loop, history: History) -> None:
    disk = Slow(loop, 1)
    load = Load(loop, disk, history, plan(duration_ns=HOUR_NS, interval_ns=0))
    load.start()
    refused = [disk.pending.pop(0), disk.pending.pop(0)]
    for request in refused:
        request.finish(Status.BUSY)
    disk.answer()
    assert (len(disk.pending), len(history)) == (1, 4)
    refused_at = monotonic_ns()
    assert loop.run_until(lambda: len(disk.pending) == 4, DEADLINE)
    assert [(one.lba, one.blocks) for one in disk.pending[1:3]] == [(one.lba, one.blocks) for one in refused]
    operations = list(history)
    assert [one.tries for one in operations] == [1, 1, 1, 1, 2, 2, 1]
    assert [one.refused for one in operations[:4]] == [True, True, False, False]
    assert [one.planned_ns for one in operations[4:6]] == [one.planned_ns for one in operations[:2]]
    assert operations[4].submitted_ns > refused_at > operations[4].planned_ns
    states = [stamp.read(bytes(one.buffer)[:SECTOR]) for one in disk.pending[1:3]]  # type: ignore[arg-type]
    assert states == [stamp.Stamp(3, one.sequence, one.lba) for one in operations[4:6]]
    load.stop()
    while disk.pending:
        disk.answer()
    assert (load.finished.done, load.busy, load.failed) == (True, 2, 0)


# -- commands -----------------------------------------------------------------------------------------------------


class Lossy:
    """A port that loses frames after having taken them."""

    def __init__(self, port: Any) -> None:
        self.port = port
        self.lose: Callable[[], bool] = lambda: False
        self.lost = 0

    @property
    def info(self) -> PortInfo:
        return self.port.info  # type: ignore[no-any-return]

    def connect(self, receiver: Receiver, on_ready: Callable[[], None] | None = None) -> None:
        self.port.connect(receiver)

    def stats(self) -> PortStats:
        return self.port.stats()  # type: ignore[no-any-return]

    def transmit(self, frame: Buffer) -> Status:
        if self.lose():
            self.lost += 1
            return Status.OK
        return self.port.transmit(frame)  # type: ignore[no-any-return]


class Bench:
    """A guest with a RAM disk, a disk that is read-only, and a neighbour."""

    SIZE = 1 << 20

    def __init__(self) -> None:
        self.loop = Loop()
        self.fd = os.memfd_create("disk0")
        os.truncate(self.fd, self.SIZE)
        self.workers = IoWorkers(self.loop)
        disks = {
            "disk0": FileDisk(self.fd, BlockInfo(self.SIZE // SECTOR), self.workers, memory=True),
            "disk1": FileDisk(self.fd, BlockInfo(8, read_only=True), self.workers, memory=True),
        }
        switch = Switch("s0")
        self.port = Lossy(switch.port("vm1", bytes((2, 0, 0, 0, 0, 1))))
        config = {"name": "vm1", "address": "10.0.0.1", "prefix": 16, "memory_bytes": 1 << 24,
                  "hosts": {"vm2": "10.0.0.2", "ghost": "10.0.0.9"}}
        self.out: list[dict[str, Any]] = []
        self.guest = Guest(self.loop, config, disks, {"nic0": self.port}, self.out.append, lambda line: None)
        far = switch.port("vm2", bytes((2, 0, 0, 0, 0, 2)))
        self.neighbour = IpStack(self.loop, far, "10.0.0.2", 16, {}, lambda line: None)

    def run(self, *argv: str) -> tuple[int, bytes, str]:
        self.out.clear()
        self.guest.console.handle({"t": "exec", "session": 1, "argv": list(argv)})
        taken = {1: b"", 2: b""}
        while True:
            assert self.loop.run_until(lambda: bool(self.out), DEADLINE), argv
            message = self.out.pop(0)
            if message["t"] == "exit":
                return message["status"], taken[1], taken[2].decode()
            taken[message["stream"]] += message["data"]
            self.guest.console.handle({"t": "credit", "session": 1, "chunks": 1})

    def close(self) -> None:
        self.workers.close()
        self.loop.close()
        os.close(self.fd)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.mark.parametrize(
    "words", ["-i closed", "-o mixed -i 0 -d 16", "-o flush -i 0.0001 -d 4 -b 1k", "-b 128k -s 256k"]
)
def test_the_commands_from_end_to_end(bench: Bench, words: str) -> None:
    history = History.create(100_000)
    status, out, errors = bench.run(
        "witness", *words.split(), "-t", "0.02", "-w", "9", "-S", "5", "vm1.disk0", history.path
    )
    report = json.loads(out)
    assert (status, errors, report["full"]) == (0, "", False)
    assert sum(report["ended"].values()) == sum(report["submitted"].values()) > 0
    assert report["start_ns"] < report["end_ns"]
    status, told, _ = bench.run("stamps", "disk0", "0", "1M")
    assert status == 0
    states = stamp.from_brief(told, 0)
    assert states == dict(enumerate(stamp.read_all(os.pread(bench.fd, bench.SIZE, 0))))
    verdict = judge(history, states)
    assert verdict.findings == []
    assert verdict.acknowledged == report["submitted"]["WRITE"]
    assert {state.writer for state in states.values() if isinstance(state, stamp.Stamp)} == {9}
    assert (len(told) // 24, "READ" in report["submitted"]) == (2048, "mixed" in words)
    history.close()


def test_a_part_of_a_disk_in_brief(bench: Bench) -> None:
    content = bytearray(1024)
    stamp.fill(content, 1, 2, 7)
    os.pwrite(bench.fd, content, 7 * SECTOR)
    assert stamp.from_brief(bench.run("stamps", "disk0", "3k", "1k")[1], 6) == {6: None, 7: stamp.Stamp(1, 2, 7)}


def test_a_full_history_ends_the_command(bench: Bench) -> None:
    history = History.create(10)
    status, out, _ = bench.run("witness", "-i", "closed", "-t", "3600", "disk0", history.path)
    assert (status, json.loads(out)["full"], len(history)) == (0, True, 10)
    history.close()


def test_a_command_can_be_cancelled_and_leaves_nothing_under_way(bench: Bench) -> None:
    history = History.create(100_000)
    for argv in (["witness", "-t", "3600", "disk0"], ["netwitness", "-t", "3600", "vm2"]):
        before = len(history)
        bench.guest.console.handle({"t": "exec", "session": 1, "argv": [*argv, history.path]})
        assert bench.loop.run_until(lambda before=before: len(history) > before + 3, DEADLINE)  # type: ignore[misc]
        bench.guest.console.handle({"t": "cancel", "session": 1})
        assert bench.loop.run_until(lambda: bool(bench.out), DEADLINE)
        assert bench.out.pop()["status"] == 130
        count = len(history)
        assert not bench.loop.run_until(lambda count=count: len(history) > count, 0.03)  # type: ignore[misc]
    history.close()


BAD = ["", "disk0", "disk0 PATH x", "-o dance disk0 PATH", "-b 0 disk0 PATH", "-b 100 disk0 PATH", "-b 256k disk0 PATH",
       "-d 0 disk0 PATH", "-d 65 disk0 PATH", "-i x disk0 PATH", "-t -1 disk0 PATH", "-s 1k disk0 PATH",
       "-w 4294967296 disk0 PATH", "-S x disk0 PATH"]


@pytest.mark.parametrize("line", BAD)
def test_wrong_usage_of_witness(bench: Bench, line: str) -> None:
    status, out, errors = bench.run("witness", *line.split())
    assert (status, out, "; usage: witness" in errors) == (2, b"", True)


@pytest.mark.parametrize("line", ["", "disk0", "disk0 1 512", "disk0 0 100", "disk0 0 x"])
def test_wrong_usage_of_stamps(bench: Bench, line: str) -> None:
    assert bench.run("stamps", *line.split())[0] == 2


@pytest.mark.parametrize("line", ["", "vm2", "-i 0 vm2 PATH", "-i closed vm2 PATH", "-t x vm2 PATH"])
def test_wrong_usage_of_netwitness(bench: Bench, line: str) -> None:
    assert bench.run("netwitness", *line.split())[0] == 2


@pytest.mark.parametrize(
    ("line", "why"),
    [("witness disk0 /dev/null", "no history"), ("witness disk0 /nowhere", "no history"),
     ("witness disk1 /dev/null", "read-only"), ("witness disk9 /dev/null", "no disk"),
     ("stamps disk0 1M 512", "ends at"), ("netwitness nobody /dev/null", "name not known"),
     ("netwitness vm2 /dev/null", "no history")],
)  # fmt: skip
def test_a_failure_says_why(bench: Bench, line: str, why: str) -> None:
    status, _, errors = bench.run(*line.split())
    assert status == 1
    assert why in errors


def test_every_request_of_a_lossy_net_is_answered_and_lost_frames_are_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netwitness, "RETRY_S", 0.005)
    history = History.create(1000)
    assert bench.run("ping", "-c", "1", "vm2")[0] == 0          # so that no ARP frame is among the lost
    frames = iter(range(1, 10**6))
    bench.port.lose = lambda: next(frames) % 3 == 0
    status, out, _ = bench.run("netwitness", "-i", "0.001", "-t", "0.05", "vm2", history.path)
    report = json.loads(out)
    verdict = judge(history, {})
    assert verdict.network_requests == report["requests"] == 50
    assert verdict.network_lost == report["lost_frames"] == bench.port.lost > 0
    assert 0 < report["answered"] == verdict.network_answered       # the last ones may have had no time for another try
    assert any(one.tries > 1 for one in history if one.acknowledged)
    assert status == (report["answered"] < 50)
    assert (verdict.lost, verdict.good) == (0, True)
    planned = [one.planned_ns for one in history]
    assert [later - planned[0] for later in planned] == [10**6 * number for number in range(50)]
    assert {one.kind for one in history} == {REQUEST}
    history.close()


def test_what_nobody_answers_is_recorded_to_the_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netwitness, "RETRY_S", 0.005)
    monkeypatch.setattr(netwitness, "WINDOW", 4)
    history = History.create(1000)
    bench.port.lose = lambda: True
    status, out, _ = bench.run("netwitness", "-i", "0.001", "-t", "0.02", "vm2", history.path)
    assert (status, json.loads(out)["answered"]) == (1, 0)
    sent = [bool(one.submitted_ns) for one in history]
    assert len(sent) == 20
    assert sent == [True] * sum(sent) + [False] * (20 - sum(sent))
    assert 0 < sum(sent) <= 4
    assert not any(one.completed_ns for one in history)
    history.close()


def test_the_largest_write_is_one_that_a_driver_carries_out_at_once() -> None:
    from drivers.disk import INLINE_WRITE_BYTES

    assert witness.LARGEST <= INLINE_WRITE_BYTES
