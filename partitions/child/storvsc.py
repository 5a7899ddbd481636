"""The storage VSC: a guest's disk whose driver is at the other end of a VMBus channel.

:class:`StorVsc` is a :class:`~vmbus_emu.device.BlockDevice`. The guest's VMBus client makes one per offered disk,
attaches it to a channel when the offer comes, detaches it when the channel is rescinded, attaches it again when
the disk is offered anew, and gives it up when policy says so. The workload above sees none of that but time.

Outstanding requests belong to this object, not to the channel (design rule 7). After a re-attach they are sent
again, in their order. For that to be harmless, requests whose order matters are never outstanding together: a
WRITE or UNMAP waits for every request that it overlaps, and a READ for the WRITEs and UNMAPs that it overlaps.
A request completes once: it leaves the table before its owner sees it, and an answer to nothing in the table
fails the channel. What a request looks like in a packet is :mod:`partitions.child.storvsc_requests`.

What it relies on: ``Channel.send`` has copied the message on return (packets are patched templates), and refers
to a WRITE's data until the peer has it. Protocol sheet 5.1-5.4 and 8 (17).
(Longer than most files: it is one class, and all of it works on the one table of requests.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from partitions.child import storvsc_requests
from partitions.child.storvsc_handshake import CannotAttach, Reply, negotiate
from partitions.child.storvsc_requests import KNOWN, MUTATING, overlaps
from vmbus_emu.channel import Channel
from vmbus_emu.device import (
    BLOCK_SIZE,
    NULL,
    OK,
    READ,
    WRITE,
    BlockInfo,
    BlockRequest,
    BlockStats,
    Buffer,
    Memory,
    Op,
    Status,
)
from vmbus_emu.loop import Loop
from vmbus_emu.protocol import vstor
from vmbus_emu.protocol.packets import COMPLETION, COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND
from vmbus_emu.protocol.vstor import Direction, Operation, ScsiStatus, SrbStatus
from vmbus_emu.task import Future, Task

#: Packets that a server may send on its own: "look at the bus again". There is one LUN, so nothing to look for.
_UNSOLICITED = frozenset((Operation.ENUMERATE_BUS, Operation.REMOVE_DEVICE))

_result, PACKET_SIZE = vstor.RESULT.unpack_from, vstor.PACKET_SIZE
_COMPLETE_IO, _SUCCESS = int(Operation.COMPLETE_IO), int(SrbStatus.SUCCESS)

#: ``(srb_status, scsi_status, data, sense)`` of a raw command.
CommandResult = tuple[int, int, bytes, bytes]


@dataclass(frozen=True, slots=True)
class StorVscStats:
    """Counters of the connection, beside :class:`BlockStats` for the disk."""

    attached: bool = False
    #: Handshakes that ended in a disk.
    attaches: int = 0
    #: Requests sent again after a re-attach.
    resubmitted: int = 0
    #: Requests that waited for one they overlapped, or for a channel.
    held_back: int = 0
    held: int = 0
    #: Packets no correct server sends; each one failed its channel.
    protocol_errors: int = 0
    #: Of these, completions of nothing that was outstanding.
    unknown_completions: int = 0
    #: READs and WRITEs answered as good but with another length than theirs.
    wrong_lengths: int = 0


class StorVsc:
    """A disk reached over a channel. Everything runs on ``loop``."""

    def __init__(
        self, loop: Loop, name: str, log: Callable[[str], Any],
        allocate: Callable[[int], memoryview | None] = lambda nbytes: None,
    ) -> None:
        """``allocate`` gives buffers that a channel can describe as they are, or ``None`` when it has none."""
        self._loop = loop
        self._allocate = allocate
        self.name = name
        self._log = log
        self._channel: Channel | None = None
        self._info = BlockInfo(0)
        self._depth = self._info.queue_depth
        self._max_transfer = self._info.max_transfer_bytes
        self._ready = False             # the handshake is through: requests may be sent
        self._no_room = False           # a request found none, and waits for some
        self._in_place = False          # the channel shares memory: what is read is in its buffer already
        self._gave_up = False
        self._holding = False           # no WRITE or UNMAP is sent
        self._spoken: int | None = None  # the protocol version, once agreed on
        self._next_id = 1
        self._outstanding: dict[int, BlockRequest] = {}     # by transaction id, in the order sent
        self._held: deque[BlockRequest] = deque()           # accepted and not sent, in the order submitted
        self._changing = 0                                  # how many of the outstanding are WRITE or UNMAP
        self._exchanges: dict[int, tuple[Future[Reply | None], bytearray]] = {}
        self._completed = [0] * len(Op)
        self._moved = [0] * len(Op)
        self._errors = self._attaches = self._resubmitted = self._held_back = 0
        #: How many requests the last :meth:`attach` sent again.
        self.resubmitted = 0
        self._protocol_errors = self._unknown_completions = self._wrong_lengths = 0
        self._last_io = 0.0
        self._encode = storvsc_requests.Encoder().encode

    # -- the device ---------------------------------------------------------------------------------------------

    @property
    def info(self) -> BlockInfo:
        """Of zero blocks until the first attach."""
        return self._info

    def allocate(self, nbytes: int) -> memoryview:
        return self._allocate(nbytes) or memoryview(bytearray(nbytes))

    def submit(self, request: BlockRequest) -> None:
        if self._gave_up:
            self._finish(request, Status.GONE)
            return
        if len(self._outstanding) + len(self._held) + len(self._exchanges) >= self._depth:
            self._finish(request, Status.BUSY)
            return
        op = request.op
        fault = None if op is NULL else storvsc_requests.fault(request, self._max_transfer)
        if fault is not None:
            self._finish(request, fault)
        elif (
            not self._ready
            or self._no_room
            or ((self._held or self._changing or op in MUTATING) and self._must_wait(request, self._held))
            or not self._send(request)
        ):
            if self._gave_up:  # the sending ended the channel
                self._finish(request, Status.GONE)
                return
            self._held_back += 1
            self._held.append(request)

    def stats(self) -> BlockStats:
        done = self._completed
        return BlockStats(
            reads=done[Op.READ], writes=done[Op.WRITE], flushes=done[Op.FLUSH], other=done[Op.READY] + done[Op.UNMAP],
            read_bytes=self._moved[Op.READ], written_bytes=self._moved[Op.WRITE], errors=self._errors,
            outstanding=len(self._outstanding) + len(self._held), last_io=self._last_io,
        )  # fmt: skip

    def link_stats(self) -> StorVscStats:
        return StorVscStats(
            self._ready, self._attaches, self._resubmitted, self._held_back, len(self._held), self._protocol_errors,
            self._unknown_completions, self._wrong_lengths,
        )  # fmt: skip

    # -- held still ---------------------------------------------------------------------------------------------

    def hold_writes(self) -> None:
        """From now on nothing that changes the medium is sent: it waits, as without a channel."""
        self._holding = True

    def writes_settled(self) -> bool:
        """Whether nothing that changes the medium is under way any more."""
        return not self._changing

    def release_writes(self) -> None:
        """The end of that. Idempotent."""
        self._holding = False
        if self._ready:
            self._release()

    # -- the channel's life -------------------------------------------------------------------------------------

    def attach(self, channel: Channel) -> Future[bool]:
        """Use ``channel``, freshly opened: shake hands, then send what is outstanding. ``True``: the disk is there.

        Takes ``channel.on_packet``; ``on_failed`` stays its owner's, who calls :meth:`detach` from it.
        """
        self.detach()
        if not self._gave_up:
            self._channel = channel
            self._in_place = channel.shares_memory
            channel.on_packet = self._received
            channel.on_room = self._room
        return Task(self._loop, self._attach(channel), watched=True)

    async def _attach(self, channel: Channel) -> bool:
        try:
            info, self._spoken = await negotiate(
                lambda packet, length: self._exchange(channel, packet, length), self._spoken
            )
            if self._attaches and info.serial != self._info.serial:
                # Sending one disk's outstanding writes to another would destroy it.
                raise CannotAttach(f"this is disk {info.serial!r}, not {self._info.serial!r}")
        except CannotAttach as why:
            self._log(f"{self.name}: no disk: {why}")
            return False
        if channel is not self._channel:
            return False
        self._info = info
        self._max_transfer = info.max_transfer_bytes
        self._attaches += 1
        self.resubmitted = len(self._outstanding)
        self._resubmitted += self.resubmitted
        self._held.extendleft(reversed(self._outstanding.values()))
        self._outstanding.clear()
        self._changing = 0
        self._ready = True
        self._release()
        return True

    def detach(self) -> None:
        """The channel is gone. Requests stay, for the next :meth:`attach`. Idempotent."""
        if self._channel is not None:
            self._channel.on_packet = _ignore
            self._channel = None
        self._ready = self._no_room = False
        exchanges, self._exchanges = self._exchanges, {}
        for future, _ in exchanges.values():
            future.resolve(None)

    def give_up(self) -> None:
        """The disk will not come back: everything outstanding and everything submitted from now on ends GONE."""
        self.detach()
        self._gave_up = True
        requests = [*self._outstanding.values(), *self._held]
        self._outstanding.clear()
        self._held.clear()
        self._changing = 0
        for request in requests:
            self._finish(request, Status.GONE)

    def _protocol_error(self, reason: str) -> None:
        channel = self._channel
        self._protocol_errors += 1
        self.detach()
        if channel is not None:
            channel.fail(reason)

    # -- order among overlapping requests -----------------------------------------------------------------------

    def _must_wait(self, request: BlockRequest, earlier: Iterable[BlockRequest]) -> bool:
        """Whether ``request`` and an outstanding one, or one of ``earlier``, must not be under way together, or it is
        one that is held."""
        if self._holding and request.op in MUTATING:
            return True
        if (self._changing or request.op in MUTATING) and overlaps(request, self._outstanding.values()):
            return True
        return bool(earlier) and overlaps(request, earlier)

    def _room(self) -> None:
        if self._ready:  # pages that another disk gave back may come during the handshake
            self._release()

    def _release(self) -> None:
        """Send what was held and need not be any more. What stays keeps its order."""
        waiting, kept = self._held, deque[BlockRequest]()
        self._no_room = False
        while waiting:
            request = waiting.popleft()
            if self._must_wait(request, kept):
                kept.append(request)
            elif not self._send(request):
                # There is no room, or not for one so large. None overtakes it, or small ones might do so for ever.
                kept.append(request)
                break
        if self._gave_up:  # the sending ended the channel; what still waited has been told already
            for request in kept:
                self._finish(request, Status.GONE)
            return
        kept.extend(waiting)
        self._held = kept

    # -- packets out --------------------------------------------------------------------------------------------

    def _send(self, request: BlockRequest) -> bool:
        channel = self._channel
        if channel is None:
            return False
        packet_type, message, data, room = self._encode(request)
        transaction_id = self._next_id
        if not channel.send(packet_type, COMPLETION_REQUESTED, transaction_id, message, data, room):
            self._no_room = self._ready
            return False
        self._next_id = transaction_id + 1
        self._outstanding[transaction_id] = request
        if request.op in MUTATING:
            self._changing += 1
        return True

    def _exchange(self, channel: Channel, packet: Buffer, data_in_length: int) -> Future[Reply | None]:
        future: Future[Reply | None] = Future()
        if channel is not self._channel:
            future.resolve(None)
            return future
        transaction_id = self._next_id
        self._next_id += 1
        room = bytearray(data_in_length)
        self._exchanges[transaction_id] = (future, room)
        packet_type = GPA_DIRECT if data_in_length else IN_BAND
        if not channel.send(packet_type, COMPLETION_REQUESTED, transaction_id, packet, None, room):
            del self._exchanges[transaction_id]
            future.resolve(None)
        return future

    def command(self, cdb: bytes, data_in_length: int = 0) -> Future[CommandResult]:
        """A raw SCSI command that reads at most ``data_in_length`` bytes, past every check at this end.

        For looking at a disk's pages; do not write with it: it is not resubmitted. ``srb_status`` is NO_DEVICE
        when the disk is away, BUSY when too much is outstanding, INVALID_REQUEST for what fits in no packet.
        """
        result: Future[CommandResult] = Future()
        channel = self._channel
        if not 0 < len(cdb) <= vstor.CDB_SIZE or not 0 <= data_in_length <= self._info.max_transfer_bytes:
            result.resolve((SrbStatus.INVALID_REQUEST, 0, b"", b""))
        elif channel is None or not self._ready:
            result.resolve((SrbStatus.NO_DEVICE, 0, b"", b""))
        elif len(self._outstanding) + len(self._held) + len(self._exchanges) >= self._depth:
            result.resolve((SrbStatus.BUSY, ScsiStatus.BUSY, b"", b""))
        else:
            direction = Direction.IN if data_in_length else Direction.NONE
            packet = vstor.execute_srb(cdb, direction, data_in_length)
            self._exchange(channel, packet, data_in_length).then(lambda done: result.resolve(_raw(done.result())))
        return result

    # -- packets in ---------------------------------------------------------------------------------------------

    def _received(
        self, packet_type: int, flags: int, transaction_id: int, message: bytes, data: Memory | None
    ) -> None:
        if packet_type != COMPLETION or len(message) != PACKET_SIZE:
            self._not_a_completion(packet_type, message)
            return
        operation, nt_status, srb_status, scsi_status, _, moved = _result(message)
        if operation != _COMPLETE_IO:
            self._protocol_error(f"completion with vstor operation {operation}")
            return
        request = self._outstanding.pop(transaction_id, None)
        if request is None:
            self._exchanged(transaction_id, message, data)
            return
        op = request.op
        if op in MUTATING:
            self._changing -= 1
        status = OK
        if nt_status or srb_status != _SUCCESS or scsi_status:
            status = storvsc_requests.status(message)
        elif op is READ or op is WRITE:
            status = self._take_data(request, moved, data)
        if self._held:
            self._release()
        self._finish(request, status)

    def _take_data(self, request: BlockRequest, moved: int, data: Memory | None) -> Status:
        """Good, says the server. But a short READ or WRITE must never look like a whole one."""
        length = request.blocks * BLOCK_SIZE
        if moved != length:
            self._wrong_lengths += 1
            return Status.IO_ERROR
        if request.op is READ and length and not self._in_place:
            if data is None or len(data) != length:
                self._wrong_lengths += 1
                return Status.IO_ERROR
            request.buffer[:] = data  # type: ignore[index,assignment]  # fault() saw that it can be written
        return OK

    def _finish(self, request: BlockRequest, status: Status) -> None:
        op = request.op
        if op in KNOWN:
            self._completed[op] += 1
        self._last_io = self._loop.now
        if status is not OK:
            self._errors += 1
        elif op is READ or op is WRITE:
            self._moved[op] += request.blocks * BLOCK_SIZE
        request.finish(status)

    def _exchanged(self, transaction_id: int, message: bytes, data: Memory | None) -> None:
        exchange = self._exchanges.pop(transaction_id, None)
        completion = vstor.decode_completion(message)
        if exchange is None or completion is None:
            self._unknown_completions += 1
            self._protocol_error("completion for unknown transaction")
            return
        future, room = exchange
        if self._in_place:
            data = room[: completion.moved]
        if data is not None and len(data) > len(room):
            future.resolve(None)
            self._protocol_error(f"{len(data)} bytes of data where {len(room)} were asked for")
            return
        future.resolve(Reply(message, completion, b"" if data is None else bytes(data)))

    def _not_a_completion(self, packet_type: int, message: bytes) -> None:
        header = vstor.decode_header(message)
        if header is None:
            self._protocol_error(f"vstor packet of {len(message)} bytes")
        elif packet_type != IN_BAND or header[0] not in _UNSOLICITED:
            self._protocol_error(f"packet type {packet_type} with vstor operation {header[0]} from a server")


def _ignore(*packet: object) -> None:
    """What a channel that is gone still delivers concerns nobody."""


def _raw(reply: Reply | None) -> CommandResult:
    if reply is None:
        return SrbStatus.NO_DEVICE, 0, b"", b""
    completion = reply.completion
    return completion.srb_status, completion.scsi_status, bytes(reply.data), completion.sense
