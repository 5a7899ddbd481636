"""What the timeline shows, as numbers: a run's kills, and how each device of each VM was served around them.

A run is what ``vmbus-emu chaos --json`` writes. All times are ns of CLOCK_MONOTONIC. What a run does not have (a
network, a milestone of a recovery, a history) is ``None`` or empty here; only a history that is none is an error.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from vmbus_emu.witness import history
from vmbus_emu.witness.history import PART

#: At most so many bins over a run: about one per two or three pixels.
BINS = 400
#: A device that is answered at an interval is silent when nothing came for so many of its usual intervals (the 90th
#: percentile), and so long besides: a busy host is late, too.
_SILENT_INTERVALS, _SILENT_NS = 2, 3_000_000
#: A silence apart from all kills is worth showing when it is so much longer than that: a busy host pauses, too.
_STRIKING = 4
#: What is silent so long after the last step of a recovery is not silent because of the kill.
_SETTLED_NS = 100_000_000

#: What a kill was to a device of a VM.
WENT_ON, INTERRUPTED, NEVER, DIED = "went on", "interrupted", "never served again", "died"
#: Or it cannot be told: nothing was asked of it, or it had not been served for long.
NO_LOAD, SILENT_BEFORE = "no load then", "silent before"
#: What is hatched.
SILENT = (INTERRUPTED, NEVER, DIED)


class Kill(NamedTuple):
    """One kill, its milestones, and the VMs that died by it."""

    number: int                 #: from 1, in the order of time
    component: str
    host: str                   #: the component whose process it was
    pid: int | None
    incarnation: int | None
    fault: str
    killed_ns: int
    died_ns: int | None
    ready_ns: int | None
    attached_ns: int | None
    first_reply_ns: int | None
    next_ns: int | None         #: of the next kill
    deaths: tuple[tuple[str, int], ...]     #: VMs that died by it, and when, which may be later than who was killed
    revived: frozenset[str]     #: those of the victims that ran again before the next kill
    #: VM and kind (``disk``, ``network``) of the devices that lost their channels, or the cable to the switch.
    cut: frozenset[tuple[str, str]]
    label: str                  #: what was done, for the table of several runs
    aside: bool                 #: made to go on with the run, and no part of what it shows
    gaps: tuple[tuple[str, float], ...]     #: by kind, in ns, as judged; infinite: it was not served again

    @property
    def victims(self) -> frozenset[str]:
        return frozenset(vm for vm, _ in self.deaths)

    @property
    def last_ns(self) -> int | None:
        """The last step of the recovery; ``None``: there was none."""
        if not (self.attached_ns or self.first_reply_ns):
            return None
        return max(step for step in (self.ready_ns, self.attached_ns, self.first_reply_ns) if step)

    @property
    def steps(self) -> list[tuple[str, int | None, int | None]]:
        """Name, begin and end of each step. The last is no further step but the whole: until somebody is served."""
        return [
            ("detect", self.killed_ns, self.died_ns),
            ("start", self.died_ns, self.ready_ns),
            ("renegotiate", self.ready_ns, self.attached_ns),
            ("first reply", self.killed_ns, self.first_reply_ns),
        ]


class Effect(NamedTuple):
    """What one kill was to one device: the longest silence by it. ``end_ns`` ``None``: nothing came any more.

    DIED is the device's VM; the silence is from then until it is served again.
    """

    what: str
    begin_ns: int = 0
    end_ns: int | None = None

    @property
    def silence_ns(self) -> float:
        """0 where it cannot be told."""
        if self.what in (NO_LOAD, SILENT_BEFORE):
            return 0
        return float("inf") if self.end_ns is None else self.end_ns - self.begin_ns


class Bins(NamedTuple):
    """One device over the run. Latencies in ns by the bin in which a request was planned, or submitted."""

    done: list[int]                         #: good completions
    corrected: list[tuple[int, int] | None]     #: p50 and greatest, from the planned time
    uncorrected: list[tuple[int, int] | None]   #: from the submission
    unserved: list[int]                     #: requests that failed or never completed, by their planned time


class Lane:
    """One device of one VM, as its load was served."""

    def __init__(self, vm: str, name: str, dumped: Any, emulated: bool = False, other: str = "") -> None:
        """``other``: the VM at a network's other end, if that is known. ``ValueError``: ``dumped`` is no history."""
        self.vm = vm
        self.name = name
        self.emulated = emulated
        self._other = other
        operations = [one for one in history.load(dumped).operations if one.kind != PART and not one.refused]
        planned = [one.planned_ns for one in operations]
        self._served = [(one.planned_ns, one.submitted_ns, one.completed_ns) for one in operations if one.acknowledged]
        unserved = [one for one in operations if not one.acknowledged]
        self._unserved = [one.planned_ns for one in unserved]
        self.completed = sorted(one[2] for one in self._served)
        self.begin_ns = min(planned + [one[1] for one in self._served], default=0)
        self._last_planned = max(planned, default=0)
        self.end_ns = max(self._last_planned, max(self.completed, default=0))
        #: Until when somebody waited in vain, or for an answer that was none.
        self._vain_ns = max((float(one.completed_ns or "inf") for one in unserved), default=0.0)
        intervals = sorted(later - earlier for earlier, later in pairwise(self.completed))
        usual = intervals[len(intervals) * 9 // 10] if intervals else 0
        self.silent_ns = _SILENT_NS + _SILENT_INTERVALS * usual
        #: The longest silence while nothing was killed: a shorter one is not a kill's doing.
        self.calm_ns = 0
        self._effects: dict[Kill, Effect] = {}

    def __bool__(self) -> bool:
        return self._last_planned > 0

    def tells(self, kill: Kill) -> bool:
        """Whether what is seen of it is what ``kill`` was to it: not if only the other end of a network was hit."""
        if self.name != "network" or self.vm in kill.victims or (self.vm, self.name) in kill.cut:
            return True
        if not self._other:
            return not kill.victims
        return self._other not in kill.victims and (self._other, self.name) not in kill.cut

    def effect(self, kill: Kill) -> Effect:
        """What ``kill`` was to it: up to the next kill, or until the recovery is well over."""
        if kill not in self._effects:
            self._effects[kill] = self._effect(kill)
        return self._effects[kill]

    def _effect(self, kill: Kill) -> Effect:
        at, until = kill.killed_ns, kill.next_ns
        first = bisect_right(self.completed, at)
        last_ns = self.completed[-1] if self.completed else self.begin_ns
        asked = self._vain_ns > max(at, last_ns) or self._last_planned > max(at, last_ns)
        if first == len(self.completed) and at - last_ns > _STRIKING * self.silent_ns:
            return Effect(SILENT_BEFORE if asked else NO_LOAD)
        if self.vm in kill.victims:
            again = bisect_right(self.completed, max(kill.died_ns or at, dict(kill.deaths)[self.vm]))
            return Effect(DIED, at, self.completed[again] if again < len(self.completed) else None)
        if first == len(self.completed):
            return Effect(NEVER, at) if asked else Effect(NO_LOAD)
        limit = until
        if kill.last_ns is not None:
            limit = min(kill.last_ns + _SETTLED_NS, until or kill.last_ns + _SETTLED_NS)
        # What was on its way at the kill may still have come.
        if asked and (limit is None or last_ns <= limit) and (until is None or until - last_ns > self.silent_ns):
            return Effect(NEVER, last_ns)
        last = len(self.completed) if limit is None else max(first + 1, bisect_right(self.completed, limit) + 1)
        moments = [at, *self.completed[first:last]]
        if until is not None and len(moments) > 2:
            moments = [min(moment, until) for moment in moments]    # from there on it is the next one's
        begin, end = max(pairwise(moments), key=lambda pair: pair[1] - pair[0])
        hurt = (self.vm, self.name) in kill.cut or end - begin > max(self.silent_ns, self.calm_ns)
        return Effect(INTERRUPTED if hurt else WENT_ON, begin, end)

    def calibrate(self, kills: Sequence[Kill]) -> None:
        """Find :attr:`calm_ns`: before the first kill, and from when a recovery is well over to the next one."""
        begins = [self.begin_ns, *(kill.last_ns and kill.last_ns + _SETTLED_NS for kill in kills)]
        ends = [kill.killed_ns for kill in kills]
        pauses = [
            later - earlier for begin, end in zip(begins, ends, strict=False) if begin
            for earlier, later in pairwise(self.between(begin, end))
        ]  # fmt: skip
        self.calm_ns = max(pauses, default=0)

    def silences(self, kills: Sequence[Kill], end_ns: int) -> list[tuple[int, int]]:
        """When it was silent, by the kills and apart from them; merged, in order. Until ``end_ns`` if for good."""
        found = [pair for pair in pairwise(self.completed) if pair[1] - pair[0] > _STRIKING * self.silent_ns]
        for kill in kills:
            effect = self.effect(kill)
            if effect.what in SILENT:
                found.append((effect.begin_ns, effect.end_ns or end_ns))
        merged: list[tuple[int, int]] = []
        for begin, end in sorted(found):
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((begin, end))
        return merged

    def between(self, begin_ns: int, end_ns: int) -> list[int]:
        """Good completions from ``begin_ns`` to ``end_ns``."""
        return self.completed[bisect_left(self.completed, begin_ns) : bisect_right(self.completed, end_ns)]

    @property
    def latencies(self) -> tuple[list[int], list[int], int]:
        """Of all its requests, in ns: from the planned times, from the submissions; and how many were never served."""
        corrected = [completed - planned for planned, _, completed in self._served]
        return corrected, [completed - submitted for _, submitted, completed in self._served], len(self._unserved)

    def bins(self, begin_ns: int, width_ns: int, count: int) -> Bins:
        """``count`` bins from ``begin_ns`` on; all of it lies in them."""
        done, unserved = [0] * count, [0] * count
        corrected: list[list[int]] = [[] for _ in range(count)]
        uncorrected: list[list[int]] = [[] for _ in range(count)]
        last = count - 1
        for planned, submitted, completed in self._served:
            done[min((completed - begin_ns) // width_ns, last)] += 1
            corrected[min((planned - begin_ns) // width_ns, last)].append(completed - planned)
            uncorrected[min((submitted - begin_ns) // width_ns, last)].append(completed - submitted)
        for planned in self._unserved:
            unserved[min((planned - begin_ns) // width_ns, last)] += 1
        return Bins(done, [_spread(one) for one in corrected], [_spread(one) for one in uncorrected], unserved)


def _spread(latencies: list[int]) -> tuple[int, int] | None:
    latencies.sort()
    return (latencies[len(latencies) // 2], latencies[-1]) if latencies else None


class Run:
    """A run, read. ``ValueError``: one of its histories is none."""

    def __init__(self, run: Mapping[str, Any]) -> None:
        machine = run.get("machine") or {}
        self.name = str(machine.get("name", ""))
        self.arch = str(machine.get("arch", "?"))
        self.transport = str(machine.get("transport", "?"))
        self.policy: dict[str, str] = dict(machine.get("policy") or {})
        self.operations: dict[str, int] = dict(run.get("operations") or {})
        self.findings = [str(finding) for finding in run.get("findings") or []]
        self.figures: dict[str, dict[str, Any]] = dict(run.get("vms") or {})
        histories = run.get("histories") or {}
        emulated = set(machine.get("emulated") or ())
        self.lanes = {
            vm: [Lane(vm, kind, dumped, vm in emulated, str(self.figures.get(vm, {}).get("neighbour") or ""))
                 for kind in ("disk", "network") if (dumped := (histories.get(vm) or {}).get(kind))]
            for vm in [*self.figures, *(vm for vm in histories if vm not in self.figures)]
        }  # fmt: skip
        self.kills = _kills(run.get("kills") or [], run.get("events") or [], set(self.lanes), emulated)
        all_lanes = [lane for lanes in self.lanes.values() for lane in lanes]
        for lane in all_lanes:
            lane.calibrate(self.kills)
        begins = [lane.begin_ns for lane in all_lanes if lane] + [kill.killed_ns for kill in self.kills]
        ends = [lane.end_ns for lane in all_lanes] + [kill.last_ns or kill.killed_ns for kill in self.kills]
        self.begin_ns = min([*([run["begun_ns"]] if run.get("begun_ns") else []), *begins], default=0)
        self.end_ns = max([*([run["ended_ns"]] if run.get("ended_ns") else []), *ends, self.begin_ns + 1])

    @property
    def survived(self) -> dict[str, bool]:
        """Of the VMs of which that is known."""
        known = {vm: figures.get("survived") for vm, figures in self.figures.items()}
        return {vm: bool(survived) for vm, survived in known.items() if survived is not None}

    def worst(self, kill: Kill, kind: str) -> tuple[str, Effect] | None:
        """The VM whose device of that kind was silent longest by ``kill``."""
        effects = [(vm, lane.effect(kill)) for vm, lanes in self.lanes.items() for lane in lanes if lane.name == kind]
        return max(effects, key=lambda one: one[1].silence_ns, default=None)


def read_together(runs: Sequence[Mapping[str, Any]]) -> list[Run]:
    """Several runs, read. Those of one placement have one measure of calm for each kind of device, emulated or not: a
    run with a single kill is mostly that. ``ValueError``: a history in one of them is none."""
    read = [Run(run) for run in runs]
    calm: dict[tuple[str, str, str, bool], int] = {}
    lanes = [((run.arch, run.transport, lane.name, lane.emulated), lane)
             for run in read for mine in run.lanes.values() for lane in mine]  # fmt: skip
    for key, lane in lanes:
        calm[key] = max(calm.get(key, 0), lane.calm_ns)
    for key, lane in lanes:
        lane.calm_ns = calm[key]
    return read


def _kills(
    rows: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]], vms: set[str], emulated: set[str]
) -> list[Kill]:
    """Those that happened: with a time. ``emulated``: VMs whose network hangs on a cable to netvsp's switch."""
    ordered = sorted((row for row in rows if row.get("killed_ns")), key=lambda row: int(row["killed_ns"]))
    kills = []
    for number, row in enumerate(ordered, 1):
        until = int(ordered[number]["killed_ns"]) if number < len(ordered) else None
        died: dict[str, int] = {}
        ran: set[str] = set()
        cut: set[tuple[str, str]] = set()
        for event in events:
            if event.get("ns", 0) < row["killed_ns"] or (until and event["ns"] >= until):
                continue
            named = {event.get("component"), *(event.get("carried") or ())} & vms
            if event.get("event") == "died":
                died |= dict.fromkeys(named, int(event["ns"]))
                if "netvsp" in (event.get("component"), *(event.get("carried") or ())):
                    cut |= {(vm, "network") for vm in emulated & vms}
            elif event.get("event") == "up":
                ran |= died.keys()
            elif event.get("event") == "ready":
                ran |= named & died.keys()
            elif event.get("event") == "detached":
                cut |= {(vm, _kind(event)) for vm in named}
        kills.append(Kill(
            number, str(row.get("component", "?")), str(row.get("host") or row.get("component", "?")), row.get("pid"),
            row.get("incarnation"), str(row.get("fault") or "kill"), int(row["killed_ns"]), row.get("died_ns"),
            row.get("ready_ns"), row.get("attached_ns"), row.get("first_reply_ns"), until, tuple(died.items()),
            frozenset(ran), frozenset(cut), str(row.get("label") or _label(row)), bool(row.get("aside")),
            tuple((kind, math.inf if row[key] is None else row[key] * 1e6)
                  for kind in ("disk", "network") if (key := f"{kind}_reply_ms") in row),
        ))  # fmt: skip
    return kills


def _kind(event: Mapping[str, Any]) -> str:
    return "disk" if str(event.get("device", "")).startswith("disk") else "network"


def _label(row: Mapping[str, Any]) -> str:
    component, fault = row.get("component", "?"), row.get("fault") or "kill"
    return f"{component}" if fault == "kill" else f"{component}: {fault}"


def bin_width(span_ns: int) -> int:
    """1, 2 or 5 times a power of ten ns, so that there are at most :data:`BINS`."""
    width = 1
    while True:
        for factor in (1, 2, 5):
            if width * factor * BINS >= span_ns:
                return width * factor
        width *= 10
