"""netvsp: one guest's network adapter, served over one VMBus channel (protocol sheet 4; invariants 17, 18, 20).

The provider makes a :class:`NetVspSession` when the guest has opened the channel, and closes it when the
channel goes. Between them lie a :class:`~vmbus_emu.channel.Channel` to the guest and a ``NetworkPort`` of the
switch. The session does no I/O of its own: it acts when a packet or a frame comes.

Where the RNDIS bytes are. On a channel that shares memory, in a send-buffer section, in pages that the packet
describes, or in suballocations of the receive buffer; what the guest put there is copied once, before anything is
decided by it, for the guest may be writing still. On any other channel the same bytes travel as the packet's
data, and all the rules about those places are kept. A frame to the guest occupies one suballocation until the guest
completes the packet with that transaction id. That is the receive credit, and it bounds what is on its way.

The guest may send anything. What breaks the protocol's order or framing ends the channel, with a reason
(:meth:`Channel.fail`); a bad RNDIS message in a good packet is completed with status 5 and counted.

One file, although a long one: the state, the two directions and the credit between them are one object, and
splitting it would only move its fields apart.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from partitions.parent import rndis_device
from partitions.parent.rndis_device import Fault, RndisDevice
from vmbus_emu.channel import Channel
from vmbus_emu.device import ETHERNET_HEADER, Buffer, Memory, NetworkPort, PortInfo
from vmbus_emu.device import Status as PortStatus
from vmbus_emu.memory import Lent
from vmbus_emu.protocol import nvsp, rndis
from vmbus_emu.protocol.packets import COMPLETION, COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND, TRANSFER_PAGES

#: Frames to the guest that may wait for a suballocation; one more is refused, and the switch counts it.
WAITING_FRAMES = 64
#: Answers to RNDIS control messages that may wait likewise. They go first.
WAITING_ANSWERS = 64
#: Suballocations lent at once, at most. More would fill the channel and leave no room for completions.
MAX_LENT = 256
#: Bytes a suballocation has beside the frame (protocol sheet 4.2).
SUBALLOCATION_OVERHEAD = 256 + 36
#: The longest RNDIS message taken from a guest: as many of the longest frames as one may carry. A page list can
#: describe far more, and name the same page over and over.
MAX_RNDIS_BYTES = rndis.MAX_PACKETS * (nvsp.MAX_CONFIG_MTU + SUBALLOCATION_OVERHEAD)

#: Whether an NVSP message was accepted, and its completion.
Reply = tuple[bool, bytes]

#: What a handle stands for that nobody lent.
_NOTHING = Lent(0)


class State(enum.Enum):
    """How far the guest has come. Each step but the send buffer is needed, each happens once."""

    INIT = "no version yet"
    CONFIG = "version agreed"
    NDIS_VERSION = "MTU known"
    RECEIVE_BUFFER = "NDIS version known"
    SEND_BUFFER = "receive buffer lent"        #: the guest may lend a send buffer too, or go on without
    RUNNING = "RNDIS"
    REVOKED = "receive buffer taken back"      #: on the way to a close; nothing is sent to the guest any more


_RUNNING = {
    nvsp.RndisPacket: State.RUNNING,
    nvsp.Subchannel: State.RUNNING,
    nvsp.SwitchDataPath: State.RUNNING,
    nvsp.Seldom: State.RUNNING,
    nvsp.RevokeSendBuffer: State.RUNNING,
    nvsp.RevokeReceiveBuffer: State.REVOKED,
}
#: state -> message -> state after the message was accepted. What is not here is out of order.
TRANSITIONS: dict[State, dict[Any, State]] = {
    State.INIT: {nvsp.Init: State.CONFIG},
    State.CONFIG: {nvsp.NdisConfig: State.NDIS_VERSION},
    State.NDIS_VERSION: {nvsp.NdisVersion: State.RECEIVE_BUFFER},
    State.RECEIVE_BUFFER: {nvsp.SendReceiveBuffer: State.SEND_BUFFER},
    State.SEND_BUFFER: {nvsp.SendSendBuffer: State.RUNNING, **_RUNNING},
    State.RUNNING: _RUNNING,
    State.REVOKED: {nvsp.RndisPacket: State.REVOKED, nvsp.RevokeSendBuffer: State.REVOKED},
}

#: How a data packet completes by what the port said about its frame.
_COMPLETION_OF = {
    PortStatus.OK: nvsp.Status.SUCCESS,
    PortStatus.BUSY: nvsp.Status.BUSY,
}


@dataclass(frozen=True, slots=True)
class NetVspStats:
    """Counters of one session. ``rx`` is towards the guest, ``tx`` from it."""

    state: str
    version: int
    tx_frames: int
    tx_bytes: int
    tx_drops: int           #: the port did not take it, or the guest had closed its filter
    tx_spoofed: int         #: the source address was not the port's; dropped
    invalid_rndis: int      #: completed with status 5
    unsupported: int        #: known messages that are not served here
    rx_frames: int
    rx_bytes: int
    rx_drops: int           #: no suballocation and no room to wait, or longer than the guest's MTU
    rx_filtered: int        #: the guest's packet filter does not want it
    waiting: int            #: frames that wait for a suballocation
    lent: int               #: suballocations the guest has not given back
    last_io: float          #: ``time.monotonic()`` of the last frame in either direction


class NetVspSession:
    """Serves one guest. ``channel.on_failed`` stays its owner's."""

    def __init__(self, channel: Channel, port: NetworkPort, gpadls: Mapping[int, Lent]) -> None:
        """``gpadls``: the memory that the guest has lent to this channel, by handle, kept up to date by the owner:
        the same object for as long as it is lent. A buffer that disappears is used no more, even if its handle
        comes back. Where the channel shares memory, so does each of them."""
        self._channel = channel
        self._in_place = channel.shares_memory
        self._port = port
        self._gpadls = gpadls
        self._closed = False
        self._state = State.INIT
        self._version = 0
        self._device = RndisDevice(port.info)
        self._connected = False
        self._receive_gpadl = self._send_gpadl = 0
        self._receive: Lent | None = None
        self._send: Lent | None = None
        self._memory: memoryview | None = None      # the receive buffer, where memory is shared
        self._suballocation = 0             # bytes of one
        self._free: list[int] = []          # suballocation indexes; the last one given back is used next
        self._lent: set[int] = set()
        self._answers: deque[bytes] = deque()
        self._frames: deque[bytes] = deque()
        self._tx_frames = self._tx_bytes = self._tx_drops = self._tx_spoofed = 0
        self._rx_frames = self._rx_bytes = self._rx_drops = self._rx_filtered = 0
        self._invalid_rndis = self._unsupported = 0
        self._last_io = 0.0
        self._accept: dict[type, Callable[[Any], Reply]] = {
            nvsp.Init: self._init,
            nvsp.NdisConfig: self._config,
            nvsp.NdisVersion: self._ndis_version,
            nvsp.SendReceiveBuffer: self._receive_buffer,
            nvsp.SendSendBuffer: self._send_buffer,
            nvsp.RevokeReceiveBuffer: self._revoke_receive,
            nvsp.RevokeSendBuffer: self._revoke_send,
            nvsp.Subchannel: self._subchannel,
            nvsp.SwitchDataPath: self._not_served,
            nvsp.Seldom: self._not_served,
        }
        channel.on_packet = self._packet
        channel.on_room = self._send_waiting

    def close(self) -> None:
        """The channel is gone: serve nothing more. Frames that waited are lost. Idempotent."""
        self._closed = True
        self._frames.clear()
        self._answers.clear()
        self._free.clear()
        self._receive = self._send = self._memory = None    # a view would keep the guest's memory mapped

    def stats(self) -> NetVspStats:
        return NetVspStats(
            state=self._state.name, version=self._version,
            tx_frames=self._tx_frames, tx_bytes=self._tx_bytes, tx_drops=self._tx_drops,
            tx_spoofed=self._tx_spoofed, invalid_rndis=self._invalid_rndis, unsupported=self._unsupported,
            rx_frames=self._rx_frames, rx_bytes=self._rx_bytes, rx_drops=self._rx_drops,
            rx_filtered=self._rx_filtered, waiting=len(self._frames), lent=len(self._lent), last_io=self._last_io,
        )

    # -- from the guest ---------------------------------------------------------------------------

    def _packet(self, packet_type: int, flags: int, transaction_id: int, message: bytes, data: Memory | None) -> None:
        if self._closed:
            return
        if packet_type == COMPLETION:
            self._given_back(transaction_id, message)
            return
        if packet_type == TRANSFER_PAGES:
            self._channel.fail("a transfer-page packet from a guest")
            return
        if len(message) >= nvsp.PACKET_HEAD.size:
            number, channel_type, section, size = nvsp.PACKET_HEAD.unpack_from(message)
            if number == nvsp.RNDIS_PACKET:
                self._rndis_packet(packet_type, flags, transaction_id, channel_type, section, size, data)
                return
        self._control(packet_type, flags, transaction_id, message, data)

    def _control(self, packet_type: int, flags: int, transaction_id: int, message: bytes, data: Memory | None) -> None:
        request = nvsp.decode(message)
        if request is None:
            self._channel.fail("malformed NVSP message")
            return
        kind = type(request)
        follower = TRANSITIONS[self._state].get(kind)
        if follower is None:
            self._channel.fail(f"NVSP {kind.__name__} in state {self._state.name}")
            return
        if packet_type != IN_BAND or data is not None:
            self._channel.fail(f"NVSP {kind.__name__} with data")
            return
        accepted, reply = self._accept[kind](request)
        if accepted:
            self._state = follower
        self._complete(flags, transaction_id, reply)

    def _complete(self, flags: int, transaction_id: int, message: bytes) -> None:
        if flags & COMPLETION_REQUESTED and not self._channel.send(COMPLETION, 0, transaction_id, message):
            self._channel.fail("the guest does not take its completions")

    # Each handler answers whether the message was accepted, so that the state moves on, and the completion's
    # bytes. Where the protocol defines none, a guest that asks for a completion gets an empty one.

    def _init(self, request: nvsp.Init) -> Reply:
        version = next((known for known in nvsp.VERSIONS if request.minimum <= known <= request.maximum), 0)
        if version:
            self._version = version
            status = nvsp.Status.SUCCESS
        else:
            status = nvsp.Status.TOO_OLD if request.maximum < nvsp.VERSIONS[-1] else nvsp.Status.TOO_NEW
        return bool(version), nvsp.encode(nvsp.InitComplete(nvsp.NO_VERSION, nvsp.MAX_MDL_CHAIN, status))

    def _config(self, request: nvsp.NdisConfig) -> Reply:
        if not nvsp.MIN_CONFIG_MTU <= request.mtu <= nvsp.MAX_CONFIG_MTU:
            self._channel.fail(f"NVSP MTU {request.mtu}")
            return False, b""
        port = self._port.info
        self._device = RndisDevice(PortInfo(port.mac, min(port.mtu, request.mtu - ETHERNET_HEADER)))
        return True, b""

    def _ndis_version(self, request: nvsp.NdisVersion) -> Reply:
        return True, b""  # every version gets the same service

    def _not_served(self, request: nvsp.Message) -> Reply:
        self._unsupported += 1
        return True, b""

    def _usable(self, gpadl: int) -> Lent:
        """What the guest has lent by this handle, if it serves on this channel."""
        lent = self._gpadls.get(gpadl, _NOTHING)
        return _NOTHING if self._in_place and lent.memory is None else lent

    def _receive_buffer(self, request: nvsp.SendReceiveBuffer) -> Reply:
        lent = self._usable(request.gpadl)
        size = SUBALLOCATION_OVERHEAD + self._device.info.max_frame
        count = lent.nbytes // size
        if not count or lent.nbytes > nvsp.MAX_RECEIVE_BUFFER or request.buffer_id != nvsp.RECEIVE_BUFFER_ID:
            return False, nvsp.encode(nvsp.ReceiveBufferComplete(nvsp.Status.FAIL))
        self._receive_gpadl, self._receive = request.gpadl, lent
        self._memory = lent.memory if self._in_place else None
        self._suballocation = size
        self._free = list(range(min(count, MAX_LENT)))
        return True, nvsp.encode(
            nvsp.ReceiveBufferComplete(nvsp.Status.SUCCESS, 1, 0, size, count, size * count)
        )

    def _send_buffer(self, request: nvsp.SendSendBuffer) -> Reply:
        lent = self._usable(request.gpadl)
        if lent.nbytes < nvsp.SECTION_BYTES or request.gpadl == self._receive_gpadl:
            return False, nvsp.encode(nvsp.SendBufferComplete(nvsp.Status.FAIL))
        self._send_gpadl, self._send = request.gpadl, lent
        return True, nvsp.encode(nvsp.SendBufferComplete(nvsp.Status.SUCCESS, nvsp.SECTION_BYTES))

    def _revoke_receive(self, request: nvsp.RevokeReceiveBuffer) -> Reply:
        if request.buffer_id != nvsp.RECEIVE_BUFFER_ID:
            self._channel.fail(f"revoke of receive buffer {request.buffer_id:#x}")
            return False, b""
        self._rx_drops += len(self._frames)
        self._frames.clear()
        self._answers.clear()
        self._free.clear()
        return True, b""

    def _revoke_send(self, request: nvsp.RevokeSendBuffer) -> Reply:
        self._send = None
        return True, b""

    def _subchannel(self, request: nvsp.Subchannel) -> Reply:
        """One channel per adapter: a request for more is granted, with none (docs/fidelity.md)."""
        known = request.operation == nvsp.SUBCHANNEL_ALLOCATE
        status = nvsp.Status.SUCCESS if known else nvsp.Status.FAIL
        return True, nvsp.encode(nvsp.Subchannel(status, 0))

    # -- RNDIS from the guest ---------------------------------------------------------------------

    def _rndis_packet(
        self, packet_type: int, flags: int, transaction_id: int,
        channel_type: int, section: int, size: int, data: Memory | None,
    ) -> None:
        if self._state is not State.RUNNING:  # per packet, so the table is asked only while it can say something new
            follower = TRANSITIONS[self._state].get(nvsp.RndisPacket)
            if follower is None:
                self._channel.fail(f"NVSP RndisPacket in state {self._state.name}")
                return
            self._state = follower
        rndis_bytes = self._rndis_bytes(packet_type, section, size, data)
        if rndis_bytes is None:
            self._channel.fail("RNDIS bytes are not where the NVSP message says")
            return
        if channel_type == nvsp.DATA_CHANNEL:
            self._complete(flags, transaction_id, nvsp.COMPLETE[self._transmit(rndis_bytes)])
            return
        if channel_type != nvsp.CONTROL_CHANNEL:
            self._channel.fail(f"RNDIS channel {channel_type}")
            return
        answer = self._device.answer(rndis_bytes)
        if isinstance(answer, Fault):
            if answer.fatal:
                self._channel.fail(answer.reason)
                return
            self._invalid_rndis += 1
            self._complete(flags, transaction_id, nvsp.COMPLETE[nvsp.Status.INVALID_RNDIS])
            return
        self._complete(flags, transaction_id, nvsp.COMPLETE[nvsp.Status.SUCCESS])
        if answer is not None:
            self._answer(answer)
        if self._device.state is rndis_device.State.OPEN and not self._connected:
            self._connected = True
            self._port.connect(self._frame)

    def _rndis_bytes(self, packet_type: int, section: int, size: int, data: Memory | None) -> Buffer | None:
        """The RNDIS message of a packet, out of the guest's reach; ``None`` if it cannot be where the packet says
        (invariant 18)."""
        if section == nvsp.NO_SECTION:
            if packet_type != GPA_DIRECT or data is None or not 0 < len(data) <= MAX_RNDIS_BYTES:
                return None
            return bytes(data) if self._in_place else data  # type: ignore[return-value]  # carried in one piece
        lent = self._send
        start = section * nvsp.SECTION_BYTES
        if (
            packet_type != IN_BAND
            or lent is None
            or self._gpadls.get(self._send_gpadl) is not lent
            or not 0 < size <= nvsp.SECTION_BYTES
            or start + size > lent.nbytes
        ):
            return None
        if self._in_place and lent.memory is not None:
            return bytes(lent.memory[start : start + size])
        return data if data is not None and len(data) == size else None  # type: ignore[return-value]

    def _transmit(self, data: Buffer) -> nvsp.Status:
        """Put the frames of one data message into the switch; how the packet completes."""
        if self._device.state is not rndis_device.State.OPEN:
            self._channel.fail("RNDIS data before the packet filter was set")
            return nvsp.Status.FAIL
        found = rndis.frames(data)
        if found is None or min(map(len, found)) < ETHERNET_HEADER:
            self._invalid_rndis += 1
            return nvsp.Status.INVALID_RNDIS
        outcome = nvsp.Status.SUCCESS
        for frame in found:
            if frame[6:12] != self._device.info.mac:
                self._tx_spoofed += 1
            elif not self._device.filter or len(frame) > self._device.info.max_frame:
                self._tx_drops += 1
            else:
                status = self._port.transmit(frame)
                if status is PortStatus.OK:
                    self._tx_frames += 1
                    self._tx_bytes += len(frame)
                else:
                    self._tx_drops += 1
                    outcome = _COMPLETION_OF.get(status, nvsp.Status.FAIL)
        self._last_io = time.monotonic()
        return outcome

    # -- to the guest -----------------------------------------------------------------------------

    def _frame(self, frame: Buffer) -> bool:
        """The switch has a frame. ``False``: it could not be taken."""
        if self._closed or self._channel.closed or self._state is State.REVOKED:
            return False
        if len(frame) > self._device.info.max_frame:
            self._rx_drops += 1
            return False
        if not self._device.wants(frame):
            self._rx_filtered += 1
            return True
        if not self._frames and not self._answers and self._send_frame(frame):
            return True
        if len(self._frames) < WAITING_FRAMES and self._lent:  # with nothing lent, nothing would wake the queue
            self._frames.append(bytes(frame))
            return True
        self._rx_drops += 1
        return False

    def _send_frame(self, frame: Buffer) -> bool:
        if not self._may_lend():
            return False
        memory = self._memory
        if memory is None:
            message = rndis.pack_frame(frame)
            sent = self._lend(len(message), nvsp.DATA_CHANNEL, message)
        else:
            nbytes = nvsp.place_frame(memory, self._free[-1] * self._suballocation, frame)
            sent = self._lend(nbytes, nvsp.DATA_CHANNEL)
        if not sent:
            return False
        self._rx_frames += 1
        self._rx_bytes += len(frame)
        self._last_io = time.monotonic()
        return True

    def _answer(self, answer: bytes) -> None:
        if not self._answers and self._send_answer(answer):
            return
        if len(self._answers) >= WAITING_ANSWERS or not self._lent:
            self._channel.fail("the guest does not take its RNDIS answers")
            return
        self._answers.append(answer)

    def _send_answer(self, answer: bytes) -> bool:
        if not self._may_lend():
            return False
        memory = self._memory
        if memory is None:
            return self._lend(len(answer), nvsp.CONTROL_CHANNEL, answer)
        at = self._free[-1] * self._suballocation
        memory[at : at + len(answer)] = answer
        return self._lend(len(answer), nvsp.CONTROL_CHANNEL)

    def _may_lend(self) -> bool:
        """Whether there is a suballocation for one RNDIS message, in memory that is the host's to write."""
        return bool(self._free) and self._gpadls.get(self._receive_gpadl) is self._receive

    def _lend(self, nbytes: int, channel_type: int, data: bytes | None = None) -> bool:
        """Send one RNDIS message in the next free suballocation, where it stands unless it is ``data``. ``False``:
        there is no room in the channel."""
        index = self._free[-1]
        head = nvsp.pack_one_range(nbytes, index * self._suballocation, channel_type)
        if not self._channel.send(TRANSFER_PAGES, COMPLETION_REQUESTED, index + 1, head, data):
            return False
        self._free.pop()
        self._lent.add(index)
        return True

    def _given_back(self, transaction_id: int, message: bytes) -> None:
        """The guest is done with the suballocation ``transaction_id - 1``."""
        index = transaction_id - 1
        if index not in self._lent:
            self._channel.fail(f"completion of {transaction_id}, which is not outstanding")
            return
        if len(message) < nvsp.COMPLETE_HEAD.size or (
            nvsp.COMPLETE_HEAD.unpack_from(message)[0] != nvsp.RNDIS_PACKET_COMPLETE
        ):
            self._channel.fail("malformed completion of a received packet")
            return
        self._lent.remove(index)
        if self._state is State.REVOKED:
            return
        self._free.append(index)
        self._send_waiting()

    def _send_waiting(self) -> None:
        """There may be credit, or room in the channel: send what waits for it."""
        while self._answers and self._send_answer(self._answers[0]):
            self._answers.popleft()
        while self._frames and not self._answers and self._send_frame(self._frames[0]):
            self._frames.popleft()
