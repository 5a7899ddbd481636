"""The control paths: the provider against hostile guests and VSPs, its link, channel packets, lifelines, consoles."""

from __future__ import annotations

import os
import random
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest

from partitions.parent.provider import Provider
from partitions.parent.vsplink import FIRST_PARTITION_PORT, TO_PROVIDER, TO_VSP, dispatch, encode
from vmbus_emu import lifeline
from vmbus_emu.channel import decode_packet
from vmbus_emu.lifeline import Lifeline
from vmbus_emu.loop import Loop
from vmbus_emu.machine import intake
from vmbus_emu.machine.consoles import Consoles
from vmbus_emu.machine.figures import process_row
from vmbus_emu.machine.supervisor import Process
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol import vmbus as wire
from vmbus_emu.protocol.packets import PACKET_TYPES
from vmbus_emu.protocol.vmbus import NEWEST
from vmbus_emu.vmbus.gpadl import contiguous, encode_gpadl

Fuzz = Callable[[int], Iterator[int]]


def any_value(rng: random.Random, depth: int = 0) -> Any:
    """Anything msgpack can say, unhashable keys of things included."""
    match rng.randrange(13 if depth < 4 else 8):
        case 0 | 1:
            return rng.choice((0, 1, 2, 6, 9, 11, -1, 1 << 31, (1 << 64) - 1, -(1 << 63)))
        case 2:
            return rng.choice((True, False, None))
        case 3:
            return rng.choice((0.5, float("nan"), float("inf")))
        case 4 | 5:
            return rng.randbytes(rng.choice((0, 16, 64)))
        case 6:
            return rng.choice(("", "vm1", "ready", "open", "x" * 300, "\n", "../../up"))
        case 7:
            return rng.choice((msgpack.ExtType(5, b"ext"), msgpack.Timestamp(1, 2)))
        case 8 | 9:
            return {rng.choice(("t", "id", "stats", "session", 1, b"k")): any_value(rng, depth + 1) for _ in range(3)}
        case _:
            return [any_value(rng, depth + 1) for _ in range(rng.randrange(5))]


def mutated(rng: random.Random, raw: bytes) -> bytes:
    data = bytearray(raw)
    match rng.randrange(4):
        case 0 if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
        case 1:
            del data[rng.randrange(len(data) + 1):]
        case 2:
            data += rng.randbytes(rng.randrange(1, 9))
    return bytes(data)


# -- decoders -------------------------------------------------------------------------------------------


def test_a_packets_head_is_four_exact_fields_or_nothing(fuzz: Fuzz) -> None:
    accepted = 0
    for case in fuzz(15_000):
        rng = random.Random(f"packet {case}")
        fields = [rng.choice(sorted(PACKET_TYPES)), rng.randrange(2), rng.getrandbits(64), rng.randbytes(16)]
        if rng.random() < 0.5:
            fields[rng.randrange(4)] = any_value(rng)
        packed = msgpack.packb(fields if rng.random() < 0.8 else any_value(rng))
        packet = decode_packet(mutated(rng, packed) if rng.random() < 0.5 else packed)
        if packet is not None:
            accepted += 1
            assert [type(field) for field in packet] == [int, int, int, bytes]
            assert packet[0] in PACKET_TYPES
            assert packet[1] in (0, 1)
            assert 0 <= packet[2] < 1 << 64
    assert accepted > case // 10


class Recorder:
    """Takes any operation."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, operation: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append((operation, arguments))


@pytest.mark.parametrize("table", [TO_VSP, TO_PROVIDER], ids=["to vsp", "to provider"])
def test_the_link_calls_an_operation_with_its_own_types_or_nothing(
    fuzz: Fuzz, table: dict[str, tuple[type, ...]]
) -> None:
    for case in fuzz(8000):
        rng = random.Random(f"link {case}")
        operation = rng.choice((*table, "__init__", "calls", ""))
        samples = {int: rng.getrandbits(33), str: "why", bytes: b"1234", bool: True, list: [1]}
        arguments = [samples[kind] for kind in table.get(operation, ())]
        message = [operation, *(any_value(rng) if rng.random() < 0.2 else value for value in arguments)]
        raw = msgpack.packb(message if rng.random() < 0.8 else any_value(rng))
        target = Recorder()
        called = dispatch(table, target, mutated(rng, raw))
        assert called == (len(target.calls) == 1)
        for name, values in target.calls:
            assert tuple(map(type, values)) == table[name]


def lifeline_bytes(rng: random.Random) -> bytes:
    message = {"t": rng.choice(("ready", "in-memory", "out", 1, None, any_value(rng))), "data": any_value(rng)}
    raw: bytes = msgpack.packb(message if rng.random() < 0.7 else any_value(rng))
    return mutated(rng, raw) or b"\xc1"


def test_a_lifeline_hands_on_maps_with_a_type_and_leaks_no_descriptor(fuzz: Fuzz) -> None:
    loop = Loop()
    near, far = lifeline.pair()
    seen: list[Any] = []
    line = Lifeline(loop, near, lambda message, fds: seen.append((message, fds)), lambda: None, largest=4096)
    gift = os.memfd_create("gift")
    small, large = os.memfd_create("small"), os.memfd_create("large")
    os.write(small, msgpack.packb({"t": "small"}))
    os.truncate(large, 1 << 40)
    reading, writing = os.pipe()
    open_before = len(os.listdir("/proc/self/fd"))
    malformed = 0
    for case in fuzz(6000):
        rng = random.Random(f"lifeline {case}")
        fds = [rng.choice((gift, small, large, reading)) for _ in range(rng.randrange(3))]
        socket.send_fds(far, [lifeline_bytes(rng)], fds)
        loop.step(1.0)
        message, received = seen.pop()
        assert isinstance(message, dict)
        assert isinstance(message["t"], str)
        malformed += message["t"] == lifeline.MALFORMED
        for fd in received:
            os.close(fd)
    assert 0 < malformed < case + 1
    assert len(os.listdir("/proc/self/fd")) == open_before
    line.close()
    far.close()
    for fd in (gift, small, large, reading, writing):
        os.close(fd)
    loop.close()


# -- the machine's side of a guest ------------------------------------------------------------------------


class Line:
    """A lifeline nobody listens to."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any, fds: Any = ()) -> None:
        self.sent.append(message)


def guest_message(rng: random.Random) -> dict[str, Any]:
    """Console traffic of a guest, plausible or not."""
    kind = rng.choice((*intake.ANYBODY, "born", "request", "power_off", "bound", "client_gone", "x"))
    names = intake.ANYBODY.get(kind, ())
    fields: dict[str, Any] = {name: rng.choice((0, 1, 2, 3, "vm1", b"data", {}, [], True)) for name in names}
    if kind in ("out", "need", "exit"):
        fields |= {"session": rng.randrange(4), "stream": rng.randrange(4), "data": b"x" * rng.choice((0, 9, 40_000)),
                   "chunks": rng.choice((-1, 0, 1, 99)), "status": rng.choice((0, 1, 255, 256, -9, 1 << 40))}
    if fields and rng.random() < 0.3:
        fields[rng.choice(list(fields))] = any_value(rng)
    return {**fields, "t": kind}


def test_a_guest_on_its_console_reaches_its_own_client_and_no_further(fuzz: Fuzz) -> None:
    passed = 0
    for case in fuzz(8000):
        rng = random.Random(f"console {case}")
        replies: list[tuple[bytes, dict[str, Any]]] = []
        consoles = Consoles(lambda client, message, replies=replies: replies.append((client, message)))  # type: ignore[misc]
        lines = {name: Line() for name in ("vm1", "vm2")}
        vms = {name: Process(name, 1, 1, -1, line) for name, line in lines.items()}  # type: ignore[arg-type]
        for request, (client, vm) in enumerate(((b"c1", "vm1"), (b"c2", "vm1"), (b"c3", "vm2"))):
            consoles.start(client, request, vm, vms[vm], ["cat"])
        replies.clear()
        for _ in range(rng.randrange(1, 30)):
            message = guest_message(rng)
            if intake.accepts("child", ("vm1",), message) and message["t"] in ("out", "need", "exit"):
                passed += consoles.from_guest(vms["vm1"], message)
        for client, reply in replies:
            assert client in (b"c1", b"c2")
            assert reply["id"] == int(client[1:]) - 1
            assert reply["t"] in ("out", "need", "exit")
            assert reply.get("stream", 1) in (1, 2)
            assert 0 <= reply.get("status", 0) <= 255
            msgpack.packb(reply)
        assert sum(reply["t"] == "out" for _, reply in replies) <= 2 * lifeline.WINDOW
        assert len(lines["vm2"].sent) == 1
        assert consoles.from_guest(vms["vm2"], {"t": "exit", "session": 3, "status": 0})
    assert passed > case // 4


def test_figures_of_any_shape_make_a_row_about_nobody_else(fuzz: Fuzz) -> None:
    process: Any = Process("vm1", 1, 1, -1, Line())  # type: ignore[arg-type]
    for case in fuzz(6000):
        rng = random.Random(f"figures {case}")
        own = {"io": any_value(rng), "last_io": any_value(rng), "counters": any_value(rng)}
        stats = {"vm1": own if rng.random() < 0.8 else any_value(rng), "vm2": {"io": 7}, 5: any_value(rng)}
        clean = intake.figures(stats, ("vm1",))
        assert set(clean) <= {"vm1"}
        row = process_row("vm1", "child", "vm1", process, True, clean.get("vm1"), 10.0)
        assert row["io"] is None or row["io"] >= 0
        assert row["last_io_age_s"] is None or row["last_io_age_s"] >= 0
        assert all(isinstance(value, int | float) for value in row["counters"].values())
        msgpack.packb(row)


def test_a_clients_request_is_understood_or_explained(fuzz: Fuzz) -> None:
    for case in fuzz(6000):
        rng = random.Random(f"request {case}")
        verb = rng.choice((*intake.REQUESTS, any_value(rng)))
        names = (*intake.REQUESTS["exec"], *intake.REQUESTS["stdin"], "chunks", "t", "id")
        request = {"verb": verb} | {name: any_value(rng) for name in names if rng.random() < 0.3}
        wrong = intake.understood(request)
        assert wrong.isprintable()
        if not wrong:
            assert verb in intake.REQUESTS
            assert type(request.get("session", 1)) is int or "session" not in intake.REQUESTS[verb]
            assert verb != "exec" or (isinstance(request["vm"], str) and isinstance(request.get("argv", []), list))


# -- the provider ---------------------------------------------------------------------------------------


class Vsp:
    """A VSP that answers at once, later, or never."""

    def __init__(self, rng: random.Random, provider: Provider, name: str) -> None:
        self.rng = rng
        self.face = provider.add_vsp(name, self)
        self.late: list[Callable[[], Any]] = []
        self.pids: set[int] = set()

    def answer(self, answer: Callable[[], Any]) -> None:
        if self.rng.random() < 0.5:
            answer()
        else:
            self.late.append(answer)

    def open(self, key: int, ticket: int, pid: int, openid: int, *ring: int) -> None:
        self.pids.add(pid)
        self.answer(lambda: self.face.opened(key, ticket, self.rng.random() < 0.9))

    def close(self, key: int, ticket: int) -> None:
        self.answer(lambda: self.face.closed(key, ticket))

    def accept_gpadl(self, key: int, gpadl: int, ticket: int, nbytes: int, *shared: object) -> None:
        self.answer(lambda: self.face.gpadl_accepted(key, gpadl, ticket, True))

    def gpadl_pages(self, key: int, gpadl: int, part: bytes) -> None:
        """Part of a longer list; the whole asks for an answer."""

    def revoked(self, key: int) -> None:
        """Wants no answer."""

    def partition_gone(self, partition: int, vm: str) -> None:
        """Wants no answer."""

    def tear_down_gpadl(self, key: int, gpadl: int, ticket: int) -> None:
        self.answer(lambda: self.face.gpadl_torn_down(key, gpadl, ticket))


def guest_payload(rng: random.Random) -> bytes:
    relid, gpadl = rng.randrange(5), rng.randrange(4)
    choices: list[bytes] = [
        wire.InitiateContact(rng.choice((NEWEST, NEWEST, 1)), 0, 2, 0, 0).encode(),
        wire.RequestOffers().encode(),
        wire.OpenChannel(relid, rng.getrandbits(32), gpadl, 0, 0, b"").encode(),
        wire.CloseChannel(relid).encode(),
        rng.choice(encode_gpadl(relid, gpadl, [contiguous(1, 4096 * rng.choice((1, 40)))])),
        wire.GpadlTeardown(relid, gpadl).encode(),
        wire.RelidReleased(relid).encode(),
        wire.Unload().encode(),
        rng.randbytes(rng.randrange(241)),
    ]
    payload = rng.choice(choices)
    return (mutated(rng, payload) if rng.random() < 0.3 else payload)[:hv.MAX_PAYLOAD]


def link_payload(rng: random.Random) -> bytes:
    """What a hostile VSP in a partition of its own writes to the provider."""
    key, ticket = rng.randrange(4), rng.randrange(6)
    guid = uuid.UUID(int=rng.getrandbits(128)).bytes_le[:rng.choice((16, 16, 16, 3, 0))]
    return rng.choice((
        encode("offer", key, rng.choice(("vm1", "vm2", "nobody")), guid, guid, b"u" * rng.choice((4, 120, 121, 130))),
        encode("revoke", key, "because"),
        encode("opened", key, ticket, True),
        encode("closed", key, ticket),
        encode("gpadl_accepted", key, rng.randrange(4), ticket, True),
        encode("gpadl_torn_down", key, rng.randrange(4), ticket),
        mutated(rng, encode("opened", key, ticket, True)),
        encode("hello", rng.randrange(5), [
            rng.choice((encode("offer", key, "vm1", guid, guid, b"u"), encode("closed", key, ticket), b"\xc1", 7))
            for _ in range(rng.randrange(3))
        ]),
        rng.randbytes(rng.randrange(200)),
    ))[:hv.MAX_PAYLOAD]


class Guest:
    """The far end of a child's VMBus connection."""

    def __init__(self, wires: Any, partition: int) -> None:
        self.vp = wires.processor(partition)
        self.seen: list[Any] = []
        self.vp.on_message = lambda sint, message: self.seen.append(wire.decode_from_host(message.payload, NEWEST))

    def post(self, payload: bytes) -> Any:
        return self.vp.post(hv.CONNECTION_VMBUS, hv.MESSAGE_VMBUS, payload)


def check_polite_guest(wires: Any, guest: Guest, device: int) -> None:
    guest.post(wire.InitiateContact(NEWEST, 0, 2, 0, 0).encode())
    guest.post(wire.RequestOffers().encode())
    assert wires.loop.run_until(lambda: any(isinstance(m, wire.AllOffersDelivered) for m in guest.seen), 5.0)
    offers = [m for m in guest.seen if isinstance(m, wire.OfferChannel)]  # the hostile VSP may have made some, too
    (offer,) = (m for m in offers if m.instance == uuid.UUID(int=device).bytes_le)
    guest.post(wire.OpenChannel(offer.relid, 1, 0, 0, 0, b"").encode())
    assert wires.loop.run_until(lambda: any(isinstance(m, wire.OpenChannelResult) for m in guest.seen), 5.0)
    (result,) = (m for m in guest.seen if isinstance(m, wire.OpenChannelResult))
    assert result.status == 0


class Patient(Vsp):
    """Answers at once, and well."""

    def answer(self, answer: Callable[[], Any]) -> None:
        answer()

    def open(self, key: int, ticket: int, pid: int, openid: int, *ring: int) -> None:
        self.pids.add(pid)
        self.face.opened(key, ticket, True)


def test_a_provider_survives_hostile_guests_and_vsps_and_serves_the_next_guest(
    fuzz: Fuzz, monkeypatch: pytest.MonkeyPatch, wires: Any
) -> None:
    make = type(wires)
    for case in fuzz(1000):
        rng = random.Random(f"provider {case}")
        world = make(monkeypatch)
        logged: list[str] = []
        provider = Provider(world.loop, world.processor(), logged.append)
        world.processor(1, 1)
        good = Patient(rng, provider, "good")
        bad = Vsp(rng, provider, "storvsp")
        vm1, vm2, far = world.child("vm1"), world.child("vm2"), world.child("netvsp")
        for key in range(2):
            bad.face.offer(key, "vm1", uuid.UUID(int=9).bytes_le, uuid.UUID(int=key).bytes_le, b"ep")
        good.face.offer(1, "vm2", uuid.UUID(int=9).bytes_le, uuid.UUID(int=77).bytes_le, b"ep")
        for partition, name, kind in ((vm1, "vm1", "child"), (vm2, "vm2", "child"), (far, "netvsp", "vsp")):
            provider.attach(partition, name, kind)
        world.settle()
        hostile = Guest(world, vm1)
        vsp = world.processor(far)
        if case % 2:
            vsp.post(0x10, hv.MESSAGE_CONTROL, encode("hello", 1, []))
        pid = world.hypervisor.partitions[vm1].vps[0]
        for _ in range(rng.randrange(5, 60)):
            match rng.randrange(8):
                case 0:
                    vsp.post(0x10, hv.MESSAGE_CONTROL, link_payload(rng))
                case 1 if bad.late:
                    bad.late.pop(rng.randrange(len(bad.late)))()
                case 2 if rng.random() < 0.1:
                    provider.peer_died(rng.choice(("netvsp", "vm1")), rng.randrange(4))
                case _:
                    hostile.vp.post(rng.choice((1, 4)), rng.choice((1, 1, 1, 0x10, 7)), guest_payload(rng))
            if rng.random() < 0.5:
                world.loop.step(0.0)
        world.settle()
        assert bad.pids <= {pid}
        assert len(logged) < 200
        port = world.hypervisor.partitions[1].ports[FIRST_PARTITION_PORT + vm2]
        assert port.in_use == 0
        check_polite_guest(world, Guest(world, vm2), 77)
        world.loop.close()
