"""Pulling the plug: the end of the machine's own process, which nobody but its user can bring about."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from vmbus_emu.client.errors import MachineError
from vmbus_emu.client.starter import recorded_processes
from vmbus_emu.procfs import has_ended
from vmbus_emu.runfolder import RunFolder

if TYPE_CHECKING:
    from vmbus_emu.client.door import Door

#: The kernel ends a machine's processes with it; this is for a busy host.
_DEADLINE_S = 10.0


def pull(folder: RunFolder, door: Door, carried: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Kill the machine behind ``door``, wait until every process of it is gone; the kill, and its event of death.

    Raises :class:`MachineError` if something survives.
    """
    recorded = recorded_processes(folder)
    killed_ns = time.monotonic_ns()
    deadline = time.monotonic() + _DEADLINE_S
    signal.pidfd_send_signal(door.pidfd, signal.SIGKILL)
    ending = select.poll()
    ending.register(door.pidfd, select.POLLIN)
    if not ending.poll(_DEADLINE_S * 1000):
        raise MachineError(f"the machine process (pid {door.pid}) was killed and is not gone", "try again in a moment")
    died_ns = time.monotonic_ns()
    alive = list(recorded)
    while alive := [pid for pid in alive if not has_ended(pid, recorded[pid])]:
        if time.monotonic() > deadline:
            names = ", ".join(map(str, alive))
            raise MachineError(f"the machine is gone, and still running are: pid {names}", f"kill -9 {names}")
        time.sleep(0.002)  # they are not our children: the kernel has no event for us
    _reap(door.pid)
    told = {"component": "machine", "pid": door.pid, "incarnation": 1, "signal": "SIGKILL"}
    kill = {
        **told, "host": "machine", "fault": "kill", "killed_ns": killed_ns, "waited_s": _DEADLINE_S, "missing": [],
    }  # fmt: skip
    death = {"n": 0, "ns": died_ns, "event": "died", "carried": sorted(carried), "exit_code": None, "reason": ""}
    return kill, {**death, **told}


def _reap(pid: int) -> None:
    """If this process started the machine, it is its parent."""
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return
