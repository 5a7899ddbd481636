"""What every ``NetworkPort`` promises, asked of a switch port directly and of one behind netvsc, channel and netvsp.

One body, five variants: the call of a monolith, an in-process channel, a ZeroMQ channel over a socket file, rings in
shared memory, and a legacy adapter with its driver.
"""

import shutil
import tempfile
import time
from pathlib import Path

import pytest
import zmq

from drivers.switch import Switch
from partitions.child.inet import EchoReply, IpStack
from partitions.child.netvsc import MAX_SENDS, LentBuffer, NetVsc
from partitions.parent.netvsp import NetVspSession
from tests.legacy import NicBench
from tests.rings import ring_ends
from vmbus_emu.channel import ZmqChannel, channel_pair
from vmbus_emu.device import DEFAULT_MTU, Status
from vmbus_emu.loop import Loop
from vmbus_emu.memory import PAGE, Lent
from vmbus_emu.polling import Poller

ALL = b"\xff" * 6
RECEIVE_BYTES, SEND_BYTES = 256 * 1024, 192 * 1024
RECEIVE, SEND = 5, 6
DEADLINE = 10.0


def mac(number):
    return bytes((0x02, 0x15, 0x5D, 0, 0, number))


def frame(to, source, size=64, fill=0x5A):
    return to + source + b"\x08\x00" + bytes((fill,)) * (size - 14)


def unshared():
    """Buffers lent where no memory is shared, as the guest names them and as the host knows them."""
    buffers = LentBuffer(RECEIVE, RECEIVE_BYTES, None), LentBuffer(SEND, SEND_BYTES, None)
    return *buffers, {RECEIVE: Lent(RECEIVE_BYTES), SEND: Lent(SEND_BYTES)}


class Lab:
    """A switch and, per guest, a port as this variant makes it. ``kept`` is what each guest received."""

    def __init__(self, variant):
        self.variant = variant
        self.loop = Loop()
        self.context = zmq.Context()
        self.folder = Path(tempfile.mkdtemp(prefix="net"))
        self.switch = Switch("s0")
        self.switch_ports = []
        self.channels = []
        self.memories = []
        self.failures = []
        self.ports = []
        self.poller = Poller(self.loop) if variant == "ring" else None
        self.ring_pages = 16

    def plug(self, mtu=DEFAULT_MTU):
        number = len(self.ports)
        behind = self.switch.port(f"vm{number}", mac(number), mtu)
        self.switch_ports.append(behind)
        if self.variant == "direct":
            self.ports.append(behind)
        elif self.variant == "tulip":
            bench = NicBench(self.loop, behind, self.failures.append)
            self.memories.append(bench)
            self.ports.append(bench.nic)
        else:
            self.ports.append(self.behind_vmbus(number, behind))
        return self.ports[-1]

    def behind_vmbus(self, number, behind):
        guest, host, receive, send, lent = getattr(self, f"{self.variant}_channel")(number)
        for end in (guest, host):
            end.on_failed = self.failures.append
            self.channels.append(end)
        NetVspSession(host, behind, lent)
        adapter = NetVsc(self.loop, "nic0", self.failures.append)
        up = adapter.attach(guest, receive, send)
        self.wait(lambda: up.done)
        assert up.result() is True
        return adapter

    def memory_channel(self, number):
        ends = channel_pair()
        for end in ends:
            end.send = self.deliver_after(end)
        return *ends, *unshared()

    def deliver_after(self, end):
        """A ``send`` that has the loop deliver: what a socket's readiness does on the other transport."""
        send = end.send

        def sending(*packet):
            sent = send(*packet)
            self.loop.call_soon(end.peer.deliver)
            return sent

        return sending

    def zmq_channel(self, number):
        path = str(self.folder / str(number))
        host, guest = ZmqChannel(self.loop, self.context), ZmqChannel(self.loop, self.context)
        host.bind(path)
        guest.connect(path)
        return guest, host, *unshared()

    def ring_channel(self, number):
        ends = ring_ends(self.loop, self.poller, self.ring_pages)
        self.memories.append(ends.memory)
        buffers, lent = [], {}
        for gpadl, nbytes in ((RECEIVE, RECEIVE_BYTES), (SEND, SEND_BYTES)):
            half = nbytes // PAGE // 2
            low, high = ends.buffers.take(half), ends.buffers.take(half)
            pages = [*range(high, high + half), *range(low, low + half)]  # so that adjacent pages are no help
            buffers.append(LentBuffer(gpadl, nbytes, ends.memory.guest.linear(pages)))
            lent[gpadl] = Lent(nbytes, ends.memory.host.linear(pages))
        return ends.guest, ends.host, *buffers, lent

    def keep(self, number):
        kept = []
        self.ports[number].connect(lambda data: kept.append(bytes(data)) is None)
        return kept

    def wait(self, condition):
        # In short stretches: the loop looks at the condition when it wakes, and a deferred call may have made it
        # true just before it went to sleep.
        end = time.monotonic() + DEADLINE
        while not self.loop.run_until(condition, 0.002):
            assert time.monotonic() < end, "it did not happen in time"

    def close(self):
        for channel in self.channels:
            channel.close()
        for memory in self.memories:
            memory.close()
        self.context.destroy(linger=0)
        self.loop.close()
        shutil.rmtree(self.folder)


@pytest.fixture(params=["direct", "memory", "zmq", "ring", "tulip"])
def lab(request):
    made = Lab(request.param)
    yield made
    made.close()
    assert made.failures == []


@pytest.fixture
def ring_lab():
    made = Lab("ring")
    yield made
    made.close()
    assert made.failures == []


@pytest.fixture
def pair(lab):
    lab.plug()
    lab.plug()
    return lab


def test_a_port_knows_its_address_and_mtu(lab):
    info = lab.plug(mtu=4000).info
    assert (info.mac, info.mtu, info.max_frame) == (mac(0), 4000, 4014)


@pytest.mark.parametrize("size", [14, 15, 60, 1513, 1514])
def test_a_frame_arrives_unchanged(pair, size):
    kept = pair.keep(1)
    sent = frame(mac(1), mac(0), size)
    assert pair.ports[0].transmit(sent) is Status.OK
    pair.wait(lambda: kept)
    assert kept == [sent]


def test_a_jumbo_frame_arrives_where_the_ports_allow_it(lab):
    lab.plug(mtu=9000)
    lab.plug(mtu=9000)
    kept = lab.keep(1)
    sent = frame(mac(1), mac(0), 9014)
    assert lab.ports[0].transmit(sent) is Status.OK
    lab.wait(lambda: kept)
    assert kept == [sent]


def test_the_buffer_is_the_callers_again_on_return(pair):
    kept = pair.keep(1)
    buffer = bytearray(frame(mac(1), mac(0), fill=1))
    pair.ports[0].transmit(buffer)
    buffer[14:] = b"\2" * (len(buffer) - 14)
    pair.ports[0].transmit(memoryview(buffer))
    pair.wait(lambda: len(kept) == 2)
    assert [data[-1] for data in kept] == [1, 2]


def test_a_broadcast_reaches_all_but_the_sender(lab):
    for _ in range(4):
        lab.plug()
    kept = [lab.keep(number) for number in range(4)]
    sent, last = frame(ALL, mac(2)), frame(mac(2), mac(0))
    lab.ports[2].transmit(sent)
    lab.wait(lambda: all(kept[number] for number in (0, 1, 3)))
    lab.ports[0].transmit(last)  # an echo of the broadcast would have come before it
    lab.wait(lambda: kept[2])
    assert kept == [[sent], [sent], [last], [sent]]


@pytest.mark.parametrize("size", [0, 1, 13, 1515, 65536])
def test_what_is_no_frame_of_the_port_is_invalid(pair, size):
    assert pair.ports[0].transmit(bytes(size)) is Status.INVALID
    assert pair.ports[0].stats().tx_frames == 0


def test_every_frame_of_a_burst_arrives_or_is_counted_and_busy_ends_with_on_ready(pair):
    kept = pair.keep(1)
    wanted, sent, held_up = 2000, 0, 0

    def send():
        nonlocal sent, held_up
        while sent < wanted:
            status = pair.ports[0].transmit(frame(mac(1), mac(0), 100, sent & 255))
            if status is Status.BUSY:
                held_up += 1
                return
            assert status is Status.OK
            sent += 1

    pair.ports[0].connect(lambda data: True, send)
    send()
    arrived = pair.switch_ports[1]
    pair.wait(lambda: sent == wanted and len(kept) + arrived.stats().rx_drops == wanted)
    assert held_up > 0 or pair.variant == "direct", "a call has no queue to fill"
    assert pair.ports[0].stats().tx_frames == wanted
    if not arrived.stats().rx_drops:
        assert [data[-1] for data in kept] == [number & 255 for number in range(wanted)], "in order"


def test_a_full_ring_is_busy_and_ends_with_on_ready(ring_lab):
    ring_lab.ring_pages = 2
    ring_lab.plug()
    ring_lab.ring_pages = 16
    ring_lab.plug()
    kept = ring_lab.keep(1)
    wanted, sent, outstanding = 1000, 0, []

    def send():
        nonlocal sent
        while sent < wanted:
            if ring_lab.ports[0].transmit(frame(mac(1), mac(0), 100, sent & 255)) is Status.BUSY:
                outstanding.append(ring_lab.ports[0].stats().outstanding)
                return
            sent += 1

    ring_lab.ports[0].connect(lambda data: True, send)
    send()
    ring_lab.wait(lambda: sent == wanted and len(kept) + ring_lab.switch_ports[1].stats().rx_drops == wanted)
    assert outstanding[0] < MAX_SENDS, "the ring was full before the credit ended"


def test_on_rings_payload_is_copied_nowhere_but_in_the_lent_buffers(ring_lab):
    for _ in range(2):
        ring_lab.plug()
    kept = ring_lab.keep(1)
    copies = [channel.copies for channel in ring_lab.channels[::2]]
    for number in range(100):
        assert ring_lab.ports[0].transmit(frame(mac(1), mac(0), 1514, number)) is Status.OK
        ring_lab.wait(lambda number=number: len(kept) == number + 1)
    assert [data[-1] for data in kept] == list(range(100))
    assert [channel.copies for channel in ring_lab.channels[::2]] == copies


def test_a_receiver_that_refuses_is_counted(pair):
    pair.ports[1].connect(lambda data: False)
    pair.ports[0].transmit(frame(mac(1), mac(0)))
    pair.wait(lambda: pair.ports[1].stats().rx_drops == 1)
    assert pair.ports[1].stats().rx_frames == 0


def test_frames_and_bytes_are_counted_on_both_ports(pair):
    kept = pair.keep(1)
    for _ in range(3):
        pair.ports[0].transmit(frame(mac(1), mac(0), 100))
    pair.wait(lambda: len(kept) == 3)
    sender, receiver = pair.ports[0].stats(), pair.ports[1].stats()
    assert (sender.tx_frames, sender.tx_bytes, sender.rx_frames) == (3, 300, 0)
    assert (receiver.rx_frames, receiver.rx_bytes, receiver.tx_frames) == (3, 300, 0)
    assert sender.last_io > 0
    assert receiver.last_io > 0


def test_a_receiver_may_answer_from_inside(pair):
    rounds = 0

    def answer(data):
        nonlocal rounds
        rounds += 1
        if rounds < 500:
            pair.ports[1].transmit(frame(mac(0), mac(1)))
        return True

    def back(data):
        pair.ports[0].transmit(frame(mac(1), mac(0)))
        return True

    pair.ports[0].connect(back)
    pair.ports[1].connect(answer)
    pair.ports[0].transmit(frame(mac(1), mac(0)))
    pair.wait(lambda: rounds == 500)


def test_two_ip_stacks_ping_each_other(pair):
    names = {"one": "10.0.0.1", "two": "10.0.0.2"}
    stacks = [
        IpStack(pair.loop, port, f"10.0.0.{number}", 24, names, pair.failures.append)
        for number, port in enumerate(pair.ports, 1)
    ]
    outcomes = []
    for sequence in range(50):
        outcomes = [
            stacks[0].echo("two", sequence, bytes(1400), DEADLINE),
            stacks[1].echo("one", sequence, b"", DEADLINE),
        ]
        pair.wait(lambda outcomes=outcomes: all(outcome.done for outcome in outcomes))
        assert all(isinstance(outcome.result(), EchoReply) for outcome in outcomes)
    for stack in stacks:
        assert stack.stats().echo_replies_in == 50
        assert stack.stats().echo_corrupted == stack.stats().bad_checksum == 0
        assert len(stack.arp_table()) == 1
