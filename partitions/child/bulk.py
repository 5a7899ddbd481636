"""Bulk transfer between guests: its datagrams, and the end that receives, counts and looks at every byte.

A sender (``bulkbench``) numbers its frames, and puts so many of them into a *unit*; the last one of a unit says so, and
is answered with how many of the unit have arrived as they were sent. That answer is the sender's credit for another
unit. What the figures say is what arrived here, by this end's clock.

Every guest with an adapter receives. Bounds: :data:`STREAMS` senders are remembered, :data:`UNITS` open units of each.
"""

from __future__ import annotations

import struct
import time
from typing import Final, NamedTuple

from partitions.child.inet import IpStack
from vmbus_emu.device import Buffer

#: Where guests receive.
PORT: Final = 5001
STREAMS, UNITS = 16, 64
DATA, ACKNOWLEDGED, ASK, TOLD = range(1, 5)

_MAGIC: Final = b"bulk"
#: Magic, kind, whether it is its unit's last, the unit, the stream, and the number of the frame, from 0.
_HEADER: Final = struct.Struct("!4sBBxxIIQ")
_RECEIVED: Final = struct.Struct("!QQQQQ")
HEADER: Final = _HEADER.size
_PATTERN: Final = bytes(range(256)) * 260
_WORD: Final = struct.Struct("!I")


class Frame(NamedTuple):
    kind: int
    last: bool
    unit: int
    stream: int
    number: int
    payload: Buffer


class Received(NamedTuple):
    """What came of one stream: frames, their payload in bytes, frames that were not as they were sent, and when the
    first and the last came, by the receiver's clock in ns."""

    frames: int
    nbytes: int
    wrong: int
    first_ns: int
    last_ns: int


def pattern(number: int, nbytes: int) -> bytes:
    """The payload of frame ``number``; another one than that of its neighbours."""
    start = number & 0xFF
    return _PATTERN[start : start + nbytes]


def pack(kind: int, unit: int, stream: int, number: int = 0, payload: Buffer = b"", last: bool = False) -> bytes:
    return b"".join((_HEADER.pack(_MAGIC, kind, last, unit, stream, number), payload))


def parse(datagram: memoryview) -> Frame | None:
    """``None``: something else."""
    if len(datagram) < HEADER:
        return None
    magic, kind, last, unit, stream, number = _HEADER.unpack_from(datagram)
    return Frame(kind, bool(last), unit, stream, number, datagram[HEADER:]) if magic == _MAGIC else None


def arrived_of_unit(acknowledgement: Frame) -> int:
    """How many frames of its unit had come; 0 of what says nothing."""
    return int(_WORD.unpack_from(acknowledgement.payload)[0]) if len(acknowledgement.payload) >= _WORD.size else 0


def parse_received(answer: Frame) -> Received | None:
    if len(answer.payload) < _RECEIVED.size:
        return None
    return Received(*_RECEIVED.unpack_from(answer.payload))


class _Stream:
    """What came from one sender."""

    __slots__ = ("first_ns", "frames", "last_ns", "nbytes", "next", "units", "wrong")

    def __init__(self) -> None:
        self.frames = self.nbytes = self.wrong = self.next = 0
        self.first_ns = self.last_ns = 0
        self.units: dict[int, int] = {}             # good frames of those whose last frame has not come

    def take(self, frame: Frame) -> None:
        now = time.monotonic_ns()
        self.first_ns = self.first_ns or now
        self.last_ns = now
        payload = bytes(frame.payload)              # of bytes to bytes, a comparison is one memcmp
        if frame.number < self.next or payload != pattern(frame.number, len(payload)):
            self.wrong += 1
            return
        self.next = frame.number + 1
        self.frames += 1
        self.nbytes += len(payload)
        self.units[frame.unit] = self.units.get(frame.unit, 0) + 1
        if len(self.units) > UNITS:
            del self.units[next(iter(self.units))]


class Receiver:
    """Receives on ``stack`` for as long as that lives."""

    def __init__(self, stack: IpStack) -> None:
        self._stack = stack
        self._streams: dict[tuple[bytes, int, int], _Stream] = {}
        stack.bind(PORT, self._datagram)

    def _datagram(self, source: bytes, port: int, datagram: memoryview) -> None:
        frame = parse(datagram)
        if frame is None or frame.kind not in (DATA, ASK):
            return
        stream = self._stream((source, port, frame.stream))
        if frame.kind == ASK:
            told = _RECEIVED.pack(stream.frames, stream.nbytes, stream.wrong, stream.first_ns, stream.last_ns)
            self._stack.send_datagram(source, PORT, port, pack(TOLD, 0, frame.stream, payload=told))
            return
        stream.take(frame)
        if frame.last:
            came = _WORD.pack(stream.units.pop(frame.unit, 0))
            self._stack.send_datagram(source, PORT, port, pack(ACKNOWLEDGED, frame.unit, frame.stream, payload=came))

    def _stream(self, key: tuple[bytes, int, int]) -> _Stream:
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream()
            if len(self._streams) > STREAMS:
                del self._streams[next(iter(self._streams))]
        return stream
