"""Hostile peers at both ends of a ring: broken packets, words that change between two operations, and a second process
that rewrites the shared pages while they are read.

Whatever stands there: packets that are handed over are well formed and describe granted memory only, or the channel
fails, or it waits. Nothing raises, nothing is waited for actively, and nothing grows.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.rings import GPA, SharedMemory, ring_ends
from vmbus_emu.device import Memory
from vmbus_emu.guest_ring import GuestRing
from vmbus_emu.host_ring import BACKLOG, HostRing
from vmbus_emu.loop import Loop
from vmbus_emu.memory import PAGE, Pool, Region
from vmbus_emu.polling import ADAPTIVE, Poller
from vmbus_emu.protocol.packets import (
    COMPLETION,
    COMPLETION_REQUESTED,
    GPA_DIRECT,
    IN_BAND,
    MAX_MESSAGE_BYTES,
    PACKET_TYPES,
    TRANSFER_PAGES,
)
from vmbus_emu.ring import RingFault, RingReader, RingWriter, page_ranges, reset
from vmbus_emu.ring_channel import TURN_PACKETS

Fuzz = Callable[[int], Iterator[int]]
PFN = GPA // PAGE
RING_PAGES = 3
SIZE = (RING_PAGES - 1) * PAGE
BUFFER_PAGES = 8
#: Words of a control page, in bytes: indexes, mask, pending, features.
WORDS = (0, 4, 8, 12, 64)


def odd_word(rng: random.Random) -> int:
    """An index, or what somebody might take for one."""
    return rng.choice((
        8 * rng.randrange(SIZE // 8), rng.randrange(SIZE), 0, 1, SIZE - 8, SIZE, SIZE + 8, 0x8000_0000, 0xFFFF_FFFF,
        rng.getrandbits(32),
    ))  # fmt: skip


def page_list(rng: random.Random) -> bytes:
    """Mostly a correct one, of granted pages or of their neighbours."""
    ranges = rng.choice((1, 1, 1, 2, 5))
    out = struct.pack("<II", rng.getrandbits(32), ranges if rng.random() < 0.9 else rng.choice((0, 7, 0xFFFF_FFFF)))
    for _ in range(ranges):
        into, nbytes = rng.choice((0, 1, 4095, 4096)), rng.choice((1, 8, 4096, 9000, 0, 0xFFFF_FFFF))
        pages = rng.randrange(4) if nbytes > 9000 or rng.random() < 0.1 else (into + nbytes + PAGE - 1) // PAGE
        out += struct.pack("<II", nbytes, into)
        for _ in range(pages):
            page = rng.randrange(2 * RING_PAGES + BUFFER_PAGES) if rng.random() < 0.95 else rng.choice((-1, 99, -PFN))
            out += struct.pack("<Q", PFN + page)
    return out


def packet(rng: random.Random) -> bytes:
    """Mostly a correct one; every field of its descriptor may be something else."""
    kind = rng.choice((IN_BAND, IN_BAND, TRANSFER_PAGES, GPA_DIRECT, GPA_DIRECT, COMPLETION))
    between = b""
    if kind == GPA_DIRECT:
        between = page_list(rng)
    elif kind == TRANSFER_PAGES:
        ranges = rng.randrange(4)
        between = struct.pack("<HHI", 0xCAFE, 0, ranges if rng.random() < 0.9 else 99) + bytes(8 * ranges)
    body = between + rng.randbytes(rng.choice((0, 8, 40, 64, 1024)))
    fields = [kind, 2 + len(between) // 8, 2 + len(body) // 8, rng.randrange(2)]
    if rng.random() < 0.2:
        fields[rng.randrange(4)] = rng.choice((0, 1, 2, 3, 15, 0xFFFF, rng.getrandbits(16)))
    return struct.pack("<4HQ", *fields, rng.getrandbits(64)) + body + rng.randbytes(8)


class Checked:
    """The handler of either end: what is handed over must be well formed."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.count = 0

    def packet(self, kind: int, flags: int, transaction_id: int, message: bytes, data: Memory | None) -> None:
        self.count += 1
        assert kind in PACKET_TYPES
        assert not flags & ~COMPLETION_REQUESTED
        assert 0 <= transaction_id < 1 << 64
        assert type(message) is bytes
        assert len(message) <= MAX_MESSAGE_BYTES
        assert len(message) % 8 == 0
        assert (kind == GPA_DIRECT) == (data is not None)
        if data is not None:
            bytes(data)  # the memory is there

    def direct(self, flags: int, transaction_id: int, message: bytes, pages: bytes) -> None:
        ranges = page_ranges(pages)
        for byte_count, byte_offset, pfns in ranges:
            assert byte_count > 0
            assert 0 <= byte_offset < PAGE
            assert len(pfns) == (byte_offset + byte_count + PAGE - 1) // PAGE * 8
        area = self.region.resolve(ranges)
        if area is not None:
            assert len(area) == sum(one[0] for one in ranges)
            self.packet(GPA_DIRECT, flags, transaction_id, message, area)


# -- one ring ----------------------------------------------------------------------------------------------------


@contextmanager
def one_ring() -> Iterator[tuple[SharedMemory, memoryview, memoryview]]:
    """Memory with a ring in its first pages: mapped as a ring, and as it is."""
    memory = SharedMemory(2 * RING_PAGES + BUFFER_PAGES)
    yield memory, memory.host.ring(range(RING_PAGES)), memory.guest.view
    memory.close()


def test_packets_of_any_kind_at_a_reader(fuzz: Fuzz) -> None:
    delivered = faults = 0
    with one_ring() as (memory, ring, pages):
        for case in fuzz(6000):
            rng = random.Random(case)
            reset(ring)
            at = 8 * rng.randrange(SIZE // 8)
            struct.pack_into("<II", pages, 0, at, at)
            reader, checked = RingReader(ring), Checked(memory.host)
            for _ in range(rng.randrange(1, 6)):
                raw = packet(rng)[: SIZE - 8]
                end = min(SIZE, at + len(raw))
                pages[PAGE + at : PAGE + end] = raw[: end - at]
                pages[PAGE : PAGE + len(raw) - (end - at)] = raw[end - at :]
                at = (at + len(raw)) % SIZE
                struct.pack_into("<I", pages, 0, at if rng.random() < 0.9 else odd_word(rng))
                try:
                    while reader.read(4, checked.packet, checked.direct):
                        pass
                    assert not reader.has_news()
                except RingFault:
                    faults += 1
                    break
                finally:
                    assert reader.position < SIZE
                    assert reader.position % 8 == 0
                reader.publish()
                reader.must_ring(0)
                at = reader.position
                struct.pack_into("<I", pages, 0, at)
            delivered += checked.count
    assert delivered
    assert faults


def test_a_writer_whose_reader_writes_anything(fuzz: Fuzz) -> None:
    refused = faults = 0
    with one_ring() as (_, ring, pages):
        for case in fuzz(4000):
            rng = random.Random(case)
            reset(ring)
            writer = RingWriter(ring)
            outside = rng.randbytes(8)
            pages[RING_PAGES * PAGE : RING_PAGES * PAGE + 8] = outside
            try:
                for _ in range(30):
                    if rng.random() < 0.3:
                        struct.pack_into("<I", pages, rng.choice(WORDS), odd_word(rng))
                    if not writer.put(IN_BAND, 0, 1, bytes(rng.choice((0, 7, 500, 3000, SIZE - 64)))):
                        refused += 1
                    start = writer.publish()
                    if start >= 0:
                        assert 0 <= start < SIZE
                        writer.must_ring(start)
                    writer.has_room()
            except RingFault:
                faults += 1
            assert bytes(pages[RING_PAGES * PAGE : RING_PAGES * PAGE + 8]) == outside
    assert refused
    assert faults


# -- both ends, with words that change between two operations ----------------------------------------------------


def test_shared_fields_that_change_between_operations(fuzz: Fuzz) -> None:
    failures: dict[str, int] = {"guest": 0, "host": 0, "neither": 0}
    for case in fuzz(1500):
        rng = random.Random(case)
        loop = Loop()
        poller = Poller(loop, ADAPTIVE)
        ends = ring_ends(loop, poller, RING_PAGES, BUFFER_PAGES, BUFFER_PAGES, max_ranges=2)
        pages = ends.memory.guest.view
        guest, host = Checked(ends.memory.guest), Checked(ends.memory.host)
        told: list[str] = []

        def serve(*arrived: Any, host: Checked = host, end: HostRing = ends.host) -> None:
            host.packet(*arrived)
            end.send(COMPLETION, 0, arrived[2], bytes(8 * (arrived[2] % 50)))

        ends.guest.on_packet, ends.host.on_packet = guest.packet, serve
        ends.guest.on_failed = ends.host.on_failed = told.append
        for step in range(rng.choice((10, 40))):
            match rng.randrange(6):
                case 0 | 1:
                    for number in range(rng.randrange(1, 20)):
                        ends.guest.send(IN_BAND, COMPLETION_REQUESTED, number, bytes(rng.choice((8, 64, 700))))
                case 2:
                    buffer = ends.buffers.allocate(rng.choice((8, 5000))) or bytearray(8)
                    ends.guest.send(GPA_DIRECT, COMPLETION_REQUESTED, step, bytes(8), None, buffer)
                case 3:
                    ends.guest.send(GPA_DIRECT, COMPLETION_REQUESTED, step, bytes(8), bytes(100))
                case 4:
                    ring = rng.choice((0, RING_PAGES * PAGE))
                    struct.pack_into("<I", pages, ring + rng.choice(WORDS), odd_word(rng))
                case 5:
                    at = rng.choice((PAGE, (RING_PAGES + 1) * PAGE)) + rng.randrange(SIZE - 1200)
                    raw = rng.choice((rng.randbytes(8), packet(rng)[:1200]))
                    pages[at : at + len(raw)] = raw
            for _ in range(rng.randrange(3)):
                loop.step(0.0)
            assert len(ends.host._backlog) <= BACKLOG
        if rng.random() < 0.1:                      # both are at rest soon, whatever stands in the rings
            for _ in range(2 * SIZE // 24):
                if poller.before_sleep(-1.0) not in (None, 0.0):
                    break
                poller.looked(time.monotonic())
            else:
                raise AssertionError("still awake")
        assert len(told) == ends.guest.closed + ends.host.closed
        failures["guest"] += ends.guest.closed
        failures["host"] += ends.host.closed
        failures["neither"] += not told
        ends.close()
        loop.close()
    assert all(failures.values())


# -- a second process at full speed ------------------------------------------------------------------------------

#: Both rings are full of packets of 64 bytes, one at every multiple of 64: so many write indexes are right ones. Then
#: anything is overwritten for an instant, again and again.
PRODUCER = r"""
import mmap, os, random, struct, sys
fd, ring_pages, pages, first_pfn, seed, to_guest, parent = map(int, sys.argv[1:])
memory = mmap.mmap(fd, pages * 4096)
rng = random.Random(seed)
ring = ring_pages * 4096
size = ring - 4096
kinds = []
direct = struct.pack("<IIIIQ", 0, 1, 100, 50, first_pfn + 2 * ring_pages)
for kind, start, between in (
    (6, 2, b""), (11, 2, b""), (9, 5, direct), (7, 4, struct.pack("<HHIII", 0xCAFE, 0, 1, 8, 0)),
):
    if kind != 9 or not to_guest:
        kinds.append((struct.pack("<4HQ", kind, start, 7, 0, 1) + between).ljust(64, b"\0"))
slots = [base + 4096 + at for base in (0, ring) for at in range(0, size, 64)]
for slot in slots:
    memory[slot : slot + 64] = rng.choice(kinds)
pack = struct.Struct("<I").pack
words = [base + at for base in (0, ring) for at in (0, 4, 8, 12, 64)]
bad = [pack(word) for word in (1, 4, size, 1 << 31, 0xFFFFFFFF)]
count = 0
sys.stdout.write("r"); sys.stdout.flush()
while True:
    count += 1
    if not count % 4096 and os.getppid() != parent:
        break
    do = rng.random()
    if do < 0.5:
        at = rng.choice((0, ring))
        memory[at : at + 4] = pack(64 * rng.randrange(size // 64))
    elif do < 0.7:
        at = rng.choice(words)
        memory[at : at + 4] = pack(64 * rng.randrange(size // 64))
    elif do < 0.9:
        slot = rng.choice(slots)
        kept = memory[slot : slot + 64]
        for _ in range(rng.randrange(1, 20)):
            at = slot + rng.choice((0, 1, 2, 4, 6, 16, 20, 24, 28, 32))
            memory[at : at + 2] = rng.choice((b"\0\0", b"\xff\xff", b"\2\0", b"\7\0", b"\6\0"))
            for _ in range(rng.choice((0, 0, 0, 50))):
                pass
            memory[slot : slot + 64] = kept
    elif do < 0.99:
        slot = rng.choice(slots)
        memory[slot : slot + 64] = rng.choice(kinds)
    else:
        at = rng.choice(words)
        memory[at : at + 4] = rng.choice(bad)
        for _ in range(rng.randrange(200)):
            pass
        memory[at : at + 4] = pack(64 * rng.randrange(size // 64))
"""


@contextmanager
def producer(memory: SharedMemory, seed: int, to_guest: bool) -> Iterator[None]:
    arguments = (memory.fd, RING_PAGES, memory.pages, PFN, seed, int(to_guest), os.getpid())
    process = subprocess.Popen(
        [sys.executable, "-c", PRODUCER, *map(str, arguments)], pass_fds=[memory.fd], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.read(1) == b"r"
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Life:
    """A channel from its making until it fails, or for so many rounds."""

    def __init__(self, memory: SharedMemory, end: str) -> None:
        self.loop = Loop()
        self.checked = Checked(memory.host)
        self.told: list[str] = []
        bell, self.rings_bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.peer_reads, peer_bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        inbound = memory.host.ring(range(RING_PAGES))
        outbound = memory.host.ring(range(RING_PAGES, 2 * RING_PAGES))
        poller = Poller(self.loop, ADAPTIVE)
        try:
            if end == "host":
                self._run(HostRing(self.loop, poller, inbound, outbound, bell, peer_bell, memory.host, 1))
            else:
                pool = Pool(memory.host, 2 * RING_PAGES, BUFFER_PAGES)
                self._run(GuestRing(self.loop, poller, inbound, outbound, bell, peer_bell, memory.host, (pool,)))
        except RingFault:                           # of the constructor: nothing else lets one out
            assert not self.checked.count
        for fd in (self.rings_bell, self.peer_reads):
            os.close(fd)
        self.loop.close()

    def _run(self, channel: HostRing | GuestRing) -> None:
        checked = self.checked

        def serve(*arrived: Any) -> None:
            checked.packet(*arrived)
            if arrived[0] != COMPLETION or not checked.count % 16:
                channel.send(COMPLETION, 0, arrived[2], bytes(40))

        channel.on_packet, channel.on_failed = serve, self.told.append
        deadline = time.monotonic() + 5
        for step in range(100):
            before = checked.count
            self.loop.step(0.0)
            assert time.monotonic() < deadline
            assert checked.count - before <= 2 * TURN_PACKETS
            if isinstance(channel, HostRing):
                assert len(channel._backlog) <= BACKLOG
            elif not step % 8:
                channel.send(GPA_DIRECT, COMPLETION_REQUESTED, 1, bytes(8), bytes(100))
            if channel.closed:
                break
            if not step % 16:
                os.write(self.rings_bell, b"\1")
        assert len(self.told) == channel.closed
        channel.close()


@pytest.mark.parametrize("end", ["host", "guest"])
def test_a_peer_that_rewrites_everything_at_full_speed(fuzz: Fuzz, end: str) -> None:
    delivered = failed = 0
    memory = SharedMemory(2 * RING_PAGES + BUFFER_PAGES)
    deadline = time.monotonic() + 20
    with producer(memory, seed=17, to_guest=end == "guest"):
        cases = fuzz(400)
        while next(cases, None) is not None or not (delivered and failed):
            life = Life(memory, end)
            delivered += life.checked.count
            failed += len(life.told)
            assert time.monotonic() < deadline
    memory.close()
