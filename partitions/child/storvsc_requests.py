"""A block request as the storage VSC puts it into a packet, and a completion as it reads it back.

Pure: no channel, no table of requests. Used by :class:`~partitions.child.storvsc.StorVsc` for every I/O, so packets
are patched templates. Protocol sheet 5.2, 5.4, 5.5.
"""

from __future__ import annotations

from collections.abc import Iterable

from vmbus_emu.device import (
    BLOCK_SIZE,
    NULL,
    READ,
    UNMAP,
    WRITE,
    BlockRequest,
    Buffer,
    Op,
    Scatter,
    Status,
)
from vmbus_emu.protocol import scsi, vstor
from vmbus_emu.protocol.packets import GPA_DIRECT, IN_BAND
from vmbus_emu.protocol.scsi import Sense
from vmbus_emu.protocol.vstor import CDB_OFFSET, TRANSFER_LENGTH_OFFSET, Direction, ScsiStatus, SrbStatus

KNOWN = frozenset(Op)
MUTATING = frozenset((WRITE, UNMAP))
_RANGED = frozenset((READ, WRITE, UNMAP))

# -- requests -----------------------------------------------------------------------------------------------------

_LBA_LIMIT = 1 << 64
_TRANSFER_16_OFFSET = CDB_OFFSET + scsi.TRANSFER_16_OFFSET
_put_length, _put_place = vstor.TRANSFER_LENGTH.pack_into, scsi.TRANSFER_16.pack_into


def fault(request: BlockRequest, max_transfer: int) -> Status | None:
    """Why ``request`` cannot be put into one packet. Whether the disk can do it is for the disk to say."""
    op, lba, blocks = request.op, request.lba, request.blocks
    if op not in _RANGED:
        return None if op in KNOWN else Status.UNSUPPORTED
    if lba < 0 or blocks < 0 or lba >= _LBA_LIMIT or lba + blocks > _LBA_LIMIT:
        return Status.OUT_OF_RANGE
    if op is UNMAP:
        return Status.OUT_OF_RANGE if blocks > scsi.MAX_UNMAP_BLOCKS * scsi.MAX_UNMAP_RANGES else None
    buffer, length = request.buffer, blocks * BLOCK_SIZE
    if buffer is None or type(buffer) is Scatter or len(buffer) != length or length > max_transfer:
        return Status.INVALID
    if op is READ and type(buffer) is not bytearray and memoryview(buffer).readonly:  # type: ignore[arg-type]
        return Status.INVALID
    return None


def overlaps(request: BlockRequest, others: Iterable[BlockRequest]) -> bool:
    """Whether ``request`` shares blocks with one of ``others``, and one of the two changes them."""
    op, lba = request.op, request.lba
    if op not in _RANGED:
        return False
    end = lba + request.blocks
    for other in others:
        if other.lba < end and lba < other.lba + other.blocks and (op in MUTATING or other.op in MUTATING):
            return True
    return False


# Made once, so that all the guests a zygote bears share the work and the memory it touches.
_READ_PACKET = bytes(vstor.execute_srb(scsi.read_16(0, 0), Direction.IN))
_WRITE_PACKET = bytes(vstor.execute_srb(scsi.write_16(0, 0), Direction.OUT))
_NULL_PACKET = bytes(vstor.execute_srb(scsi.test_unit_ready(), Direction.NONE))
_FLUSH_PACKET = bytes(vstor.execute_srb(scsi.synchronize_cache_16(), Direction.NONE))


class Encoder:
    """Makes packets. They are templates, patched: each is valid until the next of the same operation."""

    def __init__(self) -> None:
        self._read = bytearray(_READ_PACKET)
        self._write = bytearray(_WRITE_PACKET)
        self._ready = bytearray(_NULL_PACKET)
        self._flush = bytearray(_FLUSH_PACKET)

    def encode(self, request: BlockRequest) -> tuple[int, bytearray, Buffer | None, Buffer | None]:
        """``(packet type, packet, data, room)`` of a request in which :func:`fault` found nothing."""
        op = request.op
        if op is NULL:
            return IN_BAND, self._ready, None, None
        if op is READ or op is WRITE:
            packet = self._read if op is READ else self._write
            blocks = request.blocks
            _put_length(packet, TRANSFER_LENGTH_OFFSET, blocks * BLOCK_SIZE)
            _put_place(packet, _TRANSFER_16_OFFSET, request.lba, blocks)
            if not blocks:
                return IN_BAND, packet, None, None  # a GPA range of no bytes does not exist
            if op is WRITE:
                return GPA_DIRECT, packet, request.buffer, None  # type: ignore[return-value]  # fault() saw its type
            return GPA_DIRECT, packet, None, request.buffer  # type: ignore[return-value]
        if op is UNMAP:
            listed = scsi.encode_unmap_list(request.lba, request.blocks)
            return GPA_DIRECT, vstor.execute_srb(scsi.unmap(len(listed)), Direction.OUT, len(listed)), listed, None
        return IN_BAND, self._flush, None, None


# -- completions --------------------------------------------------------------------------------------------------

#: What ended a command, in the device's words; whatever is not here is an IO_ERROR.
_FROM_SENSE: dict[Sense, Status] = {
    scsi.INVALID_OPCODE: Status.UNSUPPORTED,
    scsi.LBA_OUT_OF_RANGE: Status.OUT_OF_RANGE,
    scsi.INVALID_FIELD_IN_CDB: Status.INVALID,
    scsi.INVALID_PARAMETER_LIST: Status.INVALID,
    scsi.IS_WRITE_PROTECTED: Status.READ_ONLY,
}
_FROM_SRB: dict[int, Status] = {
    SrbStatus.BUSY: Status.BUSY,
    SrbStatus.NO_DEVICE: Status.GONE,
    SrbStatus.INVALID_LUN: Status.GONE,
    SrbStatus.INVALID_TARGET: Status.GONE,
}
_SCSI_BUSY = frozenset((ScsiStatus.BUSY, ScsiStatus.QUEUE_FULL))


def status(packet: bytes) -> Status:
    """The status of a request from a completion that is not plainly good."""
    completion = vstor.decode_completion(packet)
    if completion is None:
        return Status.IO_ERROR
    if completion.scsi_status in _SCSI_BUSY:
        return Status.BUSY
    sense = scsi.decode_sense(completion.sense)
    if sense is not None:
        return _FROM_SENSE.get(sense, Status.IO_ERROR)
    return _FROM_SRB.get(completion.srb_status, Status.IO_ERROR)
