"""A disk LUN's answers to every SCSI command that moves no blocks, and the sense data of those that failed.

The VSP session calls :func:`control` for commands that are answered from a
:class:`~vmbus_emu.device.BlockInfo` alone, and :func:`from_status` to put a driver's status into SCSI's words.
Pure functions over tables: nothing here does I/O or keeps state, and nothing raises for what a guest sent.
Protocol sheet 5.4 and 5.5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from partitions.parent import scsi_pages
from vmbus_emu.device import BlockInfo, Op, Status
from vmbus_emu.protocol import scsi
from vmbus_emu.protocol.scsi import Opcode, Sense
from vmbus_emu.protocol.vstor import ScsiStatus, SrbStatus


class Outcome(NamedTuple):
    """How a command ended. ``data`` is for the guest; ``sense`` is encoded and empty unless there is any."""

    srb_status: int = SrbStatus.SUCCESS
    scsi_status: int = ScsiStatus.GOOD
    sense: bytes = b""
    data: bytes = b""


GOOD = Outcome()
BUSY = Outcome(SrbStatus.BUSY, ScsiStatus.BUSY)


def check_condition(sense: Sense) -> Outcome:
    return Outcome(SrbStatus.ERROR, ScsiStatus.CHECK_CONDITION, scsi.encode_sense(sense))


INVALID_OPCODE = check_condition(scsi.INVALID_OPCODE)
LBA_OUT_OF_RANGE = check_condition(scsi.LBA_OUT_OF_RANGE)
INVALID_FIELD = check_condition(scsi.INVALID_FIELD_IN_CDB)
INVALID_PARAMETERS = check_condition(scsi.INVALID_PARAMETER_LIST)
_SAVING_NOT_SUPPORTED = check_condition(scsi.SAVING_NOT_SUPPORTED)

# -- what a driver said --------------------------------------------------------------------------------------

_FROM_STATUS = {
    Status.OK: GOOD,
    Status.BUSY: BUSY,
    Status.GONE: Outcome(SrbStatus.NO_DEVICE),
    Status.OUT_OF_RANGE: LBA_OUT_OF_RANGE,
    Status.READ_ONLY: check_condition(scsi.IS_WRITE_PROTECTED),
    Status.INVALID: INVALID_FIELD,
    Status.UNSUPPORTED: INVALID_OPCODE,
    Status.IO_ERROR: check_condition(scsi.WRITE_ERROR),
}
_READ_ERROR = check_condition(scsi.READ_ERROR)


def from_status(status: Status, op: Op) -> Outcome:
    """The outcome of a command whose driver request ``op`` ended with ``status``."""
    if status is Status.IO_ERROR and op is Op.READ:
        return _READ_ERROR
    return _FROM_STATUS[status]


# -- commands answered without a driver ----------------------------------------------------------------------


def _cut(data: bytes | None, allocation: int) -> Outcome:
    return INVALID_FIELD if data is None else Outcome(data=data[:allocation])


def _inquiry(cdb: bytes, info: BlockInfo) -> Outcome:
    allocation = cdb[3] << 8 | cdb[4]
    if cdb[1] & scsi.EVPD:
        return _cut(scsi_pages.vpd_page(cdb[2], info), allocation)
    if cdb[2]:
        return INVALID_FIELD
    return _cut(scsi_pages.standard_inquiry(scsi.TYPE_DISK), allocation)


def _request_sense(cdb: bytes, info: BlockInfo) -> Outcome:
    # Sense travels with the command that failed, so there is never any left to ask for.
    return INVALID_FIELD if cdb[1] & 1 else _cut(scsi.encode_sense(scsi.NO_SENSE), cdb[4])


def _read_capacity_10(cdb: bytes, info: BlockInfo) -> Outcome:
    return Outcome(data=scsi_pages.capacity_10(info))


def _service_action_in(cdb: bytes, info: BlockInfo) -> Outcome:
    if cdb[1] & scsi.SERVICE_ACTION_MASK != scsi.READ_CAPACITY_16:
        return INVALID_OPCODE
    return _cut(scsi_pages.capacity_16(info), int.from_bytes(cdb[10:14], "big"))


_PAGE_CONTROL_CHANGEABLE = 1
_PAGE_CONTROL_SAVED = 3
_ALL_SUBPAGES = 0xFF


def _mode_sense(cdb: bytes, info: BlockInfo, allocation: int, long_header: bool) -> Outcome:
    page, page_control = cdb[2] & 0x3F, cdb[2] >> 6
    if page_control == _PAGE_CONTROL_SAVED:
        return _SAVING_NOT_SUPPORTED
    if cdb[3] and (page != scsi.MODE_PAGE_ALL or cdb[3] != _ALL_SUBPAGES):
        return INVALID_FIELD
    changeable = page_control == _PAGE_CONTROL_CHANGEABLE
    return _cut(scsi_pages.mode_data(page, info, long_header=long_header, changeable=changeable), allocation)


def _mode_sense_6(cdb: bytes, info: BlockInfo) -> Outcome:
    return _mode_sense(cdb, info, cdb[4], False)


def _mode_sense_10(cdb: bytes, info: BlockInfo) -> Outcome:
    return _mode_sense(cdb, info, cdb[7] << 8 | cdb[8], True)


_SELECT_REPORTS = (0, 1, 2)  # addressable, well known only, all


def _report_luns(cdb: bytes, info: BlockInfo) -> Outcome:
    if cdb[2] not in _SELECT_REPORTS:
        return INVALID_FIELD
    data = bytes(8) if cdb[2] == 1 else scsi_pages.lun_list()
    return _cut(data, int.from_bytes(cdb[6:10], "big"))


_COMMANDS: dict[int, Callable[[bytes, BlockInfo], Outcome]] = {
    Opcode.REQUEST_SENSE: _request_sense,
    Opcode.INQUIRY: _inquiry,
    Opcode.MODE_SENSE_6: _mode_sense_6,
    Opcode.READ_CAPACITY_10: _read_capacity_10,
    Opcode.MODE_SENSE_10: _mode_sense_10,
    Opcode.SERVICE_ACTION_IN_16: _service_action_in,
    Opcode.REPORT_LUNS: _report_luns,
}


def control(cdb: bytes, info: BlockInfo) -> Outcome:
    """The answer to a command that moves no blocks. ``cdb`` is 16 bytes; those past its own length are not looked at.

    Reservations, VERIFY, START STOP UNIT, WRITE SAME and GET LBA STATUS are optional and not there: 5/20/00.
    """
    command = _COMMANDS.get(cdb[0])
    return INVALID_OPCODE if command is None else command(cdb, info)


def absent(cdb: bytes) -> Outcome:
    """The answer from an address where there is no LUN: INQUIRY says so politely, the rest is refused."""
    if cdb[0] == Opcode.INQUIRY and not cdb[1] & scsi.EVPD:
        return _cut(scsi_pages.standard_inquiry(scsi.TYPE_ABSENT), cdb[3] << 8 | cdb[4])
    return Outcome(SrbStatus.INVALID_LUN)
