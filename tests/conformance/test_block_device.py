"""What every BlockDevice promises, asked of every one there is: drivers, drivers seen through a VMBus channel, and
drivers behind an emulated IDE controller.

One body, parametrised over ``transport/medium``. A further transport is one more entry in ``TRANSPORTS``: a function
that makes the two connected ends of a channel on the rig's loop. ``ide-MODE`` is the IDE driver and the device model,
connected by calls.

Long, because the promises of one interface belong in one list.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from drivers import ahci, piix
from drivers.disk import FileDisk, NullDisk
from drivers.workers import IoWorkers
from partitions.child.storvsc import StorVsc
from partitions.parent.storvsp import StorVspSession
from tests.legacy import IdeBench
from tests.rings import SharedMemory, ring_ends
from vmbus_emu.channel import Channel, MemoryChannel, ZmqChannel, channel_pair
from vmbus_emu.device import BLOCK_SIZE, BlockDevice, BlockInfo, BlockRequest, Buffer, Op, Status
from vmbus_emu.loop import Loop
from vmbus_emu.polling import Poller

BLOCKS = 16384
MIB = 1 << 20
DEADLINE = 20.0


class Rig:
    """A device under test on a loop of its own, and everything that has to be closed behind it."""

    def __init__(self, transport: str, medium: str, folder: Path, read_only: bool = False) -> None:
        self.loop = Loop()
        self.context: zmq.Context[zmq.Socket[bytes]] | None = None
        self.workers = IoWorkers(self.loop)
        self.folder = folder
        self.completed: list[BlockRequest] = []     # as often as each completed
        self.log: list[str] = []
        self.fd = -1
        self.channels = 0
        self.ends: list[Channel | SharedMemory] = []
        self.poller: Poller | None = None
        self.allocate: Callable[[int], memoryview | None] = lambda nbytes: None
        self.driver = self._make_driver(medium, BlockInfo(BLOCKS, read_only=read_only, serial="conformance"))
        self.transport = transport
        self.session: StorVspSession | None = None
        self.vsc: StorVsc | None = None
        self.device: BlockDevice = self.driver
        self.ide: IdeBench | None = None
        if transport in EMULATED:
            self.ide = IdeBench(self.loop, [self.driver])
            self.device = self.ide.disk
            self.ide.disk.mode = transport.removeprefix("ide-")
        elif transport != "call":
            self.device = self.vsc = StorVsc(
                self.loop, "disk0", self.log.append, lambda nbytes: self.allocate(nbytes)
            )
            self.connect()

    def _make_driver(self, medium: str, info: BlockInfo) -> BlockDevice:
        if medium == "null":
            return NullDisk(info)
        if medium in CONTROLLERS:
            behind = self._make_driver("file", info)
            return CONTROLLERS[medium](behind)
        if medium == "ram":
            self.fd = os.memfd_create("conformance", os.MFD_CLOEXEC)
        else:
            self.fd = os.open(self.folder / "disk.img", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self.fd, info.size_bytes)
        return FileDisk(self.fd, info, self.workers, memory=medium == "ram")

    def connect(self) -> None:
        """A new channel and a new session: what a re-offer comes to."""
        assert self.vsc is not None
        self.channels += 1
        guest_end, server_end = TRANSPORTS[self.transport](self)
        self.session = StorVspSession(server_end, self.driver)
        attached = self.vsc.attach(guest_end)
        assert self.loop.run_until(lambda: attached.done, DEADLINE)
        assert attached.result(), self.log

    def disconnect(self) -> None:
        """What a rescind comes to."""
        assert self.vsc is not None
        assert self.session is not None
        self.vsc.detach()
        drained = self.session.close()
        assert self.loop.run_until(lambda: drained.done, DEADLINE)

    def submit(self, op: Op, lba: int = 0, blocks: int = 0, buffer: Buffer | None = None) -> BlockRequest:
        request = BlockRequest(op, lba, blocks, buffer, self.completed.append)
        self.device.submit(request)
        return request

    def wait(self, *requests: BlockRequest) -> None:
        """Until all have completed, each of them once."""
        assert self.loop.run_until(lambda: all(r.status is not None for r in requests), DEADLINE)
        assert [sum(r is done for done in self.completed) for r in requests] == [1] * len(requests)

    def do(self, op: Op, lba: int = 0, blocks: int = 0, buffer: Buffer | None = None) -> Status | None:
        request = self.submit(op, lba, blocks, buffer)
        self.wait(request)
        return request.status

    def read(self, lba: int, blocks: int) -> bytes:
        buffer = self.device.allocate(blocks * BLOCK_SIZE)
        assert self.do(Op.READ, lba, blocks, buffer) is Status.OK
        return bytes(buffer)

    def close(self) -> None:
        if self.vsc is not None and self.session is not None:
            self.vsc.give_up()
            self.session.close()
        self.workers.close()
        for end in self.ends:
            end.close()
        if self.ide is not None:
            self.ide.close()
        self.loop.close()
        if self.context is not None:
            self.context.term()
        if self.fd >= 0:
            os.close(self.fd)


def memory_ends(rig: Rig) -> tuple[Channel, Channel]:
    guest, server = channel_pair()
    for end, peer in ((guest, server), (server, guest)):
        _deliver_from_loop(rig.loop, end, peer)
    rig.ends.extend((guest, server))
    return guest, server


def _deliver_from_loop(loop: Loop, end: MemoryChannel, peer: MemoryChannel) -> None:
    send = end.send

    def send_and_deliver(*packet: object) -> bool:
        loop.call_soon(peer.deliver)
        return send(*packet)  # type: ignore[arg-type]

    end.send = send_and_deliver  # type: ignore[method-assign,assignment]


def zmq_ends(rig: Rig) -> tuple[Channel, Channel]:
    if rig.context is None:
        rig.context = zmq.Context()
    path = str(rig.folder / f"c{rig.channels}")
    server = ZmqChannel(rig.loop, rig.context, os.getpid())
    server.bind(path)
    guest = ZmqChannel(rig.loop, rig.context)
    guest.connect(path)
    rig.ends.extend((guest, server))
    return guest, server


def rings(rig: Rig) -> tuple[Channel, Channel]:
    if rig.poller is None:
        rig.poller = Poller(rig.loop)
    ends = ring_ends(rig.loop, rig.poller)
    rig.allocate = ends.buffers.allocate
    rig.ends.extend((ends.guest, ends.host, ends.memory))
    return ends.guest, ends.host


TRANSPORTS: dict[str, Callable[[Rig], tuple[Channel, Channel]]] = {
    "memory": memory_ends,
    "zmq": zmq_ends,
    "ring": rings,
}
EMULATED = ("ide-dma", "ide-string")
#: A file behind the driver of a physical controller.
CONTROLLERS: dict[str, Callable[[BlockDevice], BlockDevice]] = {
    "ahci": lambda disk: ahci.attach("8086:2922", disk),
    "piix": lambda disk: piix.attach("8086:7010", disk),
}
WAYS = ("call", *TRANSPORTS, *EMULATED)
DATA_VARIANTS = [f"{transport}/{medium}" for transport in WAYS for medium in ("ram", "file")]
DATA_VARIANTS += [f"{transport}/{medium}" for transport in ("call", "zmq") for medium in CONTROLLERS]
ALL_VARIANTS = [*DATA_VARIANTS, *(f"{transport}/null" for transport in WAYS)]
CHANNEL_VARIANTS = [f"{transport}/{medium}" for transport in TRANSPORTS for medium in ("ram", "file")]
#: Behind something that has a line of its own, in which requests keep their order.
FAR_VARIANTS = [variant for variant in DATA_VARIANTS if not variant.startswith("call/")]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def build(variant: str, read_only: bool = False) -> Rig:
        transport, medium = variant.split("/")
        made.append(Rig(transport, medium, tmp_path, read_only))
        return made[-1]

    yield build
    for rig in made:
        rig.close()


@pytest.fixture(params=ALL_VARIANTS)
def any_disk(request: pytest.FixtureRequest, make: Callable[..., Rig]) -> Rig:
    return make(request.param)


@pytest.fixture(params=DATA_VARIANTS)
def disk(request: pytest.FixtureRequest, make: Callable[..., Rig]) -> Rig:
    """A disk that remembers."""
    return make(request.param)


@pytest.fixture(params=CHANNEL_VARIANTS)
def remote(request: pytest.FixtureRequest, make: Callable[..., Rig]) -> Rig:
    """A disk behind a channel."""
    return make(request.param)


@pytest.fixture(params=FAR_VARIANTS)
def far(request: pytest.FixtureRequest, make: Callable[..., Rig]) -> Rig:
    """A disk that is not a call away."""
    return make(request.param)


# -- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 8, 127, 128, 129, 256, 257, 2048])
def test_what_was_written_is_read_back(disk: Rig, blocks: int) -> None:
    payload = os.urandom(blocks * BLOCK_SIZE)
    assert disk.do(Op.WRITE, 100, blocks, payload) is Status.OK
    assert disk.read(100, blocks) == payload
    assert not any(disk.read(99, 1))
    assert not any(disk.read(100 + blocks, 1))


def test_every_kind_of_buffer_will_do(disk: Rig) -> None:
    payload = os.urandom(1024)
    for lba, source in enumerate((payload, bytearray(payload), memoryview(payload))):
        assert disk.do(Op.WRITE, lba * 2, 2, source) is Status.OK
    for lba in range(3):
        target = bytearray(4096)
        assert disk.do(Op.READ, lba * 2, 2, memoryview(target)[1024:2048]) is Status.OK
        assert target == bytes(1024) + payload + bytes(2048)


def test_a_mebibyte_is_one_request(disk: Rig) -> None:
    payload = os.urandom(MIB)
    assert disk.do(Op.WRITE, 0, 2048, payload) is Status.OK
    assert disk.read(0, 2048) == payload
    stats = disk.driver.stats()
    assert (stats.written_bytes, stats.read_bytes) == (MIB, MIB)
    # An IDE command moves 256 sectors at most, and PIO writes them one by one.
    expected = {"ide-dma": (8, 8), "ide-string": (2048, 8)}.get(disk.transport, (1, 1))
    assert (stats.writes, stats.reads) == expected


def test_unmapped_blocks_read_as_zeros_and_their_neighbours_as_before(disk: Rig) -> None:
    payload = os.urandom(64 * BLOCK_SIZE)
    assert disk.do(Op.WRITE, 0, 64, payload) is Status.OK
    assert disk.do(Op.UNMAP, 3, 40) is Status.OK
    assert disk.read(0, 64) == payload[: 3 * 512] + bytes(40 * 512) + payload[43 * 512 :]
    assert disk.do(Op.UNMAP, 0, BLOCKS) is Status.OK
    assert not any(disk.read(0, 64))


def test_the_last_block_is_a_block(disk: Rig) -> None:
    assert disk.do(Op.WRITE, BLOCKS - 1, 1, b"z" * 512) is Status.OK
    assert disk.read(BLOCKS - 1, 1) == b"z" * 512


def test_a_random_history_agrees_with_a_model(disk: Rig) -> None:
    rng = random.Random(20)
    model = bytearray(512 * BLOCK_SIZE)
    for _ in range(150):
        lba = rng.randrange(512)
        blocks = rng.randint(0, 512 - lba)
        span = slice(lba * BLOCK_SIZE, (lba + blocks) * BLOCK_SIZE)
        op = rng.choice((Op.READ, Op.WRITE, Op.UNMAP, Op.FLUSH))
        if op is Op.READ:
            assert disk.read(lba, blocks) == model[span]
        elif op is Op.WRITE:
            model[span] = rng.randbytes(blocks * BLOCK_SIZE)
            assert disk.do(op, lba, blocks, bytes(model[span])) is Status.OK
        elif op is Op.UNMAP:
            model[span] = bytes(blocks * BLOCK_SIZE)
            assert disk.do(op, lba, blocks) is Status.OK
        else:
            assert disk.do(op) is Status.OK
    assert disk.read(0, 512) == model


# -- statuses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [Op.READY, Op.FLUSH])
def test_requests_without_data_succeed(any_disk: Rig, op: Op) -> None:
    assert any_disk.do(op) is Status.OK


@pytest.mark.parametrize("op", [Op.READ, Op.WRITE, Op.UNMAP])
def test_no_blocks_are_no_work(any_disk: Rig, op: Op) -> None:
    assert any_disk.do(op, 5, 0, bytearray()) is Status.OK
    assert any_disk.do(op, BLOCKS, 0, bytearray()) is Status.OK
    assert any_disk.do(op, BLOCKS + 1, 0, bytearray()) is Status.OUT_OF_RANGE


@pytest.mark.parametrize("op", [Op.READ, Op.WRITE, Op.UNMAP])
@pytest.mark.parametrize(
    ("lba", "blocks"), [(BLOCKS, 1), (BLOCKS - 1, 2), (-1, 1), (1 << 32, 1), ((1 << 64) - 1, 1), (1 << 64, 1)]
)
def test_beyond_the_disk_is_out_of_range(any_disk: Rig, op: Op, lba: int, blocks: int) -> None:
    assert any_disk.do(op, lba, blocks, bytearray(blocks * BLOCK_SIZE)) is Status.OUT_OF_RANGE


@pytest.mark.parametrize(
    ("op", "blocks", "buffer"),
    [
        (Op.READ, 1, None),
        (Op.WRITE, 1, None),
        (Op.READ, 1, bytearray(511)),
        (Op.WRITE, 2, bytes(1023)),
        (Op.READ, 0, bytearray(512)),
        (Op.READ, 1, bytes(512)),
        (Op.READ, 2049, bytearray(2049 * 512)),
        (Op.WRITE, 2049, bytes(2049 * 512)),
    ],
)
def test_a_buffer_that_does_not_fit_is_invalid(any_disk: Rig, op: Op, blocks: int, buffer: Buffer | None) -> None:
    assert any_disk.do(op, 0, blocks, buffer) is Status.INVALID
    assert any_disk.do(Op.READY) is Status.OK


def test_an_unknown_operation_is_unsupported(any_disk: Rig) -> None:
    assert any_disk.do(99) is Status.UNSUPPORTED  # type: ignore[arg-type]
    assert any_disk.do(Op.READY) is Status.OK


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_a_read_only_disk_reads_and_refuses_the_rest(make: Callable[..., Rig], variant: str) -> None:
    disk = make(variant, read_only=True)
    assert disk.device.info.read_only
    assert disk.do(Op.WRITE, 0, 1, b"x" * 512) is Status.READ_ONLY
    assert disk.do(Op.UNMAP, 0, 1) is Status.READ_ONLY
    assert disk.do(Op.FLUSH) is Status.OK
    assert not any(disk.read(0, 8))


def test_the_disk_says_what_it_is(any_disk: Rig) -> None:
    assert any_disk.device.info == any_disk.driver.info


# -- completions -------------------------------------------------------------------------------------------------------


def test_beyond_the_depth_is_busy_and_all_others_complete_once(any_disk: Rig) -> None:
    depth = any_disk.device.info.queue_depth
    payload = bytes(512 * BLOCK_SIZE)           # large enough that a file driver needs a worker
    requests = [any_disk.submit(Op.WRITE, index * 16, 512, payload) for index in range(depth + 8)]
    inside = sum(request.status is Status.OK for request in requests)
    any_disk.wait(*requests)
    statuses = [request.status for request in requests]
    assert set(statuses) <= {Status.OK, Status.BUSY}
    # A driver that completes inside submit never has more than one request: it has no reason to be busy.
    assert statuses.count(Status.BUSY) == (0 if inside else 8)
    assert any_disk.device.stats().outstanding == 0
    assert any_disk.do(Op.READY) is Status.OK


def test_many_at_once_each_get_their_own_data(disk: Rig) -> None:
    depth = disk.device.info.queue_depth
    payloads = [bytes((index,)) * BLOCK_SIZE for index in range(depth)]
    disk.wait(*(disk.submit(Op.WRITE, index, 1, payload) for index, payload in enumerate(payloads)))
    buffers = [disk.device.allocate(BLOCK_SIZE) for _ in range(depth)]
    reads = [disk.submit(Op.READ, index, 1, buffer) for index, buffer in enumerate(buffers)]
    disk.wait(*reads)
    assert [bytes(buffer) for buffer in buffers] == payloads


def test_the_order_of_overlapping_requests_is_their_order_of_submission(far: Rig) -> None:
    last = b""
    requests = []
    buffer = bytearray(4 * BLOCK_SIZE)
    for index in range(40):
        last = bytes((index + 1,)) * 4 * BLOCK_SIZE
        requests.append(far.submit(Op.WRITE, 10, 4, last))
    requests.append(far.submit(Op.READ, 10, 4, buffer))
    far.wait(*requests)
    assert buffer == last


def test_a_completion_may_come_inside_submit_or_after_it(any_disk: Rig) -> None:
    # A client appends in its completion and goes on from its own loop; then both orders are the same to it.
    finished: list[BlockRequest] = []
    for _ in range(300):
        request = BlockRequest(Op.READ, 0, 1, any_disk.device.allocate(BLOCK_SIZE), finished.append)
        any_disk.device.submit(request)
        assert any_disk.loop.run_until(lambda: bool(finished), DEADLINE)
        assert finished.pop() is request
        assert request.status is Status.OK


def test_counters_agree_with_what_was_done(any_disk: Rig) -> None:
    any_disk.do(Op.WRITE, 0, 4, bytes(2048))
    any_disk.do(Op.READ, 0, 8, bytearray(4096))
    any_disk.do(Op.FLUSH)
    any_disk.do(Op.UNMAP, 0, 1)
    any_disk.do(Op.READY)
    any_disk.do(Op.READ, BLOCKS, 1, bytearray(512))
    stats = any_disk.device.stats()
    assert (stats.reads, stats.writes, stats.flushes, stats.other) == (2, 1, 1, 2)
    assert (stats.read_bytes, stats.written_bytes, stats.errors, stats.outstanding) == (4096, 2048, 1, 0)
    assert stats.last_io > 0


# -- a disk behind a channel that goes and comes back ------------------------------------------------------------------


def test_requests_survive_their_channel(remote: Rig) -> None:
    payloads = [os.urandom(512 * BLOCK_SIZE) for _ in range(8)]
    writes = [remote.submit(Op.WRITE, index * 512, 512, payload) for index, payload in enumerate(payloads)]
    remote.disconnect()
    writes.append(remote.submit(Op.WRITE, 512, 512, payloads[0]))
    assert writes[-1] not in remote.completed
    remote.connect()
    remote.wait(*writes)
    assert {write.status for write in writes} == {Status.OK}
    payloads[1] = payloads[0]
    for index, payload in enumerate(payloads):
        assert remote.read(index * 512, 512) == payload


def test_giving_up_ends_everything_with_gone(remote: Rig) -> None:
    assert remote.vsc is not None
    remote.disconnect()
    requests = [remote.submit(Op.READ, index, 1, bytearray(512)) for index in range(5)]
    remote.vsc.give_up()
    requests.append(remote.submit(Op.READY))
    remote.wait(*requests)
    assert {request.status for request in requests} == {Status.GONE}
