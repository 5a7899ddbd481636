"""Bulk transfer between two stacks on one switch: what arrives is counted and compared, what is lost is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from drivers.switch import Switch
from partitions.child import bulk
from partitions.child.bulk import Received, Receiver
from partitions.child.commands.bulkbench import Transfer, frame_lengths
from partitions.child.inet import EchoFailure, IpStack
from vmbus_emu.device import Buffer
from vmbus_emu.loop import Loop

DEADLINE = 10.0
SOURCE, PORT = bytes((10, 0, 0, 1)), 50000
MAC = tuple(bytes((2, 0, 0, 0, 0, number)) for number in (1, 2))


class Far:
    """Stands for a receiver's stack: keeps what is sent, hands in what the test sends."""

    def __init__(self) -> None:
        self.sent: list[bulk.Frame] = []

    def bind(self, port: int, handler: Any) -> bool:
        assert port == bulk.PORT
        self.handler = handler
        return True

    def send_datagram(self, address: bytes, source_port: int, port: int, payload: Buffer) -> None:
        assert (address, source_port, port) == (SOURCE, bulk.PORT, PORT)
        frame = bulk.parse(memoryview(bytes(payload)))
        assert frame is not None
        self.sent.append(frame)

    def give(self, kind: int, unit: int = 0, number: int = 0, nbytes: int = 100, last: bool = False,
             stream: int = 1, wrong: bool = False) -> None:  # fmt: skip
        payload = bytearray(bulk.pattern(number, nbytes) if kind == bulk.DATA else b"")
        if wrong:
            payload[nbytes // 2] ^= 1
        self.handler(SOURCE, PORT, memoryview(bulk.pack(kind, unit, stream, number, payload, last)))

    def told(self, stream: int = 1) -> Received:
        self.give(bulk.ASK, stream=stream)
        answer = self.sent.pop()
        received = bulk.parse_received(answer)
        assert (answer.kind, answer.stream) == (bulk.TOLD, stream)
        assert received is not None
        return received


@pytest.fixture
def far() -> Far:
    made = Far()
    Receiver(made)  # type: ignore[arg-type]
    return made


def test_a_unit_is_acknowledged_with_what_came_of_it(far: Far) -> None:
    for unit in (0, 1):
        far.give(bulk.DATA, unit, 3 * unit)
        if unit == 0:
            far.give(bulk.DATA, unit, 1)
        far.give(bulk.DATA, unit, 3 * unit + 2, last=True)
    assert [(frame.kind, frame.unit, bulk.arrived_of_unit(frame)) for frame in far.sent] == [
        (bulk.ACKNOWLEDGED, 0, 3), (bulk.ACKNOWLEDGED, 1, 2)]
    told = far.told()
    assert told[:3] == (5, 500, 0)
    assert 0 < told.first_ns < told.last_ns


def test_what_arrives_otherwise_than_it_was_sent_is_counted_and_not_acknowledged(far: Far) -> None:
    far.give(bulk.DATA, 0, 0)
    far.give(bulk.DATA, 0, 1, wrong=True)
    far.give(bulk.DATA, 0, 0)                     # a second time
    far.give(bulk.DATA, 0, 2, last=True)
    assert bulk.arrived_of_unit(far.sent.pop()) == 2
    assert far.told()[:3] == (2, 200, 2)


def test_streams_are_apart_and_bounded(far: Far) -> None:
    for stream in range(2 * bulk.STREAMS):
        far.give(bulk.DATA, stream=stream, number=0)
    assert far.told(2 * bulk.STREAMS - 1).frames == 1
    assert far.told(0).frames == 0                # forgotten
    for unit in range(3 * bulk.UNITS):
        far.give(bulk.DATA, unit, 10 + unit, stream=99)
    assert far.told(99).frames == 3 * bulk.UNITS


@pytest.mark.parametrize("datagram", [b"", b"bulk", bytes(100), bulk.pack(bulk.TOLD, 0, 1), bulk.pack(9, 0, 1)])
def test_other_datagrams_are_let_lie(far: Far, datagram: bytes) -> None:
    far.handler(SOURCE, PORT, memoryview(datagram))
    assert far.sent == []


def test_neighbouring_frames_differ() -> None:
    assert len({bulk.pattern(number, 1452) for number in range(256)}) == 256
    assert bulk.pattern(0, 5) == bytes(range(5))
    assert len(bulk.pattern(255, 65535)) == 65535


def test_a_unit_is_as_few_frames_as_hold_it() -> None:
    assert frame_lengths(3000, 1448) == [1448, 1448, 104]
    assert frame_lengths(2896, 1448) == [1448, 1448]
    assert frame_lengths(1, 1448) == [1]


# -- a whole transfer -----------------------------------------------------------------------------------------


class Pair:
    """Two guests' stacks on one switch, and what is lost between them."""

    def __init__(self) -> None:
        self.loop = Loop()
        switch = Switch("s0")
        self.stacks = [
            IpStack(self.loop, switch.port(f"vm{n}", MAC[n - 1]), f"10.0.0.{n}", 24, {"vm2": "10.0.0.2"}, print)
            for n in (1, 2)
        ]
        for stack in self.stacks:
            stack.announce()
        self.latencies: list[int] = []

    def transfer(self, depth: int = 2, address: str = "10.0.0.2", ms: int = 20) -> Transfer:
        made = Transfer(self.loop, self.stacks[0], address, 4000, depth, ms * 1_000_000, self.latencies.append)
        made.start()
        assert self.loop.run_until(lambda: made.finished.done, DEADLINE)
        made.stop()
        return made


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.loop.close()


def test_everything_sent_is_received_and_each_unit_has_its_time(pair: Pair) -> None:
    Receiver(pair.stacks[1])
    made = pair.transfer()
    assert made.received is not None
    assert made.whole == made.sent_units == len(pair.latencies) > 1
    assert (made.received.frames, made.received.nbytes) == (made.sent, 4000 * made.whole)
    report = made.report()
    assert (made.lost_units, report["lost_frames"], report["wrong_frames"]) == (0, 0, 0)
    seconds = (made.received.last_ns - made.received.first_ns) / 1e9
    assert report["mbit_per_s"] == pytest.approx(4000 * made.whole * 8 / 1e6 / seconds)


@pytest.mark.parametrize("last", [False, True])
def test_a_frame_that_is_lost_costs_its_unit_and_is_told(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    """Whether it is the unit's last frame, whose loss nobody acknowledges, or another: later units tell."""
    monkeypatch.setattr("partitions.child.commands.bulkbench._WAIT_S", 10 * DEADLINE)
    Receiver(pair.stacks[1])
    sender = pair.stacks[0]
    send = sender.send_datagram
    lost = []

    def lossy(address: str | bytes, source_port: int, port: int, payload: Buffer) -> EchoFailure | None:
        frame = bulk.parse(memoryview(payload))
        assert frame is not None
        if frame.kind == bulk.DATA and frame.unit == 0 and frame.last == last and not lost:
            lost.append(frame.number)
            return None
        return send(address, source_port, port, payload)

    monkeypatch.setattr(sender, "send_datagram", lossy)
    made = pair.transfer()
    assert (len(lost), made.lost_units, made.whole) == (1, 1, made.sent_units - 1)
    assert made.report()["lost_frames"] == 1
    assert len(pair.latencies) == made.whole > 0


def test_who_does_not_receive_is_not_waited_for_forever(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partitions.child.commands.bulkbench._WAIT_S", 0.01)
    monkeypatch.setattr("partitions.child.commands.bulkbench._ASK_S", 0.001)
    made = pair.transfer()
    assert (made.whole, made.received) == (0, None)
    assert made.lost_units == made.sent_units > 0


def test_an_address_that_cannot_be_sent_to_is_told(pair: Pair) -> None:
    made = pair.transfer(address="8.8.8.8")
    assert (made.failure, made.received, made.whole) == ("network unreachable", None, 0)


def test_a_window_beyond_what_may_wait_is_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match="at most 256 frames"):
        pair.transfer(depth=100)
