"""Two disks of one guest over ring channels, in one region of I/O memory: they share the pages of their copies."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from partitions.child.storvsc import StorVsc
from partitions.parent.storvsp import StorVspSession
from tests.rings import SharedMemory
from vmbus_emu.device import BLOCK_SIZE, BlockInfo, BlockRequest, BlockStats, Op, Status
from vmbus_emu.guest_ring import GuestRing
from vmbus_emu.host_ring import HostRing
from vmbus_emu.loop import Loop
from vmbus_emu.memory import PAGE, Pool
from vmbus_emu.polling import NEVER, Poller
from vmbus_emu.protocol import scsi, vstor
from vmbus_emu.protocol.packets import COMPLETION_REQUESTED, GPA_DIRECT
from vmbus_emu.protocol.vstor import Direction
from vmbus_emu.ring import reset

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


def test_a_write_moves_no_more_than_its_transfer_length(loop: Loop, disks: tuple[Disk, Disk]) -> None:
    one, _ = disks
    packet = vstor.execute_srb(scsi.write_16(0, 8), Direction.OUT, BLOCK_SIZE)
    before = one.host.failed
    assert one.guest.send(GPA_DIRECT, COMPLETION_REQUESTED, 1 << 40, packet, bytearray(8 * BLOCK_SIZE))
    one.guest.on_packet = lambda *answer: one.done.append(BlockRequest(Op.READY))
    assert loop.run_until(lambda: bool(one.done or one.driver.held or one.host.failed), 5)
    assert before is None
    assert not one.driver.held  # eight blocks, where the packet says that one is to be moved
