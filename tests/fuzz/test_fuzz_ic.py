"""Random and mutated bytes at the integration components: decoders, both ends of a channel, a guest's services."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from partitions.child.components import GuestComponents
from partitions.child.guest import Guest
from partitions.child.kvp_store import KvpStore
from partitions.parent.ic_session import IcSession, State
from vmbus_emu.channel import channel_pair, deliver_all
from vmbus_emu.loop import Loop
from vmbus_emu.protocol import ic, kvp
from vmbus_emu.protocol.ic import Beat, Message, Offered, Shutdown, Time, Vss, VssOp
from vmbus_emu.protocol.kvp import Item, Op, Pool, Request
from vmbus_emu.protocol.packets import IN_BAND, PACKET_TYPES

Fuzz = Callable[[int], Iterator[int]]
CONFIG = {"name": "vm1", "address": "10.0.0.1", "prefix": 16, "memory_bytes": 1 << 24, "hosts": {}}
BODIES = [
    ic.encode_versions(Offered(((3, 0), (1, 0)), ((4, 0), (3, 0), (5, 0), (7, 0)))),
    ic.encode_versions(Offered(((3, 0),), ((3, 0),))),
    ic.encode_beat(Beat(2)), ic.encode_time(Time(ic.to_1601(10**18), 1, 1), (4, 0)),
    ic.encode_time(Time(ic.to_1601(10**18), 0, 2), (3, 0)), ic.encode_shutdown(Shutdown(0, 1, 6, "x")),
    *(ic.encode_vss(Vss(op)) for op in VssOp),
    *(kvp.encode(Request(op, pool, 1, Item("key", "value"))) for op in Op for pool in Pool), b"",
]  # fmt: skip
DECODERS: list[Callable[[bytes], Any]] = [
    ic.decode, ic.decode_versions, ic.decode_beat, ic.decode_shutdown, ic.decode_vss, kvp.decode,
    lambda body: ic.decode_time(body, (4, 0)), lambda body: ic.decode_time(body, (3, 0)),
]  # fmt: skip


def mutated(rng: random.Random, data: bytes) -> bytes:
    """``data`` with a few bytes changed, most of them where its fields are; now and then cut or made longer."""
    changed = bytearray(data)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 8))):
        if changed:
            place = rng.randrange(min(len(changed), rng.choice((48, len(changed)))))
            changed[place] = rng.choice((0, 1, 2, 5, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    if rng.random() < 0.05:
        del changed[rng.randrange(len(changed) + 1) :]
    elif rng.random() < 0.05:
        changed += rng.randbytes(rng.randint(1, 64))
    return bytes(changed)


def message(rng: random.Random) -> bytes:
    made = Message(
        rng.choice(((3, 0), (1, 0))), rng.randrange(9), rng.choice(((3, 0), (4, 0), (5, 0))), rng.choice((0, 1 << 31)),
        rng.choice((0, 1, 2, 255)), rng.choice((ic.REQUEST, ic.RESPONSE, 0)), mutated(rng, rng.choice(BODIES)),
    )  # fmt: skip
    return mutated(rng, ic.encode(made)) if rng.random() < 0.7 else rng.randbytes(rng.randrange(64))


def test_decoders_take_anything(fuzz: Fuzz) -> None:
    for case in fuzz(4000):
        rng = random.Random(case)
        raw = mutated(rng, rng.choice(BODIES)) if rng.random() < 0.8 else rng.randbytes(rng.randrange(4096))
        for decode in DECODERS:
            decode(raw)
        ic.decode(message(rng))
        request = kvp.decode(raw)
        if request is not None and request.op not in (Op.GET_IP, Op.SET_IP):
            store = KvpStore(lambda: {"a": "b"})
            store.serve(raw, (5, 0), lambda status, body: None)


def test_a_host_and_a_guest_outlive_each_others_nonsense(fuzz: Fuzz) -> None:
    """Either ends the channel with a reason, once, or goes on as if nothing was said."""
    loop = Loop()
    for case in fuzz(1500):
        rng = random.Random(case)
        guest = Guest(loop, CONFIG, {}, {}, lambda sent: None, lambda line: None)
        component = rng.choice(list(ic.COMPONENTS.values()))
        device = GuestComponents(loop, guest.services, lambda line: None).devices[component.name]
        near, far = channel_pair()
        ends: list[str] = []
        near.on_failed = far.on_failed = ends.append
        device.attach(far)
        host = IcSession(near, component, lambda: None)
        if rng.random() < 0.8:
            host.begin()
            deliver_all(near, far)
            assert host.state is State.READY
        answers: list[object] = []
        asked = 0
        for _ in range(8):
            kind = IN_BAND if rng.random() < 0.95 else rng.choice(list(PACKET_TYPES))
            data = b"data" if rng.random() < 0.03 else None
            rng.choice((near, far)).send(kind, 0, 0, message(rng), data)
            asked += host.request(mutated(rng, rng.choice(BODIES)), answers.append)
            deliver_all(near, far)
        loop.step(0.0)
        assert len(ends) <= 2
        assert (near.failed is None or near.closed) and (far.failed is None or far.closed)  # noqa: PT018
        host.close()
        device.detach()
        assert len(answers) == asked, "each request had one end"
    loop.close()
