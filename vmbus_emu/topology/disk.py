"""The disks of a topology document: what a disk table may say, and whether its image can be used as it says.

Made by :mod:`vmbus_emu.topology.file`, one :class:`DiskReader` per document, because images are compared over
all VMs: two writers of one file would corrupt it, whatever names they know it by. Images are looked at with
``stat`` only; the machine opens and locks them.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from typing import Literal

from vmbus_emu.hardware import DEFAULT_CONTROLLER
from vmbus_emu.topology import data as data
from vmbus_emu.topology.data import DiskSpec
from vmbus_emu.topology.table import Report, Table, describe

DISK_KINDS: tuple[Literal["file", "ram", "null"], ...] = ("file", "ram", "null")
DISK_KEYS = (*DISK_KINDS, "read_only", "size", "controller")
_TRY_DISK = 'give one of file = "a.img", ram = "64MiB", null = "1TiB"'


class DiskReader:
    """Reads disks and remembers their images. ``folder``: what a file's relative path starts from."""

    def __init__(self, report: Report, folder: str) -> None:
        self._report = report
        #: What disks can hang on.
        self.controllers: tuple[str, ...] = (DEFAULT_CONTROLLER,)
        self._folder = folder
        #: An image by what the kernel knows it by (or by its path, if it is still to be made): first place, read_only.
        self._images: dict[tuple[int, int] | str, tuple[str, bool]] = {}

    def read(self, place: str, value: object) -> DiskSpec | None:
        """The disk in the table ``value``; ``None`` (and a line) if it says nothing usable."""
        table = Table(self._report, place, value, DISK_KEYS)
        disk = self._disk(table)
        if disk is None or "controller" not in table:
            return disk
        return replace(disk, controller=table.choice("controller", self.controllers, DEFAULT_CONTROLLER))

    def note(self, place: str, disk: DiskSpec) -> None:
        """Disk ``place`` has an image already, if it has one at all."""
        if disk.path is None:
            return
        try:
            found = os.stat(disk.path)
        except OSError:  # whoever has it open has it for good; nobody else finds it
            return
        self._images[found.st_dev, found.st_ino] = place, disk.read_only

    def flagged(self, flag: str, file: str, folder: str) -> DiskSpec | None:
        """The disk of an image named by a flag; relative paths start from ``folder``."""
        return self._image(Table(self._report, "flags:", {flag: file}, None), flag, folder, None, False)

    def _disk(self, table: Table) -> DiskSpec | None:
        kinds = [kind for kind in DISK_KINDS if kind in table]
        read_only = table.boolean("read_only", False)
        if len(kinds) != 1:
            what = "says nothing of its medium" if not kinds else f"is {' and '.join(kinds)} at once"
            self._report(table.place, what, _TRY_DISK)
            return None
        kind = kinds[0]
        if kind != "file":
            if "size" in table:
                table.error("size", f"belongs to a file, not to {kind}", f'write {kind} = "SIZE"')
            return DiskSpec(kind, None, table.size(kind, data.SECTOR, data.SECTOR, data.MAX_DISK_BYTES), read_only)
        size = None
        if "size" in table:
            size = table.size("size", data.SECTOR, data.SECTOR, data.MAX_DISK_BYTES)
        return self._image(table, "file", self._folder, size, read_only)

    def _image(self, table: Table, key: str, folder: str, size: int | None, read_only: bool) -> DiskSpec | None:
        """A disk in an image file. ``size``: what the user says of it, if anything."""
        file = table.values[key]
        if not isinstance(file, str) or not file or "\0" in file:
            table.error(key, f"is {describe(file)}", "give the path of a disk image")
            return None
        path = os.path.abspath(os.path.join(folder, file))
        try:
            found: os.stat_result | None = os.stat(path)
        except FileNotFoundError:
            found = None
        except (OSError, ValueError) as error:
            what = error.strerror if isinstance(error, OSError) else str(error)
            table.error(key, f'"{file}": {what}', "check the path and its permissions")
            return None
        if found is None:
            fault = _missing_image_fault(path, size, read_only)
        else:
            fault = _image_fault(found, path, size, read_only)
        if fault is not None:
            table.error(key, f'"{file}" {fault[0]}', fault[1])
        identity = (found.st_dev, found.st_ino) if found is not None else os.path.realpath(path)
        if identity in self._images:
            owner, owner_reads = self._images[identity]
            if not (owner_reads and read_only):
                table.error(key, f'"{file}" is also the image of {owner}', "only read_only disks can share a file")
        else:
            self._images[identity] = (table.name or key, read_only)
        return DiskSpec("file", path, size or 0, read_only)


def _missing_image_fault(path: str, size: int | None, read_only: bool) -> tuple[str, str] | None:
    folder = os.path.dirname(path)
    if size is None:
        return "does not exist", 'check the path, or give size = "1GiB" in a topology file to create it'
    if read_only:
        return "does not exist and is read_only", "leave out read_only to create it"
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        return f"cannot be created in {folder}", "make that folder, or choose another"
    return None


def _image_fault(found: os.stat_result, path: str, size: int | None, read_only: bool) -> tuple[str, str] | None:
    if not stat.S_ISREG(found.st_mode):
        return "is not a regular file", "give a disk image"
    if found.st_size == 0:
        return "is empty", "give an image, or remove the file and let size create it"
    if found.st_size % data.SECTOR:
        return f"is {found.st_size} bytes, not a multiple of {data.SECTOR}", f"truncate -s %{data.SECTOR} makes it one"
    if size is not None and size != found.st_size:
        return f"is {found.st_size} bytes, not {size} as size says", "leave out size, or remove the file"
    if not os.access(path, os.R_OK):
        return "cannot be read", "check its permissions"
    # The superuser may write to anything; a file without any write permission is still meant to be kept.
    if not read_only and not (found.st_mode & 0o222 and os.access(path, os.W_OK)):
        return "is write-protected and the disk is not read_only", "write read_only = true, or chmod u+w the file"
    return None
