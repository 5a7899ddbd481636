"""The guest's end of VMBus: what it posts, and that it never waits for ever, whatever the host does.

One file for one object: connection, offers, channels, GPADLs, rescind, each under its heading.
"""

from __future__ import annotations

import uuid

import pytest

from vmbus_emu.protocol import guids
from vmbus_emu.protocol import vmbus as wire
from vmbus_emu.protocol.vmbus import NEGOTIABLE, NEWEST, STATUS_FAILED, Message, Version, decode_from_guest
from vmbus_emu.vmbus.client import ClientConnection, ClientState
from vmbus_emu.vmbus.client_channels import FIRST_GPADL, ClientChannelState, ClientGpadlState
from vmbus_emu.vmbus.client_effects import (
    AllOffersDelivered,
    Bad,
    ClientEffect,
    Connected,
    ConnectFailed,
    GpadlCreated,
    GpadlTornDown,
    OfferArrived,
    OpenResult,
    Post,
    Rescinded,
    Unloaded,
)
from vmbus_emu.vmbus.gpadl import contiguous

PAGES = [contiguous(0x100, 4 * 4096)]


def offer(relid: int) -> wire.OfferChannel:
    instance = uuid.UUID(int=relid).bytes_le
    return wire.OfferChannel(guids.SCSI.bytes_le, instance, 0, 0, bytes(120), 0, 0, relid, 0xFF, 0, 1, 0x2001)


def connected(*relids: int, versions: tuple[int, ...] = NEGOTIABLE, message_connection: int = 7) -> ClientConnection:
    client = ClientConnection(versions)
    client.contact()
    recent = versions[0] >= Version.V5_0
    client.receive(wire.VersionResponse(1, 0, message_connection if recent else versions[0]).encode())
    client.request_offers()
    for relid in relids:
        client.receive(offer(relid).encode())
    return client


def posted(effects: list[ClientEffect], connection: int = 7) -> list[Message]:
    """The posted messages, decoded; all of them to one connection."""
    messages: list[Message] = []
    for effect in effects:
        if isinstance(effect, Post):
            assert effect.connection_id == connection
            message = decode_from_guest(effect.payload, NEWEST)
            assert not isinstance(message, (wire.Malformed, wire.Unsupported))
            messages.append(message)
    return messages


def bad_only(effects: list[ClientEffect]) -> bool:
    return len(effects) == 1 and isinstance(effects[0], Bad)


def opened(relid: int = 1) -> ClientConnection:
    client = connected(relid)
    client.open(relid)
    client.receive(wire.OpenChannelResult(relid, relid, 0).encode())
    return client


def created(client: ClientConnection, relid: int = 1) -> int:
    gpadl, _ = client.create_gpadl(relid, PAGES)
    client.receive(wire.GpadlCreated(relid, gpadl, 0).encode())
    return gpadl


# -- the connection --------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "connection"), [(Version.V6_0, 4), (Version.V5_0, 4), (Version.V4_1, 1)])
def test_contact_goes_where_its_version_wants_it(version: Version, connection: int) -> None:
    client = ClientConnection((version,), target_vp=3, sint=5)
    contact, = posted(client.contact(), connection)
    assert isinstance(contact, wire.InitiateContact)
    assert (contact.version, contact.target_vp, contact.monitor_page_1, contact.monitor_page_2) == (version, 3, 0, 0)
    assert contact.sint == (5 if version >= Version.V5_0 else 2)


def test_versions_step_down_until_the_host_knows_one() -> None:
    client = ClientConnection()
    effects = client.contact()
    proposed = []
    for _ in range(6):
        effect, = effects
        assert isinstance(effect, Post)
        message = decode_from_guest(effect.payload, NEWEST)
        assert isinstance(message, wire.InitiateContact)
        proposed.append((message.version, effect.connection_id))
        effects = client.receive(wire.VersionResponse(0, 0, 0).encode())
    assert proposed == [(version, 4 if version >= Version.V5_0 else 1) for version in NEGOTIABLE[:6]]
    assert client.receive(wire.VersionResponse(1, 0, NEGOTIABLE[6]).encode()) == [Connected(NEGOTIABLE[6])]
    assert client.version == NEGOTIABLE[6]


def test_all_versions_refused_is_a_failed_connection_that_may_be_tried_again() -> None:
    client = ClientConnection(NEGOTIABLE[:2])
    client.contact()
    assert posted(client.receive(wire.VersionResponse(0, 0, 0).encode()), 4)
    effect, = client.receive(wire.VersionResponse(0, 0, 0).encode())
    assert isinstance(effect, ConnectFailed)
    assert client.state is ClientState.IDLE
    again, = posted(client.contact(), 4)
    assert isinstance(again, wire.InitiateContact)
    assert again.version == NEGOTIABLE[0]


def test_contact_that_an_old_host_has_no_connection_for_steps_down_at_once() -> None:
    client = ClientConnection((Version.V5_0, Version.V4_0))
    client.contact()
    assert posted(client.contact_undeliverable(), 1)
    assert isinstance(client.contact_undeliverable()[0], ConnectFailed)
    assert client.contact_undeliverable() == []


@pytest.mark.parametrize(("version", "response"), [
    (Version.V6_0, wire.VersionResponse(1, 1, 1)),
    (Version.V6_0, wire.VersionResponse(1, 2, 1)),
    (Version.V4_0, wire.VersionResponse(1, 0, Version.V3_0)),
])
def test_supported_version_without_a_connection_is_a_failure(
    version: Version, response: wire.VersionResponse
) -> None:
    client = ClientConnection((version,))
    client.contact()
    assert isinstance(client.receive(response.encode())[0], ConnectFailed)
    assert client.state is ClientState.IDLE


def test_later_messages_go_to_the_connection_that_the_host_named() -> None:
    client = connected(1, message_connection=0x123)
    assert posted(client.open(1), 0x123)
    old = connected(1, versions=(Version.V4_0,))
    assert posted(old.open(1), 1)


def test_offers_are_requested_once() -> None:
    client = ClientConnection()
    assert client.request_offers() == []
    client.contact()
    client.receive(wire.VersionResponse(1, 0, 7).encode())
    assert bad_only(client.receive(wire.AllOffersDelivered().encode()))
    assert posted(client.request_offers()) == [wire.RequestOffers()]
    assert client.request_offers() == []
    assert client.receive(offer(3).encode()) == [OfferArrived(offer(3))]
    assert client.receive(wire.AllOffersDelivered().encode()) == [AllOffersDelivered()]
    assert bad_only(client.receive(wire.AllOffersDelivered().encode()))
    assert client.offers == (offer(3),)


def test_a_guest_needs_a_version() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ClientConnection(())


def test_unload_ends_every_wait_and_is_answered() -> None:
    client = connected(1)
    client.open(1)
    gpadl, _ = client.create_gpadl(1, PAGES)
    effects = client.unload()
    assert effects[:2] == [GpadlCreated(1, gpadl, STATUS_FAILED), OpenResult(1, STATUS_FAILED)]
    assert posted(effects, 7) == [wire.Unload()]
    assert client.unload() == []
    assert client.receive(wire.OpenChannelResult(1, 1, 0).encode()) == []
    assert client.receive(wire.UnloadResponse().encode()) == [Unloaded()]
    assert client.state is ClientState.IDLE
    assert client.unload() == [Unloaded()]
    assert client.stats().late == 1


def test_reset_rescinds_everything_and_starts_over() -> None:
    client = connected(1, 2, 3)
    client.open(2)
    client.receive(wire.RescindChannelOffer(3).encode())
    gpadl, _ = client.create_gpadl(1, PAGES)
    assert client.reset() == [
        GpadlCreated(1, gpadl, STATUS_FAILED), Rescinded(1), OpenResult(2, STATUS_FAILED), Rescinded(2)]
    assert (client.state, client.version, client.offers) == (ClientState.IDLE, 0, ())
    assert client.receive(wire.GpadlCreated(1, gpadl, 0).encode()) == []
    assert client.open(1) == [OpenResult(1, STATUS_FAILED)]
    assert client.reset() == []
    assert posted(client.contact(), 4)


@pytest.mark.parametrize("state", [ClientState.CONTACTING, ClientState.UNLOADING])
def test_reset_ends_the_wait_for_a_connection_too(state: ClientState) -> None:
    client = connected()
    if state is ClientState.CONTACTING:
        client.contact()
        assert isinstance(client.reset()[0], ConnectFailed)
    else:
        client.unload()
        assert client.reset() == [Unloaded()]
    assert client.state is ClientState.IDLE


def test_contact_gives_up_the_old_connection_first() -> None:
    client = opened()
    effects = client.contact()
    assert effects[0] == Rescinded(1)
    assert len(posted(effects, 4)) == 1
    assert client.receive(offer(2).encode()) == []  # the old connection's, late
    assert client.stats().late == 1


def test_response_to_a_contact_that_was_given_up_is_late_once() -> None:
    client = ClientConnection()
    client.contact()
    client.contact()
    response = wire.VersionResponse(1, 0, 7).encode()
    assert client.receive(response) == [Connected(NEWEST)]
    assert client.receive(response) == []
    assert bad_only(client.receive(response))
    assert client.stats().late == 1


# -- offers ----------------------------------------------------------------------------------------


def test_offers_with_impossible_ids_and_duplicates_are_bad() -> None:
    client = connected(1)
    for relid in (0, 2048, 0xFFFFFFFF, 1):
        assert bad_only(client.receive(offer(relid).encode()))
    assert len(client.offers) == 1


def test_offers_are_bounded() -> None:
    client = ClientConnection(max_channels=2)
    client.contact()
    client.receive(wire.VersionResponse(1, 0, 1).encode())
    effects = [client.receive(offer(relid).encode())[0] for relid in (1, 2, 3)]
    assert [type(effect) for effect in effects] == [OfferArrived, OfferArrived, Bad]


# -- channels --------------------------------------------------------------------------------------


def test_channel_opens_closes_and_opens_again() -> None:
    client = connected(5)
    request, = posted(client.open(5, 0xE1E10, 2, b"hi", downstream_page_offset=4))
    assert request == wire.OpenChannel(5, 5, 0xE1E10, 2, 4, b"hi".ljust(120, b"\0"))
    assert client.receive(wire.OpenChannelResult(5, 5, 0).encode()) == [OpenResult(5, 0)]
    assert client.channel_state(5) is ClientChannelState.OPEN
    assert posted(client.close(5)) == [wire.CloseChannel(5)]
    assert client.close(5) == []
    assert len(posted(client.open(5))) == 1


def test_open_that_fails_may_be_tried_again() -> None:
    client = connected(1)
    client.open(1)
    assert client.receive(wire.OpenChannelResult(1, 1, 0xC0000001).encode()) == [OpenResult(1, 0xC0000001)]
    assert posted(client.open(1))


@pytest.mark.parametrize("message", [
    wire.OpenChannelResult(1, 1, 0), wire.OpenChannelResult(9, 9, 0), wire.RescindChannelOffer(9),
    wire.GpadlCreated(1, 5, 0), wire.GpadlTornDown(5), wire.UnloadResponse(), wire.VersionResponse(1, 0, 1),
    wire.GpadlCreated(1, FIRST_GPADL, 0),
])
def test_answer_that_nobody_waits_for_is_bad(message: Message) -> None:
    client = connected(1)
    assert bad_only(client.receive(message.encode()))
    assert client.channel_state(1) is ClientChannelState.OFFERED
    assert client.stats().bad == 1


def test_open_result_for_another_open_id_is_bad() -> None:
    client = connected(1)
    client.open(1)
    assert bad_only(client.receive(wire.OpenChannelResult(1, 2, 0).encode()))
    assert client.channel_state(1) is ClientChannelState.OPENING


def test_breaking_ones_own_order_is_a_bug() -> None:
    client = connected(1)
    client.open(1)
    with pytest.raises(ValueError, match="already"):
        client.open(1)
    with pytest.raises(ValueError, match="result comes first"):
        client.release(1)
    with pytest.raises(ValueError, match="121"):
        client.open(1, user_data=bytes(121))
    gpadl, _ = client.create_gpadl(1, PAGES)
    with pytest.raises(ValueError, match="creating"):
        client.teardown_gpadl(gpadl)
    with pytest.raises(ValueError, match="not a range"):
        client.create_gpadl(1, [contiguous(0, 0)])


def test_calls_about_channels_that_are_gone_fail_without_a_word_to_the_host() -> None:
    client = connected(1)
    client.receive(wire.RescindChannelOffer(1).encode())
    for relid in (1, 9):
        assert client.open(relid) == [OpenResult(relid, STATUS_FAILED)]
        assert client.close(relid) == []
        gpadl, effects = client.create_gpadl(relid, PAGES)
        assert effects == [GpadlCreated(relid, gpadl, STATUS_FAILED)]
        assert client.teardown_gpadl(gpadl) == [GpadlTornDown(gpadl)]
    assert client.release(9) == []


def test_releasing_an_open_channel_closes_it_first() -> None:
    client = opened()
    gpadl = created(client)
    assert posted(client.release(1)) == [wire.CloseChannel(1), wire.RelidReleased(1)]
    assert client.channel_state(1) is None
    assert client.gpadl_state(gpadl) is None
    assert client.stats().gpadls == 0


# -- GPADLs ----------------------------------------------------------------------------------------


def test_gpadl_ids_count_up_and_its_messages_are_all_posted() -> None:
    client = connected(1, 2)
    first, effects = client.create_gpadl(1, [contiguous(0, 60 * 4096)])
    assert first == FIRST_GPADL
    assert [type(message) for message in posted(effects)] == [wire.GpadlHeader, wire.GpadlBody, wire.GpadlBody]
    second, effects = client.create_gpadl(2, PAGES)
    assert second == FIRST_GPADL + 1
    header, = posted(effects)
    assert isinstance(header, wire.GpadlHeader)
    assert (header.relid, header.gpadl) == (2, second)


def test_gpadl_is_created_and_torn_down() -> None:
    client = connected(1)
    gpadl, _ = client.create_gpadl(1, PAGES)
    assert client.receive(wire.GpadlCreated(1, gpadl, 0).encode()) == [GpadlCreated(1, gpadl, 0)]
    assert client.gpadl_state(gpadl) is ClientGpadlState.CREATED
    assert posted(client.teardown_gpadl(gpadl)) == [wire.GpadlTeardown(1, gpadl)]
    assert client.receive(wire.GpadlTornDown(gpadl).encode()) == [GpadlTornDown(gpadl)]
    assert client.gpadl_state(gpadl) is None


def test_gpadl_that_the_host_refuses_is_forgotten() -> None:
    client = connected(1)
    gpadl, _ = client.create_gpadl(1, PAGES)
    assert client.receive(wire.GpadlCreated(1, gpadl, 5).encode()) == [GpadlCreated(1, gpadl, 5)]
    assert client.gpadl_state(gpadl) is None


def test_gpadl_answers_in_the_wrong_state_or_channel_change_nothing() -> None:
    client = connected(1, 2)
    gpadl, _ = client.create_gpadl(1, PAGES)
    assert bad_only(client.receive(wire.GpadlCreated(2, gpadl, 0).encode()))
    assert bad_only(client.receive(wire.GpadlTornDown(gpadl).encode()))
    assert client.gpadl_state(gpadl) is ClientGpadlState.CREATING
    client.receive(wire.GpadlCreated(1, gpadl, 0).encode())
    assert bad_only(client.receive(wire.GpadlCreated(1, gpadl, 0).encode()))
    assert bad_only(client.receive(wire.GpadlTornDown(gpadl).encode()))
    assert client.gpadl_state(gpadl) is ClientGpadlState.CREATED


# -- rescind ---------------------------------------------------------------------------------------


def test_waiters_hear_of_a_rescind_first() -> None:
    client = connected(1)
    gone = created(client)
    client.teardown_gpadl(gone)
    kept = created(client)
    waiting, _ = client.create_gpadl(1, PAGES)
    client.open(1, kept)
    assert client.receive(wire.RescindChannelOffer(1).encode()) == [
        GpadlTornDown(gone), GpadlCreated(1, waiting, STATUS_FAILED), OpenResult(1, STATUS_FAILED), Rescinded(1)]
    assert client.channel_state(1) is ClientChannelState.RESCINDED
    assert client.offers == ()
    assert client.teardown_gpadl(kept) == [GpadlTornDown(kept)]
    assert posted(client.release(1)) == [wire.RelidReleased(1)]
    assert client.receive(offer(1).encode()) == [OfferArrived(offer(1))]


def test_answers_that_crossed_a_rescind_are_late_and_not_bad() -> None:
    client = connected(1)
    torn = created(client)
    client.teardown_gpadl(torn)
    waiting, _ = client.create_gpadl(1, PAGES)
    client.open(1)
    client.receive(wire.RescindChannelOffer(1).encode())
    assert client.receive(wire.OpenChannelResult(1, 1, 0).encode()) == []
    assert client.receive(wire.GpadlCreated(1, waiting, 0).encode()) == []
    client.release(1)
    assert client.receive(wire.GpadlTornDown(torn).encode()) == []
    assert (client.stats().late, client.stats().bad) == (3, 0)


def test_rescind_that_crossed_a_release_is_late_once() -> None:
    client = connected(1)
    client.release(1)
    assert client.receive(wire.RescindChannelOffer(1).encode()) == []
    assert bad_only(client.receive(wire.RescindChannelOffer(1).encode()))


def test_second_rescind_of_a_channel_is_bad() -> None:
    client = connected(1)
    client.receive(wire.RescindChannelOffer(1).encode())
    assert bad_only(client.receive(wire.RescindChannelOffer(1).encode()))
    client.release(1)
    assert bad_only(client.receive(wire.RescindChannelOffer(1).encode()))


@pytest.mark.parametrize("payload", [b"", bytes(8), b"\x01" + bytes(100), b"\x05" + bytes(200), b"\x1c" + bytes(7)])
def test_garbage_from_the_host_is_a_value(payload: bytes) -> None:
    client = opened()
    assert bad_only(client.receive(payload))
    assert client.channel_state(1) is ClientChannelState.OPEN


def test_statistics_tell_what_happened() -> None:
    client = opened()
    created(client)
    stats = client.stats()
    assert (stats.state, stats.version, stats.connections, stats.channels, stats.gpadls) == (
        "connected", NEWEST, 1, 1, 1)
    assert (stats.received, stats.posted, stats.bad, stats.late) == (4, 4, 0, 0)
