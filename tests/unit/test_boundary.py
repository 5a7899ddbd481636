"""The monolith's boundary: a lock per device, completions and frames on the guest's own thread, panics."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from partitions.boundary import INBOX_FRAMES, BoundDisk, BoundPort, DeviceLock
from vmbus_emu.device import BlockInfo, BlockRequest, BlockStats, Buffer, Op, PortInfo, PortStats, Receiver, Status
from vmbus_emu.loop import Loop

MAC = bytes(6)


class Driver:
    """A disk that completes when the test says so, and notes whether anybody was in it twice."""

    info = BlockInfo(8)

    def __init__(self) -> None:
        self.waiting: list[BlockRequest] = []
        self.at_once = False
        self.threads: list[int] = []

    def submit(self, request: BlockRequest) -> None:
        self.threads.append(threading.get_ident())
        if self.at_once:
            request.finish(Status.OK)
        else:
            self.waiting.append(request)

    def allocate(self, nbytes: int) -> memoryview:
        return memoryview(bytearray(nbytes))

    def stats(self) -> BlockStats:
        return BlockStats(reads=7)


class Port:
    """A switch port whose other side is the test."""

    info = PortInfo(MAC, 1500)

    def __init__(self) -> None:
        self.receiver: Receiver | None = None

    def transmit(self, frame: Buffer) -> Status:
        return Status.OK

    def connect(self, receiver: Receiver, on_ready: Callable[[], None] | None = None) -> None:
        self.receiver = receiver

    def stats(self) -> PortStats:
        return PortStats(tx_frames=3)

    def arrive(self, frame: object) -> bool:
        assert self.receiver is not None
        return self.receiver(frame)  # type: ignore[arg-type]


def test_a_completion_inside_submit_reaches_the_guest_with_the_lock_free(loop: Loop) -> None:
    driver, lock = Driver(), DeviceLock("vm1.disk0")
    driver.at_once = True
    disk = BoundDisk(driver, lock, loop)
    seen: list[tuple[Status | None, bool]] = []
    disk.submit(BlockRequest(Op.READY, on_done=lambda request: seen.append((request.status, lock.lock.locked()))))
    assert seen == [(Status.OK, False)]
    assert (disk.info, disk.stats().reads, len(disk.allocate(9))) == (driver.info, 7, 9)


def test_a_workers_completion_reaches_the_guest_on_its_own_thread(loop: Loop) -> None:
    driver, lock = Driver(), DeviceLock("vm1.disk0")
    disk = BoundDisk(driver, lock, loop)
    seen: list[int] = []
    disk.submit(BlockRequest(Op.READY, on_done=lambda request: seen.append(threading.get_ident())))
    worker = threading.Thread(target=lock.call_soon_threadsafe, args=(driver.waiting[0].finish, Status.OK))
    worker.start()
    worker.join()
    assert seen == []
    assert loop.run_until(lambda: bool(seen), 5.0)
    assert seen == [threading.get_ident()]


def test_a_guest_may_submit_from_its_completion(loop: Loop) -> None:
    driver = Driver()
    driver.at_once = True
    disk = BoundDisk(driver, DeviceLock("d"), loop)
    done: list[int] = []
    disk.submit(BlockRequest(Op.READY, on_done=lambda request: disk.submit(
        BlockRequest(Op.READY, on_done=lambda inner: done.append(1)))))
    assert done == [1]


def test_frames_reach_the_guest_on_its_own_thread_in_order(loop: Loop) -> None:
    port = Port()
    bound = BoundPort(port, DeviceLock("s0"), loop)
    seen: list[tuple[int, bytes]] = []

    def receive(frame: Buffer) -> bool:
        seen.append((threading.get_ident(), bytes(frame)))
        return True

    bound.connect(receive)
    sender = threading.Thread(target=lambda: [port.arrive(bytes([n])) for n in range(100)])
    sender.start()
    sender.join()
    assert loop.run_until(lambda: len(seen) == 100, 5.0)
    assert seen == [(threading.get_ident(), bytes([n])) for n in range(100)]


def test_a_full_inbox_drops_and_one_without_a_guest_takes_nothing(loop: Loop) -> None:
    port = Port()
    bound = BoundPort(port, DeviceLock("s0"), loop)
    assert not port.arrive(b"x")
    bound.connect(lambda frame: True)
    assert [port.arrive(b"x") for _ in range(INBOX_FRAMES + 1)] == [True] * INBOX_FRAMES + [False]
    loop.step(0.0)
    assert port.arrive(b"x")


class Slow:
    """A frame during whose copying the guest's thread empties the inbox: the worst moment for the sender."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.run = run

    def __bytes__(self) -> bytes:
        self.run()
        return b"slow"


def test_no_frame_is_left_behind_when_the_guest_empties_the_inbox_meanwhile(loop: Loop) -> None:
    port = Port()
    bound = BoundPort(port, DeviceLock("s0"), loop)
    seen: list[bytes] = []

    def receive(frame: Buffer) -> bool:
        seen.append(bytes(frame))
        return True

    bound.connect(receive)
    port.arrive(b"first")
    port.arrive(Slow(lambda: loop.step(0.0)))
    assert loop.run_until(lambda: len(seen) == 2, 5.0), "nobody woke the guest for the second frame"
    assert seen == [b"first", b"slow"]
    port.arrive(b"third")
    assert loop.run_until(lambda: len(seen) == 3, 5.0)


def test_one_lock_serves_every_port_of_a_switch(loop: Loop) -> None:
    lock = DeviceLock("s0")
    bound = BoundPort(Port(), lock, loop)
    done: list[Status] = []
    with lock.lock:
        sender = threading.Thread(target=lambda: done.append(bound.transmit(b"x" * 60)))
        sender.start()
        assert not done
    sender.join()
    assert done == [Status.OK]
    assert bound.stats().tx_frames == 3


CRASH = """
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from partitions.boundary import BoundDisk, BoundPort, DeviceLock
from vmbus_emu.device import BlockRequest, Op
from vmbus_emu.loop import Loop
class Buggy:
    def submit(self, request): raise RuntimeError("the driver's own bug")
    def transmit(self, frame): raise RuntimeError("the driver's own bug")
    def connect(self, receiver, on_ready=None): pass
def completion(): raise RuntimeError("the driver's own bug")
lock = DeviceLock("vm1.disk0")
"""


@pytest.mark.parametrize("where", [
    'BoundDisk(Buggy(), lock, Loop()).submit(BlockRequest(Op.READY))',
    'BoundPort(Buggy(), lock, Loop()).transmit(b"")',
    'import threading; t = threading.Thread(target=lock.call_soon_threadsafe, args=(completion,)); t.start(); t.join()',
], ids=["submit", "transmit", "a worker's completion"])
def test_a_drivers_exception_is_the_hosts_panic(where: str) -> None:
    ended = subprocess.run([sys.executable, "-c", CRASH + where], capture_output=True, timeout=30, check=False)
    assert ended.returncode == -signal.SIGABRT
    assert b"*** HOST PANIC in vm1.disk0" in ended.stderr
    assert b"Traceback" in ended.stderr


def test_an_exception_of_the_guests_own_completion_is_no_panic(loop: Loop) -> None:
    driver = Driver()
    driver.at_once = True
    disk = BoundDisk(driver, DeviceLock("d"), loop)

    def bug(request: BlockRequest) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        disk.submit(BlockRequest(Op.READY, on_done=bug))
