"""Runs with kills as a machine would have given them, made up: their loads, outages and deaths are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vmbus_emu.device import Status
from vmbus_emu.witness.history import PENDING, REQUEST, UNSEEN, WRITE, Operation

MS = 1_000_000
BEGIN = 5_000_000_000
HOSTILE = '<script>alert("1")</script>&\'\x00\x1b\ud800]]>'


def history(
    count: int = 1000, every: int = MS, outages: Sequence[tuple[int, int]] = (), until: int = 0, kind: int = WRITE
) -> dict[str, Any]:
    """A dumped history: a request each ``every`` ns, taking 0.1 ms; in an outage (ms) it takes until its end.

    From ``until`` ms on (0: never) nothing is served any more.
    """
    operations = []
    for index in range(count):
        planned = BEGIN + index * every
        end = planned + MS // 10
        for begin_ms, end_ms in outages:
            if BEGIN + begin_ms * MS <= end < BEGIN + end_ms * MS:
                end = BEGIN + end_ms * MS + index
        served = not until or end < BEGIN + until * MS
        operations.append(list(Operation(
            kind, int(Status.OK) if served else PENDING, int(served), UNSEEN, 1, 1, planned, end - MS // 10,
            end if served else 0, index + 1, index, 0, 1, 0,
        )))  # fmt: skip
    return {"schema": 1, "fields": list(Operation._fields), "full": False, "operations": operations}


def kill(at_ms: float, component: str = "storvsp", **more: Any) -> dict[str, Any]:
    """One that was recovered from: 1 ms to detect, 6 to start, 10 to renegotiate."""
    at = BEGIN + int(at_ms * MS)
    steps = {"died_ns": 1, "starting_ns": 2, "ready_ns": 7, "attached_ns": 17, "first_reply_ns": 20}
    return {"component": component, "host": component, "pid": 4242, "incarnation": 1, "fault": "kill",
            "signal": "SIGKILL", "killed_ns": at, **{name: at + ms * MS for name, ms in steps.items()}, **more}


def unrecovered(at_ms: float, component: str, **more: Any) -> dict[str, Any]:
    return kill(at_ms, component, **dict.fromkeys(("ready_ns", "attached_ns", "first_reply_ns")), **more)


def run(
    disk: Any = None, network: Any = None, kills: Sequence[dict[str, Any]] = (), vms: Sequence[str] = ("vm1",),
    **more: Any
) -> dict[str, Any]:
    kept = {name: dumped for name, dumped in (("disk", disk), ("network", network)) if dumped}
    return {
        "schema": 1,
        "machine": {"name": "lab", "arch": "microkernel", "transport": "ring", "policy": {"storvsp": "restart"}},
        "begun_ns": BEGIN, "ended_ns": BEGIN + 1000 * MS,
        "operations": {"attempted": 1000, "acknowledged": 999, "lost": 0, "unexpected": 0, "duplicated": 0,
                       "recovered": 1, "failed": 0, "network_lost": 3},
        "findings": [], "kills": list(kills), "events": [],
        "vms": {vm: {"survived": True, "disk_gap_ms": 40.0, "network_gap_ms": None, "in_flight": 2, "resubmitted": 7,
                     "failed": 0, "lost": 0, "p50_ms": 0.1, "p99_ms": 38.5} for vm in vms},
        "histories": {vm: kept for vm in vms},
        **more,
    }  # fmt: skip


HIT = run(history(outages=[(300, 340)]), history(100, 10 * MS, kind=REQUEST), [kill(300)])
DEAD = run(history(400, until=400), kills=[unrecovered(400, "vm1")],
           events=[{"n": 1, "ns": BEGIN + 401 * MS, "event": "died", "component": "vm1", "carried": ["vm1"]}])
CASES = {
    "nothing at all": {},
    "no VMs": run(vms=()),
    "no kills": run(history()),
    "no histories": run(kills=[kill(300)]),
    "empty history": run(history(0), kills=[kill(300)]),
    "one completion": run(history(1), kills=[kill(300)]),
    "no completion": run(history(10, until=1), kills=[kill(5)]),
    "no network": run(history(outages=[(300, 340)]), kills=[kill(300)]),
    "a VM that died": DEAD,
    "a kill that did not happen": run(history(), kills=[kill(300, killed_ns=None)]),
    "a kill before the load": run(history(), kills=[kill(-50)]),
    "kills at once": run(history(), kills=[kill(300), kill(300), kill(300.001)]),
    "null steps": run(history(), kills=[unrecovered(300, "storvsp", died_ns=None)]),
    "all of it": HIT,
}
