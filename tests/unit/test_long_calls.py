"""Which threads are inside a driver: by their stacks, without a word of theirs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from partitions.boundary import BoundDisk, BoundPort, DeviceLock
from partitions.long_calls import LongCalls, driver_calls
from vmbus_emu.device import BlockRequest, Op, Status
from vmbus_emu.loop import Loop


class Gate:
    """A place in code where a thread stays until the test lets it go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def stay(self, *arguments: Any) -> Any:
        self.reached.set()
        assert self.opened.wait(20)
        return Status.OK


class Driver:
    """A disk and a port, both of which call ``inside`` and then are done."""

    def __init__(self, inside: Callable[..., Any]) -> None:
        self.inside = inside

    def submit(self, request: BlockRequest) -> None:
        self.inside()
        request.finish(Status.OK)

    def transmit(self, frame: bytes) -> Any:
        return self.inside()

    def connect(self, receiver: Any, on_ready: Any = None) -> None: ...


@pytest.fixture(autouse=True)
def _own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests leave threads that hang in drivers for ever: that is what they are about."""
    others = set(threading.enumerate())

    def enumerate_() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one not in others]

    own = SimpleNamespace(enumerate=enumerate_, get_ident=threading.get_ident)
    monkeypatch.setattr("partitions.long_calls.threading", own)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.opened.set()


def thread(run: Callable[[], Any]) -> threading.Thread:
    made = threading.Thread(target=run, daemon=True)
    made.start()
    return made


def request(done: Callable[[BlockRequest], Any] = lambda finished: None) -> BlockRequest:
    return BlockRequest(Op.READY, on_done=done)


def bound(inside: Callable[..., Any], loop: Loop, lock: DeviceLock | None = None) -> BoundDisk:
    driver: Any = Driver(inside)
    return BoundDisk(driver, lock or DeviceLock("vm1.disk0"), loop)


@pytest.mark.parametrize("way", ["disk", "port", "completion"])
def test_a_thread_that_is_in_a_driver_is_found(loop: Loop, gate: Gate, way: str) -> None:
    lock = DeviceLock("d")
    port: Any = Driver(gate.stay)
    run: Callable[[], Any] = {
        "disk": lambda: bound(gate.stay, loop, lock).submit(request()),
        "port": lambda: BoundPort(port, lock, loop).transmit(b""),
        "completion": lambda: lock.call_soon_threadsafe(gate.stay),
    }[way]
    guest = thread(run)
    assert gate.reached.wait(20)
    assert list(driver_calls()) == [guest.native_id]
    gate.opened.set()
    guest.join(20)
    assert driver_calls() == {}


def test_who_waits_for_the_lock_is_not_in_the_driver(loop: Loop, gate: Gate) -> None:
    lock = DeviceLock("d")
    disk = bound(gate.stay, loop, lock)
    first = thread(lambda: disk.submit(request()))
    assert gate.reached.wait(20)
    begun = threading.Event()

    def second() -> None:
        begun.set()
        disk.submit(request())

    other = thread(second)
    assert begun.wait(20)
    assert [list(driver_calls()) for _ in range(50)] == [[first.native_id]] * 50
    assert other.is_alive()
    gate.opened.set()
    first.join(20)
    other.join(20)


def test_a_guests_own_code_is_not_the_drivers_wherever_it_is_called_from(loop: Loop, gate: Gate) -> None:
    disk = bound(lambda: None, loop)
    guest = thread(lambda: disk.submit(request(gate.stay)))     # a completion inside submit
    assert gate.reached.wait(20)
    assert driver_calls() == {}
    gate.opened.set()
    guest.join(20)


def test_a_request_out_of_a_completion_is_in_the_driver_again(loop: Loop, gate: Gate) -> None:
    disk, other = bound(lambda: None, loop), bound(gate.stay, loop)
    guest = thread(lambda: disk.submit(request(lambda finished: other.submit(request()))))
    assert gate.reached.wait(20)
    assert list(driver_calls()) == [guest.native_id]
    gate.opened.set()
    guest.join(20)


def test_a_receiver_that_hangs_is_the_guests(loop: Loop, gate: Gate) -> None:
    port: Any = Driver(lambda: Status.OK)
    bound_port = BoundPort(port, DeviceLock("s0"), loop)
    bound_port.connect(gate.stay)
    bound_port._arrived(b"frame")
    guest = thread(bound_port._drain)
    assert gate.reached.wait(20)
    assert driver_calls() == {}
    gate.opened.set()
    guest.join(20)


def test_a_call_that_lasts_has_one_number_in_all_answers_and_the_next_another(loop: Loop) -> None:
    sent: list[dict[str, Any]] = []
    calls = LongCalls(loop, sent.append)

    def answer() -> Any:
        before = len(sent)
        calls.answer(before + 100)
        assert loop.run_until(lambda: len(sent) > before, 20)
        assert (sent[-1]["t"], sent[-1]["id"]) == ("beat", before + 100)
        return sent[-1]["calls"]

    gates = Gate(), Gate()
    passed = [False]

    def inside() -> None:
        gate = gates[passed[0]]
        passed[0] = True
        gate.stay()

    disk = bound(inside, loop)

    def both() -> None:
        disk.submit(request())
        disk.submit(request())

    assert answer() == []
    guest = thread(both)
    assert gates[0].reached.wait(20)
    assert [answer() for _ in range(3)] == [[[guest.native_id, 1]]] * 3
    gates[0].opened.set()
    assert gates[1].reached.wait(20)
    assert [answer() for _ in range(2)] == [[[guest.native_id, 2]]] * 2
    gates[1].opened.set()
    guest.join(20)
    assert answer() == []
    assert calls._long == {}


def test_a_call_that_is_over_in_a_moment_is_not_told(loop: Loop, gate: Gate) -> None:
    sent: list[dict[str, Any]] = []
    guest = thread(lambda: bound(gate.stay, loop).submit(request()))
    assert gate.reached.wait(20)
    LongCalls(loop, sent.append).answer(3)
    assert sent == []                               # it looks again
    gate.opened.set()
    guest.join(20)
    assert loop.run_until(lambda: bool(sent), 20)
    assert sent == [{"t": "beat", "id": 3, "calls": []}]
