"""Stopping the processor of a VM for a while, from outside: what a hypervisor does to a guest that it cannot ask.

A medium that is copied meanwhile is copied as a power failure would leave it. What the guest had sent is on its way,
and may be in the copy or not; but it sees no answer, so it sends nothing that depends on one. Without this, a copy
that takes its time has the end of a transaction whose beginning it has not.
"""

from __future__ import annotations

import os
import signal
import time

from vmbus_emu.loop import Loop
from vmbus_emu.machine.beats import Beats
from vmbus_emu.machine.supervisor import Process, Supervisor
from vmbus_emu.procfs import is_stopped
from vmbus_emu.task import sleep

#: So long it may take to stop, in seconds: it may be waiting for a medium, which no signal ends.
STOP_S = 2.0
#: Between two looks whether it has.
_LOOK_S = 0.0005


class Standstill:
    """Of the process that carries a VM: in the monolith that is the whole of it."""

    def __init__(self, loop: Loop, supervisor: Supervisor, beats: Beats, process: Process) -> None:
        self._loop = loop
        self._supervisor = supervisor
        self._beats = beats
        self._process = process
        self._ours = False

    async def begin(self) -> bool:
        """``False``: it does not stop. What somebody else has stopped is, and stays so; the dead are still, too."""
        process = self._process
        if is_stopped(process.pid):
            return True
        self._ours = True
        self._beats.excuse(process)
        self._supervisor.kill(process, signal.SIGSTOP)
        give_up = time.monotonic() + STOP_S
        while process.running and not _has_stopped(process):
            if time.monotonic() > give_up:
                self.end()
                return False
            await sleep(self._loop, _LOOK_S)
        return True

    def end(self) -> None:
        """It goes on. Idempotent."""
        if self._ours:
            self._ours = False
            self._supervisor.kill(self._process, signal.SIGCONT)
            self._beats.excuse(self._process, excused=False)


def _has_stopped(process: Process) -> bool:
    """All of its threads: a process's state in /proc is that of its first one, and the monolith's VMs are others."""
    try:
        return os.waitid(os.P_PIDFD, process.pidfd, os.WSTOPPED | os.WNOHANG) is not None
    except ChildProcessError:
        return not process.running
