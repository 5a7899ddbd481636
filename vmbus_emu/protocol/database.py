"""A disk that holds one SQLite database and its rollback journal: where they lie, and how long they are.

No file system: sector 0 is the superblock, 56 bytes, little-endian, the rest of the sector zero.

====== ==== ===================================================================
offset size
====== ==== ===================================================================
0      8    magic, ``VMBUSSQL``
8      4    version, 1
12     4    CRC-32 of the sector with these four bytes zero
16     8    journal: byte at which its extent begins
24     8    journal: bytes of the extent
32     8    journal: bytes of it that are the file now; 0: there is no journal
40     8    database: byte at which its extent begins; it extends to the end
48     8    database: bytes of it that are the file now
====== ==== ===================================================================

Extents begin and end at multiples of 4096. A sector is written whole or not at all, as disks do it, so writing the
superblock is what makes a change of a length happen. The journal's length is written only after what it covers is
durable; taking it back to 0 is the commit.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

SECTOR = 512
PAGE = 4096
#: The smallest disk that is worth it.
LEAST_BYTES = 1 << 20
_MOST_JOURNAL = 16 << 20
_MAGIC = b"VMBUSSQL"
_VERSION = 1
_HEADER = struct.Struct("<8sII5Q")
_CRC_AT, _CRC_END = 12, 16


class NoDatabase(ValueError):
    """Why a disk holds no database, in a few words."""


class Superblock(NamedTuple):
    """All in bytes; ``disk`` is what the extents must fit into."""

    disk: int
    journal_start: int
    journal_room: int
    journal_length: int
    database_start: int
    database_length: int

    @property
    def database_room(self) -> int:
        return self.disk - self.database_start

    def encode(self) -> bytes:
        """The sector."""
        body = _HEADER.pack(_MAGIC, _VERSION, 0, *self[1:]).ljust(SECTOR, b"\0")
        return body[:_CRC_AT] + struct.pack("<I", zlib.crc32(body)) + body[_CRC_END:]


def is_hot(journal: bytes) -> bool:
    """Whether a journal with this beginning has a transaction to roll back: SQLite's own rule. What it has rolled back
    it may leave there with zeros for its header."""
    return bool(journal) and journal[0] != 0


def laid_out(nbytes: int) -> Superblock:
    """An empty database on a disk of ``nbytes``. Raises :class:`NoDatabase` if it is too small."""
    if nbytes < LEAST_BYTES:
        raise NoDatabase(f"{nbytes} bytes are too few for a database; it takes {LEAST_BYTES}")
    disk = nbytes - nbytes % PAGE
    journal = min(_MOST_JOURNAL, disk // 4)
    journal -= journal % PAGE
    return Superblock(disk, PAGE, journal, 0, PAGE + journal, 0)


def decode(sector: bytes, nbytes: int) -> Superblock:
    """What the first sector of a disk of ``nbytes`` says. Raises :class:`NoDatabase`."""
    if len(sector) != SECTOR or sector[:8] != _MAGIC:
        raise NoDatabase("it holds no database of vmbus-emu")
    _, version, crc, *numbers = _HEADER.unpack_from(sector)
    if zlib.crc32(sector[:_CRC_AT] + bytes(4) + sector[_CRC_END:]) != crc:
        raise NoDatabase("the superblock of its database is damaged")
    if version != _VERSION:
        raise NoDatabase(f"its database has layout version {version}; this program knows {_VERSION}")
    found = Superblock(nbytes - nbytes % PAGE, *numbers)
    if not (
        found.journal_start >= PAGE
        and found.journal_start + found.journal_room <= found.database_start <= found.disk
        and found.journal_length <= found.journal_room
        and found.database_length <= found.database_room
        and not (found.journal_start | found.journal_room | found.database_start) % PAGE
    ):
        raise NoDatabase("its database lies beyond the end of the disk")
    return found
