"""netvsc: the guest's network adapter, a ``NetworkPort`` whose other end is a netvsp behind a VMBus channel.

The guest's bus driver makes one :class:`NetVsc` per adapter, opens the channel, lends it a receive buffer and
perhaps a send buffer, and calls :meth:`NetVsc.attach`; when the channel goes it calls :meth:`NetVsc.detach`, and
after a re-offer ``attach`` again with the new channel. The guest's network stack sees one port all the time.

While there is no channel the adapter is a cable with nobody at the other end: frames are accepted, lost and
counted, as on a wire. Nothing is ever resubmitted (protocol sheet 4; design rule 7). A transaction id is
used once in the life of the adapter, so an old answer cannot be taken for a new one.

Where the RNDIS bytes are. On a channel that shares memory the host puts frames into the receive buffer, and what
lies there is copied once, before anything is made of it: the host may still be writing. Frames to the host go into
sections of the send buffer; one that finds no free section, or is too long for it, is described by its own pages.
On any other channel every frame travels as its packet's data, and the receive buffer is only counted with.

The host is trusted with more than a guest is, and still checked: what breaks the protocol's framing ends the
channel with a reason, a bad RNDIS message in a good packet is counted.

Longer than most files here, because the port and one incarnation of its link read best side by side:
:class:`NetVsc` is what stays, :class:`_Link` what ends with a channel.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from vmbus_emu.channel import Channel
from vmbus_emu.device import (
    DEFAULT_MTU,
    ETHERNET_HEADER,
    MIN_FRAME,
    QUEUE_DEPTH,
    Buffer,
    CountingPort,
    Memory,
    PortInfo,
    Status,
)
from vmbus_emu.loop import Loop
from vmbus_emu.protocol import nvsp, rndis
from vmbus_emu.protocol.packets import COMPLETION, COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND, TRANSFER_PAGES
from vmbus_emu.task import Future, Task

#: Frames on their way to the host; one more is BUSY.
MAX_SENDS = QUEUE_DEPTH
#: In :attr:`_Link.sends`, of a frame that is not in the send buffer.
_NO_SECTION = -1
#: The longest frame this adapter can take; the host answers with what its port can.
MAX_FRAME = nvsp.MAX_CONFIG_MTU
_FILTER = rndis.FILTER_DIRECTED | rndis.FILTER_MULTICAST | rndis.FILTER_BROADCAST
_WORD = struct.Struct("<I")
_NDIS_6_1, _NDIS_6_30 = nvsp.NdisVersion(6, 1), nvsp.NdisVersion(6, 30)
_NEWER = 0x50000
#: What the adapter is asked about itself, and how long each answer is: address, MTU, whether there is a cable.
_PROPERTIES = ((rndis.OID_PERMANENT_MAC, 6), (rndis.OID_MAXIMUM_FRAME_SIZE, 4), (rndis.OID_MEDIA_CONNECT, 4))
_UNPLUGGED = PortInfo(bytes(6), DEFAULT_MTU)


class LentBuffer(NamedTuple):
    """Memory lent to the host: its GPADL, its bytes, and where it can be reached, if the channel shares memory."""

    gpadl: int
    nbytes: int
    memory: memoryview | None


class NetVsc(CountingPort):
    """A ``NetworkPort`` over whatever channel is attached."""

    #: What a new channel is sent again of the old one's: nothing, as on a wire.
    resubmitted = 0

    def __init__(self, loop: Loop, name: str, log: Callable[[str], Any]) -> None:
        """``name`` is the adapter's inside the guest (``nic0``); ``log`` takes one line for the guest's log."""
        super().__init__(_UNPLUGGED)    # the address and MTU the host gave, from the first successful :meth:`attach` on
        self.name = name
        self.log = log
        self.loop = loop
        self.malformed = 0      #: RNDIS messages from the host that made no sense
        self.ignored = 0        #: messages from the host about things this adapter does not have
        self.link_up = False    #: what the host last said of the cable
        self.transactions = itertools.count(1)
        self._link: _Link | None = None
        self._gone = False
        self._starved = False   # somebody got BUSY and waits for on_ready

    # -- the guest's side -------------------------------------------------------------------------

    def transmit(self, frame: Buffer) -> Status:
        if self._gone:
            return Status.GONE
        length = len(frame)
        if not MIN_FRAME <= length <= self._info.max_frame:
            return Status.INVALID
        link = self._link
        if link is None or not link.running or link.channel.closed:
            self._tx_drops += 1
            return Status.OK
        sends = link.sends
        if len(sends) >= MAX_SENDS:
            self._starved = True
            return Status.BUSY
        if not link.send_frame(next(self.transactions), frame):
            if sends and self._link is link:  # else the channel broke, and those who wait were told already
                self._starved = True
                return Status.BUSY
            self._tx_drops += 1  # nothing is on its way, so nothing is sure to call on_ready
            return Status.OK
        self._tx_frames += 1
        self._tx_bytes += length
        self._last_io = self.loop.now
        return Status.OK


    @property
    def _outstanding(self) -> int:
        return 0 if self._link is None else len(self._link.sends)

    # -- the bus driver's side --------------------------------------------------------------------

    def attach(self, channel: Channel, receive: LentBuffer, send: LentBuffer | None = None) -> Future[bool]:
        """Bring the adapter up over ``channel``, with the buffers lent to the host for it.

        On a channel that shares memory both must be within reach; on any other ``send`` is of no use and not offered.
        Resolves to whether frames can flow. A failure leaves the adapter unplugged. There is no deadline: who
        watches the host calls :meth:`detach` when the host is not heard of any more. ``channel.on_failed``
        stays the caller's, who calls :meth:`detach` from it.
        """
        if channel.shares_memory and (receive.memory is None or (send is not None and send.memory is None)):
            raise ValueError("the channel shares memory, and a buffer lent for it has none")
        self.detach()
        outcome: Future[bool] = Future()
        if self._gone:
            outcome.resolve(False)
        else:
            self._link = _Link(self, channel, receive, send, outcome)
        return outcome

    def detach(self) -> None:
        """The channel is gone. Frames on their way are lost and counted. Idempotent."""
        link, self._link = self._link, None
        if link is None:
            return
        self.link_up = False
        self._tx_drops += len(link.sends)
        link.stop()
        self.ready()

    def give_up(self) -> None:
        """There will be no other channel: from now on :meth:`transmit` says GONE."""
        self._gone = True
        self.detach()
        self.ready()

    # -- called by the link -----------------------------------------------------------------------

    def plugged(self, info: PortInfo, link_up: bool) -> None:
        self._info = info
        self.link_up = link_up

    def sent(self, ok: bool) -> None:
        """A frame's packet was completed."""
        if not ok:
            self._tx_drops += 1
        self.ready()

    def received(self, frame: memoryview) -> None:
        if self._receiver is None or len(frame) < MIN_FRAME or not self._receiver(frame):
            self._rx_drops += 1
            return
        self._rx_frames += 1
        self._rx_bytes += len(frame)
        self._last_io = self.loop.now

    def ready(self) -> None:
        """There is credit: tell who was refused it."""
        if self._starved:
            self._starved = False
            if self._on_ready is not None:
                self._on_ready()


class _Link:
    """One incarnation of the connection: a channel, the handshake on it, and what is outstanding on it."""

    def __init__(
        self, adapter: NetVsc, channel: Channel, receive: LentBuffer, send: LentBuffer | None, outcome: Future[bool]
    ) -> None:
        self.channel = channel
        self.running = False
        self._stopped = False
        self.sends: dict[int, int] = {}                             # transaction id of a data packet -> its section
        self._adapter = adapter
        self._receive = receive
        self._in_place = channel.shares_memory
        self._send = send if self._in_place else None
        self._sections = memoryview(b"")
        self._section_bytes = 0
        self._free_sections: list[int] = []                         # the last one freed is used next
        self._outcome = outcome
        self._awaited: dict[int, Future[bytes]] = {}                # transaction id -> completion's bytes
        self._requests: dict[int, Future[rndis.Message | None]] = {}  # RNDIS request id -> answer
        channel.on_packet = self._packet
        channel.on_room = self._room
        self._handshake = Task(adapter.loop, self._bring_up())
        self._handshake.then(self._brought_up)

    def stop(self) -> None:
        """No more of this link: late packets are ignored, the handshake ends unsuccessfully."""
        self._stopped = True
        self.running = False
        self.channel.on_packet = lambda *packet: None
        self.channel.on_room = lambda: None
        self._handshake.cancel()
        self._outcome.resolve(False)

    def _fail(self, reason: str) -> None:
        if self._stopped:  # the handshake may take one more step after stop()
            return
        self._adapter.log(f"{self._adapter.name}: {reason}")
        self.running = False
        self._outcome.resolve(False)
        self.channel.fail(reason)

    # -- the handshake (protocol sheet 4.1: sequence) ---------------------------------------------

    def _brought_up(self, handshake: Future[bool]) -> None:
        if not self._outcome.done:  # else stopped or failed meanwhile, and the task may hold its cancellation
            self._outcome.resolve(handshake.result())

    async def _bring_up(self) -> bool:
        version = await self._agree_on_version()
        if version is None:
            self._adapter.log(f"{self._adapter.name}: the host speaks no NVSP version known here")
            return False
        self._tell(nvsp.NdisConfig(MAX_FRAME, 0, 0))
        self._tell(_NDIS_6_30 if version >= _NEWER else _NDIS_6_1)
        # From here on no answer decides what is asked next, so nothing waits for one (docs/fidelity.md): after a
        # restart of the host each round trip is time without a network.
        receive = self._ask(nvsp.SendReceiveBuffer(self._receive.gpadl, nvsp.RECEIVE_BUFFER_ID))
        send = self._send
        sections = None if send is None else self._ask(nvsp.SendSendBuffer(send.gpadl, nvsp.SEND_BUFFER_ID))
        request_id = next(self._adapter.transactions)
        device = self._request(rndis.Initialize(request_id, *rndis.VERSION, rndis.MAX_TRANSFER_SIZE))
        properties = [(self._query(oid), nbytes) for oid, nbytes in _PROPERTIES]

        reply = nvsp.decode(await receive)
        if not isinstance(reply, nvsp.ReceiveBufferComplete) or reply.status != nvsp.Status.SUCCESS:
            self._adapter.log(f"{self._adapter.name}: the host refused the receive buffer")
            return False
        if send is not None and sections is not None:
            self._use_sections(send, nvsp.decode(await sections))
        initialized = await device
        if not isinstance(initialized, rndis.InitializeComplete) or initialized.status != rndis.SUCCESS:
            self._adapter.log(f"{self._adapter.name}: the host's RNDIS device does not initialize")
            return False
        return await self._plug(*[_value(await answer, nbytes) for answer, nbytes in properties])

    def _use_sections(self, send: LentBuffer, reply: nvsp.Message | None) -> None:
        """The host's word on the send buffer. If it does not want it, frames are sent without."""
        if not isinstance(reply, nvsp.SendBufferComplete) or reply.status != nvsp.Status.SUCCESS:
            return
        if reply.section_bytes and send.memory is not None:
            self._sections, self._section_bytes = send.memory, reply.section_bytes
            self._free_sections = list(range(min(send.nbytes // reply.section_bytes, MAX_SENDS)))

    async def _agree_on_version(self) -> int | None:
        for version in nvsp.VERSIONS:
            reply = nvsp.decode(await self._ask(nvsp.Init(version, version)))
            if not isinstance(reply, nvsp.InitComplete):
                return None
            if reply.status == nvsp.Status.SUCCESS:
                return version
        return None

    async def _plug(self, mac: bytes | None, mtu: bytes | None, media: bytes | None) -> bool:
        if mac is None or mtu is None or media is None:
            self._adapter.log(f"{self._adapter.name}: the host does not say what the adapter is")
            return False
        if self._stopped:
            return False
        mtu_bytes = min(_WORD.unpack(mtu)[0], MAX_FRAME - ETHERNET_HEADER)
        self._adapter.plugged(PortInfo(mac, mtu_bytes), _WORD.unpack(media)[0] == 0)
        request_id = next(self._adapter.transactions)
        request = self._request(rndis.Set(request_id, rndis.OID_PACKET_FILTER, info=_WORD.pack(_FILTER)))
        self.running = True  # a channel keeps its order: frames sent from now on find the filter set
        answer = await request
        if not isinstance(answer, rndis.SetComplete) or answer.status != rndis.SUCCESS:
            self._adapter.log(f"{self._adapter.name}: the host refused the packet filter")
            self.running = False
            return False
        return True

    def _query(self, oid: int) -> Future[rndis.Message | None]:
        return self._request(rndis.Query(next(self._adapter.transactions), oid))

    def _tell(self, message: nvsp.Message) -> None:
        if not self.channel.send(IN_BAND, 0, 0, nvsp.encode(message)):
            self._fail("no room in the channel for the handshake")

    def _ask(self, message: nvsp.Message) -> Future[bytes]:
        """Send an NVSP message that has a completion; its bytes."""
        transaction_id = next(self._adapter.transactions)
        completion: Future[bytes] = Future()
        self._awaited[transaction_id] = completion
        if not self.channel.send(IN_BAND, COMPLETION_REQUESTED, transaction_id, nvsp.encode(message)):
            self._fail("no room in the channel for the handshake")
        return completion

    def _request(self, message: rndis.Initialize | rndis.Query | rndis.Set) -> Future[rndis.Message | None]:
        """Send an RNDIS control message; its answer, or ``None`` when the host would not take it."""
        answer = self._requests[message.request_id] = Future()
        transaction_id = next(self._adapter.transactions)
        completion = self._awaited[transaction_id] = Future()

        def taken(completed: Future[bytes]) -> None:
            reply = nvsp.decode(completed.result())
            if not isinstance(reply, nvsp.RndisPacketComplete) or reply.status != nvsp.Status.SUCCESS:
                self._requests.pop(message.request_id, None)
                answer.resolve(None)

        completion.then(taken)
        data = rndis.encode(message)
        if not self.channel.send(GPA_DIRECT, COMPLETION_REQUESTED, transaction_id, nvsp.CONTROL_PACKET, data):
            self._fail("no room in the channel for the handshake")
        return answer

    # -- frames to the host -----------------------------------------------------------------------

    def send_frame(self, transaction_id: int, frame: Buffer) -> bool:
        """Send one frame, in a section if it can be. ``False``: there is no room in the channel."""
        section = _NO_SECTION
        if self._free_sections and len(frame) + rndis.PACKET_HEADER_BYTES <= self._section_bytes:
            section = self._free_sections[-1]
            nbytes = nvsp.place_frame(self._sections, section * self._section_bytes, frame)
            message = nvsp.pack_in_section(section, nbytes)
            if not self.channel.send(IN_BAND, COMPLETION_REQUESTED, transaction_id, message):
                return False
            self._free_sections.pop()
        elif not self.channel.send(
            GPA_DIRECT, COMPLETION_REQUESTED, transaction_id, nvsp.DATA_PACKET, rndis.pack_frame(frame)
        ):
            return False
        self.sends[transaction_id] = section
        return True

    def _room(self) -> None:
        if len(self.sends) < MAX_SENDS:
            self._adapter.ready()

    # -- from the host ----------------------------------------------------------------------------

    def _packet(self, packet_type: int, flags: int, transaction_id: int, message: bytes, data: Memory | None) -> None:
        if packet_type == COMPLETION:
            self._completed(transaction_id, message)
        elif packet_type == TRANSFER_PAGES:
            self._received(flags, transaction_id, message, data)
        elif packet_type == IN_BAND and isinstance(nvsp.decode(message), nvsp.VfAssociation | nvsp.IndirectionTable):
            self._adapter.ignored += 1
        else:
            self._fail("a packet that no host sends")

    def _completed(self, transaction_id: int, message: bytes) -> None:
        if transaction_id in self.sends:
            if len(message) < nvsp.COMPLETE_HEAD.size:
                self._fail("malformed completion")
                return
            number, status = nvsp.COMPLETE_HEAD.unpack_from(message)
            if number != nvsp.RNDIS_PACKET_COMPLETE:
                self._fail("malformed completion")
                return
            section = self.sends.pop(transaction_id)
            if section != _NO_SECTION:
                self._free_sections.append(section)
            self._adapter.sent(status == nvsp.Status.SUCCESS)
            return
        awaited = self._awaited.pop(transaction_id, None)
        if awaited is None:
            self._fail(f"completion of {transaction_id}, which is not outstanding")
            return
        awaited.resolve(message)

    def _received(self, flags: int, transaction_id: int, message: bytes, data: Memory | None) -> None:
        """RNDIS messages in the receive buffer; what they occupy is the host's again with the completion."""
        unpacked = nvsp.unpack_ranges(message, self._receive.nbytes)
        lent = self._receive.memory if self._in_place else None
        if unpacked is None or (lent is None and data is None):
            self._fail("malformed transfer-page packet")
            return
        channel_type, ranges = unpacked
        carried = memoryview(b"") if data is None else memoryview(data)  # type: ignore[arg-type]  # never in pieces
        if lent is None and sum(byte_count for byte_count, _ in ranges) != len(carried):
            self._fail("transfer-page ranges and data differ")
            return
        start = 0
        for byte_count, byte_offset in ranges:
            part: Buffer
            if lent is not None:
                part = bytes(lent[byte_offset : byte_offset + byte_count])
            else:
                part = carried[start : start + byte_count]
                start += byte_count
            if channel_type == nvsp.CONTROL_CHANNEL:
                self._answered(part)
                continue
            frames = rndis.frames(part)
            if frames is None:
                self._adapter.malformed += 1
                continue
            for frame in frames:
                self._adapter.received(frame)
        if flags & COMPLETION_REQUESTED and not self.channel.send(
            COMPLETION, 0, transaction_id, nvsp.COMPLETE[nvsp.Status.SUCCESS]
        ):
            self._fail("no room in the channel for a completion")  # the host would lack this credit for ever

    def _answered(self, part: Buffer) -> None:
        match answer := rndis.decode(part):
            case (
                rndis.InitializeComplete() | rndis.QueryComplete() | rndis.SetComplete()
                | rndis.SetExComplete() | rndis.KeepaliveComplete()
            ):
                request = self._requests.pop(answer.request_id, None)
                if request is None:
                    self._adapter.malformed += 1
                else:
                    request.resolve(answer)
            case rndis.Indicate(rndis.MEDIA_CONNECT):
                self._adapter.link_up = True
            case rndis.Indicate(rndis.MEDIA_DISCONNECT):
                self._adapter.link_up = False
            case rndis.Indicate():
                self._adapter.ignored += 1
            case _:
                self._adapter.malformed += 1


def _value(answer: rndis.Message | None, nbytes: int) -> bytes | None:
    """What a query was answered, if it is exactly ``nbytes`` long."""
    if isinstance(answer, rndis.QueryComplete) and answer.status == rndis.SUCCESS and len(answer.info) == nbytes:
        return answer.info
    return None
