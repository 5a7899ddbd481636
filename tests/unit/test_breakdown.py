"""What points make a request's segments: in order, without a gap, adding up to the whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bench import breakdown
from bench.breakdown import Request, Segment
from vmbus_emu.device import Op
from vmbus_emu.witness.traces import COMPLETED, DONE, DRIVER, RECEIVE, SEND, SUBMIT, Record

ZMQ = ["guest encode", "msgpack", "send", "wake-up", "receive", "unpack", "decode", "driver", "completion encode",
       "completion msgpack", "completion send", "completion wake-up", "completion receive", "completion unpack",
       "callback"]  # fmt: skip
RING = ["guest encode", "into the ring", "wake-up", "out of the ring", "decode", "driver", "completion encode",
        "completion into the ring", "completion wake-up", "completion out of the ring", "callback"]  # fmt: skip


def point(kind: int, *times: int, op: int = 0, number: int = 1, disk: int = 9) -> Record:
    first, second, third = (*times, 0, 0)[:3]
    return Record(kind, op, disk, number, (first, second, third))


def zmq(number: int = 1, begin: int = 1000, op: int = 1) -> tuple[list[Record], list[Record]]:
    """A request whose segments take 1, 2, 3, … ns."""
    at = [begin]
    for length in range(1, 16):
        at.append(at[-1] + length)
    guest = [point(SUBMIT, at[0], op=op, number=number), point(SEND, *at[1:4], number=number),
             point(RECEIVE, *at[12:15], number=number), point(COMPLETED, at[15], number=number)]  # fmt: skip
    host = [point(RECEIVE, *at[4:7], number=number), point(DRIVER, at[7], number=number),
            point(DONE, at[8], number=number), point(SEND, *at[9:12], number=number)]  # fmt: skip
    return guest, host


def taken_apart(guest: Sequence[Record], host: Sequence[Record], transport: str = "zmq") -> list[Request]:
    return breakdown.requests({"vm1": guest, "parent": host}, transport, "vm1", "parent")


def lengths(request: Request) -> list[int]:
    return [segment.end - segment.begin for segment in request.segments]


def test_on_zmq_every_segment_has_its_length_and_its_process() -> None:
    (request,) = taken_apart(*zmq())
    assert [segment.name for segment in request.segments] == ZMQ
    assert lengths(request) == list(range(1, 16))
    assert [segment.process for segment in request.segments] == ["vm1"] * 3 + ["parent"] * 8 + ["vm1"] * 4
    assert request.end - request.begin == sum(range(1, 16))


def ring(sent: int, looked: int, received: int = 140) -> Request:
    """A request whose packet went into the ring from 110 to ``sent``, and was looked for at ``looked``."""
    (request,) = taken_apart(
        [point(SUBMIT, 100), point(SEND, 110, 0, sent), point(RECEIVE, 210, 0, 220), point(COMPLETED, 230)],
        [point(RECEIVE, looked, 0, received), point(DRIVER, 150), point(DONE, 160), point(SEND, 170, 0, 200)],
        "ring",
    )
    assert [segment.name for segment in request.segments] == RING
    assert sum(lengths(request)) == 130
    return request


@pytest.mark.parametrize(("sent", "looked", "expected"), [
    (120, 130, [10, 10, 10, 10]),       # one after the other
    (125, 115, [10, 5, 0, 25]),         # seen before its sender was done: the rest of that is on nobody's way
    (120, 90, [10, 10, 0, 20]),         # the other side was looking already: nobody was woken
    (150, 130, [10, 20, 0, 10]),
    (150, 90, [10, 30, 0, 0]),
])  # fmt: skip
def test_a_packet_that_is_seen_while_it_is_sent(sent: int, looked: int, expected: list[int]) -> None:
    request = ring(sent, looked)
    assert lengths(request)[:4] == expected
    assert lengths(request)[4:] == [10, 10, 10, 30, 10, 10, 10]


def test_in_the_monolith_one_process_has_all_the_points() -> None:
    records = {"monolith": [point(SUBMIT, 10), point(DRIVER, 11), point(DONE, 14), point(COMPLETED, 16)]}
    (request,) = breakdown.requests(records, "call", "monolith", "monolith")
    assert request.segments == (
        Segment("call in", "monolith", 10, 11), Segment("driver", "monolith", 11, 14),
        Segment("call back", "monolith", 14, 16),
    )  # fmt: skip


@pytest.mark.parametrize("missing", range(8))
def test_a_request_without_one_of_its_points_is_left_out(missing: int) -> None:
    guest, host = zmq()
    other = zmq(2, 5000)
    records = guest + host
    kept = [record for index, record in enumerate(records) if index != missing]
    ours = [record for record in kept if any(record is one for one in guest)]
    theirs = [record for record in kept if any(record is one for one in host)]
    found = taken_apart(ours + other[0], theirs + other[1])
    assert [request.begin for request in found] == [5000]


def test_points_are_matched_by_disk_and_number() -> None:
    guest, host = zmq()
    elsewhere = [record._replace(disk=8) for record in host]
    assert taken_apart(guest, elsewhere) == []
    assert len(taken_apart(guest, elsewhere + host)) == 1


def test_points_whose_times_contradict_each_other_are_left_out() -> None:
    guest, host = zmq()
    assert taken_apart(guest, [point(DRIVER, 1) if record.point == DRIVER else record for record in host]) == []


def test_a_write_and_its_flush_are_one() -> None:
    pairs = [zmq(1, 1000, Op.WRITE), zmq(2, 1200, Op.FLUSH), zmq(3, 1400, Op.WRITE), zmq(4, 1600, Op.FLUSH),
             zmq(5, 1800, Op.WRITE)]  # fmt: skip
    found = taken_apart([one for guest, _ in pairs for one in guest], [one for _, host in pairs for one in host])
    both = breakdown.followed_by_flush(found)
    assert [(one.begin, one.end) for one in both] == [(1000, 1320), (1400, 1720)]
    assert [one.name for one in both[0].segments] == [
        *(f"write: {name}" for name in ZMQ), "guest", *(f"flush: {name}" for name in ZMQ),
    ]  # fmt: skip
    assert sum(lengths(both[0])) == 320
    assert lengths(both[0])[15] == 80


def simple(begin: int, *parts: int) -> Request:
    segments = []
    for index, length in enumerate(parts):
        segments.append(Segment(f"s{index}", "vm1", begin, begin + length))
        begin += length
    return Request(0, tuple(segments))


def test_typical_requests_lie_in_the_middle() -> None:
    found = [simple(0, length) for length in (9, 1, 7, 3, 5, 2, 8, 4, 6, 10)]
    assert [one.end for one in breakdown.typical(found)] == [5, 6]
    assert breakdown.typical(found[:1]) == found[:1]
    assert breakdown.typical([]) == []


def test_means_add_up_to_the_mean_of_the_whole() -> None:
    rows = breakdown.means([simple(0, 1000, 2000), simple(50, 3000, 5000)])
    assert rows == [
        {"name": "s0", "process": "vm1", "start_us": 0.0, "us": 2.0},
        {"name": "s1", "process": "vm1", "start_us": 2.0, "us": 3.5},
    ]
