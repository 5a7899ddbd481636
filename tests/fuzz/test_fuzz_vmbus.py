"""Hostile guests at the server, hostile hosts at the client: random bytes, mutated and plausible messages.

Nothing may raise. After every step the invariants of ``Server`` and ``Guest`` below must hold.

Long, because the two models are each other's peers.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator

from vmbus_emu.protocol import vmbus as wire
from vmbus_emu.protocol.vmbus import NEGOTIABLE, NEWEST, Version
from vmbus_emu.vmbus import client_effects as seen
from vmbus_emu.vmbus import effects as asked
from vmbus_emu.vmbus.channel_states import ChannelState, ConnectionState
from vmbus_emu.vmbus.client import ClientConnection, ClientState
from vmbus_emu.vmbus.client_channels import FIRST_GPADL, ClientChannelState, ClientGpadlState
from vmbus_emu.vmbus.gpadl import contiguous, encode_gpadl, page_count
from vmbus_emu.vmbus.server import Connection

Fuzz = Callable[[int], Iterator[int]]
LIMITS = asked.Limits(channels=6, gpadls_per_channel=4, gpadl_qwords=600)


def steps(seed: int) -> int:
    """Mostly short, so that there are many; now and then long enough to come back to every state."""
    return 400 if seed % 10 == 0 else 50


def mutated(payload: bytes, rng: random.Random) -> bytes:
    """Bits flipped, cut short, extended; or left alone."""
    data = bytearray(payload)
    match rng.randrange(6):
        case 0 if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[rng.randrange(len(data) + 1):]
        case 2:
            data += rng.randbytes(rng.randrange(60))
        case 3 if data:
            at = rng.randrange(len(data))
            data[at:at + 4] = rng.choice((b"\xff\xff\xff\xff", bytes(4), b"\x00\x00\x00\x80"))
    return bytes(data)


def any_bytes(rng: random.Random) -> bytes:
    head = rng.randrange(32).to_bytes(4, "little") if rng.random() < 0.8 else rng.randbytes(4)
    return head + rng.randbytes(rng.choice((0, 4, 8, 12, 36, 144, 192, 232, 236, 240)))


# -- the server ------------------------------------------------------------------------------------


def guest_payloads(rng: random.Random) -> list[bytes]:
    """What a guest may think of: mostly plausible, with few ids, so that they meet."""
    relid = rng.randrange(8)
    gpadl = rng.randrange(5)
    match rng.randrange(14):
        case 0:
            version = rng.choice((*NEGOTIABLE, Version.V1_1, 0x7FFFFFFF))
            return [wire.InitiateContact(version, 0, rng.getrandbits(64), 0, 0).encode()]
        case 1:
            return [wire.Unload().encode()] if rng.random() < 0.2 else []
        case 2:
            return [wire.RequestOffers().encode()]
        case 3 | 4:
            return [wire.OpenChannel(relid, rng.getrandbits(32), gpadl, 0, rng.randrange(6), b"").encode()]
        case 5:
            return [wire.CloseChannel(relid).encode()]
        case 6 | 7:
            payloads = encode_gpadl(relid, gpadl, [contiguous(1, 4096 * rng.choice((1, 6, 80)))])
            return payloads[:rng.randrange(1, len(payloads) + 1)]
        case 8:
            return [wire.GpadlHeader(
                relid, gpadl, rng.getrandbits(16), rng.choice((0, 1, 2, 65535)), rng.randbytes(rng.randrange(220))
            ).encode()]
        case 9:
            return [wire.GpadlBody(0, gpadl, rng.randbytes(rng.randrange(225))).encode()]
        case 10 | 11:
            return [wire.GpadlTeardown(relid, gpadl).encode()]
        case 12:
            return [wire.RelidReleased(relid).encode()]
        case _:
            return [any_bytes(rng)]


class Server:
    """The server, devices that answer at random times, and what must hold between them and the guest."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.connection = Connection(limits=LIMITS, require_ring_gpadl=rng.random() < 0.5)
        self.questions: list[asked.Effect] = []
        self.answered: list[asked.Effect] = []
        self.running: set[int] = set()
        self.mapped: set[tuple[int, int]] = set()
        self.known: set[int] = set()          # what this connection's guest has been offered
        self.torn: Counter[int] = Counter()   # the teardowns that this connection's guest has asked for
        self.ticket = 0
        self.instances = iter(range(1 << 20))

    def step(self) -> None:
        rng = self.rng
        match rng.randrange(12):
            case 0:
                offer = asked.Offer(uuid.UUID(int=rng.randrange(3)), uuid.UUID(int=next(self.instances)), b"x")
                relid, effects = self.connection.offer(offer)
                assert relid or isinstance(effects[0], asked.Refused)
                self.check(effects)
            case 1:
                self.check(self.connection.reoffer(rng.randrange(8), b"y"))
            case 2 if rng.random() < 0.5:
                self.revoke(rng.randrange(8))
            case 3 | 4 | 5 if self.questions:
                self.answer(self.questions.pop(rng.randrange(len(self.questions))))
            case 6 if self.answered:
                self.late(rng.choice(self.answered))
            case 7 if rng.random() < 0.1:
                self.forget()
                self.check(self.connection.disconnect())
            case _:
                for payload in guest_payloads(rng):
                    self.receive(mutated(payload, rng))

    def receive(self, payload: bytes) -> None:
        message = wire.decode_from_guest(payload, self.connection.version or NEWEST)
        if isinstance(message, wire.InitiateContact) or (
            isinstance(message, wire.Unload) and self.connection.state is not ConnectionState.DISCONNECTED
        ):
            self.forget()
        elif isinstance(message, wire.GpadlTeardown):
            self.torn[message.gpadl] += 1
        elif isinstance(message, wire.RelidReleased) and self.connection.channel_state(message.relid) in (
            ChannelState.CLOSED, ChannelState.CLOSING, ChannelState.REVOKED, ChannelState.REOFFERED
        ):
            self.known.discard(message.relid)
        self.check(self.connection.receive(payload))

    def forget(self) -> None:
        """The guest's connection ends now; from here on, every message must be about the next one."""
        self.known.clear()
        self.torn.clear()

    def revoke(self, relid: int) -> None:
        """The device is gone, with all it had."""
        effects = self.connection.revoke(relid)
        if effects and isinstance(effects[0], asked.Refused):
            assert self.connection.channel_state(relid) in (None, ChannelState.REVOKED)
        self.running.discard(relid)
        self.mapped = {key for key in self.mapped if key[0] != relid}
        gone = [question for question in self.questions if getattr(question, "relid", 0) == relid]
        self.questions = [question for question in self.questions if question not in gone]
        self.answered += gone
        self.check(effects)

    def answer(self, question: asked.Effect) -> None:
        self.answered.append(question)
        ok = self.rng.random() < 0.8
        match question:
            case asked.OpenDevice(relid, ticket, _):
                if ok:
                    self.running.add(relid)
                self.check(self.connection.device_opened(relid, ticket, ok))
            case asked.CloseDevice(relid, ticket):
                self.running.remove(relid)
                self.check(self.connection.device_closed(relid, ticket))
            case asked.AcceptGpadl(relid, gpadl, ticket, _):
                if ok:
                    self.mapped.add((relid, gpadl))
                self.check(self.connection.gpadl_accepted(relid, gpadl, ticket, ok))
            case asked.TearDownGpadl(relid, gpadl, ticket):
                self.mapped.remove((relid, gpadl))
                self.check(self.connection.gpadl_torn_down(relid, gpadl, ticket))

    def late(self, question: asked.Effect) -> None:
        """A second answer, or that of a device that is gone: nothing may come of it."""
        connection = self.connection
        before = [connection.channel_state(relid) for relid in range(8)], len(connection.gpadls)
        match question:
            case asked.OpenDevice(relid, ticket, _):
                effects = connection.device_opened(relid, ticket, True)
            case asked.CloseDevice(relid, ticket):
                effects = connection.device_closed(relid, ticket)
            case asked.AcceptGpadl(relid, gpadl, ticket, _):
                effects = connection.gpadl_accepted(relid, gpadl, ticket, True)
            case asked.TearDownGpadl(relid, gpadl, ticket):
                effects = connection.gpadl_torn_down(relid, gpadl, ticket)
            case _:
                raise AssertionError(question)
        assert effects == []
        assert ([connection.channel_state(relid) for relid in range(8)], len(connection.gpadls)) == before

    def check(self, effects: list[asked.Effect]) -> None:
        connection = self.connection
        for effect in effects:
            match effect:
                case asked.Send():
                    self.check_message(effect.payload)
                case asked.OpenDevice(relid, ticket, request):
                    assert relid == request.relid
                    assert relid not in self.running
                    self.new_question(effect, ticket)
                case asked.CloseDevice(relid, ticket):
                    assert relid in self.running
                    self.new_question(effect, ticket)
                case asked.AcceptGpadl(relid, gpadl, ticket, ranges):
                    assert (relid, gpadl) not in self.mapped
                    assert all(len(r.pfns) == page_count(r.byte_count, r.byte_offset) > 0 for r in ranges)
                    self.new_question(effect, ticket)
                case asked.TearDownGpadl(relid, gpadl, ticket):
                    assert (relid, gpadl) in self.mapped
                    self.new_question(effect, ticket)
                case asked.Freed(relid):
                    assert relid not in self.known
                case asked.Contacted() | asked.VersionRefused() | asked.Unloaded() | asked.Disconnected():
                    # The old connection is over: no device has anything left of it, and no question is open.
                    assert (self.running, self.mapped, self.questions) == (set(), set(), [])
        if connection.state in (ConnectionState.DISCONNECTING, ConnectionState.DISCONNECTED):
            assert not self.known
            assert connection.version == 0
        assert len(connection.relids) <= LIMITS.channels
        assert set(connection.relids) <= set(range(1, LIMITS.channels + 1))
        assert 0 <= connection.gpadls.qwords <= LIMITS.gpadl_qwords
        assert len(connection.gpadls) <= LIMITS.channels * LIMITS.gpadls_per_channel

    def new_question(self, effect: asked.Effect, ticket: int) -> None:
        assert ticket > self.ticket
        self.ticket = ticket
        self.questions.append(effect)

    def check_message(self, payload: bytes) -> None:
        """A message to the guest is well-formed, and is about this connection."""
        assert self.connection.state is not ConnectionState.DISCONNECTING
        message = wire.decode_from_host(payload, self.connection.version or NEWEST)
        match message:
            case wire.OfferChannel():
                assert message.relid not in self.known
                self.known.add(message.relid)
            case wire.RescindChannelOffer(relid) | wire.OpenChannelResult(relid):
                assert relid in self.known
            case wire.GpadlCreated(relid, _, status):
                assert relid in self.known or status != 0
            case wire.GpadlTornDown(gpadl):
                self.torn[gpadl] -= 1
                assert self.torn[gpadl] >= 0
            case wire.VersionResponse() | wire.AllOffersDelivered() | wire.UnloadResponse():
                pass
            case wire.Unsupported():
                assert message.name in ("MODIFYCHANNEL_RESPONSE", "TL_CONNECT_RESULT")
            case wire.Malformed():
                raise AssertionError(message.reason)


def test_hostile_guest_breaks_no_invariant_of_the_server(fuzz: Fuzz) -> None:
    for seed in fuzz(1500):
        play_guest(seed)


def play_guest(seed: int) -> None:
    server = Server(random.Random(seed))
    for _ in range(steps(seed)):
        server.step()
    server.forget()
    server.check(server.connection.disconnect())
    while server.questions:
        server.answer(server.questions.pop())
    assert server.connection.state is ConnectionState.DISCONNECTED
    assert len(server.connection.gpadls) == 0
    # It still serves a polite guest.
    server.receive(wire.InitiateContact(NEWEST, 0, 2, 0, 0).encode())
    server.receive(wire.RequestOffers().encode())
    assert server.connection.stats().state == ConnectionState.OFFERED.value
    assert server.known == set(server.connection.relids)


# -- the client ------------------------------------------------------------------------------------


def host_payload(rng: random.Random) -> bytes:
    relid = rng.choice((0, 1, 2, 3, 4, 2047, 2048))
    gpadl = FIRST_GPADL + rng.randrange(-1, 12)
    status = rng.choice((0, 0, 0, 5))
    match rng.randrange(10):
        case 0:
            selected = rng.choice((1, *NEGOTIABLE))
            return wire.VersionResponse(rng.randrange(2), rng.choice((0, 0, 0, 1)), selected).encode()
        case 1 | 2:
            return wire.OfferChannel(
                rng.randbytes(16), rng.randbytes(16), 0, 0, rng.randbytes(120), 0, 0, relid, 0xFF, 0, 1, 5).encode()
        case 3:
            return wire.RescindChannelOffer(relid).encode()
        case 4:
            return wire.AllOffersDelivered().encode()
        case 5:
            return wire.OpenChannelResult(relid, relid, status).encode()
        case 6:
            return wire.GpadlCreated(relid, gpadl, status).encode()
        case 7:
            return wire.GpadlTornDown(gpadl).encode()
        case 8 if rng.random() < 0.2:
            return wire.UnloadResponse().encode()
        case _:
            return any_bytes(rng)


class Guest:
    """A guest that keeps its own order, and counts what it began and what it heard the end of."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.client = ClientConnection(max_channels=4)
        self.waits: Counter[tuple[str, int]] = Counter()
        self.gpadls: list[int] = []

    def step(self) -> None:
        rng, client = self.rng, self.client
        relid = rng.randrange(1, 5)
        state = client.channel_state(relid)
        match rng.randrange(16):
            case 0 if client.state is ClientState.IDLE or rng.random() < 0.05:
                self.check(client.contact())
            case 1 if rng.random() < 0.05:
                self.check(client.unload())
            case 2 if rng.random() < 0.1:
                self.check(client.reset())
            case 3:
                self.check(client.request_offers())
            case 4 | 5 if state not in (ClientChannelState.OPENING, ClientChannelState.OPEN):
                self.waits["open", relid] += 1
                self.check(client.open(relid))
            case 6:
                self.check(client.close(relid))
            case 7:
                gpadl, effects = client.create_gpadl(relid, [contiguous(0, rng.choice((1, 40)) * 4096)])
                self.waits["create", gpadl] += 1
                self.gpadls.append(gpadl)
                self.check(effects)
            case 8 if self.gpadls:
                gpadl = rng.choice(self.gpadls)
                if client.gpadl_state(gpadl) in (None, ClientGpadlState.CREATED):
                    self.waits["teardown", gpadl] += 1
                    self.check(client.teardown_gpadl(gpadl))
            case 9 if state is not ClientChannelState.OPENING and rng.random() < 0.3:
                self.check(client.release(relid))
            case _:
                self.check(client.receive(mutated(host_payload(rng), rng)))

    def check(self, effects: list[seen.ClientEffect]) -> None:
        for effect in effects:
            match effect:
                case seen.Post(_, payload):
                    assert not isinstance(wire.decode_from_guest(payload, NEWEST), (wire.Malformed, wire.Unsupported))
                case seen.OpenResult(relid, _):
                    self.ended("open", relid)
                case seen.GpadlCreated(_, gpadl, _):
                    self.ended("create", gpadl)
                case seen.GpadlTornDown(gpadl):
                    self.ended("teardown", gpadl)
                case seen.OfferArrived(offer):
                    assert 1 <= offer.relid <= wire.MAX_RELID
        stats = self.client.stats()
        assert stats.channels <= 4
        assert stats.gpadls <= len(self.gpadls)
        assert (self.client.version != 0) == (self.client.state is ClientState.CONNECTED)
        if self.client.state is not ClientState.CONNECTED:
            assert (stats.channels, stats.gpadls) == (0, 0)

    def ended(self, what: str, name: int) -> None:
        self.waits[what, name] -= 1
        assert self.waits[what, name] >= 0, f"{what} of {name} ended twice"


def test_hostile_host_breaks_no_invariant_of_the_client(fuzz: Fuzz) -> None:
    for seed in fuzz(1500):
        play_host(seed)


def play_host(seed: int) -> None:
    guest = Guest(random.Random(seed))
    for _ in range(steps(seed)):
        guest.step()
    guest.check(guest.client.reset())
    assert +guest.waits == Counter()
    # It still finds a polite host.
    guest.check(guest.client.contact())
    guest.check(guest.client.receive(wire.VersionResponse(1, 0, 1, bytes(4)).encode()))
    assert guest.client.state is ClientState.CONNECTED


def test_any_bytes_decode_to_a_value_that_encodes_back(fuzz: Fuzz) -> None:
    for seed in fuzz(15_000):
        rng = random.Random(seed)
        payload = any_bytes(rng)
        version = rng.choice(tuple(Version))
        for decode in (wire.decode_from_guest, wire.decode_from_host):
            message = decode(payload, version)
            if not isinstance(message, (wire.Malformed, wire.Unsupported)):
                encoded = message.encode()
                assert len(encoded) <= len(payload)
                assert decode(encoded, version) == message
