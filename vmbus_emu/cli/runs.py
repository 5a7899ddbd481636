"""A run with kills as lines for people: each kill, what every VM noticed, and the verdict. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vmbus_emu.cli.table import UNKNOWN, WIDTH, Column, plural, printable, render

Run = Mapping[str, Any]
Kill = Mapping[str, Any]
#: Findings that are shown.
SHOWN_FINDINGS = 10
_VMS = (
    Column("VM", shrinks=True), Column("SURVIVED"), Column("DISK GAP ms", right=True),
    Column("NETWORK GAP ms", right=True), Column("IN FLIGHT", right=True), Column("RESUBMITTED", right=True),
    Column("FAILED", right=True), Column("LOST", right=True),
    Column("p50 ms", right=True), Column("p99 ms", right=True),
)  # fmt: skip


def kill_lines(run: Run) -> list[str]:
    """The run of a single kill."""
    *earlier, kill = run["kills"]       # a step of negotiation is reached by the replacement of one killed before
    return [*(_headline(run, one) for one in earlier), _headline(run, kill), _restart(run, kill), *vm_lines(run),
            *verdict_lines(run)]  # fmt: skip


def _headline(run: Run, kill: Kill) -> str:
    signal = f" ({kill['signal']})" if kill["signal"] and kill["fault"] != "kill" else ""
    how = "killed by SIGKILL" if kill["fault"] == "kill" else f"struck by {kill['fault']}{signal}"
    how += f" at {kill['at']}" if kill.get("at") else ""
    host = kill["component"] if kill["host"] == kill["component"] else f"{kill['component']}, carried by {kill['host']}"
    carried = {
        name for event in run["events"] if event["event"] == "died" and event["pid"] == kill["pid"]
        for name in event["carried"] if name not in (kill["component"], kill["host"])
    }  # fmt: skip
    text = f"{host} (pid {kill['pid']}, incarnation {kill['incarnation']}): {how}"
    return _fitted(text + (f"; with it went {', '.join(sorted(carried))}" if carried else ""))


def _restart(run: Run, kill: Kill) -> str:
    """The way from the kill to the first good completion, step by step."""
    if kill["died_ns"] is None:
        return "its process did not end"
    if kill["ready_ns"] is None:
        halted = any(event["event"] == "halted" for event in run["events"])
        after = f"dead after {_ms(kill['detect_ms'])} ms, and "
        after += "the machine halted, as its policy says" if halted else "nothing took its place"
        if kill["component"] in run["vms"] and kill["host"] == kill["component"]:
            again = f"vmbus-emu start {kill['component']} starts it again"
            after += f"; {again if kill.get('startable', True) else 'vmbus-emu drain reboots all'}"
        return after
    steps = [("detect", kill["detect_ms"]), ("start", kill["start_ms"]), ("renegotiate", kill["renegotiate_ms"])]
    reached = max(kill[name] or 0 for name in ("died_ns", "ready_ns", "attached_ns"))
    total = kill["first_reply_ms"]
    if kill["first_reply_ns"] is None:
        ending = "; no reply after that"
    elif kill["first_reply_ns"] < reached:  # nobody was interrupted
        ending = f"; requests were served throughout, the first after {_ms(total)} ms"
    else:
        steps.append(("first reply", (kill["first_reply_ns"] - reached) / 1e6))
        ending = f" = {_ms(total)} ms"
    what = "reboot" if any(event["event"] == "rebooting" for event in run["events"]) else "restart"
    return f"{what}: " + " + ".join(f"{name} {_ms(span)}" for name, span in steps if span is not None) + ending


def kill_line(kill: Kill, begun_ns: int) -> str:
    """One kill of many, on one line."""
    at = f"{(kill['killed_ns'] - begun_ns) / 1e9:7.2f} s"
    if kill["missing"]:
        return _fitted(f"{at}  {kill['component']}: {kill['waited_s']:g} s passed without {', '.join(kill['missing'])}")
    span = (kill["over_ns"] - kill["killed_ns"]) / 1e6
    return f"{at}  {kill['component']} (pid {kill['pid']}): all served again within {span:.0f} ms"


def vm_lines(run: Run) -> list[str]:
    """What every VM noticed. Gaps are the longest, latencies those of disk requests from their planned time."""
    rows = []
    for name, vm in run["vms"].items():
        survived = "yes" if vm["survived"] else "no"
        if vm.get("memory_intact") is False:
            survived += ", corrupt"
        numbers = [str(vm[key]) for key in ("in_flight", "resubmitted", "failed", "lost")]
        gaps = [_ms(vm[key]) for key in ("disk_gap_ms", "network_gap_ms")]
        rows.append([name, survived, *gaps, *numbers, _ms(vm["p50_ms"]), _ms(vm["p99_ms"])])
    return render(_VMS, rows) if rows else ["no VM was alive to notice"]


def kills_summary(kills: Sequence[Kill]) -> list[str]:
    """Of many kills, per component: how many, and how long to the first reply."""
    by_component: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    for kill in kills:
        counts[kill["component"]] = counts.get(kill["component"], 0) + 1
        if kill["first_reply_ms"] is not None:
            by_component.setdefault(kill["component"], []).append(kill["first_reply_ms"])
    columns = (Column("KILLED", shrinks=True), Column("TIMES", right=True), Column("FIRST REPLY ms: p50", right=True),
               Column("WORST", right=True))  # fmt: skip
    rows = []
    for component, count in counts.items():
        times = sorted(by_component.get(component, ()))
        median, worst = (times[len(times) // 2], times[-1]) if times else (None, None)
        rows.append([component, str(count), _ms(median), _ms(worst)])
    return render(columns, rows)


def verdict_lines(run: Run) -> list[str]:
    """The findings, the first ones in words, and one closing line."""
    counts, findings = run["operations"], run["findings"]
    lines = [f"! {printable(str(finding))}" for finding in findings[:SHOWN_FINDINGS]]
    if len(findings) > SHOWN_FINDINGS:
        lines.append(f"! … and {plural(len(findings) - SHOWN_FINDINGS, 'more finding')}")
    what = "write" if run["read_back"] else "read"
    network = f"; {plural(counts['network_lost'], 'frame')} lost in the network" if counts["network_lost"] else ""
    bad = [f"{counts[name]} {name}" for name in ("lost", "unexpected", "duplicated")]
    more = [f"{counts[name]} {name}" for name in ("recovered", "failed") if counts[name]]
    closing = f"{plural(counts['attempted'], what)}, {counts['acknowledged']} acknowledged; {', '.join(bad + more)}"
    return [*lines, closing + network]


def without_histories(run: Run) -> dict[str, Any]:
    """The run as ``kill --json`` prints it: without what only a judge needs."""
    return {key: value for key, value in run.items() if key not in ("histories", "read_back", "start_state")}


def _ms(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    if value < 0.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 999.95 else f"{value:.0f}"


def _fitted(line: str) -> str:
    text = printable(line)
    return text if len(text) <= 2 * WIDTH else text[: 2 * WIDTH - 1] + "…"
