"""Powering off: phase by phase, naming who is waited for, and escalating until everything has been reaped."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vmbus_emu import placement
from vmbus_emu.loop import Loop, Timer
from vmbus_emu.machine.supervisor import SPARE, Process, Supervisor

#: How long a process may take to stop when asked, before it is killed.
GRACE_S = 2.0

Report = Callable[[dict[str, Any]], Any]


def phases(names: Iterable[str], guests: Sequence[str]) -> list[list[str]]:
    """Of the processes ``names``: guests first, then who serves them, the hypervisor last, and the door through which
    that is reported."""
    first = [name for name in (*guests, "management") if name != "hypervisor"]
    second = [name for name in names if name not in first and name != "hypervisor"]
    zygotes = [*placement.ZYGOTES.values(), *(name + SPARE for name in names)]
    return [first + zygotes, second, ["hypervisor"], ["front"]]


class Shutdown:
    """One power-off. Each step is reported as ``{"step", "waiting": [...], "escalated": bool}``; then ``done``."""

    def __init__(
        self,
        loop: Loop,
        supervisor: Supervisor,
        phases: list[list[str]],
        report: Report,
        done: Callable[[], Any],
    ) -> None:
        self._loop = loop
        self._supervisor = supervisor
        self._phases = phases
        self._done = done
        self._waiting: dict[str, Process] = {}
        self._timer: Timer | None = None
        self._killed: list[str] = []
        self.listeners = [report]

    def begin(self) -> None:
        """Start with the first phase that has somebody in it."""
        while not self._waiting:
            if not self._phases:
                self._loop.call_soon(self._done)
                return
            names = self._phases.pop(0)
            running = self._supervisor.running
            late = [name for name in running if name not in names]
            if late and not self._phases:  # born after we began
                self._phases, names = [names], late
            self._waiting = {name: running[name] for name in names if name in running}
            if not self._phases:  # only the front door is left: the last thing it carries is this
                self._report({"step": "stopped", "killed": self._killed})
        for process in self._waiting.values():
            process.line.send({"t": "stop"})
        self._timer = self._loop.call_later(GRACE_S, self._escalate)

    def _escalate(self) -> None:
        names = [f"{p.name} (pid {p.pid})" for p in self._waiting.values()]
        self._report({"step": "escalated", "waiting": names, "grace_s": GRACE_S})
        self._killed += names
        for process in self._waiting.values():
            self._supervisor.kill(process, signal.SIGKILL)
        self._timer = self._loop.call_later(GRACE_S, self._still_waiting)

    def _still_waiting(self) -> None:
        """Killed and not gone: in the kernel, usually for I/O. Nothing to do but to say so and wait on."""
        names = [f"{p.name} (pid {p.pid})" for p in self._waiting.values()]
        self._report({"step": "waiting", "waiting": names})
        self._timer = self._loop.call_later(GRACE_S, self._still_waiting)

    def exited(self, process: Process) -> None:
        """A process has been reaped."""
        if self._waiting.get(process.name) is not process:
            return
        del self._waiting[process.name]
        if not self._waiting:
            if self._timer is not None:
                self._timer.cancel()
            self.begin()

    def _report(self, step: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener(step)
