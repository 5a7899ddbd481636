"""A guest that boots like any other and has one command more: ``attack NAME``, garbage on an endpoint that it holds.

What it sends leaves through the very sockets that its process inherited or opened for its own devices.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import zmq

from partitions.child import commands
from partitions.child.console import Session, Usage
from partitions.child.process import ChildProcess
from vmbus_emu import envelopes
from vmbus_emu.lifeline import CHUNK, MAX_MESSAGE
from vmbus_emu.node import Node
from vmbus_emu.protocol import guids
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol import vmbus as wire
from vmbus_emu.protocol.packets import IN_BAND
from vmbus_emu.task import sleep

HERE: dict[str, Any] = {}


class HostileChild(ChildProcess):
    def __init__(self, node: Node) -> None:
        super().__init__(node)
        HERE["node"] = node

    def start(self, config: dict[str, Any]) -> None:
        HERE["config"] = config
        super().start(config)


def bus(session: Session) -> Any:
    listing: Any = session.guest.bus_listing
    return listing.__self__


def deep(levels: int) -> bytes:
    """Arrays in arrays: what was read may be too deep to be written again."""
    return b"\x91" * levels + b"\xc0"


def values(rng: random.Random) -> Iterator[Any]:
    yield from (None, True, -1, 1 << 63, 0.5, float("nan"), "", "x" * 1000, b"", b"\xff" * 1000, rng.randbytes(30))
    yield from ([], [[]], {}, {"t": {}}, {"t": "x", 7: 8}, msgpack.ExtType(1, b""), msgpack.Timestamp(0, 0))


def raw_lifeline() -> socket.socket:
    line: socket.socket = HERE["node"].lifeline._socket
    return line


def send(message: Any, fds: tuple[int, ...] = ()) -> None:
    raw = message if isinstance(message, bytes) else msgpack.packb(message)
    line = raw_lifeline()
    line.setblocking(True)
    socket.send_fds(line, [raw], fds)
    line.setblocking(False)


async def lifeline_garbage(session: Session) -> None:
    rng = random.Random(1)
    for value in values(rng):
        send(msgpack.packb(value))
        send({"t": value})
    for _ in range(500):
        send(rng.randbytes(rng.randrange(1, 300)))
    for levels in (400, 511, 1000, 5000):
        send(deep(levels))
        send(b"\x82\xa1t\xa5stats\xa2id" + deep(levels))
    send(b"\xc1" * MAX_MESSAGE)
    send(rng.randbytes(MAX_MESSAGE + 4096))  # cut off by the receiver


async def lifeline_descriptors(session: Session) -> None:
    reading, writing = os.pipe()
    memory = os.memfd_create("huge")
    os.truncate(memory, 1 << 40)
    for fds in ((), (reading,), (memory,), (memory, reading), (writing,) * 60):
        send({"t": "in-memory"}, fds)
        send({"t": "ready", "component": "vm1"}, fds)
        send(b"\xc1", fds)
    for fd in (reading, writing, memory):
        os.close(fd)


async def lifeline_forgery(session: Session) -> None:
    """Every message of every other sender, about everybody else."""
    others = [int(pid) for pid in HERE["pids"]]
    down = {"t": "request", "client": b"x", "request": {"verb": "down", "id": 1}}
    for message in (
        down,
        {"t": "client_gone", "client": b"x"},
        {"t": "power_off", "pids": others},
        {"t": "power_on", "partition": 2, "vp": 0, "name": "vm2"},
        {"t": "bound", "pid": others[0]},
        {"t": "born", "name": "vm2", "pid": os.getpid()},
        {"t": "born", "name": "nobody", "pid": 1},
        {"t": "component_died", "component": "vm2", "why": "no"},
        {"t": "not_started", "component": "vm2", "why": "no"},
        {"t": "ready", "component": "front"},
        {"t": "log", "component": "../../escaped", "text": "no"},
        {"t": "log", "component": "vm2", "text": "forged"},
        {"t": "exit", "session": 1, "status": 0},
    ):
        send(message)
    for number in range(200):
        for value in values(random.Random(2)):
            send({"t": "stats", "id": number, "stats": value})
            send({"t": "stats", "id": number, "stats": {"vm1": {"io": value, "last_io": value, "counters": value}}})
        send({"t": "stats", "id": number, "stats": {"vm2": {"io": 12345678}, "machine": {"io": 1}}})
        for session_number in range(4):
            send({"t": "out", "session": session_number + 1000, "stream": 9, "data": "text"})


async def console_flood(session: Session) -> None:
    """Output without credit, by whoever reads it slowly."""
    number: int = session._number
    for _ in range(2000):
        send({"t": "out", "session": number, "stream": 1, "data": bytes(CHUNK)})


async def log_flood(session: Session) -> None:
    for _ in range(200):
        os.write(2, b"\xff\x1b[2J" * 8000)
    os.write(2, b"\n")


async def lifeline_closed(session: Session) -> None:
    """And live on: a guest like any other would end here."""
    HERE["node"].lifeline._on_end = lambda: None
    send({"t": "exit", "session": session._number, "status": 0})
    raw_lifeline().send(b"")  # an empty message looks like the end
    raw_lifeline().shutdown(socket.SHUT_WR)


def dealer() -> Any:
    """A second connection to the hypervisor: same process, so the same identity."""
    made: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    made.setsockopt(zmq.LINGER, 1000)
    made.connect("ipc://" + HERE["config"]["socket"])
    return made


def linked(made: Any) -> None:
    """Until everything that was sent has been read: the hypervisor answers the last call."""
    made.send(msgpack.packb([hv.TO_HYPERVISOR_CALL, 4711, hv.Code.GET_PARTITION_ID, b""]))
    while made.poll(5000) and msgpack.unpackb(made.recv())[1:2] != [4711]:
        pass
    made.close()


async def hypercalls(session: Session) -> None:
    rng = random.Random(3)
    made = dealer()
    for value in values(rng):
        made.send(msgpack.packb(value))
        for kind in range(4):
            made.send(msgpack.packb([kind, value, value, value]))
            made.send(msgpack.packb([kind, 1, value, b""]))
    for code in range(0x120):
        made.send(msgpack.packb([hv.TO_HYPERVISOR_CALL, code, code, rng.randbytes(rng.randrange(200))]))
    for _ in range(500):
        made.send(rng.randbytes(rng.randrange(900)))
    made.send_multipart([b"a"] * 50)
    made.send(deep(900))
    linked(made)


async def hypercall_oversized(session: Session) -> None:
    made = dealer()
    made.send(bytes(envelopes.MAX_MESSAGE + 1))
    made.send(bytes(1 << 20))
    made.close()
    linked(dealer())


async def vmbus_messages(session: Session) -> None:
    """Garbage and messages out of their turn to the provider; our own VMBus may well end by it."""
    rng = random.Random(4)
    vp = bus(session)._vp
    posted = []
    for _ in range(300):
        payload = rng.choice((
            rng.randbytes(rng.randrange(241)),
            rng.randrange(30).to_bytes(4, "little") + bytes(4) + rng.randbytes(rng.randrange(200)),
            wire.OpenChannel(rng.randrange(9), rng.getrandbits(32), 1, 0, 0, b"").encode(),
            wire.GpadlTeardown(rng.randrange(9), 1).encode(),
            wire.RelidReleased(rng.randrange(99)).encode(),
        ))
        posted.append(vp.post(rng.choice((1, 4, 5)), rng.choice((1, 1, 1, 2, 0x10)), payload))
    for future in posted:
        await future


async def own_channel(session: Session) -> None:
    """The packet heads no decoder may fall over, on our own disk's channel."""
    disk_channel(session).send(msgpack.packb([{}, 0, 0, b""]))


async def own_channel_oversized(session: Session) -> None:
    disk_channel(session).send(msgpack.packb([IN_BAND, 1, 1, b"x"]), bytes(8 << 20))


def disk_channel(session: Session) -> Any:
    """The socket below our own disk."""
    driver, relid = disk_relid(session)
    return driver._channels[relid]._port


def disk_relid(session: Session) -> tuple[Any, int]:
    """The bus driver, and our own disk's channel there."""
    driver = bus(session)
    (relid,) = (relid for relid, coming in driver._offered_devices.items() if coming.vsp == "storvsp")
    return driver, relid


async def component_garbage(session: Session) -> None:
    """On the channel of our time synchronisation."""
    driver = bus(session)

    def channel() -> Any:
        found = [relid for relid, one in driver._offered_devices.items() if one.offer.interface_guid == guids.TIME_SYNC]
        return driver._channels.get(found[0]) if found else None

    while channel() is None:
        await sleep(session.guest.loop, 0.005)
    channel().send(IN_BAND, 0, 0, b"garbage")


async def realtime_signal(session: Session) -> None:
    os.kill(os.getpid(), signal.SIGRTMIN + 6)


ATTACKS: dict[str, Callable[[Session], Any]] = {
    attack.__name__: attack
    for attack in (
        lifeline_garbage, lifeline_descriptors, lifeline_forgery, console_flood, log_flood, lifeline_closed, hypercalls,
        hypercall_oversized, vmbus_messages, own_channel, own_channel_oversized, component_garbage, realtime_signal,
    )
}


async def _attack(session: Session, arguments: list[str]) -> int:
    if not arguments or arguments[0] not in ATTACKS:
        raise Usage(" ".join(ATTACKS))
    HERE["pids"] = arguments[1:]
    await ATTACKS[arguments[0]](session)
    sys.stderr.flush()
    return 0


commands.COMMANDS["attack"] = commands.Command("attack", "attack NAME [PID...]", "misbehave", _attack)
