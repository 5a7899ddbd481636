"""The storage VSP's end of one channel: a guest's vstor packets in, requests to a disk driver, answers out.

A session is made for an open channel by whoever owns both (the VSP's process), and closed by it when the
channel is revoked. It owns neither the driver nor the offer. What it may rely on: the channel delivers whole
packets of a known type; everything inside a packet is the guest's word and is checked here.

* What the guest may not do at all (sizes, packet types, lengths that contradict each other) fails the channel.
* What the guest may ask and not get is an answer: an NTSTATUS in the handshake, SCSI sense afterwards.
* At most ``disk.info.queue_depth`` block requests are outstanding; one more is answered BUSY, never queued.

States and handshake are tables of :mod:`vmbus_emu.protocol.vstor`, commands that move no blocks are
:mod:`partitions.parent.scsi_target`; here is the data path. Protocol sheet 5.1-5.5 and 8 (17, 19).
(Longer than most files: it is one class, and every command reads and answers the same packet.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from partitions.parent import scsi_target
from partitions.parent.held_disk import HeldDisk
from partitions.parent.request_chain import RequestChain, Step
from partitions.parent.scsi_target import Outcome
from vmbus_emu.channel import Channel
from vmbus_emu.device import (
    BLOCK_SIZE,
    MAX_TRANSFER_BYTES,
    NULL,
    OK,
    READ,
    WRITE,
    BlockDevice,
    BlockRequest,
    Buffer,
    Memory,
    Op,
    Status,
    fill,
    first,
)
from vmbus_emu.protocol import scsi, vstor
from vmbus_emu.protocol.packets import COMPLETION, COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND
from vmbus_emu.protocol.scsi import Opcode
from vmbus_emu.protocol.vstor import Direction, Operation, State, complete_good
from vmbus_emu.task import Future

_LUN_0 = bytes(3)  # path, target, LUN
_OUT, _IN, _NONE = int(Direction.OUT), int(Direction.IN), int(Direction.NONE)
_EXECUTE_SRB, _READY = int(Operation.EXECUTE_SRB), State.READY
_execute, _PACKET_SIZE, _CDB_SIZE, _CDB_LENGTHS = (
    vstor.EXECUTE.unpack_from, vstor.PACKET_SIZE, vstor.CDB_SIZE, scsi.CDB_LENGTHS,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StorVspStats:
    """Counters of one session. Requests are EXECUTE_SRBs that were well formed."""

    state: str = State.BEGIN.name
    requests: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    #: Answered BUSY because too many were outstanding, here or at the driver.
    busy: int = 0
    #: Ended in anything else but GOOD.
    errors: int = 0
    #: Packets no correct guest sends; the first one fails the channel.
    protocol_errors: int = 0
    #: Handshake packets out of order or refused.
    refused: int = 0
    #: Driver completions that came after the session was closed.
    dropped_completions: int = 0
    outstanding: int = 0
    #: ``clock()`` of the last answer to a request, 0.0 if there was none.
    last_io: float = 0.0


class _SrbRequest(BlockRequest):
    """A driver request that is all of one SCSI command, and knows which."""

    __slots__ = ("transaction_id",)

    def __init__(
        self, op: Op, lba: int, blocks: int, buffer: Memory | None, on_done: Callable[[Any], Any], transaction_id: int
    ) -> None:
        # Written out: one per command, and a call of the base would be a tenth of the whole.
        self.op = op
        self.lba = lba
        self.blocks = blocks
        self.buffer = buffer
        self.on_done = on_done
        self.status = None
        self.transaction_id = transaction_id


class StorVspSession:
    """Serves one channel from one disk. Takes ``channel.on_packet``; ``channel.on_failed`` stays its owner's."""

    def __init__(
        self, channel: Channel, disk: BlockDevice, *, clock: Callable[[], float] = time.monotonic,
        on_good: Callable[[], Any] = lambda: None,
    ) -> None:
        """``on_good`` is called when the driver has done something for the guest, for the first time."""
        self._channel = channel
        self._in_place = channel.shares_memory
        self._disk = disk
        self._holding: HeldDisk | None = None
        self._clock = clock
        self._state = State.BEGIN
        self._closed = False
        self._drained: Future[None] = Future()
        self._info = disk.info
        self._block_count = disk.info.block_count
        self._depth = disk.info.queue_depth
        self._max_transfer = min(disk.info.max_transfer_bytes, MAX_TRANSFER_BYTES)
        self._outstanding = self._requests = self._read_bytes = self._written_bytes = 0
        self._busy = self._errors = self._protocol_errors = self._refused = self._dropped = 0
        self._last_io = 0.0
        self._on_good = on_good
        self._on_done = self._first_done        # :meth:`_done` from the second time on
        #: opcode -> method(transaction id, cdb, capacity for data in and room for it, data out)
        self._commands: dict[int, Callable[[int, bytes, int, Memory | None, Memory], None]] = {
            Opcode.TEST_UNIT_READY: self._test_unit_ready,
            Opcode.READ_10: self._read,
            Opcode.READ_12: self._read,
            Opcode.READ_16: self._read,
            Opcode.WRITE_10: self._write,
            Opcode.WRITE_12: self._write,
            Opcode.WRITE_16: self._write,
            Opcode.SYNCHRONIZE_CACHE_10: self._synchronize_cache,
            Opcode.SYNCHRONIZE_CACHE_16: self._synchronize_cache,
            Opcode.UNMAP: self._unmap,
        }
        channel.on_packet = self._received

    def close(self) -> Future[None]:
        """Stop serving and close the channel. Resolves when the driver holds no request of this session.

        Until then a write may still reach the medium, so whoever opens another session for the same guest
        and disk waits for it: a late old write must not land on top of a newer one.
        """
        if not self._closed:
            self._closed = True
            self._channel.close()
            if not self._outstanding:
                self._drained.resolve(None)
        return self._drained

    def hold(self) -> None:
        """The driver is about to be replaced: hand it nothing more, until :meth:`resume`."""
        if self._holding is None:
            self._disk = self._holding = HeldDisk(self._info)

    @property
    def with_driver(self) -> int:
        """Of a session that holds: commands that the driver has not ended."""
        return self._outstanding - len(self._holding.held if self._holding is not None else ())

    def resume(self, disk: BlockDevice) -> None:
        """Go on with ``disk``, which has the same ``info``; what was held comes first."""
        self._disk = disk
        holding, self._holding = self._holding, None
        if holding is not None:
            holding.release(disk)

    def stats(self) -> StorVspStats:
        return StorVspStats(
            self._state.name, self._requests, self._read_bytes, self._written_bytes, self._busy, self._errors,
            self._protocol_errors, self._refused, self._dropped, self._outstanding, self._last_io,
        )  # fmt: skip

    # -- packets ----------------------------------------------------------------------------------------------

    def _received(
        self, packet_type: int, flags: int, transaction_id: int, message: bytes, data: Memory | None
    ) -> None:
        if self._closed:
            return
        if len(message) != _PACKET_SIZE:
            self._protocol_error(f"vstor packet of {len(message)} bytes")
            return
        if not flags & COMPLETION_REQUESTED:
            self._protocol_error("request without completion requested")
            return
        if packet_type != GPA_DIRECT and packet_type != IN_BAND:
            self._protocol_error(f"packet type {packet_type} from a guest")
            return
        operation, address, cdb_length, direction, transfer, cdb = _execute(message)
        if operation != _EXECUTE_SRB or self._state is not _READY:
            self._negotiate(operation, packet_type, transaction_id, message, data)
            return

        # Lengths that contradict each other are no SCSI request, so they have no SCSI answer.
        sent = 0 if data is None else len(data)
        if (
            transfer > self._max_transfer
            or cdb_length > _CDB_SIZE
            or (direction != _OUT and direction != _IN and (direction != _NONE or transfer))
            or (sent < transfer if self._in_place else sent != (transfer if direction == _OUT else 0))
            or (packet_type == IN_BAND and transfer)
        ):
            self._protocol_error(
                f"EXECUTE_SRB with direction {direction}, length {transfer}, {sent} bytes of data and a CDB of "
                f"{cdb_length} bytes in packet type {packet_type}"
            )
            return
        self._requests += 1
        # What is asked for goes to ``room``: the guest's own memory, or where none is shared ``None``.
        capacity = transfer if direction == _IN else 0
        room = data if capacity and self._in_place else None
        if direction != _OUT or data is None:
            data = b""
        elif sent != transfer:
            data = first(data, transfer)  # the guest described more than it means to be read
        if address != _LUN_0:
            self._answer(transaction_id, scsi_target.absent(cdb), capacity, room)
        elif not 0 < _CDB_LENGTHS[cdb[0] >> 5] <= cdb_length:
            known = _CDB_LENGTHS[cdb[0] >> 5]
            self._answer(transaction_id, scsi_target.INVALID_FIELD if known else scsi_target.INVALID_OPCODE)
        else:
            command = self._commands.get(cdb[0])
            if command is None:
                self._answer(transaction_id, scsi_target.control(cdb, self._info), capacity, room)
            elif self._outstanding >= self._depth:
                self._answer(transaction_id, scsi_target.BUSY)
            else:
                command(transaction_id, cdb, capacity, room, data)

    def _negotiate(
        self, operation: int, packet_type: int, transaction_id: int, message: bytes, data: Memory | None
    ) -> None:
        row = vstor.MESSAGES.get(operation)  # type: ignore[call-overload]
        if row is None or not row.from_guest:
            self._protocol_error(f"vstor operation {operation} from a guest")
            return
        if operation != Operation.EXECUTE_SRB and (packet_type != IN_BAND or data is not None):
            self._protocol_error(f"vstor operation {operation} with data")
            return
        self._state, answer = vstor.answer(self._state, Operation(operation), message, self._max_transfer)
        header = vstor.decode_header(answer)
        if header is not None and header[2] != vstor.NtStatus.SUCCESS:
            self._refused += 1
        self._send(transaction_id, answer)

    def _protocol_error(self, reason: str) -> None:
        self._protocol_errors += 1
        self._channel.fail(reason)

    # -- answers ----------------------------------------------------------------------------------------------

    def _send(self, transaction_id: int, message: bytes, data: Memory | None = None) -> None:
        # Where memory is shared the data is in its place already; only there it may be in pieces.
        carried: Buffer | None = None if self._in_place else data  # type: ignore[assignment]
        if not self._channel.send(COMPLETION, 0, transaction_id, message, carried) and not self._channel.closed:
            # The queue holds far more answers than a guest may have requests: it sends and does not listen.
            self._protocol_error("the guest does not take its completions")

    def _answer(
        self, transaction_id: int, outcome: Outcome, capacity: int = 0, room: Memory | None = None
    ) -> None:
        """Answer with what SCSI says; at most ``capacity`` bytes of its data."""
        srb_status, scsi_status, sense, data = outcome
        data = data[:capacity]
        if room is not None and data:
            fill(room, data)
        if outcome is scsi_target.BUSY:
            self._busy += 1
        elif sense or srb_status != vstor.SrbStatus.SUCCESS:
            self._errors += 1
        self._last_io = self._clock()
        self._read_bytes += len(data)
        message = vstor.complete_srb(srb_status, scsi_status, len(data), sense)
        self._send(transaction_id, message, data or None)

    def _first_done(self, request: _SrbRequest) -> None:
        self._done(request)
        if request.status is OK:
            self._on_done = self._done
            self._on_good()

    def _done(self, request: _SrbRequest) -> None:
        """The driver finished the one request of a command."""
        self._outstanding -= 1
        if self._closed or self._channel.closed:
            self._drop()
            return
        if request.status is not OK:
            self._failed(request.transaction_id, request.status, request.op)
            return
        buffer = request.buffer
        moved = 0 if buffer is None else len(buffer)
        self._last_io = self._clock()
        if request.op is READ and moved:
            self._read_bytes += moved
            self._send(request.transaction_id, complete_good(moved), buffer)
        else:
            self._written_bytes += moved
            self._send(request.transaction_id, complete_good(moved))

    def _failed(self, transaction_id: int, status: Status | None, op: Op) -> None:
        if status is None:
            raise AssertionError("the driver completed a request without a status")
        self._answer(transaction_id, scsi_target.from_status(status, op))

    def _drop(self) -> None:
        self._dropped += 1
        if self._closed and not self._outstanding:
            self._drained.resolve(None)

    # -- commands that reach the driver -----------------------------------------------------------------------

    def _submit(self, transaction_id: int, op: Op, lba: int, blocks: int, buffer: Memory | None) -> None:
        self._outstanding += 1
        self._disk.submit(_SrbRequest(op, lba, blocks, buffer, self._on_done, transaction_id))

    def _test_unit_ready(
        self, transaction_id: int, cdb: bytes, capacity: int, room: Memory | None, data: Memory
    ) -> None:
        self._submit(transaction_id, NULL, 0, 0, None)

    def _synchronize_cache(
        self, transaction_id: int, cdb: bytes, capacity: int, room: Memory | None, data: Memory
    ) -> None:
        # The range in the CDB may be ignored: flushing more than was asked for is allowed.
        self._submit(transaction_id, Op.FLUSH, 0, 0, None)

    def _read(self, transaction_id: int, cdb: bytes, capacity: int, room: Memory | None, data: Memory) -> None:
        _, lba, blocks = scsi.TRANSFER_FIELDS[cdb[0]].unpack_from(cdb)
        length = blocks * BLOCK_SIZE
        if length > capacity:  # before any memory is set aside
            self._does_not_fit(transaction_id, lba + blocks)
            return
        buffer = self._disk.allocate(length) if room is None else first(room, length)
        self._submit(transaction_id, READ, lba, blocks, buffer)

    def _write(self, transaction_id: int, cdb: bytes, capacity: int, room: Memory | None, data: Memory) -> None:
        flags, lba, blocks = scsi.TRANSFER_FIELDS[cdb[0]].unpack_from(cdb)
        length = blocks * BLOCK_SIZE
        if length != len(data):
            if length > len(data):
                self._does_not_fit(transaction_id, lba + blocks)
                return
            data = first(data, length)
        if flags & scsi.FUA:
            steps: list[Step] = [(Op.WRITE, lba, blocks, data), (Op.FLUSH, 0, 0, None)]
            self._run_chain(transaction_id, steps, length)
        else:
            self._submit(transaction_id, WRITE, lba, blocks, data)

    def _does_not_fit(self, transaction_id: int, end: int) -> None:
        """More blocks than the data of the packet: the CDB is wrong, unless its range is wrong already."""
        beyond = end > self._block_count
        self._answer(transaction_id, scsi_target.LBA_OUT_OF_RANGE if beyond else scsi_target.INVALID_FIELD)

    def _unmap(self, transaction_id: int, cdb: bytes, capacity: int, room: Memory | None, data: Memory) -> None:
        listed = scsi.unmap_list_length(cdb)
        if cdb[1] & scsi.UNMAP_ANCHOR or listed > len(data):
            self._answer(transaction_id, scsi_target.INVALID_FIELD)
            return
        # A copy, for the guest may change what it has lent while it is being read.
        ranges = scsi.decode_unmap_list(bytes(first(data, listed))) if listed else []
        if ranges is None or len(ranges) > scsi.MAX_UNMAP_RANGES:
            self._answer(transaction_id, scsi_target.INVALID_PARAMETERS)
        elif any(lba + blocks > self._block_count for lba, blocks in ranges):
            self._answer(transaction_id, scsi_target.LBA_OUT_OF_RANGE)
        else:
            steps: list[Step] = [(Op.UNMAP, lba, blocks, None) for lba, blocks in ranges if blocks]
            self._run_chain(transaction_id, steps, listed)

    def _run_chain(self, transaction_id: int, steps: list[Step], moved: int) -> None:
        op = steps[0][0] if steps else Op.UNMAP
        self._outstanding += 1

        def finished(status: Status) -> None:
            self._outstanding -= 1
            if self._closed or self._channel.closed:
                self._drop()
            elif status is Status.OK:
                self._last_io = self._clock()
                if op is Op.WRITE:
                    self._written_bytes += moved
                self._send(transaction_id, complete_good(moved))
            else:
                self._failed(transaction_id, status, op)

        RequestChain(self._disk, steps, lambda: not (self._closed or self._channel.closed), finished).run()
