"""What the witness says: which acknowledged writes are gone, what is on the disk that should not be, and for how long
nobody was served.

A sector's *values* are what it held at the start and what each write put there, in the order of submission: a writer's
writes that overlap are carried out in that order (storvsc holds the later one back), and no sector has two writers.
Then, for what is read back in the end:

* **lost**: older than the last acknowledged value.
* **recovered**: newer than the last acknowledged value: attempted, not acknowledged, and present.
* **unexpected**: no value of this sector: never attempted there, meant for another place, or torn within the sector.
* **duplicated**: older than a value that a read has seen: an old one came back.

The same holds for a read during the run, against what had completed before the read was submitted: there, older than
the last acknowledged is *duplicated*, too, for what is lost is known only in the end. And a request that completed
twice is *duplicated*. A write that failed, or was BUSY, is an attempt without an acknowledgement: it may be present
or not.

Frames may be lost, as on any wire; they are counted apart.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from vmbus_emu.witness import history
from vmbus_emu.witness.history import EMPTY, MISPLACED, PART, READ, REQUEST, WHOLE, WRITE, Operation
from vmbus_emu.witness.stamp import Stamp, State, Torn

_TELLS_NOTHING = (history.UNSEEN, history.MIXED)
#: Findings that are told in words; of more than these only the number is.
MAX_FINDINGS = 100


class Verdict(NamedTuple):
    """``attempted``, ``acknowledged`` and ``failed`` count writes (one that was BUSY when it is tried again),
    ``network_…`` requests (``network_lost``: frames).

    ``lost``, ``recovered`` and ``unread`` count sectors, ``unexpected`` sectors that were read back or seen by a read,
    ``duplicated`` the same and completions too many.
    """

    attempted: int
    acknowledged: int
    lost: int
    unexpected: int
    duplicated: int
    recovered: int
    failed: int
    unread: int                 #: written, but not read back: nothing is known of these
    network_requests: int
    network_answered: int
    network_lost: int
    findings: list[str]

    @property
    def good(self) -> bool:
        """Whether everything was judged, and nothing found that must not be."""
        return not (self.lost or self.unexpected or self.duplicated or self.unread)


def judge(
    operations: Iterable[Operation], read_back: Mapping[int, State], start: Mapping[int, State] | None = None
) -> Verdict:
    """Judge one disk: all that was done to it, and its sectors by LBA after and before that.

    A sector missing in ``start`` was empty. ``ValueError``: a sector has two writers, or holds at the start what the
    run is to write; then nothing can be told apart.
    """
    bench = _Bench()
    writes: dict[int, list[Operation]] = defaultdict(list)
    reads: dict[int, list[Operation]] = defaultdict(list)
    for operation in operations:
        bench.count(operation)
        if operation.kind == WRITE:
            sectors = writes
        elif operation.kind in (READ, PART) and operation.acknowledged and operation.seen not in _TELLS_NOTHING:
            sectors = reads
        else:
            continue
        for lba in range(operation.lba, operation.lba + operation.blocks):
            sectors[lba].append(operation)
    before = start or {}
    for lba in sorted(writes.keys() | reads.keys() | read_back.keys()):
        values = _Values(lba, before.get(lba), writes.get(lba, ()))
        newest_seen = bench.judge_reads(values, reads.get(lba, ()))
        if lba in read_back:
            bench.judge_read_back(values, read_back[lba], newest_seen)
        elif lba in writes:
            bench.find("unread", f"sector {lba}: written, and not read back")
    return bench.verdict()


class _Values:
    """The values of one sector, by age: 0 is what it held at the start."""

    def __init__(self, lba: int, start: State, writes: Sequence[Operation]) -> None:
        self.lba = lba
        self.start = start
        self.writes = sorted(writes, key=lambda write: write.sequence)
        self.ages: dict[State, int] = {start: 0}
        for age, write in enumerate(self.writes, 1):
            if write.writer != self.writes[0].writer:
                raise ValueError(f"sector {lba} has the writers {self.writes[0].writer} and {write.writer}")
            if self.ages.setdefault(Stamp(write.writer, write.sequence, lba), age) != age:
                raise ValueError(f"sector {lba} held {write.sequence} of writer {write.writer} before it was written")
        #: When which values were acknowledged: time and age, by age.
        self.acknowledged = [(one.completed_ns, age) for age, one in enumerate(self.writes, 1) if one.acknowledged]
        self.last_acknowledged = self.acknowledged[-1][1] if self.acknowledged else 0

    def age_seen(self, read: Operation) -> int | None:
        """The age of what ``read`` found here; ``None``: no value of this sector."""
        if read.seen == EMPTY:
            return self.ages.get(None)
        if read.seen == WHOLE:
            return self.ages.get(Stamp(read.observed_writer, read.observed, self.lba))
        # Torn, or meant for another place: unexpected, unless that is what it was at the start.
        if read.seen == MISPLACED:
            return 0 if isinstance(self.start, Stamp) and self.start.lba != self.lba else None
        return 0 if isinstance(self.start, Torn) else None

    def name(self, age: int) -> str:
        """A value, for people."""
        return f"sequence {self.writes[age - 1].sequence}" if age else "what was there at the start"


class _Bench:
    """Where it is counted."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = dict.fromkeys(Verdict._fields[:-1], 0)
        self._findings: list[str] = []
        self._more = 0

    def verdict(self) -> Verdict:
        if self._more:
            self._findings.append(f"and {self._more} more")
        return Verdict(**self._counts, findings=self._findings)

    def find(self, what: str, text: str, count: int = 1) -> None:
        self._counts[what] += count
        if len(self._findings) < MAX_FINDINGS:
            self._findings.append(f"{what}: {text}")
        else:
            self._more += 1

    def count(self, operation: Operation) -> None:
        counts = self._counts
        if operation.kind == WRITE:
            counts["attempted"] += not operation.refused
            counts["acknowledged"] += operation.acknowledged
            counts["failed"] += operation.failed
        elif operation.kind == REQUEST:
            counts["network_requests"] += 1
            counts["network_answered"] += operation.acknowledged
            counts["network_lost"] += operation.tries - 1
        if operation.completions > 1:
            self.find(
                "duplicated",
                f"{history.KINDS[operation.kind]} {operation.sequence} completed {operation.completions} times",
                operation.completions - 1,
            )

    def judge_reads(self, values: _Values, reads: Sequence[Operation]) -> int:
        """Judge what the reads of one sector found; the newest age that any of them has seen."""
        known: list[tuple[int, int]] = list(values.acknowledged)
        found: list[tuple[Operation, int]] = []
        for read in reads:
            age = values.age_seen(read)
            where = f"sector {values.lba}: read {read.sequence} found"
            if age is None:
                self.find("unexpected", f"{where} {_seen(read)}, which is no value of it")
            elif age and values.writes[age - 1].submitted_ns > read.completed_ns:
                self.find("unexpected", f"{where} {values.name(age)} before it was written")
            else:
                found.append((read, age))
                known.append((read.completed_ns, age))
        known.sort()
        found.sort(key=lambda one: one[0].submitted_ns)
        newest = position = 0
        for read, age in found:
            while position < len(known) and known[position][0] < read.submitted_ns:
                newest = max(newest, known[position][1])
                position += 1
            if age < newest:
                self.find(
                    "duplicated",
                    f"sector {values.lba}: read {read.sequence} found {values.name(age)} after {values.name(newest)}",
                )
        return max((age for _, age in found), default=0)

    def judge_read_back(self, values: _Values, state: State, newest_seen: int) -> None:
        """Judge what one sector holds in the end."""
        where = f"sector {values.lba}"
        age = values.ages.get(state)
        if age is None:
            self.find("unexpected", f"{where}: {_shown(state)}, which is no value of it")
            return
        last = values.last_acknowledged
        if age < last:
            self.find("lost", f"{where}: {values.name(age)}, but {values.name(last)} was acknowledged")
        if age < newest_seen:
            self.find("duplicated", f"{where}: {values.name(age)}, but {values.name(newest_seen)} had been seen")
        self._counts["recovered"] += age > last


def _shown(state: State) -> str:
    if state is None:
        return "zeros"
    if isinstance(state, Torn):
        return f"torn, its head {_shown(state.claims)}" if state.claims.writer else "nothing of ours"
    return f"sequence {state.sequence} of writer {state.writer} for sector {state.lba}"


def _seen(read: Operation) -> str:
    if read.seen == EMPTY:
        return "zeros"
    how = {WHOLE: "", MISPLACED: " meant for elsewhere"}.get(read.seen, " torn")
    return f"sequence {read.observed} of writer {read.observed_writer}{how}"


# -- service ------------------------------------------------------------------------------------------------------


class Gap(NamedTuple):
    """What one kill did to the service. All in ns; ``None``: it did not come back."""

    kill_ns: int
    gap_ns: int | None          #: from the kill to the first good completion after it
    outstanding: int            #: requests under way at the kill
    silence_ns: int | None      #: the longest time without a good completion, from the kill to the next one or the end


class Service(NamedTuple):
    """Latencies in ns, in ascending order, of the requests that completed well."""

    gaps: list[Gap]
    uncorrected: list[int]      #: from the submission
    corrected: list[int]        #: from the planned time: what waited to be submitted has waited, too
    unserved: int               #: requests that failed, never completed, or were never sent


def service(operations: Iterable[Operation], kills: Sequence[int]) -> Service:
    """How requests were served. ``kills``: the moments just before each kill, ns of CLOCK_MONOTONIC.

    The first completion after a kill is that of a request which was under way at the kill, or submitted later: either
    planned later, or planned before and kept waiting.
    """
    requests = [operation for operation in operations if operation.kind != PART and not operation.refused]
    served = [operation for operation in requests if operation.acknowledged]
    completed = sorted(operation.completed_ns for operation in served)
    ordered = sorted(kills)
    gaps = []
    for number, kill in enumerate(ordered):
        begin = bisect_right(completed, kill)
        last = number + 1 == len(ordered)
        end = len(completed) if last else bisect_right(completed, ordered[number + 1])
        moments = [kill, *completed[begin:end], *ordered[number + 1 : number + 2]]
        outstanding = sum(0 < one.submitted_ns <= kill and not 0 < one.completed_ns <= kill for one in requests)
        if begin == len(completed):
            gaps.append(Gap(kill, None, outstanding, None))
        else:
            silence = max(later - earlier for earlier, later in pairwise(moments))
            gaps.append(Gap(kill, completed[begin] - kill, outstanding, silence))
    return Service(
        gaps,
        sorted(one.completed_ns - one.submitted_ns for one in served),
        sorted(one.completed_ns - one.planned_ns for one in served),
        len(requests) - len(served),
    )
