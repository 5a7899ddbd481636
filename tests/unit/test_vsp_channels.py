"""What a VSP makes of lent memory and doorbells (``ring``): mapped as described, refused with a reason, given back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from partitions.parent.ring_vsp_channels import MAX_RUNS, RingChannels
from partitions.parent.vsp_channels import Described, OpenRequest
from partitions.parent.vsplink import encode_pages
from tests.rings import GPA, SharedMemory
from vmbus_emu.channel import Channel
from vmbus_emu.loop import Loop
from vmbus_emu.memory import PAGE, Lent
from vmbus_emu.polling import Poller
from vmbus_emu.ring import READ_INDEX, WRITE_INDEX

PAGES, FIRST = 1024, GPA // PAGE
CHILD, KEY, GPADL, BELL = 5, 1, 0xE1E10, 0x400000


class Inbox:
    """What the hypervisor handed out, once each."""

    def __init__(self) -> None:
        self.memory: dict[tuple[int, int], int] = {}
        self.bells: dict[tuple[str, int], int] = {}

    def ring(self, number: int) -> None:
        self.bells["port", number], self.bells["connection", number] = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def take_memory(self, owner: int, gpa: int) -> int | None:
        return self.memory.pop((owner, gpa), None)

    def take_port(self, number: int) -> int | None:
        return self.bells.pop(("port", number), None)

    def take_connection(self, number: int) -> int | None:
        return self.bells.pop(("connection", number), None)


class Bench:
    def __init__(self) -> None:
        loop = self.loop = Loop()
        self.inbox = Inbox()
        self.memory = SharedMemory(PAGES)
        self.inbox.memory[CHILD, GPA] = os.dup(self.memory.fd)
        node: Any = SimpleNamespace(loop=loop, poller=Poller(loop), inbox=self.inbox)
        self.channels = RingChannels(node, 1)

    def lend(self, pages: list[int], gpadl: int = GPADL, key: int = KEY, nbytes: int = 0, offset: int = 0) -> Any:
        runs = encode_pages([FIRST + page for page in pages])
        described = Described(nbytes or len(pages) * PAGE, offset, CHILD, GPA, PAGES, runs)
        return self.channels.lend(key, gpadl, described)

    def open(self, gpadl: int = GPADL, downstream: int = 4) -> Channel | str:
        return self.channels.open(KEY, OpenRequest("", 1, BELL, gpadl, downstream))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.channels.forget(CHILD)
    for fd in [*made.inbox.memory.values(), *made.inbox.bells.values()]:
        os.close(fd)
    made.memory.close()
    made.loop.close()


@pytest.mark.parametrize("pages", [[3, 4, 5], [9, 2, 7], [6]], ids=str)
def test_lent_memory_is_the_guests_own_in_the_order_described(bench: Bench, pages: list[int]) -> None:
    for page in pages:
        bench.memory.guest.view[page * PAGE] = page
    lent = bench.lend(pages)
    assert isinstance(lent, Lent)
    assert lent.memory is not None
    assert [lent.memory[index * PAGE] for index in range(len(pages))] == pages
    lent.memory[1] = 99
    assert bench.memory.guest.view[pages[0] * PAGE + 1] == 99


def test_a_range_may_begin_and_end_within_its_pages(bench: Bench) -> None:
    lent = bench.lend([8, 3], nbytes=PAGE, offset=1000)
    bench.memory.guest.view[8 * PAGE + 1000] = 1
    bench.memory.guest.view[3 * PAGE + 999] = 2
    assert (lent.nbytes, len(lent.memory), lent.memory[0], lent.memory[-1]) == (PAGE, PAGE, 1, 2)


@pytest.mark.parametrize("pages", [[-1], [PAGES], [0, PAGES], [PAGES - 1, PAGES], [(1 << 40) - FIRST]], ids=str)
def test_pages_outside_the_granted_memory_are_refused(bench: Bench, pages: list[int]) -> None:
    assert isinstance(bench.lend(pages), str)
    assert isinstance(bench.lend([0]), Lent), "and the next one is taken"


def test_memory_that_was_not_handed_over_is_refused(bench: Bench) -> None:
    os.close(bench.inbox.memory.pop((CHILD, GPA)))
    assert bench.lend([0]) == "its memory was not handed over"


def test_pieces_are_bounded_over_all_gpadls_of_a_region_and_those_taken_back_do_not_count(bench: Bench) -> None:
    apart = list(range(0, 200, 2))
    taken = 0
    while isinstance(bench.lend(apart, gpadl=taken), Lent):
        taken += 1
    assert 0 < taken <= MAX_RUNS // len(apart)
    assert bench.lend(apart, gpadl=99, key=2) == "its pages lie in too many pieces"
    assert isinstance(bench.lend([0, 1, 2], gpadl=100), Lent), "one piece costs nothing"
    bench.channels.take_back(KEY, 0)
    assert isinstance(bench.lend(apart, gpadl=99), Lent)


@pytest.mark.parametrize("pages", [list(range(8)), list(range(7, -1, -1))], ids=["one piece", "backwards"])
def test_a_channel_is_opened_in_the_named_gpadl(bench: Bench, pages: list[int]) -> None:
    bench.lend(pages)
    bench.inbox.ring(BELL)
    channel = bench.open()
    assert isinstance(channel, Channel)
    words = bench.memory.guest.view[pages[4] * PAGE : (pages[4] + 1) * PAGE].cast("I")
    assert words[16] == 1, "the host wrote its feature bit into the control page of the ring that it writes"
    channel.close()


@pytest.mark.parametrize(("page", "word"), [(0, READ_INDEX), (4, WRITE_INDEX)])
def test_rings_that_are_not_fit_for_use_are_refused_and_leave_no_descriptor(bench: Bench, page: int, word: int) -> None:
    bench.lend(list(range(8)))
    held = open_descriptors()
    bench.inbox.ring(BELL)
    words = bench.memory.guest.view[page * PAGE : (page + 1) * PAGE].cast("I")
    words[word] = 3
    assert "_index is 3" in str(bench.open())
    assert open_descriptors() == held
    words[word] = 0
    bench.inbox.ring(BELL)
    channel = bench.open()
    assert isinstance(channel, Channel)
    channel.close()


@pytest.mark.parametrize("missing", ["gpadl", "port", "connection", "taken back"])
def test_what_is_not_there_is_refused_and_leaves_no_descriptor(bench: Bench, missing: str) -> None:
    bench.lend(list(range(8)))
    held = open_descriptors()
    bench.inbox.ring(BELL)
    if missing in ("port", "connection"):
        os.close(bench.inbox.bells.pop((missing, BELL)))
    if missing == "taken back":
        bench.channels.take_back(KEY, GPADL)
    assert bench.open(gpadl=1 if missing == "gpadl" else GPADL) == "its rings or doorbells are not there"
    assert open_descriptors() == held


def test_a_partition_that_is_gone_leaves_no_descriptor(bench: Bench) -> None:
    held = open_descriptors()
    lent = bench.lend([0, 1])
    bench.channels.forget(CHILD)
    bench.channels.forget(CHILD)
    lent.memory[0] = 1  # what somebody still uses stays mapped
    bench.channels.take_back(KEY, GPADL)
    del lent
    assert open_descriptors() < held, "the one that was handed over"
    assert bench.lend([0]) == "its memory was not handed over"
