"""Bytes that nobody meant, at every place of the network path that a peer's bytes reach.

Each case has its own seed, named in the assertion, so that a failure is repeated by that seed alone. (Where a thread
rewrites memory while it is read the seed is not all there is to it.)

Long, because both directions are played over the same two kinds of channel, with the same malformed packets.
"""

import contextlib
import random
import sys
import threading

import pytest

from drivers.switch import Switch
from partitions.child import bulk
from partitions.child import inet_formats as formats
from partitions.child.bulk import Receiver
from partitions.child.inet import EchoReply, IpStack
from partitions.child.netvsc import LentBuffer, NetVsc
from partitions.parent.netvsp import NetVspSession, State
from tests.rings import ring_ends
from vmbus_emu.channel import channel_pair, deliver_all
from vmbus_emu.device import PortInfo, Status
from vmbus_emu.loop import Loop
from vmbus_emu.memory import PAGE, Lent
from vmbus_emu.polling import Poller
from vmbus_emu.protocol import nvsp, rndis
from vmbus_emu.protocol.packets import (
    COMPLETION,
    COMPLETION_REQUESTED,
    GPA_DIRECT,
    IN_BAND,
    PACKET_TYPES,
    TRANSFER_PAGES,
)

MAC, OTHER, THIRD = (bytes((2, 0, 0, 0, 0, number)) for number in (1, 2, 3))
GPADL, SEND_GPADL, RECEIVE_BYTES, SEND_BYTES = 5, 6, 32 * 1806, 4 * nvsp.SECTION_BYTES
FRAME = OTHER + MAC + b"\x08\x00" + bytes(60)
EDGES = (0, 1, 2, 7, 8, 36, 44, 0x7FFFFFFF, 0x80000000, 0xFFFFFFDB, 0xFFFFFFF8, 0xFFFFFFFF)


def cases(fuzz, question, count):
    for case in fuzz(count):
        yield random.Random(f"{question} {case}"), f"seed {question!r} {case}"


def mutated(rng, data):
    """``data`` with a few bits, words, or its length changed; sometimes nothing of it left."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randrange(200))
    out = bytearray(data)
    for _ in range(rng.randrange(4)):
        kind = rng.randrange(5)
        if kind == 0 and out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        elif kind == 1 and len(out) >= 4:
            at = rng.randrange(len(out) // 4) * 4
            value = rng.choice(EDGES) if rng.random() < 0.5 else (len(out) + rng.randrange(-9, 9)) & 0xFFFFFFFF
            out[at : at + 4] = value.to_bytes(4, "little")
        elif kind == 2:
            del out[rng.randrange(len(out) + 1) :]
        elif kind == 3:
            out += rng.randbytes(rng.randrange(1, 60))
        elif out:
            at = rng.randrange(len(out))
            out[at:at] = out[at : at + rng.randrange(1, 40)]
    return bytes(out)


NVSP_SEEDS = [nvsp.encode(row.fields(*[1] * len(row.fields._fields))) for row in nvsp.MESSAGES] + [
    nvsp.encode(message) for message in (
        nvsp.Init(0x60001, 0x60001), nvsp.NdisConfig(1514, 0, 0), nvsp.SendReceiveBuffer(GPADL, 0xCAFE),
        nvsp.SendSendBuffer(SEND_GPADL, 0), nvsp.RndisPacket(0, 0, 118), nvsp.RevokeReceiveBuffer(0xCAFE),
        nvsp.RevokeSendBuffer(0), nvsp.Subchannel(1, 8),
    )
] + [nvsp.DATA_PACKET] * 8 + [nvsp.CONTROL_PACKET] * 8 + list(nvsp.COMPLETE.values())
CONTROL_SEEDS = [
    rndis.encode(message) for message in (
        rndis.Initialize(1, 1, 0, 0x4000), rndis.Query(2, rndis.OID_SUPPORTED_LIST), rndis.Halt(3),
        rndis.Set(4, rndis.OID_PACKET_FILTER, info=b"\x0b\0\0\0"),
        rndis.SetEx(5, rndis.OID_PACKET_FILTER, info=b"\x20\0\0\0"),
        rndis.Reset(0), rndis.Keepalive(6), rndis.Indicate(rndis.MEDIA_CONNECT, b"info"),
        rndis.QueryComplete(7, 0, b"value"), rndis.SetComplete(8, 0),
        rndis.InitializeComplete(9, 0, 1, 0, 1, 0, 8, 1, 3),
    )
]
DATA_SEEDS = [
    rndis.pack_frame(FRAME), rndis.pack_frame(FRAME) * 8, rndis.pack_frame(FRAME[:14]),
    rndis.pack_frame(OTHER + MAC + bytes(1502)), rndis.pack_frame(b"\xff" * 6 + MAC + bytes(50)),
    rndis.PACKET_HEADER.pack(1, 44 + 16 + 74, 52, 74, 0, 0, 0, 36, 16, 0, 0)
    + (16).to_bytes(4, "little") + bytes(4) + (12).to_bytes(4, "little") + bytes(4) + FRAME,
]


# -- decoders -------------------------------------------------------------------------------------------


def test_nvsp_decodes_to_a_message_that_encodes_again_or_to_none(fuzz):
    known = asked = 0
    for rng, seed in cases(fuzz, "nvsp", 5000):
        asked += 1
        wire = mutated(rng, rng.choice(NVSP_SEEDS))
        message = nvsp.decode(wire)
        if message is not None and not isinstance(message, nvsp.Seldom):
            known += 1
            assert nvsp.decode(nvsp.encode(message)) == message, seed
    assert known > asked // 10, "the mutations are too wild to reach anything"


def test_unpacked_ranges_always_lie_in_the_buffer(fuzz):
    accepted = asked = 0
    for rng, seed in cases(fuzz, "ranges", 5000):
        asked += 1
        ranges = [(rng.randrange(1, 2000), rng.randrange(30_000)) for _ in range(rng.randrange(1, 5))]
        unpacked = nvsp.unpack_ranges(mutated(rng, nvsp.pack_ranges(ranges, rng.randrange(2))), 32_000)
        if unpacked is not None:
            accepted += 1
            assert unpacked[0] in (0, 1), seed
            assert all(count > 0 and offset + count <= 32_000 for count, offset in unpacked[1]), seed
    assert accepted > asked // 10


def test_rndis_decodes_to_a_message_that_encodes_again_or_to_none(fuzz):
    known = asked = 0
    for rng, seed in cases(fuzz, "rndis", 5000):
        asked += 1
        message = rndis.decode(mutated(rng, rng.choice(CONTROL_SEEDS)))
        if message is not None:
            known += 1
            assert rndis.decode(rndis.encode(message)) == message, seed
    assert known > asked // 10


def test_frames_never_exceed_the_message_they_came_in(fuzz):
    accepted = asked = 0
    for rng, seed in cases(fuzz, "frames", 5000):
        asked += 1
        wire = mutated(rng, rng.choice(DATA_SEEDS))
        found = rndis.frames(wire)
        if found is not None:
            accepted += 1
            assert 1 <= len(found) <= rndis.MAX_PACKETS, seed
            assert sum(map(len, found)) + 44 * len(found) <= len(wire), seed
    assert accepted > asked // 10


def test_internet_formats_take_any_bytes(fuzz):
    echo = formats.pack_echo(8, 1, 2, b"payload")
    packet = formats.pack_ipv4(bytes(4), bytes(4), 1, 64, 1, echo)
    for rng, seed in cases(fuzz, "internet", 5000):
        wire = mutated(rng, packet)
        parsed = formats.parse_ipv4(wire)
        if isinstance(parsed, formats.Ipv4):
            assert len(parsed.payload) <= len(wire) - 20, seed
        formats.parse_echo(memoryview(mutated(rng, echo)))
        formats.parse_arp(mutated(rng, formats.pack_arp(1, MAC, bytes(4), bytes(6), bytes(4))))


# -- the channel between them ---------------------------------------------------------------------------


class Pipe:
    """A channel that carries everything, and what the guest has lent to its other end."""

    def __init__(self, loop):
        self.guest, self.host = channel_pair()
        self.lent = {GPADL: Lent(RECEIVE_BYTES), SEND_GPADL: Lent(SEND_BYTES)}
        self.receive, self.send = LentBuffer(GPADL, RECEIVE_BYTES, None), LentBuffer(SEND_GPADL, SEND_BYTES, None)

    def deliver(self):
        deliver_all(self.guest, self.host)

    def from_guest(self, packet):
        self.guest.send(*packet)

    def from_host(self, packet_type, flags, transaction_id, message, data):
        self.host.send(packet_type, flags, transaction_id, message, None if data is None else b"".join(data))

    def close(self):
        pass


class Rings:
    """The same in shared memory. What a ring cannot carry at all is in-band here: tests of the ring have the rest."""

    def __init__(self, loop):
        self.loop = loop
        self.ends = ring_ends(loop, loop.poller or Poller(loop), 3, buffer_pages=40, reserve_pages=16)
        self.guest, self.host = self.ends.guest, self.ends.host
        memory, self.lent, mine = self.ends.memory, {}, []
        for gpadl, nbytes in ((GPADL, RECEIVE_BYTES), (SEND_GPADL, SEND_BYTES)):
            count = -(-nbytes // PAGE)
            first = self.ends.buffers.take(count)
            pages = range(first, first + count)
            mine.append(LentBuffer(gpadl, nbytes, memory.guest.linear(pages)[:nbytes]))
            self.lent[gpadl] = Lent(nbytes, memory.host.linear(pages)[:nbytes])
        self.receive, self.send = mine

    def deliver(self):
        for _ in range(1000):
            self.loop.step(0.0)
            if not any(not end.closed and (end.touched or end.has_news()) for end in (self.guest, self.host)):
                return
        raise AssertionError("the rings do not come to rest")

    def from_guest(self, packet):
        packet_type, flags, transaction_id, message, data = packet
        self.guest.send(ring_type(packet_type, message), flags, transaction_id, message, data)

    def from_host(self, packet_type, flags, transaction_id, message, data):
        """``data`` goes to the places that :func:`host_packet` names."""
        for at, part in enumerate(data or ()):
            self.lent[GPADL].memory[1806 * at : 1806 * at + len(part)] = part
        if packet_type != GPA_DIRECT:
            self.host.send(ring_type(packet_type, message), flags, transaction_id, message)

    def close(self):
        self.ends.close()


def ring_type(packet_type, message):
    fits = len(message) >= 8 and 8 + 8 * int.from_bytes(message[4:8], "little") <= len(message)
    return packet_type if packet_type != TRANSFER_PAGES or fits else IN_BAND


@contextlib.contextmanager
def linked(transport, loop):
    link = transport(loop)
    try:
        yield link
    finally:
        link.close()


@contextlib.contextmanager
def rewriting(contents, *memories):
    """A thread that rewrites ``memories`` piece by piece, with one of ``contents`` after the other."""
    done = threading.Event()

    def rewrite():
        while not done.is_set():
            for content in contents:
                for memory in memories:
                    for at in range(0, len(content), 40):
                        memory[at : at + len(content[at : at + 40])] = content[at : at + 40]

    thread = threading.Thread(target=rewrite)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)


# -- a guest against the parent -------------------------------------------------------------------------


class Host:
    """A switch with one healthy guest on it, and room for one that is not."""

    def __init__(self):
        self.loop = Loop()
        self.switch = Switch("s0")
        self.healthy = self.guest("healthy", OTHER)
        self.seen = []
        self.healthy.connect(lambda frame: self.seen.append(bytes(frame)) is None)

    def guest(self, name, mac):
        link = Pipe(self.loop)
        NetVspSession(link.host, self.switch.port(name, mac), link.lent)
        adapter = NetVsc(self.loop, name, lambda line: None)
        up = adapter.attach(link.guest, link.receive)
        self.ends = (link.guest, link.host)
        while not up.done:
            self.loop.step(0.0)
            deliver_all(*self.ends)
        assert up.result() is True
        return adapter

    def check(self, seed):
        """The healthy guest still sends and receives."""
        station = self.switch.port("probe", THIRD)
        got = []
        station.connect(lambda frame: got.append(bytes(frame)) is None)
        assert self.healthy.transmit(THIRD + OTHER + b"\x08\x00probe") is Status.OK, seed
        deliver_all(*self.ends)
        assert got[-1] == THIRD + OTHER + b"\x08\x00probe", seed
        self.seen.clear()
        station.transmit(OTHER + THIRD + b"\x08\x00answer")
        deliver_all(*self.ends)
        assert self.seen[-1] == OTHER + THIRD + b"\x08\x00answer", seed
        self.switch.remove(station)


@pytest.fixture(scope="module")
def host():
    made = Host()
    yield made
    made.loop.close()


HANDSHAKE = [
    (State.CONFIG, IN_BAND, nvsp.encode(nvsp.Init(0x60001, 0x60001)), None),
    (State.NDIS_VERSION, IN_BAND, nvsp.encode(nvsp.NdisConfig(1514, 0, 0)), None),
    (State.RECEIVE_BUFFER, IN_BAND, nvsp.encode(nvsp.NdisVersion(6, 30)), None),
    (State.SEND_BUFFER, IN_BAND, nvsp.encode(nvsp.SendReceiveBuffer(GPADL, 0xCAFE)), None),
    (State.RUNNING, IN_BAND, nvsp.encode(nvsp.SendSendBuffer(SEND_GPADL, 0)), None),
    ("initialized", GPA_DIRECT, nvsp.CONTROL_PACKET, CONTROL_SEEDS[0]),
    ("open", GPA_DIRECT, nvsp.CONTROL_PACKET, CONTROL_SEEDS[3]),
    (State.REVOKED, IN_BAND, nvsp.encode(nvsp.RevokeReceiveBuffer(0xCAFE)), None),
]


def random_packet(rng):
    """``(packet type, flags, transaction id, message, data)`` as a guest might make it up, mostly plausible."""
    packet_type = rng.choice((GPA_DIRECT, GPA_DIRECT, IN_BAND, COMPLETION, rng.choice(sorted(PACKET_TYPES))))
    message = rng.choice(NVSP_SEEDS)
    data = rng.choice((*CONTROL_SEEDS, *DATA_SEEDS))
    if packet_type == GPA_DIRECT and rng.random() < 0.8:
        message = rng.choice((nvsp.DATA_PACKET, nvsp.CONTROL_PACKET))
    elif rng.random() < 0.3:
        message = mutated(rng, message)
    if rng.random() < 0.6:
        data = mutated(rng, data)
    transaction_id = rng.choice((0, 1, 2, 3, 99, (1 << 64) - 1))
    return packet_type, rng.randrange(2), transaction_id, message, data if packet_type == GPA_DIRECT else None


@pytest.mark.parametrize("transport", [Pipe, Rings])
@pytest.mark.parametrize("reached", [State.INIT, *(step[0] for step in HANDSHAKE)], ids=str)
def test_a_guest_may_send_anything_in_any_state_and_nobody_else_notices(fuzz, host, reached, transport):
    survived = failed = 0
    for rng, seed in cases(fuzz, f"netvsp {reached}", 1000 if transport is Pipe else 500):
        with linked(transport, host.loop) as link:
            failures = []
            link.host.on_failed = failures.append
            port = host.switch.port("hostile", MAC)
            session = NetVspSession(link.host, port, link.lent)
            if link.send.memory is not None:
                for at in range(0, SEND_BYTES, nvsp.SECTION_BYTES):
                    content = rng.choice((DATA_SEEDS[1], rng.choice(DATA_SEEDS), mutated(rng, DATA_SEEDS[1])))
                    link.send.memory[at : at + len(content)] = content
            for step, packet_type, message, data in HANDSHAKE if reached is not State.INIT else ():
                link.from_guest((packet_type, COMPLETION_REQUESTED, 1000, message, data))
                if step == reached:
                    break
            link.deliver()
            assert failures == [], seed
            for _ in range(rng.randrange(1, 12)):
                link.from_guest(random_packet(rng))
                if rng.random() < 0.3:
                    host.healthy.transmit(rng.choice((MAC, b"\xff" * 6)) + OTHER + b"\x08\x00" + rng.randbytes(40))
                    deliver_all(*host.ends)
                link.deliver()
            assert len(failures) <= 1, seed
            assert (link.host.failed is not None) == bool(failures), seed
            stats = session.stats()
            assert 0 <= stats.lent <= 256, seed
            assert stats.waiting <= 64, seed
            survived += not failures
            failed += bool(failures)
            session.close()
            host.switch.remove(port)
            host.check(seed)
    if survived + failed < 300:
        return  # too few to say something about the generator
    assert failed > 0
    assert survived > 0 or reached in (State.INIT, State.CONFIG, State.NDIS_VERSION, State.RECEIVE_BUFFER)


def test_a_guest_that_rewrites_what_is_being_read_sends_in_nobody_elses_name(fuzz):
    frames = [FRAME, FRAME[:6] + OTHER + FRAME[12:], MAC + MAC + bytes(400), bytes(14)]
    contents = [*(rndis.pack_frame(frame) * 8 for frame in frames), b"\xff" * 800, rndis.pack_frame(FRAME)]
    arrived = 0

    def receive(frame):
        nonlocal arrived
        arrived += 1
        assert frame[6:12] == MAC
        assert type(memoryview(frame).obj) is bytes, "what is handed on is in nobody's reach"
        return True

    loop = Loop()
    try:
        with linked(Rings, loop) as link:
            switch = Switch("s0")
            session = NetVspSession(link.host, switch.port("hostile", MAC), link.lent)
            switch.port("peer", OTHER).connect(receive)
            for _, packet_type, message, data in HANDSHAKE[:-1]:
                link.from_guest((packet_type, COMPLETION_REQUESTED, 1000, message, data))
            link.deliver()
            pages = link.ends.buffers.allocate(nvsp.SECTION_BYTES)
            with rewriting(contents, link.send.memory, pages):
                asked = 0
                for rng, seed in cases(fuzz, "rewritten sections", 1000):
                    asked += 1
                    size = rng.choice((118, 118 * 8, 1000))
                    described = GPA_DIRECT, 1, 7, nvsp.DATA_PACKET, pages[:size]
                    in_section = IN_BAND, 1, 8, nvsp.pack_in_section(0, size), None
                    link.from_guest(rng.choice((described, in_section)))
                    link.deliver()
                    assert link.host.failed is None, seed
            assert link.guest.copies == 2, "the two control messages: what was described was read in its place"
            assert session.stats().tx_frames == arrived
            assert asked < 300 or (arrived and session.stats().tx_spoofed and session.stats().invalid_rndis)
    finally:
        loop.close()


# -- a host against the guest ---------------------------------------------------------------------------


def host_packet(rng):
    """Like :func:`random_packet`, but mostly transfer pages; the data is a list of parts, 1806 bytes apart."""
    if rng.random() < 0.6:
        messages = [rng.choice((*DATA_SEEDS, *CONTROL_SEEDS)) for _ in range(rng.randrange(1, 4))]
        messages = [mutated(rng, message) if rng.random() < 0.5 else message for message in messages]
        pages = nvsp.pack_ranges([(len(message), 1806 * at) for at, message in enumerate(messages)], rng.randrange(2))
        if rng.random() < 0.2:
            pages = mutated(rng, pages)
        return TRANSFER_PAGES, rng.randrange(2), rng.randrange(4), pages, messages
    packet_type, flags, _, message, data = random_packet(rng)
    return packet_type, flags, rng.randrange(1, 40), message, None if data is None else [data]


HANDSHAKE_ROUNDS = 4


def detached(adapter, up, loop, seed):
    """Take the adapter off its channel: then nobody waits for anything, whatever had come."""
    adapter.detach()
    for _ in range(3):
        loop.step(0.0)
    assert up.done, seed
    assert adapter.stats().outstanding == 0, seed


@pytest.mark.parametrize("rounds", range(HANDSHAKE_ROUNDS + 1))
def test_a_host_may_send_anything_to_an_adapter_at_any_step(fuzz, rounds):
    loop = Loop()
    try:
        for rng, seed in cases(fuzz, f"netvsc {rounds}", 1000):
            link = Pipe(loop)
            near, far = link.guest, link.host
            failures = []
            near.on_failed = failures.append
            adapter = NetVsc(loop, "nic0", lambda line: None)
            adapter.connect(lambda frame: True, lambda: None)
            switch = Switch("s0")
            NetVspSession(far, switch.port("vm", MAC), link.lent)
            up = adapter.attach(near, link.receive)
            for _ in range(rounds):
                loop.step(0.0)
                deliver_all(near, far)
            assert up.done == (rounds == HANDSHAKE_ROUNDS), "every step of the handshake, and the time after it"
            far.on_packet = lambda *packet: None
            for _ in range(rng.randrange(1, 12)):
                adapter.transmit(FRAME)
                link.from_host(*host_packet(rng))
                near.deliver()
                loop.step(0.0)
            assert len(failures) <= 1, seed
            detached(adapter, up, loop, seed)
    finally:
        loop.close()


def test_a_host_may_send_anything_on_a_ring_to_an_adapter_at_any_step(fuzz):
    loop = Loop()
    up_before = failed = asked = 0
    try:
        for rng, seed in cases(fuzz, "netvsc ring", 3000):
            asked += 1
            with linked(Rings, loop) as link:
                failures = []
                link.guest.on_failed = failures.append
                adapter = NetVsc(loop, "nic0", lambda line: None)
                adapter.connect(lambda frame: True, lambda: None)
                NetVspSession(link.host, Switch("s0").port("vm", MAC), link.lent)
                up = adapter.attach(link.guest, link.receive, link.send)
                for _ in range(rng.choice((*range(30), 100))):
                    loop.step(0.0)
                up_before += up.done
                link.host.on_packet = lambda *packet: None
                for _ in range(rng.randrange(1, 12)):
                    adapter.transmit(FRAME)
                    link.from_host(*host_packet(rng))
                    link.deliver()
                assert len(failures) <= 1, seed
                failed += bool(failures)
                detached(adapter, up, loop, seed)
    finally:
        loop.close()
    assert asked < 300 or (0 < up_before < asked and 0 < failed < asked)


def test_a_host_that_rewrites_the_receive_buffer_while_it_is_read_hands_over_nothing_it_can_change(fuzz):
    incoming = MAC + OTHER + b"\x08\x00" + bytes(60)
    contents = [rndis.pack_frame(incoming) * 8, b"\xff" * 800, rndis.pack_frame(incoming[:14]) * 10]
    arrived = []

    def receive(frame):
        assert len(frame) >= 14
        assert type(frame.obj) is bytes, "what is handed on is in nobody's reach"
        arrived.append(len(frame))
        return True

    loop = Loop()
    try:
        with linked(Rings, loop) as link:
            adapter = NetVsc(loop, "nic0", lambda line: None)
            adapter.connect(receive)
            NetVspSession(link.host, Switch("s0").port("vm", MAC), link.lent)
            up = adapter.attach(link.guest, link.receive, link.send)
            while not up.done:
                link.deliver()
            link.host.on_packet = lambda *packet: None
            with rewriting(contents, link.lent[GPADL].memory):
                asked = 0
                for rng, seed in cases(fuzz, "rewritten receive buffer", 1000):
                    asked += 1
                    ranges = [(rng.choice((118, 118 * 8, 58)), 0) for _ in range(rng.randrange(1, 4))]
                    link.host.send(TRANSFER_PAGES, 1, 1, nvsp.pack_ranges(ranges, nvsp.DATA_CHANNEL))
                    link.deliver()
                    assert link.guest.failed is None, seed
            assert adapter.stats().rx_frames == len(arrived)
            assert asked < 300 or (arrived and adapter.malformed)
    finally:
        loop.close()


# -- frames against a guest's stack ---------------------------------------------------------------------


class Wire:
    """A port whose far end is the test."""

    info = PortInfo(MAC, 1500)

    def __init__(self):
        self.sent = []

    def transmit(self, frame):
        self.sent.append(bytes(frame))
        return Status.OK

    def connect(self, receiver, on_ready=None):
        self.receive = receiver


def stack_frame(rng):
    own, peer = bytes((10, 0, 0, 1)), bytes((10, 0, 0, rng.randrange(2, 255)))
    if rng.random() < 0.4:
        arp = formats.pack_arp(rng.randrange(1, 3), OTHER, rng.choice((own, peer)), MAC, rng.choice((own, peer)))
        body, ethertype = mutated(rng, arp), formats.ETHERTYPE_ARP
    else:
        echo = formats.pack_echo(rng.choice((0, 8)), rng.randrange(4), rng.randrange(4), b"payload")
        frame = bulk.pack(rng.randrange(6), rng.randrange(4), 1, rng.randrange(4), bytes(rng.randrange(9)), True)
        datagram = formats.pack_udp(rng.choice((1, bulk.PORT)), bulk.PORT, mutated(rng, frame))
        protocol, message = (17, datagram) if rng.random() < 0.25 else (1, echo)
        packet = formats.pack_ipv4(peer, own, protocol, 64, 1, mutated(rng, message) if rng.random() < 0.5 else message)
        body, ethertype = mutated(rng, packet) if rng.random() < 0.5 else packet, formats.ETHERTYPE_IPV4
    head = formats.ETHERNET.pack(rng.choice((MAC, formats.BROADCAST)), OTHER, ethertype)
    return rng.choice((head + body, mutated(rng, head + body)))


def test_frames_of_any_content_leave_a_stack_that_still_pings(fuzz):
    loop = Loop()
    answered = asked = 0
    try:
        for rng, seed in cases(fuzz, "inet", 3000):
            asked += 1
            wire = Wire()
            stack = IpStack(loop, wire, "10.0.0.1", 24, {}, lambda line: None)
            Receiver(stack)
            for _ in range(rng.randrange(1, 20)):
                assert wire.receive(stack_frame(rng)) is True, seed
            answered += len(wire.sent)
            wire.receive(formats.ETHERNET.pack(MAC, OTHER, 0x0806) + formats.pack_arp(
                2, OTHER, bytes((10, 0, 0, 77)), MAC, bytes((10, 0, 0, 1))))
            wire.sent.clear()
            outcome = stack.echo("10.0.0.77", 1, b"still here", 60.0)
            request = formats.parse_echo(formats.parse_ipv4(wire.sent[-1][14:]).payload)
            reply = formats.pack_echo(0, request.identifier, request.sequence, request.payload)
            packet = formats.pack_ipv4(bytes((10, 0, 0, 77)), bytes((10, 0, 0, 1)), 1, 64, 1, reply)
            wire.receive(formats.ETHERNET.pack(MAC, OTHER, 0x0800) + packet)
            assert isinstance(outcome.result(), EchoReply), seed
    finally:
        loop.close()
    assert asked < 100 or answered > asked, "the frames are too wild to be answered"
