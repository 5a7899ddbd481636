"""The lifeline: whole messages with descriptors, in order; and what a hostile end does to it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from vmbus_emu import lifeline
from vmbus_emu.lifeline import MALFORMED, MAX_MESSAGE, Lifeline
from vmbus_emu.loop import Loop


class Ends:
    """Two lifelines on one loop; ``far`` is also there as the bare socket."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.near_socket, self.far_socket = lifeline.pair()
        self.seen: list[tuple[dict[str, Any], list[int]]] = []
        self.ends: list[str] = []
        self.near = self.line(self.near_socket)

    def line(self, end: socket.socket) -> Lifeline:
        seen, ended = self.seen, self.ends
        return Lifeline(self.loop, end, lambda *message: seen.append(message), lambda: ended.append("end"), 1 << 20)

    def run(self, messages: int) -> None:
        assert self.loop.run_until(lambda: len(self.seen) >= messages, 5.0)

    def close(self) -> None:
        self.near.close()
        self.far_socket.close()
        for _, fds in self.seen:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self.loop.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    before = len(os.listdir("/proc/self/fd"))
    yield made
    for _, fds in made.seen:
        for fd in fds:
            os.close(fd)
    made.seen.clear()
    leaked = len(os.listdir("/proc/self/fd")) - before
    made.close()
    assert leaked <= 0


def test_a_message_arrives_whole_with_its_descriptors(ends: Ends) -> None:
    far = Lifeline(ends.loop, ends.far_socket, lambda message, fds: None, lambda: None)
    reading, writing = os.pipe()
    far.send({"t": "x", "data": b"\0" * 1000}, (writing,))
    os.close(writing)
    ends.run(1)
    message, (fd,) = ends.seen[0]
    assert message == {"t": "x", "data": b"\0" * 1000}
    os.write(fd, b"same pipe")
    assert os.read(reading, 100) == b"same pipe"
    os.close(reading)


def test_a_message_too_large_for_the_socket_travels_in_memory(ends: Ends) -> None:
    far = Lifeline(ends.loop, ends.far_socket, lambda message, fds: None, lambda: None)
    far.send({"t": "big", "data": b"x" * (4 * MAX_MESSAGE)})
    far.send({"t": "after"})
    ends.run(2)
    assert [message["t"] for message, _ in ends.seen] == ["big", "after"]
    assert ends.seen[0][0]["data"] == b"x" * (4 * MAX_MESSAGE)
    assert ends.seen[0][1] == []


def test_what_the_socket_has_no_room_for_waits_in_order_with_its_descriptors(ends: Ends) -> None:
    far = Lifeline(ends.loop, ends.far_socket, lambda message, fds: None, lambda: None)
    memory = os.memfd_create("gift")
    for number in range(300):
        far.send({"t": "n", "number": number, "pad": bytes(20_000)}, (memory,) if number % 50 == 0 else ())
    assert far.backlog > 0
    os.close(memory)
    ends.run(300)
    assert [message["number"] for message, _ in ends.seen] == list(range(300))
    assert [len(fds) for _, fds in ends.seen] == [int(number % 50 == 0) for number in range(300)]
    assert far.backlog == 0


def test_closing_forgets_what_waits_and_its_descriptors(ends: Ends) -> None:
    before = len(os.listdir("/proc/self/fd"))
    memory = os.memfd_create("gift")
    for _ in range(100):
        ends.near.send({"t": "n", "pad": bytes(20_000)}, (memory,))
    os.close(memory)
    assert len(os.listdir("/proc/self/fd")) > before
    ends.near.close()
    assert len(os.listdir("/proc/self/fd")) < before
    ends.near.send({"t": "into the void"})


def test_the_death_of_the_other_end_is_told_once(ends: Ends) -> None:
    ends.far_socket.send(msgpack.packb({"t": "last"}))
    ends.far_socket.close()
    assert ends.loop.run_until(lambda: bool(ends.ends), 5.0)
    ends.loop.step(0.0)
    assert (ends.ends, [m["t"] for m, _ in ends.seen]) == (["end"], ["last"])


def test_an_end_that_died_with_something_unread_is_still_heard_out(ends: Ends) -> None:
    ends.near.send({"t": "never read"})
    ends.far_socket.send(msgpack.packb({"t": "last"}))
    ends.far_socket.close()  # with the message in its buffer: the kernel reports a reset first
    assert ends.loop.run_until(lambda: bool(ends.ends), 5.0)
    assert [m["t"] for m, _ in ends.seen] == ["last"]


def test_drain_takes_the_last_words_of_the_dead_and_closes(ends: Ends) -> None:
    for number in range(100):
        ends.far_socket.send(msgpack.packb({"t": str(number)}))
    ends.far_socket.close()
    ends.near.drain()
    assert [m["t"] for m, _ in ends.seen] == [str(number) for number in range(100)]
    ends.near.drain()
    assert ends.ends == ["end"]


def test_drain_does_not_wait_for_somebody_else_who_holds_that_end(ends: Ends) -> None:
    ends.far_socket.send(msgpack.packb({"t": "one"}))
    ends.near.drain()
    assert [m["t"] for m, _ in ends.seen] == ["one"]
    assert ends.ends == []


@pytest.mark.parametrize("raw", [
    b"\xc1", b"\x80", b"\x01", msgpack.packb([]), msgpack.packb({"t": 1}), msgpack.packb({"t": []}), b"\x91" * 5000,
    b"\x81\xa1t", msgpack.packb({"x": 1}), b"\x81\x90\x01", msgpack.packb({"t": "in-memory"}),
], ids=repr)
def test_what_is_no_message_is_reported_as_malformed(ends: Ends, raw: bytes) -> None:
    reading, writing = os.pipe()
    socket.send_fds(ends.far_socket, [raw], [reading, writing])
    ends.far_socket.send(msgpack.packb({"t": "fine"}))
    ends.run(2)
    assert [m["t"] for m, _ in ends.seen] == [MALFORMED, "fine"]
    assert ends.seen[0][1] == []
    os.close(reading)
    os.close(writing)


def test_a_pipe_or_a_huge_file_in_place_of_memory_is_not_read(ends: Ends) -> None:
    reading, writing = os.pipe()
    huge = os.memfd_create("huge")
    os.truncate(huge, 1 << 40)
    for fd in (reading, huge):
        socket.send_fds(ends.far_socket, [msgpack.packb({"t": "in-memory"})], [fd])
    ends.run(2)
    assert [m["t"] for m, _ in ends.seen] == [MALFORMED, MALFORMED]
    for fd in (reading, writing, huge):
        os.close(fd)


def test_take_over_gives_the_bare_blocking_socket(ends: Ends) -> None:
    bare = ends.near.take_over()
    ends.far_socket.send(b"raw")
    assert bare.recv(100) == b"raw"
    ends.near.send({"t": "of no use any more"})
    bare.close()
