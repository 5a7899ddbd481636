"""A guest's pools of keys and values: who may read and write what."""

from __future__ import annotations

import pytest

from partitions.child.kvp_store import MAX_KEYS, KvpStore
from vmbus_emu.protocol import kvp
from vmbus_emu.protocol.ic import Status
from vmbus_emu.protocol.kvp import Item, Op, Pool, Request


@pytest.fixture
def store() -> KvpStore:
    return KvpStore(lambda: {"OSName": "test", "Name": "vm1"})


def status(store: KvpStore, op: Op, pool: int, item: Item = Item("")) -> Status:  # noqa: B008
    return store.asked(Request(op, pool, 0, item))[0]


def test_the_host_writes_external_pools_and_no_others(store: KvpStore) -> None:
    for pool in (Pool.EXTERNAL, Pool.AUTO_EXTERNAL):
        assert status(store, Op.SET, pool, Item("a", "b")) is Status.OK
        assert store.pool(pool) == {"a": "b"}
        assert status(store, Op.DELETE, pool, Item("a")) is Status.OK
        assert status(store, Op.DELETE, pool, Item("a")) is Status.NOT_FOUND
    for pool in (Pool.GUEST, Pool.AUTO):
        assert status(store, Op.SET, pool, Item("a", "b")) is Status.FAIL
        assert status(store, Op.DELETE, pool, Item("OSName")) is Status.FAIL
    assert status(store, Op.GET, 4, Item("a")) is Status.NOT_SUPPORTED
    assert status(store, Op.GET_IP, Pool.AUTO) is Status.NOT_SUPPORTED


def test_the_host_reads_all(store: KvpStore) -> None:
    assert store.set_own(Item("mine", "1"))
    assert store.asked(Request(Op.GET, Pool.GUEST, 0, Item("mine")))[1].item == Item("mine", "1")
    assert status(store, Op.GET, Pool.AUTO, Item("mine")) is Status.NOT_FOUND
    found = []
    while (answer := store.asked(Request(Op.ENUMERATE, Pool.AUTO, len(found))))[0] is Status.OK:
        found.append(answer[1].item)
    assert (answer[0], found) == (Status.NO_MORE_ITEMS, [Item("OSName", "test"), Item("Name", "vm1")])


def test_the_guest_writes_its_own(store: KvpStore) -> None:
    assert store.set_own(Item("a", "1"))
    assert store.set_own(Item("a", "2"))
    assert store.pool(Pool.GUEST) == {"a": "2"}
    assert store.delete_own("a")
    assert not store.delete_own("a")


def test_pools_are_bounded_and_so_is_what_is_in_them(store: KvpStore) -> None:
    for number in range(MAX_KEYS):
        assert status(store, Op.SET, Pool.EXTERNAL, Item(f"k{number}", "v")) is Status.OK
    assert status(store, Op.SET, Pool.EXTERNAL, Item("more", "v")) is Status.FAIL
    assert status(store, Op.SET, Pool.EXTERNAL, Item("k1", "w")) is Status.OK
    assert not store.set_own(Item("k", "v" * 2000))


def test_by_message_a_failure_has_the_body_of_its_request(store: KvpStore) -> None:
    answers: list[tuple[int, bytes]] = []
    for body in (b"", kvp.encode(Request(Op.GET, Pool.AUTO, 0, Item("none")))):
        store.serve(body, (5, 0), lambda code, answer: answers.append((code, answer)))
        assert answers.pop()[1] == body
    store.serve(kvp.encode(Request(Op.GET, Pool.AUTO, 0, Item("Name"))), (5, 0), lambda *answer: answers.append(answer))
    assert kvp.decode(answers[0][1]) == Request(Op.GET, Pool.AUTO, 0, Item("Name", "vm1"))
