"""What a run with kills showed: the judged part of a run file, computed from the recorded part of it.

The recorded part is what happened: ``kills`` as they were made, ``events``, ``histories``, ``start_state``,
``read_back``, and which VMs survived. :func:`judged` adds the rest, so a stored run can be judged again from scratch.
Times are ns of CLOCK_MONOTONIC, spans ms.

The gap that a kill made in a service is the time from the moment before the kill to the first good completion of a
request that was under way, or planned, or submitted, when the service was interrupted or later. What was answered
before its VM lost the channel was only on its way, and does not count.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vmbus_emu.client import aftermath
from vmbus_emu.client.aftermath import Event
from vmbus_emu.witness import history, stamp
from vmbus_emu.witness.check import MAX_FINDINGS, judge, service
from vmbus_emu.witness.history import PART, READ, REQUEST, WRITE, Operation, Recorded

SCHEMA = 1
#: What ``operations`` holds, in the order in which it is shown.
OPERATIONS = (
    "attempted", "acknowledged", "lost", "unexpected", "duplicated", "recovered", "failed", "network_lost",
)  # fmt: skip
#: Kinds of service, and how the names of the devices begin that carry them.
DEVICES = {"disk": "disk", "network": "nic"}
_NOTHING = Recorded(False, [])
_NS_PER_MS = 1e6
_STUCK_NS = 500_000_000

Run = Mapping[str, Any]
#: By VM and kind of service: when a request completed well, in ascending order.
Served = Mapping[tuple[str, str], Sequence[int]]


class NotARun(ValueError):
    """What was to be judged is no run; the text says why."""


def judged(run: Run) -> dict[str, Any]:
    """``run`` with ``operations``, ``findings``, the steps of ``kills`` and the figures of ``vms`` computed anew.

    Raises :class:`NotARun`.
    """
    if not isinstance(run, Mapping) or "histories" not in run:
        raise NotARun("it holds no histories")
    if run.get("schema") != SCHEMA:
        raise NotARun(f"its schema is {run.get('schema')!r}; this version reads {SCHEMA}")
    try:
        return _judged(run)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise NotARun(what) from error


def failed(run: Run) -> bool:
    """Whether something was lost, cannot be told, or did not come back."""
    return bool(run["findings"])


def _judged(run: Run) -> dict[str, Any]:
    findings: list[str] = []
    recorded = {
        vm: {what: _loaded(vm, what, one, findings) for what, one in kinds.items()}
        for vm, kinds in run["histories"].items()
    }  # fmt: skip
    stuck = {
        (vm, what) for vm, kinds in recorded.items() for what, record in kinds.items() if _is_stuck(record.operations)
    }  # fmt: skip
    served = {
        (vm, what): sorted(one.completed_ns for one in record.operations if one.acknowledged)
        for vm, kinds in recorded.items() for what, record in kinds.items()
    }  # fmt: skip
    windows = aftermath.windows(run["kills"], run["events"])
    kills = [
        _timed(kill, window, _without(served, stuck) if kill.get("missing") else served)
        for kill, window in zip(run["kills"], windows, strict=True)
    ]
    operations = dict.fromkeys(OPERATIONS, 0)
    findings += [
        f"{kill['component']} ({kill['fault']}): {kill['waited_s']:g} s passed without {what}"
        for kill in kills for what in kill["missing"]
    ]  # fmt: skip
    vms: dict[str, dict[str, Any]] = {}
    for vm, given in run["vms"].items():
        kinds = recorded.get(vm, {})
        disk = kinds.get("disk", _NOTHING)
        found = _judged_disk(
            disk, stamp.load(run["read_back"].get(vm, ())), stamp.load(run["start_state"].get(vm, ())),
            given["survived"], run.get("unread", {}).get(vm, ""),
        )  # fmt: skip
        for name, number in found.counts.items():
            operations[name] += number
        operations["network_lost"] += sum(one.tries - 1 for one in kinds.get("network", _NOTHING).operations)
        findings += [f"{vm}: {text}" for text in found.findings]
        findings += [f"{vm}: the {what} history was full" for what, record in kinds.items() if record.full]
        back = _without(served, stuck) if any(kill["missing"] for kill in kills) else served
        gaps = {f"{what}_gap_ms": _longest_gap(vm, what, kills, windows, back) for what in DEVICES}
        figures = service(disk.operations, [kill["killed_ns"] for kill in kills])
        vms[vm] = {
            **given, **gaps,
            "in_flight": sum(gap.outstanding for gap in figures.gaps),
            "resubmitted": sum(_resubmitted(vm, window) for window in windows),
            "failed": found.counts["failed"],
            "lost": found.counts["lost"],
            "p50_ms": _percentile(figures.corrected, 0.5),
            "p99_ms": _percentile(figures.corrected, 0.99),
        }  # fmt: skip
    return {**run, "operations": operations, "findings": findings, "kills": kills, "vms": vms}


def _loaded(vm: str, what: str, data: Any, findings: list[str]) -> Recorded:
    """A history. One that was written over, as a fault can in the one memory of the monolith, tells nothing more."""
    try:
        return history.load(data)
    except ValueError as error:
        findings.append(f"{vm}: the {what} history was destroyed, or is none: {error}")
        return _NOTHING


def _is_stuck(operations: Sequence[Operation]) -> bool:
    """Whether requests waited in vain in the end: those on a disk, or those of the last while on the network."""
    if any(one.submitted_ns and not one.completed_ns and one.kind != REQUEST for one in operations):
        return True
    planned = max((one.planned_ns for one in operations if one.kind == REQUEST), default=0)
    return planned - max((one.completed_ns for one in operations), default=0) > _STUCK_NS


def _without(served: Served, stuck: set[tuple[str, str]]) -> Served:
    """What still has unanswered requests when something did not come back is not served again."""
    return {key: () if key in stuck else times for key, times in served.items()}


# -- the disk -----------------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    counts: dict[str, int]
    findings: list[str]


def _judged_disk(
    record: Recorded, read_back: Mapping[int, stamp.State], start: Mapping[int, stamp.State], survived: bool,
    unread: str,
) -> _Found:
    """``unread``: why there is nothing in ``read_back``.

    Of a load that writes, ``attempted`` and ``acknowledged`` are writes; of one that only reads, reads."""
    counts = dict.fromkeys(OPERATIONS, 0)
    requests = [one for one in record.operations if one.kind != PART and one.submitted_ns and not one.refused]
    try:
        verdict = judge(record.operations, read_back, start)
    except ValueError as error:
        return _Found(counts, [f"its disk cannot be judged: {error}"])
    counts.update({name: number for name, number in verdict._asdict().items() if name in counts})
    if not any(one.kind == WRITE for one in requests):
        reads = [one for one in requests if one.kind == READ]
        counts["attempted"], counts["acknowledged"] = len(reads), sum(one.acknowledged for one in reads)
        counts["failed"] = sum(one.failed for one in reads)
    never = list(_never_completed(requests)) if survived else []
    counts["lost"] += len(never)
    told = [f"lost: {history.KINDS[one.kind]} {one.sequence} never completed" for one in never[:MAX_FINDINGS]]
    if verdict.unread and not read_back:
        return _Found(counts, [f"what was written could not be read back: {unread or 'it was not tried'}", *told])
    return _Found(counts, verdict.findings + told)


def _never_completed(requests: Sequence[Operation]) -> Iterator[Operation]:
    """Requests that were forgotten: later ones were served."""
    last_served = max((one.submitted_ns for one in requests if one.acknowledged), default=0)
    for one in requests:
        if not one.completed_ns and one.submitted_ns < last_served:
            yield one


def _percentile(values: Sequence[int], share: float) -> float | None:
    return _ms(values[min(int(len(values) * share), len(values) - 1)]) if values else None


# -- kills ----------------------------------------------------------------------------------------------------------


def _timed(kill: Mapping[str, Any], window: Sequence[Event], served: Served) -> dict[str, Any]:
    """``kill`` with its steps; ``None`` for what did not happen."""
    killed = kill["killed_ns"]
    seen = aftermath.steps(kill, window)
    replies = {key: _first_reply(killed, window, *key, served) for key in served}
    interrupted = [key for key in replies if aftermath.interrupted_ns(key[0], DEVICES[key[1]], window) is not None]
    last = {
        what: max((replies[key] or 0 for key in interrupted or replies if key[1] == what), default=0) or None
        for what in DEVICES
    }
    first = max((reply for reply in last.values() if reply is not None), default=None)
    return {
        "missing": [], "waited_s": 0, **kill, **seen._asdict(), "first_reply_ns": first,
        "signal": kill["signal"] or aftermath.signal_of(kill, window),
        "detect_ms": _span(killed, seen.died_ns),
        "start_ms": _span(seen.died_ns, seen.ready_ns),
        "renegotiate_ms": _span(seen.ready_ns, seen.attached_ns),
        "first_reply_ms": _span(killed, first),
        **{f"{what}_reply_ms": _span(killed, reply) for what, reply in last.items()},
    }  # fmt: skip


def _first_reply(killed_ns: int, window: Sequence[Event], vm: str, what: str, served: Served) -> int | None:
    interrupted = aftermath.interrupted_ns(vm, DEVICES[what], window)
    times = served[vm, what]
    index = bisect_right(times, max(killed_ns, interrupted or 0))
    return times[index] if index < len(times) else None


def _longest_gap(
    vm: str, what: str, kills: Sequence[Mapping[str, Any]], windows: Sequence[Sequence[Event]], served: Served
) -> float | None:
    """``None``: the VM has no such service, or after some kill it did not come back."""
    if (vm, what) not in served or not kills:
        return None
    gaps = [
        _span(kill["killed_ns"], _first_reply(kill["killed_ns"], window, vm, what, served))
        for kill, window in zip(kills, windows, strict=True)
    ]
    longest = [gap for gap in gaps if gap is not None]
    return max(longest) if len(longest) == len(gaps) else None


def _resubmitted(vm: str, window: Sequence[Event]) -> int:
    """Disk requests that a VM sent anew."""
    return sum(
        event["resent"] for event in window
        if event["event"] == "attached" and event["component"] == vm and event["device"].startswith("disk")
    )  # fmt: skip


def _span(begin_ns: int | None, end_ns: int | None) -> float | None:
    return None if begin_ns is None or end_ns is None else max(0.0, _ms(end_ns - begin_ns))


def _ms(ns: int) -> float:
    return round(ns / _NS_PER_MS, 3)
