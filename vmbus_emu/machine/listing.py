"""The rows of ``ps``: one per component, of every process's figures and of what the machine itself knows of it."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from typing import Any

from vmbus_emu.lifeline import Message
from vmbus_emu.machine.beats import Beats
from vmbus_emu.machine.drain import Drain
from vmbus_emu.machine.figures import Figures, process_row
from vmbus_emu.machine.integration import Integration
from vmbus_emu.machine.recovery import Recovery
from vmbus_emu.machine.supervisor import SPARE, Supervisor
from vmbus_emu.placement import ProcessSpec


class Listing:
    """``fallen``: VMs of the monolith that have ended alone."""

    def __init__(
        self, supervisor: Supervisor, specs: Mapping[str, ProcessSpec], figures: Figures, recovery: Recovery,
        beats: Beats, drain: Drain, integration: Integration, fallen: Collection[str],
    ) -> None:
        self._supervisor = supervisor
        self._specs = specs
        self._figures = figures
        self._recovery = recovery
        self._beats = beats
        self._drain = drain
        self._integration = integration
        self._fallen = fallen

    async def rows(self, counters: Mapping[str, Any]) -> list[Message]:
        """``counters``: of the machine's own row."""
        processes = self._supervisor.processes
        asked = set(self._supervisor.running) & set(self._specs)  # zygotes, spares and the front door have no figures
        stats = await self._figures.collect({name: processes[name] for name in asked})
        now = time.monotonic()
        rows = [self._machine(counters)]
        for name, born in self._recovery.power.zygotes.items():
            rows.append(process_row(name, "zygote", name, processes.get(name), born.done))
        for spec in self._specs.values():
            rows += [self._component(spec, one.name, one.role, stats.get(one.name, {}), now) for one in spec.components]
            spare = self._supervisor.running.get(spec.name + SPARE)
            if spare is not None:
                rows.append(process_row(spare.name, spec.role, spare.name, spare, True))
        return rows

    def _machine(self, counters: Mapping[str, Any]) -> Message:
        front = self._supervisor.processes.get("front")
        counters = {"front_pid": front.pid if front else None, **counters}
        row = process_row("machine", "machine", "machine", None, True, {"counters": counters})
        return {**row, "pid": os.getpid(), "state": "ready", "incarnation": 1}

    def _component(self, spec: ProcessSpec, name: str, role: str, stats: Mapping[str, Any], now: float) -> Message:
        process = self._supervisor.processes.get(spec.name)
        row = process_row(name, role, spec.name, process, self._recovery.power.ready[name].done, stats, now)
        self._beats.show(row, process, spec.name in self._figures.hung)
        row["heartbeat"] = self._integration.heartbeat(name)
        if self._drain.is_off(name):
            row["state"] = "halted"
        elif name in self._fallen:
            row["state"] = "dead"
        elif spec.name in self._recovery.restarting and row["state"] == "dead":
            row["state"] = "restarting"
        return row
