"""The guest's adapter against a host written out packet by packet: handshake, credit, loss, and a host that errs.

Long, because all of it is played against the one host that knows the handshake, with and without shared memory.
"""

import pytest

from partitions.child import netvsc
from partitions.child.netvsc import MAX_SENDS, LentBuffer, NetVsc
from vmbus_emu.channel import channel_pair
from vmbus_emu.device import PortInfo, Status
from vmbus_emu.protocol import nvsp, rndis
from vmbus_emu.protocol.packets import COMPLETION, COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND, TRANSFER_PAGES

MAC, OTHER = bytes.fromhex("00155d000001"), bytes.fromhex("00155d000002")
FRAME = OTHER + MAC + b"\x08\x00" + bytes(50)
INCOMING = MAC + OTHER + b"\x08\x00" + bytes(range(50))
SIZE = 1806
OK = nvsp.COMPLETE[nvsp.Status.SUCCESS]
SECTIONS = 4


class Watched:
    """Lent memory that changes at every look at it, and keeps what was looked at."""

    def __init__(self, nbytes):
        self.memory = bytearray(nbytes)
        self.looks = []

    def __setitem__(self, where, content):
        self.memory[where] = content

    def __getitem__(self, where):
        seen = bytes(self.memory[where])
        self.looks.append((where.start, where.stop))
        self.memory[:] = bytes(255 - byte for byte in self.memory)
        return seen


class Host:
    """The far end of the adapter's channel: a table of answers that a test may change."""

    def __init__(self, adapter, loop, shared=False, send_bytes=SECTIONS * nvsp.SECTION_BYTES, receive_memory=None):
        near, self.channel = channel_pair()
        near.shares_memory = shared
        self.receive_memory = receive_memory or (memoryview(bytearray(8 * SIZE)) if shared else None)
        self.send_memory = memoryview(bytearray(send_bytes)) if shared else None
        self.send_buffer = nvsp.encode(nvsp.SendBufferComplete(nvsp.Status.SUCCESS, nvsp.SECTION_BYTES))
        self.loop = loop
        self.near = near
        self.failures = []
        near.on_failed = self.failures.append
        self.packets = []
        self.channel.on_packet = lambda *packet: self.packets.append(packet)
        self.versions = set(nvsp.VERSIONS)
        self.receive_buffer = nvsp.ReceiveBufferComplete(1, 1, 0, SIZE, 8, 8 * SIZE)
        self.control_status = nvsp.Status.SUCCESS
        self.values = {
            rndis.OID_PERMANENT_MAC: MAC,
            rndis.OID_MAXIMUM_FRAME_SIZE: (1500).to_bytes(4, "little"),
            rndis.OID_MEDIA_CONNECT: bytes(4),
        }
        self.filter_status = rndis.SUCCESS
        self.asked = []
        self.transaction = 0
        self.up = adapter.attach(
            near, LentBuffer(7, 8 * SIZE, self.receive_memory), LentBuffer(9, send_bytes, self.send_memory)
        )

    def run(self):
        """Let both sides act until nothing moves; answers the handshake, leaves data packets in ``packets``."""
        moved = True
        while moved:
            self.loop.step(0.0)
            moved = bool(self.near.deliver() + self.channel.deliver())
            for packet in list(self.packets):
                if self.answer(*packet):
                    self.packets.remove(packet)
                    self.near.deliver()     # an answer's suballocation is free again before the next one
                    moved = True
        for _ in range(3):
            self.loop.step(0.0)
        return self

    def answer(self, packet_type, flags, transaction_id, message, data):
        request = nvsp.decode(message)
        match request:
            case nvsp.Init(version):
                self.asked.append(version)
                status = nvsp.Status.SUCCESS if version in self.versions else nvsp.Status.TOO_NEW
                self.complete(transaction_id, nvsp.encode(nvsp.InitComplete(nvsp.NO_VERSION, 34, status)))
            case nvsp.SendReceiveBuffer(7, 0xCAFE):
                self.complete(transaction_id, nvsp.encode(self.receive_buffer))
            case nvsp.SendSendBuffer(9, 0):
                self.asked.append(request)
                self.complete(transaction_id, self.send_buffer)
            case nvsp.NdisConfig() | nvsp.NdisVersion():
                assert not flags
                self.asked.append(request)
            case nvsp.RndisPacket(nvsp.CONTROL_CHANNEL):
                self.complete(transaction_id, nvsp.COMPLETE[self.control_status])
                self.control(rndis.decode(data))
            case _:
                return False
        return True

    def control(self, request):
        match request:
            case rndis.Initialize(request_id):
                reply = rndis.InitializeComplete(request_id, 0, 1, 0, 1, 0, 8, 0xEFFFFFFF, 3)
            case rndis.Query(request_id, oid):
                value = self.values.get(oid)
                reply = rndis.QueryComplete(request_id, rndis.NOT_SUPPORTED if value is None else 0, value or b"")
            case rndis.Set(request_id, oid, _, info):
                self.asked.append((oid, info))
                reply = rndis.SetComplete(request_id, self.filter_status)
        self.give(rndis.encode(reply), channel_type=nvsp.CONTROL_CHANNEL)

    def complete(self, transaction_id, message=OK):
        self.channel.send(COMPLETION, 0, transaction_id, message)

    def give(self, *messages, channel_type=nvsp.DATA_CHANNEL, pages=None, flags=COMPLETION_REQUESTED):
        """Send RNDIS messages in consecutive suballocations; the transaction id."""
        self.transaction += 1
        ranges = [(len(message), index * SIZE) for index, message in enumerate(messages)]
        head = nvsp.pack_ranges(ranges, channel_type) if pages is None else pages
        data = b"".join(messages)
        if self.receive_memory is not None:
            for message, (count, offset) in zip(messages, ranges, strict=True):
                self.receive_memory[offset : offset + count] = message
            data = None
        self.channel.send(TRANSFER_PAGES, flags, self.transaction, head, data)
        return self.transaction

    def frames(self):
        """What the data packets that wait here carry: section (``None``: none) and frames."""
        found = []
        for packet_type, flags, _, message, data in self.packets:
            assert flags == COMPLETION_REQUESTED
            channel_type, section, nbytes = nvsp.decode(message)
            assert channel_type == nvsp.DATA_CHANNEL
            if section == nvsp.NO_SECTION:
                assert packet_type == GPA_DIRECT
                found.append((None, rndis.frames(data)))
            else:
                assert (packet_type, data) == (IN_BAND, None)
                at = section * nvsp.SECTION_BYTES
                found.append((section, rndis.frames(bytes(self.send_memory[at : at + nbytes]))))
        return found


@pytest.fixture
def adapter(loop):
    made = NetVsc(loop, "nic0", lambda line: made_log.append(line))
    made_log = made.lines = []
    made.seen, made.readied = [], 0

    def ready():
        made.readied += 1

    made.connect(lambda frame: made.seen.append(bytes(frame)) is None, ready)
    return made


@pytest.fixture
def host(adapter, loop):
    made = Host(adapter, loop).run()
    assert made.up.result() is True
    made.packets.clear()  # the completions of the handshake's answers
    return made


@pytest.fixture
def sharing(adapter, loop):
    """A host that shares memory with the adapter."""
    made = Host(adapter, loop, shared=True).run()
    assert made.up.result() is True
    made.packets.clear()
    return made


# -- the handshake --------------------------------------------------------------------------------------


def test_the_handshake_says_what_the_sheet_says_in_its_order(adapter, host):
    assert host.asked == [
        0x60001, nvsp.NdisConfig(9216, 0, 0), nvsp.NdisVersion(6, 30),
        (rndis.OID_PACKET_FILTER, (0x0B).to_bytes(4, "little")),
    ]
    assert adapter.info == PortInfo(MAC, 1500)
    assert adapter.link_up


def test_where_memory_is_shared_a_send_buffer_is_lent_after_the_receive_buffer(adapter, sharing):
    assert sharing.asked[3] == nvsp.SendSendBuffer(9, 0)
    assert sharing.asked[:3] + sharing.asked[4:] == [
        0x60001, nvsp.NdisConfig(9216, 0, 0), nvsp.NdisVersion(6, 30),
        (rndis.OID_PACKET_FILTER, (0x0B).to_bytes(4, "little")),
    ]
    assert adapter.info == PortInfo(MAC, 1500)


def test_lent_buffers_out_of_reach_are_the_callers_mistake_where_memory_is_shared(adapter):
    near, _ = channel_pair()
    near.shares_memory = True
    within, beyond = LentBuffer(7, SIZE, memoryview(bytearray(SIZE))), LentBuffer(9, SIZE, None)
    for receive, send in ((beyond, None), (beyond, within), (within, beyond)):
        with pytest.raises(ValueError, match="has none"):
            adapter.attach(near, receive, send)


def test_older_versions_are_tried_one_by_one(adapter, loop):
    host = Host(adapter, loop)
    host.versions = {0x40000}
    host.run()
    assert host.asked[:6] == [0x60001, 0x60000, 0x50000, 0x40000, nvsp.NdisConfig(9216, 0, 0), nvsp.NdisVersion(6, 1)]
    assert host.up.result() is True


REFUSALS = {
    "version": lambda host: host.versions.clear(),
    "receive buffer": lambda host: setattr(host, "receive_buffer", nvsp.ReceiveBufferComplete(2)),
    "RNDIS": lambda host: setattr(host, "control_status", nvsp.Status.FAIL),
    "address": lambda host: host.values.pop(rndis.OID_PERMANENT_MAC),
    "short address": lambda host: host.values.update({rndis.OID_PERMANENT_MAC: MAC[:5]}),
    "mtu": lambda host: host.values.update({rndis.OID_MAXIMUM_FRAME_SIZE: b"\1"}),
    "filter": lambda host: setattr(host, "filter_status", rndis.FAILURE),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_host_that_refuses_leaves_the_adapter_unplugged_and_says_why(adapter, loop, what):
    host = Host(adapter, loop)
    REFUSALS[what](host)
    host.run()
    assert host.up.result() is False
    assert len(adapter.lines) == 1
    assert adapter.transmit(FRAME) is Status.OK
    assert adapter.stats().tx_drops == 1


@pytest.mark.parametrize("steps", range(12))
def test_a_detach_in_the_middle_of_the_handshake_ends_it_and_the_next_attach_works(adapter, loop, steps):
    first = Host(adapter, loop)
    for _ in range(steps):
        loop.step(0.0)
        first.near.deliver()
        if first.channel.deliver() and first.answer(*first.packets[0]):
            first.packets.pop(0)
    adapter.detach()
    first.near.close()
    second = Host(adapter, loop).run()
    assert first.up.result() is False
    assert second.up.result() is True
    assert adapter.lines == []
    assert first.failures == second.failures == []


# -- sending --------------------------------------------------------------------------------------------


def test_a_frame_is_one_gpa_direct_packet(adapter, host):
    assert adapter.transmit(FRAME) is Status.OK
    host.run()
    [(packet_type, flags, transaction_id, message, data)] = host.packets
    assert (packet_type, flags) == (GPA_DIRECT, COMPLETION_REQUESTED)
    assert nvsp.decode(message) == nvsp.RndisPacket(0, nvsp.NO_SECTION, 0)
    assert rndis.frames(data) == [FRAME]
    assert adapter.stats().outstanding == 1
    host.complete(transaction_id)
    host.run()
    assert adapter.stats().outstanding == 0
    assert adapter.stats().tx_drops == 0


def test_credit_ends_in_busy_and_comes_back_with_a_completion(adapter, host):
    for _ in range(MAX_SENDS):
        assert adapter.transmit(FRAME) is Status.OK
    assert adapter.transmit(FRAME) is Status.BUSY
    host.run()
    assert adapter.readied == 0
    host.complete(host.packets[0][2])
    host.run()
    assert adapter.readied == 1
    assert adapter.transmit(FRAME) is Status.OK
    assert adapter.transmit(FRAME) is Status.BUSY


@pytest.mark.parametrize("size", [0, 13, 1515])
def test_what_is_no_frame_is_invalid(adapter, host, size):
    assert adapter.transmit(bytes(size)) is Status.INVALID


def test_a_frame_that_the_host_refused_is_counted(adapter, host):
    adapter.transmit(FRAME)
    host.run()
    host.complete(host.packets[0][2], nvsp.COMPLETE[nvsp.Status.BUSY])
    host.run()
    assert adapter.stats().tx_drops == 1


def test_a_completion_counts_once(adapter, host):
    adapter.transmit(FRAME)
    host.run()
    host.complete(host.packets[0][2])
    host.complete(host.packets[0][2])
    host.run()
    assert len(host.failures) == 1


def test_room_in_the_channel_is_told_to_who_was_refused_but_not_without_credit(adapter, host):
    send = host.near.send
    adapter.transmit(FRAME)
    host.near.send = lambda *packet: False
    assert adapter.transmit(FRAME) is Status.BUSY
    assert adapter.readied == 0
    host.near.send = send
    host.near.on_room()
    assert adapter.readied == 1
    host.near.on_room()
    assert adapter.readied == 1, "nobody waits any more"
    while adapter.transmit(FRAME) is Status.OK:
        pass
    host.near.on_room()
    assert adapter.readied == 1, "there is room, but no credit"


def test_a_frame_that_finds_no_room_while_none_is_on_its_way_is_lost_and_counted(adapter, host):
    host.near.send = lambda *packet: False
    assert adapter.transmit(FRAME) is Status.OK
    assert adapter.stats().tx_drops == 1


def test_a_channel_that_breaks_while_a_frame_is_sent_leaves_nobody_waiting(adapter, host):
    host.near.on_failed = lambda reason: adapter.detach()
    adapter.transmit(FRAME)

    def broken(*packet):
        host.near.fail("write_index is 7")
        return False

    host.near.send = broken
    assert adapter.transmit(FRAME) is Status.OK
    assert adapter.stats().tx_drops == 2


# -- sending from the send buffer -----------------------------------------------------------------------


def test_where_memory_is_shared_a_frame_is_in_a_section(adapter, sharing):
    frames = [FRAME[:-1] + bytes((number,)) for number in range(SECTIONS)]
    for one in frames:
        assert adapter.transmit(one) is Status.OK
    sharing.run()
    found = sharing.frames()
    assert {section for section, _ in found} == set(range(SECTIONS))
    assert [carried for _, carried in found] == [[one] for one in frames]


def test_without_a_free_section_a_frame_is_described_and_a_completion_frees_its_section(adapter, sharing):
    for _ in range(SECTIONS + 2):
        assert adapter.transmit(FRAME) is Status.OK
    sharing.run()
    assert [section is None for section, _ in sharing.frames()] == [False] * SECTIONS + [True] * 2
    freed = sharing.frames()[2][0]
    sharing.complete(sharing.packets[2][2], nvsp.COMPLETE[nvsp.Status.BUSY])  # its outcome does not matter
    sharing.complete(sharing.packets[-1][2])                                  # and this one has no section
    sharing.run()
    sharing.packets.clear()
    for _ in range(2):
        adapter.transmit(FRAME)
    sharing.run()
    assert sharing.frames() == [(freed, [FRAME]), (None, [FRAME])]


def test_a_section_is_not_used_up_by_a_frame_that_found_no_room(adapter, sharing):
    send = sharing.near.send
    sharing.near.send = lambda *packet: False
    for _ in range(3 * SECTIONS):
        adapter.transmit(FRAME)
    sharing.near.send = send
    for _ in range(SECTIONS):
        adapter.transmit(FRAME)
    sharing.run()
    assert {section for section, _ in sharing.frames()} == set(range(SECTIONS))


@pytest.mark.parametrize(("size", "in_section"), [(6144 - 44, True), (6144 - 43, False)])
def test_a_message_longer_than_a_section_is_described(adapter, loop, size, in_section):
    host = Host(adapter, loop, shared=True)
    host.values[rndis.OID_MAXIMUM_FRAME_SIZE] = (9000).to_bytes(4, "little")
    host.run().packets.clear()
    adapter.transmit(FRAME.ljust(size, b"."))
    host.run()
    [(section, carried)] = host.frames()
    assert (section is not None) is in_section
    assert carried == [FRAME.ljust(size, b".")]


@pytest.mark.parametrize("answer", [
    nvsp.encode(nvsp.SendBufferComplete(nvsp.Status.FAIL, 6144)),
    nvsp.encode(nvsp.SendBufferComplete(nvsp.Status.SUCCESS, 0)),
    nvsp.encode(nvsp.SendBufferComplete(nvsp.Status.SUCCESS, SECTIONS * 6144 + 1)),
    b"", nvsp.encode(nvsp.Init(1, 1)),
], ids=["refused", "no size", "larger than the buffer", "empty", "another message"])
def test_a_host_that_wants_no_send_buffer_gets_frames_without(adapter, loop, answer):
    host = Host(adapter, loop, shared=True)
    host.send_buffer = answer
    host.run().packets.clear()
    assert host.up.result() is True
    adapter.transmit(FRAME)
    host.run()
    assert host.frames() == [(None, [FRAME])]
    assert host.failures == adapter.lines == []


def test_every_section_is_free_again_on_the_next_channel(adapter, sharing, loop):
    for _ in range(SECTIONS):
        adapter.transmit(FRAME)
    second = Host(adapter, loop, shared=True).run()
    second.packets.clear()
    for _ in range(SECTIONS):
        adapter.transmit(FRAME)
    second.run()
    assert {section for section, _ in second.frames()} == set(range(SECTIONS))


def test_no_more_sections_are_kept_than_frames_may_be_on_their_way(adapter, loop):
    host = Host(adapter, loop, shared=True, send_bytes=2 * MAX_SENDS * nvsp.SECTION_BYTES).run()
    host.packets.clear()
    while adapter.transmit(FRAME) is Status.OK:
        pass
    host.run()
    assert {section for section, _ in host.frames()} == set(range(MAX_SENDS))


# -- detach, re-attach, give up -------------------------------------------------------------------------


def test_frames_on_their_way_are_lost_and_counted_and_nothing_is_resubmitted(adapter, host, loop):
    for _ in range(MAX_SENDS):
        adapter.transmit(FRAME)
    assert adapter.transmit(FRAME) is Status.BUSY
    adapter.detach()
    assert adapter.readied == 1, "who waits for credit is told"
    assert adapter.stats().tx_drops == MAX_SENDS
    assert adapter.stats().outstanding == 0
    assert adapter.transmit(FRAME) is Status.OK, "a cable with nobody at the other end"
    assert adapter.stats().tx_drops == MAX_SENDS + 1
    second = Host(adapter, loop).run()
    assert not any(packet[0] == GPA_DIRECT for packet in second.packets)
    adapter.transmit(FRAME)
    second.run()
    assert sum(packet[0] == GPA_DIRECT for packet in second.packets) == 1


def test_an_old_channel_is_not_listened_to(adapter, host, loop):
    adapter.transmit(FRAME)
    host.run()
    old = host.packets[0][2]
    second = Host(adapter, loop).run()
    host.complete(old)
    host.give(rndis.pack_frame(INCOMING))
    host.run()
    assert adapter.seen == []
    second.complete(old)
    second.run()
    assert len(second.failures) == 1, "a transaction id is used once in the adapter's life"


def test_after_give_up_everything_says_gone(adapter, host, loop):
    adapter.give_up()
    assert adapter.transmit(FRAME) is Status.GONE
    assert Host(adapter, loop).run().up.result() is False
    assert adapter.transmit(FRAME) is Status.GONE


# -- receiving ------------------------------------------------------------------------------------------


def test_frames_are_delivered_and_their_place_is_given_back(adapter, host):
    given = host.give(rndis.pack_frame(INCOMING), rndis.pack_frame(INCOMING[:14]) + rndis.pack_frame(INCOMING))
    host.run()
    assert adapter.seen == [INCOMING, INCOMING[:14], INCOMING]
    assert host.packets == [(COMPLETION, 0, given, OK, None)]
    assert adapter.stats().rx_frames == 3


def test_a_receiver_that_refuses_is_counted(adapter, host):
    adapter.connect(lambda frame: False)
    host.give(rndis.pack_frame(INCOMING))
    host.run()
    assert (adapter.stats().rx_frames, adapter.stats().rx_drops) == (0, 1)
    assert len(host.packets) == 1, "its place is given back all the same"


def test_bad_rndis_is_counted_and_its_place_given_back(adapter, host):
    for bad in (b"x", rndis.pack_frame(INCOMING)[:-1], bytes(44)):
        host.give(bad)
        host.give(bad, channel_type=nvsp.CONTROL_CHANNEL)
    host.give(rndis.encode(rndis.SetComplete(123456, 0)), channel_type=nvsp.CONTROL_CHANNEL)  # nobody asked
    host.run()
    assert adapter.malformed == 7
    assert len(host.packets) == 7
    assert host.failures == []


def test_the_host_tells_the_state_of_the_cable(adapter, host):
    for status, up in ((rndis.MEDIA_DISCONNECT, False), (rndis.MEDIA_CONNECT, True)):
        host.give(rndis.encode(rndis.Indicate(status)), channel_type=nvsp.CONTROL_CHANNEL)
        host.run()
        assert adapter.link_up is up


def test_messages_about_what_the_adapter_lacks_are_ignored(adapter, host):
    host.channel.send(IN_BAND, 0, 0, nvsp.encode(nvsp.VfAssociation(1, 2)))
    host.channel.send(IN_BAND, 0, 0, nvsp.encode(nvsp.IndirectionTable(16, 12)))
    host.run()
    assert adapter.ignored == 2
    assert host.failures == []


MESSAGE = rndis.pack_frame(INCOMING)


# -- receiving from the receive buffer ------------------------------------------------------------------


def test_where_memory_is_shared_frames_are_taken_out_of_the_receive_buffer(adapter, sharing):
    given = sharing.give(MESSAGE, rndis.pack_frame(INCOMING[:14]) + MESSAGE)
    sharing.run()
    assert adapter.seen == [INCOMING, INCOMING[:14], INCOMING]
    assert sharing.packets == [(COMPLETION, 0, given, OK, None)]


def test_a_host_that_rewrites_the_receive_buffer_changes_nothing_that_was_begun(adapter, sharing):
    def scribble(frame):
        adapter.seen.append(bytes(frame))
        sharing.receive_memory[:] = b"\xff" * len(sharing.receive_memory)
        adapter.seen.append(bytes(frame))
        return True

    adapter.connect(scribble)
    sharing.give(MESSAGE + MESSAGE)
    sharing.run()
    assert adapter.seen == [INCOMING] * 4
    assert adapter.malformed == 0


def test_every_range_is_looked_at_once(adapter, loop):
    host = Host(adapter, loop, shared=True, receive_memory=Watched(8 * SIZE)).run()
    assert host.up.result() is True, "the answers were taken out of it as well"
    host.receive_memory.looks.clear()
    host.give(MESSAGE)
    host.run()
    assert host.receive_memory.looks == [(0, len(MESSAGE))]
    assert adapter.seen == [INCOMING]


@pytest.mark.parametrize("where", [
    (1, 8 * SIZE), (2, 8 * SIZE - 1), (8 * SIZE + 1, 0), (0xFFFFFFFF, 0xFFFFFFFF), (1, 0xFFFFFFFF), (0, 0),
])
def test_a_range_outside_the_receive_buffer_ends_the_channel(adapter, sharing, where):
    sharing.channel.send(TRANSFER_PAGES, 1, 1, nvsp.pack_ranges([(len(MESSAGE), 0), where], 0))
    sharing.run()
    assert sharing.failures == ["malformed transfer-page packet"]
    assert adapter.seen == []


@pytest.mark.parametrize("send", [
    lambda host: host.give(MESSAGE, pages=nvsp.pack_ranges([(len(MESSAGE) + 1, 0)], 0)),
    lambda host: host.give(MESSAGE, pages=nvsp.pack_ranges([(len(MESSAGE) - 1, 0)], 0)),
    lambda host: host.give(MESSAGE, pages=nvsp.pack_ranges([(len(MESSAGE), 8 * SIZE)], 0)),
    lambda host: host.give(MESSAGE, pages=b""),
    lambda host: host.channel.send(TRANSFER_PAGES, 1, 1, nvsp.pack_one_range(1, 0, 0)),
    lambda host: host.channel.send(GPA_DIRECT, 0, 0, nvsp.DATA_PACKET, MESSAGE),
    lambda host: host.channel.send(IN_BAND, 0, 0, nvsp.encode(nvsp.Init(1, 1))),
    lambda host: host.channel.send(IN_BAND, 0, 0, b"?"),
    lambda host: host.complete(0),
])
def test_what_breaks_the_framing_ends_the_channel_and_unplugs(adapter, host, send):
    send(host)
    host.run()
    assert len(host.failures) == 1
    assert adapter.seen == []
    assert adapter.transmit(FRAME) is Status.OK
    assert adapter.stats().tx_drops == 1


@pytest.mark.parametrize("message", [b"", b"\x6c\0\0\0", nvsp.encode(nvsp.Init(1, 1))])
def test_a_completion_that_is_none_ends_the_channel(adapter, host, message):
    adapter.transmit(FRAME)
    host.run()
    host.complete(host.packets[0][2], message)
    host.run()
    assert host.failures == ["malformed completion"]


def test_an_owner_may_detach_from_the_failure(adapter, host):
    host.near.on_failed = lambda reason: adapter.detach()
    adapter.transmit(FRAME)
    host.complete(0)
    host.run()
    assert adapter.stats().tx_drops == 1
    assert adapter.transmit(FRAME) is Status.OK


def test_the_adapter_asks_for_frames_as_long_as_the_protocol_allows(adapter, loop):
    host = Host(adapter, loop)
    host.values[rndis.OID_MAXIMUM_FRAME_SIZE] = (65535).to_bytes(4, "little")
    host.run()
    assert adapter.info.max_frame == netvsc.MAX_FRAME
