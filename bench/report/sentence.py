"""What a run found, in one sentence, written from its data. Pure functions.

A figure comes with its interval. What the run cannot tell is said: that it is unstable, that a difference is not
significant, that something was not measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count, groupby

from bench.jobs import STANDARD
from bench.machines import Configuration
from bench.report.stored import Group, Interval, Row, Run, Times, carried, located, mapped, text, times_of
from bench.statistics import RISK
from bench.table import number

#: What a request of a job is called; in the order in which the sentence chooses one.
_REQUESTS = {
    "read-4k": "a 4 KiB cached read", "null": "a null request", "ping": "an echo request to another VM",
    "sqlite-commit": "an SQLite transaction", "write-flush-4k": "a 4 KiB write with its flush",
    "read-1m": "a 1 MiB cached read",
}  # fmt: skip
#: With their size in us.
_UNITS = (("s", 1e6), ("ms", 1e3), ("µs", 1.0))
#: Sample sets from which on a difference can be significant: when all of them say the same.
ENOUGH = next(sets for sets in count(1) if 2 * 0.5**sets <= RISK)


def summary(run: Run) -> str:
    """The sentence. With its full stop."""
    others = "; ".join(words for words in (_scaled(run), _booted(run), _beside_a_role(run)) if words)
    told = _requests(run) or others or _mechanisms(run)
    if not told:
        return "Nothing was measured."
    told = f"on this machine {told}."
    return f"Unstable, so not to be relied on: {told}" if run.reasons else told[0].upper() + told[1:]


def headline(run: Run) -> Group | None:
    """The kind of request that the sentence is about: the first that there is, one at a time rather than many."""
    order = [*_REQUESTS, *(group.job for group in run.groups)]
    chosen = sorted((group for group in run.groups if group.measured),
                    key=lambda group: (not _standard(group), order.index(group.job), group.depth))  # fmt: skip
    return chosen[0] if chosen else None


def _standard(group: Group) -> bool:
    return group.job in STANDARD and group.size == STANDARD[group.job].size


def _requests(run: Run) -> str:
    group = headline(run)
    if group is None:
        return "none of the jobs could be measured" if run.groups else ""
    named = _REQUESTS.get(group.job) if _standard(group) else None
    subject = f"one request of “{group.title}”" if named is None else named
    if named is not None and group.depth != 1:
        subject += f", {group.depth} at once,"
    first, *others = group.measured
    clauses = [f"{subject} takes {timed(first)} {placed(first.place)}"]
    for arch, some in groupby(others, key=lambda row: row.place.arch):
        clauses.append(_on(arch, [(row, run.times(group, row)) for row in some], few(group)))
    missing = [placed(row.place) for row in group.rows if row not in group.measured]
    if missing:
        clauses.append(f"{series(missing)} it was not measured")
    if few(group) and any(run.times(group, row) for row in others):
        clauses.append(f"{_machines(group)} too few to call a difference significant")
    return "; ".join(clauses)


def _on(arch: str, some: Iterable[tuple[Row, Times | None]], few: bool) -> str:
    """What it takes on one architecture, by what carries it: as a multiple if that is known."""
    told = []
    for row, times in some:
        by = f" {carried(row.place)}" if carried(row.place) else ""
        if times is None:
            told.append(f"{timed(row)}{by}")
            continue
        value = f"{number(times.value)} times{'' if told else ' as long'}"
        doubt = "" if times.significant or few else "not significant"
        told.append(f"{value}{by}{bracketed(times.interval, doubt)}")
    return f"{located(Configuration(arch, ''))} {series(told)}"


def few(group: Group) -> bool:
    """Whether there are too few sample sets for any difference to be significant."""
    return _least(group) < ENOUGH


def _least(group: Group) -> int:
    return min((int(row.figure("repetitions") or 0) for row in group.measured), default=0)


def _machines(group: Group) -> str:
    sets = _least(group)
    return "one machine of each is" if sets == 1 else f"{sets} machines of each are"


def timed(row: Row, name: str = "p50_us", us: float = 1.0) -> str:
    """A time and its interval, in one unit; ``us`` in one of the figure's."""
    value, within = row.figure(name), row.interval(name)
    if value is None:
        return "an unknown time"
    unit, size = next(((unit, size) for unit, size in _UNITS if value * us >= size), _UNITS[-1])
    scaled = None if within is None else (within[0] * us / size, within[1] * us / size)
    return f"{number(value * us / size)} {unit}{bracketed(scaled)}"


def bracketed(interval: Interval | None, doubt: str = "") -> str:
    between = "" if interval is None else f"{number(interval[0])} to {number(interval[1])}"
    inside = ", ".join(word for word in (between, doubt) if word)
    return f" ({inside})" if inside else ""


def placed(place: Configuration) -> str:
    """As in ``over rings in the microkernel``."""
    return f"{carried(place)} {located(place)}".strip()


def series(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


# -- runs of another kind -----------------------------------------------------------------------------------------


def _most(rows: Sequence[Row], name: str) -> list[Row]:
    """Those rows that have the figure, of the largest number of VMs that any has it for."""
    having = [row for row in rows if row.figure(name) is not None]
    most = max((row.vms for row in having), default=0)
    return [row for row in having if row.vms == most]


def _scaled(run: Run) -> str:
    busy = _most(run.scale, "ops_per_s")
    if not busy:
        return "it could not be measured how it scales" if run.scale else ""
    rates = [
        f"{number(row.figure('ops_per_s'))}{bracketed(row.interval('ops_per_s'))} {placed(row.place)}" for row in busy
    ]
    return f"{_vms(busy[0].vms)}, all busy, get so many requests per second done: {series(rates)}"


def _booted(run: Run) -> str:
    for rows, name in ((run.boot, "up_ms"), (run.scale, "boot_ms")):
        up = _most(rows, name)
        if up:
            times = [f"{timed(row, name, 1e3)} {placed(row.place)}" for row in up]
            return f"{_vms(up[0].vms)} {'is' if up[0].vms == 1 else 'are'} up after {series(times)}"
    return "it could not be measured how long a start takes" if run.boot else ""


def _beside_a_role(run: Run) -> str:
    """Of the first job and configuration, every arm against that without a role."""
    first = next((row for row in run.roles if row.figure("p50_us") and not text(row.document, "role")), None)
    if first is None:
        return "it could not be measured what a role costs" if run.roles else ""
    job, few = text(first.document, "job"), False
    told = [f"{_REQUESTS.get(job, job)} takes {timed(first)} {placed(first.place)} without a role"]
    for row in run.roles:
        times = times_of(mapped(mapped(row.document.get("times")).get("p50_us")))
        if (text(row.document, "job"), row.place) == (job, first.place) and times is not None:
            few |= (row.figure("repetitions") or 0) < ENOUGH
            doubt = "" if times.significant or few else "not significant"
            held = text(row.document, "held_by")
            told.append(f"{number(times.value)} times as long beside a busy one{f', {held}' if held else ''}"
                        f"{bracketed(times.interval, doubt)}")  # fmt: skip
    if few:
        told.append("too few machines were measured to call a difference significant")
    return "; ".join(told)


def _vms(number_of: int) -> str:
    return "one VM" if number_of == 1 else f"{number_of} VMs"


def _mechanisms(run: Run) -> str:
    known = sorted((row for row in run.baselines if row.figure("p50_us")), key=lambda row: row.figure("p50_us") or 0.0)
    if not known:
        return ""
    ends = [f"{timed(row)} by {row.document.get('baseline')}" for row in (known[0], known[-1])]
    return f"a round trip of 64 bytes takes {ends[0]}" + (f" and {ends[1]}" if len(known) > 1 else "")
