"""A channel's packets: the decoder, and the pair of ends in memory."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from vmbus_emu.channel import channel_pair, decode_packet, deliver_all
from vmbus_emu.protocol.packets import COMPLETION, COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND, PACKET_TYPES

GOOD: list[Any] = [IN_BAND, COMPLETION_REQUESTED, 7, b"message"]


@pytest.mark.parametrize("packet_type", sorted(PACKET_TYPES))
@pytest.mark.parametrize("transaction_id", [0, 1, (1 << 64) - 1])
def test_a_packet_is_what_was_packed(packet_type: int, transaction_id: int) -> None:
    assert decode_packet(msgpack.packb([packet_type, 0, transaction_id, b""])) == (packet_type, 0, transaction_id, b"")


@pytest.mark.parametrize(("field", "value"), [
    (0, 0), (0, 5), (0, True), (0, 6.0), (0, "6"), (0, {}), (0, [{}]), (0, None), (0, b"\x06"),
    (1, 2), (1, 3), (1, -1), (1, True), (1, None), (1, 0.0), (1, []),
    (2, -1), (2, None), (2, "7"), (2, 7.0), (2, False), (2, {}),
    (3, "text"), (3, None), (3, 1), (3, [b"x"]), (3, {}), (3, msgpack.ExtType(1, b"x")),
])
def test_a_field_of_another_type_or_range_makes_it_no_packet(field: int, value: Any) -> None:
    packet = list(GOOD)
    packet[field] = value
    assert decode_packet(msgpack.packb(packet)) is None


@pytest.mark.parametrize("head", [
    b"", b"\xc1", b"\x94", msgpack.packb([]), msgpack.packb(GOOD[:3]), msgpack.packb([*GOOD, 1]), msgpack.packb({}),
    msgpack.packb(GOOD) + b"\0", msgpack.packb(GOOD)[:-1], b"\x91" * 10_000, msgpack.packb([*GOOD[:3], bytes(20_000)]),
], ids=lambda head: f"{len(head)} bytes {head[:8].hex()}")
def test_anything_else_is_no_packet(head: bytes) -> None:
    assert decode_packet(head) is None


def test_packets_wait_until_they_are_delivered_and_data_is_copied() -> None:
    near, far = channel_pair()
    seen: list[tuple[Any, ...]] = []
    far.on_packet = lambda *packet: seen.append(packet)
    data = bytearray(b"before")
    assert near.send(GPA_DIRECT, 0, 1, b"m", data)
    data[:] = b"after!"
    assert seen == []
    assert far.deliver() == 1
    assert seen == [(GPA_DIRECT, 0, 1, b"m", b"before")]


def test_a_full_channel_refuses_and_takes_again_after_delivery() -> None:
    near, far = channel_pair(room=2)
    assert [near.send(IN_BAND, 0, number, b"") for number in range(3)] == [True, True, False]
    deliver_all(near, far)
    assert near.send(IN_BAND, 0, 3, b"")


def test_a_protocol_error_closes_once_with_its_first_reason() -> None:
    near, far = channel_pair()
    reasons: list[str] = []
    far.on_failed = reasons.append
    far.on_packet = lambda *packet: far.fail("never that")
    for number in range(3):
        near.send(IN_BAND, 0, number, b"")
    deliver_all(near, far)
    far.fail("nor this")
    assert (reasons, far.failed, far.closed) == (["never that"], "never that", True)
    assert not near.send(COMPLETION, 0, 9, b"")


def test_a_channel_that_we_closed_does_not_fail_any_more() -> None:
    near, far = channel_pair()
    far.on_failed = pytest.fail
    far.close()
    far.fail("too late")
    assert far.failed is None
    assert not far.send(IN_BAND, 0, 1, b"")
    assert not near.send(IN_BAND, 0, 1, b"")


def test_deliver_all_runs_until_nothing_moves() -> None:
    near, far = channel_pair()
    far.on_packet = lambda kind, flags, number, message, data: far.send(COMPLETION, 0, number, b"")
    near.on_packet = lambda kind, flags, number, message, data: number < 10 and near.send(IN_BAND, 0, number + 1, b"")
    near.send(IN_BAND, 0, 0, b"")
    deliver_all(near, far)
    assert (list(near.inbox), list(far.inbox)) == ([], [])
