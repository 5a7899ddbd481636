"""Both ends of a ring channel, each on its own loop, as two processes would run them.

Long, because all of it runs on one pair of ends.
"""

from __future__ import annotations

import gc
import os
import struct
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.rings import SharedMemory, ring_ends
from vmbus_emu.device import Memory, fill
from vmbus_emu.guest_ring import GuestRing
from vmbus_emu.host_ring import HostRing
from vmbus_emu.loop import Loop
from vmbus_emu.memory import PAGE, Pool
from vmbus_emu.polling import ADAPTIVE, ALWAYS, NEVER, Poller
from vmbus_emu.protocol.packets import COMPLETION, COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND
from vmbus_emu.ring import reset

BUFFER_PAGES, RESERVE_PAGES = 64, 16
ROUNDS = 200
BAD_INDEXES = (4, 1 << 20, 0xFFFF_FFFF)


class Pair:
    def __init__(self, mode: str, ring_pages: int = 2) -> None:
        self.guest_loop, self.host_loop = Loop(), Loop()
        self.guest_poller, self.host_poller = Poller(self.guest_loop, mode), Poller(self.host_loop, mode)
        self.memory = SharedMemory(2 * ring_pages + BUFFER_PAGES + RESERVE_PAGES)
        up, down = range(ring_pages), range(ring_pages, 2 * ring_pages)
        self.up_words = self.memory.host.view[:PAGE].cast("I")
        self.down_words = self.memory.host.view[ring_pages * PAGE : (ring_pages + 1) * PAGE].cast("I")
        to_host, to_guest = self.memory.guest.ring(up), self.memory.guest.ring(down)
        reset(to_host)
        reset(to_guest)
        guest_bell, rings_guest = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        host_bell, rings_host = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.buffers = Pool(self.memory.guest, 2 * ring_pages, BUFFER_PAGES)
        self.reserve = Pool(self.memory.guest, 2 * ring_pages + BUFFER_PAGES, RESERVE_PAGES)
        self.host = HostRing(
            self.host_loop, self.host_poller, self.memory.host.ring(up), self.memory.host.ring(down), host_bell,
            rings_guest, self.memory.host, 1,
        )
        self.guest = GuestRing(
            self.guest_loop, self.guest_poller, to_guest, to_host, guest_bell, rings_host, self.memory.guest,
            (self.reserve,),
        )
        self.answers: list[int] = []
        self.reasons: list[str] = []
        self.rooms = 0
        self.on_answer: Callable[[int], Any] = lambda transaction_id: None
        self.guest.on_packet = self._answered
        self.guest.on_failed = self.reasons.append
        self.guest.on_room = self._room
        self.areas: dict[int, Memory] = {}
        self.serve: Callable[[int, Memory | None], Any] = lambda transaction_id, data: None
        self.host.on_packet = self._requested

    def _answered(self, kind: int, flags: int, transaction_id: int, message: bytes, data: Memory | None) -> None:
        self.answers.append(transaction_id)
        self.on_answer(transaction_id)

    def _requested(self, kind: int, flags: int, transaction_id: int, message: bytes, data: Memory | None) -> None:
        if data is not None:
            self.areas[transaction_id] = data
        self.serve(transaction_id, data)
        self.host.send(COMPLETION, 0, transaction_id, b"")

    def _room(self) -> None:
        self.rooms += 1

    def ask(self, transaction_id: int, nbytes: int = 8) -> bool:
        return self.guest.send(IN_BAND, COMPLETION_REQUESTED, transaction_id, bytes(nbytes))

    def write(self, transaction_id: int, data: Any) -> bool:
        return self.guest.send(GPA_DIRECT, COMPLETION_REQUESTED, transaction_id, bytes(8), data)

    def read(self, transaction_id: int, room: Any) -> bool:
        return self.guest.send(GPA_DIRECT, COMPLETION_REQUESTED, transaction_id, bytes(8), None, room)

    def settle(self, rounds: int = ROUNDS) -> None:
        for _ in range(rounds):
            self.guest_loop.step(0.0)
            self.host_loop.step(0.0)

    def until(self, condition: Callable[[], bool]) -> None:
        """As two processes would run: each sleeps as long as it likes, if only for little at a time."""
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            self.guest_loop.step(0.002)
            self.host_loop.step(0.002)

    def close(self) -> None:
        self.guest.close()
        self.host.close()
        self.guest_loop.close()
        self.host_loop.close()
        self.memory.close()


@pytest.fixture(params=[NEVER, ADAPTIVE, ALWAYS])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(request.param)
    yield made
    made.close()


@pytest.fixture
def adaptive() -> Iterator[Pair]:
    made = Pair(ADAPTIVE)
    yield made
    made.close()


# -- requests and answers ----------------------------------------------------------------------------------------


def test_requests_are_answered_in_order(pair: Pair) -> None:
    for number in range(20):
        assert pair.ask(number)
    pair.until(lambda: len(pair.answers) == 20)
    assert pair.answers == list(range(20))
    assert pair.guest_poller.missed_doorbells == pair.host_poller.missed_doorbells == 0


def test_one_request_at_a_time_from_sleep(pair: Pair) -> None:
    """Each end falls asleep before the other acts: every step needs its doorbell."""
    for number in range(50):
        assert pair.ask(number)
        pair.until(lambda number=number: pair.answers[-1:] == [number])  # type: ignore[misc]
    assert pair.guest_poller.missed_doorbells == pair.host_poller.missed_doorbells == 0


def test_more_than_the_ring_holds(pair: Pair) -> None:
    """Whenever there is no room ``on_room`` says when to go on: nothing else does here, no answer and no timer."""
    todo = list(range(500))

    def go_on() -> None:
        while todo and pair.ask(todo[0], 100):
            todo.pop(0)

    pair.guest.on_room = go_on
    go_on()
    assert todo
    pair.until(lambda: len(pair.answers) == 500)
    assert pair.answers == list(range(500))
    assert pair.guest_poller.missed_doorbells == pair.host_poller.missed_doorbells == 0


@pytest.mark.parametrize("mode", [NEVER, ADAPTIVE])
def test_room_made_before_the_requests_are_public_is_not_overlooked(mode: str) -> None:
    """The host reckons with the public write index, the guest with its own: the host finds that there was room all
    the time, and does not ring. So whoever waits must look once more when its index is public."""
    pair = Pair(mode)
    assert pair.ask(1, 400 - 24)
    pair.guest_loop.step(0.0)
    pair.host.drain()                       # taken, but the room is not given back yet
    assert pair.ask(2, 3600 - 24)           # not public yet
    assert not pair.ask(3, 200 - 24)
    pair.host_loop.step(0.0)                # gives the first request's room back
    assert pair.rooms == 0
    pair.settle()
    assert pair.rooms >= 1
    assert pair.ask(3, 200 - 24)
    pair.close()


def test_a_doorbell_per_batch(adaptive: Pair) -> None:
    pair = adaptive
    pair.host.sleep()
    pair.guest.sleep()
    for number in range(10):
        assert pair.ask(number)
    pair.guest_loop.step(0.0)
    assert pair.guest.doorbells == 1
    assert struct.unpack_from("<Q", pair.memory.host.view, 4088) == (1,)    # a guest counts them for its ring
    pair.guest.sleep()
    pair.host.drain()
    pair.host_loop.step(0.0)
    assert pair.host.doorbells == 1
    assert struct.unpack_from("<Q", pair.memory.host.view, 2 * PAGE + 4088) == (0,)
    pair.settle()
    assert pair.answers == list(range(10))


def test_no_doorbell_for_who_is_awake(adaptive: Pair) -> None:
    pair = adaptive
    for number in range(10):
        assert pair.ask(number)
        pair.guest_loop.step(0.0)
        pair.host_loop.step(0.0)
    pair.settle()
    assert (pair.guest.doorbells, pair.host.doorbells) == (0, 0)
    assert pair.answers == list(range(10))


# -- data --------------------------------------------------------------------------------------------------------


def test_a_buffer_of_the_region_is_used_in_place(adaptive: Pair) -> None:
    pair = adaptive
    out, back = pair.buffers.allocate(5000), pair.buffers.allocate(9000)
    assert out is not None
    assert back is not None
    out[:] = b"\xa5" * 5000
    pair.serve = lambda number, data: fill(data, b"\x5a" * 9000) if number == 2 and data is not None else None
    assert pair.write(1, out)
    assert pair.read(2, back)
    pair.settle()
    assert pair.answers == [1, 2]
    assert bytes(pair.areas[1]) == b"\xa5" * 5000
    assert bytes(back) == b"\x5a" * 9000
    out[0] = 1
    assert bytes(pair.areas[1])[0] == 1         # the very memory
    assert pair.guest.copies == 0
    assert pair.reserve.free_pages == RESERVE_PAGES


@pytest.mark.parametrize("buffer", [bytes, bytearray, lambda data: memoryview(bytearray(data))[:]])
def test_any_other_buffer_to_be_written_is_copied(adaptive: Pair, buffer: Callable[[bytes], Any]) -> None:
    pair = adaptive
    pair.serve = lambda number, data: written.append(bytes(data)) if data is not None else None
    written: list[bytes] = []
    assert pair.write(1, buffer(b"\xa5" * 5000))
    assert pair.reserve.free_pages == RESERVE_PAGES - 2
    pair.settle()
    assert written == [b"\xa5" * 5000]
    assert pair.guest.copies == 1
    assert pair.reserve.free_pages == RESERVE_PAGES


def test_any_other_buffer_to_be_read_into_is_copied_back_before_the_answer_is_seen(adaptive: Pair) -> None:
    pair = adaptive
    back = bytearray(5000)
    seen: list[bytes] = []
    pair.serve = lambda number, data: fill(data, b"\x5a" * 5000) if data is not None else None
    pair.on_answer = lambda number: seen.append(bytes(back))
    assert pair.read(1, back)
    assert back == bytes(5000)
    pair.settle()
    assert seen == [b"\x5a" * 5000]
    assert pair.reserve.free_pages == RESERVE_PAGES


def test_only_the_answer_to_a_copied_request_is_copied_back(adaptive: Pair) -> None:
    pair = adaptive
    pair.host.on_packet = lambda *packet: None
    back = bytearray(PAGE)
    assert pair.read(1, back)
    pair.settle()
    pair.memory.host.view[-RESERVE_PAGES * PAGE :] = b"\xee" * (RESERVE_PAGES * PAGE)
    for kind, number in ((COMPLETION, 2), (IN_BAND, 1)):
        assert pair.host.send(kind, 0, number, b"")
    pair.settle()
    assert back == bytes(PAGE)
    assert pair.host.send(COMPLETION, 0, 1, b"")
    assert pair.host.send(COMPLETION, 0, 1, b"")        # once is enough
    pair.settle()
    assert back == b"\xee" * PAGE
    assert pair.reserve.free_pages == RESERVE_PAGES
    assert pair.answers == [2, 1, 1, 1]                 # who asked for what is for the owner to judge


def test_a_request_that_is_answered_in_the_turn_that_sent_it(adaptive: Pair) -> None:
    """The host, on another core, is quick: its answer stands behind the packets that are being handled."""
    pair = adaptive
    back = bytearray(5000)
    seen: list[bytes] = []
    pair.serve = lambda number, data: fill(data, b"\x5a" * 5000) if data is not None else None

    def answered(number: int) -> None:
        seen.append(bytes(back))
        if number == 1:
            pair.host.publish()
            assert pair.read(2, back)
            pair.host.drain()
            pair.host.publish()

    pair.on_answer = answered
    assert pair.ask(1)
    pair.settle()
    assert pair.answers == [1, 2]
    assert seen == [bytes(5000), b"\x5a" * 5000]
    assert pair.reserve.free_pages == RESERVE_PAGES


def test_an_answer_that_comes_before_its_request(adaptive: Pair) -> None:
    """A host that guesses: the copy's pages come back all the same, and nothing is written into the buffer later."""
    pair = adaptive
    back = bytearray(PAGE)
    pair.host.on_packet = lambda *packet: None
    pair.on_answer = lambda number: pair.read(2, back) if number == 1 else None
    for number in (1, 2):
        assert pair.host.send(COMPLETION, 0, number, b"")
    pair.host_loop.step(0.0)
    pair.settle(5)
    assert pair.answers == [1, 2]
    assert pair.reserve.free_pages == RESERVE_PAGES
    kept = bytes(back)
    pair.memory.host.view[-RESERVE_PAGES * PAGE :] = b"\xee" * (RESERVE_PAGES * PAGE)
    assert pair.host.send(COMPLETION, 0, 2, b"")
    pair.settle()
    assert back == kept


def test_no_room_for_a_copy_is_no_room(adaptive: Pair) -> None:
    pair = adaptive
    pair.host.on_packet = lambda *packet: None
    assert not pair.write(1, bytes((RESERVE_PAGES + 1) * PAGE))
    for number in range(RESERVE_PAGES // 4):
        assert pair.write(number, bytes(4 * PAGE))
    assert not pair.write(99, bytes(1))
    assert pair.host.send(COMPLETION, 0, 0, b"")
    pair.settle()
    assert pair.write(99, bytes(1))
    assert pair.guest.copies == RESERVE_PAGES // 4 + 1


def test_no_room_in_the_ring_gives_the_copys_pages_back(adaptive: Pair) -> None:
    pair = adaptive
    while pair.ask(1, 0):
        pass
    free = pair.reserve.free_pages
    assert not pair.write(2, bytes(PAGE))
    assert pair.reserve.free_pages == free == RESERVE_PAGES


# -- what the host may do to the guest ---------------------------------------------------------------------------


@pytest.mark.parametrize("index", BAD_INDEXES)
def test_a_bad_write_index_from_the_host(adaptive: Pair, index: int) -> None:
    adaptive.down_words[0] = index
    adaptive.settle(5)
    assert len(adaptive.reasons) == 1
    assert "write_index" in adaptive.reasons[0]
    assert not adaptive.ask(1)


@pytest.mark.parametrize("index", BAD_INDEXES)
def test_a_bad_read_index_from_the_host(adaptive: Pair, index: int) -> None:
    adaptive.up_words[1] = index
    assert not adaptive.ask(1)
    assert len(adaptive.reasons) == 1
    assert "read_index" in adaptive.reasons[0]
    adaptive.settle(5)


@pytest.mark.parametrize("index", BAD_INDEXES)
def test_a_bad_read_index_met_while_sending_a_copy(adaptive: Pair, index: int) -> None:
    adaptive.up_words[1] = index
    assert not adaptive.write(1, bytes(PAGE))
    assert len(adaptive.reasons) == 1


def test_a_page_list_from_the_host(adaptive: Pair) -> None:
    between = struct.pack("<IIIIQ", 0, 1, 8, 0, 0)
    assert adaptive.host._writer.put(GPA_DIRECT, 0, 1, b"", between)
    adaptive.host_poller.touch(adaptive.host)
    adaptive.settle(5)
    assert len(adaptive.reasons) == 1
    assert adaptive.answers == []


# -- handlers and the end ----------------------------------------------------------------------------------------


def test_a_new_handler_gets_the_next_packet(adaptive: Pair) -> None:
    pair, later = adaptive, []

    def take_over(number: int) -> None:
        pair.guest.on_packet = lambda *packet: later.append(packet[2])

    pair.on_answer = take_over
    for number in range(4):
        assert pair.host.send(IN_BAND, 0, number, b"")
    pair.host_loop.step(0.0)
    pair.settle(5)
    assert (pair.answers, later) == ([0], [1, 2, 3])


@pytest.mark.parametrize("where", ["on_packet", "on_room"])
def test_a_guest_that_closes_in_its_handler(adaptive: Pair, where: str) -> None:
    pair = adaptive
    pair.on_answer = lambda number: pair.guest.close() if where == "on_packet" else None
    for number in range(5):
        assert pair.ask(number)
    if where == "on_room":
        pair.guest.on_room = pair.guest.close
        os.write(pair.host._peer_bell, b"\1")
    pair.until(lambda: pair.guest.closed)
    pair.settle(5)
    assert len(pair.answers) <= 1 or where == "on_room"
    assert not pair.ask(9)
    assert pair.reasons == []


def test_an_owner_that_closes_when_told_of_the_failure(adaptive: Pair) -> None:
    pair = adaptive

    def told(reason: str) -> None:
        pair.reasons.append(reason)
        pair.guest.close()
        pair.guest.fail("again")

    pair.guest.on_failed = told
    pair.down_words[0] = 4
    pair.settle(5)
    assert len(pair.reasons) == 1


def test_what_was_sent_last_is_seen_after_the_sender_has_slept(pair: Pair) -> None:
    """Nothing stays unpublished: neither what a handler sends nor what a deferred call does."""
    pair.guest_loop.call_soon(pair.ask, 1)
    pair.on_answer = lambda number: number < 5 and pair.ask(number + 1)
    pair.until(lambda: len(pair.answers) == 5)
    pair.guest_loop.call_later(0.001, pair.ask, 9)
    pair.until(lambda: pair.answers[-1] == 9)


def test_a_closed_host_end_lets_go_of_the_guests_memory() -> None:
    """Whoever still holds the channel (a session, a counter) must not hold the memory of a guest that is gone."""
    loop = Loop()
    ends: Any = ring_ends(loop, Poller(loop, NEVER), 2)
    mapping = weakref.ref(ends.memory.host.view.obj)
    host = ends.host
    ends.close()
    loop.close()
    del ends.memory, ends.guest, ends.host
    gc.collect()
    assert host.closed
    assert mapping() is None
