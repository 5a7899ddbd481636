"""Demonstrations: kills made in the same order in several placements, and what each was to every VM, as data.

``isolation`` boots a machine of three VMs in each placement, lets every VM overwrite its disk and ping its neighbour,
and kills one thing after the other while it does. What comes out is a table, :data:`ROWS` by placement, and the runs.
"""

from __future__ import annotations

import os
import platform
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vmbus_emu import topology
from vmbus_emu.client import aftermath
from vmbus_emu.client.judging import DEVICES, OPERATIONS
from vmbus_emu.client.machine import RECOVERY_S
from vmbus_emu.client.run import Run
from vmbus_emu.client.temporary import refuse_if_running, temporary
from vmbus_emu.client.timeline_data import (
    DIED,
    INTERRUPTED,
    NEVER,
    NO_LOAD,
    SILENT_BEFORE,
    WENT_ON,
    Kill,
    Lane,
    read_together,
)
from vmbus_emu.placement import worker_of
from vmbus_emu.runfolder import RunFolder
from vmbus_emu.topology.data import POLICIES_OF, Topology

SCHEMA = 1
#: The columns, in their order, and the names of their machines.
ARCHES = ("microkernel", "disaggregated", "monolithic")
NAMES: Mapping[str, str] = {arch: f"demo-{arch}" for arch in ARCHES}
#: The last one has no integration services: its devices are emulated, by a worker process of its own.
VMS = ("vm1", "vm2", "vm3")
EMULATED = "vm3"
#: The role that needs no library.
ROLE = "files"

#: Each kill comes so long after the last one was over. It is also the time in which nothing is killed, for comparison.
_CALM_S = 0.4
#: The loads end when they are told to; this is for the worst case, in seconds.
_LONGEST_S = 120.0


class Row(NamedTuple):
    """One kill, to be made in every placement that has the component."""

    component: str
    fault: str              #: one of :data:`vmbus_emu.faults.ENDING`
    words: str              #: how people call the fault
    policy: str = ""        #: of the component, where it is not the usual one; such a row has a machine of its own
    what: str = ""          #: the component is, where its name does not say it

    @property
    def label(self) -> str:
        return f"{self.component}: {self.words}" + (f", {self.policy}" if self.policy else "")


_WORKER = worker_of(EMULATED)
#: The same kills everywhere. The VM comes last: in the monolith only a reboot brings it back.
ROWS = (
    Row("storvsp", "panic", "exception"),
    Row("storvsp", "segv", "SIGSEGV"),
    Row("netvsp", "kill", "SIGKILL"),
    Row("parent", "kill", "SIGKILL"),
    Row(_WORKER, "kill", "SIGKILL"),
    Row("management", "kill", "SIGKILL"),
    Row(ROLE, "kill", "SIGKILL", what="a role"),
    Row("hypervisor", "kill", "SIGKILL"),
    Row("hypervisor", "kill", "SIGKILL", "recover"),
    Row("vm1", "panic", "exception"),
)
#: What a placement does not have, and why.
_ABSENT: Mapping[tuple[str, str, str], str] = {
    ("monolithic", "parent", ""): "there is none: drivers are called",
    ("monolithic", _WORKER, ""): "there is none: device models are called",
    ("monolithic", ROLE, ""): "refused: there is no parent partition to run it in",
    ("monolithic", "hypervisor", "recover"): "not possible: its state died with everything",
}

#: What a kill can be to a VM, the worst last.
WORSE = (NO_LOAD, SILENT_BEFORE, WENT_ON, INTERRUPTED, NEVER, DIED)

Told = Callable[[Mapping[str, Any]], Any]


def rows() -> tuple[Row, ...]:
    """The rows whose policy this version has."""
    return tuple(row for row in ROWS if not row.policy or row.policy in POLICIES_OF[row.component])


def isolation(arches: Sequence[str], transport: str, policies: Sequence[str], tell: Told) -> dict[str, Any]:
    """Kill everything in each of ``arches``; the table, and the ``runs`` it was read from.

    ``policies``: ROLE=POLICY each. ``tell`` hears ``{"component", "state", "done", "total"}``. Raises
    :class:`MachineError`, and :class:`~vmbus_emu.topology.TopologyErrors`; whatever ends it, no machine is left.
    """
    topology.parse({}, flags=topology.Overrides(policies=tuple(policies)))  # says what is wrong with them, if anything
    scenes = [(arch, own) for arch in arches for own in _scenes(arch)]
    topologies = [_topology(arch, transport, policies, own[0]) for arch, own in scenes]
    for arch in arches:
        refuse_if_running(NAMES[arch], "the demonstration")
    total = sum(len(own) + 2 for _, own in scenes)
    done, load, begun = 0, os.getloadavg()[0], time.monotonic()
    runs: list[dict[str, Any]] = []
    for (arch, own), wanted in zip(scenes, topologies, strict=True):

        def say(state: str, step: int, arch: str = arch, done: int = done) -> None:
            tell({"component": arch, "state": state, "done": done + step, "total": total})

        runs.append(_scene(wanted, own, say))
        done += len(own) + 2
    return {**table(runs, arches), "host": {**_host(), "load": round(load, 2)}, "transport": transport,
            "elapsed_s": round(time.monotonic() - begun, 1), "runs": runs}  # fmt: skip


def _host() -> dict[str, Any]:
    return {"kernel": f"{platform.system()} {platform.release()}", "cpus": len(os.sched_getaffinity(0)),
            "python": f"{platform.python_implementation()} {platform.python_version()}"}  # fmt: skip


def failed(report: Mapping[str, Any]) -> bool:
    """Whether something was lost, unexpected or there twice, cannot be told, or did not come back."""
    counts = report["operations"]
    return bool(report["findings"]) or any(counts[name] for name in ("lost", "unexpected", "duplicated"))


# -- the machines -----------------------------------------------------------------------------------------------------


def _scenes(arch: str) -> list[list[Row]]:
    """The rows that one machine of the placement serves, for each machine."""
    there = [row for row in rows() if (arch, row.component, row.policy) not in _ABSENT]
    own: dict[str, list[Row]] = {}
    for row in there:
        own.setdefault(row.policy, []).append(row)
    return list(own.values())


def _topology(arch: str, transport: str, policies: Sequence[str], row: Row) -> Topology:
    """The machine for a row. Policies of roles that the placement does not have are left out."""
    chosen = [f"{row.component}={row.policy}"] if row.policy else []
    mine = [text for text in (*policies, *chosen) if (text.partition("=")[0] == "monolith") == (arch == "monolithic")]
    document: dict[str, Any] = {
        "name": NAMES[arch], "arch": arch, "switch": [{"name": "s0"}],
        "vm": [{"name": vm, "disk": [{"ram": "4MiB"}], "nic": [{"switch": "s0"}],
                "integration_services": vm != EMULATED} for vm in VMS],
    }  # fmt: skip
    if arch != "monolithic":
        document |= {"transport": transport, "role": {ROLE: {}}}
    return topology.parse(document, flags=topology.Overrides(policies=tuple(mine)))


def _scene(wanted: Topology, own: Sequence[Row], say: Callable[[str, int], Any]) -> dict[str, Any]:
    """One machine and its kills; the judged run, whose kills carry the ``label`` of their row."""
    say("starts", 0)
    with temporary(wanted):
        from vmbus_emu.client.door import Door

        run = Run(RunFolder(wanted.name), Door(RunFolder(wanted.name)))
        try:
            run.prepare(overwrite=False)
            run.begin(_LONGEST_S)
            for step, row in enumerate(own, 1):
                say(f"kill {row.component} ({row.words})", step)
                if not _kill(run, row.component, row.fault, label=row.label):
                    break
                if row.component in VMS and wanted.arch == "monolithic":
                    _kill(run, "hypervisor", "kill", aside=True)    # the only way to get the VM back, and to its disk
            run.wait_until(time.monotonic() + _CALM_S)
            say("reads back what was written", len(own) + 1)
            run.finish(cancel=True, timeout=0)
            return run.result()
        finally:
            run.close()


def _kill(run: Run, component: str, fault: str, **marks: Any) -> bool:
    """Kill after a while of calm; whether everything came back that should."""
    run.wait_until(time.monotonic() + _CALM_S)
    kill = run.kill(component, fault, RECOVERY_S, start=True)
    kill.update(marks)
    return not kill["missing"]


# -- the table --------------------------------------------------------------------------------------------------------


def table(runs: Sequence[Mapping[str, Any]], arches: Sequence[str]) -> dict[str, Any]:
    """What judged ``runs`` show, as data: ``rows`` with a cell for each placement, and the totals."""
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    usual: dict[str, dict[str, float]] = {arch: {} for arch in arches}
    for run, timeline in zip(runs, read_together(runs), strict=True):
        windows = aftermath.windows(run["kills"], run["events"])
        for kill, seen, window in zip(run["kills"], timeline.kills, windows, strict=True):
            if "label" in kill:
                cells[kill["label"], timeline.arch] = _cell(kill, seen, window, timeline.lanes)
        here = usual[timeline.arch]
        for lane in (lane for lanes in timeline.lanes.values() for lane in lanes):
            name = f"emulated {lane.name}" if lane.emulated else lane.name
            here[name] = max(here.get(name, 0.0), _ms(lane.calm_ns), _ms(lane.silent_ns))
    return {
        "schema": SCHEMA, "demo": "isolation", "placements": list(arches),
        "policy": {run["machine"]["arch"]: run["machine"]["policy"] for run in reversed(runs)},
        "operations": {name: sum(run["operations"][name] for run in runs) for name in OPERATIONS},
        "findings": [f"{run['machine']['arch']}: {finding}" for run in runs for finding in run["findings"]],
        "usual_pause_ms": usual, "emulated": [EMULATED],
        "rows": [
            {"component": row.component, "what": row.what or None, "fault": row.fault, "words": row.words,
             "policy": row.policy or None,
             "cells": {arch: cells.get((row.label, arch)) or _not_killed(row, arch) for arch in arches}}
            for row in rows()
        ],
    }  # fmt: skip


def _not_killed(row: Row, arch: str) -> dict[str, Any]:
    return {"killed": False, "why": _ABSENT.get((arch, row.component, row.policy), "not killed")}


def _cell(
    kill: Mapping[str, Any], seen: Kill, window: Sequence[aftermath.Event], lanes: Mapping[str, Sequence[Lane]]
) -> dict[str, Any]:
    """What one kill was."""
    told = ("host", "pid", "incarnation", "signal", "detect_ms", "start_ms", "renegotiate_ms", "first_reply_ms",
            "missing")  # fmt: skip
    died = [event for event in window if event["event"] == "died" and event["pid"] == kill["pid"]]
    return {
        "killed": True, **{name: kill[name] for name in told},
        "carried": sorted({name for event in died for name in event["carried"]}),
        "rebooted": any(event["event"] == "rebooting" for event in window),
        "vms": {vm: _noticed(vm, seen, window, mine) for vm, mine in lanes.items()},
    }


def _noticed(vm: str, seen: Kill, window: Sequence[aftermath.Event], mine: Sequence[Lane]) -> dict[str, Any]:
    """What one kill was to one VM: the worst of what it was to its devices, except a network of which only the other
    end was hit."""
    lanes = [lane for lane in mine if lane.tells(seen)]
    effects = {lane.name: lane.effect(seen) for lane in lanes}
    worst = max((effect.what for effect in effects.values()), key=WORSE.index, default=NO_LOAD)
    told: dict[str, Any] = {
        "outcome": DIED if vm in seen.victims else worst,
        "runs_again": vm in seen.revived if vm in seen.victims else None,
    }
    for kind in DEVICES:
        effect = effects.get(kind)
        told[kind] = effect.what if effect else None
        told[f"{kind}_gap_ms"] = None
        told[f"{kind}_pause_ms"] = _ms(effect.silence_ns) if effect and effect.end_ns else None
    for lane in lanes:
        if vm in seen.victims or (vm, lane.name) in seen.cut:
            told[f"{lane.name}_gap_ms"] = _gap_ms(lane, seen, window)
    return told


def _gap_ms(lane: Lane, kill: Kill, window: Sequence[aftermath.Event]) -> float | None:
    """From the moment before the kill to the first good completion after the interruption by it; ``None``: there was
    none before the next kill. That is the gap of :mod:`vmbus_emu.client.judging`, of one kill. A cable has no event of
    its own: it is interrupted when the process at its end dies."""
    interrupted = aftermath.interrupted_ns(lane.vm, DEVICES[lane.name], window) or kill.died_ns or 0
    served = lane.completed[bisect_right(lane.completed, max(kill.killed_ns, interrupted)):]
    if not served or (kill.next_ns is not None and served[0] >= kill.next_ns):
        return None
    return _ms(served[0] - kill.killed_ns)


def _ms(ns: float) -> float:
    return round(ns / 1e6, 3)
