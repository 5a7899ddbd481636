"""The inbox for descriptors: what is kept, what is handed over, what is closed; and where a node has it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest

from vmbus_emu import lifeline
from vmbus_emu.inbox import DescriptorInbox
from vmbus_emu.lifeline import Lifeline
from vmbus_emu.loop import Loop
from vmbus_emu.node import Birth, Node

GPA = 1 << 32
MEMORY = {"t": "memory", "owner": 2, "gpa": GPA, "pages": 16, "access": 3}


class Bench:
    """An inbox, the hypervisor's end of its socket, and pipes: one reads end-of-file when its descriptor is closed."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.hypervisor, end = lifeline.pair()
        self.inbox = DescriptorInbox(self.loop, end)
        self.readers: list[int] = []

    def send(self, message: Any, count: int = 1) -> int:
        """Send ``message`` with ``count`` descriptors; the reading end of the pipe whose writing end they are."""
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.readers.append(reading)
        raw = message if isinstance(message, bytes) else msgpack.packb(message)
        socket.send_fds(self.hypervisor, [raw], [writing] * count)
        os.close(writing)
        return reading

    def close(self) -> None:
        self.inbox.close()
        self.hypervisor.close()
        self.loop.close()
        for fd in self.readers:
            os.close(fd)


def closed(reading: int) -> bool:
    """Whether nobody holds the writing end any more."""
    try:
        return os.read(reading, 1) == b""
    except BlockingIOError:
        return False


def writes_to(fd: int | None, reading: int) -> bool:
    """Whether ``fd`` is the writing end of that pipe; closes it."""
    assert fd is not None
    os.write(fd, b"!")
    os.close(fd)
    return os.read(reading, 2) == b"!"


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.mark.parametrize(("message", "take"), [
    (MEMORY, lambda inbox: inbox.take_memory(2, GPA)),
    ({"t": "doorbell", "port": 9}, lambda inbox: inbox.take_port(9)),
    ({"t": "doorbell", "connection": 9}, lambda inbox: inbox.take_connection(9)),
])
@pytest.mark.parametrize("noticed", [True, False])
def test_what_arrived_is_handed_over_once(
    bench: Bench, message: Any, take: Callable[[DescriptorInbox], int | None], noticed: bool
) -> None:
    assert take(bench.inbox) is None
    reading = bench.send(message)
    if noticed:
        bench.loop.step(0.0)
    fd = take(bench.inbox)
    assert take(bench.inbox) is None
    bench.inbox.close()
    assert not closed(reading), "it is the taker's"
    assert writes_to(fd, reading)
    assert closed(reading)
    assert bench.inbox.malformed == 0


def test_each_descriptor_has_its_own_key(bench: Bench) -> None:
    sent = [
        bench.send(message)
        for message in (
            MEMORY, {**MEMORY, "owner": 3}, {**MEMORY, "gpa": 2 * GPA}, {"t": "doorbell", "port": 2},
            {"t": "doorbell", "connection": 2},
        )
    ]
    inbox = bench.inbox
    taken = [
        inbox.take_memory(2, GPA), inbox.take_memory(3, GPA), inbox.take_memory(2, 2 * GPA), inbox.take_port(2),
        inbox.take_connection(2),
    ]
    assert all(writes_to(fd, reading) for fd, reading in zip(taken, sent, strict=True))


def test_a_later_descriptor_of_the_same_key_replaces_and_closes_the_older(bench: Bench) -> None:
    older, later = bench.send(MEMORY), bench.send({**MEMORY, "access": 1})
    bench.loop.step(0.0)
    assert closed(older)
    assert writes_to(bench.inbox.take_memory(2, GPA), later)


@pytest.mark.parametrize("message", [
    b"\xc1", b"\x81", 7, [1], {}, {"t": 3}, {"t": "memory"}, {**MEMORY, "owner": "2"}, {**MEMORY, "gpa": None},
    {key: value for key, value in MEMORY.items() if key != "access"}, {"t": "doorbell"}, {"t": "doorbell", "port": b""},
    {"t": "bell", "port": 1}, {**MEMORY, "more": bytes(300)},
])
def test_a_malformed_message_is_counted_and_its_descriptors_closed(bench: Bench, message: Any) -> None:
    reading = bench.send(message, 3)
    good = bench.send(MEMORY)
    bench.loop.step(0.0)
    assert closed(reading)
    assert bench.inbox.malformed == 1
    assert writes_to(bench.inbox.take_memory(2, GPA), good)


@pytest.mark.parametrize("count", [0, 2, 8, 9, 100])
def test_a_message_has_exactly_one_descriptor(bench: Bench, count: int) -> None:
    reading = bench.send(MEMORY, count)
    assert bench.inbox.take_memory(2, GPA) is None
    assert closed(reading)
    assert bench.inbox.malformed == 1


def test_what_the_hypervisor_sent_before_it_died_can_still_be_taken(bench: Bench) -> None:
    reading = bench.send(MEMORY)
    bench.hypervisor.close()
    bench.loop.step(0.0)
    calls: list[int] = []
    bench.loop.call_later(0.0, calls.append, 1)
    assert bench.loop.run_until(lambda: bool(calls), 5.0), "its end-of-file does not keep the loop busy"
    assert bench.inbox.take_port(1) is None
    assert writes_to(bench.inbox.take_memory(2, GPA), reading)


def test_closing_closes_what_nobody_took(bench: Bench) -> None:
    reading, late = bench.send(MEMORY), bench.send({"t": "doorbell", "port": 1})
    bench.inbox.take_port(5)
    bench.inbox.close()
    bench.inbox.close()
    assert closed(reading)
    assert closed(late)
    assert bench.inbox.take_memory(2, GPA) is None
    with pytest.raises(BrokenPipeError):
        bench.hypervisor.send(b"x")


# -- in a node --------------------------------------------------------------------------------------------


class Component:
    """Ends its node's loop when it is started."""

    seen: tuple[Any, ...] = ()

    def __init__(self, node: Node) -> None:
        self._node = node

    def start(self, config: Any) -> None:
        Component.seen = (config, self._node.io_memory)
        self._node.loop.stop()

    def handle(self, message: Any, fds: list[int]) -> None:
        raise AssertionError(message)

    def stats(self) -> dict[str, dict[str, Any]]:
        return {}


def node(end: socket.socket, descriptors: socket.socket | None) -> Node:
    return Node(Birth("m", "vm1", f"{__name__}:Component", "/", 1, 1), end, descriptors)


def test_descriptors_that_come_with_the_start_are_there_before_the_component_starts() -> None:
    near, far = lifeline.pair()
    made = node(far, None)
    machine = Lifeline(made.loop, near, lambda message, fds: None, lambda: None)
    files = [os.memfd_create(name) for name in ("storage", "network")]
    machine.send({"t": "start", "config": "config"}, files)
    assert made.io_memory == ()
    made.run()
    config, received = Component.seen
    assert config == "config"
    assert [os.fstat(fd).st_ino for fd in received] == [os.fstat(fd).st_ino for fd in files]
    for fd in (*files, *received):
        os.close(fd)
    machine.close()
    made.lifeline.close()
    made.loop.close()


def test_a_node_has_one_inbox_if_anybody_can_hand_it_anything() -> None:
    near, far = lifeline.pair()
    hypervisor, descriptors = lifeline.pair()
    made, bare = node(far, descriptors), node(near, None)
    inbox = made.inbox
    assert made.inbox is inbox
    with pytest.raises(RuntimeError, match="vm1 has no descriptor socket"):
        _ = bare.inbox
    inbox.close()
    hypervisor.close()
    for each in (made, bare):
        each.lifeline.close()
        each.loop.close()
