"""Copying a medium into a new file, in turns of the loop, with its holes.

The file has no name until it is complete, so a copy that comes to nothing leaves none.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Awaitable, Callable

#: Bytes copied in one turn of the loop.
PIECE = 8 << 20
#: What says that two files cannot be copied between within the kernel in that way.
_ELSEWHERE = frozenset((errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM))


class NewFile:
    """``path`` is absolute. Raises ``OSError``; ``FileExistsError`` if something has that name already."""

    def __init__(self, path: str) -> None:
        self.path = path
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._hidden = ""
        folder, name = os.path.split(path)
        try:
            self.fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                raise
            self._hidden = os.path.join(folder, f".{name}.{os.getpid()}")   # a file system without nameless files
            self.fd = os.open(self._hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)

    def keep(self) -> None:
        """Give it its name. Raises ``OSError`` if that is taken by now."""
        source = self._hidden or f"/proc/self/fd/{self.fd}"
        # With a folder's descriptor, of no use to an absolute path, this is linkat(), which follows the link in /proc.
        os.link(source, self.path, src_dir_fd=self.fd, follow_symlinks=True)

    def close(self) -> None:
        """Idempotent. What was not kept is gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._hidden:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._hidden)
            self._hidden = ""


async def copy(source: int, target: int, size: int, turn: Callable[[], Awaitable[None]]) -> int:
    """Make ``target`` ``size`` bytes long and as ``source`` is; the bytes that were no hole. ``turn`` lets others have
    theirs. Raises ``OSError``."""
    os.ftruncate(target, size)
    copied = at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:      # a hole up to the end
                break
            raise
        end = min(size, os.lseek(source, at, os.SEEK_HOLE))
        while at < end:
            count = _piece(source, target, at, min(PIECE, end - at))
            if not count:
                raise OSError(errno.EIO, "the medium is shorter than it was")
            at += count
            copied += count
            await turn()
    return copied


def _piece(source: int, target: int, at: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, count, at, at)
    except OSError as error:
        if error.errno not in _ELSEWHERE:
            raise
    os.lseek(target, at, os.SEEK_SET)
    return os.sendfile(target, source, at, count)
