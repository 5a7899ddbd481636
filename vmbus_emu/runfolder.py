"""The run folder of a machine: where its sockets, logs and description are, and whether it runs.

``BASE/NAME/`` holds ``lock``, ``machine.json``, ``s/`` (sockets) and ``logs/``. The machine process calls
:meth:`RunFolder.create`, :meth:`RunFolder.acquire` and :meth:`RunFolder.write_info`; the command line and the
client only look, and sweep what a killed machine left.

A machine runs if and only if a process holds the POSIX lock on ``lock``. The kernel drops it however that
process ends, so no pid file can lie, and asking (:meth:`RunFolder.holder`) takes nothing. Such a lock falls when its
owner closes *any* descriptor of the file; hence the owner answers for itself and never opens ``lock`` again.

Nothing here follows a symbolic link out of the base, and nothing is removed that is not ours and unlocked.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmbus_emu import posixlock
from vmbus_emu.procfs import start_time
from vmbus_emu.topology.data import MAX_NAME, Topology, is_name

#: Overrides the base folder, for tests and for whoever wants several worlds.
BASE_VARIABLE = "VMBUS_EMU_RUN"
SCHEMA = 1
#: ``sockaddr_un`` holds 108 bytes with the closing zero.
MAX_SOCKET_PATH = 107
#: The longest file name in ``s/``: component, device and incarnation fit.
MAX_SOCKET_NAME = 40
_SOCKETS = "s"
_LOGS = "logs"
_MAX_INFO_BYTES = 64 << 20

#: Locks this process holds: the lock file's path, and the pid that took it (a forked child holds none).
_held: dict[str, int] = {}


class RunFolderError(OSError):
    """The run folder cannot be used. One line, and ``hint``: what to try."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.hint = hint


class Running(RunFolderError):
    """A process holds the machine's lock. ``pid`` is that process's."""

    def __init__(self, name: str, pid: int) -> None:
        super().__init__(f'"{name}" is already running (pid {pid})', f"vmbus-emu down --name {name}, or another --name")
        self.pid = pid


@dataclass(frozen=True, slots=True)
class MachineEntry:
    """One run folder. ``pid`` is ``None`` and ``stale`` true when only files are left. ``info``: ``machine.json``."""

    name: str
    pid: int | None
    stale: bool
    info: Mapping[str, Any]


def base_folder() -> Path:
    """Where all run folders of this user are; it need not exist yet. Raises :class:`RunFolderError`."""
    given = os.environ.get(BASE_VARIABLE)
    if given:
        if not os.path.isabs(given):
            raise RunFolderError(f'{BASE_VARIABLE} is "{given}", not an absolute path', "give one like /tmp/lab")
        return Path(given)
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and _is_ours(runtime):
        base = Path(runtime, "vmbus-emu")
        if _socket_path_length(base, "x" * MAX_NAME) <= MAX_SOCKET_PATH:
            return base
    return Path(f"/tmp/vmbus-emu-{os.getuid()}")


class RunFolder:
    """The folder of the machine ``name``. Making the object touches nothing.

    Raises :class:`RunFolderError` for a name that is none, and if the base is so deep that a socket's path
    would not fit into 107 bytes.
    """

    def __init__(self, name: str) -> None:
        if not is_name(name):
            raise RunFolderError(f'"{name}" is not a name', "lower-case letters, digits and dashes, at most 32")
        base = base_folder()
        length = _socket_path_length(base, name)
        if length > MAX_SOCKET_PATH:
            raise RunFolderError(
                f"socket paths in {base / name} would have up to {length} bytes; {MAX_SOCKET_PATH} are possible",
                f"a shorter --name, or a shorter folder in {BASE_VARIABLE}",
            )
        self.name = name
        self.base = base
        self.path = base / name
        self.sockets = self.path / _SOCKETS
        self.logs = self.path / _LOGS
        self.info_file = self.path / "machine.json"
        self.lock_file = self.path / "lock"
        self.groups_file = self.path / "cgroups"

    def create(self) -> None:
        """Make the folder and what is in it, for this user alone (0700). What exists is kept, if it is ours."""
        for folder in (self.base, self.path, self.sockets, self.logs):
            try:
                folder.mkdir(mode=0o700, parents=folder is self.base, exist_ok=True)
            except OSError as error:
                raise RunFolderError(f"cannot make {folder}: {error.strerror}", f"set {BASE_VARIABLE}") from error
            _require_private(folder)

    def exists(self) -> bool:
        """Whether the folder is there and this user's, running or stale."""
        return _is_ours(self.path)

    def socket(self, name: str) -> str:
        """The path of a socket file. ``name`` has at most :data:`MAX_SOCKET_NAME` bytes; a longer one is a bug."""
        if len(os.fsencode(name)) > MAX_SOCKET_NAME:
            raise ValueError(f"socket name too long: {name}")
        return str(self.sockets / name)

    def log(self, component: str) -> str:
        """The path of a component's current log; ``.1`` and ``.2`` after it are older."""
        return str(self.logs / f"{component}.log")

    # -- the lock -----------------------------------------------------------------------------------

    def acquire(self, topology: Topology | None = None) -> int:
        """Take the machine's lock, making the folder if needed; the descriptor, to be kept open for life.

        With a ``topology``, ``machine.json`` describes it from then on. Raises :class:`Running` if a process has
        the lock, this one included.
        """
        lock = self._lock()
        _held[str(self.lock_file)] = os.getpid()
        if topology is not None:
            self.write_info(_description(topology))
        return lock

    def _lock(self) -> int:
        if _held.get(str(self.lock_file)) == os.getpid():
            raise Running(self.name, os.getpid())
        while True:
            self.create()
            try:
                lock = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:
                continue  # swept between the two calls
            except OSError as error:
                raise RunFolderError(f"cannot open {self.lock_file}: {error.strerror}", "remove that file") from error
            if not self._try_lock(lock):
                pid = posixlock.owner(lock)
                os.close(lock)
                if pid is None:
                    continue  # released between the two calls
                raise Running(self.name, pid)
            if _is_same_file(lock, self.lock_file):
                return lock
            os.close(lock)  # what we locked was swept meanwhile; the name belongs to a newer file or to none

    def _try_lock(self, lock: int) -> bool:
        try:
            return posixlock.try_lock(lock)
        except OSError as error:
            os.close(lock)
            raise RunFolderError(f"cannot lock {self.lock_file}: {error.strerror}", f"set {BASE_VARIABLE}") from error

    def release(self, lock: int) -> None:
        """Give the lock back; the folder stays."""
        _held.pop(str(self.lock_file), None)
        os.close(lock)

    def holder(self) -> int | None:
        """The pid of the process that runs this machine, ``None`` if there is none. Takes no lock."""
        if _held.get(str(self.lock_file)) == os.getpid():
            return os.getpid()
        if not _is_ours(self.path):
            return None
        try:
            lock = os.open(self.lock_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            return posixlock.owner(lock)
        finally:
            os.close(lock)

    # -- the description ------------------------------------------------------------------------------

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Replace ``machine.json`` in one step, so that a reader sees the old one or the new one."""
        draft = self.path / "machine.json.new"
        draft.write_text(json.dumps({"schema": SCHEMA, "name": self.name, **info}, indent=1) + "\n")
        draft.replace(self.info_file)

    def update_vms(self, vms: list[str]) -> None:
        """``machine.json`` lists these VMs from now on."""
        self.write_info({**self.info(), "vms": vms})

    def info(self) -> dict[str, Any]:
        """``machine.json``; empty if it is missing or not what we write."""
        try:
            with open(self.info_file, "rb") as file:
                value = json.loads(file.read(_MAX_INFO_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) and value.get("schema") == SCHEMA else {}

    # -- leaving --------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Delete the folder. Only for who holds the lock; :func:`sweep` is for everybody else."""
        self._remove_groups()
        try:
            import shutil  # with all its archive formats, which a booting machine has no time for

            shutil.rmtree(self.path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise RunFolderError(f"cannot remove {self.path}: {error.strerror}", "remove it by hand") from error


    def _remove_groups(self) -> None:
        """Control groups of roles' processes, which a machine that was killed had no time to remove. None with a
        process in it can be removed."""
        try:
            groups = self.groups_file.read_text().splitlines()
        except OSError:
            return
        for group in groups:
            with contextlib.suppress(OSError):
                os.rmdir(group)


def sweep(name: str) -> bool:
    """Remove what a dead machine left. ``False`` if there is nothing, or a process holds its lock.

    The lock is held while the files go, so a machine that starts at this moment either is seen and spared, or
    finds its folder gone and makes a new one.
    """
    folder = RunFolder(name)
    if folder.holder() is not None or not _is_ours(folder.path):
        return False
    try:
        lock = folder.acquire()
    except Running:
        return False
    try:
        folder.remove()
    finally:
        folder.release(lock)
    return True


def list_machines() -> list[MachineEntry]:
    """All run folders of this user, by name, running or stale."""
    base = base_folder()
    try:
        names = sorted(entry.name for entry in os.scandir(base) if is_name(entry.name) and _is_ours(entry.path))
    except OSError:
        return []
    entries = []
    for name in names:
        folder = RunFolder(name)
        pid = folder.holder()
        entries.append(MachineEntry(name, pid, pid is None, folder.info()))
    return entries


def _description(topology: Topology) -> dict[str, Any]:
    """``machine.json`` of the calling process. ``start_time`` is the kernel's, in clock ticks since boot: with the
    pid it names a process for good."""
    return {
        "pid": os.getpid(),
        "start_time": start_time(os.getpid()),
        "arch": topology.arch,
        "transport": "call" if topology.arch == "monolithic" else topology.transport,
        "vms": [vm.name for vm in topology.vms],
        "created": time.time(),
    }


def _socket_path_length(base: Path, name: str) -> int:
    return len(os.fsencode(base / name / _SOCKETS)) + 1 + MAX_SOCKET_NAME


def _is_ours(path: str | Path) -> bool:
    """Whether ``path`` is a folder (not a link to one) that this user owns."""
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _require_private(folder: Path) -> None:
    """Others must not be able to put sockets or locks in our way, least of all below /tmp."""
    if not _is_ours(folder):
        raise RunFolderError(f"{folder} is not a folder of this user", f"remove it, or set {BASE_VARIABLE}")
    if os.lstat(folder).st_mode & 0o077:
        raise RunFolderError(f"{folder} is open to other users", f"chmod 700 {folder}, or set {BASE_VARIABLE}")


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))
