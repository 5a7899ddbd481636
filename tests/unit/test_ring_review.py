"""Ring channels where ends, pools and rounds meet: what must not be lost, kept or overtaken there."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from partitions.child.storvsc import StorVsc
from partitions.parent.storvsp import StorVspSession
from tests.rings import Ends, SharedMemory, ring_ends
from vmbus_emu.channel import Channel
from vmbus_emu.device import BLOCK_SIZE, BlockInfo, BlockRequest, BlockStats, Buffer, Op, Status
from vmbus_emu.guest_ring import GuestRing
from vmbus_emu.host_ring import HostRing
from vmbus_emu.loop import Loop
from vmbus_emu.memory import PAGE, Pool
from vmbus_emu.polling import NEVER, Poller
from vmbus_emu.protocol import scsi, vstor
from vmbus_emu.protocol.packets import COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND
from vmbus_emu.protocol.vstor import Direction
from vmbus_emu.ring import RingReader, RingWriter, fence, reset

RING_PAGES = 4
POOL_PAGES = 256
BIG = 1 << 20


class HeldDisk:
    """A driver that keeps what it gets."""

    def __init__(self) -> None:
        self.info = BlockInfo(1 << 16)
        self.held: list[BlockRequest] = []

    def submit(self, request: BlockRequest) -> None:
        self.held.append(request)

    def allocate(self, nbytes: int) -> memoryview:
        return memoryview(bytearray(nbytes))

    def stats(self) -> BlockStats:
        return BlockStats()

    def finish(self) -> None:
        held, self.held = self.held, []
        for request in held:
            request.finish(Status.OK)


class Disk:
    """One disk over a ring channel, in a region that it shares with another, copies and all."""

    def __init__(self, loop: Loop, poller: Poller, memory: SharedMemory, first: int, pools: tuple[Pool, ...]) -> None:
        up, down = range(first, first + RING_PAGES), range(first + RING_PAGES, first + 2 * RING_PAGES)
        to_host, to_guest = memory.guest.ring(up), memory.guest.ring(down)
        reset(to_host)
        reset(to_guest)
        guest_bell, rings_guest = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        host_bell, rings_host = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.host = HostRing(
            loop, poller, memory.host.ring(up), memory.host.ring(down), host_bell, rings_guest, memory.host
        )
        self.guest = GuestRing(loop, poller, to_guest, to_host, guest_bell, rings_host, memory.guest, pools)
        self.driver = HeldDisk()
        self.session = StorVspSession(self.host, self.driver)
        self.vsc = StorVsc(loop, "disk", lambda line: None)
        self.done: list[BlockRequest] = []
        attached = self.vsc.attach(self.guest)
        assert loop.run_until(lambda: attached.done, 5)
        assert attached.result()

    def read(self, lba: int, nbytes: int) -> BlockRequest:
        request = BlockRequest(Op.READ, lba, nbytes // BLOCK_SIZE, bytearray(nbytes), self.done.append)
        self.vsc.submit(request)
        return request


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def disks(loop: Loop) -> Iterator[tuple[Disk, Disk]]:
    """Two disks of one guest. Copies are made in pages they share, which hold one largest request."""
    memory = SharedMemory(4 * RING_PAGES + POOL_PAGES)
    pools = (Pool(memory.guest, 4 * RING_PAGES, POOL_PAGES),)
    poller = Poller(loop, NEVER)
    made = tuple(Disk(loop, poller, memory, first, pools) for first in (0, 2 * RING_PAGES))
    yield made[0], made[1]
    for disk in made:
        disk.guest.close()
        disk.host.close()
    memory.close()


def test_pages_that_one_disk_gives_back_wake_a_request_of_another(loop: Loop, disks: tuple[Disk, Disk]) -> None:
    one, other = disks
    one.read(0, BIG)
    assert loop.run_until(lambda: bool(one.driver.held), 5)
    waits = other.read(0, PAGE)
    assert waits.status is None
    one.driver.finish()
    assert loop.run_until(lambda: bool(one.done), 5)
    assert loop.run_until(lambda: bool(other.driver.held), 1), "sent nothing, and nothing will ever make it"


def test_a_channel_that_ends_does_not_keep_the_pages_of_its_copies(loop: Loop, disks: tuple[Disk, Disk]) -> None:
    one, other = disks
    one.read(0, BIG)
    assert loop.run_until(lambda: bool(one.driver.held), 5)
    one.guest.close()  # its VSP died: what was rescinded is never answered
    one.vsc.give_up()
    other.read(0, PAGE)
    assert loop.run_until(lambda: bool(other.driver.held), 1), "no copy fits any more, for ever"


# -- requests that meet the end of their channel -----------------------------------------------------------------


class Breaking(Channel):
    """Sends until it is told to break: then the peer is found to have broken the protocol within ``send``."""

    shares_memory = True
    breaks = False
    room = True

    def send(
        self, packet_type: int, flags: int, transaction_id: int, message: Buffer,
        data: Buffer | None = None, room: Buffer | None = None,
    ) -> bool:
        if self.breaks:
            self.fail("read_index is 4")
        return self.room and not self.closed


@pytest.fixture
def breaking(loop: Loop) -> tuple[StorVsc, Breaking]:
    vsc, channel = StorVsc(loop, "disk", lambda line: None), Breaking()
    channel.on_failed = lambda reason: vsc.give_up()    # as the bus driver does
    vsc.attach(channel)
    loop.step(0.0)
    vsc._ready, vsc._in_place = True, True              # the handshake is another test's
    return vsc, channel


def test_a_request_whose_sending_ends_the_channel_is_completed(breaking: tuple[StorVsc, Breaking]) -> None:
    vsc, channel = breaking
    channel.breaks = True
    request = BlockRequest(Op.READY)
    vsc.submit(request)
    assert request.status is Status.GONE


def test_held_requests_whose_release_ends_the_channel_are_completed(breaking: tuple[StorVsc, Breaking]) -> None:
    vsc, channel = breaking
    channel.room = False
    requests = [BlockRequest(Op.READY) for _ in range(3)]
    for request in requests:
        vsc.submit(request)
    channel.breaks = True
    channel.on_room()
    assert [request.status for request in requests] == [Status.GONE] * 3


def test_a_request_does_not_overtake_one_that_found_no_room(breaking: tuple[StorVsc, Breaking]) -> None:
    vsc, channel = breaking
    channel.room = False
    large = BlockRequest(Op.READ, 0, 2048, bytearray(BIG))
    vsc.submit(large)
    channel.room = True     # for small ones
    vsc.submit(BlockRequest(Op.READ, 4096, 1, bytearray(BLOCK_SIZE)))
    assert vsc.link_stats().held in (0, 2)


# -- rings ---------------------------------------------------------------------------------------------------------

#: Bytes of a packet with a message of 64 in the ring; 4096 are not a multiple.
PACKET = 88


@pytest.mark.parametrize("nbytes", [64, 40])  # packets of 88 bytes; and of 64: exactly one ring of them
def test_a_batch_longer_than_the_ring_wakes_the_reader(nbytes: int) -> None:
    """The reader takes packets while the batch is written, and sleeps before its end: so it must be rung."""
    memory = SharedMemory(2)
    pages = memory.guest.ring(range(2))
    reset(pages)
    writer, reader = RingWriter(pages), RingReader(memory.host.ring(range(2)))
    total = nbytes + 24
    taken: list[int] = []

    def take() -> None:
        reader.read(1 << 20, lambda kind, flags, tid, message, data: taken.append(tid), lambda *direct: None)
        reader.publish()

    count = -(-reader.size // total)
    for number in range(count - 1):
        assert writer.put(IN_BAND, 0, number, bytes(nbytes))
        if writer.words[1] != writer.words[0]:
            take()  # it is awake: no doorbell is due
    reader.sleep()
    fence()
    take()
    assert not reader.has_news()
    assert writer.put(IN_BAND, 0, count - 1, bytes(nbytes))
    assert writer.knock
    start = writer.publish()
    fence()
    assert reader.has_news()
    assert start >= 0
    assert writer.must_ring(start)
    memory.close()


def test_a_closed_host_end_lets_go_of_the_guests_memory(loop: Loop) -> None:
    """Whoever still holds the channel (a session, a counter) must not hold the memory of a guest that is gone."""
    ends: Ends = ring_ends(loop, Poller(loop, NEVER), RING_PAGES)
    mapping = weakref.ref(ends.memory.host.view.obj)
    host: Any = ends.host
    ends.close()
    del ends.memory, ends.guest, ends.host
    gc.collect()
    assert host.closed
    assert mapping() is None


def test_a_write_moves_no_more_than_its_transfer_length(loop: Loop, disks: tuple[Disk, Disk]) -> None:
    one, _ = disks
    packet = vstor.execute_srb(scsi.write_16(0, 8), Direction.OUT, BLOCK_SIZE)
    before = one.host.failed
    assert one.guest.send(GPA_DIRECT, COMPLETION_REQUESTED, 1 << 40, packet, bytearray(8 * BLOCK_SIZE))
    one.guest.on_packet = lambda *answer: one.done.append(BlockRequest(Op.READY))
    assert loop.run_until(lambda: bool(one.done or one.driver.held or one.host.failed), 5)
    assert before is None
    assert not one.driver.held  # eight blocks, where the packet says that one is to be moved
