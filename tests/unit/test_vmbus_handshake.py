"""Server and guest driven against each other: whole stories, message by message, with a device in between."""

from __future__ import annotations

import itertools
import random
import uuid
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import pytest

from vmbus_emu.protocol import guids
from vmbus_emu.protocol.vmbus import NEGOTIABLE, STATUS_FAILED, Version
from vmbus_emu.vmbus import client_effects as seen
from vmbus_emu.vmbus import effects as asked
from vmbus_emu.vmbus.channel_states import ChannelState, ConnectionState
from vmbus_emu.vmbus.client import ClientConnection, ClientState
from vmbus_emu.vmbus.client_channels import ClientChannelState, ClientGpadlState
from vmbus_emu.vmbus.gpadl import Ranges, contiguous
from vmbus_emu.vmbus.server import Connection

DISK = asked.Offer(guids.SCSI, uuid.UUID(int=1), b"disk-endpoint")
NIC = asked.Offer(guids.NETWORK, uuid.UUID(int=2), b"nic-endpoint")


class Bus:
    """Both ends, the two ordered message paths between them, and a device that answers when it is let."""

    def __init__(self, *offers: asked.Offer, versions: tuple[int, ...] = NEGOTIABLE, **settings: Any) -> None:
        self.server = Connection(**settings)
        self.guest = ClientConnection(versions)
        self.to_server: deque[bytes] = deque()
        self.to_guest: deque[bytes] = deque()
        self.questions: deque[asked.Effect] = deque()
        self.seen: list[seen.ClientEffect] = []
        self.freed: list[int] = []
        self.mapped: dict[tuple[int, int], Ranges] = {}
        self.running: set[int] = set()
        self.device_ok = True
        for offer in offers:
            self.server.offer(offer)

    def host(self, effects: list[asked.Effect]) -> None:
        for effect in effects:
            match effect:
                case asked.Send():
                    self.to_guest.append(effect.payload)
                case asked.Freed():
                    self.freed.append(effect.relid)
                case asked.OpenDevice() | asked.CloseDevice() | asked.AcceptGpadl() | asked.TearDownGpadl():
                    self.questions.append(effect)
                case asked.Refused():
                    raise AssertionError(effect.reason)

    def child(self, effects: list[seen.ClientEffect]) -> None:
        for effect in effects:
            if isinstance(effect, seen.Post):
                self.to_server.append(effect.payload)
            else:
                assert not isinstance(effect, seen.Bad), effect
                self.seen.append(effect)

    def step(self, path: str) -> bool:
        """Move one message, or let the device answer one question."""
        if path == "to_server" and self.to_server:
            self.host(self.server.receive(self.to_server.popleft()))
        elif path == "to_guest" and self.to_guest:
            self.child(self.guest.receive(self.to_guest.popleft()))
        elif path == "device" and self.questions:
            self.answer(self.questions.popleft())
        else:
            return False
        return True

    def answer(self, question: asked.Effect) -> None:
        server = self.server
        match question:
            case asked.OpenDevice(relid, ticket, _):
                if self.device_ok:
                    assert relid not in self.running
                    self.running.add(relid)
                self.host(server.device_opened(relid, ticket, self.device_ok))
            case asked.CloseDevice(relid, ticket):
                self.running.remove(relid)
                self.host(server.device_closed(relid, ticket))
            case asked.AcceptGpadl(relid, gpadl, ticket, ranges):
                if self.device_ok:
                    self.mapped[relid, gpadl] = ranges
                self.host(server.gpadl_accepted(relid, gpadl, ticket, self.device_ok))
            case asked.TearDownGpadl(relid, gpadl, ticket):
                del self.mapped[relid, gpadl]
                self.host(server.gpadl_torn_down(relid, gpadl, ticket))
            case _:
                raise AssertionError(question)

    def settle(self) -> list[seen.ClientEffect]:
        """Until nothing moves; what the guest has seen since the last time."""
        while any([self.step("to_server"), self.step("to_guest"), self.step("device")]):
            pass
        seen_now, self.seen = self.seen, []
        return seen_now

    def device_dies(self, relid: int) -> None:
        """The VSP behind a channel is gone: its memory, its questions, its state."""
        self.running.discard(relid)
        self.questions = deque(question for question in self.questions if getattr(question, "relid", 0) != relid)
        self.mapped = {key: ranges for key, ranges in self.mapped.items() if key[0] != relid}
        self.host(self.server.revoke(relid))

    def boot(self) -> list[seen.ClientEffect]:
        self.child(self.guest.contact())
        first = self.settle()
        self.child(self.guest.request_offers())
        return first + self.settle()


def kinds(effects: list[seen.ClientEffect]) -> list[type[object]]:
    return [type(effect) for effect in effects]


@pytest.mark.parametrize("newest", NEGOTIABLE, ids=lambda version: version.name)
def test_both_agree_on_the_newest_common_version(newest: Version) -> None:
    bus = Bus(DISK, max_version=newest)
    assert kinds(bus.boot()) == [seen.Connected, seen.OfferArrived, seen.AllOffersDelivered]
    assert bus.guest.version == bus.server.version == newest


def test_older_guest_gets_its_version() -> None:
    bus = Bus(versions=(Version.V3_0, Version.V2_4))
    bus.boot()
    assert bus.server.version == Version.V3_0


def test_guest_that_speaks_only_too_old_versions_gets_no_bus() -> None:
    bus = Bus(versions=(Version.V1_1, Version.V0_13))
    bus.child(bus.guest.contact())
    assert kinds(bus.settle()) == [seen.ConnectFailed]
    assert bus.server.state is ConnectionState.DISCONNECTED


def test_whole_life_of_a_channel_with_rings() -> None:
    bus = Bus(DISK, NIC, require_ring_gpadl=True)
    arrived = [effect.offer for effect in bus.boot() if isinstance(effect, seen.OfferArrived)]
    assert [offer.interface_guid for offer in arrived] == [guids.SCSI, guids.NETWORK]
    relid = arrived[0].relid
    ring = contiguous(0x5000, 128 * 4096)
    gpadl, effects = bus.guest.create_gpadl(relid, [ring])
    bus.child(effects)
    assert bus.settle() == [seen.GpadlCreated(relid, gpadl, 0)]
    assert bus.mapped == {(relid, gpadl): (ring,)}
    bus.child(bus.guest.open(relid, gpadl, downstream_page_offset=64))
    assert bus.settle() == [seen.OpenResult(relid, 0)]
    assert bus.running == {relid}
    bus.child(bus.guest.close(relid))
    bus.child(bus.guest.teardown_gpadl(gpadl))
    assert bus.settle() == [seen.GpadlTornDown(gpadl)]
    bus.child(bus.guest.release(relid))
    bus.settle()
    assert (bus.running, bus.mapped, bus.freed) == (set(), {}, [])
    assert bus.server.channel_state(relid) is ChannelState.CLIENT_RELEASED


def test_device_that_refuses_is_a_failed_open() -> None:
    bus = Bus(DISK)
    bus.boot()
    bus.device_ok = False
    bus.child(bus.guest.open(1))
    gpadl, effects = bus.guest.create_gpadl(1, [contiguous(0, 4096)])
    bus.child(effects)
    assert bus.settle() == [seen.OpenResult(1, STATUS_FAILED), seen.GpadlCreated(1, gpadl, STATUS_FAILED)]
    bus.device_ok = True
    bus.child(bus.guest.open(1))
    assert bus.settle() == [seen.OpenResult(1, 0)]


def test_close_and_open_at_once_needs_no_close_answer() -> None:
    bus = Bus(DISK)
    bus.boot()
    bus.child(bus.guest.open(1))
    bus.settle()
    bus.child(bus.guest.close(1))
    bus.child(bus.guest.open(1))
    bus.step("to_server")
    bus.step("to_server")
    assert bus.server.channel_state(1) is ChannelState.CLOSING_REOPEN
    assert bus.settle() == [seen.OpenResult(1, 0)]
    assert bus.running == {1}


def test_dead_device_is_rescinded_and_its_successor_offered_under_the_same_relid() -> None:
    bus = Bus(DISK)
    bus.boot()
    bus.child(bus.guest.open(1))
    bus.settle()
    bus.device_dies(1)
    assert bus.settle() == [seen.Rescinded(1)]
    bus.host(bus.server.reoffer(1, b"disk-endpoint.2"))
    bus.child(bus.guest.release(1))
    again, = bus.settle()
    assert isinstance(again, seen.OfferArrived)
    assert (again.offer.relid, again.offer.user_data.rstrip(b"\0")) == (1, b"disk-endpoint.2")
    bus.child(bus.guest.open(1))
    assert bus.settle() == [seen.OpenResult(1, 0)]
    assert bus.freed == []


def test_successor_that_comes_after_the_release_is_a_new_offer() -> None:
    bus = Bus(DISK)
    bus.boot()
    bus.device_dies(1)
    bus.settle()
    bus.child(bus.guest.release(1))
    bus.settle()
    assert bus.freed == [1]
    relid, effects = bus.server.offer(DISK)
    bus.host(effects)
    assert (relid, kinds(bus.settle())) == (1, [seen.OfferArrived])


def test_guest_reboots_without_a_word_while_its_disk_is_open() -> None:
    bus = Bus(DISK)
    bus.boot()
    bus.child(bus.guest.create_gpadl(1, [contiguous(0, 4096)])[1])
    bus.child(bus.guest.open(1))
    bus.settle()
    assert (bus.running, len(bus.mapped)) == ({1}, 1)
    bus.guest = ClientConnection((Version.V4_0,))  # a new kernel knows nothing
    assert kinds(bus.boot()) == [seen.Connected, seen.OfferArrived, seen.AllOffersDelivered]
    assert (bus.running, bus.mapped) == (set(), {})
    bus.child(bus.guest.open(1))
    assert bus.settle() == [seen.OpenResult(1, 0)]


def test_parent_dies_and_a_new_incarnation_takes_over() -> None:
    bus = Bus(DISK)
    bus.boot()
    bus.child(bus.guest.open(1))
    bus.settle()
    bus.server = Connection(first_ticket=1 << 32)
    bus.server.offer(DISK)
    bus.running.clear()
    bus.child(bus.guest.reset())
    assert bus.settle() == [seen.Rescinded(1)]
    assert kinds(bus.boot()) == [seen.Connected, seen.OfferArrived, seen.AllOffersDelivered]
    bus.child(bus.guest.open(1))
    assert bus.settle() == [seen.OpenResult(1, 0)]


def test_unload_leaves_nothing_and_a_new_start_is_possible() -> None:
    bus = Bus(DISK)
    bus.boot()
    bus.child(bus.guest.open(1))
    bus.settle()
    bus.child(bus.guest.unload())
    assert bus.settle() == [seen.Unloaded()]
    assert bus.running == set()
    assert bus.server.state is ConnectionState.DISCONNECTED
    assert bus.guest.state is ClientState.IDLE
    assert seen.Connected in kinds(bus.boot())


class Waits:
    """Counts, per channel or GPADL, what the guest began and what it heard the end of."""

    def __init__(self) -> None:
        self.open: Counter[tuple[str, int]] = Counter()

    def begin(self, what: str, name: int) -> None:
        self.open[what, name] += 1

    def end(self, effects: list[seen.ClientEffect]) -> None:
        for effect in effects:
            match effect:
                case seen.OpenResult(relid, _):
                    key = ("open", relid)
                case seen.GpadlCreated(_, gpadl, _):
                    key = ("create", gpadl)
                case seen.GpadlTornDown(gpadl):
                    key = ("teardown", gpadl)
                case _:
                    continue
            self.open[key] -= 1
            assert self.open[key] >= 0, f"{effect} ended nothing"


def guest_acts(bus: Bus, rng: random.Random, waits: Waits) -> None:
    """One thing that a guest may do in its state."""
    guest = bus.guest
    relid = rng.randrange(1, 4)
    state = guest.channel_state(relid)
    match rng.randrange(8):
        case 0 | 1 if state is not ClientChannelState.OPENING and state is not ClientChannelState.OPEN:
            waits.begin("open", relid)
            bus.child(guest.open(relid))
        case 2:
            bus.child(guest.close(relid))
        case 3:
            gpadl, effects = guest.create_gpadl(relid, [contiguous(9, rng.randrange(1, 70) * 4096)])
            waits.begin("create", gpadl)
            bus.child(effects)
        case 4 | 5:
            created = [key[1] for key in waits.open if guest.gpadl_state(key[1]) is ClientGpadlState.CREATED]
            if created:
                gpadl = rng.choice(created)
                waits.begin("teardown", gpadl)
                bus.child(guest.teardown_gpadl(gpadl))
        case 6 if state is ClientChannelState.RESCINDED or (
            rng.random() < 0.05 and state is not ClientChannelState.OPENING
        ):
            bus.child(guest.release(relid))
        case 7 if rng.random() < 0.05:
            bus.child(guest.contact())


def host_acts(bus: Bus, rng: random.Random, instances: Iterator[int]) -> None:
    """A VSP dies, or comes back: under the old relid while that exists, as a new offer afterwards."""
    relid = rng.randrange(1, 4)
    state = bus.server.channel_state(relid)
    chance = rng.random()
    if state is None:
        if chance < 0.1:
            bus.host(bus.server.offer(asked.Offer(guids.SCSI, uuid.UUID(int=next(instances)), b"new"))[1])
    elif state is ChannelState.REVOKED:
        if chance < 0.1:
            bus.host(bus.server.reoffer(relid, b"again"))
    elif chance < 0.02:
        bus.device_dies(relid)


@pytest.mark.parametrize("seed", range(40))
def test_any_interleaving_of_legal_steps_ends_every_wait_exactly_once(seed: int) -> None:
    """Messages, device answers, deaths and returns in random order. ``Bus`` fails on anything refused or bad."""
    rng = random.Random(seed)
    instances = itertools.count(1)
    bus = Bus(*(asked.Offer(guids.SCSI, uuid.UUID(int=next(instances)), b"first") for _ in range(3)))
    bus.boot()
    waits = Waits()
    for _ in range(500):
        if rng.random() < 0.4:
            guest_acts(bus, rng, waits)
        if rng.random() < 0.5:
            host_acts(bus, rng, instances)
        bus.child(bus.guest.request_offers())
        bus.step(rng.choice(("to_server", "to_guest", "device")))
        waits.end(bus.seen)
        bus.seen = []
    waits.end(bus.settle())
    bus.child(bus.guest.request_offers())
    waits.end(bus.settle())

    assert +waits.open == Counter()
    assert (bus.server.state, bus.guest.state) == (ConnectionState.OFFERED, ClientState.CONNECTED)
    for relid in range(1, 4):
        theirs = bus.server.channel_state(relid)
        assert (bus.guest.channel_state(relid) is ClientChannelState.OPEN) == (theirs is ChannelState.OPEN)
        assert (relid in bus.running) == (theirs is ChannelState.OPEN)
    for relid, gpadl in bus.mapped:
        assert bus.guest.gpadl_state(gpadl) is ClientGpadlState.CREATED, (relid, gpadl)
