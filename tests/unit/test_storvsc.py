"""The VSC alone: a scripted server at the other end of a memory channel, answering when the test says so.

Long, because all of it drives one scripted server.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from partitions.child.storvsc import StorVsc
from partitions.parent import scsi_target
from vmbus_emu.channel import channel_pair
from vmbus_emu.device import BLOCK_SIZE, BlockInfo, BlockRequest, Buffer, Op, Status
from vmbus_emu.loop import Loop
from vmbus_emu.protocol import scsi, vstor
from vmbus_emu.protocol.packets import COMPLETION, COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND
from vmbus_emu.protocol.vstor import Operation, State
from vmbus_emu.task import Future

INFO = BlockInfo(block_count=4096, serial="one")


class Packet(NamedTuple):
    kind: int
    tid: int
    message: bytes
    data: Buffer | None

    @property
    def cdb(self) -> bytes:
        return self.message[28:44]


class Server:
    """The VSP's end: shakes hands by itself, and keeps every request that would reach a driver."""

    def __init__(self, info: BlockInfo = INFO, oldest: int | None = None, room: int = 512) -> None:
        self.guest_end, self.channel = channel_pair(room)
        self.info = info
        self.oldest = oldest            # accept only this version
        self.versions: list[int] = []
        self.state = State.BEGIN
        self.requests: list[Packet] = []
        self.failures: list[str] = []
        self.channel.on_packet = self._received
        self.guest_end.on_failed = self.failures.append

    def _received(self, kind: int, flags: int, tid: int, message: bytes, data: Buffer | None) -> None:
        assert flags == COMPLETION_REQUESTED
        operation = Operation(int.from_bytes(message[:4], "little"))
        if self.state is not State.READY:
            if operation is Operation.QUERY_PROTOCOL_VERSION:
                self.versions.append(int.from_bytes(message[12:14], "little"))
                if self.oldest not in (None, self.versions[-1]):
                    answer = vstor.encode(Operation.COMPLETE_IO, status=vstor.NtStatus.REVISION_MISMATCH)
                    self.channel.send(COMPLETION, 0, tid, answer)
                    return
            self.state, answer = vstor.answer(self.state, operation, message, 1 << 20)
            self.channel.send(COMPLETION, 0, tid, answer)
        elif message[28] in (scsi.Opcode.INQUIRY, scsi.Opcode.SERVICE_ACTION_IN_16, scsi.Opcode.MODE_SENSE_6):
            self.respond(Packet(kind, tid, message, data), scsi_target.control(message[28:44], self.info))
        else:
            self.requests.append(Packet(kind, tid, message, data))

    def respond(self, packet: Packet, outcome: scsi_target.Outcome) -> None:
        srb_status, scsi_status, sense, data = outcome
        answer = vstor.complete_srb(srb_status, scsi_status, len(data), sense)
        self.channel.send(COMPLETION, 0, packet.tid, answer, data or None)

    def answer(self, index: int = 0, moved: int | None = None, data: bytes | None = None) -> Packet:
        """Complete one of the requests, well unless told otherwise."""
        packet = self.requests.pop(index)
        length = int.from_bytes(packet.message[24:28], "little")
        if data is None and packet.cdb[0] == scsi.Opcode.READ_16 and length:
            data = bytes(length)
        self.channel.send(COMPLETION, 0, packet.tid, vstor.complete_good(length if moved is None else moved), data)
        self.guest_end.deliver()
        self.channel.deliver()
        return packet

    def spans(self) -> list[tuple[int, int]]:
        """Opcode and LBA of what arrived and waits."""
        return [(packet.cdb[0], int.from_bytes(packet.cdb[2:10], "big")) for packet in self.requests]


class Rig:
    def __init__(self) -> None:
        self.loop = Loop()
        self.log: list[str] = []
        self.vsc = StorVsc(self.loop, "disk0", self.log.append)
        self.done: list[BlockRequest] = []

    def attach(self, server: Server) -> bool:
        outcome = self.vsc.attach(server.guest_end)
        self.settle(server, outcome)
        return outcome.result()

    def settle(self, server: Server, outcome: Future[bool]) -> None:
        def settled() -> bool:
            self.pump(server)
            return outcome.done

        assert self.loop.run_until(settled, 5)
        self.pump(server)

    def pump(self, server: Server) -> None:
        while server.channel.deliver() + server.guest_end.deliver():
            pass

    def submit(self, op: Op, lba: int = 0, blocks: int = 0, buffer: Buffer | None = None) -> BlockRequest:
        if buffer is None and op in (Op.READ, Op.WRITE):
            buffer = bytearray(blocks * BLOCK_SIZE)
        request = BlockRequest(op, lba, blocks, buffer, self.done.append)
        self.vsc.submit(request)
        return request


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.loop.close()


@pytest.fixture
def server(rig: Rig) -> Server:
    server = Server()
    assert rig.attach(server)
    return server


def statuses(requests: list[BlockRequest]) -> list[Status | None]:
    return [request.status for request in requests]


# -- the handshake --------------------------------------------------------------------------------------------------


def test_the_handshake_learns_what_the_disk_is(rig: Rig) -> None:
    server = Server(BlockInfo(block_count=77, serial="abc", read_only=True))
    assert rig.attach(server)
    assert rig.vsc.info == BlockInfo(block_count=77, serial="abc", read_only=True)
    assert rig.vsc.link_stats().attached
    assert not rig.log


@pytest.mark.parametrize(("oldest", "asked"), [(0x0602, 1), (0x0600, 2), (0x0501, 3)])
def test_versions_step_down_from_the_newest(rig: Rig, oldest: int, asked: int) -> None:
    server = Server(oldest=oldest)
    assert rig.attach(server)
    assert server.versions == [0x0602, 0x0600, 0x0501][:asked]


def test_a_server_that_speaks_no_known_version_is_no_disk(rig: Rig) -> None:
    assert not rig.attach(Server(oldest=0x9999))
    assert rig.log == ["disk0: no disk: the server speaks none of our protocol versions"]


def test_a_channel_that_goes_away_during_the_handshake_ends_it(rig: Rig) -> None:
    server = Server()
    outcome = rig.vsc.attach(server.guest_end)
    assert rig.loop.run_until(lambda: bool(server.channel.inbox), 5)
    rig.vsc.detach()
    rig.settle(server, outcome)
    assert outcome.result() is False
    assert "went away" in rig.log[0]


def test_a_channel_nobody_listens_to_is_no_disk(rig: Rig) -> None:
    server = Server()
    server.channel.close()
    assert not rig.attach(server)


def test_another_disk_behind_the_same_name_is_refused(rig: Rig, server: Server) -> None:
    rig.submit(Op.WRITE, 0, 1)
    rig.vsc.detach()
    other = Server(BlockInfo(block_count=4096, serial="two"))
    assert not rig.attach(other)
    assert not other.requests
    assert "'two'" in rig.log[0]
    assert not rig.done


# -- requests -------------------------------------------------------------------------------------------------------


def test_each_operation_is_its_scsi_command(rig: Rig, server: Server) -> None:
    rig.submit(Op.READY)
    rig.submit(Op.READ, 1 << 33, 2)
    rig.submit(Op.WRITE, 16, 1, b"w" * 512)
    rig.submit(Op.FLUSH)
    rig.submit(Op.UNMAP, 24, 8)
    rig.pump(server)
    ready, read, write, flush, unmap = server.requests
    assert (ready.kind, ready.cdb[0], ready.data) == (IN_BAND, 0x00, None)
    assert (read.kind, read.cdb, read.data) == (GPA_DIRECT, scsi.read_16(1 << 33, 2), None)
    assert read.message[22:28] == bytes((1, 0)) + (1024).to_bytes(4, "little")
    assert (write.kind, write.cdb, write.data) == (GPA_DIRECT, scsi.write_16(16, 1), b"w" * 512)
    assert (flush.kind, flush.cdb[0], flush.data) == (IN_BAND, 0x91, None)
    assert (unmap.kind, unmap.cdb[0]) == (GPA_DIRECT, 0x42)
    assert isinstance(unmap.data, bytes)
    assert scsi.decode_unmap_list(unmap.data) == [(24, 8)]
    assert len({packet.tid for packet in server.requests}) == 5
    for _ in range(5):
        server.answer()
    assert statuses(rig.done) == [Status.OK] * 5


def test_read_data_lands_in_the_buffer(rig: Rig, server: Server) -> None:
    buffer = rig.vsc.allocate(1024)
    rig.submit(Op.READ, 0, 2, buffer)
    rig.pump(server)
    server.answer(data=b"x" * 1024)
    assert bytes(buffer) == b"x" * 1024
    stats = rig.vsc.stats()
    assert (stats.reads, stats.read_bytes, stats.outstanding, stats.errors) == (1, 1024, 0, 0)


def test_answers_may_come_in_any_order(rig: Rig, server: Server) -> None:
    first, second = rig.submit(Op.READ, 0, 1), rig.submit(Op.READ, 8, 1)
    rig.pump(server)
    server.answer(1)
    assert statuses([first, second]) == [None, Status.OK]
    server.answer(0)
    assert first.status is Status.OK


@pytest.mark.parametrize(("moved", "length"), [(512, 512), (1024, 512), (512, 1024), (1024, 1025), (0, 1024)])
def test_a_read_of_another_length_is_an_error_and_never_looks_whole(
    rig: Rig, server: Server, moved: int, length: int
) -> None:
    buffer = bytearray(b"old!" * 256)
    rig.submit(Op.READ, 0, 2, buffer)
    rig.pump(server)
    server.answer(moved=moved, data=bytes(length))
    assert statuses(rig.done) == [Status.IO_ERROR]
    assert buffer == b"old!" * 256
    assert rig.vsc.link_stats().wrong_lengths == 1


def test_a_write_that_moved_less_is_an_error(rig: Rig, server: Server) -> None:
    rig.submit(Op.WRITE, 0, 2)
    rig.pump(server)
    server.answer(moved=512)
    assert statuses(rig.done) == [Status.IO_ERROR]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (scsi_target.INVALID_OPCODE, Status.UNSUPPORTED),
        (scsi_target.LBA_OUT_OF_RANGE, Status.OUT_OF_RANGE),
        (scsi_target.INVALID_FIELD, Status.INVALID),
        (scsi_target.INVALID_PARAMETERS, Status.INVALID),
        (scsi_target.check_condition(scsi.IS_WRITE_PROTECTED), Status.READ_ONLY),
        (scsi_target.check_condition(scsi.READ_ERROR), Status.IO_ERROR),
        (scsi_target.check_condition(scsi.NO_SENSE), Status.IO_ERROR),
        (scsi_target.BUSY, Status.BUSY),
        (scsi_target.Outcome(scsi_status=0x28), Status.BUSY),
        (scsi_target.Outcome(scsi_status=0x18), Status.IO_ERROR),
        (scsi_target.Outcome(srb_status=0x20), Status.GONE),
        (scsi_target.Outcome(srb_status=0x30), Status.IO_ERROR),
        (scsi_target.Outcome(srb_status=0), Status.IO_ERROR),
    ],
)
def test_what_scsi_says_becomes_a_status(
    rig: Rig, server: Server, outcome: scsi_target.Outcome, status: Status
) -> None:
    rig.submit(Op.READ, 0, 1)
    rig.pump(server)
    server.respond(server.requests.pop(), outcome)
    rig.pump(server)
    assert statuses(rig.done) == [status]
    assert rig.vsc.stats().errors == 1


@pytest.mark.parametrize(
    ("op", "lba", "blocks", "buffer", "status"),
    [
        (Op.READ, 0, 1, None, Status.INVALID),
        (Op.READ, 0, 1, bytearray(511), Status.INVALID),
        (Op.READ, 0, 1, bytes(512), Status.INVALID),
        (Op.READ, 0, 1, memoryview(bytes(512)), Status.INVALID),
        (Op.WRITE, 0, 2049, bytes(2049 * 512), Status.INVALID),
        (Op.READ, -1, 1, bytearray(512), Status.OUT_OF_RANGE),
        (Op.READ, (1 << 64) - 1, 2, bytearray(1024), Status.OUT_OF_RANGE),
        (Op.READ, 1 << 64, 0, bytearray(), Status.OUT_OF_RANGE),
        (Op.UNMAP, 0, -1, None, Status.OUT_OF_RANGE),
        (Op.UNMAP, 0, 1 << 60, None, Status.OUT_OF_RANGE),
        (99, 0, 0, None, Status.UNSUPPORTED),
    ],
)
def test_what_fits_in_no_packet_is_refused_at_once(
    rig: Rig, server: Server, op: Op, lba: int, blocks: int, buffer: Buffer | None, status: Status
) -> None:
    request = BlockRequest(op, lba, blocks, buffer)
    rig.vsc.submit(request)
    rig.pump(server)
    assert request.status is status
    assert not server.requests


def test_range_and_write_protection_are_the_targets_business(rig: Rig, server: Server) -> None:
    rig.submit(Op.READ, 1 << 40, 1)
    rig.pump(server)
    assert server.spans() == [(0x88, 1 << 40)]


def test_one_more_than_the_depth_is_busy(rig: Rig, server: Server) -> None:
    depth = rig.vsc.info.queue_depth
    for index in range(depth):
        rig.submit(Op.READ, index, 1)
    assert rig.submit(Op.READ, 0, 1).status is Status.BUSY
    rig.pump(server)
    assert len(server.requests) == depth
    server.answer()
    assert rig.submit(Op.READ, 0, 1).status is None


def test_a_request_the_channel_has_no_room_for_goes_after_the_next_completion(rig: Rig) -> None:
    room = 8                        # what the handshake needs: all of a second attach is under way at once
    server = Server(room=room)
    assert rig.attach(server)
    requests = [rig.submit(Op.READ, 8 * number, 1) for number in range(room + 1)]
    server.channel.deliver()
    assert len(server.requests) == room
    for request in requests:
        server.answer()
        assert request.status is Status.OK


def test_a_second_attach_waits_for_no_answer_before_it_has_said_everything(rig: Rig) -> None:
    server = Server(room=8)
    assert rig.attach(server)
    again = Server(room=8)
    attached = rig.vsc.attach(again.guest_end)
    assert rig.loop.run_until(lambda: len(again.channel.inbox) == 8, 5)
    rig.settle(again, attached)
    assert attached.result()


# -- order (design rule 7) ------------------------------------------------------------------------------------------

READ, WRITE, UNMAP = Op.READ, Op.WRITE, Op.UNMAP
R, W, U = 0x88, 0x8A, 0x42


@pytest.mark.parametrize(
    ("first", "second", "waits"),
    [
        ((WRITE, 0, 8), (WRITE, 7, 1), True),
        ((WRITE, 0, 8), (WRITE, 8, 1), False),
        ((WRITE, 8, 8), (READ, 0, 9), True),
        ((WRITE, 8, 8), (READ, 0, 8), False),
        ((READ, 0, 8), (WRITE, 0, 1), True),
        ((READ, 0, 8), (UNMAP, 4, 100), True),
        ((READ, 0, 8), (READ, 0, 8), False),
        ((UNMAP, 0, 1000), (READ, 500, 1), True),
        ((UNMAP, 0, 1000), (UNMAP, 999, 1), True),
        ((WRITE, 5, 0), (WRITE, 5, 1), False),
        ((WRITE, 0, 8), (Op.FLUSH, 0, 0), False),
        ((WRITE, 0, 8), (Op.READY, 0, 0), False),
    ],
)
def test_does_the_second_wait_for_the_first(
    rig: Rig, server: Server, first: tuple[Op, int, int], second: tuple[Op, int, int], waits: bool
) -> None:
    rig.submit(*first)
    rig.submit(*second)
    rig.pump(server)
    assert len(server.requests) == (1 if waits else 2)
    server.answer()
    assert len(server.requests) == 1
    server.answer()
    assert statuses(rig.done) == [Status.OK, Status.OK]
    assert [request.op for request in rig.done] == [first[0], second[0]]


def test_requests_that_overlap_go_in_the_order_they_came(rig: Rig, server: Server) -> None:
    rig.submit(WRITE, 0, 8)
    rig.submit(WRITE, 0, 16)        # waits for the first
    rig.submit(READ, 12, 1)         # overlaps only what waits, and must not overtake it
    rig.submit(READ, 100, 1)        # has nothing to do with any of them
    rig.pump(server)
    assert server.spans() == [(W, 0), (R, 100)]
    assert rig.vsc.link_stats().held == 2
    server.answer()
    assert server.spans() == [(R, 100), (W, 0)]
    server.answer(1)
    assert server.spans() == [(R, 100), (R, 12)]
    assert rig.vsc.stats().outstanding == 2


def test_held_requests_count_towards_the_depth(rig: Rig, server: Server) -> None:
    for _ in range(rig.vsc.info.queue_depth):
        rig.submit(WRITE, 0, 1)
    assert rig.submit(READ, 100, 1).status is Status.BUSY
    rig.pump(server)
    assert len(server.requests) == 1


# -- the channel's life -----------------------------------------------------------------------------------------------


def test_requests_before_the_first_channel_are_kept_and_sent_after_the_handshake(rig: Rig) -> None:
    rig.submit(READ, 3, 1)
    rig.submit(Op.FLUSH)
    server = Server()
    assert rig.attach(server)
    assert server.spans() == [(R, 3), (0x91, 0)]
    server.answer()
    server.answer()
    assert statuses(rig.done) == [Status.OK, Status.OK]
    assert rig.vsc.link_stats().resubmitted == 0


def test_keeping_requests_is_bounded_too(rig: Rig) -> None:
    for _ in range(rig.vsc.info.queue_depth):
        rig.submit(Op.READY)
    assert rig.submit(Op.READY).status is Status.BUSY
    rig.vsc.give_up()


def test_outstanding_requests_are_sent_again_in_order_with_new_ids(rig: Rig, server: Server) -> None:
    rig.submit(WRITE, 0, 8, b"1" * 4096)
    rig.submit(READ, 50, 1)
    rig.submit(WRITE, 4, 8, b"2" * 4096)       # held
    rig.pump(server)
    ids = {packet.tid for packet in server.requests}
    rig.vsc.detach()
    rig.submit(READ, 70, 1)
    assert not rig.done
    again = Server()
    assert rig.attach(again)
    assert again.spans() == [(W, 0), (R, 50), (R, 70)]
    assert again.requests[0].data == b"1" * 4096
    assert not ids & {packet.tid for packet in again.requests}
    assert rig.vsc.link_stats().resubmitted == 2
    again.answer()
    assert again.spans() == [(R, 50), (R, 70), (W, 4)]
    while again.requests:
        again.answer()
    assert statuses(rig.done) == [Status.OK] * 4


def test_a_late_answer_from_the_old_channel_is_nothing(rig: Rig, server: Server) -> None:
    request = rig.submit(READ, 0, 1)
    rig.pump(server)
    rig.vsc.detach()
    server.answer()
    assert request.status is None
    again = Server()
    assert rig.attach(again)
    again.answer()
    assert request.status is Status.OK


def test_a_channel_lost_during_the_second_handshake_loses_no_request(rig: Rig, server: Server) -> None:
    request = rig.submit(WRITE, 0, 1)
    rig.vsc.detach()
    assert not rig.attach(Server(oldest=0x9999))
    again = Server()
    assert rig.attach(again)
    assert again.spans() == [(W, 0)]
    again.answer()
    assert request.status is Status.OK


def test_giving_up_ends_everything_with_gone(rig: Rig, server: Server) -> None:
    rig.submit(WRITE, 0, 1)
    rig.submit(WRITE, 0, 1)
    rig.vsc.detach()
    rig.submit(READ, 9, 1)
    rig.vsc.give_up()
    rig.submit(Op.READY)
    assert statuses(rig.done) == [Status.GONE] * 4
    assert rig.vsc.stats().outstanding == 0
    rig.vsc.give_up()
    assert not rig.attach(Server())
    assert len(rig.done) == 4


def test_a_request_is_out_of_the_table_before_its_owner_sees_it(rig: Rig, server: Server) -> None:
    seen: list[int] = []
    rig.vsc.submit(BlockRequest(Op.READY, on_done=lambda request: seen.append(rig.vsc.stats().outstanding)))
    rig.pump(server)
    server.answer()
    assert seen == [0]


def test_a_completion_may_submit_again(rig: Rig, server: Server) -> None:
    left = [3]

    def again(request: BlockRequest) -> None:
        if left[0]:
            left[0] -= 1
            rig.vsc.submit(BlockRequest(Op.READY, on_done=again))

    again(BlockRequest(Op.READY))
    rig.pump(server)
    while server.requests:
        server.answer()
    assert left == [0]
    assert rig.vsc.stats().other == 3


# -- a server that breaks the rules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message", "reason"),
    [
        (COMPLETION, vstor.complete_good(0), "completion for unknown transaction"),
        (COMPLETION, vstor.complete_good(0)[:63], "vstor packet of 63 bytes"),
        (COMPLETION, vstor.encode(Operation.ENUMERATE_BUS), "completion with vstor operation 11"),
        (IN_BAND, vstor.complete_good(0), "packet type 6 with vstor operation 1 from a server"),
        (GPA_DIRECT, vstor.encode(Operation.ENUMERATE_BUS), "packet type 9 with vstor operation 11 from a server"),
        (IN_BAND, b"", "vstor packet of 0 bytes"),
    ],
    ids=["unknown", "short", "operation", "type", "ranges", "empty"],
)
def test_what_no_server_may_send_fails_the_channel_and_loses_no_request(
    rig: Rig, server: Server, kind: int, message: bytes, reason: str
) -> None:
    request = rig.submit(READ, 0, 1)
    server.channel.send(kind, 0, 12345, message)
    rig.pump(server)
    assert server.failures == [reason]
    assert rig.vsc.link_stats().protocol_errors == 1
    assert request.status is None
    again = Server()
    assert rig.attach(again)
    again.answer()
    assert request.status is Status.OK


def test_a_second_completion_of_the_same_request_fails_the_channel(rig: Rig, server: Server) -> None:
    request = rig.submit(Op.READY)
    rig.pump(server)
    packet = server.answer()
    server.channel.send(COMPLETION, 0, packet.tid, vstor.complete_good(0))
    rig.pump(server)
    assert request.status is Status.OK
    assert server.failures == ["completion for unknown transaction"]
    assert rig.vsc.link_stats().unknown_completions == 1


@pytest.mark.parametrize("operation", [Operation.ENUMERATE_BUS, Operation.REMOVE_DEVICE])
def test_a_rescan_is_heard_and_changes_nothing(rig: Rig, server: Server, operation: Operation) -> None:
    server.channel.send(IN_BAND, 0, 0, vstor.encode(operation))
    rig.pump(server)
    assert not server.failures
    assert rig.vsc.link_stats().attached


# -- raw commands -----------------------------------------------------------------------------------------------------


def test_a_raw_command_brings_back_what_the_disk_said(rig: Rig, server: Server) -> None:
    page = rig.vsc.command(scsi.inquiry(255, 0x80), 255)
    bad = rig.vsc.command(scsi.inquiry(255, 0x99), 255)
    rig.pump(server)
    srb_status, scsi_status, data, sense = page.result()
    assert (srb_status, scsi_status, scsi.decode_serial(data), sense) == (1, 0, "one", b"")
    srb_status, scsi_status, data, sense = bad.result()
    assert (srb_status, scsi_status, data) == (4, 2, b"")
    assert scsi.decode_sense(sense) == scsi.INVALID_FIELD_IN_CDB


def test_a_raw_command_without_a_disk_says_so(rig: Rig, server: Server) -> None:
    assert rig.vsc.command(bytes(17)).result()[0] == 6
    assert rig.vsc.command(b"").result()[0] == 6
    assert rig.vsc.command(bytes(6), -1).result()[0] == 6
    lost = rig.vsc.command(bytes(6))
    rig.vsc.detach()
    assert lost.result()[0] == 8
    assert rig.vsc.command(bytes(6)).result()[0] == 8


def test_more_data_than_a_raw_command_asked_for_fails_the_channel(rig: Rig, server: Server) -> None:
    result = rig.vsc.command(bytes((0x25,)) + bytes(9), 8)
    rig.pump(server)
    server.answer(data=bytes(9))
    assert result.result()[0] == 8
    assert server.failures == ["9 bytes of data where 8 were asked for"]
