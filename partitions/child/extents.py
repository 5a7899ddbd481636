"""A database and its journal at fixed places of a disk (:mod:`vmbus_emu.protocol.database`), as two files.

What is written stays in memory, as in a kernel's page cache, until it is made durable. Then nothing can come to the
disk in an order that :meth:`DatabaseDisk.sync` did not choose.
"""

from __future__ import annotations

from partitions.child.blocking_disk import LARGEST, BlockingDisk
from vmbus_emu.protocol.database import PAGE, SECTOR, Superblock, decode, laid_out


class NoRoom(Exception):
    """A file would outgrow its extent."""


class Extent:
    """A file of :attr:`length` bytes in the ``room`` bytes of ``disk`` that begin at ``start``."""

    def __init__(self, disk: BlockingDisk, start: int, room: int, length: int, keeps: bool) -> None:
        """``keeps``: what was read or written stays in memory until it is cut off; for a file whose user has no cache
        of its own."""
        self._disk = disk
        self._start = start
        self._room = room
        self._keeps = keeps
        self.length = length
        self._pages: dict[int, bytearray] = {}
        self._dirty: set[int] = set()

    def read(self, offset: int, nbytes: int) -> bytes:
        """Fewer bytes at the end of the file."""
        end = min(offset + nbytes, self.length)
        pieces = []
        while offset < end:
            index, skip = divmod(offset, PAGE)
            piece = self._page(index)[skip : skip + end - offset]
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)

    def write(self, offset: int, data: bytes) -> None:
        """Raises :class:`NoRoom`. What lies between the old end and ``offset`` reads as zeros."""
        if offset + len(data) > self._room:
            raise NoRoom
        if offset > self.length:
            self.write(self.length, bytes(offset - self.length))
        done = 0
        while done < len(data):
            index, skip = divmod(offset + done, PAGE)
            count = min(PAGE - skip, len(data) - done)
            if count == PAGE:
                page = self._pages[index] = bytearray(data[done : done + PAGE])
            else:
                page = self._pages[index] = self._page(index)
                page[skip : skip + count] = data[done : done + count]
            self._dirty.add(index)
            done += count
        self.length = max(self.length, offset + len(data))

    def truncate(self, length: int) -> None:
        """Cut the file to ``length`` bytes, or extend it with zeros."""
        if length > self.length:
            self.write(self.length, bytes(length - self.length))
            return
        self.length = length
        kept = -(-length // PAGE)
        self._pages = {index: page for index, page in self._pages.items() if index < kept}
        self._dirty.intersection_update(self._pages)

    def write_back(self) -> None:
        """Bring to the disk what is in memory only; pages that lie side by side in one request."""
        runs: list[tuple[int, bytearray]] = []
        previous = -2
        for index in sorted(self._dirty):
            if index == previous + 1 and len(runs[-1][1]) < LARGEST:
                runs[-1][1].extend(self._pages[index])
            else:
                runs.append((self._start + index * PAGE, bytearray(self._pages[index])))
            previous = index
        self._disk.write(runs)
        self._dirty.clear()
        if not self._keeps:
            self._pages.clear()

    def _page(self, index: int) -> bytearray:
        page = self._pages.get(index)
        if page is not None:
            return page
        if index * PAGE >= self.length:
            return bytearray(PAGE)
        page = bytearray(self._disk.read(self._start + index * PAGE, PAGE))
        if self._keeps:
            self._pages[index] = page
        return page


class DatabaseDisk:
    """The two files of a disk."""

    def __init__(self, disk: BlockingDisk, superblock: Superblock) -> None:
        self._disk = disk
        self._superblock = superblock       # as it is on the disk
        self.database = Extent(
            disk, superblock.database_start, superblock.database_room, superblock.database_length, keeps=False
        )
        self.journal = Extent(
            disk, superblock.journal_start, superblock.journal_room, superblock.journal_length, keeps=True
        )

    @classmethod
    def format(cls, disk: BlockingDisk) -> DatabaseDisk:
        """Put an empty database on ``disk``. Raises :class:`~vmbus_emu.protocol.database.NoDatabase`."""
        made = cls(disk, laid_out(disk.info.size_bytes))
        made._write_superblock()
        disk.flush()
        return made

    @classmethod
    def mount(cls, disk: BlockingDisk) -> DatabaseDisk:
        """What is on ``disk``. Raises :class:`~vmbus_emu.protocol.database.NoDatabase`."""
        return cls(disk, decode(disk.read(0, SECTOR), disk.info.size_bytes))

    def sync(self, extent: Extent) -> None:
        """Make ``extent`` durable as it is now, its length with it."""
        extent.write_back()
        before = self._superblock
        if extent is self.journal:
            if extent.length > before.journal_length:
                # Otherwise its new length might last and its content not: then what an earlier transaction has left
                # there would be taken for it, and undo what is committed.
                self._disk.flush()
            self._superblock = before._replace(journal_length=extent.length)
        else:
            self._superblock = before._replace(database_length=extent.length)
        if self._superblock != before:
            self._write_superblock()
        self._disk.flush()

    def _write_superblock(self) -> None:
        self._disk.write([(0, self._superblock.encode())])
