"""What the machine tells of itself: ``info``, ``ps`` and ``audit``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop
from vmbus_emu.machine.beats import Beats
from vmbus_emu.machine.figures import Figures
from vmbus_emu.machine.listing import Listing
from vmbus_emu.machine.requests import Reply
from vmbus_emu.machine.roles import Roles
from vmbus_emu.machine.roster import Roster
from vmbus_emu.machine.supervisor import Supervisor
from vmbus_emu.task import Task

#: How long a process may take to tell which code it has loaded: some have to load what tells it.
AUDIT_DEADLINE_S = 2.0


class Telling:
    """``state()``: of the machine as a whole; ``counters()``: of its own row."""

    def __init__(
        self, loop: Loop, roster: Roster, supervisor: Supervisor, figures: Figures, listing: Listing, roles: Roles,
        beats: Beats, reply: Reply, state: Callable[[], str], counters: Callable[[], Mapping[str, int]],
        carried: Callable[[str], Any],
    ) -> None:
        self._loop = loop
        self._roster = roster
        self._supervisor = supervisor
        self._figures = figures
        self._listing = listing
        self._roles = roles
        self._beats = beats
        self._reply = reply
        self._state = state
        self._counters = counters
        self._carried = carried

    def described(self) -> Message:
        topology = self._roster.topology
        return {
            "name": topology.name,
            "arch": topology.arch,
            "transport": "call" if topology.arch == "monolithic" else topology.transport,
            "state": self._state(),
            "vms": list(self._roster.vms),
            "pid": os.getpid(),
            "topology": topology.to_dict(),
        }

    def info(self, client: bytes, number: int, request: Message) -> None:
        self._reply(client, {"id": number, "info": self.described()})

    def ps(self, client: bytes, number: int, request: Message) -> None:
        Task(self._loop, self._ps(client, number))

    async def _ps(self, client: bytes, number: int) -> None:
        rows = await self._listing.rows(self._counters())
        rows += await self._roles.rows(self._figures, self._beats, time.monotonic())
        self._reply(client, {"id": number, "info": self.described(), "rows": rows})

    def audit(self, client: bytes, number: int, request: Message) -> None:
        Task(self._loop, self._audit(client, number))

    async def _audit(self, client: bytes, number: int) -> None:
        from vmbus_emu.machine.audit import processes  # what nobody asks for is not in every process that is forked

        running = dict(self._supervisor.running)
        answers = await self._figures.collect(running, "loaded", AUDIT_DEADLINE_S)
        rows = processes(running, {name: self._carried(name) for name in running}, answers)
        self._reply(client, {"id": number, "info": self.described(), **rows})
