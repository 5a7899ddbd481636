"""Random and mutated bytes at everything in storage that reads a peer's words. Nothing may raise.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from drivers.disk import FileDisk
from drivers.workers import IoWorkers
from partitions.child.storvsc import StorVsc
from partitions.parent import scsi_target
from partitions.parent.storvsp import StorVspSession
from vmbus_emu.channel import MemoryChannel, channel_pair, deliver_all
from vmbus_emu.device import BlockInfo, BlockRequest, Op, Status
from vmbus_emu.loop import Loop
from vmbus_emu.protocol import scsi, vstor
from vmbus_emu.protocol.packets import COMPLETION, COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND, PACKET_TYPES
from vmbus_emu.protocol.vstor import Direction, Operation

Fuzz = Callable[[int], Iterator[int]]
INFO = BlockInfo(block_count=256, serial="fuzz")
HANDSHAKE = (
    vstor.encode(Operation.BEGIN_INIT),
    vstor.encode(Operation.QUERY_PROTOCOL_VERSION, 0x0602, 0),
    vstor.encode(Operation.QUERY_PROPERTIES),
    vstor.encode(Operation.END_INIT),
)
NEGOTIATION = [operation for operation, row in vstor.MESSAGES.items() if row.from_guest]
OPCODES = [*(int(opcode) for opcode in scsi.Opcode), 0x7F, 0xFF]


def turn(loop: Loop) -> None:
    """Run what is deferred now."""
    done: list[bool] = []
    loop.call_soon(done.append, True)
    assert loop.run_until(lambda: bool(done), 5)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """``data`` with a few bytes changed, now and then cut or made longer."""
    changed = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    if rng.random() < 0.03:
        del changed[rng.randrange(len(changed) + 1) :]
    elif rng.random() < 0.03:
        changed += rng.randbytes(rng.randint(1, 64))
    return bytes(changed)


def random_cdb(rng: random.Random) -> bytes:
    """A known command more often than not, with fields that lie near the edges."""
    opcode = rng.choice(OPCODES)
    fields = scsi.TRANSFER_FIELDS.get(opcode)
    if fields is not None and rng.random() < 0.7:
        cdb = bytearray(fields.pack(rng.choice((0, scsi.FUA)), rng.choice((0, 1, 200, 255, 256)), rng.randint(0, 3)))
    else:
        cdb = bytearray(rng.choice((bytes(15), rng.randbytes(15))).rjust(16, b"\0"))
        cdb[1] = rng.choice((0, 1, scsi.READ_CAPACITY_16, rng.randrange(256)))
    cdb[0] = opcode
    return bytes(cdb[:16]).ljust(16, b"\0")


def random_packet(rng: random.Random) -> tuple[int, int, int, bytes, bytes | None]:
    """A packet as a guest might send it: sensible, nearly sensible, or noise."""
    kind, data = IN_BAND, None
    choice = rng.random()
    if choice < 0.02:
        message = rng.randbytes(rng.choice((0, 12, 48, 63, 64, 64, 64, 65)))
    elif choice < 0.15:
        message = vstor.encode(rng.choice(NEGOTIATION if rng.random() < 0.9 else list(Operation)))
    else:
        direction = rng.choice(list(Direction))
        cdb = random_cdb(rng)
        length = 0 if direction is Direction.NONE else rng.choice((0, 8, 24, 255, 512, 1024, 4096))
        if direction is Direction.OUT and length:
            data = rng.choice((rng.randbytes(length), scsi.encode_unmap_list(rng.randint(0, 300), 8).ljust(length)))
            length = len(data)
            if cdb[0] == scsi.Opcode.UNMAP:
                cdb = scsi.unmap(min(length, 24)).ljust(16, b"\0")
        message = bytes(vstor.execute_srb(cdb, direction, length))
        kind = GPA_DIRECT if length else IN_BAND
    if rng.random() < 0.1:
        message = mutated(rng, message)
    if rng.random() < 0.02:
        data = rng.choice((None, b"", rng.randbytes(rng.randint(1, 600))))
    if rng.random() < 0.02:
        kind = rng.choice(sorted(PACKET_TYPES))
    flags = 0 if rng.random() < 0.01 else COMPLETION_REQUESTED
    return kind, flags, rng.getrandbits(64), message, data


def test_decoders_never_raise(fuzz: Fuzz) -> None:
    for case in fuzz(15_000):
        rng = random.Random(case)
        seeds = (
            vstor.complete_srb(4, 2, 0, scsi.encode_sense(scsi.READ_ERROR)),
            bytes(vstor.execute_srb(random_cdb(rng), Direction.IN, 512)),
            scsi.encode_unmap_list(rng.getrandbits(60), rng.getrandbits(rng.randint(1, 40))),
            rng.randbytes(rng.randint(0, 100)),
        )
        data = mutated(rng, rng.choice(seeds))
        header = vstor.decode_header(data)
        assert (header is None) == (len(data) != vstor.PACKET_SIZE)
        done = vstor.decode_completion(data)
        assert done is None or len(done.sense) <= vstor.SENSE_SIZE
        for operation in Operation:
            vstor.decode_fields(operation, data)
        ranges = scsi.decode_unmap_list(data)
        assert ranges is None or 8 + 16 * len(ranges) <= len(data)
        sense = scsi.decode_sense(data)
        assert sense is None or sense.key < 16
        scsi.decode_capacity_16(data)
        scsi.decode_serial(data)
        scsi.decode_write_protected(data)


def test_control_commands_answer_every_cdb(fuzz: Fuzz) -> None:
    for case in fuzz(10_000):
        cdb = random_cdb(random.Random(case))
        for outcome in (scsi_target.control(cdb, INFO), scsi_target.absent(cdb)):
            assert not (outcome.sense and outcome.data)
            assert len(outcome.data) <= 255


class Nowhere:
    """Where no worker brings anything back: the medium is memory. A loop per case would cost two descriptors each."""

    working = 0

    def call_soon_threadsafe(self, callback: Callable[..., Any], *arguments: Any) -> None:
        raise AssertionError("a RAM disk used a worker")


class Neighbours:
    """Two sessions on one RAM disk: one gets the fuzz, the other must not notice."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("fuzz", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, INFO.size_bytes)
        self.disk = FileDisk(self.fd, INFO, IoWorkers(Nowhere()), memory=True)
        self.victim, victim_end = channel_pair()
        self.good, good_end = channel_pair()
        self.session = StorVspSession(victim_end, self.disk)
        self.neighbour = StorVspSession(good_end, self.disk)
        self.ends: list[MemoryChannel] = [self.victim, victim_end, self.good, good_end]
        self.victim_end = victim_end
        self.failures: list[str] = []
        victim_end.on_failed = self.failures.append
        self.answers: list[int] = []
        self.victim.on_packet = self._answered
        self.good_answers: list[vstor.Completion | None] = []
        self.good.on_packet = lambda kind, flags, tid, message, data: self.good_answers.append(
            vstor.decode_completion(message)
        )
        for packet in HANDSHAKE:
            self.good.send(IN_BAND, COMPLETION_REQUESTED, 1, packet)
        deliver_all(*self.ends)

    def _answered(self, kind: int, flags: int, tid: int, message: bytes, data: bytes | None) -> None:
        assert (kind, flags, len(message)) == (COMPLETION, 0, vstor.PACKET_SIZE)
        completion = vstor.decode_completion(message)
        assert completion is not None
        assert data is None or completion.moved == len(data)
        self.answers.append(tid)

    def close(self) -> None:
        os.close(self.fd)


@pytest.mark.parametrize("stage", range(len(HANDSHAKE) + 1))
def test_a_session_survives_any_guest_in_every_state(fuzz: Fuzz, stage: int) -> None:
    for case in fuzz(1500):
        rng = random.Random(stage << 32 | case)
        pair = Neighbours()
        for packet in HANDSHAKE[:stage]:
            pair.victim.send(IN_BAND, COMPLETION_REQUESTED, 0, packet)
        deliver_all(*pair.ends)
        assert len(pair.answers) == stage
        pair.answers.clear()
        sent = []
        for _ in range(30):
            packet = random_packet(rng)
            if not pair.victim.send(*packet):
                break
            sent.append(packet[2])
            deliver_all(*pair.ends)
        # Either every packet was answered with its own id, or the last one failed the channel, once.
        assert pair.answers == (sent[:-1] if pair.failures else sent), (stage, case)
        assert len(pair.failures) == (1 if pair.victim_end.closed else 0)
        assert pair.session.stats().protocol_errors == len(pair.failures)
        assert pair.session.stats().outstanding == 0
        pair.good.send(IN_BAND, COMPLETION_REQUESTED, 9, vstor.execute_srb(scsi.test_unit_ready(), Direction.NONE))
        deliver_all(*pair.ends)
        assert len(pair.good_answers) == len(HANDSHAKE) + 1
        last = pair.good_answers[-1]
        assert last is not None
        assert last[:3] == (0, 1, 0)
        pair.close()


def test_a_vsc_survives_any_server(fuzz: Fuzz) -> None:
    for case in fuzz(1500):
        rng = random.Random(case)
        loop = Loop()
        log: list[str] = []
        vsc = StorVsc(loop, "fuzz", log.append)
        guest, server = channel_pair()
        seen: list[int] = []
        server.on_packet = lambda kind, flags, tid, message, data, seen=seen: seen.append(tid)
        failures: list[str] = []
        guest.on_failed = failures.append
        honest = rng.random() < 0.7
        if honest:      # an honest handshake first, so that the noise meets outstanding requests
            fd = os.memfd_create("fuzz", os.MFD_CLOEXEC)
            os.ftruncate(fd, INFO.size_bytes)
            StorVspSession(server, FileDisk(fd, INFO, IoWorkers(loop), memory=True))
        attached = vsc.attach(guest)
        for _ in range(40 if honest else rng.randint(0, 6)):
            turn(loop)
            deliver_all(guest, server)
        if honest:
            assert attached.result()
            server.on_packet = lambda kind, flags, tid, message, data, seen=seen: seen.append(tid)
            os.close(fd)
        finished: list[BlockRequest] = []
        requests = [
            BlockRequest(op, rng.randint(0, 64), 2, bytearray(1024), finished.append)
            for op in rng.choices((Op.READY, Op.READ, Op.WRITE, Op.UNMAP, Op.FLUSH), k=12)
        ]
        for request in requests:
            vsc.submit(request)
        for _ in range(30):
            turn(loop)
            deliver_all(guest, server)
            message = rng.choice((
                vstor.complete_good(rng.choice((0, 24, 512, 1024))),
                vstor.complete_srb(rng.randrange(256), rng.randrange(256), 0, rng.randbytes(rng.choice((0, 18, 20)))),
                vstor.encode(rng.choice(list(Operation))),
            ))  # fmt: skip
            if rng.random() < 0.2:
                message = mutated(rng, message)
            tid = rng.choice(seen) if seen and rng.random() < 0.9 else rng.getrandbits(64)
            if tid in seen and rng.random() < 0.9:
                seen.remove(tid)
            kind = COMPLETION if rng.random() < 0.97 else rng.choice(sorted(PACKET_TYPES))
            data = rng.choice((None, b"", bytes(1024), rng.randbytes(rng.randint(1, 2048))))
            server.send(kind, 0, tid, message, data)
        deliver_all(guest, server)
        turn(loop)
        assert len(failures) <= 1
        assert len(set(map(id, finished))) == len(finished)
        assert vsc.stats().outstanding == len(requests) - len(finished)
        vsc.give_up()
        for _ in range(4):
            turn(loop)
        assert len(finished) == len(requests), case
        assert attached.done
        assert all(request.status in Status for request in finished)
        loop.close()
