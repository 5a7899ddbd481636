"""The VSP session alone: packets in at one end of a memory channel, a driver the test completes by hand.

Long, because all of it drives one session and one driver.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from drivers.disk import NullDisk
from partitions.parent.storvsp import StorVspSession
from vmbus_emu.channel import MemoryChannel, channel_pair
from vmbus_emu.device import BlockInfo, BlockRequest, BlockStats, Op, Status
from vmbus_emu.protocol import scsi, vstor
from vmbus_emu.protocol.packets import COMPLETION, COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND
from vmbus_emu.protocol.vstor import Direction, Operation

INFO = BlockInfo(block_count=1000, serial="s", queue_depth=4)


class HeldDisk:
    """Keeps every request until the test completes it."""

    def __init__(self, info: BlockInfo = INFO) -> None:
        self.info = info
        self.requests: list[BlockRequest] = []

    def submit(self, request: BlockRequest) -> None:
        self.requests.append(request)

    def allocate(self, nbytes: int) -> memoryview:
        return memoryview(bytearray(nbytes))

    def stats(self) -> BlockStats:
        return BlockStats()

    def finish(self, status: Status = Status.OK) -> BlockRequest:
        request = self.requests.pop(0)
        request.finish(status)
        return request


class Guest:
    """The far end of the session's channel, and what the session made of it."""

    def __init__(self, disk: HeldDisk | NullDisk, room: int = 512) -> None:
        self.near, far = channel_pair(room)
        self.far: MemoryChannel = far
        self.failures: list[str] = []
        far.on_failed = self.failures.append
        self.session = StorVspSession(far, disk, clock=lambda: 7.0)
        self.answers: list[tuple[int, vstor.Completion, bytes | None]] = []
        self.near.on_packet = self._answered

    def _answered(self, kind: int, flags: int, transaction_id: int, message: bytes, data: object) -> None:
        assert (kind, flags) == (COMPLETION, 0)
        completion = vstor.decode_completion(message)
        assert completion is not None
        assert data is None or isinstance(data, bytes)
        self.answers.append((transaction_id, completion, data))

    def send(
        self, packet: bytes | bytearray, data: bytes | None = None, *, kind: int = IN_BAND, flags: int = 1, tid: int = 1
    ) -> None:
        self.near.send(kind, flags, tid, packet, data)
        self.far.deliver()
        self.near.deliver()

    def shake_hands(self) -> Guest:
        for packet in (
            vstor.encode(Operation.BEGIN_INIT),
            vstor.encode(Operation.QUERY_PROTOCOL_VERSION, 0x0602, 0),
            vstor.encode(Operation.QUERY_PROPERTIES),
            vstor.encode(Operation.END_INIT),
        ):
            self.send(packet)
        assert [answer[1].status for answer in self.answers] == [0] * 4
        self.answers.clear()
        return self

    def execute(self, cdb: bytes, length: int = 0, data: bytes | None = None, tid: int = 1) -> None:
        direction = Direction.OUT if data is not None else Direction.IN if length else Direction.NONE
        kind = GPA_DIRECT if length else IN_BAND
        self.send(vstor.execute_srb(cdb, direction, length), data, kind=kind, tid=tid)

    def sense(self) -> tuple[int, int, int]:
        _, completion, data = self.answers.pop()
        assert (completion.srb_status, completion.scsi_status, completion.moved, data) == (4, 2, 0, None)
        sense = scsi.decode_sense(completion.sense)
        assert sense is not None
        return tuple(sense)


@pytest.fixture
def disk() -> HeldDisk:
    return HeldDisk()


@pytest.fixture
def guest(disk: HeldDisk) -> Guest:
    return Guest(disk).shake_hands()


def test_an_srb_before_ready_is_refused_and_never_reaches_the_driver(disk: HeldDisk) -> None:
    guest = Guest(disk)
    guest.execute(scsi.test_unit_ready())
    assert guest.answers[0][1].status == 0xC0000184
    assert not disk.requests
    assert not guest.failures
    assert guest.session.stats().refused == 1


def test_a_null_request_reaches_the_driver_and_is_answered_with_its_own_id(guest: Guest, disk: HeldDisk) -> None:
    guest.execute(scsi.test_unit_ready(), tid=(1 << 64) - 1)
    assert not guest.answers
    assert disk.finish().op is Op.READY
    guest.near.deliver()
    assert guest.answers == [((1 << 64) - 1, (0, 1, 0, 0, b""), None)]
    assert guest.session.stats().last_io == 7.0


@pytest.mark.parametrize(
    "cdb",
    [
        bytes((0x28, 0)) + (8).to_bytes(4, "big") + b"\0" + (4).to_bytes(2, "big") + b"\0",
        bytes((0xA8, 0)) + (8).to_bytes(4, "big") + (4).to_bytes(4, "big") + b"\0\0",
        scsi.read_16(8, 4),
    ],
)
def test_a_read_of_every_size_of_cdb_brings_the_data_with_its_completion(
    guest: Guest, disk: HeldDisk, cdb: bytes
) -> None:
    guest.execute(cdb, 2048)
    request = disk.requests[0]
    assert (request.op, request.lba, request.blocks) == (Op.READ, 8, 4)
    assert isinstance(request.buffer, memoryview)
    request.buffer[:] = b"abcd" * 512
    disk.finish()
    guest.near.deliver()
    assert guest.answers == [(1, (0, 1, 0, 2048, b""), b"abcd" * 512)]


@pytest.mark.parametrize(
    "cdb",
    [
        bytes((0x2A, 0)) + (8).to_bytes(4, "big") + b"\0" + (2).to_bytes(2, "big") + b"\0",
        bytes((0xAA, 0)) + (8).to_bytes(4, "big") + (2).to_bytes(4, "big") + b"\0\0",
        scsi.write_16(8, 2),
    ],
)
def test_a_write_of_every_size_of_cdb_takes_its_data_along(guest: Guest, disk: HeldDisk, cdb: bytes) -> None:
    guest.execute(cdb, 1024, b"w" * 1024)
    request = disk.finish()
    guest.near.deliver()
    assert (request.op, request.lba, request.blocks, bytes(request.buffer or b"")) == (Op.WRITE, 8, 2, b"w" * 1024)
    assert guest.answers == [(1, (0, 1, 0, 1024, b""), None)]
    assert guest.session.stats().written_bytes == 1024


def test_a_write_with_fua_is_flushed_before_it_completes(guest: Guest, disk: HeldDisk) -> None:
    guest.execute(scsi.write_16(0, 1, fua=True), 512, bytes(512))
    assert disk.finish().op is Op.WRITE
    guest.near.deliver()
    assert not guest.answers
    assert disk.finish().op is Op.FLUSH
    guest.near.deliver()
    assert guest.answers == [(1, (0, 1, 0, 512, b""), None)]


def test_a_failed_flush_fails_the_write_with_fua(guest: Guest, disk: HeldDisk) -> None:
    guest.execute(scsi.write_16(0, 1, fua=True), 512, bytes(512))
    disk.finish()
    disk.finish(Status.IO_ERROR)
    guest.near.deliver()
    assert guest.sense() == (3, 0x0C, 0)
    assert guest.session.stats().written_bytes == 0


@pytest.mark.parametrize("cdb", [bytes((0x35,)) + bytes(9), scsi.synchronize_cache_16()])
def test_synchronize_cache_is_a_flush(guest: Guest, disk: HeldDisk, cdb: bytes) -> None:
    guest.execute(cdb)
    assert disk.finish().op is Op.FLUSH


def test_one_more_than_the_depth_is_busy_and_is_not_kept(guest: Guest, disk: HeldDisk) -> None:
    for tid in range(1, 6):
        guest.execute(scsi.test_unit_ready(), tid=tid)
    assert len(disk.requests) == 4
    assert guest.answers == [(5, (0x80000011, 5, 8, 0, b""), None)]
    disk.finish()
    guest.execute(scsi.test_unit_ready(), tid=6)
    assert len(disk.requests) == 4
    assert guest.session.stats().busy == 1


def test_a_full_queue_still_answers_what_needs_no_driver(guest: Guest, disk: HeldDisk) -> None:
    for tid in range(4):
        guest.execute(scsi.test_unit_ready(), tid=tid)
    guest.execute(scsi.inquiry(36), 36, tid=9)
    assert guest.answers[0][0] == 9
    assert guest.answers[0][2] is not None
    assert len(guest.answers[0][2]) == guest.answers[0][1].moved == 36


def test_transaction_ids_are_opaque(guest: Guest, disk: HeldDisk) -> None:
    guest.execute(scsi.test_unit_ready(), tid=3)
    guest.execute(scsi.test_unit_ready(), tid=3)
    disk.finish()
    disk.finish()
    guest.near.deliver()
    assert [answer[0] for answer in guest.answers] == [3, 3]


def test_zero_blocks_are_a_request_that_does_nothing(guest: Guest, disk: HeldDisk) -> None:
    guest.execute(scsi.read_16(5, 0))
    assert disk.finish().blocks == 0
    guest.near.deliver()
    guest.execute(scsi.write_16(5, 0))
    assert disk.finish().blocks == 0
    guest.near.deliver()
    assert guest.answers == [(1, (0, 1, 0, 0, b""), None)] * 2


def test_more_blocks_than_the_data_is_a_bad_cdb_or_out_of_range(guest: Guest, disk: HeldDisk) -> None:
    guest.execute(scsi.read_16(0, 3), 1024)
    assert guest.sense() == (5, 0x24, 0)
    guest.execute(scsi.write_16(0, 3), 1024, bytes(1024))
    assert guest.sense() == (5, 0x24, 0)
    guest.execute(scsi.read_16((1 << 64) - 1, 0xFFFFFFFF), 1024)
    assert guest.sense() == (5, 0x21, 0)
    guest.execute(scsi.read_16(0, 1))
    assert guest.sense() == (5, 0x24, 0)
    assert not disk.requests


def test_fewer_blocks_than_the_data_moves_only_the_blocks(guest: Guest, disk: HeldDisk) -> None:
    guest.execute(scsi.write_16(0, 1), 1024, b"a" * 512 + b"b" * 512)
    assert bytes(disk.finish().buffer or b"") == b"a" * 512
    guest.execute(scsi.read_16(0, 1), 1024)
    disk.finish()
    guest.near.deliver()
    assert [answer[1].moved for answer in guest.answers] == [512, 512]


@pytest.mark.parametrize(
    ("status", "sense"),
    [
        (Status.OUT_OF_RANGE, (5, 0x21, 0)),
        (Status.READ_ONLY, (7, 0x27, 0)),
        (Status.INVALID, (5, 0x24, 0)),
        (Status.UNSUPPORTED, (5, 0x20, 0)),
        (Status.IO_ERROR, (3, 0x0C, 0)),
    ],
)
def test_a_drivers_status_becomes_sense(
    guest: Guest, disk: HeldDisk, status: Status, sense: tuple[int, int, int]
) -> None:
    guest.execute(scsi.write_16(0, 1), 512, bytes(512))
    disk.finish(status)
    guest.near.deliver()
    assert guest.sense() == sense


def unmap(ranges: list[tuple[int, int]]) -> bytes:
    body = b"".join(lba.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(4) for lba, count in ranges)
    return (len(body) + 6).to_bytes(2, "big") + len(body).to_bytes(2, "big") + bytes(4) + body


def test_an_unmap_of_several_ranges_is_several_requests_and_one_completion(guest: Guest, disk: HeldDisk) -> None:
    parameters = unmap([(0, 8), (5, 0), (100, 16)])
    guest.execute(scsi.unmap(len(parameters)), len(parameters), parameters)
    seen = []
    while disk.requests:
        assert not guest.answers
        request = disk.finish()
        seen.append((request.op, request.lba, request.blocks))
        guest.near.deliver()
    assert seen == [(Op.UNMAP, 0, 8), (Op.UNMAP, 100, 16)]
    assert len(guest.answers) == 1
    assert guest.answers[0][1][:3] == (0, 1, 0)


def test_an_unmap_stops_at_the_first_failure(guest: Guest, disk: HeldDisk) -> None:
    parameters = unmap([(0, 8), (8, 8), (16, 8)])
    guest.execute(scsi.unmap(len(parameters)), len(parameters), parameters)
    disk.finish()
    disk.finish(Status.READ_ONLY)
    guest.near.deliver()
    assert not disk.requests
    assert guest.sense() == (7, 0x27, 0)


def test_the_longest_unmap_list_does_not_recurse() -> None:
    guest = Guest(NullDisk(BlockInfo(block_count=10000))).shake_hands()
    parameters = unmap([(index, 1) for index in range(scsi.MAX_UNMAP_RANGES)])
    guest.execute(scsi.unmap(len(parameters)), len(parameters), parameters)
    assert guest.answers[0][1][:3] == (0, 1, 0)


@pytest.mark.parametrize(
    ("parameters", "listed", "sense"),
    [
        (unmap([(0, 8)])[:-1], 23, (5, 0x26, 0)),
        (unmap([(0, 8)]), 25, (5, 0x24, 0)),
        (unmap([(0, 8), (999, 2)]), 40, (5, 0x21, 0)),
        (unmap([((1 << 64) - 1, 0xFFFFFFFF)]), 24, (5, 0x21, 0)),
        (bytes(7), 7, (5, 0x26, 0)),
    ],
)
def test_a_bad_unmap_list_touches_nothing(
    guest: Guest, disk: HeldDisk, parameters: bytes, listed: int, sense: tuple[int, int, int]
) -> None:
    guest.execute(scsi.unmap(listed), len(parameters), parameters)
    assert guest.sense() == sense
    assert not disk.requests


def test_an_empty_unmap_is_good(guest: Guest, disk: HeldDisk) -> None:
    guest.execute(scsi.unmap(0))
    assert guest.answers[0][1][:3] == (0, 1, 0)


def test_a_cdb_shorter_than_its_command_is_a_bad_field(guest: Guest, disk: HeldDisk) -> None:
    guest.execute(scsi.read_16(0, 1)[:10], 512)
    assert guest.sense() == (5, 0x24, 0)
    guest.execute(b"")
    assert guest.sense() == (5, 0x24, 0)
    guest.execute(bytes((0x7F,)) * 16)
    assert guest.sense() == (5, 0x20, 0)


@pytest.mark.parametrize("position", [17, 18, 19])
def test_another_path_target_or_lun_is_not_there(guest: Guest, disk: HeldDisk, position: int) -> None:
    packet = vstor.execute_srb(scsi.inquiry(36), Direction.IN, 36)
    packet[position] = 1
    guest.send(packet, kind=GPA_DIRECT)
    assert guest.answers[0][1][:3] == (0, 1, 0)
    assert (guest.answers[0][2] or b"")[0] == 0x7F
    packet = vstor.execute_srb(scsi.test_unit_ready(), Direction.NONE)
    packet[position] = 1
    guest.send(packet)
    assert guest.answers[1][1][:3] == (0xC00000C0, 0x20, 0)
    assert not disk.requests


def damaged(offset: int, value: int) -> Callable[[bytearray], bytearray]:
    def damage(packet: bytearray) -> bytearray:
        packet[offset] = value
        return packet

    return damage


def read_packet(damage: Callable[[bytearray], bytearray] = lambda packet: packet) -> bytes:
    return bytes(damage(vstor.execute_srb(scsi.read_16(0, 1), Direction.IN, 512)))


@pytest.mark.parametrize(
    ("packet", "data", "kind", "flags"),
    [
        (read_packet(), None, GPA_DIRECT, 0),
        (read_packet()[:63], None, GPA_DIRECT, 1),
        (read_packet() + b"\0", None, GPA_DIRECT, 1),
        (b"", None, GPA_DIRECT, 1),
        (read_packet(), None, COMPLETION, 1),
        (read_packet(), None, 7, 1),
        (read_packet(), None, IN_BAND, 1),
        (read_packet(), bytes(512), GPA_DIRECT, 1),
        (read_packet(damaged(20, 17)), None, GPA_DIRECT, 1),
        (read_packet(damaged(22, 3)), None, GPA_DIRECT, 1),
        (read_packet(damaged(22, 2)), None, GPA_DIRECT, 1),
        (read_packet(damaged(22, 0)), None, GPA_DIRECT, 1),
        (read_packet(damaged(22, 0)), bytes(511), GPA_DIRECT, 1),
        (read_packet(damaged(27, 0xFF)), None, GPA_DIRECT, 1),
        (read_packet(damaged(26, 0x11)), None, GPA_DIRECT, 1),
        (vstor.encode(Operation.RESET_LUN), b"x", IN_BAND, 1),
        (vstor.encode(Operation.RESET_LUN), None, GPA_DIRECT, 1),
        (vstor.encode(Operation.COMPLETE_IO), None, IN_BAND, 1),
        (vstor.encode(Operation.ENUMERATE_BUS), None, IN_BAND, 1),
        (bytes(64), None, IN_BAND, 1),
        (b"\xff" * 64, None, IN_BAND, 1),
    ],
)
def test_what_no_guest_may_send_fails_this_channel_once(
    guest: Guest, disk: HeldDisk, packet: bytes, data: bytes | None, kind: int, flags: int
) -> None:
    guest.send(packet, data, kind=kind, flags=flags)
    guest.execute(scsi.test_unit_ready())
    assert len(guest.failures) == 1
    assert guest.far.closed
    assert guest.session.stats().protocol_errors == 1
    assert not guest.answers
    assert not disk.requests


def test_a_guest_that_never_listens_loses_its_channel() -> None:
    guest = Guest(NullDisk(INFO), room=4)
    guest.shake_hands()
    for tid in range(8):
        guest.near.send(IN_BAND, COMPLETION_REQUESTED, tid, vstor.execute_srb(scsi.test_unit_ready(), Direction.NONE))
        guest.far.deliver()
    assert guest.failures == ["the guest does not take its completions"]


def test_a_completion_after_close_is_dropped_counted_and_awaited(guest: Guest, disk: HeldDisk) -> None:
    parameters = unmap([(0, 8), (8, 8)])
    guest.execute(scsi.read_16(0, 1), 512)
    guest.execute(scsi.unmap(len(parameters)), len(parameters), parameters)
    drained = guest.session.close()
    assert guest.far.closed
    assert not drained.done
    disk.finish()
    disk.finish()
    assert not disk.requests        # the second range of the UNMAP is not begun any more
    assert drained.done
    assert not guest.answers
    assert guest.session.stats().dropped_completions == 2
    assert guest.session.close().done


def test_closing_an_idle_session_is_over_at_once(guest: Guest) -> None:
    assert guest.session.close().done
    assert not guest.failures


def test_a_driver_that_is_gone_is_no_device(guest: Guest, disk: HeldDisk) -> None:
    guest.execute(scsi.test_unit_ready())
    disk.finish(Status.GONE)
    guest.near.deliver()
    assert guest.answers == [(1, (0xC00000C0, 8, 0, 0, b""), None)]
