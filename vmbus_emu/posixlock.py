"""POSIX record locks on a whole file: taking one, and asking who has it.

Used by :mod:`vmbus_emu.runfolder`. Such a lock belongs to a process, not to a descriptor: it falls when its owner
closes *any* descriptor of the file, a fork does not inherit it, and the owner itself is never told that it has
it. In return the kernel says which process holds it, and drops it however that process ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

#: ``struct flock`` of 64-bit Linux: type, whence, start, length, pid, and the padding C adds.
_FLOCK = struct.Struct("hhlli0l")
_WANTED = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def try_lock(descriptor: int) -> bool:
    """Lock the file for this process. ``False`` if another has it. Raises ``OSError`` where locks do not work."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLK, _WANTED)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def owner(descriptor: int) -> int | None:
    """The pid of the *other* process that holds the lock, ``None`` if none does. Takes nothing."""
    kind, _whence, _start, _length, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, _WANTED))
    return None if kind == fcntl.F_UNLCK else pid
