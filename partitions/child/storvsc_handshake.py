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
_PAGE_BYTES = 255


async def negotiate(exchange: Exchange) -> BlockInfo:
    """What the disk is, once the channel carries SCSI. Raises :class:`CannotAttach` with the reason."""
    await _step(exchange, vstor.encode(Operation.BEGIN_INIT), "BEGIN_INIT")
    await _agree_on_version(exchange)
    reply = await _step(exchange, vstor.encode(Operation.QUERY_PROPERTIES), "QUERY_PROPERTIES")
    properties = vstor.decode_fields(Operation.QUERY_PROPERTIES, reply.packet)
    if properties is None or properties["max_transfer_bytes"] < BLOCK_SIZE:
        raise CannotAttach("the channel moves less than one block per request")
    await _step(exchange, vstor.encode(Operation.END_INIT), "END_INIT")

    standard = await _ask(exchange, scsi.inquiry(_INQUIRY_BYTES), _INQUIRY_BYTES)
    if standard is None or not standard or standard[0] != scsi.TYPE_DISK:
        raise CannotAttach("there is no disk at LUN 0")
    capacity = scsi.decode_capacity_16(await _ask(exchange, scsi.read_capacity_16(), 32) or b"")
    if capacity is None or capacity[1] != BLOCK_SIZE:
        raise CannotAttach(f"the disk's capacity is unusable: {capacity}")
    mode = await _ask(exchange, scsi.mode_sense_6(scsi.MODE_PAGE_ALL, _PAGE_BYTES), _PAGE_BYTES)
    page = await _ask(exchange, scsi.inquiry(_PAGE_BYTES, scsi.VPD_SERIAL_NUMBER), _PAGE_BYTES)
    return BlockInfo(
        block_count=capacity[0],
        read_only=bool(scsi.decode_write_protected(mode or b"")),
        serial=scsi.decode_serial(page or b"") or "",
        max_transfer_bytes=min(properties["max_transfer_bytes"], MAX_TRANSFER_BYTES),
    )


async def _agree_on_version(exchange: Exchange) -> None:
    for version in vstor.VERSIONS:
        reply = await exchange(vstor.encode(Operation.QUERY_PROTOCOL_VERSION, version, 0), 0)
        if reply is None:
            raise CannotAttach("the channel went away during QUERY_PROTOCOL_VERSION")
        if reply.completion.status == NtStatus.SUCCESS:
            return
        if reply.completion.status != NtStatus.REVISION_MISMATCH:
            break
    raise CannotAttach("the server speaks none of our protocol versions")


async def _step(exchange: Exchange, packet: bytes, name: str) -> Reply:
    reply = await exchange(packet, 0)
    if reply is None:
        raise CannotAttach(f"the channel went away during {name}")
    if reply.completion.status != NtStatus.SUCCESS:
        raise CannotAttach(f"{name} was answered 0x{reply.completion.status:08x}")
    return reply


async def _ask(exchange: Exchange, cdb: bytes, length: int) -> bytes | None:
    """The data of a SCSI command; ``None`` if the disk refused it."""
    reply = await exchange(vstor.execute_srb(cdb, Direction.IN, length), length)
    if reply is None:
        raise CannotAttach(f"the channel went away during SCSI command 0x{cdb[0]:02x}")
    done = reply.completion
    good = done.srb_status == SrbStatus.SUCCESS and done.scsi_status == ScsiStatus.GOOD
    return bytes(reply.data) if good else None
