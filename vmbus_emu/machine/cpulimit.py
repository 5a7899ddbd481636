"""Limiting a role's share of the CPU: by what this host lets this user enforce, and by nothing that only looks like it.

A control group with the cpu controller enforces a limit: the kernel takes the CPU away for the rest of each period. It
needs a group that we may write to (root on hosts with version 1; with version 2 a group that was delegated to the user,
such as by ``systemd-run --user --scope -p Delegate=yes``). Where there is none, a role with a limit runs at idle
priority: it never takes a core from who wants it, and takes all of one that is idle. That is no limit, and is not
called one.

Files as in the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

#: The kernel allots CPU time in periods: short ones, so that a role that has used up its share delays nobody for long.
#: No quota may be less than a millisecond.
PERIOD_US, LEAST_QUOTA_US = 10_000, 1_000
GROUP_PREFIX = "vmbus-emu-"
_NICEST = 19


class InForce(NamedTuple):
    """What keeps a role from the CPU. ``kind``: ``cgroup`` (``cores`` are enforced) or ``priority``."""

    kind: str
    cores: float | None
    words: str


class Controller(NamedTuple):
    """The cpu controller's folder for our own group."""

    version: int
    folder: str


def controllers(mountinfo: str, own: str) -> list[Controller]:
    """Where limits can be set, by texts of ``/proc/self/mountinfo`` and ``/proc/self/cgroup``."""
    groups: dict[int, str] = {}
    for line in own.splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if "cpu" in names.split(","):
            groups[1] = path
        elif not names:
            groups[2] = path
    found = []
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        words, kind = head.split(), tail.split()
        if len(words) < 5 or len(kind) < 3:
            continue
        version = {"cgroup": 1, "cgroup2": 2}.get(kind[0])
        if version is None or version not in groups or (version == 1 and "cpu" not in kind[2].split(",")):
            continue
        root, mount = words[3], words[4]
        inside = groups[version].removeprefix(root if root != "/" else "")
        found.append(Controller(version, os.path.normpath(f"{mount}/{inside}")))
    return found


def quota_us(cores: float) -> tuple[int, int]:
    """Quota and period, in microseconds, for so many cores."""
    period = max(PERIOD_US, round(LEAST_QUOTA_US / cores))
    return max(LEAST_QUOTA_US, round(cores * period)), period


class CpuLimits:
    """Of one machine's roles. ``record``: a file for the groups that are made, so that whoever sweeps up after a
    machine that was killed finds them (:mod:`vmbus_emu.runfolder`)."""

    def __init__(self, record: Path, say: Callable[[str], object]) -> None:
        self._record = record
        self._say = say
        self._groups: dict[str, str] = {}
        self._enabled: set[str] = set()

    def apply(self, role: str, pid: int, cores: float) -> InForce:
        """Limit a new process of a role, before it does anything; what is in force from then on."""
        for controller in controllers(_read("/proc/self/mountinfo"), _read("/proc/self/cgroup")):
            try:
                self._enter(controller, role, pid, cores)
            except OSError as error:
                self._say(f"{role}: no limit by {controller.folder}: {error.strerror}")
                self.release(role)
            else:
                return InForce("cgroup", cores, f"{cores:g} cores, by cgroup v{controller.version}")
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, pid, _NICEST)
        return InForce("priority", None, f"idle priority; {cores:g} cores cannot be enforced here")

    def _enter(self, controller: Controller, role: str, pid: int, cores: float) -> None:
        """Raises ``OSError`` where that is not allowed or not possible."""
        quota, period = quota_us(cores)
        own = controller.folder
        if controller.version == 2 and "cpu" not in _read(f"{own}/cgroup.subtree_control").split():
            _write(f"{own}/cgroup.subtree_control", "+cpu")
            self._enabled.add(own)
        group = self._groups[role] = f"{own}/{GROUP_PREFIX}{os.getpid()}-{role}"
        with open(self._record, "a") as record:
            record.write(f"{group}\n")
        with contextlib.suppress(FileExistsError):  # that of the incarnation before
            os.mkdir(group)
        if controller.version == 2:
            if _read(f"{group}/cgroup.type").strip() == "domain invalid":  # as there are processes in our own group
                _write(f"{group}/cgroup.type", "threaded")
            _write(f"{group}/cpu.max", f"{quota} {period}")
        else:
            _write(f"{group}/cpu.cfs_period_us", str(period))
            _write(f"{group}/cpu.cfs_quota_us", str(quota))
        _write(f"{group}/cgroup.procs", str(pid))

    def release(self, role: str) -> None:
        """The role's process is gone, and will not be replaced."""
        group = self._groups.pop(role, None)
        if group is not None:
            with contextlib.suppress(OSError):
                os.rmdir(group)

    def close(self) -> None:
        """All are gone."""
        for role in list(self._groups):
            self.release(role)
        for own in self._enabled:
            with contextlib.suppress(OSError):
                _write(f"{own}/cgroup.subtree_control", "-cpu")


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
