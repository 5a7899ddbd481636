"""The storage protocol between storvsc and storvsp: the 64-byte vstor packet and what is in it.

Numbers, layouts, one table of messages and one table of states (protocol sheet 5.1-5.4). All integers are
little-endian, except inside the CDB and the data (:mod:`vmbus_emu.protocol.scsi`). Nothing here does I/O.

A packet is 12 bytes of header (operation u32, flags u32, NTSTATUS u32) and a payload of 52 bytes whose
layout depends on the operation. Both directions use the same size: an answer is as long as its request.
The two ends build the per-I/O packets from templates, so the offsets of the fields they patch are here too.
(Longer than most files because it is one table of numbers with its codecs.)
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from struct import Struct
from typing import Any, NamedTuple

PACKET_SIZE = 64
HEADER_SIZE = 12
REQUEST_SIZE = 52       #: a vmscsi_request, which fills the payload
CDB_SIZE = 16
SENSE_SIZE = 20         #: the union that holds the CDB on the way out holds the sense data on the way back

#: Header flag: the sender wants a COMPLETE_IO. Informational; the ring packet's own flag decides.
REQUEST_COMPLETION = 1


class Operation(enum.IntEnum):
    """What a vstor packet is (sheet 5.1)."""

    COMPLETE_IO = 1
    REMOVE_DEVICE = 2
    EXECUTE_SRB = 3
    RESET_LUN = 4
    RESET_ADAPTER = 5
    RESET_BUS = 6
    BEGIN_INIT = 7
    END_INIT = 8
    QUERY_PROTOCOL_VERSION = 9
    QUERY_PROPERTIES = 10
    ENUMERATE_BUS = 11
    FCHBA_DATA = 12
    CREATE_SUB_CHANNELS = 13
    EVENT_NOTIFICATION = 14


class NtStatus(enum.IntEnum):
    """The header's status in an answer (sheet 5.3, 5.4)."""

    SUCCESS = 0
    BUFFER_OVERFLOW = 0x80000005
    DEVICE_BUSY = 0x80000011
    UNSUCCESSFUL = 0xC0000001
    INVALID_PARAMETER = 0xC000000D
    INVALID_DEVICE_REQUEST = 0xC0000010
    REVISION_MISMATCH = 0xC0000059
    DEVICE_NOT_CONNECTED = 0xC000009D
    IO_TIMEOUT = 0xC00000B5
    DEVICE_DOES_NOT_EXIST = 0xC00000C0
    CANCELLED = 0xC0000120
    INVALID_DEVICE_STATE = 0xC0000184
    IO_DEVICE_ERROR = 0xC0000185


class SrbStatus(enum.IntEnum):
    """How the adapter saw a SCSI request end (sheet 5.4), without the two flag bits."""

    PENDING = 0
    SUCCESS = 1
    ABORTED = 2
    ABORT_FAILED = 3
    ERROR = 4
    BUSY = 5
    INVALID_REQUEST = 6
    INVALID_PATH_ID = 7
    NO_DEVICE = 8
    TIMEOUT = 9
    SELECTION_TIMEOUT = 0x0A
    COMMAND_TIMEOUT = 0x0B
    BUS_RESET = 0x0E
    REQUEST_SENSE_FAILED = 0x10
    NO_HBA = 0x11
    DATA_OVERRUN = 0x12
    BAD_LENGTH = 0x15
    FLUSHED = 0x16
    INVALID_LUN = 0x20
    INVALID_TARGET = 0x21
    BAD_FUNCTION = 0x22
    INTERNAL_ERROR = 0x30


SENSE_VALID = 0x80      #: srb_status bit 7: the union holds sense data
SRB_STATUS_MASK = 0x3F  #: srb_status without "sense valid" and "queue frozen"


class ScsiStatus(enum.IntEnum):
    """The status byte of the SCSI command itself (sheet 5.4)."""

    GOOD = 0
    CHECK_CONDITION = 2
    CONDITION_MET = 4
    BUSY = 8
    RESERVATION_CONFLICT = 0x18
    QUEUE_FULL = 0x28


class Direction(enum.IntEnum):
    """The ``data_in`` field: which way the data of a request goes."""

    OUT = 0
    IN = 1
    NONE = 2


_NT_STATUS: dict[int, NtStatus] = {
    SrbStatus.SUCCESS: NtStatus.SUCCESS,
    SrbStatus.BUSY: NtStatus.DEVICE_BUSY,
    SrbStatus.INVALID_LUN: NtStatus.DEVICE_DOES_NOT_EXIST,
    SrbStatus.INVALID_TARGET: NtStatus.DEVICE_DOES_NOT_EXIST,
    SrbStatus.NO_DEVICE: NtStatus.DEVICE_DOES_NOT_EXIST,
    SrbStatus.TIMEOUT: NtStatus.IO_TIMEOUT,
    SrbStatus.COMMAND_TIMEOUT: NtStatus.IO_TIMEOUT,
    SrbStatus.SELECTION_TIMEOUT: NtStatus.DEVICE_NOT_CONNECTED,
    SrbStatus.DATA_OVERRUN: NtStatus.BUFFER_OVERFLOW,
    SrbStatus.FLUSHED: NtStatus.UNSUCCESSFUL,
    SrbStatus.ABORTED: NtStatus.CANCELLED,
    SrbStatus.BAD_FUNCTION: NtStatus.INVALID_DEVICE_REQUEST,
}


def nt_status(srb_status: int) -> NtStatus:
    """The header status that goes with an ``srb_status`` (sheet 5.4); whatever is not listed is a device error."""
    return _NT_STATUS.get(srb_status & SRB_STATUS_MASK, NtStatus.IO_DEVICE_ERROR)


#: Protocol versions spoken here, newest first, and the system that introduced each (sheet 5.1). Older ones
#: have a 48-byte packet and are refused.
VERSIONS = {0x0602: "Windows 10", 0x0600: "Windows 8.1", 0x0501: "Windows 8"}

#: Channel properties flag: more than one channel is supported.
SUPPORTS_MULTI_CHANNEL = 1

# -- the table of messages ---------------------------------------------------------------------------------

_EMPTY = Struct("")


@dataclass(frozen=True, slots=True)
class Message:
    """One row: who may send it, and the layout of its payload (bytes 12 and up)."""

    from_guest: bool
    payload: Struct = _EMPTY
    fields: tuple[str, ...] = ()


_SRB_FIELDS = (
    "length", "srb_status", "scsi_status", "port", "path", "target", "lun", "cdb_length", "sense_info_length",
    "data_in", "reserved", "data_transfer_length", "cdb_or_sense", "reserve", "queue_tag", "queue_action",
    "srb_flags", "timeout", "queue_sort_key",
)  # fmt: skip

MESSAGES: dict[Operation, Message] = {
    Operation.COMPLETE_IO: Message(False, Struct("<HBBBBBBBBBBI20sHBBIII"), _SRB_FIELDS),
    Operation.REMOVE_DEVICE: Message(False),
    Operation.EXECUTE_SRB: Message(True, Struct("<HBBBBBBBBBBI20sHBBIII"), _SRB_FIELDS),
    Operation.RESET_LUN: Message(True),
    Operation.RESET_ADAPTER: Message(True),
    Operation.RESET_BUS: Message(True),
    Operation.BEGIN_INIT: Message(True),
    Operation.END_INIT: Message(True),
    Operation.QUERY_PROTOCOL_VERSION: Message(True, Struct("<HH"), ("version", "revision")),
    Operation.QUERY_PROPERTIES: Message(
        True, Struct("<4xH2xII8x"), ("max_channel_count", "flags", "max_transfer_bytes")
    ),
    Operation.ENUMERATE_BUS: Message(False),
    Operation.FCHBA_DATA: Message(True),
    Operation.CREATE_SUB_CHANNELS: Message(True, Struct("<H"), ("count",)),
    Operation.EVENT_NOTIFICATION: Message(False),
}

_HEADER = Struct("<III")


def encode(operation: Operation, *fields: Any, status: int = 0, layout: Operation | None = None) -> bytes:
    """A whole packet. ``fields`` in the order of the table; none at all gives an empty (zero) payload.

    ``layout``: the operation whose payload this is, when it is not the packet's own: an answer is a
    COMPLETE_IO with the payload of what it answers.
    """
    flags = 0 if operation is Operation.COMPLETE_IO else REQUEST_COMPLETION
    packet = bytearray(PACKET_SIZE)
    _HEADER.pack_into(packet, 0, operation, flags, status)
    if fields:
        MESSAGES[layout or operation].payload.pack_into(packet, HEADER_SIZE, *fields)
    return bytes(packet)


def decode_header(packet: bytes) -> tuple[int, int, int] | None:
    """``(operation, flags, status)``; ``None`` if ``packet`` is not 64 bytes long."""
    return _HEADER.unpack_from(packet) if len(packet) == PACKET_SIZE else None


def decode_fields(operation: Operation, packet: bytes) -> dict[str, Any] | None:
    """The payload's fields by name, read as those of ``operation``; ``None`` if the size is wrong."""
    if len(packet) != PACKET_SIZE:
        return None
    message = MESSAGES[operation]
    return dict(zip(message.fields, message.payload.unpack_from(packet, HEADER_SIZE), strict=True))


# -- per-I/O packets: one template patched, or one Struct ---------------------------------------------------

#: Where the two ends patch a template: u32 data_transfer_length, and the CDB.
TRANSFER_LENGTH = Struct("<I")
TRANSFER_LENGTH_OFFSET = 24
CDB_OFFSET = 28

#: What a target needs of an EXECUTE_SRB, from the packet's first byte:
#: ``operation, address (path, target, lun), cdb_length, data_in, data_transfer_length, cdb``.
EXECUTE = Struct("<I13x3sBxBxI16s")
#: An answer to EXECUTE_SRB, whole: ``COMPLETE_IO, 0, status, 52, srb, scsi, sense length, moved, sense``.
COMPLETE = Struct("<IIIHBB5xB2xI20s16x")
#: What an initiator needs of an answer: ``operation, status, srb_status, scsi_status, sense length, moved``.
RESULT = Struct("<I4xI2xBB5xB2xI")

_SRB_FLAGS = {Direction.OUT: 0x80, Direction.IN: 0x40, Direction.NONE: 0}
_SRB_FLAGS_ALWAYS = 0x100 | 0x02 | 0x08  # no queue freeze, queue action enable, no synchronous negotiation
_SIMPLE_QUEUE_TAG = 0x20
_NO_TAG = 0xFF
_TIMEOUT_SECONDS = 60


def execute_srb(cdb: bytes, direction: Direction, transfer_length: int = 0) -> bytearray:
    """An EXECUTE_SRB to path 0, target 0, LUN 0. ``transfer_length`` in bytes; ``cdb`` at most 16 of them."""
    packet = bytearray(PACKET_SIZE)
    _HEADER.pack_into(packet, 0, Operation.EXECUTE_SRB, REQUEST_COMPLETION, 0)
    MESSAGES[Operation.EXECUTE_SRB].payload.pack_into(
        packet, HEADER_SIZE,
        REQUEST_SIZE, 0, 0, 0, 0, 0, 0, len(cdb), SENSE_SIZE, direction, 0, transfer_length, cdb,
        0, _NO_TAG, _SIMPLE_QUEUE_TAG, _SRB_FLAGS[direction] | _SRB_FLAGS_ALWAYS, _TIMEOUT_SECONDS, 0,
    )  # fmt: skip
    return packet


def complete_srb(srb_status: int, scsi_status: int, moved: int = 0, sense: bytes = b"") -> bytes:
    """The answer to an EXECUTE_SRB. ``moved`` in bytes; ``sense``, at most 20, marks itself valid."""
    return COMPLETE.pack(
        Operation.COMPLETE_IO, 0, nt_status(srb_status), REQUEST_SIZE,
        srb_status | SENSE_VALID if sense else srb_status, scsi_status, len(sense), moved, sense,
    )  # fmt: skip


_GOOD = complete_srb(SrbStatus.SUCCESS, ScsiStatus.GOOD)
_GOOD_BEFORE, _GOOD_AFTER = _GOOD[:TRANSFER_LENGTH_OFFSET], _GOOD[TRANSFER_LENGTH_OFFSET + 4 :]


def complete_good(moved: int) -> bytes:
    """``complete_srb(SUCCESS, GOOD, moved)``, which is nearly every answer, in a fraction of the time."""
    return _GOOD_BEFORE + TRANSFER_LENGTH.pack(moved) + _GOOD_AFTER


class Completion(NamedTuple):
    """A COMPLETE_IO, read as the answer to an EXECUTE_SRB. ``srb_status`` is without its flag bits."""

    status: int
    srb_status: int
    scsi_status: int
    moved: int
    sense: bytes


def decode_completion(packet: bytes) -> Completion | None:
    """``None`` if ``packet`` is not a COMPLETE_IO of 64 bytes. Sense is empty unless it is marked valid."""
    if len(packet) != PACKET_SIZE:
        return None
    operation, status, srb_status, scsi_status, sense_length, moved = RESULT.unpack_from(packet)
    if operation != Operation.COMPLETE_IO:
        return None
    sense = b""
    if srb_status & SENSE_VALID:
        sense = bytes(packet[CDB_OFFSET : CDB_OFFSET + min(sense_length, SENSE_SIZE)])
    return Completion(status, srb_status & SRB_STATUS_MASK, scsi_status, moved, sense)


# -- the server's states -------------------------------------------------------------------------------------


class State(enum.Enum):
    """How far a guest's handshake has come (sheet 5.3)."""

    BEGIN = enum.auto()         #: just opened; the guest must say that it begins
    VERSION = enum.auto()       #: the guest offers versions, newest first, until one is accepted
    PROPERTIES = enum.auto()    #: the guest asks how much one request may move
    END = enum.auto()           #: the guest says that it is done
    READY = enum.auto()         #: SCSI requests flow


#: state -> operation -> next state. What is not here is out of order: INVALID_DEVICE_STATE, state unchanged.
TRANSITIONS: dict[State, dict[Operation, State]] = {
    State.BEGIN: {Operation.BEGIN_INIT: State.VERSION},
    State.VERSION: {Operation.QUERY_PROTOCOL_VERSION: State.PROPERTIES},
    State.PROPERTIES: {Operation.QUERY_PROPERTIES: State.END},
    State.END: {Operation.END_INIT: State.READY, Operation.CREATE_SUB_CHANNELS: State.END},
    State.READY: {
        Operation.EXECUTE_SRB: State.READY,
        Operation.CREATE_SUB_CHANNELS: State.READY,
        Operation.RESET_LUN: State.READY,
        Operation.RESET_ADAPTER: State.READY,
        Operation.RESET_BUS: State.READY,
    },
}


def answer(state: State, operation: Operation, packet: bytes, max_transfer_bytes: int) -> tuple[State, bytes]:
    """The server's next state and its answer to a guest's packet other than an EXECUTE_SRB in READY.

    ``packet`` is 64 bytes and ``operation`` one that a guest may send. A request that is out of order, or is
    refused, leaves the state as it was.
    """
    following = TRANSITIONS[state].get(operation)
    if following is None:
        return state, encode(Operation.COMPLETE_IO, status=NtStatus.INVALID_DEVICE_STATE)
    status = NtStatus.SUCCESS
    fields: tuple[int, ...] = ()
    if operation is Operation.QUERY_PROTOCOL_VERSION:
        fields = MESSAGES[operation].payload.unpack_from(packet, HEADER_SIZE)
        if fields[0] not in VERSIONS:
            status, following = NtStatus.REVISION_MISMATCH, state
    elif operation is Operation.QUERY_PROPERTIES:
        fields = (0, 0, max_transfer_bytes)
    elif operation is Operation.CREATE_SUB_CHANNELS:
        fields = MESSAGES[operation].payload.unpack_from(packet, HEADER_SIZE)
        if fields[0]:  # none are offered, so asking for none is the only count there is
            status = NtStatus.INVALID_PARAMETER
    return following, encode(Operation.COMPLETE_IO, *fields, status=status, layout=operation)
