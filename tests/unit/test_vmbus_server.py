"""The server's end of VMBus: every row of protocol sheet 2.4 and 2.5, and what a guest must not achieve.

Long, because all of it drives one bench, which knows the legal way to every state.
"""

from __future__ import annotations

import uuid
from typing import Any, TypeVar

import pytest

from vmbus_emu.protocol.vmbus import (
    MESSAGES,
    NEGOTIABLE,
    NEWEST,
    STATUS_FAILED,
    AllOffersDelivered,
    CloseChannel,
    Direction,
    GpadlBody,
    GpadlCreated,
    GpadlHeader,
    GpadlTeardown,
    GpadlTornDown,
    InitiateContact,
    Malformed,
    Message,
    OfferChannel,
    OpenChannel,
    OpenChannelResult,
    RelidReleased,
    RequestOffers,
    RescindChannelOffer,
    Unload,
    UnloadResponse,
    Unsupported,
    Version,
    VersionResponse,
    contact_target,
    decode_from_host,
)
from vmbus_emu.vmbus.channel_states import (
    CHANNEL_STEPS,
    GPADL_STEPS,
    ChannelEvent,
    ChannelState,
    ConnectionState,
    GpadlEvent,
    GpadlState,
)
from vmbus_emu.vmbus.effects import (
    AcceptGpadl,
    CloseDevice,
    Contacted,
    Disconnected,
    Effect,
    Freed,
    Limits,
    Offer,
    OpenDevice,
    Refused,
    Send,
    TearDownGpadl,
    Unloaded,
    VersionRefused,
)
from vmbus_emu.vmbus.gpadl import contiguous, encode_gpadl
from vmbus_emu.vmbus.server import Connection

S, E = ChannelState, ChannelEvent
T = TypeVar("T")
DISK = uuid.UUID(int=0xD15C)
OPEN = OpenChannel(1, 77, 0, 0, 0, b"")


def disk(instance: int = 1, **more: Any) -> Offer:
    return Offer(DISK, uuid.UUID(int=instance), b"disk", **more)


def contact(version: int = NEWEST) -> bytes:
    return InitiateContact(version, 0, contact_target(2) if version >= Version.V5_0 else 0x1000, 0, 0).encode()


def sent(effects: list[Effect]) -> list[Message]:
    """The messages to the guest, decoded."""
    messages: list[Message] = []
    for effect in effects:
        if isinstance(effect, Send):
            message = decode_from_host(effect.payload, NEWEST)
            assert not isinstance(message, (Malformed, Unsupported))
            messages.append(message)
    return messages


def state_of(connection: Connection) -> ConnectionState:
    return connection.state


def only(kind: type[T], effects: list[Effect]) -> T:
    """The one effect of a kind."""
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, effects
    return found[0]


def refused_only(effects: list[Effect]) -> bool:
    return len(effects) == 1 and isinstance(effects[0], Refused)


def connected(*offers: Offer, version: int = NEWEST, **settings: Any) -> Connection:
    """A connection whose guest has asked for offers. relids are 1, 2, ... in the order of ``offers``."""
    connection = Connection(**settings)
    for offer in offers:
        connection.offer(offer)
    connection.receive(contact(version))
    connection.receive(RequestOffers().encode())
    return connection


class Bench:
    """A connection with one channel, relid 1, and a note of every question the device still owes an answer to."""

    def __init__(self, state: ChannelState = S.CLOSED, **settings: Any) -> None:
        self.connection = connected(disk(), **settings)
        self.ticket = 0
        self.gpadl_tickets: dict[int, int] = {}
        getattr(self, "to_" + state.name.lower())()
        assert self.state is state

    @property
    def state(self) -> ChannelState | None:
        return self.connection.channel_state(1)

    def note(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            if isinstance(effect, (OpenDevice, CloseDevice)):
                self.ticket = effect.ticket
            elif isinstance(effect, (AcceptGpadl, TearDownGpadl)):
                self.gpadl_tickets[effect.gpadl] = effect.ticket
        return effects

    def guest(self, message: Message) -> list[Effect]:
        return self.note(self.connection.receive(message.encode()))

    def create_gpadl(self, gpadl: int, pages: int = 4) -> list[Effect]:
        effects: list[Effect] = []
        for payload in encode_gpadl(1, gpadl, [contiguous(0x100, pages * 4096)]):
            effects += self.note(self.connection.receive(payload))
        return effects

    def gpadl_answer(self, gpadl: int, ok: bool = True) -> list[Effect]:
        return self.note(self.connection.gpadl_accepted(1, gpadl, self.gpadl_tickets[gpadl], ok))

    def gpadl_torn_down(self, gpadl: int) -> list[Effect]:
        return self.note(self.connection.gpadl_torn_down(1, gpadl, self.gpadl_tickets[gpadl]))

    def fire(self, event: ChannelEvent) -> list[Effect]:
        connection = self.connection
        match event:
            case E.OPEN:
                return self.guest(OPEN)
            case E.CLOSE:
                return self.guest(CloseChannel(1))
            case E.RELEASED:
                return self.guest(RelidReleased(1))
            case E.DEVICE_OPENED:
                return self.note(connection.device_opened(1, self.ticket, True))
            case E.DEVICE_OPEN_FAILED:
                return self.note(connection.device_opened(1, self.ticket, False))
            case E.DEVICE_CLOSED:
                return self.note(connection.device_closed(1, self.ticket))
            case E.REVOKE:
                return self.note(connection.revoke(1))
            case E.REOFFER:
                return self.note(connection.reoffer(1, b"again"))
            case E.OFFER:
                return self.note(connection.receive(RequestOffers().encode()))
            case E.RESET:
                return self.note(connection.receive(contact()))

    # The ways to each state, by legal steps only.

    def to_closed(self) -> None:
        pass

    def to_client_released(self) -> None:
        self.fire(E.RELEASED)

    def to_opening(self) -> None:
        self.fire(E.OPEN)

    def to_open(self) -> None:
        self.to_opening()
        self.fire(E.DEVICE_OPENED)

    def to_closing(self) -> None:
        self.to_open()
        self.fire(E.CLOSE)

    def to_closing_reopen(self) -> None:
        self.to_closing()
        self.fire(E.OPEN)

    def to_revoked(self) -> None:
        self.fire(E.REVOKE)

    def to_reoffered(self) -> None:
        self.to_revoked()
        self.fire(E.REOFFER)

    def to_closing_client_release(self) -> None:
        self.to_closing()
        self.fire(E.RELEASED)

    def to_opening_client_release(self) -> None:
        self.to_opening()
        self.fire(E.RESET)


# -- the channel table (sheet 2.5), typed in by hand -----------------------------------------------
# State: for each event that is legal in it, the state that follows; GONE: the channel ceases to exist.
GONE = None
EXPECTED: dict[ChannelState, dict[ChannelEvent, ChannelState | None]] = {
    S.CLIENT_RELEASED: {E.REVOKE: GONE, E.OFFER: S.CLOSED, E.RESET: S.CLIENT_RELEASED},
    S.CLOSED: {E.OPEN: S.OPENING, E.RELEASED: S.CLIENT_RELEASED, E.REVOKE: S.REVOKED, E.RESET: S.CLIENT_RELEASED},
    S.OPENING: {E.DEVICE_OPENED: S.OPEN, E.DEVICE_OPEN_FAILED: S.CLOSED, E.REVOKE: S.REVOKED,
                E.RESET: S.OPENING_CLIENT_RELEASE},
    S.OPEN: {E.CLOSE: S.CLOSING, E.REVOKE: S.REVOKED, E.RESET: S.CLOSING_CLIENT_RELEASE},
    S.CLOSING: {E.OPEN: S.CLOSING_REOPEN, E.RELEASED: S.CLOSING_CLIENT_RELEASE, E.DEVICE_CLOSED: S.CLOSED,
                E.REVOKE: S.REVOKED, E.RESET: S.CLOSING_CLIENT_RELEASE},
    S.CLOSING_REOPEN: {E.DEVICE_CLOSED: S.OPENING, E.REVOKE: S.REVOKED, E.RESET: S.CLOSING_CLIENT_RELEASE},
    S.REVOKED: {E.OPEN: S.REVOKED, E.CLOSE: S.REVOKED, E.RELEASED: GONE, E.REOFFER: S.REOFFERED, E.RESET: GONE},
    S.REOFFERED: {E.OPEN: S.REOFFERED, E.CLOSE: S.REOFFERED, E.RELEASED: S.CLOSED, E.REVOKE: S.REVOKED,
                  E.RESET: S.CLIENT_RELEASED},
    S.CLOSING_CLIENT_RELEASE: {E.DEVICE_CLOSED: S.CLIENT_RELEASED, E.REVOKE: GONE,
                               E.RESET: S.CLOSING_CLIENT_RELEASE},
    S.OPENING_CLIENT_RELEASE: {E.DEVICE_OPENED: S.CLOSING_CLIENT_RELEASE, E.DEVICE_OPEN_FAILED: S.CLIENT_RELEASED,
                               E.REVOKE: GONE, E.RESET: S.OPENING_CLIENT_RELEASE},
}
# What goes out, for those rows of the sheet that say so (nothing, for all others).
OUTPUT: dict[tuple[ChannelState, ChannelEvent], list[type[object]]] = {
    (S.CLOSED, E.OPEN): [OpenDevice],
    (S.OPENING, E.DEVICE_OPENED): [OpenChannelResult],
    (S.OPENING, E.DEVICE_OPEN_FAILED): [OpenChannelResult],
    (S.OPEN, E.CLOSE): [CloseDevice],
    (S.CLOSING_REOPEN, E.DEVICE_CLOSED): [OpenDevice],
    **{(state, E.REVOKE): [RescindChannelOffer]
       for state in (S.CLOSED, S.OPENING, S.OPEN, S.CLOSING, S.CLOSING_REOPEN)},
    (S.REOFFERED, E.RELEASED): [OfferChannel],
    (S.REVOKED, E.RELEASED): [Freed],
    (S.CLIENT_RELEASED, E.REVOKE): [Freed],
    (S.CLOSING_CLIENT_RELEASE, E.REVOKE): [Freed],
    (S.OPENING_CLIENT_RELEASE, E.DEVICE_OPENED): [CloseDevice],
    # A connection that waited for the device goes on.
    (S.OPENING_CLIENT_RELEASE, E.DEVICE_OPEN_FAILED): [VersionResponse, Contacted],
    (S.OPENING_CLIENT_RELEASE, E.REVOKE): [Freed, VersionResponse, Contacted],
    # A reset: what the device must do, else the next connection at once.
    **{(state, E.RESET): [VersionResponse, Contacted] for state in (S.CLIENT_RELEASED, S.CLOSED, S.REOFFERED)},
    (S.REVOKED, E.RESET): [Freed, VersionResponse, Contacted],
    (S.OPEN, E.RESET): [CloseDevice],
}
FIRED = [event for event in ChannelEvent if event is not E.OFFER]  # REQUESTOFFERS is a connection's matter


def kinds(effects: list[Effect]) -> list[type[object]]:
    messages = iter(sent(effects))
    return [type(next(messages)) if isinstance(effect, Send) else type(effect) for effect in effects]


def test_channel_table_is_the_sheets() -> None:
    table = {
        state: {event: steps[state].state for event, steps in CHANNEL_STEPS.items() if state in steps}
        for state in ChannelState
    }
    assert table == EXPECTED
    assert set(CHANNEL_STEPS) == set(ChannelEvent)


@pytest.mark.parametrize("event", FIRED, ids=lambda event: event.name)
@pytest.mark.parametrize("state", ChannelState, ids=lambda state: state.name)
def test_channel_event(state: ChannelState, event: ChannelEvent) -> None:
    bench = Bench(state)
    refused = bench.connection.stats().refused + bench.connection.stats().late_answers
    effects = bench.fire(event)
    if event in EXPECTED[state]:
        assert bench.state is EXPECTED[state][event]
        assert kinds(effects) == OUTPUT.get((state, event), [])
    else:
        assert bench.state is state
        assert effects == [] or refused_only(effects)
        assert bench.connection.stats().refused + bench.connection.stats().late_answers == refused + 1


def test_open_result_names_the_request_that_it_answers() -> None:
    bench = Bench(S.OPENING)
    assert sent(bench.fire(E.DEVICE_OPENED)) == [OpenChannelResult(1, 77, 0)]
    failing = Bench(S.OPENING)
    assert sent(failing.fire(E.DEVICE_OPEN_FAILED)) == [OpenChannelResult(1, 77, STATUS_FAILED)]


def test_reopen_while_closing_uses_the_newer_request() -> None:
    bench = Bench(S.CLOSING)
    bench.guest(OpenChannel(1, 78, 0, 3, 0, b"second"))
    opened = only(OpenDevice, bench.fire(E.DEVICE_CLOSED))
    assert (opened.request.open_id, opened.request.target_vp, opened.request.user_data[:6]) == (78, 3, b"second")
    assert sent(bench.fire(E.DEVICE_OPENED)) == [OpenChannelResult(1, 78, 0)]


def test_a_device_answer_counts_once() -> None:
    bench = Bench(S.OPENING)
    ticket = bench.ticket
    assert sent(bench.connection.device_opened(1, ticket, True)) == [OpenChannelResult(1, 77, 0)]
    assert bench.connection.device_opened(1, ticket, False) == []
    assert bench.state is S.OPEN
    assert bench.connection.stats().late_answers == 1


# -- the connection (sheet 2.4) --------------------------------------------------------------------


@pytest.mark.parametrize("version", NEGOTIABLE, ids=lambda version: version.name)
def test_contact_is_answered_in_the_form_of_its_version(version: Version) -> None:
    connection = Connection(message_connection_id=9)
    effects = connection.receive(contact(version))
    payload = only(Send, effects).payload
    selected = 9 if version >= Version.V5_0 else int(version)
    features = bytes(4) if version >= Version.V6_0 else b""
    assert payload == bytes([15, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]) + selected.to_bytes(4, "little") + features
    assert only(Contacted, effects) == Contacted(version, 0, 2, 0)
    assert connection.version == version


@pytest.mark.parametrize("version", [0, Version.V0_13, Version.V1_1, 0x00050004, 0x00070000, 0xFFFFFFFF])
def test_other_versions_are_refused_with_a_zero_response_of_16_bytes(version: int) -> None:
    connection = Connection()
    effects = connection.receive(contact(version))
    assert only(Send, effects).payload == bytes([15]) + bytes(15)
    assert only(VersionRefused, effects).version == version
    assert state_of(connection) is ConnectionState.DISCONNECTED


def test_version_steps_down_to_the_servers_newest() -> None:
    connection = Connection(max_version=Version.V5_0)
    answers = [sent(connection.receive(contact(version))) for version in NEGOTIABLE[:5]]
    assert answers == [[VersionResponse(0, 0, 0)]] * 4 + [[VersionResponse(1, 0, 1)]]


def test_nothing_but_contact_is_heard_without_a_connection() -> None:
    connection = Connection()
    connection.offer(disk())
    for row in MESSAGES:
        if row.number != 14 and row.direction is Direction.GUEST_TO_HOST:
            effects = connection.receive(bytes([row.number]) + bytes(239))
            assert refused_only(effects), row.name
    assert state_of(connection) is ConnectionState.DISCONNECTED


def test_offers_come_sorted_and_end_with_one_all_delivered() -> None:
    connection = Connection()
    second = uuid.UUID(int=DISK.int + 1)
    relids = [connection.offer(offer)[0] for offer in (
        Offer(second, uuid.UUID(int=1)), disk(2), disk(1, sub_channel_index=1), disk(1))]
    assert relids == [1, 2, 3, 4]
    connection.receive(contact())
    assert state_of(connection) is ConnectionState.CONNECTED
    messages = sent(connection.receive(RequestOffers().encode()))
    assert [message.relid for message in messages if isinstance(message, OfferChannel)] == [3, 4, 2, 1]
    assert messages[-1] == AllOffersDelivered()
    assert messages.count(AllOffersDelivered()) == 1
    assert refused_only(connection.receive(RequestOffers().encode()))
    assert state_of(connection) is ConnectionState.OFFERED


def test_offer_carries_what_the_vsp_said() -> None:
    connection = Connection()
    connection.offer(Offer(DISK, uuid.UUID(int=9), b"/run/x/1.2", 0x10, 0x2001, 0))
    connection.receive(contact())
    message = sent(connection.receive(RequestOffers().encode()))[0]
    assert isinstance(message, OfferChannel)
    assert (message.interface_guid, message.instance_guid) == (DISK, uuid.UUID(int=9))
    assert message.user_data.rstrip(b"\0") == b"/run/x/1.2"
    assert (message.flags, message.connection_id, message.relid) == (0x10, 0x2001, 1)
    assert (message.monitor_id, message.monitor_allocated, message.is_dedicated_interrupt) == (0xFF, 0, 1)


def test_hot_added_offer_is_sent_at_once_only_after_the_request() -> None:
    connection = Connection()
    assert connection.offer(disk(1)) == (1, [])
    connection.receive(contact())
    assert connection.offer(disk(2)) == (2, [])
    connection.receive(RequestOffers().encode())
    relid, effects = connection.offer(disk(3))
    assert relid == 3
    assert [type(message) for message in sent(effects)] == [OfferChannel]


def test_same_device_is_not_offered_twice() -> None:
    connection = Connection()
    connection.offer(disk())
    relid, effects = connection.offer(disk())
    assert relid == 0
    assert refused_only(effects)
    assert connection.offer(disk(sub_channel_index=1))[0] == 2


def test_device_may_be_offered_anew_while_the_guest_still_holds_the_old_one() -> None:
    connection = connected(disk())
    connection.revoke(1)
    relid, effects = connection.offer(disk())
    assert relid == 2
    assert kinds(effects) == [OfferChannel]


def test_channels_are_bounded() -> None:
    connection = Connection(limits=Limits(channels=2))
    assert [connection.offer(disk(number))[0] for number in range(3)] == [1, 2, 0]
    assert connection.relids == (1, 2)


def test_relid_is_reused_only_after_the_guest_let_go() -> None:
    connection = connected(disk(1), disk(2))
    connection.revoke(1)
    assert connection.offer(disk(3))[0] == 3
    assert only(Freed, connection.receive(RelidReleased(1).encode())).relid == 1
    assert connection.offer(disk(4))[0] == 1
    connection.revoke(2)
    assert Freed(2) in connection.receive(contact())
    assert connection.offer(disk(5))[0] == 2


def test_channel_that_a_guest_did_not_want_keeps_its_relid_and_is_offered_to_the_next_connection() -> None:
    connection = connected(disk(1), disk(2))
    connection.receive(RelidReleased(1).encode())
    assert connection.offer(disk(3))[0] == 3
    assert refused_only(connection.receive(OPEN.encode()))
    connection.receive(contact())
    offers = [m.relid for m in sent(connection.receive(RequestOffers().encode())) if isinstance(m, OfferChannel)]
    assert offers == [1, 2, 3]


def test_reoffered_channel_comes_back_under_its_relid_with_new_user_data() -> None:
    bench = Bench(S.OPEN)
    assert sent(bench.fire(E.REVOKE)) == [RescindChannelOffer(1)]
    assert bench.connection.reoffer(1, b"incarnation 2") == []
    assert bench.guest(CloseChannel(1)) == []  # the guest cannot know
    offer, = sent(bench.guest(RelidReleased(1)))
    assert isinstance(offer, OfferChannel)
    assert (offer.relid, offer.user_data.rstrip(b"\0")) == (1, b"incarnation 2")
    assert kinds(bench.fire(E.OPEN)) == [OpenDevice]


def test_revoking_a_reoffered_channel_sends_no_second_rescind() -> None:
    bench = Bench(S.REOFFERED)
    assert bench.fire(E.REVOKE) == []
    assert kinds(bench.guest(RelidReleased(1))) == [Freed]


def test_too_much_user_data_is_refused() -> None:
    assert refused_only(Bench(S.REVOKED).connection.reoffer(1, bytes(121)))
    with pytest.raises(ValueError, match="121"):
        Offer(DISK, DISK, bytes(121))


def test_unload_waits_for_the_devices_and_is_answered_once() -> None:
    bench = Bench(S.OPEN)
    assert kinds(bench.guest(Unload())) == [CloseDevice]
    assert state_of(bench.connection) is ConnectionState.DISCONNECTING
    assert refused_only(bench.guest(RequestOffers()))
    effects = bench.fire(E.DEVICE_CLOSED)
    assert sent(effects) == [UnloadResponse()]
    assert Unloaded() in effects
    assert state_of(bench.connection) is ConnectionState.DISCONNECTED
    assert refused_only(bench.guest(Unload()))


def test_host_disconnects_without_a_word_to_the_guest() -> None:
    bench = Bench(S.OPEN)
    assert kinds(bench.note(bench.connection.disconnect())) == [CloseDevice]
    assert bench.fire(E.DEVICE_CLOSED) == [Disconnected()]


@pytest.mark.parametrize("state", ChannelState, ids=lambda state: state.name)
def test_contact_leads_to_a_fresh_connection_from_any_state(state: ChannelState) -> None:
    bench = Bench(state)
    effects = bench.note(bench.connection.receive(contact(Version.V4_0)))
    for _ in range(3):  # the device answers whatever it owes: at most open, then close
        if bench.connection.state is not ConnectionState.DISCONNECTING:
            break
        assert sent(effects) == []  # nothing leaks before the devices have let go
        opening = bench.state is S.OPENING_CLIENT_RELEASE
        effects = bench.fire(E.DEVICE_OPENED if opening else E.DEVICE_CLOSED)
    assert sent(effects) == [VersionResponse(1, 0, Version.V4_0)]
    assert only(Contacted, effects).version == Version.V4_0
    messages = sent(bench.connection.receive(RequestOffers().encode()))
    there = 0 if state is S.REVOKED else 1
    assert [type(message) for message in messages] == [OfferChannel] * there + [AllOffersDelivered]


def test_contact_with_a_bad_version_also_ends_the_old_connection() -> None:
    bench = Bench(S.OPEN)
    assert kinds(bench.guest(InitiateContact(Version.V1_1, 0, 0, 0, 0))) == [CloseDevice]
    effects = bench.fire(E.DEVICE_CLOSED)
    assert sent(effects) == [VersionResponse(0, 0, 0)]
    assert state_of(bench.connection) is ConnectionState.DISCONNECTED
    assert bench.connection.version == 0


def test_last_of_several_contacts_is_the_one_that_is_answered() -> None:
    bench = Bench(S.OPEN)
    bench.note(bench.connection.receive(contact(Version.V5_2)))
    assert bench.note(bench.connection.receive(contact(Version.V3_0))) == []
    assert sent(bench.fire(E.DEVICE_CLOSED)) == [VersionResponse(1, 0, Version.V3_0)]


def test_dead_device_does_not_hold_up_the_next_connection() -> None:
    bench = Bench(S.OPEN)
    bench.fire(E.RESET)
    assert kinds(bench.fire(E.REVOKE)) == [Freed, VersionResponse, Contacted]


def test_late_answers_of_an_old_connection_change_nothing() -> None:
    bench = Bench(S.OPENING)
    stale = bench.ticket
    bench.fire(E.REVOKE)
    bench.fire(E.REOFFER)
    bench.fire(E.RELEASED)
    bench.fire(E.OPEN)
    assert bench.connection.device_opened(1, stale, True) == []
    assert bench.connection.device_closed(1, stale) == []
    assert bench.state is S.OPENING
    assert bench.connection.stats().late_answers == 2


def test_tickets_start_where_the_provider_says() -> None:
    connection = connected(disk(), first_ticket=1 << 32)
    assert only(OpenDevice, connection.receive(OPEN.encode())).ticket == 1 << 32


def test_refusals_of_the_table_are_sent_only_on_a_connection() -> None:
    modify = bytes.fromhex("16000000 00000000 01000000 00000000")
    assert refused_only(Connection().receive(modify))
    connection = connected(disk(), version=Version.V5_3)
    effects = connection.receive(modify)
    assert only(Send, effects).payload == bytes.fromhex("18000000 00000000 01000000 ffff0080")
    assert refused_only(connected(disk(), version=Version.V5_2).receive(modify))


@pytest.mark.parametrize("message", [
    OpenChannel(9, 9, 0, 0, 0, b""), CloseChannel(9), RelidReleased(9), GpadlTeardown(9, 1), CloseChannel(0),
    RelidReleased(0xFFFFFFFF), GpadlBody(0, 1, bytes(8)),
])
def test_message_for_an_unknown_channel_is_dropped(message: Message) -> None:
    connection = connected(disk())
    assert refused_only(connection.receive(message.encode()))
    assert connection.relids == (1,)


# -- GPADLs ----------------------------------------------------------------------------------------


def test_gpadl_of_many_bodies_reaches_the_device_whole() -> None:
    bench = Bench()
    accept = only(AcceptGpadl, bench.create_gpadl(0xE1E10, 200))
    assert accept.ranges == (contiguous(0x100, 200 * 4096),)
    assert sent(bench.gpadl_answer(0xE1E10)) == [GpadlCreated(1, 0xE1E10, 0)]
    assert kinds(bench.guest(GpadlTeardown(1, 0xE1E10))) == [TearDownGpadl]
    assert sent(bench.gpadl_torn_down(0xE1E10)) == [GpadlTornDown(0xE1E10)]
    assert len(bench.connection.gpadls) == 0
    assert bench.connection.gpadls.qwords == 0


def test_gpadl_that_the_device_rejects_is_gone() -> None:
    bench = Bench()
    bench.create_gpadl(5)
    assert sent(bench.gpadl_answer(5, ok=False)) == [GpadlCreated(1, 5, STATUS_FAILED)]
    assert kinds(bench.create_gpadl(5)) == [AcceptGpadl]


@pytest.mark.parametrize("state", [GpadlState.IN_PROGRESS, GpadlState.OFFERED, GpadlState.ACCEPTED])
def test_duplicate_id_is_refused_and_the_first_stays(state: GpadlState) -> None:
    bench = Bench()
    payloads = encode_gpadl(1, 5, [contiguous(0, 100 * 4096)])
    for payload in payloads[:1] if state is GpadlState.IN_PROGRESS else payloads:
        bench.note(bench.connection.receive(payload))
    if state is GpadlState.ACCEPTED:
        bench.gpadl_answer(5)
    assert sent(bench.connection.receive(payloads[0])) == [GpadlCreated(1, 5, STATUS_FAILED)]
    assert bench.connection.gpadls.state(1, 5) is state
    assert len(bench.connection.gpadls) == 1


def test_unfinished_id_is_unique_over_all_channels() -> None:
    connection = connected(disk(1), disk(2))
    long = encode_gpadl(1, 5, [contiguous(0, 100 * 4096)])
    short, = encode_gpadl(2, 5, [contiguous(0, 4096)])
    connection.receive(long[0])
    assert sent(connection.receive(short)) == [GpadlCreated(2, 5, STATUS_FAILED)]
    for payload in long[1:]:
        effects = connection.receive(payload)
    assert only(AcceptGpadl, effects).relid == 1
    assert only(AcceptGpadl, connection.receive(short)).relid == 2  # now the id is free for another channel


@pytest.mark.parametrize("header", [
    GpadlHeader(1, 5, 16, 0, bytes(16)),
    GpadlHeader(1, 5, 0, 1, b""),
    GpadlHeader(1, 5, 16, 65535, bytes(16)),
    GpadlHeader(1, 5, 16, 1, bytes(16)),                                                # no byte
    GpadlHeader(1, 5, 16, 1, bytes.fromhex("ffffffff ff0f0000 0000000000000000")),      # overflow
    GpadlHeader(9, 5, 16, 1, bytes.fromhex("00100000 00000000 0000000000000000")),      # unknown channel
])
def test_bad_ranges_are_answered_with_failure(header: GpadlHeader) -> None:
    connection = connected(disk())
    effects = connection.receive(header.encode())
    assert sent(effects) == [GpadlCreated(header.relid, 5, STATUS_FAILED)]
    assert len(connection.gpadls) == 0
    assert connection.gpadls.qwords == 0


def test_ranges_that_turn_out_bad_with_the_last_body_are_answered_with_failure() -> None:
    connection = connected(disk())
    ranges = bytes.fromhex("0000100000000000") + b"\xff" * 208  # 256 pages, numbers beyond the address space
    assert connection.receive(GpadlHeader(1, 5, 8 * 257, 1, ranges).encode()) == []
    effects: list[Effect] = []
    while not effects:
        effects = connection.receive(GpadlBody(0, 5, b"\xff" * 224).encode())
    assert sent(effects) == [GpadlCreated(1, 5, STATUS_FAILED)]
    assert refused_only(connection.receive(GpadlBody(0, 5, b"\xff" * 224).encode()))


def test_empty_body_brings_nothing_and_breaks_nothing() -> None:
    connection = connected(disk())
    payloads = encode_gpadl(1, 5, [contiguous(0, 30 * 4096)])
    assert connection.receive(payloads[0]) == []
    assert connection.receive(GpadlBody(0, 5, b"").encode()) == []
    assert only(AcceptGpadl, connection.receive(payloads[1])).ranges == (contiguous(0, 30 * 4096),)


def test_gpadls_of_a_channel_are_bounded() -> None:
    bench = Bench(limits=Limits(gpadls_per_channel=2))
    assert [kinds(bench.create_gpadl(number))[0] for number in range(3)] == [AcceptGpadl, AcceptGpadl, GpadlCreated]


def test_pages_of_all_gpadls_are_bounded_and_given_back() -> None:
    bench = Bench(limits=Limits(gpadl_qwords=1000))
    header = GpadlHeader(1, 1, 8 * 900, 1, bytes.fromhex("0000100000000000"))
    assert bench.guest(header) == []
    assert sent(bench.create_gpadl(2, 200))[0] == GpadlCreated(1, 2, STATUS_FAILED)
    bench.fire(E.RESET)
    assert bench.connection.gpadls.qwords == 0


@pytest.mark.parametrize("state", [GpadlState.IN_PROGRESS, GpadlState.OFFERED, GpadlState.TEARING_DOWN])
def test_teardown_is_legal_only_when_accepted(state: GpadlState) -> None:
    bench = Bench()
    if state is GpadlState.IN_PROGRESS:
        bench.connection.receive(encode_gpadl(1, 5, [contiguous(0, 100 * 4096)])[0])
    else:
        bench.create_gpadl(5)
    if state is GpadlState.TEARING_DOWN:
        bench.gpadl_answer(5)
        bench.guest(GpadlTeardown(1, 5))
    assert refused_only(bench.guest(GpadlTeardown(1, 5)))
    assert bench.connection.gpadls.state(1, 5) is state


def test_device_answer_that_does_not_fit_is_late() -> None:
    bench = Bench()
    bench.create_gpadl(5)
    ticket = bench.gpadl_tickets[5]
    for answer in (ticket + 1, 0, -1):
        assert bench.connection.gpadl_accepted(1, 5, answer, True) == []
    assert bench.connection.gpadl_accepted(1, 6, ticket, True) == []
    assert refused_only(bench.connection.gpadl_torn_down(1, 5, ticket))
    assert bench.connection.gpadls.state(1, 5) is GpadlState.OFFERED
    assert sent(bench.gpadl_answer(5)) == [GpadlCreated(1, 5, 0)]
    assert bench.connection.gpadl_accepted(1, 5, ticket, True) == []
    assert bench.connection.stats().late_answers == 5


def test_rescind_comes_after_the_answers_to_all_waiters() -> None:
    bench = Bench(S.OPEN)
    bench.create_gpadl(5)
    bench.create_gpadl(6)
    bench.gpadl_answer(6)
    bench.guest(GpadlTeardown(1, 6))
    bench.create_gpadl(7)
    bench.gpadl_answer(7)
    assert sent(bench.fire(E.REVOKE)) == [
        GpadlCreated(1, 5, STATUS_FAILED), GpadlTornDown(6), RescindChannelOffer(1)]
    assert sent(bench.guest(GpadlTeardown(1, 7))) == [GpadlTornDown(7)]  # the device is gone: at once


@pytest.mark.parametrize("state", [S.REVOKED, S.REOFFERED])
def test_guests_cleanup_of_a_revoked_channel_never_hangs(state: ChannelState) -> None:
    bench = Bench(state)
    assert sent(bench.create_gpadl(5, 100)) == [GpadlCreated(1, 5, 0)]
    assert sent(bench.guest(GpadlTeardown(1, 5))) == [GpadlTornDown(5)]
    bench.create_gpadl(6)
    bench.guest(RelidReleased(1))
    assert len(bench.connection.gpadls) == 0


def test_gpadls_of_a_reoffered_and_released_channel_are_the_new_devices() -> None:
    bench = Bench(S.REOFFERED)
    bench.create_gpadl(5)
    bench.guest(RelidReleased(1))
    assert kinds(bench.create_gpadl(5)) == [AcceptGpadl]


def test_gpadl_whose_bodies_were_on_their_way_at_the_revoke_is_answered() -> None:
    bench = Bench()
    payloads = encode_gpadl(1, 5, [contiguous(0, 60 * 4096)])
    bench.connection.receive(payloads[0])
    bench.fire(E.REVOKE)
    effects = [effect for payload in payloads[1:] for effect in bench.connection.receive(payload)]
    assert sent(effects) == [GpadlCreated(1, 5, 0)]


def test_reset_takes_gpadls_back_and_tells_the_new_connection_nothing() -> None:
    bench = Bench()
    bench.create_gpadl(1)                      # offered
    bench.create_gpadl(2)
    bench.gpadl_answer(2)                      # accepted
    bench.create_gpadl(3)
    bench.gpadl_answer(3)
    bench.guest(GpadlTeardown(1, 3))           # tearing down
    bench.connection.receive(encode_gpadl(1, 4, [contiguous(0, 100 * 4096)])[0])  # in progress
    effects = bench.fire(E.RESET)
    assert [effect.gpadl for effect in effects if isinstance(effect, TearDownGpadl)] == [2]
    assert bench.connection.gpadls.state(1, 1) is GpadlState.OFFERED_TEARING_DOWN
    assert kinds(bench.gpadl_answer(1)) == [TearDownGpadl]
    assert bench.gpadl_torn_down(1) == []
    assert bench.gpadl_torn_down(2) == []
    assert kinds(bench.gpadl_torn_down(3)) == [VersionResponse, Contacted]
    assert len(bench.connection.gpadls) == 0


def test_releasing_a_channel_takes_its_gpadls_from_the_device() -> None:
    bench = Bench()
    bench.create_gpadl(5)
    bench.gpadl_answer(5)
    assert kinds(bench.guest(RelidReleased(1))) == [TearDownGpadl]
    assert bench.gpadl_torn_down(5) == []
    assert len(bench.connection.gpadls) == 0


def test_gpadl_table_names_every_event_and_leaves_no_dead_end() -> None:
    assert set(GPADL_STEPS) == set(GpadlEvent)
    for state in GpadlState:
        ways = {step.state for steps in GPADL_STEPS.values() for origin, step in steps.items() if origin is state}
        assert ways - {state}, state
    for event in (GpadlEvent.REVOKE, GpadlEvent.RESET):  # these end all that a guest or a device may leave behind
        assert set(GPADL_STEPS[event]) == set(GpadlState)


# -- rings -----------------------------------------------------------------------------------------


def ring_bench(pages: int = 8, accept: bool = True) -> Bench:
    bench = Bench(require_ring_gpadl=True)
    bench.create_gpadl(5, pages)
    if accept:
        bench.gpadl_answer(5)
    return bench


def test_open_with_rings_in_an_accepted_gpadl_reaches_the_device() -> None:
    opened = only(OpenDevice, ring_bench().guest(OpenChannel(1, 1, 5, 0, 4, b"")))
    assert opened.request.ring_gpadl == 5


def test_open_with_rings_that_the_device_is_asked_to_take_is_asked_of_it_next() -> None:
    """It comes to the same: the device answers both in this order, and refuses to open what it did not take."""
    assert only(OpenDevice, ring_bench(accept=False).guest(OpenChannel(1, 1, 5, 0, 4, b""))).request.ring_gpadl == 5


def test_open_with_rings_of_which_a_part_is_not_described_yet_is_answered_with_failure() -> None:
    bench = Bench(require_ring_gpadl=True)
    bench.note(bench.connection.receive(encode_gpadl(1, 5, [contiguous(0x100, 64 * 4096)])[0]))
    assert bench.connection.gpadls.state(1, 5) is GpadlState.IN_PROGRESS
    assert sent(bench.guest(OpenChannel(1, 3, 5, 0, 4, b""))) == [OpenChannelResult(1, 3, STATUS_FAILED)]


@pytest.mark.parametrize(("gpadl", "split"), [(0, 4), (6, 4), (5, 0), (5, 1), (5, 7), (5, 0xFFFFFFFF)])
def test_open_without_fitting_rings_is_answered_with_failure(gpadl: int, split: int) -> None:
    bench = ring_bench()
    effects = bench.guest(OpenChannel(1, 3, gpadl, 0, split, b""))
    assert sent(effects) == [OpenChannelResult(1, 3, STATUS_FAILED)]
    assert kinds(effects) == [OpenChannelResult, Refused]
    assert bench.state is S.CLOSED


def test_rings_are_checked_again_when_a_reopen_is_carried_out() -> None:
    bench = ring_bench()
    bench.guest(OpenChannel(1, 1, 5, 0, 4, b""))
    bench.fire(E.DEVICE_OPENED)
    bench.fire(E.CLOSE)
    assert bench.guest(OpenChannel(1, 2, 5, 0, 4, b"")) == []
    bench.guest(GpadlTeardown(1, 5))
    effects = bench.fire(E.DEVICE_CLOSED)
    assert sent(effects) == [OpenChannelResult(1, 2, STATUS_FAILED)]
    assert bench.state is S.CLOSED


def test_statistics_tell_what_happened() -> None:
    bench = Bench(S.OPEN)
    bench.create_gpadl(5)
    stats = bench.connection.stats()
    assert (stats.state, stats.version, stats.connections, stats.channels, stats.gpadls) == (
        "offered", NEWEST, 1, 1, 1)
    assert (stats.received, stats.sent, stats.refused, stats.ignored) == (4, 4, 0, 0)
    bench.fire(E.REVOKE)
    bench.fire(E.CLOSE)
    assert bench.connection.stats().ignored == 1
