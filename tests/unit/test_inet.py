"""The guest's IP stack: known bytes, ARP learning and bounds, echo outcomes, and frames that make no sense.

Long, because all of it drives one stack at one wire.
"""

import dataclasses

import pytest

from drivers.switch import Switch
from partitions.child import inet, neighbours
from partitions.child import inet_formats as formats
from partitions.child.inet import EchoFailure, EchoReply, IpStack
from vmbus_emu.device import PortInfo, PortStats, Status
from vmbus_emu.loop import Loop

MAC, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
OWN, PEER = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))


class Wire:
    """A ``NetworkPort`` whose far end is the test: keeps what is sent, hands in what the test wants."""

    def __init__(self, mtu=1500):
        self.info = PortInfo(MAC, mtu)
        self.sent = []
        self.status = Status.OK

    def transmit(self, frame):
        if self.status is Status.OK:
            self.sent.append(bytes(frame))
        return self.status

    def connect(self, receiver, on_ready=None):
        self.receive, self.ready = receiver, on_ready

    def stats(self):
        return PortStats()

    def take(self):
        sent, self.sent = self.sent, []
        return sent


class Clock(Loop):
    """A loop whose timers run when the test says so."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def call_later(self, delay, callback, *args):
        timer = super().call_later(1e9, callback, *args)
        self.calls.append((delay, timer))
        return timer

    def fire(self, delay):
        """Run the oldest live timer that was set for ``delay`` seconds."""
        for index, (when, timer) in enumerate(self.calls):
            if when == delay and timer.callback is not None:
                del self.calls[index]
                timer.callback(*timer.args)
                return
        raise AssertionError(f"no timer of {delay} s")

    def live(self):
        return [delay for delay, timer in self.calls if timer.callback is not None]


@pytest.fixture
def loop():
    made = Clock()
    yield made
    made.close()


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
def lines():
    return []


@pytest.fixture
def stack(loop, wire, lines):
    return IpStack(loop, wire, "10.0.0.1", 24, {"peer": "10.0.0.2", "broken": "10.0.0"}, lines.append)


def arp(operation=formats.ARP_REPLY, sender=PEER, mac=OTHER, target=OWN, to=MAC):
    return formats.ETHERNET.pack(to, mac, 0x0806) + formats.pack_arp(operation, mac, sender, bytes(6), target)


def ip(payload, source=PEER, destination=OWN, protocol=1, to=MAC):
    return formats.ETHERNET.pack(to, OTHER, 0x0800) + formats.pack_ipv4(source, destination, protocol, 64, 9, payload)


def echo_of(frame):
    """The echo message in a frame the stack sent."""
    assert frame[12:14] == b"\x08\x00"
    packet = formats.parse_ipv4(frame[14:])
    return formats.parse_echo(packet.payload)


def answer(frame, **changes):
    """The reply to an echo request frame."""
    request = echo_of(frame)
    fields = {"kind": 0, "identifier": request.identifier, "sequence": request.sequence, "payload": request.payload}
    return ip(formats.pack_echo(**(fields | changes)))


# -- formats --------------------------------------------------------------------------------------------


def test_checksums_are_those_of_the_worked_example_of_rfc_1071():
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert checksum_slowly(data) == formats.checksum(data) == 0x220D


def checksum_slowly(data):
    data += b"\0" * (len(data) & 1)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@pytest.mark.parametrize("data", [b"", b"\0", bytes(7), b"\xff", b"\xff\xff", b"\xff" * 9, b"\xff\xff\0\0", b"abc"])
def test_the_quick_checksum_equals_the_slow_one(data):
    assert formats.checksum(data) == checksum_slowly(data)


def test_an_arp_request_has_its_real_bytes():
    wire = formats.pack_arp(formats.ARP_REQUEST, MAC, OWN, bytes(6), PEER)
    assert wire.hex() == "0001" "0800" "0604" "0001" "020000000001" "0a000001" "000000000000" "0a000002"
    assert formats.parse_arp(wire + bytes(18)) == formats.Arp(1, MAC, OWN, bytes(6), PEER)


def test_an_ip_packet_has_its_real_bytes():
    wire = formats.pack_ipv4(OWN, PEER, 1, 64, 0x1234, b"data")
    assert wire[:10].hex() == "45000018" "12344000" "4001"
    assert checksum_slowly(wire[:20]) == 0
    assert wire[12:] == OWN + PEER + b"data"


def test_an_echo_has_its_real_bytes():
    wire = formats.pack_echo(8, 0x0102, 3, b"abc")
    assert wire[:2] + wire[4:] == bytes.fromhex("0800" "01020003") + b"abc"
    assert checksum_slowly(wire) == 0


def test_what_is_cut_short_or_lies_is_no_packet():
    good = formats.pack_ipv4(OWN, PEER, 1, 64, 1, b"data")
    for size in range(len(good)):
        assert isinstance(formats.parse_ipv4(good[:size]), formats.Bad)
    assert formats.parse_ipv4(b"\x44" + good[1:]) is formats.Bad.MALFORMED
    assert formats.parse_ipv4(b"\x65" + good[1:]) is formats.Bad.MALFORMED
    assert formats.parse_ipv4(good[:8] + b"\x63" + good[9:]) is formats.Bad.CHECKSUM
    assert formats.parse_ipv4(good + b"padding").payload == b"data"
    for size in range(28):
        assert formats.parse_arp(bytes(size)) is None


# -- addresses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("address", "prefix"), [("", 24), ("10.0.0", 24), ("10.0.0.256", 24), ("10.0.0.1", 33)])
def test_an_address_that_is_none_is_a_mistake_of_the_configuration(loop, wire, address, prefix):
    with pytest.raises(ValueError, match="prefix length"):
        IpStack(loop, wire, address, prefix, {}, print)


def test_names_are_resolved_from_the_table(stack):
    assert stack.resolve("peer") == "10.0.0.2"
    assert stack.resolve("10.0.0.77") == "10.0.0.77"
    assert stack.resolve("nobody") is None
    assert stack.resolve("broken") is None


# -- ARP ------------------------------------------------------------------------------------------------


def test_announcing_is_a_broadcast_request_for_the_own_address(stack, wire):
    stack.announce()
    [frame] = wire.take()
    assert frame[:14] == formats.BROADCAST + MAC + b"\x08\x06"
    assert formats.parse_arp(frame[14:]) == formats.Arp(1, MAC, OWN, bytes(6), OWN)


def test_a_request_for_our_address_is_answered_and_its_sender_learned(stack, wire):
    wire.receive(arp(formats.ARP_REQUEST, to=formats.BROADCAST))
    [frame] = wire.take()
    assert frame[:6] == OTHER
    assert formats.parse_arp(frame[14:]) == formats.Arp(2, MAC, OWN, OTHER, PEER)
    assert stack.arp_table() == {"10.0.0.2": "02:00:00:00:00:02"}


def test_somebody_elses_broadcast_teaches_too_and_is_not_answered(stack, wire):
    wire.receive(arp(formats.ARP_REQUEST, target=bytes((10, 0, 0, 9)), to=formats.BROADCAST))
    assert wire.take() == []
    assert stack.arp_table() == {"10.0.0.2": "02:00:00:00:00:02"}


@pytest.mark.parametrize("frame", [
    arp(sender=bytes((192, 168, 0, 1))), arp(sender=bytes(4)), arp(to=b"\2" * 6), arp()[:30], arp(operation=3),
    formats.ETHERNET.pack(MAC, b"\2" * 6, 0x0806) + arp()[14:],
])
def test_what_is_not_a_neighbours_arp_teaches_nothing(stack, wire, frame):
    wire.receive(frame)
    assert stack.arp_table() == {}


def test_another_claim_to_our_address_is_counted_and_said_once(stack, wire, lines):
    for _ in range(3):
        wire.receive(arp(sender=OWN))
    assert stack.stats().address_conflicts == 3
    assert lines == ["10.0.0.1 is also claimed by 02:00:00:00:00:02"]
    assert stack.arp_table() == {}


def test_the_table_is_bounded(stack, wire, monkeypatch):
    monkeypatch.setattr(neighbours, "TABLE_SIZE", 3)
    for number in range(2, 7):
        wire.receive(arp(sender=bytes((10, 0, 0, number))))
    assert list(stack.arp_table()) == ["10.0.0.4", "10.0.0.5", "10.0.0.6"]


# -- echo -----------------------------------------------------------------------------------------------


def test_an_echo_asks_for_the_neighbour_first_then_goes_and_its_reply_is_matched(stack, wire, loop):
    outcome = stack.echo("peer", 7, b"payload", 5.0)
    [request] = wire.take()
    assert formats.parse_arp(request[14:]).target == PEER
    wire.receive(arp())
    [frame] = wire.take()
    assert frame[:12] == OTHER + MAC
    assert echo_of(frame).sequence == 7
    assert not outcome.done
    wire.receive(answer(frame))
    reply = outcome.result()
    assert isinstance(reply, EchoReply)
    assert (reply.ttl, reply.nbytes) == (64, 15)
    assert reply.rtt_seconds >= 0
    assert loop.live() == [], "its timers are cancelled"


def test_an_echo_request_is_answered_with_the_same_payload(stack, wire):
    wire.receive(arp())
    wire.receive(ip(formats.pack_echo(8, 5, 6, b"hello")))
    [frame] = wire.take()
    assert echo_of(frame) == formats.Echo(0, 5, 6, b"hello")
    assert frame[:6] == OTHER


def test_an_echo_to_the_own_address_never_leaves(stack, wire, loop):
    outcome = stack.echo("10.0.0.1", 1, b"me", 1.0)
    for _ in range(3):
        loop.step(0.0)
    assert isinstance(outcome.result(), EchoReply)
    assert wire.take() == []


def test_no_reply_in_time_is_none_and_a_late_one_is_counted(stack, wire, loop):
    wire.receive(arp())
    outcome = stack.echo("peer", 1, b"", 0.5)
    [frame] = wire.take()
    loop.fire(0.5)
    assert outcome.result() is None
    wire.receive(answer(frame))
    assert stack.stats().echo_unmatched == 1
    assert stack.stats().echo_timeouts == 1


def test_a_neighbour_that_does_not_answer_is_asked_three_times_and_then_unreachable(stack, wire, loop):
    outcomes = [stack.echo("peer", number, b"", 60.0) for number in range(3)]
    for _ in range(neighbours.ARP_TRIES):
        assert not any(outcome.done for outcome in outcomes)
        assert len(wire.take()) == 1
        loop.fire(neighbours.ARP_INTERVAL)
    assert {outcome.result() for outcome in outcomes} == {EchoFailure.HOST_UNREACHABLE}
    assert wire.take() == []
    assert stack.stats().unreachable == 3
    assert loop.live() == []
    stack.echo("peer", 9, b"", 60.0)
    assert len(wire.take()) == 1, "a later echo asks again"


def test_few_packets_wait_for_a_neighbour(stack, wire):
    outcomes = [stack.echo("peer", number, b"", 60.0) for number in range(neighbours.QUEUE + 2)]
    assert [outcome.done for outcome in outcomes].count(True) == 2
    assert outcomes[-1].result() is EchoFailure.BUSY
    wire.take()
    wire.receive(arp())
    assert len(wire.take()) == neighbours.QUEUE


@pytest.mark.parametrize(("target", "nbytes", "failure"), [
    ("192.168.1.1", 0, EchoFailure.NO_ROUTE), ("nobody", 0, EchoFailure.UNKNOWN_NAME),
    ("peer", 1473, EchoFailure.TOO_BIG),
])
def test_what_cannot_be_sent_says_why(stack, wire, target, nbytes, failure):
    assert stack.echo(target, 1, bytes(nbytes), 1.0).result() is failure
    assert wire.take() == []


def test_the_largest_echo_fills_the_mtu(stack, wire):
    wire.receive(arp())
    stack.echo("peer", 1, bytes(1472), 1.0)
    assert [len(frame) for frame in wire.take()] == [1514]


def test_replies_that_are_not_the_answer_are_counted(stack, wire):
    wire.receive(arp())
    outcome = stack.echo("peer", 1, b"payload", 60.0)
    [frame] = wire.take()
    wire.receive(answer(frame, payload=b"Payload"))
    assert stack.stats().echo_corrupted == 1
    damaged = bytearray(answer(frame))
    damaged[-1] ^= 1
    wire.receive(damaged)
    assert stack.stats().bad_checksum == 1
    wire.receive(answer(frame, sequence=2))
    wire.receive(ip(formats.pack_echo(0, echo_of(frame).identifier, 1, b"payload"), source=bytes((10, 0, 0, 3))))
    assert stack.stats().echo_unmatched == 2
    assert not outcome.done
    wire.receive(answer(frame))
    wire.receive(answer(frame))
    assert outcome.done
    assert stack.stats().echo_unmatched == 3


def test_outstanding_echoes_are_bounded_and_never_confused(stack, wire, monkeypatch):
    monkeypatch.setattr(inet, "MAX_ECHOES", 5)
    wire.receive(arp())
    outcomes = [stack.echo("peer", 1, bytes((number,)), 60.0) for number in range(6)]
    assert outcomes[5].result() is EchoFailure.BUSY
    for frame in reversed(wire.take()):
        wire.receive(answer(frame))
    assert all(isinstance(outcome.result(), EchoReply) for outcome in outcomes[:5])
    assert stack.stats().echo_corrupted == 0


# -- datagrams ------------------------------------------------------------------------------------------


def test_a_datagram_has_its_real_bytes():
    wire = formats.pack_udp(0x1234, 53, b"abc")
    assert wire.hex() == "1234" "0035" "000b" "0000" "616263"
    assert formats.parse_udp(memoryview(wire + b"padding")) == (0x1234, 53, b"abc")


def test_datagrams_come_to_whoever_is_bound_to_their_port(stack, wire):
    came = []

    def handler(source, port, payload):
        came.append((source, port, bytes(payload)))

    assert stack.bind(7, handler)
    assert not stack.bind(7, print)
    wire.receive(ip(formats.pack_udp(9, 7, b"one"), protocol=17))
    wire.receive(ip(formats.pack_udp(9, 8, b"two"), protocol=17))
    stack.unbind(7)
    wire.receive(ip(formats.pack_udp(9, 7, b"three"), protocol=17))
    assert came == [(PEER, 9, b"one")]
    assert (stack.stats().datagrams_in, stack.stats().datagrams_unwanted) == (3, 2)


def test_datagrams_are_sent_or_refused_with_a_reason(stack, wire):
    wire.receive(arp())
    assert stack.send_datagram("peer", 9, 7, b"hello") is None
    (frame,) = wire.take()
    packet = formats.parse_ipv4(frame[14:])
    assert (packet.protocol, packet.destination, formats.parse_udp(packet.payload)) == (17, PEER, (9, 7, b"hello"))
    assert stack.send_datagram(PEER, 9, 7, bytes(stack.largest_datagram)) is None
    assert len(wire.take()[0]) == 1514
    assert stack.send_datagram(PEER, 9, 7, bytes(stack.largest_datagram + 1)) is EchoFailure.TOO_BIG
    assert stack.send_datagram("nobody", 9, 7, b"") is EchoFailure.UNKNOWN_NAME
    assert stack.send_datagram("8.8.8.8", 9, 7, b"") is EchoFailure.NO_ROUTE
    assert stack.stats().datagrams_out == 2


# -- frames ---------------------------------------------------------------------------------------------


def fragment():
    whole = bytearray(ip(formats.pack_echo(8, 1, 1, b"")))
    whole[20:22] = b"\x20\x00"
    whole[24:26] = b"\0\0"
    whole[24:26] = formats.checksum(whole[14:34]).to_bytes(2, "big")
    return bytes(whole)


def wrong_header_checksum():
    return ip(b"")[:24] + b"\x12\x34" + ip(b"")[26:]


@pytest.mark.parametrize(("frame", "counter"), [
    (b"", "malformed"), (bytes(13), "malformed"), (ip(b"")[:30], "malformed"), (ip(b"\x08\0"), "malformed"),
    (wrong_header_checksum(), "bad_checksum"), (fragment(), "fragments"), (ip(b"", to=OTHER), "not_for_us"),
    (ip(b"", destination=PEER), "not_for_us"), (ip(b"", protocol=6), "unknown_protocol"),
    (ip(b"", protocol=17), "malformed"), (ip(bytes.fromhex("0001000200070000"), protocol=17), "malformed"),
    (ip(bytes.fromhex("0001000200090000"), protocol=17), "malformed"),
    (MAC + OTHER + b"\x86\xdd" + bytes(40), "unknown_protocol"),
    (ip(formats.pack_echo(13, 0, 0, b"")), "unknown_protocol"),
    (ip(formats.pack_echo(8, 0, 0, b""), source=bytes((8, 8, 8, 8))), "dropped_out"),
])
def test_each_frame_that_is_not_used_has_its_counter(stack, wire, frame, counter):
    before = dataclasses.asdict(stack.stats())
    assert wire.receive(frame) is True
    after = dataclasses.asdict(stack.stats())
    changed = {name for name in after if after[name] != before[name]} - {"frames_in", "echo_requests_in"}
    assert changed == {counter}
    assert wire.take() == []


def test_frames_wait_in_order_while_the_adapter_is_busy_and_are_bounded(stack, wire):
    wire.receive(arp())
    wire.status = Status.BUSY
    for number in range(inet.BACKLOG + 3):
        stack.echo("peer", number, b"", 60.0)
    assert stack.stats().dropped_out == 3
    wire.ready()
    assert wire.take() == []
    wire.status = Status.OK
    wire.ready()
    assert [echo_of(frame).sequence for frame in wire.take()] == list(range(inet.BACKLOG))


def test_an_adapter_that_is_gone_is_counted(stack, wire):
    wire.status = Status.GONE
    stack.announce()
    assert stack.stats().dropped_out == 1


# -- many -----------------------------------------------------------------------------------------------


def test_sixteen_announced_guests_know_each_other_without_asking(loop):
    switch = Switch("s0")
    stacks = [
        IpStack(loop, switch.port(f"vm{n}", bytes((2, 0, 0, 0, 0, n))), f"10.0.0.{n}", 24, {}, print)
        for n in range(1, 17)
    ]
    for stack in stacks:
        stack.announce()
    outcomes = [
        stack.echo(f"10.0.0.{n}", 1, b"x" * 56, 1.0)
        for at, stack in enumerate(stacks, 1) for n in range(1, 17) if n != at
    ]
    assert all(isinstance(outcome.result(), EchoReply) for outcome in outcomes)
    assert sum(stack.stats().arp_out for stack in stacks) == 16
    assert loop.live() == []
