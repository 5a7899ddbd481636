"""Drivers with a fault over them: exactly one completion each, in order, and nothing left when it is undone."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from drivers.disk import NullDisk, ram_disk
from drivers.faulty import WAITING_FRAMES, DriverBug, install
from drivers.switch import Switch
from partitions.boundary import BoundDisk, DeviceLock
from partitions.faults import DriverFaults
from vmbus_emu.device import BlockDevice, BlockInfo, BlockRequest, Op, Status
from vmbus_emu.loop import Loop

INFO = BlockInfo(block_count=64, queue_depth=4)
MACS = [bytes((2, 0, 0, 0, 0, n)) for n in (1, 2)]
FRAME = MACS[1] + MACS[0] + b"\x08\x00data"
SLOW_S = 0.02


@pytest.fixture
def disk(loop: Loop) -> Iterator[BlockDevice]:
    fd = os.memfd_create("disk")
    os.truncate(fd, INFO.size_bytes)
    yield ram_disk(fd, INFO, loop)
    os.close(fd)


@pytest.fixture
def wire() -> tuple[Switch, Callable[[], int], list[bytes]]:
    """A switch with a sender's port and what arrives at the other: (switch, send one frame, seen)."""
    switch = Switch("s0")
    near, far = (switch.port(f"p{n}", mac) for n, mac in enumerate(MACS))
    seen: list[bytes] = []
    far.connect(lambda frame: seen.append(bytes(frame)) or True)  # type: ignore[func-returns-value]
    return switch, lambda: near.stats().tx_drops if near.transmit(FRAME) is Status.OK else -1, seen


def submit(disk: Any, op: Op = Op.READY, lba: int = 0, data: bytes | bytearray | None = None) -> BlockRequest:
    request = BlockRequest(op, lba, 0 if data is None else len(data) // 512, data)
    disk.submit(request)
    return request


def over(drivers: dict[str, Any], thread_of: Any, log: Any) -> DriverFaults:
    return DriverFaults(lambda component: drivers.get(component, {}), thread_of, log)


def overridden(driver: Any) -> set[str]:
    return {"submit", "forward"} & set(vars(driver))


# -- errors ---------------------------------------------------------------------------------------------


def test_a_share_of_the_requests_fails_the_same_ones_each_time(loop: Loop) -> None:
    def run(seed: int) -> list[Status | None]:
        disk = NullDisk(INFO)
        undo = install(disk, ("error", 0.25), loop, seed)
        statuses = [submit(disk).status for _ in range(2000)]
        undo()
        assert disk.stats().errors == statuses.count(Status.IO_ERROR)
        assert disk.stats().completed == 2000
        return statuses

    first = run(1)
    assert set(first) == {Status.OK, Status.IO_ERROR}
    assert 400 < first.count(Status.IO_ERROR) < 600
    assert run(1) == first
    assert run(2) != first


def test_a_request_that_fails_leaves_the_medium_alone(loop: Loop, disk: BlockDevice) -> None:
    undo = install(disk, ("error", 1.0), loop)
    assert submit(disk, Op.WRITE, 3, b"x" * 512).status is Status.IO_ERROR
    undo()
    data = bytearray(512)
    assert submit(disk, Op.READ, 3, data).status is Status.OK
    assert data == bytes(512)
    assert disk.stats().written_bytes == 0


# -- slow -----------------------------------------------------------------------------------------------


def test_a_slow_request_reaches_the_driver_later(loop: Loop, disk: BlockDevice) -> None:
    install(disk, ("slow", SLOW_S), loop)
    begin = time.monotonic()
    request = submit(disk)
    assert request.status is None
    assert loop.run_until(lambda: request.status is not None, 5)
    assert time.monotonic() - begin >= SLOW_S
    assert request.status is Status.OK


def test_overlapping_requests_keep_their_order_also_over_a_change(loop: Loop, disk: BlockDevice) -> None:
    install(disk, ("slow", SLOW_S), loop)
    old, new, data = b"o" * 512, b"n" * 512, bytearray(512)
    first = submit(disk, Op.WRITE, 7, old)
    install(disk, ("slow", SLOW_S / 100), loop)
    second, read = submit(disk, Op.WRITE, 7, new), submit(disk, Op.READ, 7, data)
    order: list[BlockRequest] = []
    for request in (first, second, read):
        request.on_done = order.append
    assert loop.run_until(lambda: len(order) == 3, 5)
    assert order == [first, second, read]
    assert data == new


def test_clearing_hands_over_what_waits_in_order_and_then_costs_nothing(loop: Loop, disk: BlockDevice) -> None:
    undo = install(disk, ("slow", 3600.0), loop)
    data = bytearray(512)
    requests = [submit(disk, Op.WRITE, 1, b"a" * 512), submit(disk, Op.WRITE, 1, b"b" * 512),
                submit(disk, Op.READ, 1, data)]  # fmt: skip
    assert overridden(disk) == {"submit"}
    undo()
    assert [request.status for request in requests] == [Status.OK] * 3
    assert data == b"b" * 512
    assert overridden(disk) == set()
    undo()
    assert submit(disk).status is Status.OK


def test_a_request_made_while_the_rest_is_handed_over_stays_behind_it(loop: Loop, disk: BlockDevice) -> None:
    undo = install(disk, ("slow", 3600.0), loop)
    data = bytearray(512)
    late: list[BlockRequest] = []
    first = submit(disk, Op.WRITE, 1, b"a" * 512)
    first.on_done = lambda done: late.append(submit(disk, Op.READ, 1, data))
    submit(disk, Op.WRITE, 1, b"b" * 512)
    undo()
    assert [request.status for request in late] == [Status.OK]
    assert data == b"b" * 512


def test_the_depth_holds_also_for_what_waits(loop: Loop, disk: BlockDevice) -> None:
    undo = install(disk, ("slow", 3600.0), loop)
    requests = [submit(disk) for _ in range(INFO.queue_depth + 1)]
    assert [request.status for request in requests] == [None] * INFO.queue_depth + [Status.BUSY]
    undo()


def test_timers_that_run_out_after_clearing_do_nothing(loop: Loop, disk: BlockDevice) -> None:
    undo = install(disk, ("slow", SLOW_S), loop)
    done = submit(disk)
    undo()
    again = install(disk, ("slow", 3600.0), loop)
    reached: list[bool] = []
    loop.call_later(2 * SLOW_S, reached.append, True)
    assert loop.run_until(lambda: bool(reached), 5)
    assert done.status is Status.OK
    assert disk.stats().completed == 1
    again()


def test_a_replaced_faults_undo_leaves_its_successor(loop: Loop, disk: BlockDevice) -> None:
    first = install(disk, ("error", 0.5), loop)
    second = install(disk, ("error", 1.0), loop)
    first()
    assert submit(disk).status is Status.IO_ERROR
    second()
    assert submit(disk).status is Status.OK
    assert overridden(disk) == set()


def test_two_faults_add_up_and_go_one_by_one(loop: Loop, disk: BlockDevice) -> None:
    slow, error = install(disk, ("slow", 3600.0), loop), install(disk, ("error", 1.0), loop)
    assert submit(disk).status is Status.IO_ERROR
    error()
    waiting = submit(disk)
    assert waiting.status is None
    slow()
    assert waiting.status is Status.OK
    assert overridden(disk) == set()


def test_in_the_monolith_a_thread_brings_the_request_back_to_the_device(loop: Loop) -> None:
    lock = DeviceLock("d")
    disk = NullDisk(INFO)
    with lock.lock:
        undo = install(disk, ("slow", SLOW_S), lock)
    bound = BoundDisk(disk, lock, loop)
    done: list[tuple[int, BlockRequest]] = []
    for lba in range(3):
        bound.submit(BlockRequest(Op.READY, lba, on_done=lambda r: done.append((threading.get_ident(), r))))
    assert loop.run_until(lambda: len(done) == 3, 5)
    assert [(thread, request.lba) for thread, request in done] == [(threading.get_ident(), lba) for lba in range(3)]
    with lock.lock:
        undo()


# -- bugs -----------------------------------------------------------------------------------------------


def test_a_bug_rises_out_of_the_next_request(loop: Loop, disk: BlockDevice) -> None:
    undo = install(disk, ("panic", None), loop)
    with pytest.raises(DriverBug):
        submit(disk)
    undo()
    assert submit(disk).status is Status.OK


def test_a_hanging_driver_keeps_the_caller_and_its_lock_but_not_who_only_asks(loop: Loop) -> None:
    lock, other = DeviceLock("d"), DeviceLock("e")
    disks = {"d": (NullDisk(INFO), lock), "e": (NullDisk(INFO), other)}
    lines: list[str] = []
    faults = over({"storvsp": disks}, lambda vm: None, lines.append)
    faults.handle({"t": "fault", "fault": "hang", "value": None, "components": ["storvsp"]})
    caught = threading.Thread(target=BoundDisk(disks["d"][0], lock, loop).submit, args=(BlockRequest(Op.READY),),
                              daemon=True)  # fmt: skip
    caught.start()
    deadline = time.monotonic() + 5
    while not lock.lock.locked():
        assert time.monotonic() < deadline
    faults.handle({"t": "fault", "clear": True})
    assert lines == ["d hangs: its faults stay as they are"]
    assert caught.is_alive()
    assert submit(disks["e"][0]).status is Status.OK  # where no request had come, the fault is gone


# -- the network ----------------------------------------------------------------------------------------


def test_a_share_of_the_frames_is_lost_and_counted(loop: Loop, wire: Any) -> None:
    switch, send, seen = wire
    undo = install(switch, ("drop", 0.5), loop)
    drops = [send() for _ in range(1000)][-1]
    assert 400 < drops < 600
    assert len(seen) == 1000 - drops
    undo()
    assert send() == drops
    assert overridden(switch) == set()


def test_slow_frames_arrive_later_in_order_and_the_senders_buffer_is_its_own_again(loop: Loop) -> None:
    switch = Switch("s0")
    near, far = (switch.port(f"p{n}", mac) for n, mac in enumerate(MACS))
    seen: list[int] = []
    far.connect(lambda frame: seen.append(frame[-1]) or True)  # type: ignore[func-returns-value]
    install(switch, ("slow", SLOW_S), loop)
    buffer = bytearray(FRAME)
    begin = time.monotonic()
    for number in range(5):
        buffer[-1] = number
        assert near.transmit(buffer) is Status.OK
    assert not seen
    assert loop.run_until(lambda: len(seen) == 5, 5)
    assert time.monotonic() - begin >= SLOW_S
    assert seen == [0, 1, 2, 3, 4]


def test_a_slow_switch_holds_so_many_frames_and_no_more(loop: Loop, wire: Any) -> None:
    switch, send, seen = wire
    undo = install(switch, ("slow", 3600.0), loop)
    assert [send() for _ in range(WAITING_FRAMES + 3)][-1] == 3
    undo()
    assert len(seen) == WAITING_FRAMES


def test_a_bug_in_the_switch(loop: Loop, wire: Any) -> None:
    switch, send, _ = wire
    install(switch, ("panic", None), loop)
    with pytest.raises(DriverBug):
        send()


@pytest.mark.parametrize(("make", "fault"), [(lambda: NullDisk(INFO), "drop"), (lambda: Switch("s"), "error")])
def test_a_fault_of_another_kind_of_driver_is_refused(loop: Loop, make: Callable[[], Any], fault: str) -> None:
    driver = make()
    with pytest.raises(ValueError, match=fault):
        install(driver, (fault, 0.5), loop)
    assert overridden(driver) == set()


# -- the machine's messages -----------------------------------------------------------------------------


def test_a_message_reaches_the_drivers_of_the_components_it_names(loop: Loop) -> None:
    disks = {name: (NullDisk(INFO), loop) for name in ("vm1.disk0", "vm2.disk0")}
    switch = Switch("s0")
    faults = over({"storvsp": disks, "netvsp": {"s0": (switch, loop)}}, lambda vm: None, print)
    faults.handle({"t": "fault", "fault": "error", "value": 1.0, "components": ["storvsp"]})
    assert [submit(driver).status for driver, _ in disks.values()] == [Status.IO_ERROR] * 2
    assert not overridden(switch)
    faults.handle({"t": "fault", "fault": "slow", "value": 1.0, "components": ["netvsp"]})
    assert overridden(switch)
    faults.handle({"t": "fault", "clear": True, "components": ["storvsp"]})
    assert [submit(driver).status for driver, _ in disks.values()] == [Status.OK] * 2
    assert overridden(switch)
    faults.handle({"t": "fault", "clear": True, "fault": "drop"})
    assert overridden(switch)
    faults.handle({"t": "fault", "clear": True})
    assert not overridden(switch)


def test_a_fault_that_is_no_drivers_is_the_processes(monkeypatch: pytest.MonkeyPatch, loop: Loop) -> None:
    done: list[tuple[Any, ...]] = []
    monkeypatch.setattr("vmbus_emu.wreck.carry_out", lambda *fault: done.append(fault))
    guests = {"vm1": loop}
    disks = {"d": (NullDisk(INFO), loop)}
    faults = over({"storvsp": disks, "netvsp": {}}, guests.get, print)
    for fault, component in (("segv", "storvsp"), ("panic", "hypervisor"), ("panic", "netvsp"), ("slow", "netvsp")):
        faults.handle({"t": "fault", "fault": fault, "value": 1, "components": [component]})
    assert done == [("segv", 1), ("panic", 1), ("panic", 1)]  # a component without drivers has none to be slow
    assert not overridden(disks["d"][0])
    faults.handle({"t": "fault", "fault": "panic", "value": None, "components": ["vm1"]})
    assert len(done) == 3  # a VM's fault is carried out on its own thread
    loop.step(0.0)
    assert done[3:] == [("panic", None)]
