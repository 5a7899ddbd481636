"""A disk behind a controller with few slots and short commands: cut, queued in order, and whole again."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from drivers import ahci, nvme, piix
from drivers.queued import QueuedDisk, part
from vmbus_emu.device import BLOCK_SIZE, BlockInfo, BlockRequest, BlockStats, Op, Scatter, Status

INFO = BlockInfo(1 << 16, serial="X")


class Medium:
    """Keeps requests until they are let go, and counts those it holds at a time."""

    def __init__(self) -> None:
        self.info = INFO
        self.held: list[BlockRequest] = []
        self.seen: list[tuple[Op, int, int]] = []
        self.most = 0
        self.at_once = False

    def allocate(self, nbytes: int) -> memoryview:
        return memoryview(bytearray(nbytes))

    def stats(self) -> BlockStats:
        return BlockStats(outstanding=len(self.held))

    def submit(self, request: BlockRequest) -> None:
        self.seen.append((Op(request.op), request.lba, request.blocks))
        if self.at_once:
            request.finish(Status.OK)
            return
        self.held.append(request)
        self.most = max(self.most, len(self.held))

    def finish(self, status: Status = Status.OK, which: int = 0) -> None:
        self.held.pop(which).finish(status)


def submitted(disk: Any, op: Op, lba: int = 0, blocks: int = 0, buffer: Any = None) -> BlockRequest:
    request = BlockRequest(op, lba, blocks, buffer)
    disk.submit(request)
    return request


def test_a_request_is_cut_into_commands_and_ends_with_the_last() -> None:
    medium = Medium()
    disk = QueuedDisk(medium, slots=2, largest=8 * BLOCK_SIZE)
    request = submitted(disk, Op.READ, 100, 20, bytearray(20 * BLOCK_SIZE))
    assert medium.seen == [(Op.READ, 100, 8), (Op.READ, 108, 8)]
    medium.finish(which=1)
    assert medium.seen[2:] == [(Op.READ, 116, 4)]
    medium.finish()
    assert request.status is None
    medium.finish()
    assert request.status is Status.OK
    assert (disk.stats().reads, disk.stats().read_bytes, disk.stats().outstanding) == (1, 20 * BLOCK_SIZE, 0)
    assert medium.most == 2


def test_no_command_crosses_a_stripe() -> None:
    medium = Medium()
    medium.at_once = True
    disk = QueuedDisk(medium, slots=64, largest=16 * BLOCK_SIZE, stripe=16 * BLOCK_SIZE)
    assert submitted(disk, Op.WRITE, 10, 40, bytes(40 * BLOCK_SIZE)).status is Status.OK
    assert medium.seen == [(Op.WRITE, 10, 6), (Op.WRITE, 16, 16), (Op.WRITE, 32, 16), (Op.WRITE, 48, 2)]


def test_commands_keep_their_order_and_what_has_no_data_is_not_cut() -> None:
    medium = Medium()
    disk = piix.attach("8086:7010", medium)
    requests = [
        submitted(disk, Op.WRITE, 0, 300, bytes(300 * BLOCK_SIZE)), submitted(disk, Op.FLUSH),
        submitted(disk, Op.UNMAP, 0, 1 << 15), submitted(disk, Op.READY),
        submitted(disk, Op.READ, 5, 1, bytearray(BLOCK_SIZE)),
    ]  # fmt: skip
    while medium.held:
        medium.finish()
    assert medium.most == 1
    assert [request.status for request in requests] == [Status.OK] * 5
    assert medium.seen == [
        (Op.WRITE, 0, 256), (Op.WRITE, 256, 44), (Op.FLUSH, 0, 0), (Op.UNMAP, 0, 1 << 15), (Op.READY, 0, 0),
        (Op.READ, 5, 1),
    ]  # fmt: skip


def test_the_first_fault_is_the_requests_and_it_still_ends_once() -> None:
    medium = Medium()
    disk = QueuedDisk(medium, slots=4, largest=BLOCK_SIZE)
    ended: list[BlockRequest] = []
    request = BlockRequest(Op.READ, 0, 3, bytearray(3 * BLOCK_SIZE), ended.append)
    disk.submit(request)
    medium.finish()
    medium.finish(Status.IO_ERROR)
    assert not ended
    medium.finish(Status.READ_ONLY)
    assert (ended, request.status) == ([request], Status.IO_ERROR)
    assert disk.stats().errors == 1


def test_more_than_the_depth_is_busy_and_what_is_wrong_never_reaches_the_medium() -> None:
    medium = Medium()
    disk = QueuedDisk(medium, slots=1, largest=BLOCK_SIZE)
    waiting = [submitted(disk, Op.READY) for _ in range(INFO.queue_depth)]
    assert submitted(disk, Op.READY).status is Status.BUSY
    assert submitted(disk, Op.READ, INFO.block_count, 1, bytearray(BLOCK_SIZE)).status is Status.OUT_OF_RANGE
    while medium.held:
        medium.finish()
    assert {request.status for request in waiting} == {Status.OK}
    assert submitted(disk, Op.READY).status is None


def test_thousands_of_commands_that_end_at_once_do_not_recurse() -> None:
    medium = Medium()
    medium.at_once = True
    disk = QueuedDisk(medium, slots=1, largest=BLOCK_SIZE)
    assert submitted(disk, Op.READ, 0, 2048, bytearray(2048 * BLOCK_SIZE)).status is Status.OK
    assert len(medium.seen) == 2048


def test_a_client_that_goes_on_in_the_completion_is_served() -> None:
    medium = Medium()
    disk = QueuedDisk(medium, slots=1, largest=BLOCK_SIZE)
    later: list[BlockRequest] = []
    disk.submit(BlockRequest(Op.READY, on_done=lambda request: later.append(submitted(disk, Op.FLUSH))))
    medium.finish()
    assert medium.seen[-1] == (Op.FLUSH, 0, 0)
    medium.finish()
    assert later[0].status is Status.OK


@pytest.mark.parametrize("seed", range(20))
def test_a_part_of_memory_is_that_part_in_place(seed: int) -> None:
    chance = random.Random(seed)
    whole = bytearray(chance.randbytes(4096))
    cuts = sorted({0, 4096, *(chance.randrange(4096) for _ in range(chance.randrange(6)))})
    pieces = [memoryview(whole)[low:high] for low, high in itertools.pairwise(cuts)]
    memory = Scatter(pieces) if len(pieces) > 1 else pieces[0]
    offset = chance.randrange(4096)
    nbytes = chance.randrange(1, 4096 - offset + 1)
    got = part(memory, offset, nbytes)
    assert got is not None
    assert (len(got), bytes(got)) == (nbytes, bytes(whole[offset : offset + nbytes]))


def test_each_model_drives_as_its_data_sheet_says_and_shows_the_same_disk() -> None:
    for driver, slots, largest in ((piix, 1, 256), (ahci, 32, 168 * 8)):
        medium = Medium()
        disk = driver.DRIVER.attach(driver.DRIVER.models[0], medium)
        assert disk.info == INFO
        for _ in range(40):
            submitted(disk, Op.READ, 0, 2048, bytearray(2048 * BLOCK_SIZE))
        assert medium.most == slots
        assert max(blocks for _, _, blocks in medium.seen) == largest
    medium = Medium()
    assert nvme.DRIVER.attach("1b36:0010", medium) is medium
