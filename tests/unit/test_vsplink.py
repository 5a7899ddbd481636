"""The link between the provider and a VSP: every operation survives the wire, nothing else gets through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from partitions.parent.vsplink import (
    RUN_BYTES,
    TO_PROVIDER,
    TO_VSP,
    RemoteProvider,
    RemoteVsp,
    decode_pages,
    dispatch,
    encode,
    encode_pages,
    fitting,
)
from vmbus_emu.protocol.hypercall import MAX_PAYLOAD

SAMPLES: dict[type, Any] = {int: (1 << 64) - 1, str: "a reason", bytes: b"\0" * 16, bool: True, list: [b"offer"]}


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, operation: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append((operation, *arguments))


@pytest.mark.parametrize(("table", "proxy"), [(TO_VSP, RemoteVsp), (TO_PROVIDER, RemoteProvider)])
def test_a_proxys_calls_arrive_as_the_same_calls(table: dict[str, tuple[type, ...]], proxy: type[Any]) -> None:
    for operation, types in table.items():
        sent: list[bytes] = []
        arguments = [SAMPLES[kind] for kind in types]
        getattr(proxy(sent.append), operation)(*arguments)
        assert len(sent[0]) <= MAX_PAYLOAD
        target = Recorder()
        assert dispatch(table, target, sent[0])
        assert target.calls == [(operation, *arguments)]


def test_an_offer_with_the_largest_user_data_fits_into_one_message() -> None:
    assert len(encode("offer", 1 << 32, "v" * 32, bytes(16), bytes(16), bytes(120))) <= MAX_PAYLOAD


def test_a_hello_takes_along_what_finds_room_beside_it() -> None:
    offers = [encode("offer", key, "vm1", bytes(16), bytes(16), b"st1-1") for key in range(9)]
    sent: list[bytes] = []
    count = fitting(70000, offers)
    RemoteProvider(sent.append).hello(70000, offers[:count])
    assert 2 < count < len(offers)
    assert len(sent[0]) <= MAX_PAYLOAD < len(encode("hello", 70000, offers[: count + 1]))
    assert fitting(1, offers[:2]) == 2
    assert fitting(1, [bytes(240)]) == 0


def test_a_reason_that_does_not_fit_is_cut() -> None:
    target = Recorder()
    payload = encode("revoke", 1, "x" * 1000)
    assert len(payload) <= MAX_PAYLOAD
    assert dispatch(TO_PROVIDER, target, payload)
    assert target.calls == [("revoke", 1, "x" * 64)]


@pytest.mark.parametrize("message", [
    None, 1, {}, [], [1], ["open"], ["open", 1, 2, 3], ["open", 1, 2, 3, 4, 5], ["open", 1, 2, 3, "4"],
    ["open", True, 2, 3, 4], ["close", 1, None], ["closed", 1, 2], ["__class__", 1], [["open"], 1, 2, 3, 4], [{}],
    ["accept_gpadl", 1, 2, 3, 4.0],
], ids=repr)
def test_what_is_no_operation_of_the_table_is_not_called(message: Any) -> None:
    target = Recorder()
    assert not dispatch(TO_VSP, target, msgpack.packb(message))
    assert target.calls == []


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x95\xa4open", b"\x91" * 240], ids=repr)
def test_what_is_no_msgpack_is_not_called(payload: bytes) -> None:
    assert not dispatch(TO_VSP, Recorder(), payload)


PFNS = {
    "one piece": list(range(1 << 20, (1 << 20) + 2336)),
    "backwards": list(range(5000, 4000, -1)),
    "one page": [7],
    "the same page again": [3, 3, 3, 4],
    "at the end of the address space": [(1 << 52) - 2, (1 << 52) - 1, 0],
}


@pytest.mark.parametrize("pfns", PFNS.values(), ids=PFNS)
def test_page_numbers_survive_their_runs(pfns: list[int]) -> None:
    assert decode_pages(encode_pages(pfns)) == pfns


def test_one_piece_is_one_run() -> None:
    assert len(encode_pages(PFNS["one piece"])) == RUN_BYTES


@pytest.mark.parametrize("count", [1, 12, 13, 24, 25, 1000])
def test_runs_too_long_for_one_message_come_in_parts_and_in_order(count: int) -> None:
    runs = encode_pages(range(2 * count, 0, -2))
    most = (1 << 32) - 1
    sent: list[bytes] = []
    RemoteVsp(sent.append).accept_gpadl(most, most, 1 << 63, most, 4095, 1 << 63, 1 << 63, most, runs)
    assert max(map(len, sent)) <= MAX_PAYLOAD
    target = Recorder()
    assert all([dispatch(TO_VSP, target, payload) for payload in sent])
    assert [call[0] for call in target.calls] == ["gpadl_pages"] * (len(sent) - 1) + ["accept_gpadl"]
    assert {call[1:3] for call in target.calls} == {(most, most)}
    assert b"".join(call[-1] for call in target.calls) == runs
