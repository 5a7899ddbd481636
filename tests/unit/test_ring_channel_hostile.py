"""A VSP's end against a guest driven by hand: one that takes no answers, lies about its memory, or breaks the rings.

Whatever it does, its own channel suffers, and nothing is raised, spun for, or kept without bound.

Long, because all of it drives one guest written out word by word.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.rings import GPA, SharedMemory
from vmbus_emu.device import Memory
from vmbus_emu.host_ring import BACKLOG, TURN_BYTES, HostRing
from vmbus_emu.loop import Loop
from vmbus_emu.memory import PAGE
from vmbus_emu.polling import ADAPTIVE, NEVER, Poller
from vmbus_emu.protocol.packets import COMPLETION, COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND
from vmbus_emu.ring import RingFault, RingReader, RingWriter, fence, reset
from vmbus_emu.ring_channel import TURN_PACKETS

PFN = GPA // PAGE
BAD_INDEXES = (4, 1 << 20, 0xFFFF_FFFF)
#: Rounds of a loop within which all must be done that is said to happen.
ROUNDS = 200


class RawGuest:
    """One guest, without any of the guest's code, and the VSP's end of its channel."""

    def __init__(self, loop: Loop, poller: Poller, ring_pages: int = 2, more_pages: int = 512) -> None:
        self.loop, self.poller = loop, poller
        self.memory = SharedMemory(2 * ring_pages + more_pages)
        self.first_page = 2 * ring_pages
        up, down = range(ring_pages), range(ring_pages, 2 * ring_pages)
        self.up_words = self.memory.guest.view[:PAGE].cast("I")
        self.down_words = self.memory.guest.view[ring_pages * PAGE : (ring_pages + 1) * PAGE].cast("I")
        to_host, to_guest = self.memory.guest.ring(up), self.memory.guest.ring(down)
        reset(to_host)
        reset(to_guest)
        self.writer, self.reader = RingWriter(to_host), RingReader(to_guest)
        self.bell, self.rings_guest = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.host_bell, self.rings_host = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.host = HostRing(
            loop, poller, self.memory.host.ring(up), self.memory.host.ring(down), self.host_bell, self.rings_guest,
            self.memory.host, 32,
        )
        self.seen: list[tuple[int, int, int, bytes]] = []
        self.areas: list[Memory | None] = []
        self.reasons: list[str] = []
        self.handler: Callable[[int], Any] = lambda transaction_id: None
        self.host.on_packet = self._packet
        self.host.on_failed = self.reasons.append

    def _packet(self, kind: int, flags: int, transaction_id: int, message: bytes, data: Memory | None) -> None:
        self.seen.append((kind, flags, transaction_id, message))
        self.areas.append(data)
        self.handler(transaction_id)

    def answering(self, nbytes: int) -> None:
        """The VSP answers each request at once."""
        self.handler = lambda transaction_id: self.host.send(COMPLETION, 0, transaction_id, bytes(nbytes))

    def request(self, *numbers: int, nbytes: int = 8) -> None:
        for number in numbers:
            assert self.writer.put(IN_BAND, COMPLETION_REQUESTED, number, bytes(nbytes))
        self.show()

    def direct(self, *ranges: tuple[int, int, list[int]]) -> None:
        """A GPA-direct packet: ``(byte_count, byte_offset, page numbers)``."""
        between = struct.pack("<II", 0, len(ranges))
        for byte_count, byte_offset, pfns in ranges:
            between += struct.pack(f"<II{len(pfns)}Q", byte_count, byte_offset, *pfns)
        assert self.writer.put(GPA_DIRECT, COMPLETION_REQUESTED, 1, bytes(8), between)
        self.show()

    def show(self) -> None:
        start = self.writer.publish()
        fence()
        if start >= 0 and self.writer.must_ring(start):
            self.ring()

    def ring(self) -> None:
        os.write(self.rings_host, b"\1")

    def take(self, most: int = 1 << 30) -> list[int]:
        """Take answers as a correct guest does; their transaction ids."""
        taken = self.look(most)
        before = self.reader.publish()
        fence()
        if before >= 0 and self.reader.must_ring(before):
            self.ring()
        return taken

    def look(self, most: int) -> list[int]:
        """Read answers, and give no room back yet."""
        taken: list[int] = []
        self.reader.read(most, lambda *packet: taken.append(packet[2]), lambda *direct: None)
        return taken

    def rung(self) -> int:
        """Doorbells since the last time."""
        try:
            return len(os.read(self.bell, 1 << 20))
        except BlockingIOError:
            return 0

    def settle(self, rounds: int = ROUNDS) -> None:
        for _ in range(rounds):
            self.loop.step(0.0)

    def is_served(self) -> bool:
        """Whether a request is answered, though the answer has to ring for the guest."""
        self.settle()
        self.answering(8)
        self.down_words[2] = 0
        self.request(1)
        self.ring()
        self.settle()
        return self.take() == [1]

    def close(self) -> None:
        self.host.close()
        for fd in (self.bell, self.rings_host):
            if fd >= 0:
                os.close(fd)
        self.memory.close()


def falls_asleep(poller: Poller) -> bool:
    """Whether the loop may sleep after a few rounds, with nothing happening."""
    for _ in range(20):
        if poller.before_sleep(-1.0) not in (None, 0.0):
            return True
        poller.looked(time.monotonic())
    return False


@pytest.fixture(params=[NEVER, ADAPTIVE])
def poller(loop: Loop, request: pytest.FixtureRequest) -> Poller:
    return Poller(loop, request.param)


@pytest.fixture
def guest(loop: Loop, poller: Poller) -> Iterator[RawGuest]:
    made = RawGuest(loop, poller)
    yield made
    made.close()


# -- a guest that takes no answers -------------------------------------------------------------------------------


def test_a_guest_that_takes_no_answers_gets_none_lost_and_costs_nothing(guest: RawGuest, poller: Poller) -> None:
    """The ring holds nine answers. The rest waits, and no request is taken until they are gone."""
    guest.answering(400)
    requests = list(range(1, 97))
    guest.request(*requests)
    guest.ring()
    guest.settle()
    handled = len(guest.seen)
    assert handled <= 9 + TURN_PACKETS
    assert falls_asleep(poller)
    for _ in range(3):          # it sleeps through more requests, and through doorbells that mean nothing
        guest.ring()
        guest.settle(5)
    assert len(guest.seen) == handled
    assert falls_asleep(poller)
    answers: list[int] = []
    for _ in range(ROUNDS):
        answers += guest.take(1)
        guest.settle(3)
    assert answers == requests
    assert [packet[2] for packet in guest.seen] == requests
    assert guest.reasons == []


def test_answers_of_workers_wait_too_and_in_order(guest: RawGuest, poller: Poller) -> None:
    guest.request(*range(40))
    guest.ring()
    guest.settle()
    assert len(guest.seen) == 40
    assert falls_asleep(poller)
    for number in range(40):    # while the channel sleeps, as a worker's completions come
        assert guest.host.send(COMPLETION, 0, number, bytes(400))
    guest.settle()
    answers: list[int] = []
    for _ in range(ROUNDS):
        answers += guest.take(1)
        guest.settle(3)
    assert answers == list(range(40))


def test_what_waits_has_an_end(guest: RawGuest) -> None:
    accepted = 0
    while guest.host.send(COMPLETION, 0, accepted, bytes(400)):
        accepted += 1
        assert accepted <= BACKLOG + 9
    assert accepted >= BACKLOG
    assert not guest.host.send(COMPLETION, 0, accepted, b"")    # nothing overtakes what waits
    answers: list[int] = []
    for _ in range(BACKLOG):
        guest.settle(3)
        answers += guest.take()
    assert answers == list(range(accepted))
    assert guest.host.send(COMPLETION, 0, accepted, b"")


def test_a_guest_that_takes_little_by_little_makes_no_missed_doorbells(
    guest: RawGuest, poller: Poller, loop: Loop
) -> None:
    """Less room than is waited for is made without a doorbell, and rightly so."""
    for number in range(30):
        assert guest.host.send(COMPLETION, 0, number, bytes(8 if number < 20 else 1600))
    guest.settle(5)
    assert falls_asleep(poller)
    for _ in range(20):
        assert len(guest.take(1)) == 1
        poller.looked(loop.now + 0.021)
        falls_asleep(poller)
        poller.looked(loop.now + 0.042)
        falls_asleep(poller)
    assert poller.missed_doorbells == 0


def test_room_made_before_the_answers_are_public_is_not_overlooked(guest: RawGuest, poller: Poller, loop: Loop) -> None:
    """The guest reckons with the public write index, the host with its own: the guest finds that there was room all
    the time, and does not ring. So whoever waits must look once more when its index is public."""
    assert guest.host.send(COMPLETION, 0, 1, bytes(400 - 24))
    guest.settle()
    assert falls_asleep(poller)
    poller.looked(loop.now + 1.0)                                   # and has slept for long
    assert guest.look(1) == [1]
    assert guest.host.send(COMPLETION, 0, 2, bytes(3600 - 24))      # not public yet
    assert guest.host.send(COMPLETION, 0, 3, bytes(200 - 24))       # finds no room
    assert guest.take(0) == []                                      # makes the first answer's room public
    answers: list[int] = []
    for _ in range(ROUNDS):
        guest.settle(3)
        answers += guest.take()
    assert answers == [2, 3]


def test_an_answer_that_can_never_fit_ends_the_channel(guest: RawGuest, poller: Poller) -> None:
    """The guest chose so small a ring. To wait for room would be to wait for ever."""
    guest.answering(5000)
    guest.request(1)
    guest.ring()
    guest.settle()
    assert len(guest.reasons) == 1
    assert guest.host.closed


@pytest.mark.parametrize("index", BAD_INDEXES)
def test_a_bad_read_index_while_answers_wait(guest: RawGuest, index: int) -> None:
    guest.answering(1600)
    guest.request(1, 2, 3, 4, 5, 6)
    guest.ring()
    guest.settle()
    guest.down_words[1] = index
    guest.ring()
    guest.settle()
    assert len(guest.reasons) == 1
    assert "read_index" in guest.reasons[0]
    assert not guest.host.send(COMPLETION, 0, 9, b"")


def test_a_read_index_that_jumps_about_is_not_spun_for(guest: RawGuest, poller: Poller) -> None:
    for number in range(20):
        assert guest.host.send(COMPLETION, 0, number, bytes(1600))
    guest.settle()
    for index in (8, 0, 16, 8, 4088, 0):
        guest.down_words[1] = index
        guest.ring()
        guest.settle(5)
        assert falls_asleep(poller)


# -- turns and doorbells -----------------------------------------------------------------------------------------


def test_a_turn_has_so_many_packets(guest: RawGuest) -> None:
    guest.request(*range(100))
    sizes = []
    while len(guest.seen) < 100:
        before = len(guest.seen)
        guest.host.drain()
        sizes.append(len(guest.seen) - before)
    assert set(sizes[:-1]) == {TURN_PACKETS}
    assert sizes[-1] <= TURN_PACKETS


def test_a_turn_has_so_many_bytes_of_data(loop: Loop, poller: Poller) -> None:
    guest = RawGuest(loop, poller, ring_pages=9)
    pages = [PFN + guest.first_page + n for n in range(TURN_BYTES // PAGE)]
    for _ in range(4):
        guest.direct((TURN_BYTES, 0, pages))
    for turn in range(4):
        assert len(guest.seen) == turn
        guest.host.drain()
    guest.close()


def test_one_page_list_is_not_many_turns(loop: Loop, poller: Poller) -> None:
    """The same page named sixteen thousand times: 64 MiB to move, or at least to look up, in one packet."""
    guest = RawGuest(loop, poller, ring_pages=65)
    guest.direct((16384 * PAGE, 0, [PFN + guest.first_page] * 16384))
    guest.ring()
    guest.settle()
    assert guest.areas == []
    assert len(guest.reasons) == 1
    guest.close()


def test_a_busy_guest_does_not_keep_another_waiting(loop: Loop, poller: Poller) -> None:
    busy, other = RawGuest(loop, poller, ring_pages=9), RawGuest(loop, poller)
    busy.request(*range(600))
    other.request(1)
    rounds = 0
    while not other.seen:
        loop.step(0.0)
        rounds += 1
    assert rounds <= 3
    assert len(busy.seen) <= 3 * TURN_PACKETS
    busy.close()
    other.close()


@pytest.mark.parametrize(("mask", "rings"), [(0, 1), (1, 0)])
def test_a_batch_of_answers_is_one_doorbell(guest: RawGuest, mask: int, rings: int) -> None:
    guest.settle()
    guest.answering(8)
    guest.down_words[2] = mask
    guest.request(*range(10))
    guest.ring()
    guest.settle()
    assert (guest.rung(), guest.host.doorbells) == (rings, rings)
    guest.request(11)           # the answers before it were not taken: the ring is not empty
    guest.ring()
    guest.settle()
    assert guest.rung() == 0
    assert len(guest.take()) == 11


def test_a_guest_that_waits_for_room_is_rung_for_it(guest: RawGuest) -> None:
    guest.settle()
    number = 0
    while guest.writer.put(IN_BAND, 0, number, bytes(400)):
        number += 1
    guest.show()
    guest.ring()
    guest.settle()
    assert guest.rung() == 1
    assert guest.writer.has_room()


def test_as_many_doorbells_as_a_pipe_holds(guest: RawGuest, poller: Poller) -> None:
    while True:
        try:
            os.write(guest.rings_host, bytes(4096))
        except BlockingIOError:
            break
    guest.settle()
    assert falls_asleep(poller)
    guest.request(1)
    guest.settle()
    assert len(guest.seen) == 1


def test_a_guest_that_does_not_answer_its_doorbell(guest: RawGuest) -> None:
    """The pipe to it is full."""
    while True:
        try:
            os.write(guest.host._peer_bell, bytes(4096))
        except BlockingIOError:
            break
    assert guest.is_served()
    assert guest.reasons == []


def test_a_guest_that_threw_its_doorbell_away(guest: RawGuest) -> None:
    os.close(guest.bell)
    guest.bell = -1
    assert guest.is_served()


def test_a_guest_that_hung_up_is_not_spun_for(guest: RawGuest, loop: Loop, poller: Poller) -> None:
    guest.ring()
    os.close(guest.rings_host)
    guest.rings_host = -1
    guest.settle()
    rung = guest.host.rung
    slept = poller.sleeps
    marks: list[None] = []
    loop.call_later(0.05, marks.append, None)
    steps = 0
    while not marks:
        loop.step(0.5)
        steps += 1
    assert steps < 20
    assert poller.sleeps > slept
    assert guest.host.rung == rung
    assert not guest.host.closed    # whoever watches the guest closes it


def test_a_doorbell_that_somebody_else_answered(guest: RawGuest, loop: Loop) -> None:
    """Whoever has a pipe's other end can open it for reading too (in /proc), and be quicker than we are."""
    guest.settle()
    thief = os.dup(guest.host_bell)
    trigger, pull = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    loop.watch(trigger, lambda events: os.read(trigger, 1) and os.read(thief, 4096))
    os.write(pull, b"\1")
    guest.ring()
    loop.step(0.0)
    loop.unwatch(trigger)
    for fd in (thief, trigger, pull):
        os.close(fd)
    guest.request(1)
    guest.ring()
    guest.settle()
    assert len(guest.seen) == 1


# -- page lists --------------------------------------------------------------------------------------------------


def test_page_lists_inside_the_granted_memory(guest: RawGuest) -> None:
    first = guest.first_page
    for n in range(3):
        guest.memory.guest.view[(first + n) * PAGE] = 10 + n
    guest.direct((PAGE, 0, [PFN + first]))
    guest.direct((2 * PAGE, 0, [PFN + first + 2, PFN + first + 1]), (1, 0, [PFN + first]))
    guest.ring()
    guest.settle()
    assert [None if area is None else bytes(area)[::PAGE] for area in guest.areas] == [
        bytes([10]), bytes([12, 11, 10])
    ]  # fmt: skip


@pytest.mark.parametrize("ranges", [
    [(8, 0, [PFN - 1])], [(8, 0, [PFN + 516])], [(8, 0, [0])], [(8, 0, [(1 << 64) - 1])],
    [(8, PAGE - 4, [PFN + 515, PFN + 516])], [(8, 0, [PFN]), (8, 0, [PFN - 1])],
    [(8, 0, [PFN])] * 33,
])  # fmt: skip
def test_a_page_list_outside_ends_the_channel(guest: RawGuest, ranges: list[tuple[int, int, list[int]]]) -> None:
    guest.request(1)
    guest.direct(*ranges)
    guest.request(2)
    guest.ring()
    guest.settle()
    assert [packet[2] for packet in guest.seen] == [1]
    assert len(guest.reasons) == 1
    assert guest.host.failed == guest.reasons[0]
    assert guest.host.closed


# -- broken rings, and the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("index", BAD_INDEXES)
def test_a_bad_write_index_ends_the_channel(guest: RawGuest, poller: Poller, index: int) -> None:
    guest.settle()
    guest.up_words[0] = index
    guest.ring()
    guest.settle()
    assert len(guest.reasons) == 1
    assert "write_index" in guest.reasons[0]
    assert falls_asleep(poller)


@pytest.mark.parametrize("index", BAD_INDEXES)
def test_a_bad_read_index_ends_the_channel(guest: RawGuest, index: int) -> None:
    guest.down_words[1] = index
    assert not guest.host.send(COMPLETION, 0, 1, b"")
    assert len(guest.reasons) == 1
    guest.settle()


def test_a_fault_behind_good_packets(guest: RawGuest, poller: Poller) -> None:
    guest.request(1, 2)
    assert guest.writer.put(1, 0, 3, b"")       # no such type
    guest.request(4)
    guest.ring()
    guest.settle()
    assert [packet[2] for packet in guest.seen] == [1, 2]
    assert len(guest.reasons) == 1
    assert falls_asleep(poller)


@pytest.mark.parametrize("how", ["close", "fail"])
def test_closing_inside_the_handler(guest: RawGuest, poller: Poller, how: str) -> None:
    guest.handler = lambda transaction_id: guest.host.close() if how == "close" else guest.host.fail("enough")
    bells = guest.host._bell, guest.host._peer_bell
    guest.request(1, 2, 3)
    guest.ring()
    guest.settle()
    assert len(guest.seen) == 1
    assert guest.reasons == (["enough"] if how == "fail" else [])
    for fd in bells:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
    guest.host.close()
    guest.host.fail("again")
    assert len(guest.reasons) <= 1
    assert falls_asleep(poller)
    assert not guest.host.send(COMPLETION, 0, 1, b"")


def test_closing_a_neighbour_inside_the_handler(loop: Loop, poller: Poller) -> None:
    near, far = RawGuest(loop, poller), RawGuest(loop, poller)
    for one, two in ((near, far), (far, near)):
        one.handler = lambda transaction_id, two=two: two.host.close()  # type: ignore[misc]
    near.request(1)
    far.request(1)
    near.settle()
    assert sorted((len(near.seen), len(far.seen))) == [0, 1]
    near.close()
    far.close()


def test_a_fault_harms_no_neighbour(loop: Loop, poller: Poller) -> None:
    bad, good = RawGuest(loop, poller), RawGuest(loop, poller)
    good.answering(8)
    bad.up_words[0] = 4
    bad.ring()
    good.request(1)
    good.ring()
    good.settle()
    assert len(bad.reasons) == 1
    assert good.take() == [1]
    bad.close()
    good.close()


def test_rings_that_are_not_fit_for_use_leave_no_descriptors(loop: Loop, poller: Poller) -> None:
    """A guest may open a channel on them as often as it likes."""
    guest = RawGuest(loop, poller)
    guest.up_words[1] = 4
    bell, peer_bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    with pytest.raises(RingFault):
        HostRing(
            loop, poller, guest.memory.host.ring((0, 1)), guest.memory.host.ring((2, 3)), bell, peer_bell,
            guest.memory.host,
        )  # fmt: skip
    for fd in (bell, peer_bell):
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
    guest.close()
