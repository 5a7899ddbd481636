"""What a guest does about a disk that is BUSY: asks again, with the same request, until it is taken."""

from __future__ import annotations

from typing import Any

import pytest

from partitions.child import busy
from partitions.child.commands import blockio
from tests.waiting_guests import DEADLINE, Disk
from vmbus_emu.device import BlockRequest, Op, Status
from vmbus_emu.loop import Loop
from vmbus_emu.task import Task


class Refusing(Disk):
    """BUSY so many times, then good or with ``ends``."""

    def __init__(self, loop: Loop, times: int, ends: Status = Status.OK) -> None:
        super().__init__(loop)
        self.times = times
        self.asked: list[tuple[Any, ...]] = []
        self.lie = lambda request: ends or None

    def submit(self, request: BlockRequest) -> None:
        self.asked.append((request.op, request.lba, request.blocks, request.buffer))
        self.depth = 0 if len(self.asked) <= self.times else 64
        super().submit(request)


@pytest.mark.parametrize("times", [0, 1, 3])
@pytest.mark.parametrize("ends", [Status.OK, Status.IO_ERROR, Status.GONE])
def test_it_is_asked_the_same_until_it_takes_it_and_the_end_is_told_once(loop: Loop, times: int, ends: Status) -> None:
    disk, data = Refusing(loop, times, ends), memoryview(b"w" * 1024)
    done: list[BlockRequest] = []
    busy.submit(loop, disk, Op.WRITE, 7, 2, data, done.append)
    assert done == []
    assert loop.run_until(lambda: bool(done), DEADLINE)
    loop.run_until(lambda: False, 2 * busy.RETRY_S)
    assert [request.status for request in done] == [ends]
    assert disk.asked == [(Op.WRITE, 7, 2, data)] * (times + 1)
    assert disk.writes == (ends is Status.OK)


def test_between_two_tries_others_have_their_turn(loop: Loop) -> None:
    disk = Refusing(loop, 1)
    done: list[BlockRequest] = []
    busy.submit(loop, disk, Op.FLUSH, 0, 0, None, done.append)
    turns: list[int] = []
    loop.call_soon(lambda: turns.append(len(disk.asked)))
    assert loop.run_until(lambda: bool(done), DEADLINE)
    assert turns == [1]


def test_a_command_of_the_console_waits_for_it_too(loop: Loop) -> None:
    disk = Refusing(loop, 3)
    task = Task(loop, blockio.write_bytes(loop, disk, 512, b"w" * 1024))
    assert loop.run_until(lambda: task.done, DEADLINE)
    task.result()
    assert disk.content[512:1536] == b"w" * 1024
    assert len(disk.asked) == 4
