"""The figures behind ``ps``: asking every process for its counters, and a row's shape (design: contracts)."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping
from typing import Any

from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop
from vmbus_emu.machine.beats import stands_still
from vmbus_emu.machine.supervisor import Process
from vmbus_emu.procfs import first_thread
from vmbus_emu.task import DeadlinePassed, Future, within

#: How long a process may take to answer before its figures are shown as unknown.
DEADLINE_S = 0.5
#: After this share of the deadline, who has not answered is looked at for the first time.
FIRST_LOOK = 0.25


class Figures:
    """Rounds of questions; several may be under way."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._numbers = itertools.count(1)
        self._rounds: dict[int, tuple[dict[str, Any], Future[None], set[str]]] = {}
        #: Processes that were asked and did not answer in time, while they were stopped or slept; until they answer.
        self.hung: set[str] = set()

    async def collect(
        self, processes: Mapping[str, Process], question: str = "stats", deadline_s: float = DEADLINE_S
    ) -> dict[str, Any]:
        """Figures by component; those of a process that does not answer in time are missing. To other questions than
        ``stats`` the answers are by process."""
        number = next(self._numbers)
        collected: dict[str, Any] = {}
        complete: Future[None] = Future()
        waiting = set(processes)
        self._rounds[number] = (collected, complete, waiting)
        for process in processes.values():
            process.line.send({"t": question, "id": number})
        if processes:
            try:
                await within(self._loop, FIRST_LOOK * deadline_s, complete)
            except DeadlinePassed:
                before = {name: first_thread(processes[name].pid) for name in waiting}
                with contextlib.suppress(DeadlinePassed):
                    await within(self._loop, (1 - FIRST_LOOK) * deadline_s, complete)
                self.hung |= {name for name in waiting if stands_still(before[name], first_thread(processes[name].pid))}
        del self._rounds[number]
        return collected

    def arrived(self, name: str, number: int, figures: Mapping[str, Any]) -> None:
        """A process's answer to round ``number``; a late or unasked one is dropped."""
        self.hung.discard(name)
        asked = self._rounds.get(number)
        if asked is not None and name in asked[2]:
            asked[0].update(figures)
            self._heard(name, asked[1], asked[2])

    def died(self, name: str) -> None:
        """That process answers nothing any more."""
        self.hung.discard(name)
        for _, complete, waiting in list(self._rounds.values()):
            if name in waiting:
                self._heard(name, complete, waiting)

    @staticmethod
    def _heard(name: str, complete: Future[None], waiting: set[str]) -> None:
        waiting.discard(name)
        if not waiting:
            complete.resolve(None)


def process_row(
    name: str,
    role: str,
    host: str,
    process: Process | None,
    ready: bool,
    stats: Mapping[str, Any] | None = None,
    now: float = 0.0,
) -> Message:
    """One component's row, carried by ``process``; ``None``: not started yet. ``io`` counts completed operations."""
    stats = stats or {}
    last = stats.get("last_io")
    state = "ready" if ready else "starting"
    if process is not None and not process.running:
        state = "dead"
    return {
        "name": name,
        "role": role,
        "host": host,
        "pid": process.pid if process else None,
        "state": state if process else "starting",
        "incarnation": process.incarnation if process else 0,
        "signal": process.signal if process else None,
        "exit_code": process.exit_code if process else None,
        "restarts": process.incarnation - 1 if process else 0,
        "counters": stats.get("counters", {}),
        "io": stats.get("io"),
        "last_io_age_s": round(max(0.0, now - last), 6) if last else None,
        "heartbeat": None,
    }
