"""SQLite's files on a guest's disk: what SQLite asks of an operating system, answered by :class:`DatabaseDisk`.

One connection uses a database, so locks are not needed. The journal mode is TRUNCATE: a journal without length is no
journal. Needs ``apsw``, the extra ``[macro]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import apsw

from partitions.child.console import CommandError
from partitions.child.extents import DatabaseDisk, Extent, NoRoom
from vmbus_emu.device import BLOCK_SIZE

_DATABASE, _JOURNAL = "database", "database-journal"
#: A file's new length is durable only after its new content; a write does not touch what lies beside it.
_CHARACTERISTICS = apsw.SQLITE_IOCAP_SAFE_APPEND | apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE
#: For one user, who wants every commit to be durable when it returns.
_SETTINGS = (
    "PRAGMA locking_mode = EXCLUSIVE", "PRAGMA journal_mode = TRUNCATE", "PRAGMA synchronous = FULL",
    "PRAGMA temp_store = MEMORY",
)


class _Quiet:
    #: What cannot be reported in place is kept by the disk (:attr:`BlockingDisk.failure`).
    def excepthook(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return True


class _File(_Quiet):
    """An open file, by the names that apsw calls."""

    def __init__(self, extent: Extent, sync: Callable[[Extent], None]) -> None:
        self._extent = extent
        self._sync = sync

    def xRead(self, amount: int, offset: int) -> bytes:
        return self._extent.read(offset, amount)

    def xWrite(self, data: bytes, offset: int) -> None:
        try:
            self._extent.write(offset, data)
        except NoRoom:
            raise apsw.FullError("the extent is full") from None

    def xTruncate(self, newsize: int) -> None:
        self._extent.truncate(newsize)

    def xSync(self, flags: int) -> None:
        self._sync(self._extent)

    def xFileSize(self) -> int:
        return self._extent.length

    def xLock(self, level: int) -> None:
        """There is one user."""

    def xUnlock(self, level: int) -> None:
        """There is one user."""

    def xCheckReservedLock(self) -> bool:
        return False

    def xFileControl(self, op: int, ptr: int) -> bool:
        return False

    def xSectorSize(self) -> int:
        return BLOCK_SIZE

    def xDeviceCharacteristics(self) -> int:
        return _CHARACTERISTICS

    def xClose(self) -> None:
        """Nothing is held."""


class _Vfs(_Quiet, apsw.VFS):
    def __init__(self, name: str) -> None:
        super().__init__(name, "")
        self._disk: DatabaseDisk | None = None

    def serve(self, disk: DatabaseDisk) -> None:
        self._disk = disk

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        assert self._disk is not None
        flags[1] = flags[0]
        if flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            return _File(self._disk.database, self._disk.sync)
        if flags[0] & apsw.SQLITE_OPEN_MAIN_JOURNAL:
            return _File(self._disk.journal, self._disk.sync)
        raise apsw.CantOpenError("a database on a disk has no further files")

    def xAccess(self, pathname: str, flags: int) -> bool:
        assert self._disk is not None
        return pathname == _DATABASE or (pathname == _JOURNAL and self._disk.journal.length > 0)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        assert self._disk is not None
        if filename == _JOURNAL:
            self._disk.journal.truncate(0)
            self._disk.sync(self._disk.journal)

    def xFullPathname(self, name: str) -> str:
        return name


@contextmanager
def opened(name: str, prepare: Callable[[], DatabaseDisk]) -> Iterator[apsw.Connection]:
    """A connection to the database of a disk, closed at the end. ``name`` is the disk's in this process: a second user
    would destroy what the first does, so :class:`CommandError` is raised if there is one. ``prepare`` formats or
    mounts it, when that is settled."""
    if name in apsw.vfs_names():
        raise CommandError(f"the database on {name} is in use; wait until the other command ends")
    vfs = _Vfs(name)
    try:
        vfs.serve(prepare())
        connection = apsw.Connection(_DATABASE, vfs=name)
        try:
            for setting in _SETTINGS:
                connection.execute(setting).fetchall()
            yield connection
        finally:
            connection.close(True)
    finally:
        vfs.unregister()
