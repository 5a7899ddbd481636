"""What the kernel shows of a machine's processes at one moment: mappings, privileges, open descriptors and who is at
their other ends. Read from outside, so that a process that hangs is seen as well as any other.

Nothing here fails because a process has ended meanwhile, or is another user's: what cannot be read is ``None``.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from vmbus_emu.client.proctexts import (
    Mapped,
    Privileges,
    extent,
    inet_addresses,
    mappings,
    privileges,
    unix_paths,
)
from vmbus_emu.client.unixpeers import unix_peers

_INET = ("tcp", "udp", "tcp6", "udp6")


class Descriptor(NamedTuple):
    """An open file of a process. ``kind``: ``unix``, ``inet``, ``pipe``, ``memory`` or ``file``."""

    kind: str
    name: str
    inode: int
    file: tuple[str, int] | None = None     #: of memory and files, as mappings name it


class Seen:
    """One process, as /proc shows it. Attributes are ``None`` where it could not be read."""

    def __init__(self, pid: int, sockets: Mapping[int, str], inet: Mapping[int, str]) -> None:
        smaps, status = _text(f"/proc/{pid}/smaps"), _text(f"/proc/{pid}/status")
        self.mapped: list[Mapped] | None = mappings(smaps) or None
        self.privileges: Privileges | None = privileges(status)
        self.descriptors = _descriptors(pid, sockets, inet)


class Snapshot:
    """Several processes, by name."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        paths = unix_paths(_text("/proc/net/unix"))
        inet: dict[int, str] = {}
        for protocol in _INET:
            inet |= inet_addresses(_text(f"/proc/net/{protocol}"), protocol)
        self._paths = paths
        self.processes = {name: Seen(pid, paths, inet) for name, pid in pids.items()}
        self._peers = unix_peers()
        self._holders: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
        for name, seen in self.processes.items():
            for one in seen.descriptors or ():
                self._holders[one.kind, one.inode].add(name)

    @property
    def knows_peers(self) -> bool:
        """Whether this kernel told who is at the other end of a Unix socket."""
        return self._peers is not None

    def other_ends(self, name: str, one: Descriptor) -> list[str]:
        """Processes of the snapshot at the other end of a descriptor of process ``name``."""
        if one.kind == "unix":
            inode = (self._peers or {}).get(one.inode, 0)
            return sorted(self._holders["unix", inode])
        return sorted(self._holders[one.kind, one.inode] - {name})

    def path(self, one: Descriptor) -> str:
        """The file name of the socket at either end of a connection; empty if it has none."""
        inode = (self._peers or {}).get(one.inode, 0)
        return os.path.basename(self._paths.get(one.inode) or self._paths.get(inode) or "")

    def sharing(self) -> dict[tuple[str, int], dict[str, Mapped]]:
        """Memory that is mapped so that others see what is written: by file, the first mapping of it by each process
        that has one, with the bytes of the file that all its mappings show as ``end`` - ``begin``."""
        found: defaultdict[tuple[str, int], dict[str, list[Mapped]]] = defaultdict(dict)
        for name, seen in self.processes.items():
            for one in seen.mapped or ():
                if one.is_shared:
                    found[one.file].setdefault(name, []).append(one)
        return {
            file: {name: _joined(pieces) for name, pieces in by_name.items()}
            for file, by_name in found.items()
            if any("w" in one.access for pieces in by_name.values() for one in pieces)
        }


def _joined(pieces: list[Mapped]) -> Mapped:
    size = extent((one.offset, one.offset + one.end - one.begin) for one in pieces)
    writable = next((one for one in pieces if "w" in one.access), pieces[0])
    return writable._replace(begin=0, end=size)


def _text(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _descriptors(pid: int, sockets: Mapping[int, str], inet: Mapping[int, str]) -> list[Descriptor] | None:
    folder = f"/proc/{pid}/fd"
    found = []
    try:
        numbers = os.listdir(folder)
    except OSError:
        return None
    for number in sorted(numbers, key=int):
        with contextlib.suppress(OSError):      # closed meanwhile
            one = _descriptor(f"{folder}/{number}", sockets, inet)
            if one is not None:
                found.append(one)
    return found


def _descriptor(path: str, sockets: Mapping[int, str], inet: Mapping[int, str]) -> Descriptor | None:
    """``None``: it reaches nobody, such as an epoll or a timer."""
    target = os.readlink(path)
    kind, _, inode = target.partition(":[")
    if kind == "socket":
        number = int(inode.rstrip("]"))
        if number in inet:
            return Descriptor("inet", inet[number], number)
        return Descriptor("unix", sockets.get(number, ""), number)
    if kind == "pipe":
        return Descriptor("pipe", "", int(inode.rstrip("]")))
    if not target.startswith("/") or target.startswith("/dev/null"):
        return None
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        return None
    file = (f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}", status.st_ino)
    name = target.removesuffix(" (deleted)")
    if name.startswith("/memfd:"):
        return Descriptor("memory", name.removeprefix("/memfd:"), status.st_ino, file)
    return Descriptor("file", name, status.st_ino, file)
