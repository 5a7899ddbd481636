"""How a storage VSC gets from an open channel to a disk: the vstor handshake, then SCSI's questions.

A story told from top to bottom, once per attach, never on the I/O path. :class:`~partitions.child.storvsc.StorVsc`
runs it and gives it a way to exchange packets. Protocol sheet 5.3 and 5.5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vmbus_emu.device import BLOCK_SIZE, MAX_TRANSFER_BYTES, BlockInfo, Buffer
from vmbus_emu.protocol import scsi, vstor
from vmbus_emu.protocol.vstor import Direction, NtStatus, Operation, ScsiStatus, SrbStatus
from vmbus_emu.task import Future


class Reply(NamedTuple):
    """A COMPLETE_IO packet, checked to be one, and the data that came with it."""

    packet: bytes
    completion: vstor.Completion
    data: bytes


#: Sends one packet (and says how much data may come back); the future is ``None`` if the channel goes first.
Exchange = Callable[[Buffer, int], Future[Reply | None]]


class CannotAttach(Exception):
    """Why there is no disk at the other end. Raised and caught inside one attach."""


_INQUIRY_BYTES = 96
_CAPACITY_BYTES = 32
_PAGE_BYTES = 255
#: What a disk is asked about itself, and how long the answer may be.
_QUESTIONS = (
    (scsi.inquiry(_INQUIRY_BYTES), _INQUIRY_BYTES),
    (scsi.read_capacity_16(_CAPACITY_BYTES), _CAPACITY_BYTES),
    (scsi.mode_sense_6(scsi.MODE_PAGE_ALL, _PAGE_BYTES), _PAGE_BYTES),
    (scsi.inquiry(_PAGE_BYTES, scsi.VPD_SERIAL_NUMBER), _PAGE_BYTES),
)


async def negotiate(exchange: Exchange, spoken: int | None = None) -> tuple[BlockInfo, int]:
    """What the disk is, once the channel carries SCSI, and the protocol version that was agreed on.

    Only the choice of a version needs an answer before the next packet. ``spoken`` is what an earlier incarnation of
    this server agreed to: then everything leaves at once, for each round trip is time without a disk
    (docs/fidelity.md). Raises :class:`CannotAttach` with the reason.
    """
    begun = exchange(vstor.encode(Operation.BEGIN_INIT), 0)
    if spoken is None:
        await _good(begun, Operation.BEGIN_INIT)
        version = await _agree_on_version(exchange)
        steps = []
    else:
        version = spoken
        agreed = exchange(vstor.encode(Operation.QUERY_PROTOCOL_VERSION, version, 0), 0)
        steps = [(Operation.BEGIN_INIT, begun), (Operation.QUERY_PROTOCOL_VERSION, agreed)]
    asked = exchange(vstor.encode(Operation.QUERY_PROPERTIES), 0)
    ended = exchange(vstor.encode(Operation.END_INIT), 0)
    questions = [_ask(exchange, cdb, length) for cdb, length in _QUESTIONS]

    for operation, reply in steps:
        await _good(reply, operation)
    answer = await _good(asked, Operation.QUERY_PROPERTIES)
    properties = vstor.decode_fields(Operation.QUERY_PROPERTIES, answer.packet)
    if properties is None or properties["max_transfer_bytes"] < BLOCK_SIZE:
        raise CannotAttach("the channel moves less than one block per request")
    await _good(ended, Operation.END_INIT)
    answers = [await _data(reply, cdb) for reply, (cdb, _) in zip(questions, _QUESTIONS, strict=True)]
    return _disk(*answers, max_transfer=properties["max_transfer_bytes"]), version


def _disk(
    standard: bytes | None, capacity: bytes | None, mode: bytes | None, page: bytes | None, *, max_transfer: int
) -> BlockInfo:
    """What the answers to :data:`_QUESTIONS` say."""
    if not standard or standard[0] != scsi.TYPE_DISK:
        raise CannotAttach("there is no disk at LUN 0")
    size = scsi.decode_capacity_16(capacity or b"")
    if size is None or size[1] != BLOCK_SIZE:
        raise CannotAttach(f"the disk's capacity is unusable: {size}")
    return BlockInfo(
        block_count=size[0],
        read_only=bool(scsi.decode_write_protected(mode or b"")),
        serial=scsi.decode_serial(page or b"") or "",
        max_transfer_bytes=min(max_transfer, MAX_TRANSFER_BYTES),
    )


async def _agree_on_version(exchange: Exchange) -> int:
    for version in vstor.VERSIONS:
        reply = await exchange(vstor.encode(Operation.QUERY_PROTOCOL_VERSION, version, 0), 0)
        if reply is None:
            raise CannotAttach("the channel went away during QUERY_PROTOCOL_VERSION")
        if reply.completion.status == NtStatus.SUCCESS:
            return version
        if reply.completion.status != NtStatus.REVISION_MISMATCH:
            break
    raise CannotAttach("the server speaks none of our protocol versions")


async def _good(answer: Future[Reply | None], operation: Operation) -> Reply:
    reply = await answer
    if reply is None:
        raise CannotAttach(f"the channel went away during {operation.name}")
    if reply.completion.status != NtStatus.SUCCESS:
        raise CannotAttach(f"{operation.name} was answered 0x{reply.completion.status:08x}")
    return reply


def _ask(exchange: Exchange, cdb: bytes, length: int) -> Future[Reply | None]:
    return exchange(vstor.execute_srb(cdb, Direction.IN, length), length)


async def _data(answer: Future[Reply | None], cdb: bytes) -> bytes | None:
    """The data of a SCSI command; ``None`` if the disk refused it."""
    reply = await answer
    if reply is None:
        raise CannotAttach(f"the channel went away during SCSI command 0x{cdb[0]:02x}")
    done = reply.completion
    good = done.srb_status == SrbStatus.SUCCESS and done.scsi_status == ScsiStatus.GOOD
    return bytes(reply.data) if good else None
