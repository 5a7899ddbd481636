"""iobench's closed loop: it keeps its depth, stops when told, and waits where others have taken the disk's depth."""

from __future__ import annotations

from partitions.child.commands.iobench import Load
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


def load(disk: Disk, depth: int, number: int) -> tuple[Loop, Load]:
    loop = Loop()
    made = Load(loop, disk, Op.READ, 4096, depth, number, [0, 8, 16], touch=True)
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
