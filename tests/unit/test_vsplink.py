"""The link between the provider and a VSP: every operation survives the wire, nothing else gets through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from partitions.parent.vsplink import TO_PROVIDER, TO_VSP, RemoteProvider, RemoteVsp, dispatch, encode
from vmbus_emu.protocol.hypercall import MAX_PAYLOAD

SAMPLES: dict[type, Any] = {int: (1 << 64) - 1, str: "a reason", bytes: b"\0" * 16, bool: True}


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
