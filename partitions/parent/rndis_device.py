"""The RNDIS device that a netvsp shows its guest: control messages in, answers out; no I/O (protocol sheet 4.3).

One per guest connection, made and asked by :class:`~partitions.parent.netvsp.NetVspSession` only. It keeps
what the guest has agreed with the device: the state, and the packet filter that says which frames it wants.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import NamedTuple

from vmbus_emu.device import Buffer, PortInfo
from vmbus_emu.protocol import rndis

_WORD = struct.Struct("<I")
#: In 100 bit/s: 10 Gbit/s, what a Hyper-V virtual switch reports.
LINK_SPEED = 100_000_000
_BROADCAST = b"\xff" * 6
_GROUP = rndis.FILTER_MULTICAST | rndis.FILTER_ALL_MULTICAST


class State(enum.Enum):
    """How far the guest has come."""

    IDLE = "idle"              #: nothing but INITIALIZE makes sense
    INITIALIZED = "ready"      #: asks and sets; has not opened the packet filter yet, so it may not send
    OPEN = "open"              #: the filter was set once: data flows (a filter of 0 later only silences it)


class Fault(NamedTuple):
    """What was wrong with a message. ``fatal``: the conversation cannot go on; else only the message is refused."""

    reason: str
    fatal: bool


class RndisDevice:
    """Answers one guest's control messages and knows which frames it wants."""

    def __init__(self, info: PortInfo) -> None:
        """``info``: the address and the MTU that this guest's device has."""
        self.state = State.IDLE
        self.filter = 0
        self._info = info
        self._mac = info.mac

    def answer(self, message: Buffer) -> bytes | Fault | None:
        """The answer's bytes; ``None`` where the protocol has none; a :class:`Fault` if the message is wrong."""
        request = rndis.decode(message)
        if request is None:
            return Fault("malformed RNDIS control message", fatal=False)
        if isinstance(request, rndis.Initialize):
            if self.state is not State.IDLE:
                return Fault("RNDIS INITIALIZE of an initialized device", fatal=True)
            return self._initialize(request)
        if isinstance(request, rndis.Halt):
            self.state, self.filter = State.IDLE, 0
            return None
        if self.state is State.IDLE:
            return Fault(f"RNDIS {type(request).__name__} before INITIALIZE", fatal=True)
        match request:
            case rndis.Query(request_id, oid):
                value = OIDS.get(oid)
                if value is None:
                    return rndis.encode(rndis.QueryComplete(request_id, rndis.NOT_SUPPORTED))
                return rndis.encode(rndis.QueryComplete(request_id, rndis.SUCCESS, value(self)))
            case rndis.Set(request_id, oid, _, info):
                return rndis.encode(rndis.SetComplete(request_id, self._set(oid, info)))
            case rndis.SetEx(request_id, oid, _, info):
                return rndis.encode(rndis.SetExComplete(request_id, self._set(oid, info)))
            case rndis.Reset():
                return rndis.encode(rndis.ResetComplete(rndis.SUCCESS, addressing_reset=0))
            case rndis.Keepalive(request_id):
                return rndis.encode(rndis.KeepaliveComplete(request_id, rndis.SUCCESS))
            case _:  # what is left of the table goes from host to guest
                return Fault(f"RNDIS {type(request).__name__} from a guest", fatal=True)

    def wants(self, frame: Buffer) -> bool:
        """Whether the packet filter lets ``frame`` (at least six bytes) through to the guest."""
        bits = self.filter
        if bits & rndis.FILTER_PROMISCUOUS:
            return True
        target = frame[:6]
        if target == self._mac:
            return bool(bits & rndis.FILTER_DIRECTED)
        if target == _BROADCAST:
            return bool(bits & rndis.FILTER_BROADCAST)
        return bool(frame[0] & 1 and bits & _GROUP)

    def _initialize(self, request: rndis.Initialize) -> bytes:
        agreed = request.major == rndis.VERSION[0]
        if agreed:
            self.state = State.INITIALIZED
        return rndis.encode(rndis.InitializeComplete(
            request.request_id, rndis.SUCCESS if agreed else rndis.FAILURE, *rndis.VERSION,
            device_flags=rndis.CONNECTIONLESS, medium=rndis.MEDIUM_802_3, max_packets=rndis.MAX_PACKETS,
            max_transfer_size=rndis.MAX_TRANSFER_SIZE, alignment_factor=rndis.ALIGNMENT_FACTOR,
        ))

    def _set(self, oid: int, info: bytes) -> int:
        """Only the packet filter can be set. The rest (RSS, offloads, another MAC address) is not offered."""
        if oid != rndis.OID_PACKET_FILTER:
            return rndis.NOT_SUPPORTED
        if len(info) != _WORD.size:
            return rndis.INVALID_DATA
        bits = _WORD.unpack(info)[0]
        if bits & ~rndis.FILTER_KNOWN:
            return rndis.NOT_SUPPORTED
        self.filter = bits
        if bits:
            self.state = State.OPEN
        return rndis.SUCCESS

    @property
    def info(self) -> PortInfo:
        return self._info


def _word(value: Callable[[RndisDevice], int]) -> Callable[[RndisDevice], bytes]:
    return lambda device: _WORD.pack(value(device))


#: What can be asked. RSS capabilities and offload parameters are known identifiers that are left out on purpose:
#: a guest that hears "not supported" does without.
OIDS: dict[int, Callable[[RndisDevice], bytes]] = {
    rndis.OID_SUPPORTED_LIST: lambda device: b"".join(map(_WORD.pack, OIDS)),
    rndis.OID_HARDWARE_STATUS: _word(lambda device: 0),
    rndis.OID_MAXIMUM_FRAME_SIZE: _word(lambda device: device.info.mtu),
    rndis.OID_LINK_SPEED: _word(lambda device: LINK_SPEED),
    rndis.OID_PACKET_FILTER: _word(lambda device: device.filter),
    rndis.OID_MAXIMUM_TOTAL_SIZE: _word(lambda device: device.info.max_frame),
    rndis.OID_MEDIA_CONNECT: _word(lambda device: 0),
    rndis.OID_PERMANENT_MAC: lambda device: device.info.mac,
    rndis.OID_CURRENT_MAC: lambda device: device.info.mac,
}
