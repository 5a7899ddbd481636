"""Envelopes that travel together arrive apart, in their order."""

from __future__ import annotations

import msgpack
import pytest

from vmbus_emu.envelopes import MAX_MESSAGE, MOST, apart, together
from vmbus_emu.protocol.hypercall import MAX_ENVELOPE


@pytest.mark.parametrize("count", [0, 1, 2, MOST - 1, MOST, MOST + 1, 2 * MOST, 100])
def test_any_number_of_envelopes_arrives_in_order_and_in_as_few_messages_as_can_be(count: int) -> None:
    sent = [(1, number, bytes(number % 3)) for number in range(count)]
    messages = list(together([msgpack.packb(one) for one in sent]))
    assert [one for message, _ in messages for one in apart(message)] == sent
    assert len(messages) == (count + MOST - 1) // MOST
    assert [raw for _, some in messages for raw in some] == [msgpack.packb(one) for one in sent]


def test_the_longest_envelopes_fit_together() -> None:
    (message, _), = together([msgpack.packb(bytes(MAX_ENVELOPE - 3))] * MOST)
    assert len(message) == MAX_MESSAGE


def test_more_envelopes_than_a_message_may_have_are_refused() -> None:
    with pytest.raises(ValueError, match="16 envelopes"):
        apart(msgpack.packb([(1, 2)] * (MOST + 1)))


@pytest.mark.parametrize("strange", [7, None, (), ((),), ((), 3), b"", "text", {}, (1, (2, 3))])
def test_what_a_stranger_sends_is_told_apart_without_a_fault(strange: object) -> None:
    several = isinstance(strange, tuple) and bool(strange) and isinstance(strange[0], tuple)
    assert list(apart(msgpack.packb(strange))) == (list(strange) if several else [strange])  # type: ignore[call-overload]
