"""The VMBus provider among real tables: guests, VSPs here and elsewhere, their deaths. No process, no socket.

Long, because the tables it plays for guests and VSPs serve every test.
"""

from __future__ import annotations

import uuid
from typing import Any, TypeVar

import pytest

from partitions.parent.provider import LOGGED_REFUSALS, MAX_BACKLOG, Provider
from partitions.parent.vsplink import FIRST_PARTITION_PORT, RemoteProvider, encode
from partitions.parent.wiring import Wiring
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol import vmbus as wire
from vmbus_emu.protocol.vmbus import NEWEST
from vmbus_emu.task import Task
from vmbus_emu.vmbus.gpadl import contiguous, encode_gpadl

M = TypeVar("M")
INTERFACE = uuid.UUID(int=9).bytes_le
CONTROL_PORT = 0x10


class Vsp:
    """Answers at once, if it is told to, and remembers what it was asked."""

    def __init__(self, provider: Provider, name: str, patient: bool = True) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.gone: list[tuple[int, str]] = []
        self.patient = patient
        self.face = provider.add_vsp(name, self)

    def offer(self, key: int, vm: str) -> None:
        self.face.offer(key, vm, INTERFACE, uuid.UUID(int=key).bytes_le, b"endpoint")

    def open(self, key: int, ticket: int, pid: int, openid: int, *ring: int) -> None:
        self.asked.append(("open", key, pid, openid))
        if self.patient:
            self.face.opened(key, ticket, True)

    def close(self, key: int, ticket: int) -> None:
        self.asked.append(("close", key))
        if self.patient:
            self.face.closed(key, ticket)

    def accept_gpadl(self, key: int, gpadl: int, ticket: int, nbytes: int, *where: Any) -> None:
        self.asked.append(("accept_gpadl", key, gpadl, nbytes))
        self.face.gpadl_accepted(key, gpadl, ticket, True)

    def gpadl_pages(self, key: int, gpadl: int, part: bytes) -> None:
        raise AssertionError("in one process nothing comes in parts")

    def tear_down_gpadl(self, key: int, gpadl: int, ticket: int) -> None:
        self.asked.append(("tear_down_gpadl", key, gpadl))
        self.face.gpadl_torn_down(key, gpadl, ticket)

    def revoked(self, key: int) -> None:
        self.asked.append(("revoked", key))

    def partition_gone(self, partition: int, vm: str) -> None:
        self.gone.append((partition, vm))


class Guest:
    def __init__(self, wires: Any, partition: int) -> None:
        self.wires = wires
        self.partition = partition
        self.vp = wires.processor(partition)
        self.pid = wires.hypervisor.partitions[partition].vps[0]
        self.seen: list[Any] = []
        self.vp.on_message = lambda sint, message: self.seen.append(wire.decode_from_host(message.payload, NEWEST))

    def post(self, *messages: Any) -> None:
        for message in messages:
            self.vp.post(hv.CONNECTION_VMBUS, hv.MESSAGE_VMBUS, message.encode())

    def awaits(self, kind: type[M]) -> M:
        """The next message of ``kind``, and everything before it gone."""
        assert self.wires.loop.run_until(lambda: any(isinstance(m, kind) for m in self.seen), 5.0), self.seen
        index, message = next((i, m) for i, m in enumerate(self.seen) if isinstance(m, kind))
        del self.seen[:index + 1]
        return message

    def contact(self) -> None:
        self.post(wire.InitiateContact(NEWEST, 0, 2, 0, 0), wire.RequestOffers())
        self.awaits(wire.VersionResponse)

    def open(self, relid: int, open_id: int = 1) -> int:
        self.post(wire.OpenChannel(relid, open_id, 0, 0, 0, b""))
        return self.awaits(wire.OpenChannelResult).status


class Root:
    """The parent, with one VSP in its process."""

    def __init__(self, wires: Any) -> None:
        self.wires = wires
        self.log: list[str] = []
        self.provider = Provider(wires.loop, wires.processor(), self.log.append)
        self.vsp = Vsp(self.provider, "storvsp")

    def attach(self, name: str, kind: str = "child") -> int:
        partition: int = self.wires.child(name)
        self.provider.attach(partition, name, kind)
        self.wires.settle()
        return partition

    def guest(self, name: str) -> Guest:
        return Guest(self.wires, self.attach(name))

    def counters(self) -> dict[str, int]:
        return dict(self.provider.stats()["counters"])


@pytest.fixture
def root(wires: Any) -> Root:
    return Root(wires)


def test_attaching_makes_the_ports_and_connections_of_a_child(root: Root) -> None:
    partition = root.attach("vm1")
    tables = root.wires.hypervisor.partitions
    assert set(tables[partition].ports) == {1}
    assert set(tables[partition].connections) == {hv.CONNECTION_VMBUS_OLD, hv.CONNECTION_VMBUS}
    assert set(tables[1].connections) == {FIRST_PARTITION_PORT + partition}


def test_a_guest_gets_the_offers_made_to_it_before_and_after_it_came_and_no_others(root: Root) -> None:
    root.vsp.offer(1, "vm1")
    root.vsp.offer(2, "vm2")
    guest = root.guest("vm1")
    guest.contact()
    assert guest.awaits(wire.OfferChannel).instance == uuid.UUID(int=1).bytes_le
    guest.awaits(wire.AllOffersDelivered)
    root.vsp.offer(3, "vm1")
    assert guest.awaits(wire.OfferChannel).instance == uuid.UUID(int=3).bytes_le


def test_an_open_names_the_process_that_the_hypervisor_knows_and_the_guests_open_id(root: Root) -> None:
    root.vsp.offer(1, "vm1")
    guest = root.guest("vm1")
    guest.contact()
    assert guest.open(guest.awaits(wire.OfferChannel).relid, 0xABC) == 0
    assert root.vsp.asked == [("open", 1, guest.pid, 0xABC)]
    assert root.counters()["channels"] == 1


def test_gpadls_and_close_reach_the_vsp_and_come_back(root: Root) -> None:
    root.vsp.offer(1, "vm1")
    guest = root.guest("vm1")
    guest.contact()
    relid = guest.awaits(wire.OfferChannel).relid
    for payload in encode_gpadl(relid, 7, [contiguous(1, 40 * 4096)]):
        guest.vp.post(hv.CONNECTION_VMBUS, hv.MESSAGE_VMBUS, payload)
    assert guest.awaits(wire.GpadlCreated).status == 0
    assert guest.open(relid) == 0
    guest.post(wire.CloseChannel(relid), wire.GpadlTeardown(relid, 7))
    guest.awaits(wire.GpadlTornDown)
    assert [asked[0] for asked in root.vsp.asked] == ["accept_gpadl", "open", "close", "tear_down_gpadl"]
    assert root.vsp.asked[0] == ("accept_gpadl", 1, 7, 40 * 4096)


def test_a_revoked_device_is_rescinded_once_and_its_key_may_be_offered_again(root: Root) -> None:
    root.vsp.offer(1, "vm1")
    guest = root.guest("vm1")
    guest.contact()
    relid = guest.awaits(wire.OfferChannel).relid
    assert guest.open(relid) == 0
    root.vsp.face.revoke(1, "it broke")
    root.vsp.face.revoke(1, "again")
    root.vsp.face.revoke(99, "never there")
    assert guest.awaits(wire.RescindChannelOffer).relid == relid
    assert root.log.count(f"vm1: channel {relid} revoked: it broke") == 1
    root.vsp.offer(1, "vm1")
    again = guest.awaits(wire.OfferChannel)     # behind the rescind; the guest has not let go of the old one yet
    assert (again.instance, again.relid == relid) == (uuid.UUID(int=1).bytes_le, False)
    assert guest.open(again.relid) == 0
    guest.post(wire.RelidReleased(relid))
    root.vsp.face.revoke(1, "the new one")
    assert guest.awaits(wire.RescindChannelOffer).relid == again.relid


@pytest.mark.parametrize(("interface", "instance", "user_data"), [
    (b"", INTERFACE, b""), (INTERFACE, bytes(15), b""), (INTERFACE, INTERFACE, bytes(121)),
])
def test_an_offer_of_another_shape_is_counted_and_not_made(
    root: Root, interface: bytes, instance: bytes, user_data: bytes
) -> None:
    root.vsp.face.offer(1, "vm1", interface, instance, user_data)
    root.vsp.offer(2, "vm1")
    root.vsp.offer(2, "vm1")    # the same key twice
    guest = root.guest("vm1")
    guest.contact()
    guest.awaits(wire.OfferChannel)
    guest.awaits(wire.AllOffersDelivered)
    assert root.counters()["strange_messages"] == 2


def test_a_dead_guest_lets_go_of_everything_it_had(root: Root) -> None:
    root.vsp.offer(1, "vm1")
    guest = root.guest("vm1")
    guest.contact()
    assert guest.open(guest.awaits(wire.OfferChannel).relid) == 0
    root.wires.apply(root.wires.hypervisor.died(guest.pid))
    root.provider.peer_died("vm1", 1)
    root.provider.peer_died("vm1", 1)
    root.wires.settle()
    assert root.vsp.asked[-1] == ("close", 1)
    assert root.vsp.gone == [(guest.partition, "vm1")]
    assert root.counters()["connections"] == 0
    other = root.guest("vm1")                   # the VM starts again, in a partition of its own
    other.contact()
    assert other.open(other.awaits(wire.OfferChannel).relid) == 0
    assert [asked[0] for asked in root.vsp.asked] == ["open", "close", "open"]


def test_a_partition_that_never_ran_gives_its_devices_to_the_next_one_of_its_vm(root: Root) -> None:
    root.vsp.offer(1, "vm1")
    root.attach("vm1")                          # management dies before it starts it
    guest = root.guest("vm1")
    guest.contact()
    assert guest.open(guest.awaits(wire.OfferChannel).relid) == 0
    assert root.counters()["connections"] == 1


def test_a_guest_outlives_the_word_of_the_death_of_the_one_before(root: Root) -> None:
    root.vsp.offer(1, "vm1")
    first, second = root.attach("vm1"), root.guest("vm1")
    root.provider.peer_died("vm1", 1, first)    # it was slow
    second.contact()
    assert second.open(second.awaits(wire.OfferChannel).relid) == 0
    root.provider.peer_died("vm1", 2, second.partition)
    root.wires.settle()
    assert root.vsp.asked[-1] == ("close", 1)


def test_what_is_attached_twice_stays_what_it_is(root: Root) -> None:
    root.vsp.offer(1, "vm1")
    guest = root.guest("vm1")
    guest.contact()
    relid = guest.awaits(wire.OfferChannel).relid
    ports = root.wires.hypervisor.stats().ports
    root.provider.attach(guest.partition, "vm1", "child")
    root.wires.settle()
    assert guest.open(relid) == 0
    assert (root.wires.hypervisor.stats().ports, root.counters()["refused"]) == (ports, 0)


def test_a_provider_that_did_not_attach_a_guest_is_told_when_it_starts(root: Root) -> None:
    partition = root.attach("vm1")
    root.wires.end(hv.PARTITION_ROOT)
    after = Root(root.wires)
    assert root.wires.result(Task(root.wires.loop, after.provider.prepare([], again=True)))
    after.vsp.offer(1, "vm1")
    guest = Guest(root.wires, partition)
    kinds: list[int] = []
    decoding, guest.vp.on_message = guest.vp.on_message, lambda sint, message: kinds.append(message.kind)
    refused = guest.vp.post(hv.CONNECTION_VMBUS, hv.MESSAGE_VMBUS, b"too early")
    assert root.wires.result(refused) is hv.HvStatus.INVALID_CONNECTION_ID
    for _ in range(2):                          # the second time it knows
        after.provider.started(partition, "vm1", "child")
        root.wires.settle()
    assert kinds == [hv.MESSAGE_PARENT_BACK]
    guest.vp.on_message = decoding
    guest.contact()
    assert guest.open(guest.awaits(wire.OfferChannel).relid) == 0


def test_management_hears_of_a_parent_that_is_not_the_first(root: Root) -> None:
    management = root.wires.processor(hv.PARTITION_ROOT, 1)
    kinds: list[int] = []
    management.on_message = lambda sint, message: kinds.append(message.kind)
    root.wires.result(Wiring(management).wire_provider())
    assert root.wires.result(Task(root.wires.loop, root.provider.prepare([])))
    assert root.wires.result(Task(root.wires.loop, root.provider.prepare([], again=True)))
    assert root.wires.loop.run_until(lambda: bool(kinds), 5.0)
    root.wires.settle()
    assert kinds == [hv.MESSAGE_PARENT_BACK]


def test_a_dead_guest_whose_vsp_answers_late_ends_when_it_has(root: Root) -> None:
    root.vsp.offer(1, "vm1")
    guest = root.guest("vm1")
    guest.contact()
    relid = guest.awaits(wire.OfferChannel).relid
    root.vsp.patient = False
    guest.post(wire.OpenChannel(relid, 1, 0, 0, 0, b""))
    assert root.wires.loop.run_until(lambda: bool(root.vsp.asked), 5.0)
    root.provider.peer_died("vm1", 1)
    other = root.guest("vm1")
    other.contact()
    other.awaits(wire.AllOffersDelivered)
    assert root.counters()["channels"] == 1     # the driver may still write for the one that is dead
    for ticket in range(10):    # one of them is the awaited one
        root.vsp.face.opened(1, ticket, True)
        root.vsp.face.closed(1, ticket)
    for ticket in range(10):
        root.vsp.face.closed(1, ticket)
    assert root.vsp.asked[-1] == ("close", 1)
    root.vsp.patient = True
    assert other.open(other.awaits(wire.OfferChannel).relid) == 0
    assert root.counters()["channels"] == 1


def test_a_guest_may_contact_again_and_finds_its_devices_closed_and_offered(root: Root) -> None:
    root.vsp.offer(1, "vm1")
    guest = root.guest("vm1")
    for _ in range(3):
        guest.contact()
        assert guest.open(guest.awaits(wire.OfferChannel).relid) == 0
    assert [asked[0] for asked in root.vsp.asked] == ["open", "close", "open", "close", "open"]


def test_a_guest_that_does_not_take_its_messages_is_bounded(root: Root) -> None:
    partition = root.attach("vm1")
    guest = Guest(root.wires, partition)
    root.wires._handlers[partition, 0] = lambda frames: None      # it reads nothing
    port = root.wires.hypervisor.partitions[1].ports[FIRST_PARTITION_PORT + partition]
    for _ in range(2 * MAX_BACKLOG):
        block = wire.InitiateContact(NEWEST, 0, 2, 0, 0).encode()
        head = hv.POST_MESSAGE.pack(hv.CONNECTION_VMBUS, 0, hv.MESSAGE_VMBUS, len(block))
        guest.vp.call(hv.Code.POST_MESSAGE, head + block)
        root.wires.settle()
    assert port.in_use == 0
    assert root.counters()["refused"] > MAX_BACKLOG // 2
    assert sum("refused" in line for line in root.log) == LOGGED_REFUSALS
    other = root.guest("vm2")
    other.contact()


def test_messages_before_the_process_is_known_wait_and_keep_their_order(root: Root) -> None:
    root.vsp.offer(1, "vm1")
    guest = root.guest("vm1")
    guest.post(wire.InitiateContact(NEWEST, 0, 2, 0, 0), wire.RequestOffers(), wire.OpenChannel(1, 5, 0, 0, 0, b""))
    assert guest.awaits(wire.OpenChannelResult).status == 0
    assert root.vsp.asked == [("open", 1, guest.pid, 5)]


def test_a_message_from_nobody_known_is_counted(root: Root) -> None:
    partition = root.attach("vm1")
    guest = Guest(root.wires, partition)
    for kind in (hv.MESSAGE_CONTROL, 7):
        guest.vp.post(hv.CONNECTION_VMBUS, kind, b"\x92\xa6revoke\x01")
    root.wires.settle()
    assert root.counters()["strange_messages"] == 2


# -- a VSP in a partition of its own ----------------------------------------------------------------------


class FarVsp:
    """A VSP's partition: its proxy of the provider, and what it was asked, undecoded."""

    def __init__(self, root: Root, name: str) -> None:
        self.partition = root.attach(name, "vsp")
        self.vp = root.wires.processor(self.partition)
        self.asked: list[bytes] = []
        self.vp.on_message = lambda sint, message: self.asked.append(message.payload)
        self.provider = RemoteProvider(lambda payload: self.vp.post(CONTROL_PORT, hv.MESSAGE_CONTROL, payload))
        self.provider.hello(1)

    def offer(self, instance: int) -> None:
        self.provider.offer(1, "vm1", INTERFACE, uuid.UUID(int=instance).bytes_le, b"endpoint")

    def dies(self, root: Root) -> None:
        root.wires.apply(root.wires.hypervisor.died(root.wires.hypervisor.partitions[self.partition].vps[0]))

    def comes_back(self, root: Root, incarnation: int) -> None:
        self.vp = root.wires.processor(self.partition)
        self.asked.clear()
        self.vp.on_message = lambda sint, message: self.asked.append(message.payload)
        self.provider.hello(incarnation)


def test_a_far_vsp_offers_and_is_asked_by_messages(root: Root) -> None:
    far = FarVsp(root, "netvsp")
    guest = root.guest("vm1")
    far.provider.offer(1, "vm1", INTERFACE, uuid.UUID(int=5).bytes_le, b"endpoint")
    guest.contact()
    relid = guest.awaits(wire.OfferChannel).relid
    guest.post(wire.OpenChannel(relid, 1, 0, 0, 0, b""))
    assert root.wires.loop.run_until(lambda: bool(far.asked), 5.0)
    assert b"open" in far.asked[0]


def test_a_hello_brings_offers_along_and_nothing_else(root: Root) -> None:
    far = FarVsp(root, "netvsp")
    guest = root.guest("vm1")
    guest.contact()
    offer = encode("offer", 1, "vm1", INTERFACE, uuid.UUID(int=5).bytes_le, b"endpoint")
    before = root.provider.stats()["counters"]["strange_messages"]
    far.provider.hello(2, [encode("revoke", 1, "no"), offer, b""])
    assert guest.awaits(wire.OfferChannel).instance == uuid.UUID(int=5).bytes_le
    assert root.provider.stats()["counters"]["strange_messages"] == before + 2


def test_the_death_of_a_far_vsp_rescinds_its_devices_and_leaves_the_others(root: Root) -> None:
    far = FarVsp(root, "netvsp")
    root.vsp.offer(1, "vm1")
    guest = root.guest("vm1")
    guest.contact()
    near = guest.awaits(wire.OfferChannel).relid
    far.provider.offer(1, "vm1", INTERFACE, uuid.UUID(int=5).bytes_le, b"endpoint")
    gone = guest.awaits(wire.OfferChannel).relid
    guest.post(wire.OpenChannel(gone, 1, 0, 0, 0, b""))    # never answered
    assert root.wires.loop.run_until(lambda: bool(far.asked), 5.0)
    root.provider.peer_died("netvsp", 1)
    assert guest.awaits(wire.RescindChannelOffer).relid == gone
    assert guest.open(near) == 0


@pytest.mark.parametrize("told_late", [False, True])
def test_a_far_vsp_that_comes_back_is_offered_and_asked_again(root: Root, told_late: bool) -> None:
    """The machine's word of the death and the new incarnation's first word go different ways."""
    far = FarVsp(root, "netvsp")
    guest = root.guest("vm1")
    guest.contact()
    far.offer(5)
    relid = guest.awaits(wire.OfferChannel).relid
    guest.post(wire.OpenChannel(relid, 1, 0, 0, 0, b""))
    assert root.wires.loop.run_until(lambda: bool(far.asked), 5.0)
    far.dies(root)
    if not told_late:
        root.provider.peer_died("netvsp", 1)
    far.comes_back(root, 2)
    far.offer(5)
    assert guest.awaits(wire.RescindChannelOffer).relid == relid
    root.provider.peer_died("netvsp", 1)
    again = guest.awaits(wire.OfferChannel)
    assert again.instance == uuid.UUID(int=5).bytes_le
    guest.post(wire.OpenChannel(again.relid, 2, 0, 0, 0, b""))
    guest.post(wire.RelidReleased(relid))
    assert root.wires.loop.run_until(lambda: bool(far.asked), 5.0)
    assert b"open" in far.asked[0]


@pytest.mark.parametrize(("devices", "deaths"), [(33, 1), (2, 32)])
def test_a_guest_that_lets_go_of_nothing_has_no_room_and_gets_all_on_a_new_contact(
    root: Root, devices: int, deaths: int
) -> None:
    keys = range(1, devices + 1)
    guest = root.guest("vm1")
    for key in keys:
        root.vsp.offer(key, "vm1")
    guest.contact()
    for _ in range(deaths):
        for key in keys:
            root.vsp.face.revoke(key, "died")
        for key in keys:
            root.vsp.offer(key, "vm1")
        root.wires.settle()
    guest.seen.clear()
    guest.post(wire.InitiateContact(NEWEST, 0, 2, 0, 0), wire.RequestOffers())
    guest.awaits(wire.VersionResponse)
    offers = [guest.awaits(wire.OfferChannel) for _ in keys]
    assert sorted(offer.instance for offer in offers) == sorted(uuid.UUID(int=key).bytes_le for key in keys)
    assert all(guest.open(offer.relid) == 0 for offer in offers)
    assert root.counters()["refused"] == 0


def test_nothing_counts_that_a_dead_incarnation_of_a_vsp_had_said(root: Root) -> None:
    far = FarVsp(root, "netvsp")
    root.wires.settle()
    root.provider.peer_died("netvsp", 1)
    before = root.counters()["strange_messages"]
    far.offer(5)            # it was under way
    far.provider.hello(1)   # and so was this
    root.wires.settle()
    guest = root.guest("vm1")
    guest.contact()
    guest.awaits(wire.AllOffersDelivered)
    assert guest.seen == []
    assert root.counters()["strange_messages"] == before + 2


def test_a_new_provider_finds_the_guests_and_vsps_that_run(root: Root) -> None:
    far = FarVsp(root, "netvsp")
    guest = root.guest("vm1")
    guest.contact()
    guest.awaits(wire.AllOffersDelivered)
    kinds: list[int] = []
    guest.vp.on_message = lambda sint, message: kinds.append(message.kind)
    far.vp.on_message = guest.vp.on_message
    root.wires.apply(root.wires.hypervisor.died(root.wires.hypervisor.partitions[1].vps[0]))
    root.wires.settle()
    assert kinds == [hv.MESSAGE_PARENT_RESET] * 2
    new = Root(root.wires)
    new.vsp.offer(1, "vm1")
    running = [(far.partition, "netvsp", "vsp"), (guest.partition, "vm1", "child")]
    assert root.wires.result(Task(root.wires.loop, new.provider.prepare(running)))
    root.wires.settle()
    assert kinds[2:] == [hv.MESSAGE_PARENT_BACK] * 2
    guest.vp.on_message = lambda sint, message: guest.seen.append(wire.decode_from_host(message.payload, NEWEST))
    guest.contact()
    assert guest.open(guest.awaits(wire.OfferChannel).relid) == 0
    far.provider.hello(1)
    far.offer(5)
    assert guest.awaits(wire.OfferChannel).instance == uuid.UUID(int=5).bytes_le
