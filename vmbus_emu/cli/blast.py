"""What ``demo isolation`` found as a table, for a terminal and for a document. Pure functions over its report
(:func:`vmbus_emu.client.demo.table`)."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from vmbus_emu.cli.table import plural, printable

Cell = Mapping[str, Any]
Report = Mapping[str, Any]
NARROWEST, WIDEST, USUAL = 80, 120, 100
_GAP = "  "
_DEVICES = ("disk", "network")
_SHOWN_FINDINGS = 10
_UNIT = re.compile("([0-9]) ms")


# -- one cell ---------------------------------------------------------------------------------------------------------


def phrases(cell: Cell) -> list[str]:
    """What one kill was: which process died, what that was to the VMs, for how long."""
    if not cell["killed"]:
        return [f"({cell['why']})"]
    vms = cell["vms"]
    dead = [vm for vm, one in vms.items() if one["outcome"] == "died"]
    hurt = [vm for vm, one in vms.items() if one["outcome"] in ("interrupted", "never served again")]
    fine = [vm for vm in vms if vm not in dead and vm not in hurt]
    said = [_what_died(cell)]
    if dead and set(dead) != {cell["host"]} and cell["carried"] != dead:
        said.append(f"{_named(dead, vms)} died")
    if hurt:
        said.append(f"{_named(hurt, vms)} {'live' if len(hurt) > 1 else 'lives'}")
    if fine:
        said.append("no VM noticed" if len(fine) == len(vms) else f"{_named(fine, vms)} did not notice")
    said += _durations([vms[vm] for vm in hurt])
    said += [_back(cell, [vms[vm] for vm in dead])] if dead else _replaced(cell)
    return said + [f"! without {what}" for what in cell["missing"]]


def _what_died(cell: Cell) -> str:
    carried, vms = set(cell["carried"]), set(cell["vms"])
    if cell["host"] in vms:
        return f"{cell['host']} died"
    if len(carried) == 1 and carried <= vms:        # in the one process of the monolith
        return f"{min(carried)}'s thread died"
    if not carried and not cell["rebooted"]:
        return f"{cell['host']} did not die"
    return "the one process died" if vms <= carried else f"{cell['host']} died"


def _named(some: Sequence[str], vms: Mapping[str, Any]) -> str:
    if len(some) == len(vms):
        return {1: some[0], 2: "both VMs"}.get(len(some), f"all {len(some)} VMs")
    return ", ".join(some)


def _durations(hurt: Sequence[Mapping[str, Any]]) -> list[str]:
    """The longest gaps of devices that lost their channels, and pauses of those that did not."""
    said = []
    for word, key in (("gap", "gap_ms"), ("pause", "pause_ms")):
        parts = []
        for device in _DEVICES:
            found = [one for one in hurt if one[device] == "interrupted"]
            times = [one[f"{device}_{key}"] for one in found if one[f"{device}_{key}"] is not None
                     and (key == "gap_ms" or one[f"{device}_gap_ms"] is None)]  # fmt: skip
            if times:
                parts.append(f"{device} {milliseconds(max(times))}")
        if parts:
            said.append(f"{word}: {', '.join(parts)} ms")
    gone = [device for device in _DEVICES if any(one[device] == "never served again" for one in hurt)]
    return said + [f"! {device} not served again" for device in gone]


def _back(cell: Cell, dead: Sequence[Mapping[str, Any]]) -> str:
    if not all(one["runs_again"] for one in dead):
        return "stays dead" if cell["host"] in cell["vms"] else "back only by a reboot"
    how = "rebooted" if cell["rebooted"] else "restarted"
    gaps = [one[f"{device}_gap_ms"] for one in dead for device in _DEVICES if one[f"{device}_gap_ms"] is not None]
    return f"{how}, served in {milliseconds(max(gaps))} ms" if gaps else how


def _replaced(cell: Cell) -> list[str]:
    """That there is another one, where no gap says so."""
    steps = (cell["detect_ms"], cell["start_ms"])
    gaps = [one[f"{device}_gap_ms"] for one in cell["vms"].values() for device in _DEVICES]
    return [] if None in steps or gaps.count(None) < len(gaps) else [f"replaced in {milliseconds(sum(steps))} ms"]


def milliseconds(span: float) -> str:
    """Two digits at least, and no more than the host's noise leaves meaning in."""
    return f"{span:.1f}" if span < 9.95 else f"{span:.0f}"


# -- a terminal -------------------------------------------------------------------------------------------------------


def lines(report: Report, width: int = 0) -> list[str]:
    """The table and what belongs to it. ``width`` in columns; 0: the terminal's, within reason."""
    width = width or shutil.get_terminal_size((USUAL, 0)).columns
    width = min(max(width, NARROWEST), WIDEST)
    return [*_table(report, width), "", *_wrapped(_notes(report), width)]


def _table(report: Report, width: int) -> list[str]:
    places = report["placements"]
    first = max(12, *(len(row[key] or "") + 1 for row in report["rows"] for key in ("component", "what", "words")))
    each = (width - first) // len(places) - len(_GAP)
    table = [[["KILLED"], *([place.upper()] for place in places)]]
    for row in report["rows"]:
        by = [row["component"], *(f" {text}" for text in (row["what"], row["words"], row["policy"]) if text)]
        table.append([by, *(_wrapped(phrases(row["cells"][place]), each, " ") for place in places)])
    shown: list[str] = []
    for cells in table:
        for parts in zip_longest(*cells, fillvalue=""):
            columns = [parts[0].ljust(first), *(part.ljust(each) for part in parts[1:])]
            shown.append(_GAP.join(columns).rstrip())
        shown.append("-" * width if cells is table[0] else "")
    return shown[:-1]


def _wrapped(said: Sequence[str], width: int, indent: str = "") -> list[str]:
    """Each of ``said`` on lines of its own. A number stays with its unit."""
    whole = (_UNIT.sub("\\1\u00a0ms", printable(one)) for one in said)
    return [line.replace("\u00a0", " ") for one in whole
            for line in textwrap.wrap(one, width, subsequent_indent=indent, break_on_hyphens=False)]  # fmt: skip


# -- what belongs to the table ----------------------------------------------------------------------------------------


def _notes(report: Report) -> list[str]:
    findings = report["findings"]
    more = len(findings) - _SHOWN_FINDINGS
    notes = [f"! {printable(finding)}" for finding in findings[:_SHOWN_FINDINGS]]
    notes += [f"! … and {plural(more, 'more finding')}"] if more > 0 else []
    return [*notes, totals(report), _meaning(report), _conditions(report)]


def totals(report: Report) -> str:
    counts = report["operations"]
    bad = ", ".join(f"{counts[name]} {name}" for name in ("lost", "unexpected", "duplicated"))
    also = [f"{counts['failed']} failed"] if counts["failed"] else []
    also += [f"{plural(counts['network_lost'], 'frame')} lost in the network"] if counts["network_lost"] else []
    return (f"{counts['attempted']:,} writes attempted, {counts['acknowledged']:,} acknowledged: {bad}"
            + "".join(f"; {one}" for one in also) + ".")  # fmt: skip


def _meaning(report: Report) -> str:
    usual = "; ".join(
        f"{place}: " + ", ".join(f"{name} {milliseconds(span)}" for name, span in spans.items()) + " ms"
        for place, spans in report["usual_pause_ms"].items() if spans
    )
    apart = f"{' and '.join(report['emulated'])}: without integration services, asked more rarely. "
    return (f"{apart}gap: from the moment before the kill to the first answer to a request that waited then or was "
            "planned later, in the slowest VM; served in: the same across a VM's death (a reboot here forks some "
            "processes; a real one takes minutes). Who did not notice kept its channels and paused no longer than "
            f"without a kill ({usual}).")  # fmt: skip


def _conditions(report: Report) -> str:
    policies: dict[str, list[str]] = {}
    for policy in report["policy"].values():
        for role, what in policy.items():
            if role not in policies.setdefault(what, []):
                policies[what].append(role)
    told = "; ".join(f"{what}: {', '.join(roles)}" for what, roles in policies.items())
    host = report["host"]
    by_hand = " (the demonstration starts it again)" if "child" in policies.get("halt", ()) else ""
    return (f"Transport {report['transport']}. Policies: {told}{by_hand}. {host['kernel']}, {host['python']}, "
            f"{plural(host['cpus'], 'CPU')}, load {host['load']:.2f} before; {report['elapsed_s']:.0f} s in all.")


# -- a document -------------------------------------------------------------------------------------------------------


def markdown(report: Report, command: str) -> str:
    """The same for a document, with the command that made it."""
    places = report["placements"]
    shown = [f"| killed | {' | '.join(places)} |", f"|---|{'---|' * len(places)}"]
    for row in report["rows"]:
        label = ", ".join(text for text in (row["what"], row["words"]) if text)
        label += f", policy {row['policy']}" if row["policy"] else ""
        cells = (_escaped("<br>".join(phrases(row["cells"][place]))) for place in places)
        shown.append(f"| **{row['component']}**<br>{label} | {' | '.join(cells)} |")
    notes = [_escaped(note) for note in _notes(report)]
    made = f"Made by `{command}`. {notes[-1]}"
    return "\n".join([*shown, "", made, "", *(f"- {note}" for note in notes[:-1])]) + "\n"


def _escaped(text: str) -> str:
    return printable(text).replace("|", "\\|")
