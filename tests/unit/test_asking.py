"""What is asked of a VSP where memory is shared: after the hypervisor, in order, and never left open.

A provider, its guests and VSPs on real hypervisor tables. No process, no socket.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from partitions.parent.provider import Provider
from partitions.parent.ring_asking import FIRST_DOORBELL
from partitions.parent.vsplink import TO_VSP, RemoteProvider, decode_pages, dispatch
from vmbus_emu.hypervisor.core import Effect, HandDoorbell, HandOut
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol import vmbus as wire
from vmbus_emu.protocol.vmbus import NEWEST
from vmbus_emu.vmbus import effects as fx
from vmbus_emu.vmbus.gpadl import Range, contiguous, encode_gpadl

M = TypeVar("M")
INTERFACE = uuid.UUID(int=9).bytes_le
GPA, PAGES = 1 << 32, 64
FIRST_PFN = GPA // 4096
RING = contiguous(FIRST_PFN, 8 * 4096)


class Vsp:
    """Remembers what it was asked and, as long as it is ``patient``, answers at once."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.answers: Any = None
        self.patient = True
        self.opens = True
        self.parts: dict[int, bytes] = {}

    def open(self, key: int, ticket: int, pid: int, openid: int, *ring: int) -> None:
        self.asked.append(("open", *ring))
        if self.patient:
            self.answers.opened(key, ticket, self.opens)

    def close(self, key: int, ticket: int) -> None:
        self.asked.append(("close",))
        if self.patient:
            self.answers.closed(key, ticket)

    def accept_gpadl(
        self, key: int, gpadl: int, ticket: int, nbytes: int, offset: int, partition: int, gpa: int, pages: int,
        runs: bytes,
    ) -> None:
        pfns = decode_pages(self.parts.pop(gpadl, b"") + runs)
        self.asked.append(("accept", gpadl, nbytes, offset, partition, gpa, pages, pfns))
        if self.patient:
            self.answers.gpadl_accepted(key, gpadl, ticket, True)

    def gpadl_pages(self, key: int, gpadl: int, part: bytes) -> None:
        self.parts[gpadl] = self.parts.get(gpadl, b"") + part

    def tear_down_gpadl(self, key: int, gpadl: int, ticket: int) -> None:
        self.asked.append(("tear down", gpadl))
        if self.patient:
            self.answers.gpadl_torn_down(key, gpadl, ticket)

    def revoked(self, key: int) -> None:
        self.asked.append(("revoked", key))

    def partition_gone(self, partition: int, vm: str) -> None:
        self.asked.append(("gone", partition, vm))

    @property
    def words(self) -> list[str]:
        return [asked[0] for asked in self.asked]


class Bench:
    """One guest ``vm1`` with I/O memory and one device, whose VSP lives with the provider or far from it."""

    def __init__(self, wires: Any, monkeypatch: pytest.MonkeyPatch, far: bool, pages: int = PAGES) -> None:
        self.wires = wires
        self.tables = wires.hypervisor
        self.log: list[str] = []
        self.provider = Provider(wires.loop, wires.processor(), self.log.append)
        self.provider.share_memory({"vm1": [{"vsp": "storvsp", "gpa": GPA, "pages": pages}]})
        self.vsp = Vsp()
        self.place = hv.PARTITION_ROOT
        if far:
            self.place = self.attach("storvsp", "vsp")
            vp = wires.processor(self.place)
            vp.on_message = lambda sint, message: dispatch(TO_VSP, self.vsp, message.payload)
            self.vsp.answers = RemoteProvider(lambda payload: vp.post(0x10, hv.MESSAGE_CONTROL, payload))
            self.vsp.answers.hello(1)
        else:
            self.vsp.answers = self.provider.add_vsp("storvsp", self.vsp)
        self.vsp.answers.offer(1, "vm1", INTERFACE, uuid.UUID(int=1).bytes_le, b"endpoint")
        self.partition = self.attach("vm1", "child")
        wires.hypervisor.add_memory(self.partition, GPA, PAGES)
        self.vp = wires.processor(self.partition)
        self.seen: list[Any] = []
        self.vp.on_message = lambda sint, message: self.seen.append(wire.decode_from_host(message.payload, NEWEST))
        self.handed: list[Effect] = []
        apply = wires.apply

        def watched(effects: list[Effect]) -> None:
            self.handed += [effect for effect in effects if isinstance(effect, HandDoorbell | HandOut)]
            apply(effects)

        monkeypatch.setattr(wires, "apply", watched)
        self.post(wire.InitiateContact(NEWEST, 0, 2, 0, 0), wire.RequestOffers())
        offer = self.awaits(wire.OfferChannel)
        self.relid, self.doorbell = offer.relid, offer.connection_id

    def attach(self, name: str, kind: str) -> int:
        partition: int = self.wires.child(name)
        self.provider.attach(partition, name, kind)
        self.wires.settle()
        return partition

    def post(self, *messages: Any) -> None:
        for message in messages:
            payload = message if isinstance(message, bytes) else message.encode()
            self.vp.post(hv.CONNECTION_VMBUS, hv.MESSAGE_VMBUS, payload)

    def awaits(self, kind: type[M]) -> M:
        assert self.wires.loop.run_until(lambda: any(isinstance(m, kind) for m in self.seen), 5.0), self.seen
        index, message = next((i, m) for i, m in enumerate(self.seen) if isinstance(m, kind))
        del self.seen[:index + 1]
        return message

    def gpadl(self, number: int, *ranges: Range) -> list[bytes]:
        return encode_gpadl(self.relid, number, ranges or (RING,))

    def open(self, gpadl: int = 1) -> wire.OpenChannel:
        return wire.OpenChannel(self.relid, 5, gpadl, 0, 4, b"")

    def opened(self) -> int:
        self.post(*self.gpadl(1))
        assert self.awaits(wire.GpadlCreated).status == 0
        self.post(self.open())
        return self.awaits(wire.OpenChannelResult).status

    def doorbells(self) -> list[int]:
        """Partitions that have the channel's doorbell port."""
        return [number for number, p in self.tables.partitions.items() if self.doorbell in p.ports]


@pytest.fixture(params=[False, True], ids=["near", "far"])
def bench(request: pytest.FixtureRequest, wires: Any, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(wires, monkeypatch, request.param)


def test_memory_is_granted_before_it_is_described_and_doorbells_before_the_open(bench: Bench) -> None:
    assert bench.opened() == 0
    where = (bench.partition, GPA, PAGES)
    assert bench.vsp.asked == [("accept", 1, 8 * 4096, 0, *where, list(RING.pfns)), ("open", bench.doorbell, 1, 4)]
    (grant,) = [effect.grant for effect in bench.handed if isinstance(effect, HandOut)]
    assert (grant.owner, grant.grantee, grant.gpa, grant.pages) == (bench.partition, bench.place, GPA, PAGES)
    assert bench.doorbells() == sorted({bench.place, bench.partition})
    assert bench.doorbell >= FIRST_DOORBELL


def test_a_guest_need_not_wait_until_its_memory_is_taken(bench: Bench) -> None:
    bench.post(*bench.gpadl(1), bench.open())
    assert bench.awaits(wire.GpadlCreated).status == 0
    assert bench.awaits(wire.OpenChannelResult).status == 0
    assert bench.vsp.words == ["accept", "open"]
    made = [type(effect) for effect in bench.handed]
    assert made == [HandOut, HandDoorbell, HandDoorbell]
    assert len(bench.doorbells()) == len({bench.place, bench.partition})


def test_a_second_gpadl_needs_no_second_grant(bench: Bench) -> None:
    bench.post(*bench.gpadl(1), *bench.gpadl(2))
    assert [bench.awaits(wire.GpadlCreated).status for _ in range(2)] == [0, 0]
    assert sum(isinstance(effect, HandOut) for effect in bench.handed) == 1


def test_what_is_asked_of_one_device_keeps_its_order(bench: Bench) -> None:
    """A close while a grant is under way, and a teardown of what was only just described."""
    bench.opened()
    bench.post(*bench.gpadl(2), wire.CloseChannel(bench.relid), wire.GpadlTeardown(bench.relid, 1))
    assert bench.awaits(wire.GpadlCreated).gpadl == 2
    bench.post(wire.GpadlTeardown(bench.relid, 2))
    assert bench.awaits(wire.GpadlTornDown).gpadl == 1
    assert bench.awaits(wire.GpadlTornDown).gpadl == 2
    assert bench.vsp.words == ["accept", "open", "accept", "close", "tear down", "tear down"]
    bench.wires.settle()
    assert bench.doorbells() == []


def test_a_channel_may_be_closed_and_opened_as_often_as_one_likes(bench: Bench) -> None:
    bench.opened()
    for _ in range(3):
        bench.post(wire.CloseChannel(bench.relid), bench.open())
        assert bench.awaits(wire.OpenChannelResult).status == 0
    assert bench.vsp.words == ["accept", "open"] + ["close", "open"] * 3
    assert len(bench.doorbells()) == 2


def test_scattered_pages_reach_the_vsp_whole(bench: Bench) -> None:
    pfns = tuple(FIRST_PFN + page for page in range(PAGES - 1, -1, -1))
    bench.post(*bench.gpadl(7, Range(PAGES * 4096 - 100, 100, pfns)))
    assert bench.awaits(wire.GpadlCreated).status == 0
    assert bench.vsp.asked[0][2:4] == (PAGES * 4096 - 100, 100)
    assert bench.vsp.asked[0][-1] == list(pfns)


def test_several_ranges_are_refused_without_asking(bench: Bench) -> None:
    bench.post(*bench.gpadl(1, RING, RING))
    assert bench.awaits(wire.GpadlCreated).status != 0
    assert bench.vsp.asked == []


@pytest.mark.parametrize("far", [False, True])
def test_a_refused_grant_is_a_refused_gpadl(wires: Any, monkeypatch: pytest.MonkeyPatch, far: bool) -> None:
    bench = Bench(wires, monkeypatch, far, pages=PAGES - 1)
    bench.post(*bench.gpadl(1))
    assert bench.awaits(wire.GpadlCreated).status != 0
    assert bench.vsp.asked == []
    assert "vm1: the hypervisor granted no memory: INVALID_PARAMETER" in bench.log


def test_refused_doorbells_are_a_refused_open_and_cleared_up(bench: Bench) -> None:
    child = bench.tables.partitions[bench.partition]
    child.connections[bench.doorbell] = (hv.PARTITION_ROOT, 1)
    assert bench.opened() != 0
    bench.wires.settle()
    assert bench.doorbells() == []
    assert "open" not in bench.vsp.words
    assert "vm1: the hypervisor refused doorbells: " in str(bench.log)
    del child.connections[bench.doorbell]
    bench.post(bench.open())
    assert bench.awaits(wire.OpenChannelResult).status == 0


def test_an_open_that_the_vsp_refuses_leaves_no_doorbells_and_may_be_tried_again(bench: Bench) -> None:
    bench.vsp.opens = False
    assert bench.opened() != 0
    bench.wires.settle()
    assert bench.doorbells() == []
    bench.vsp.opens = True
    bench.post(bench.open())
    assert bench.awaits(wire.OpenChannelResult).status == 0
    assert not any("refused doorbells" in line for line in bench.log)


def test_a_revoked_channel_leaves_no_doorbells(bench: Bench) -> None:
    bench.opened()
    bench.vsp.answers.revoke(1, "it broke the protocol")
    assert bench.awaits(wire.RescindChannelOffer).relid == bench.relid
    bench.wires.settle()
    assert bench.doorbells() == []
    assert "close" not in bench.vsp.words


@pytest.mark.parametrize("asked", ["gpadl", "open", "close", "teardown"])
def test_a_vsp_that_dies_meanwhile_leaves_nobody_waiting(
    wires: Any, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    bench = Bench(wires, monkeypatch, far=True)
    if asked != "gpadl":
        bench.opened()
    bench.vsp.patient = False
    messages: dict[str, Callable[[], list[Any]]] = {
        "gpadl": lambda: [*bench.gpadl(1)],
        "open": lambda: [wire.CloseChannel(bench.relid), bench.open()],
        "close": lambda: [wire.CloseChannel(bench.relid)],
        "teardown": lambda: [wire.GpadlTeardown(bench.relid, 1)],
    }
    bench.post(*messages[asked]())
    wires.loop.run_until(lambda: False, 0.01)   # under way, at the hypervisor or at the VSP
    wires.apply(wires.hypervisor.died(wires.hypervisor.partitions[bench.place].vps[0]))
    bench.provider.peer_died("storvsp", 1)
    assert bench.awaits(wire.RescindChannelOffer).relid == bench.relid
    waiters = [type(message).__name__ for message in bench.seen]
    assert waiters == []
    bench.post(wire.RelidReleased(bench.relid))
    wires.settle()
    assert bench.provider.stats()["counters"]["channels"] == 0
    assert bench.doorbells() == []
    bench.post(wire.InitiateContact(NEWEST, 0, 2, 0, 0))
    assert bench.awaits(wire.VersionResponse).version_supported == 1


@pytest.mark.parametrize("asked", ["gpadl", "open"])
def test_a_hypervisor_that_is_gone_for_good_leaves_nobody_waiting(
    wires: Any, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """The guest cannot hear of it any more; but what waits behind the refused step is done, up to the VSP's part."""
    bench = Bench(wires, monkeypatch, far=False)
    if asked == "open":
        bench.post(*bench.gpadl(1))
        bench.awaits(wire.GpadlCreated)
    monkeypatch.setattr(wires, "apply", lambda effects: None)       # it takes calls, and answers none
    guest = bench.provider._guests[bench.partition]
    device = next(iter(guest.devices.values()))
    found = (bench.vsp, bench.place)
    if asked == "open":
        bench.provider._asking.open(found, guest, device, fx.OpenDevice(bench.relid, 77, bench.open()))
    else:
        bench.provider._asking.accept(found, guest, device, fx.AcceptGpadl(bench.relid, 9, 77, (RING,)))
    bench.provider._asking.tear_down(found, device, 1, 78)
    wires.loop.run_until(lambda: False, 0.01)
    assert "tear down" not in bench.vsp.words
    bench.provider._vp.abandon()
    assert wires.loop.run_until(lambda: "tear down" in bench.vsp.words, 5.0)
    assert asked not in bench.vsp.words
    assert any("the hypervisor" in line for line in bench.log)


def test_a_dead_guests_memory_and_doorbells_are_given_back(bench: Bench) -> None:
    bench.opened()
    guest = bench.tables.partitions[bench.partition].vps[0]
    bench.wires.apply(bench.tables.died(guest))
    bench.provider.peer_died("vm1", 1)
    bench.wires.settle()
    assert sorted(bench.vsp.words[2:]) == ["close", "gone", "tear down"]
    assert ("gone", bench.partition, "vm1") in bench.vsp.asked
    assert bench.doorbells() == []
    assert bench.provider.stats()["counters"]["connections"] == 0
