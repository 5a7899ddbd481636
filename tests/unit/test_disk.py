"""Drivers on real descriptors (memfd and files in a temporary folder), and workers with a gate in front of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from drivers import disk as disk_module
from drivers.disk import INLINE_WRITE_BYTES, FileDisk, NullDisk, file_disk, null_disk, ram_disk
from drivers.workers import IoWorkers
from vmbus_emu.device import BLOCK_SIZE, BlockInfo, BlockRequest, Buffer, Op, Status
from vmbus_emu.loop import Loop

BLOCKS = 8192
INFO = BlockInfo(block_count=BLOCKS, serial="d")


class Rig:
    """A file disk, its loop and what completed."""

    def __init__(self, path: Path, size: int = BLOCKS * BLOCK_SIZE, flags: int = os.O_RDWR) -> None:
        path.touch()
        os.truncate(path, size)
        self.path = path
        self.loop = Loop()
        self.workers = IoWorkers(self.loop)
        self.fd = os.open(path, flags | os.O_CLOEXEC)
        self.disk = FileDisk(self.fd, INFO, self.workers)
        self.done: list[BlockRequest] = []

    def submit(self, op: Op, lba: int = 0, blocks: int = 0, buffer: Buffer | None = None) -> BlockRequest:
        request = BlockRequest(op, lba, blocks, buffer, self.done.append)
        self.disk.submit(request)
        return request

    def do(self, op: Op, lba: int = 0, blocks: int = 0, buffer: Buffer | None = None) -> Status | None:
        request = self.submit(op, lba, blocks, buffer)
        self.wait(request)
        return request.status

    def wait(self, *requests: BlockRequest) -> None:
        assert self.loop.run_until(lambda: all(r.status is not None for r in requests), 10)

    def close(self) -> None:
        self.workers.close()
        self.loop.close()
        os.close(self.fd)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def build(**options: int) -> Rig:
        rigs.append(Rig(tmp_path / f"{len(rigs)}.img", **options))
        return rigs[-1]

    yield build
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(make: Callable[..., Rig]) -> Rig:
    return make()


class Gate:
    """Stands before every call of one function of ``os`` in a worker, until it is opened; counts the calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, error: int = 0) -> None:
        self.entered = 0
        self.opened = threading.Event()
        real = getattr(os, name)

        def gated(*arguments: object) -> object:
            self.entered += 1
            assert self.opened.wait(10)
            if error:
                raise OSError(error, os.strerror(error))
            return real(*arguments)

        monkeypatch.setattr(disk_module.os, name, gated)


# -- where the work is done -----------------------------------------------------------------------------------------


def test_a_write_up_to_128_kib_is_in_the_file_when_submit_returns(rig: Rig) -> None:
    payload = os.urandom(INLINE_WRITE_BYTES)
    assert rig.submit(Op.WRITE, 8, len(payload) // 512, payload).status is Status.OK
    assert rig.path.read_bytes()[4096 : 4096 + len(payload)] == payload


def test_a_larger_write_and_an_unmap_go_to_a_worker(rig: Rig) -> None:
    payload = os.urandom(INLINE_WRITE_BYTES + 512)
    write = rig.submit(Op.WRITE, 0, len(payload) // 512, payload)
    unmap = rig.submit(Op.UNMAP, 4096, 8)
    assert (write.status, unmap.status) == (None, None)
    assert rig.disk.stats().outstanding == 2
    rig.wait(write, unmap)
    assert rig.path.read_bytes()[: len(payload)] == payload
    assert rig.disk.stats().outstanding == 0


def test_a_read_tries_without_waiting_and_remembers_when_it_cannot(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    real = os.preadv

    def refuse(fd: int, buffers: list[Buffer], offset: int, flags: int = 0) -> int:
        if flags:
            tries.append(flags)
            raise OSError(95, "not supported")
        return real(fd, buffers, offset)

    monkeypatch.setattr(disk_module.os, "preadv", refuse)
    rig.path.write_bytes(b"r" * BLOCKS * 512)
    for _ in range(3):
        buffer = bytearray(512)
        assert rig.do(Op.READ, 0, 1, buffer) is Status.OK
        assert buffer == b"r" * 512
    assert tries == [os.RWF_NOWAIT]


@pytest.mark.parametrize("first", [-11, 100])
def test_a_read_that_is_not_whole_at_once_is_done_by_a_worker(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    tries = []
    real = os.preadv

    def partly(fd: int, buffers: list[Buffer], offset: int, flags: int = 0) -> int:
        if not flags:
            return real(fd, buffers, offset)
        tries.append(flags)
        if first < 0:
            raise OSError(-first, "would block")
        return first

    monkeypatch.setattr(disk_module.os, "preadv", partly)
    rig.path.write_bytes(b"r" * BLOCKS * 512)
    for _ in range(2):
        buffer = bytearray(1024)
        request = rig.submit(Op.READ, 0, 2, buffer)
        assert request.status is None
        rig.wait(request)
        assert (request.status, buffer) == (Status.OK, b"r" * 1024)
    assert len(tries) == 2      # would-block is not "cannot": it is tried again


def test_memory_needs_no_worker_for_anything() -> None:
    class Nowhere:
        working = 0

        def call_soon_threadsafe(self, *call: object) -> None:
            raise AssertionError("a RAM disk used a worker")

    fd = os.memfd_create("ram", os.MFD_CLOEXEC)
    os.ftruncate(fd, INFO.size_bytes)
    ram = ram_disk(fd, INFO, Nowhere())
    payload = os.urandom(1 << 20)
    back = bytearray(1 << 20)
    for op, blocks, buffer in (
        (Op.WRITE, 2048, payload), (Op.READ, 2048, back), (Op.FLUSH, 0, None), (Op.UNMAP, 2048, None),
    ):  # fmt: skip
        request = BlockRequest(op, 0, blocks, buffer)
        ram.submit(request)
        assert request.status is Status.OK
    assert back == payload
    assert not any(os.pread(fd, 1 << 20, 0))
    os.close(fd)


# -- what the medium does ---------------------------------------------------------------------------------------------


def test_a_file_that_ends_early_is_an_io_error_not_zeros(make: Callable[..., Rig]) -> None:
    rig = make(size=4096)
    assert rig.do(Op.READ, 0, 8, bytearray(4096)) is Status.OK
    assert rig.do(Op.READ, 7, 2, bytearray(1024)) is Status.IO_ERROR
    assert rig.do(Op.READ, 100, 1, bytearray(512)) is Status.IO_ERROR
    assert rig.disk.stats().errors == 2


def test_a_write_through_a_read_only_descriptor_is_an_io_error(make: Callable[..., Rig]) -> None:
    rig = make(flags=os.O_RDONLY)
    assert rig.do(Op.WRITE, 0, 1, bytes(512)) is Status.IO_ERROR
    assert rig.do(Op.WRITE, 0, 512, bytes(512 * 512)) is Status.IO_ERROR
    assert rig.do(Op.UNMAP, 0, 8) is Status.IO_ERROR


@pytest.mark.parametrize(("blocks", "at_most"), [(1, 300), (2048, 200_000)])
def test_a_short_write_is_continued(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, blocks: int, at_most: int
) -> None:
    real = os.pwritev

    def partly(fd: int, pieces: Sequence[Buffer], at: int) -> int:
        return real(fd, [memoryview(pieces[0])[:at_most]], at)

    monkeypatch.setattr(disk_module.os, "pwritev", partly)
    payload = os.urandom(blocks * 512)
    assert rig.do(Op.WRITE, 3, blocks, payload) is Status.OK
    assert rig.path.read_bytes()[3 * 512 : (3 + blocks) * 512] == payload


def test_a_medium_that_takes_nothing_is_an_io_error(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module.os, "pwritev", lambda fd, pieces, at: 0)
    assert rig.do(Op.WRITE, 0, 1, bytes(512)) is Status.IO_ERROR


def test_an_unmap_frees_space_and_leaves_the_size(rig: Rig) -> None:
    assert rig.do(Op.WRITE, 0, 2048, b"x" * (1 << 20)) is Status.OK
    assert rig.do(Op.FLUSH) is Status.OK
    before = os.fstat(rig.fd).st_blocks
    assert rig.do(Op.UNMAP, 0, 2048) is Status.OK
    assert os.fstat(rig.fd).st_blocks < before
    assert os.fstat(rig.fd).st_size == INFO.size_bytes
    assert not any(rig.path.read_bytes())


def test_without_holes_an_unmap_writes_zeros(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class NoHoles:
        @staticmethod
        def fallocate(*arguments: int) -> int:
            calls.append(arguments)
            disk_module.ctypes.set_errno(95)
            return -1

    monkeypatch.setattr(disk_module, "_libc", NoHoles)
    rig.path.write_bytes(b"x" * INFO.size_bytes)
    assert rig.do(Op.UNMAP, 1, 4097) is Status.OK
    assert rig.do(Op.UNMAP, 8000, 1) is Status.OK
    assert len(calls) == 1
    content = rig.path.read_bytes()
    assert content[:512] == b"x" * 512
    assert not any(content[512 : 4098 * 512])
    assert content[4098 * 512 : 8000 * 512] == b"x" * (8000 - 4098) * 512
    assert not any(content[8000 * 512 : 8001 * 512])


# -- flush ----------------------------------------------------------------------------------------------------------


def test_a_flush_is_complete_only_after_a_sync_that_began_after_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, "fdatasync")
    first = rig.submit(Op.FLUSH)
    later = [rig.submit(Op.FLUSH) for _ in range(5)]
    gate.opened.set()
    rig.wait(first, *later)
    assert gate.entered == 2        # one for the first, one that all later ones share
    assert rig.done[0] is first
    assert {request.status for request in rig.done} == {Status.OK}


def test_a_failed_flush_is_never_forgotten(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, "fdatasync", error=5)
    first, second = rig.submit(Op.FLUSH), rig.submit(Op.FLUSH)
    gate.opened.set()
    rig.wait(first, second)
    monkeypatch.undo()
    third = rig.submit(Op.FLUSH)
    assert [r.status for r in (first, second, third)] == [Status.IO_ERROR] * 3
    assert gate.entered == 1
    assert rig.do(Op.WRITE, 0, 1, bytes(512)) is Status.OK
    assert rig.disk.stats().outstanding == 0


# -- bounds and counters ----------------------------------------------------------------------------------------------


def test_one_more_than_the_depth_is_busy(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, "fdatasync")
    requests = [rig.submit(Op.FLUSH) for _ in range(INFO.queue_depth + 1)]
    assert [r.status for r in requests] == [None] * INFO.queue_depth + [Status.BUSY]
    gate.opened.set()
    rig.wait(*requests)
    assert rig.do(Op.FLUSH) is Status.OK


@pytest.mark.parametrize(
    ("op", "lba", "blocks", "buffer", "status"),
    [
        (Op.READ, BLOCKS, 1, bytearray(512), Status.OUT_OF_RANGE),
        (Op.READ, -1, 1, bytearray(512), Status.OUT_OF_RANGE),
        (Op.UNMAP, BLOCKS - 1, 2, None, Status.OUT_OF_RANGE),
        (Op.READ, 0, 1, None, Status.INVALID),
        (Op.READ, 0, 1, bytes(512), Status.INVALID),
        (Op.READ, 0, 1, memoryview(bytes(512)), Status.INVALID),
        (Op.WRITE, 0, 2, bytes(512), Status.INVALID),
        (Op.WRITE, 0, 2049, bytes(2049 * 512), Status.INVALID),
        (99, 0, 0, None, Status.UNSUPPORTED),
    ],
)
@pytest.mark.parametrize("kind", ["file", "null"])
def test_faults_are_found_before_any_medium_is_touched(
    rig: Rig, kind: str, op: Op, lba: int, blocks: int, buffer: Buffer | None, status: Status
) -> None:
    disk = rig.disk if kind == "file" else NullDisk(INFO)
    request = BlockRequest(op, lba, blocks, buffer)
    disk.submit(request)
    assert request.status is status
    assert disk.stats().errors == 1


def test_counters_count(rig: Rig) -> None:
    rig.do(Op.WRITE, 0, 2, bytes(1024))
    rig.do(Op.READ, 0, 4, bytearray(2048))
    rig.do(Op.FLUSH)
    rig.do(Op.READY)
    rig.do(Op.UNMAP, 0, 1)
    stats = rig.disk.stats()
    assert (stats.reads, stats.read_bytes, stats.writes, stats.written_bytes) == (1, 2048, 1, 1024)
    assert (stats.flushes, stats.other, stats.completed, stats.errors) == (1, 2, 5, 0)
    assert stats.last_io > 0


def test_the_null_disk_reads_zeros_over_what_was_in_the_buffer() -> None:
    disk = null_disk(-1, BlockInfo(block_count=1 << 31), Loop())
    buffer = bytearray(b"x" * 1024)
    request = BlockRequest(Op.READ, (1 << 31) - 2, 2, buffer)
    disk.submit(request)
    assert (request.status, buffer) == (Status.OK, bytes(1024))


def test_a_file_disk_made_as_a_placement_makes_it_works(rig: Rig) -> None:
    disk = file_disk(rig.fd, INFO, rig.loop)
    request = BlockRequest(Op.FLUSH)
    disk.submit(request)
    rig.wait(request)
    assert request.status is Status.OK


# -- workers --------------------------------------------------------------------------------------------------------


def test_workers_start_no_thread_before_they_have_work() -> None:
    before = threading.active_count()
    workers = IoWorkers(Loop())
    assert threading.active_count() == before
    workers.close()


def test_a_bug_in_work_comes_up_in_the_loop(rig: Rig) -> None:
    def bug() -> Status:
        raise ZeroDivisionError("a driver's bug")

    rig.workers.run(bug, lambda status: None)
    with pytest.raises(ZeroDivisionError, match="a driver's bug"):
        rig.loop.run_until(lambda: False, 10)


def test_no_more_threads_than_the_limit(rig: Rig) -> None:
    lock, hold = threading.Lock(), threading.Event()
    inside, most, ended = [0], [0], []

    def work() -> Status:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            if inside[0] == 2:
                hold.set()
        assert hold.wait(10)
        with lock:
            inside[0] -= 1
        return Status.OK

    workers = IoWorkers(rig.loop, limit=2)
    for _ in range(20):
        workers.run(work, ended.append)
    assert rig.loop.run_until(lambda: len(ended) == 20, 10)
    workers.close()
    assert most == [2]
