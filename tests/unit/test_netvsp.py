"""A netvsp session against a guest written out packet by packet: order, credit, validation, and what is counted.

Long, because all of it drives one guest that knows the handshake.
"""

import struct

import pytest

from drivers.switch import Switch
from partitions.parent import netvsp
from partitions.parent.netvsp import NetVspSession, State
from vmbus_emu.channel import channel_pair, deliver_all
from vmbus_emu.device import Scatter
from vmbus_emu.memory import Lent
from vmbus_emu.protocol import nvsp, rndis
from vmbus_emu.protocol.packets import COMPLETION, COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND, TRANSFER_PAGES

MAC, OTHER, ALL = bytes.fromhex("00155d000001"), bytes.fromhex("00155d000002"), b"\xff" * 6
GPADL, SEND_GPADL = 0xE1E10, 0xE1E11
SUBALLOCATION = 1806


def frame(to=OTHER, source=MAC, payload=b"x" * 50):
    return to + source + b"\x08\x00" + payload


class Guest:
    """The far end of the channel: sends what a test says, keeps what comes back."""

    def __init__(self, receive_bytes=4 * SUBALLOCATION, room=512, shared=False):
        self.switch = Switch("s0")
        self.port = self.switch.port("vm", MAC)
        self.peer = self.switch.port("peer", OTHER)
        self.on_wire = []
        self.peer.connect(lambda data: self.on_wire.append(bytes(data)) is None)
        self.channel, host = channel_pair(room)
        self.host = host
        self.failures = []
        host.on_failed = self.failures.append
        self.shared = host.shares_memory = shared
        self.gpadls = {}
        self.lend(GPADL, receive_bytes)
        self.session = NetVspSession(host, self.port, self.gpadls)
        self.packets = []
        self.channel.on_packet = lambda *packet: self.packets.append(packet)
        self.transaction = 100

    def lend(self, gpadl, nbytes):
        self.gpadls[gpadl] = Lent(nbytes, memoryview(bytearray(nbytes)) if self.shared else None)
        return self

    def with_sections(self, nbytes=2 * nvsp.SECTION_BYTES):
        """Up to an open filter, with a send buffer."""
        self.lend(SEND_GPADL, nbytes).reach(State.SEND_BUFFER)
        reply = nvsp.decode(self.send(nvsp.SendSendBuffer(SEND_GPADL, 0)))
        assert reply == nvsp.SendBufferComplete(nvsp.Status.SUCCESS, nvsp.SECTION_BYTES)
        self.control(rndis.Initialize(1, 1, 0, 0x4000))
        self.control(rndis.Set(2, rndis.OID_PACKET_FILTER, info=b"\x0b\0\0\0"))
        return self

    def send_section(self, section, message, size=None, at=None):
        """Put ``message`` into a section and say so; the completion's status, ``None`` if there was none."""
        at = section * nvsp.SECTION_BYTES if at is None else at
        self.gpadls[SEND_GPADL].memory[at : at + len(message)] = message
        reply = self.send(nvsp.RndisPacket(nvsp.DATA_CHANNEL, section, len(message) if size is None else size))
        return None if reply is None else nvsp.decode(reply).status

    def send(self, message, data=None, packet_type=None, flags=COMPLETION_REQUESTED):
        """Send; the message of the completion, ``None`` if there was none. Other packets stay in ``packets``."""
        self.transaction += 1
        if not isinstance(message, bytes):
            message = nvsp.encode(message)
        if packet_type is None:
            packet_type = IN_BAND if data is None else GPA_DIRECT
        self.channel.send(packet_type, flags, self.transaction, message, data)
        deliver_all(self.channel, self.host)
        for packet in self.packets:
            if packet[0] == COMPLETION and packet[2] == self.transaction:
                self.packets.remove(packet)
                return packet[3]
        return None

    def control(self, message):
        """Send an RNDIS control message; its answer. Gives the suballocation back."""
        assert self.send(nvsp.CONTROL_PACKET, rndis.encode(message)) == nvsp.COMPLETE[nvsp.Status.SUCCESS]
        channel_type, [answer] = self.take()
        assert channel_type == nvsp.CONTROL_CHANNEL
        return rndis.decode(answer)

    def take(self, give_back=True):
        """The oldest packet from the host: its channel and the RNDIS messages of its ranges."""
        packet_type, flags, transaction_id, message, data = self.packets.pop(0)
        assert (packet_type, flags) == (TRANSFER_PAGES, COMPLETION_REQUESTED)
        channel_type, ranges = nvsp.unpack_ranges(message, self.gpadls[GPADL].nbytes)
        parts, start = [], 0
        for count, offset in ranges:
            if self.shared:
                assert data is None
                parts.append(bytes(self.gpadls[GPADL].memory[offset : offset + count]))
            else:
                parts.append(data[start : start + count])
            start += count
        self.borrowed = (transaction_id, ranges)
        if give_back:
            self.give_back(transaction_id)
        return channel_type, parts

    def give_back(self, transaction_id, message=nvsp.COMPLETE[nvsp.Status.SUCCESS]):
        self.channel.send(COMPLETION, 0, transaction_id, message)
        deliver_all(self.channel, self.host)

    def reach(self, state):
        """Walk the sequence of the sheet up to ``state`` (a State, or "open" for a set packet filter)."""
        steps = [
            (State.CONFIG, lambda: self.send(nvsp.Init(0x60001, 0x60001))),
            (State.NDIS_VERSION, lambda: self.send(nvsp.NdisConfig(1514, 0, 0), flags=0)),
            (State.RECEIVE_BUFFER, lambda: self.send(nvsp.NdisVersion(6, 30), flags=0)),
            (State.SEND_BUFFER, lambda: self.send(nvsp.SendReceiveBuffer(GPADL, 0xCAFE))),
            (State.RUNNING, lambda: self.control(rndis.Initialize(1, 1, 0, 0x4000))),
            ("open", lambda: self.control(rndis.Set(2, rndis.OID_PACKET_FILTER, info=b"\x0b\0\0\0"))),
        ]
        if state is State.INIT:
            return self
        for reached, step in steps:
            step()
            if reached == state:
                return self
        raise AssertionError(state)

    def transmit(self, *frames):
        reply = self.send(nvsp.DATA_PACKET, b"".join(map(rndis.pack_frame, frames)))
        return None if reply is None else nvsp.decode(reply).status

    @property
    def stats(self):
        return self.session.stats()


@pytest.fixture
def guest():
    return Guest()


# -- the handshake --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", nvsp.VERSIONS)
def test_every_version_of_the_list_is_accepted(guest, version):
    reply = nvsp.decode(guest.send(nvsp.Init(version, version)))
    assert reply == nvsp.InitComplete(0xFFFFFFFF, 34, nvsp.Status.SUCCESS)
    assert guest.stats.version == version


@pytest.mark.parametrize(("version", "status"), [
    (2, nvsp.Status.TOO_OLD), (0, nvsp.Status.TOO_OLD),
    (0x60002, nvsp.Status.TOO_NEW), (0xFFFFFFFF, nvsp.Status.TOO_NEW),
])
def test_another_version_is_refused_and_may_be_followed_by_a_known_one(guest, version, status):
    assert nvsp.decode(guest.send(nvsp.Init(version, version))).status == status
    assert guest.stats.state == "INIT"
    assert nvsp.decode(guest.send(nvsp.Init(0x50000, 0x50000))).status == nvsp.Status.SUCCESS


def test_the_receive_buffer_is_divided_into_suballocations(guest):
    guest.reach(State.RECEIVE_BUFFER)
    reply = nvsp.decode(guest.send(nvsp.SendReceiveBuffer(GPADL, 0xCAFE)))
    assert reply == nvsp.ReceiveBufferComplete(1, 1, 0, SUBALLOCATION, 4, 4 * SUBALLOCATION)


@pytest.mark.parametrize(("gpadl", "nbytes", "buffer_id"), [
    (GPADL + 5, 1 << 20, 0xCAFE), (GPADL, SUBALLOCATION - 1, 0xCAFE), (GPADL, 0, 0xCAFE),
    (GPADL, (31 << 20) + 1, 0xCAFE), (GPADL, 1 << 20, 1),
])
def test_a_receive_buffer_that_cannot_be_used_is_refused_and_another_may_follow(gpadl, nbytes, buffer_id):
    guest = Guest(nbytes).reach(State.RECEIVE_BUFFER)
    assert nvsp.decode(guest.send(nvsp.SendReceiveBuffer(gpadl, buffer_id))).status == nvsp.Status.FAIL
    guest.lend(7, 1 << 20)
    assert nvsp.decode(guest.send(nvsp.SendReceiveBuffer(7, 0xCAFE))).status == nvsp.Status.SUCCESS


@pytest.mark.parametrize("mtu", [0, 1513, 9217, 0xFFFFFFFF])
def test_an_mtu_out_of_range_ends_the_channel(guest, mtu):
    guest.reach(State.CONFIG)
    guest.send(nvsp.NdisConfig(mtu, 0, 0))
    assert guest.failures == [f"NVSP MTU {mtu}"]


OUT_OF_ORDER = [
    (state, row.fields(*[0] * len(row.fields._fields)))
    for state in State for row in nvsp.MESSAGES if row.fields not in netvsp.TRANSITIONS[state]
]


@pytest.mark.parametrize(
    ("state", "message"), OUT_OF_ORDER, ids=[f"{one.name}-{type(message).__name__}" for one, message in OUT_OF_ORDER]
)
def test_a_message_out_of_order_ends_the_channel(state, message):
    guest = Guest()
    if state is State.REVOKED:
        guest.reach(State.RUNNING).send(nvsp.RevokeReceiveBuffer(0xCAFE))
    else:
        guest.reach(state)
    assert guest.stats.state == state.name
    guest.send(message)
    assert guest.failures == [f"NVSP {type(message).__name__} in state {state.name}"]


def test_no_step_can_be_taken_twice(guest):
    guest.reach("open")
    guest.send(nvsp.SendReceiveBuffer(GPADL, 0xCAFE))
    assert guest.host.failed == "NVSP SendReceiveBuffer in state RUNNING"


def test_sub_channels_are_granted_none(guest):
    guest.reach(State.RUNNING)
    assert nvsp.decode(guest.send(nvsp.Subchannel(1, 8))) == nvsp.Subchannel(nvsp.Status.SUCCESS, 0)
    assert nvsp.decode(guest.send(nvsp.Subchannel(2, 8))) == nvsp.Subchannel(nvsp.Status.FAIL, 0)


def test_what_is_not_served_gets_an_empty_completion_and_is_counted(guest):
    guest.reach(State.RUNNING)
    assert guest.send(nvsp.SwitchDataPath(1)) == b""
    assert guest.send(struct.pack("<I36x", 131)) == b""
    assert guest.stats.unsupported == 2
    assert guest.failures == []


@pytest.mark.parametrize("packet", [
    (TRANSFER_PAGES, nvsp.DATA_PACKET, b"x"), (IN_BAND, b"", None), (IN_BAND, b"\1\0\0", None),
    (IN_BAND, struct.pack("<I36x", 999), None), (GPA_DIRECT, nvsp.encode(nvsp.Subchannel(1, 1)), b"x"),
    (IN_BAND, nvsp.encode(nvsp.Subchannel(1, 1)), b"x"), (IN_BAND, nvsp.DATA_PACKET[:12], None),
    (COMPLETION, nvsp.COMPLETE[nvsp.Status.SUCCESS], None),
])
def test_what_breaks_the_framing_ends_the_channel(guest, packet):
    guest.reach("open")
    packet_type, message, data = packet
    guest.send(message, data, packet_type, flags=0)
    assert len(guest.failures) == 1


# -- from the guest -------------------------------------------------------------------------------------


def test_a_frame_goes_to_the_switch_and_completes_with_success(guest):
    guest.reach("open")
    assert guest.transmit(frame()) == nvsp.Status.SUCCESS
    assert guest.on_wire == [frame()]
    assert (guest.stats.tx_frames, guest.stats.tx_bytes) == (1, 64)


def test_concatenated_frames_all_go(guest):
    guest.reach("open")
    frames = [frame(payload=bytes((n,)) * 40) for n in range(8)]
    assert guest.transmit(*frames) == nvsp.Status.SUCCESS
    assert guest.on_wire == frames
    assert guest.transmit(*frames, frame()) == nvsp.Status.INVALID_RNDIS


def test_bad_rndis_is_status_5_counted_and_sends_nothing(guest):
    guest.reach("open")
    good = rndis.pack_frame(frame())
    for bad in (b"x", good[:-1], good + good[:-1], rndis.pack_frame(b"thirteen byte"), bytes(44)):
        assert nvsp.decode(guest.send(nvsp.DATA_PACKET, bad)).status == nvsp.Status.INVALID_RNDIS
    assert nvsp.decode(guest.send(nvsp.CONTROL_PACKET, b"nonsense")).status == nvsp.Status.INVALID_RNDIS
    assert nvsp.decode(guest.send(nvsp.CONTROL_PACKET, good)).status == nvsp.Status.INVALID_RNDIS
    assert guest.stats.invalid_rndis == 7
    assert guest.on_wire == []
    assert guest.transmit(frame()) == nvsp.Status.SUCCESS, "the channel lives on"


def test_another_source_address_is_dropped_and_counted(guest):
    guest.reach("open")
    assert guest.transmit(frame(source=OTHER)) == nvsp.Status.SUCCESS
    assert guest.on_wire == []
    assert guest.stats.tx_spoofed == 1
    assert OTHER not in guest.switch.table()


def test_a_frame_longer_than_the_mtu_is_dropped(guest):
    guest.reach("open")
    assert guest.transmit(frame(payload=bytes(1501))) == nvsp.Status.SUCCESS
    assert guest.stats.tx_drops == 1
    guest.transmit(frame(payload=bytes(1500)))
    assert len(guest.on_wire) == 1


def test_data_before_the_filter_ends_the_channel_and_after_it_was_cleared_is_dropped():
    early = Guest().reach(State.RUNNING)
    assert early.transmit(frame()) is None
    assert early.failures == ["RNDIS data before the packet filter was set"]
    assert early.on_wire == []
    cleared = Guest().reach("open")
    cleared.control(rndis.Set(2, rndis.OID_PACKET_FILTER, info=bytes(4)))
    assert cleared.transmit(frame()) == nvsp.Status.SUCCESS
    assert cleared.on_wire == []
    assert cleared.stats.tx_drops == 1


def test_a_removed_port_completes_with_failure(guest):
    guest.reach("open")
    guest.switch.remove(guest.port)
    assert guest.transmit(frame()) == nvsp.Status.FAIL
    assert guest.stats.tx_drops == 1


def test_bytes_must_be_where_the_message_says(guest):
    data = rndis.pack_frame(frame())
    size = len(data)
    good = [(IN_BAND, 0, size), (IN_BAND, 1, size), (GPA_DIRECT, nvsp.NO_SECTION, 0)]
    bad = [
        (IN_BAND, 2, size), (IN_BAND, 0xFFFFFFFE, size), (IN_BAND, 0, size + 1), (IN_BAND, 0, 0),
        (GPA_DIRECT, 0, size), (IN_BAND, nvsp.NO_SECTION, size),
    ]
    for packet_type, section, length in good + bad:
        guest = Guest().with_sections()
        guest.send(nvsp.RndisPacket(nvsp.DATA_CHANNEL, section, length), data, packet_type)
        fine = (packet_type, section, length) in good
        assert (guest.on_wire == [frame()], guest.failures == []) == (fine, fine), (packet_type, section, length)


def test_a_section_without_a_send_buffer_ends_the_channel(guest):
    guest.reach("open")
    data = rndis.pack_frame(frame())
    guest.send(nvsp.RndisPacket(0, 0, len(data)), data, IN_BAND)
    assert len(guest.failures) == 1


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("size", "fits"), [(netvsp.MAX_RNDIS_BYTES, True), (netvsp.MAX_RNDIS_BYTES + 1, False)])
def test_more_than_an_rndis_message_can_be_is_not_even_copied(shared, size, fits):
    guest = Guest(shared=shared).reach("open")
    reply = guest.send(nvsp.DATA_PACKET, rndis.pack_frame(frame()).ljust(size, b"\0"))
    assert (reply == nvsp.COMPLETE[nvsp.Status.INVALID_RNDIS], guest.failures == []) == (fits, fits)


# -- from the guest, in shared memory -------------------------------------------------------------------


@pytest.fixture
def sharing():
    return Guest(shared=True)


def test_a_frame_in_a_section_goes_to_the_switch(sharing):
    sharing.with_sections()
    for section in (1, 0, 1):
        message = rndis.pack_frame(frame(payload=bytes((section,)) * 50))
        assert sharing.send_section(section, message) == nvsp.Status.SUCCESS
    assert sharing.on_wire == [frame(payload=bytes((section,)) * 50) for section in (1, 0, 1)]


MESSAGE = rndis.pack_frame(frame())
#: A section whose offset is 2048 if it is computed in 32 bits.
WRAPS = ((1 << 32) + 2048) // nvsp.SECTION_BYTES


@pytest.mark.parametrize(("section", "size", "at", "fine"), [
    (0, len(MESSAGE), 0, True),
    (2, len(MESSAGE), 2 * 6144, True),              # less than a section is left at the end; what fits may stand there
    (2, len(MESSAGE) + 1, 2 * 6144, False),
    (3, len(MESSAGE), 0, False),
    (WRAPS, len(MESSAGE), 2048, False),
    (0xFFFFFFFE, len(MESSAGE), 0, False),
    (0, 0, 0, False),
    (0, nvsp.SECTION_BYTES + 1, 0, False),
    (0, 0xFFFFFFFF, 0, False),
    (1, 0x100000000 - 6144 + len(MESSAGE), 0, False),
])
def test_a_section_must_lie_in_the_send_buffer(sharing, section, size, at, fine):
    assert WRAPS * nvsp.SECTION_BYTES == (1 << 32) + 2048
    sharing.with_sections(2 * nvsp.SECTION_BYTES + len(MESSAGE))
    status = sharing.send_section(section, MESSAGE, size, at)
    assert (status == nvsp.Status.SUCCESS, sharing.on_wire == [frame()], sharing.failures == []) == (fine,) * 3


def test_a_full_section_is_read_to_its_end_and_no_further(sharing):
    sharing.with_sections()
    filler = frame(payload=bytes(1300))
    messages = rndis.pack_frame(filler) * 4
    last = frame(payload=bytes(nvsp.SECTION_BYTES - len(messages) - 44 - 14))
    assert sharing.send_section(1, messages + rndis.pack_frame(last)) == nvsp.Status.SUCCESS
    assert sharing.on_wire == [filler] * 4 + [last]


def test_what_a_guest_rewrites_after_sending_is_not_looked_at(sharing):
    sharing.with_sections()
    memory = sharing.gpadls[SEND_GPADL].memory
    arrived = []

    def scribble(data):
        arrived.append(bytes(data))
        memory[:] = rndis.pack_frame(frame(source=OTHER, payload=bytes(1400))).ljust(len(memory), b"\xff")
        arrived.append(bytes(data))
        return True

    sharing.peer.connect(scribble)
    messages = [frame(payload=bytes((number,)) * 50) for number in range(4)]
    assert sharing.send_section(0, b"".join(map(rndis.pack_frame, messages))) == nvsp.Status.SUCCESS
    assert arrived == [one for one in messages for _ in range(2)]
    assert sharing.stats.tx_spoofed == 0


class Watched:
    """Lent memory that changes at every look at it, and counts the looks."""

    def __init__(self, content):
        self.content = content
        self.looks = 0

    def __getitem__(self, where):
        self.looks += 1
        seen, self.content = self.content, b"\xff" * len(self.content)
        return seen[where]


@pytest.mark.parametrize("message", [
    (nvsp.DATA_CHANNEL, MESSAGE), (nvsp.CONTROL_CHANNEL, rndis.encode(rndis.Query(3, rndis.OID_MAXIMUM_FRAME_SIZE))),
])
def test_a_section_is_looked_at_once(sharing, message):
    channel_type, content = message
    watched = Watched(content)
    sharing.gpadls[SEND_GPADL] = Lent(nvsp.SECTION_BYTES, watched)
    sharing.reach(State.SEND_BUFFER).send(nvsp.SendSendBuffer(SEND_GPADL, 0))
    sharing.control(rndis.Initialize(1, 1, 0, 0x4000))
    sharing.control(rndis.Set(2, rndis.OID_PACKET_FILTER, info=b"\x0b\0\0\0"))
    reply = sharing.send(nvsp.RndisPacket(channel_type, 0, len(content)))
    assert reply == nvsp.COMPLETE[nvsp.Status.SUCCESS]
    assert watched.looks == 1


def test_described_pages_are_copied_before_they_are_read(sharing):
    sharing.reach("open")
    pages = bytearray(MESSAGE * 2)
    half = len(MESSAGE) + 20
    arrived = []

    def scribble(data):
        arrived.append(bytes(data))
        pages[:] = b"\xff" * len(pages)
        return True

    sharing.peer.connect(scribble)
    for data in (memoryview(pages), Scatter([memoryview(pages)[:half], memoryview(pages)[half:]])):
        pages[:] = MESSAGE * 2
        sharing.host.on_packet(GPA_DIRECT, COMPLETION_REQUESTED, 1, nvsp.DATA_PACKET, data)
        assert arrived == [frame()] * 2
        arrived.clear()


def test_sections_end_with_a_revoke_and_with_their_gpadl_even_if_its_handle_comes_back():
    for end in (
        lambda guest: guest.send(nvsp.RevokeSendBuffer(0), flags=0),
        lambda guest: guest.lend(SEND_GPADL, 2 * nvsp.SECTION_BYTES),
        lambda guest: guest.lend(SEND_GPADL, len(MESSAGE)),
    ):
        guest = Guest(shared=True).with_sections()
        end(guest)
        assert guest.send_section(0, MESSAGE) is None
        assert guest.failures == ["RNDIS bytes are not where the NVSP message says"]


def test_buffers_that_cannot_be_reached_are_refused_where_memory_is_shared(sharing):
    receive = sharing.gpadls[GPADL]
    sharing.gpadls.update({GPADL: Lent(1 << 20), SEND_GPADL: Lent(1 << 20)})
    sharing.reach(State.RECEIVE_BUFFER)
    assert nvsp.decode(sharing.send(nvsp.SendReceiveBuffer(GPADL, 0xCAFE))).status == nvsp.Status.FAIL
    sharing.gpadls[GPADL] = receive
    assert nvsp.decode(sharing.send(nvsp.SendReceiveBuffer(GPADL, 0xCAFE))).status == nvsp.Status.SUCCESS
    for gpadl in (GPADL, SEND_GPADL, 99):
        reply = nvsp.decode(sharing.send(nvsp.SendSendBuffer(gpadl, 0)))
        assert reply == nvsp.SendBufferComplete(nvsp.Status.FAIL, 0)
    assert sharing.lend(SEND_GPADL, 6144).send(nvsp.SendSendBuffer(SEND_GPADL, 0)) == nvsp.encode(
        nvsp.SendBufferComplete(nvsp.Status.SUCCESS, 6144)
    ), "and another may follow"


# -- to the guest ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_a_frame_arrives_in_a_suballocation(shared):
    guest = Guest(shared=shared).reach("open")
    sent = frame(MAC, OTHER)
    guest.peer.transmit(sent)
    deliver_all(guest.channel, guest.host)
    channel_type, [message] = guest.take()
    assert channel_type == nvsp.DATA_CHANNEL
    assert rndis.frames(message) == [sent]
    transaction_id, [(count, offset)] = guest.borrowed
    assert offset == (transaction_id - 1) * SUBALLOCATION
    assert count == 44 + len(sent)
    assert guest.stats.lent == 0


@pytest.mark.parametrize("shared", [False, True])
def test_credit_bounds_what_is_on_its_way_then_frames_wait_then_they_are_dropped(shared):
    guest = Guest(shared=shared).reach("open")
    frames = [frame(MAC, OTHER, bytes((n,)) * 50) for n in range(4 + netvsp.WAITING_FRAMES + 3)]
    for one in frames:
        guest.peer.transmit(one)
    deliver_all(guest.channel, guest.host)
    assert len(guest.packets) == 4
    assert (guest.stats.lent, guest.stats.waiting, guest.stats.rx_drops) == (4, netvsp.WAITING_FRAMES, 3)
    assert guest.port.stats().rx_drops == 3
    offsets = {guest_packet[3][12:16] for guest_packet in guest.packets}
    assert len(offsets) == 4, "four different places"
    arrived = []
    while guest.packets:
        arrived += rndis.frames(guest.take()[1][0])
    assert arrived == frames[:-3], "in order, and all that were not dropped"
    assert (guest.stats.lent, guest.stats.waiting) == (0, 0)


def test_a_suballocation_can_be_given_back_once_only(guest):
    guest.reach("open")
    guest.peer.transmit(frame(MAC, OTHER))
    deliver_all(guest.channel, guest.host)
    guest.take()
    assert guest.failures == []
    guest.give_back(guest.borrowed[0])
    assert len(guest.failures) == 1


@pytest.mark.parametrize("transaction_id", [0, 2, 5, 1 << 63])
def test_a_suballocation_that_is_not_lent_cannot_be_given_back(guest, transaction_id):
    guest.reach("open").give_back(transaction_id)
    assert len(guest.failures) == 1


@pytest.mark.parametrize("message", [b"", b"\x6c\0\0\0", nvsp.encode(nvsp.Init(1, 1))])
def test_a_completion_that_is_none_ends_the_channel(guest, message):
    guest.reach("open")
    guest.peer.transmit(frame(MAC, OTHER))
    deliver_all(guest.channel, guest.host)
    guest.take(give_back=False)
    guest.give_back(guest.borrowed[0], message)
    assert guest.failures == ["malformed completion of a received packet"]


def test_what_found_no_room_in_the_channel_goes_when_there_is_some():
    guest = Guest(room=2).reach("open")
    frames = [frame(MAC, OTHER, bytes((n,)) * 50) for n in range(4)]
    for one in frames:
        guest.peer.transmit(one)
    assert (len(guest.channel.inbox), guest.stats.lent, guest.stats.waiting) == (2, 2, 2)
    guest.channel.deliver()
    guest.host.on_room()
    guest.channel.deliver()
    assert [rndis.frames(guest.take(give_back=False)[1][0]) for _ in range(4)] == [[one] for one in frames]
    assert guest.stats.waiting == 0


def test_room_in_a_channel_that_is_done_with_is_no_reason_to_send():
    for end in (
        lambda guest: guest.session.close(),
        lambda guest: guest.host.on_packet(IN_BAND, 0, 0, nvsp.encode(nvsp.RevokeReceiveBuffer(0xCAFE)), None),
    ):
        guest = Guest(room=2).reach("open")
        for _ in range(4):
            guest.peer.transmit(frame(MAC, OTHER))
        guest.channel.deliver()
        end(guest)
        guest.host.on_room()
        assert len(guest.channel.inbox) == 0


@pytest.mark.parametrize("shared", [False, True])
def test_control_answers_wait_for_credit_and_go_before_frames(shared):
    guest = Guest(shared=shared).reach("open")
    for n in range(6):
        guest.peer.transmit(frame(MAC, OTHER, bytes((n,)) * 50))
    assert guest.send(nvsp.CONTROL_PACKET, rndis.encode(rndis.Keepalive(77))) is not None
    kinds = []
    while guest.packets:
        kinds.append(guest.take()[0])
    assert kinds == [0, 0, 0, 0, 1, 0, 0]


def test_a_guest_that_takes_no_answers_loses_its_channel(guest):
    guest.reach("open")
    for n in range(4 + netvsp.WAITING_ANSWERS):
        guest.send(nvsp.CONTROL_PACKET, rndis.encode(rndis.Keepalive(n)))
    assert guest.failures == []
    guest.send(nvsp.CONTROL_PACKET, rndis.encode(rndis.Keepalive(99)))
    assert guest.failures == ["the guest does not take its RNDIS answers"]


def test_a_guest_that_takes_no_completions_loses_its_channel():
    guest = Guest(room=20).reach("open")
    for n in range(25):
        guest.channel.send(GPA_DIRECT, COMPLETION_REQUESTED, 1000 + n, nvsp.DATA_PACKET, rndis.pack_frame(frame()))
        guest.host.deliver()
    assert guest.failures == ["the guest does not take its completions"]


def test_the_packet_filter_and_the_mtu_decide_what_is_sent(guest):
    guest.reach("open")
    guest.peer.transmit(frame(bytes.fromhex("020000000099"), OTHER))
    big = guest.switch.port("big", b"\2" * 6, mtu=9000)
    big.transmit(frame(ALL, b"\2" * 6, bytes(1501)))
    deliver_all(guest.channel, guest.host)
    assert guest.packets == []
    assert guest.stats.rx_filtered == 1
    assert guest.port.stats().rx_drops == 1, "the port knows its MTU"


@pytest.mark.parametrize("shared", [False, True])
def test_nothing_is_sent_or_written_after_revoke_close_or_teardown(shared):
    for end in (
        lambda guest: guest.send(nvsp.RevokeReceiveBuffer(0xCAFE), flags=0),
        lambda guest: guest.session.close(),
        lambda guest: guest.gpadls.clear(),
        lambda guest: guest.lend(GPADL, 8),
    ):
        guest = Guest(shared=shared).reach("open")
        memory = guest.gpadls[GPADL].memory
        end(guest)
        before = None if memory is None else bytes(memory)
        guest.peer.transmit(frame(MAC, OTHER))
        deliver_all(guest.channel, guest.host)
        assert guest.packets == []
        assert memory is None or bytes(memory) == before
        assert guest.port.stats().rx_drops == 1
        assert guest.failures == []


def test_late_completions_after_a_revoke_are_accepted_and_free_nothing(guest):
    guest.reach("open")
    for _ in range(6):
        guest.peer.transmit(frame(MAC, OTHER))
    deliver_all(guest.channel, guest.host)
    guest.take(give_back=False)
    guest.send(nvsp.RevokeReceiveBuffer(0xCAFE), flags=0)
    guest.give_back(guest.borrowed[0])
    assert guest.failures == []
    assert (guest.stats.lent, guest.stats.waiting, guest.stats.rx_drops) == (3, 0, 2)


def test_a_new_session_takes_over_the_port(guest):
    guest.reach("open")
    guest.session.close()
    again = Guest.__new__(Guest)
    again.__dict__.update(guest.__dict__)
    again.channel, again.host = channel_pair()
    again.session = NetVspSession(again.host, guest.port, guest.gpadls)
    again.packets = []
    again.channel.on_packet = lambda *packet: again.packets.append(packet)
    again.reach("open")
    guest.peer.transmit(frame(MAC, OTHER))
    deliver_all(again.channel, again.host)
    assert rndis.frames(again.take()[1][0]) == [frame(MAC, OTHER)]
