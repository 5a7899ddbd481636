"""The media in the machine's drives: disk images opened and locked once, RAM disks as memory files.

The machine owns them. Whichever process runs a driver gets a descriptor of the same open file, so media outlive
the death of everything but the machine, a failed write-back is not forgotten by reopening, and a replacement
driver does not fight its predecessor for a lock. The lock is an ``flock`` on the open file: shared for read-only
images, exclusive for others, and gone with the last holder of the descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vmbus_emu.placement import instance_id

# SECTOR is not taken from device: what the machine has loaded, the hypervisor has, too.
from vmbus_emu.topology.data import SECTOR, DiskSpec, Topology, VmSpec


class MediaError(Exception):
    """A disk image cannot be used; the text is one line for the user."""


@dataclass(frozen=True, slots=True)
class Medium:
    """One disk's medium. ``fd`` is -1 for a null disk."""

    name: str
    fd: int
    block_count: int
    read_only: bool
    serial: str

    @property
    def size_bytes(self) -> int:
        return self.block_count * SECTOR

    def describe(self) -> dict[str, Any]:
        return {"block_count": self.block_count, "read_only": self.read_only, "serial": self.serial}


def open_all(topology: Topology) -> dict[str, Medium]:
    """Open every medium of the machine, by name (``vm1.disk0``). Raises :class:`MediaError`; then none is left open."""
    return _open_of(topology.vms)


def open_media(vm: VmSpec) -> dict[str, Medium]:
    """The same of one VM."""
    return _open_of((vm,))


def _open_of(vms: Iterable[VmSpec]) -> dict[str, Medium]:
    opened: dict[str, Medium] = {}
    try:
        for vm in vms:
            for index, disk in enumerate(vm.disks):
                name = f"{vm.name}.disk{index}"
                opened[name] = _open(name, disk)
    except MediaError:
        for medium in opened.values():
            if medium.fd >= 0:
                os.close(medium.fd)
        raise
    return opened


def _open(name: str, disk: DiskSpec) -> Medium:
    serial = instance_id(*name.split(".")).hex[:16].upper()
    size = disk.size_bytes
    fd = -1
    if disk.kind == "ram":
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
    elif disk.kind == "file":
        assert disk.path is not None
        fd = _open_file(name, disk.path, disk)
        size = os.fstat(fd).st_size
        if size == 0 or size % SECTOR:
            os.close(fd)
            raise MediaError(f"{name}: {disk.path} has {size} bytes; a disk needs a multiple of {SECTOR}")
    return Medium(name, fd, size // SECTOR, disk.read_only, serial)


def _open_file(name: str, path: str, disk: DiskSpec) -> int:
    flags = os.O_CLOEXEC | (os.O_RDONLY if disk.read_only else os.O_RDWR)
    if disk.size_bytes and not disk.read_only:
        flags |= os.O_CREAT
    try:
        fd = os.open(path, flags, 0o644)
    except OSError as error:
        raise MediaError(f"{name}: cannot open {path}: {error.strerror}; check the path and its permissions") from None
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if disk.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        if disk.size_bytes and os.fstat(fd).st_size == 0:
            os.ftruncate(fd, disk.size_bytes)  # created sparse
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EWOULDBLOCK:
            raise MediaError(f"{name}: {path} is in use by another machine; take that down or copy the image") from None
        raise MediaError(f"{name}: {path}: {error.strerror}; choose another image") from None
    return fd
