"""What the witness writes: every 512-byte sector says who wrote it, in which write, and where it belongs.

A stamped sector is, little-endian: magic (8 bytes), sequence (u64), LBA (u64), writer (u32), 480 bytes of filler that
follow from these, and the CRC-32 of all that. So no part of a sector can be of another write, or of another place,
without being noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from struct import Struct
from typing import NamedTuple
from zlib import crc32

from vmbus_emu.device import BLOCK_SIZE, Buffer

_MAGIC = b"vmbuswit"
_HEAD = Struct("<8sQQI")
_SECTOR = Struct("<508sI")
_FILLER_BYTES = 480
#: The filler of a sector is a window of this; windows at different places differ.
_FILLER = bytes((index * 167 + (index >> 3) * 13 + 41) & 0xFF for index in range(1024 + _FILLER_BYTES))
_ZEROS = bytes(BLOCK_SIZE)

#: A sector in brief, as guests report it: state, writer (u32), sequence, LBA (u64). Little-endian.
BRIEF = Struct("<IIQQ")
EMPTY, WHOLE, TORN = range(3)


class Stamp(NamedTuple):
    """What a whole sector says of itself. ``lba`` is where it was meant to go."""

    writer: int
    sequence: int
    lba: int


class Torn(NamedTuple):
    """A sector that is neither zeros nor one whole stamp. ``claims``: what its head says, zeros if it has none."""

    claims: Stamp


#: What was found in a sector; ``None``: zeros.
State = Stamp | Torn | None


def fill(buffer: bytearray | memoryview, writer: int, sequence: int, lba: int) -> None:
    """Stamp all of ``buffer``, whole sectors, the first for ``lba``."""
    head, put = _HEAD.pack, _SECTOR.pack_into
    place = sequence * 31 + writer
    for at in range(0, len(buffer), BLOCK_SIZE):
        window = (place + lba * 7) & 1023
        body = head(_MAGIC, sequence, lba, writer) + _FILLER[window : window + _FILLER_BYTES]
        put(buffer, at, body, crc32(body))
        lba += 1


def read(sector: Buffer) -> State:
    """What 512 bytes hold."""
    body, check = _SECTOR.unpack(sector)
    magic, sequence, lba, writer = _HEAD.unpack_from(body)
    if magic == _MAGIC:
        stamp = Stamp(writer, sequence, lba)
        return stamp if crc32(body) == check else Torn(stamp)
    return None if sector == _ZEROS else Torn(Stamp(0, 0, 0))


def read_all(content: Buffer) -> list[State]:
    """What each sector of ``content``, whole sectors, holds."""
    view = memoryview(content)
    return [read(view[at : at + BLOCK_SIZE]) for at in range(0, len(view), BLOCK_SIZE)]


def brief(content: Buffer) -> bytes:
    """:data:`BRIEF` of each sector of ``content``."""
    return b"".join(BRIEF.pack(*_numbers(state)) for state in read_all(content))


def from_brief(data: Buffer, lba: int) -> dict[int, State]:
    """What :func:`brief` said of the sectors from ``lba`` on. ``ValueError``: it cannot have said that."""
    if len(data) % BRIEF.size:
        raise ValueError(f"{len(data)} bytes are not whole records of {BRIEF.size}")
    return {lba + index: _state(numbers) for index, numbers in enumerate(BRIEF.iter_unpack(data))}


def dump(states: Mapping[int, State]) -> list[list[int]]:
    """For JSON: LBA, state, writer, sequence and stamped LBA of each sector that is not empty, and [LBA] of others."""
    return [[lba] if state is None else [lba, *_numbers(state)] for lba, state in states.items()]


def load(rows: Iterable[Sequence[int]]) -> dict[int, State]:
    """What :func:`dump` was given. ``ValueError``: it cannot have made that."""
    states: dict[int, State] = {}
    for row in rows:
        if len(row) not in (1, 5) or any(type(number) is not int or number < 0 for number in row):
            raise ValueError(f"{row!r} is not a sector's state")
        states[row[0]] = _state(row[1:]) if len(row) == 5 else None
    return states


def _numbers(state: State) -> tuple[int, int, int, int]:
    if state is None:
        return EMPTY, 0, 0, 0
    return (WHOLE, *state) if isinstance(state, Stamp) else (TORN, *state.claims)


def _state(numbers: Sequence[int]) -> State:
    kind, *said = numbers
    if kind == EMPTY:
        return None
    if kind not in (WHOLE, TORN):
        raise ValueError(f"{kind} is not a sector's state")
    return Stamp(*said) if kind == WHOLE else Torn(Stamp(*said))
