"""The guest's bus driver against a host that is a real server and answers when it is told to. No process, no socket."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from partitions.child import bus as module
from partitions.child.bus import BusDriver
from partitions.child.ic_session import IcDevice
from partitions.child.links import RECEIVE, RING, Links
from partitions.child.netvsc import NetVsc
from vmbus_emu.loop import Loop
from vmbus_emu.protocol import guids
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.ic import HEARTBEAT
from vmbus_emu.task import Future
from vmbus_emu.vmbus import effects as fx
from vmbus_emu.vmbus.server import Connection

DISK, NIC, BEAT = uuid.UUID(int=1), uuid.UUID(int=2), uuid.UUID(int=3)
DEADLINE = 5.0


class Device:
    """A disk that is there as soon as it has a channel."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.resubmitted = 0
        self.state = "new"

    def attach(self, *channel: Any) -> Future[bool]:
        self.state = "attached"
        attached: Future[bool] = Future()
        attached.resolve(True)
        return attached

    def detach(self) -> None:
        self.state = "detached"

    def give_up(self) -> None:
        self.state = "given up"


class Nic(NetVsc):
    """The same, as a NIC."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop, "nic0", lambda line: None)
        self.state = "new"

    attach = Device.attach      # type: ignore[assignment]
    detach = Device.detach
    give_up = Device.give_up


class Component(IcDevice):
    """The same, as an integration component."""

    def __init__(self) -> None:
        super().__init__(HEARTBEAT, lambda *request: None, lambda line: None)
        self.state = "new"

    attach = Device.attach      # type: ignore[assignment]
    detach = Device.detach
    give_up = Device.give_up


class RingLike(Links):
    """Lends rings, and counts what is forgotten."""

    disk_needs = (RING,)
    nic_needs = (RECEIVE, RING)

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop, SimpleNamespace(), "", {"storvsp": 1 << 32, "netvsp": 1 << 33, "ic": 3 << 32})
        self.forgotten: list[int] = []

    def connect(self, *wanted: Any) -> Any:
        return SimpleNamespace(close=lambda: None, on_failed=None)

    def forget(self, offer: Any) -> None:
        self.forgotten.append(offer.connection_id)


class World:
    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.server = Connection(require_ring_gpadl=True)
        self.takes = self.answers = True
        self.asked: list[fx.Effect] = []
        self.events: list[str] = []
        self.posted: list[str] = []
        self.disk, self.nic, self.links = Device("disk0"), Nic(loop), RingLike(loop)
        self.component = Component()
        vp: Any = SimpleNamespace(post=self._post, on_message=None, disconnect=lambda connection: None)
        disks: Any = {DISK.bytes_le: self.disk}
        self.bus = BusDriver(
            loop, self.links, vp, disks, {NIC.bytes_le: self.nic}, {BEAT.bytes_le: self.component}, None,
            lambda line: None, lambda ok, why: self.events.append("ready" if ok else why),
            lambda what, name, count: None,
        )  # fmt: skip
        self.relids = {name: self.offer(name) for name in ("disk", "nic")}
        self.bus.start()

    def offer(self, name: str) -> int:
        interface, instance = {
            "disk": (guids.SCSI, DISK), "nic": (guids.NETWORK, NIC), "heartbeat": (guids.HEARTBEAT, BEAT),
        }[name]  # fmt: skip
        relid, effects = self.server.offer(fx.Offer(interface, instance, b"x", connection_id=7))
        self.do(effects)
        return relid

    def again(self, name: str) -> None:
        """Its VSP died, and the next one offers the device."""
        self.do(self.server.revoke(self.relids[name]))
        self.relids[name] = self.offer(name)

    def _post(self, connection: int, kind: int, payload: bytes) -> Future[hv.HvStatus]:
        self.loop.call_soon(lambda: self.do(self.server.receive(payload)))
        return Future()

    def do(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            match effect:
                case fx.Send(payload):
                    message = hv.SynicMessage(hv.MESSAGE_VMBUS, 1, payload)
                    self.loop.call_soon(self.bus._message, hv.SINT_VMBUS, message)
                case fx.AcceptGpadl() | fx.OpenDevice():
                    self.asked.append(effect)
                    if self.answers:
                        self.answer(effect)
                case fx.CloseDevice(relid, ticket):
                    self.do(self.server.device_closed(relid, ticket))
                case fx.TearDownGpadl(relid, gpadl, ticket):
                    self.do(self.server.gpadl_torn_down(relid, gpadl, ticket))

    def answer(self, asked: Any) -> None:
        if isinstance(asked, fx.AcceptGpadl):
            self.do(self.server.gpadl_accepted(asked.relid, asked.gpadl, asked.ticket, self.takes))
        else:
            lent = self.server.gpadls.state(asked.relid, asked.request.ring_gpadl) is not None
            self.do(self.server.device_opened(asked.relid, asked.ticket, lent))

    def until(self, condition: Callable[[], bool]) -> None:
        assert self.loop.run_until(condition, DEADLINE)

    def settle(self) -> None:
        for _ in range(50):
            self.loop.step(0.0)


@pytest.fixture
def world(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(module, "_FINAL_AFTER_S", 0.02)
    made = World(loop)
    made.until(lambda: made.events == ["ready"])
    made.asked.clear()
    return made


def kinds(world: World) -> list[str]:
    return [type(effect).__name__ for effect in world.asked]


def test_a_device_that_was_there_before_is_opened_without_waiting_for_its_memory(world: World) -> None:
    world.answers = False
    world.again("disk")
    world.settle()
    assert kinds(world) == ["AcceptGpadl", "OpenDevice"]
    for asked in world.asked:
        world.answer(asked)
    world.until(lambda: world.disk.state == "attached")


def test_nics_let_the_disks_go_first_but_not_for_ever(world: World) -> None:
    world.answers = False
    world.again("disk")
    world.again("nic")
    world.settle()
    assert {effect.relid for effect in world.asked} == {world.relids["disk"]}  # type: ignore[union-attr]
    world.until(lambda: len(world.asked) == 5)      # receive buffer, ring and open
    assert {effect.relid for effect in world.asked[2:]} == {world.relids["nic"]}  # type: ignore[union-attr]


def test_memory_that_is_refused_once_is_lent_again(world: World) -> None:
    for name, device in (("disk", world.disk), ("nic", world.nic)):
        world.takes = False
        world.again(name)
        world.settle()
        assert device.state == "detached"
        world.takes = True
        world.until(lambda device=device: device.state == "attached")   # type: ignore[misc]
    assert set(world.events) == {"ready"}


def test_what_was_handed_over_for_a_channel_that_goes_is_forgotten(world: World) -> None:
    world.answers = False
    world.again("disk")
    world.settle()
    before = len(world.links.forgotten)
    world.answers = True
    world.again("disk")
    world.until(lambda: world.disk.state == "attached")
    assert world.links.forgotten[before:] == [7]


@pytest.mark.parametrize("opening", [False, True])
def test_a_device_may_be_given_up_at_any_moment(world: World, opening: bool) -> None:
    if opening:
        world.answers = False
        world.again("disk")
        world.settle()
    world.bus.abandon("storvsp")
    assert world.disk.state == "given up"
    for asked in list(world.asked):
        world.answer(asked)
    world.settle()
    assert world.disk.state == "given up"


def test_the_host_hears_only_later_that_a_rescinded_channel_is_let_go(world: World) -> None:
    old = world.relids["disk"]
    world.again("disk")
    world.settle()
    assert (world.disk.state, old in world.server.relids) == ("attached", True)
    world.until(lambda: old not in world.server.relids)


def test_integration_components_let_disks_and_nics_go_first_and_nobody_waits_for_them(world: World) -> None:
    world.answers = False
    world.relids["heartbeat"] = world.offer("heartbeat")
    world.settle()
    assert kinds(world) == ["AcceptGpadl", "OpenDevice"], "nothing else is on its way up"
    world.asked.clear()
    world.again("disk")
    world.again("heartbeat")
    world.settle()
    assert {effect.relid for effect in world.asked} == {world.relids["disk"]}  # type: ignore[union-attr]
    for asked in list(world.asked):
        world.answer(asked)
    world.until(lambda: world.disk.state == "attached")
    world.until(lambda: world.asked[-1].relid == world.relids["heartbeat"])  # type: ignore[union-attr]
    assert set(world.events) == {"ready"}


def test_giving_up_a_disk_leaves_integration_components_alone(world: World) -> None:
    world.relids["heartbeat"] = world.offer("heartbeat")
    world.until(lambda: world.component.state == "attached")
    world.bus.abandon("storvsp")
    assert (world.disk.state, world.component.state) == ("given up", "attached")
