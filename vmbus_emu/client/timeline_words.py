"""What the timeline page says of a run in sentences: what was killed, what became of it, where that was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vmbus_emu.client.timeline_data import Run
from vmbus_emu.client.timeline_svg import duration, text

#: The counts of a verdict that must be zero.
WRONG = ("lost", "unexpected", "duplicated")
#: Kinds of kills that the heading names; more are counted.
_NAMED = 3


def plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count:,} {what}s"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _listed(words: Sequence[str]) -> str:
    return " and ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else "".join(words)


def killed(run: Run) -> str:
    """What was killed, how often; with many kinds of kills, only how many."""
    done = Counter((kill.component, kill.fault) for kill in run.kills)
    if len(done) > _NAMED:
        return f"{len(run.kills)} kills of {plural(len({kill.component for kill in run.kills}), 'component')}"
    return _listed([f"{component} {'killed' if fault == 'kill' else f'hit by “{fault}”'} {_times(count)}"
                    for (component, fault), count in done.items()]) or "Nothing was killed"  # fmt: skip


def heading(run: Run) -> str:
    """What was killed, and whether it did harm to what had been acknowledged."""
    kills = killed(run)
    lost = run.operations.get("lost")
    if lost is None:
        return f"{kills}: it was not judged what was lost"
    if lost:
        return f"{kills}: acknowledged writes of {plural(lost, 'sector')} were lost"
    if run.findings or any(run.operations.get(what) for what in WRONG):
        return f"{kills}: no acknowledged write is known to be lost, but there are findings"
    return f"{kills}: no acknowledged write was lost"


def place(run: Run) -> str:
    """The placement and what carries its data."""
    return run.arch if run.transport in ("call", "?") else f"{run.arch} over {run.transport}"


def setup(run: Run) -> str:
    """What it was done to: the machine, how long, and the policies of what was hit."""
    words = [f"{run.name}: {place(run)}" if run.name else place(run), duration(run.end_ns - run.begin_ns),
             plural(len(run.lanes), "VM"), plural(len(run.kills), "kill")]  # fmt: skip
    hit = {kill.component for kill in run.kills} | {kill.host for kill in run.kills}
    policies = [f"{role}: {policy}" for role, policy in run.policy.items() if role in hit]
    if hit & set(run.lanes) and "child" in run.policy:
        policies.append(f"child: {run.policy['child']}")
    if policies:
        words.append("policy " + ", ".join(policies))
    return " · ".join(words)


def machine(run: Run) -> str:
    """HTML: what it was done to."""
    return f'<p class="soft">{text(setup(run))}</p>'


def verdict(run: Run) -> str:
    """HTML: whether the disks hold what they must, and who lives."""
    wrong = [f"{run.operations[what]} {what}" for what in WRONG if run.operations.get(what)]
    dead = [vm for vm, survived in run.survived.items() if not survived]
    words = []
    if wrong:
        words.append(f"The disks do not hold what they must: {_listed(wrong)}.")
    elif run.findings:
        words.append(f"There {'is' if len(run.findings) == 1 else 'are'} {plural(len(run.findings), 'finding')}, "
                     "listed at the end.")
    elif run.operations:
        words.append(f"After {plural(run.operations.get('acknowledged', 0), 'acknowledged write')} the disks hold what "
                     "they must: nothing lost, nothing unexpected, nothing twice.")
    else:
        words.append("Nothing was judged.")
    if dead:
        words.append(f"{_listed(dead)} did not survive.")
    elif run.lanes and len(run.survived) == len(run.lanes):
        words.append("Every VM survived.")
    sign, kind = ("✗", "bad") if wrong or run.findings else ("✓", "good") if run.operations else ("–", "")
    return f'<p class="verdict {kind}"><span aria-hidden="true">{sign} </span>{text(" ".join(words))}</p>'
