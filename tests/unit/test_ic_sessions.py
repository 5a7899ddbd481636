"""Both ends of an integration component's channel against each other, over all pairs of generations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from partitions.child.ic_session import IcDevice
from partitions.parent.ic_session import Answer, IcSession, State
from vmbus_emu.channel import channel_pair, deliver_all
from vmbus_emu.protocol import ic
from vmbus_emu.protocol.ic import Component, Kind, Message, Offered, Status, Version
from vmbus_emu.protocol.packets import COMPLETION, IN_BAND

GENERATIONS: list[Version | None] = [None, (3, 0), (1, 0)]
Echo = Callable[[bytes, Version, Callable[[int, bytes], Any]], Any]


def echo(body: bytes, version: Version, respond: Callable[[int, bytes], Any]) -> None:
    respond(Status.OK, body[::-1])


class Pair:
    """A host and a guest with a channel between them."""

    def __init__(
        self, component: Component = ic.KVP, host: Version | None = None, guest: Version | None = None,
        service: Echo = echo, room: int = 512,
    ) -> None:
        self.near, self.far = channel_pair(room)
        self.told = 0
        self.gone = 0
        self.lines: list[str] = []
        self.failed: dict[str, str] = {}
        self.near.on_failed = lambda reason: self.failed.__setitem__("host's", reason)
        self.far.on_failed = lambda reason: self.failed.__setitem__("guest's", reason)
        self.host = IcSession(self.near, component, self._on_state, host)
        self.guest = IcDevice(component, service, self.lines.append, guest, self._on_gone)
        self.attached = self.guest.attach(self.far)

    def _on_state(self) -> None:
        self.told += 1

    def _on_gone(self) -> None:
        self.gone += 1

    def run(self) -> None:
        deliver_all(self.near, self.far)

    def up(self) -> Pair:
        assert self.host.begin()
        self.run()
        assert self.host.state is State.READY
        return self

    def say(self, message: Message) -> None:
        """The guest says something of its own."""
        self.far.send(IN_BAND, 0, 0, ic.encode(message))
        self.run()

    def ask(self, message: Message) -> None:
        """The host does."""
        self.near.send(IN_BAND, 0, 0, ic.encode(message))
        self.run()


@pytest.mark.parametrize("component", ic.COMPONENTS.values(), ids=lambda one: one.name)
@pytest.mark.parametrize("host", GENERATIONS)
@pytest.mark.parametrize("guest", GENERATIONS)
def test_the_newest_version_that_both_speak_is_agreed_on(
    component: Component, host: Version | None, guest: Version | None
) -> None:
    pair = Pair(component, host, guest).up()
    old = (1, 0) in (host, guest)
    assert pair.host.framework == pair.guest.framework == ((1, 0) if old else (3, 0))
    assert pair.host.version == pair.guest.version == component.versions[-1 if old else 0]
    assert pair.attached.result() is True
    assert pair.told == 1
    answers: list[Answer | None] = []
    assert pair.host.request(b"abc", answers.append)
    pair.run()
    assert answers == [Answer(0, b"cba")]


def test_without_a_common_version_the_channel_stays_and_is_of_no_use() -> None:
    pair = Pair()
    pair.host._offered = Offered(((9, 9),), ((9, 9),))
    assert pair.host.begin()
    pair.run()
    assert (pair.host.state, pair.told, pair.attached.result()) == (State.REFUSED, 1, True)
    assert not pair.host.request(b"", lambda answer: None)
    assert not pair.near.closed
    assert "no version in common" in pair.lines[0]


def test_a_host_that_finds_nobody_connected_tries_again() -> None:
    pair = Pair(room=0)
    assert not pair.host.begin()
    assert pair.near.failed is None


def test_answers_find_their_requests_in_any_order_and_more_are_refused() -> None:
    responds: list[Callable[[int, bytes], Any]] = []
    pair = Pair(service=lambda body, version, respond: responds.append(respond)).up()
    answers: dict[int, Answer | None] = {}
    for number in range(32):
        assert pair.host.request(b"%d" % number, lambda answer, number=number: answers.update({number: answer}))
    assert not pair.host.request(b"", lambda answer: None), "so much is unanswered"
    pair.run()
    for number in reversed(range(32)):
        responds[number](Status.FAIL, b"%d" % number)
        responds[number](Status.OK, b"a second answer is none")
    pair.run()
    assert answers == {number: Answer(Status.FAIL, b"%d" % number) for number in range(32)}
    assert pair.failed == {}
    for _ in range(600):
        assert pair.host.request(b"", lambda answer: None), "numbers come round"
        pair.run()
        responds[-1](Status.OK, b"")
        pair.run()


def test_whoever_waits_hears_of_the_end() -> None:
    pair = Pair(service=lambda body, version, respond: None).up()
    answers: list[Answer | None] = []
    assert pair.host.request(b"", answers.append)
    pair.host.close()
    assert answers == [None]
    assert not pair.host.request(b"", answers.append)


def test_an_answer_that_finds_no_room_waits_for_it() -> None:
    responds: list[Callable[[int, bytes], Any]] = []
    pair = Pair(service=lambda body, version, respond: responds.append(respond), room=1).up()
    answers: list[Answer | None] = []
    for _ in range(3):
        assert pair.host.request(b"x", answers.append)
        pair.far.deliver()
    for respond in responds:
        respond(Status.OK, b"y")
    for expected in (1, 2, 3):
        pair.near.deliver()
        assert len(answers) == expected
        pair.far.on_room()


CHOICE = ic.encode_versions(Offered(((3, 0),), ((5, 0),)))


@pytest.mark.parametrize(("body", "transaction", "flags"), [
    (CHOICE, 1, ic.RESPONSE), (CHOICE, 0, ic.REQUEST), (CHOICE, 0, 0), (CHOICE[:-1], 0, ic.RESPONSE),
    (ic.encode_versions(Offered(((3, 0), (1, 0)), ((5, 0),))), 0, ic.RESPONSE),
    (ic.encode_versions(Offered(((3, 0),), ((9, 0),))), 0, ic.RESPONSE),
    (ic.encode_versions(Offered(((9, 0),), ((5, 0),))), 0, ic.RESPONSE),
])  # fmt: skip
def test_a_wrong_choice_ends_the_channel(body: bytes, transaction: int, flags: int) -> None:
    pair = Pair()
    pair.say(Message((0, 0), Kind.NEGOTIATE, (0, 0), 0, transaction, flags, body))
    assert set(pair.failed) == {"host's"}


def test_what_comes_before_the_choice_is_dropped_and_counted() -> None:
    pair = Pair()
    pair.say(Message((3, 0), Kind.KVP, (5, 0), 0, 1, ic.RESPONSE, b""))
    assert (pair.host.dropped, pair.failed) == (1, {})
    pair.up()


@pytest.mark.parametrize(("kind", "transaction", "flags"), [
    (Kind.KVP, 9, ic.RESPONSE), (Kind.VSS, 1, ic.RESPONSE), (Kind.KVP, 1, ic.REQUEST), (Kind.KVP, 0, ic.RESPONSE),
])  # fmt: skip
def test_an_answer_to_nothing_ends_the_channel_and_no_other_answer_is_believed(
    kind: Kind, transaction: int, flags: int
) -> None:
    pair = Pair(service=lambda body, version, respond: None).up()
    answers: list[Answer | None] = []
    assert pair.host.request(b"", answers.append)
    pair.say(Message((3, 0), kind, (5, 0), 0, transaction, flags, b""))
    assert set(pair.failed) == {"host's"}
    assert answers == []


@pytest.mark.parametrize("kind", [COMPLETION, IN_BAND])
def test_a_packet_that_is_no_message_ends_the_channel_at_either_end(kind: int) -> None:
    for end in ("near", "far"):
        pair = Pair().up()
        getattr(pair, end).send(kind, 0, 0, b"garbage")
        pair.run()
        assert set(pair.failed) == {"guest's" if end == "near" else "host's"}


def test_a_guest_answers_no_request_before_versions_and_refuses_a_foreign_kind() -> None:
    pair = Pair()
    pair.ask(Message((3, 0), Kind.KVP, (5, 0), 0, 1, ic.REQUEST, b""))
    assert set(pair.failed) == {"guest's"}
    pair = Pair().up()
    seen: list[Any] = []
    pair.near.on_packet = lambda *packet: seen.append(ic.decode(packet[3]))
    pair.ask(Message((3, 0), Kind.VSS, (5, 0), 0, 1, ic.REQUEST, b"x"))
    assert [(one.status, one.transaction, one.flags) for one in seen] == [(Status.NOT_SUPPORTED, 1, ic.RESPONSE)]


def test_a_detached_guest_says_so_once_and_answers_nothing_late() -> None:
    responds: list[Callable[[int, bytes], Any]] = []
    pair = Pair(service=lambda body, version, respond: responds.append(respond)).up()
    assert pair.host.request(b"", lambda answer: None)
    pair.run()
    pair.guest.detach()
    pair.guest.detach()
    responds[0](Status.OK, b"")
    assert pair.near.deliver() == 0
    assert (pair.gone, pair.guest.version) == (1, (0, 0))
