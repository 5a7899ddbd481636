"""From what processes wrote down of requests to where their time went. Pure functions.

A request's way is cut at its points into segments, each beginning where the one before ends: they add up to the whole.
When the other side saw a packet before its sender was done sending (a ring's reader on another processor does), the way
went on from there, and what the sender still did is not on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from vmbus_emu.device import Op
from vmbus_emu.witness.traces import COMPLETED, DONE, DRIVER, RECEIVE, SEND, SUBMIT, Record

#: The requests whose whole time lies between these quantiles are the typical ones.
MIDDLE = 0.4, 0.6


class Segment(NamedTuple):
    """``begin`` and ``end`` in ns of the monotonic clock."""

    name: str
    process: str
    begin: int
    end: int


class Request(NamedTuple):
    """One request; or more that follow each other and are one to whoever asked, as a write and its flush."""

    op: int
    segments: tuple[Segment, ...]

    @property
    def begin(self) -> int:
        return self.segments[0].begin

    @property
    def end(self) -> int:
        return self.segments[-1].end


def requests(records: Mapping[str, Iterable[Record]], transport: str, guest: str, host: str) -> list[Request]:
    """The requests that are complete, in the order of their beginnings. ``records``: by process; ``guest`` and ``host``
    are the two processes on the way (one and the same for ``call``)."""
    ours, theirs = _points(records[guest]), _points(records[host])
    made = []
    for key, points in ours.items():
        cuts = _cuts(points, theirs.get(key, {}), transport, guest, host)
        if cuts is None:
            continue
        begin, segments = points[SUBMIT].times[0], []
        for name, process, end in cuts:
            segments.append(Segment(name, process, begin, end))
            begin = end
        if all(segment.begin <= segment.end for segment in segments):
            made.append(Request(points[SUBMIT].op, tuple(segments)))
    return sorted(made, key=lambda request: request.begin)


_Points = Mapping[int, Record]
_Cuts = Iterator[tuple[str, str, int]]


def _points(records: Iterable[Record]) -> dict[tuple[int, int], dict[int, Record]]:
    """By disk and number, then by point."""
    found: dict[tuple[int, int], dict[int, Record]] = {}
    for record in records:
        found.setdefault((record.disk, record.number), {})[record.point] = record
    return found


def _cuts(guest: _Points, host: _Points, transport: str, vm: str, server: str) -> list[tuple[str, str, int]] | None:
    """Names, processes and ends of the segments, in order; ``None`` if a point is missing."""
    if transport == "call":
        if not {SUBMIT, DRIVER, DONE, COMPLETED} <= guest.keys():
            return None
        return [("call in", vm, guest[DRIVER].times[0]), ("driver", vm, guest[DONE].times[0]),
                ("call back", vm, guest[COMPLETED].times[0])]  # fmt: skip
    if not ({SUBMIT, SEND, RECEIVE, COMPLETED} <= guest.keys() and {RECEIVE, DRIVER, DONE, SEND} <= host.keys()):
        return None
    ring = transport == "ring"
    return [
        ("guest encode", vm, min(guest[SEND].times[0], host[RECEIVE].times[2])),
        *_way(guest[SEND], host[RECEIVE], ring, vm, server, ""),
        ("decode", server, host[DRIVER].times[0]),
        ("driver", server, host[DONE].times[0]),
        ("completion encode", server, min(host[SEND].times[0], guest[RECEIVE].times[2])),
        *_way(host[SEND], guest[RECEIVE], ring, server, vm, "completion "),
        ("callback", vm, guest[COMPLETED].times[0]),
    ]


def _way(send: Record, receive: Record, ring: bool, sender: str, receiver: str, what: str) -> _Cuts:
    """A packet's way through the channel."""
    begun, handed, sent = send.times
    looked, taken, received = receive.times
    sent = min(sent, received)
    if looked < begun:  # it was looking already, for something else
        looked = sent
    sent = min(sent, looked)
    if ring:
        yield what + "into the ring", sender, sent
        yield what + "wake-up", receiver, looked
        yield what + "out of the ring", receiver, received
    else:
        yield what + "msgpack", sender, min(handed, sent)
        yield what + "send", sender, sent
        yield what + "wake-up", receiver, looked
        yield what + "receive", receiver, max(taken, looked)
        yield what + "unpack", receiver, received


def followed_by_flush(found: Sequence[Request]) -> list[Request]:
    """Each write and the flush after it as one, with what the guest did between them."""
    made = []
    for write, flush in pairwise(found):
        if write.op != Op.WRITE or flush.op != Op.FLUSH:
            continue
        between = Segment("guest", write.segments[0].process, write.end, flush.begin)
        parts = [("write: ", write.segments), ("", (between,)), ("flush: ", flush.segments)]
        made.append(Request(write.op, tuple(
            segment._replace(name=prefix + segment.name) for prefix, segments in parts for segment in segments
        )))  # fmt: skip
    return made


def typical(found: Sequence[Request]) -> list[Request]:
    """Those whose whole time lies in the middle."""
    ordered = sorted(found, key=lambda request: request.end - request.begin)
    first, last = (int(len(ordered) * quantile) for quantile in MIDDLE)
    return ordered[first : max(last, first + 1)]


def means(found: Sequence[Request]) -> list[dict[str, Any]]:
    """The mean of each segment, one after the other, us: of requests that all went the same way. Not of none."""
    rows: list[dict[str, Any]] = []
    start = 0.0
    for same in zip(*(request.segments for request in found), strict=True):
        mean = sum(segment.end - segment.begin for segment in same) / len(found) / 1000
        rows.append({"name": same[0].name, "process": same[0].process, "start_us": start, "us": mean})
        start += mean
    return rows
