"""Processes in waiting: with their code, media and devices, for the place of one that dies (policy ``standby``)."""

from __future__ import annotations

import socket

from vmbus_emu.machine.supervisor import SPARE, Process, Supervisor

#: A process, and our end of its descriptor socket.
Spare = tuple[Process, socket.socket]


class Spares:
    """At most one for each component."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._waiting: dict[str, Spare] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._waiting

    def keep(self, name: str, spare: Spare) -> None:
        self._waiting[name] = spare

    def take(self, name: str) -> Spare | None:
        """The spare, in its place. One that was asked for before the process that died is ended: who has spoken with
        that one listens to no earlier incarnation."""
        spare = self._waiting.pop(name, None)
        if spare is None:
            return None
        process, descriptors = spare
        if process.incarnation < self._supervisor.processes[name].incarnation:
            self._supervisor.kill(process)
            descriptors.close()
            return None
        self._supervisor.promote(process)
        return spare

    def exited(self, process: Process) -> None:
        """A process was reaped, whichever."""
        name = process.name.removesuffix(SPARE)
        if name in self._waiting and self._waiting[name][0] is process:
            self._waiting.pop(name)[1].close()
