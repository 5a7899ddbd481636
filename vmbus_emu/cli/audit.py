"""``vmbus-emu audit``: which code and memory is in which address space."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from vmbus_emu.cli.attach import attached
from vmbus_emu.cli.options import json_option, name_option
from vmbus_emu.cli.progress import progress_line
from vmbus_emu.cli.table import UNKNOWN, Column, json_text, plural, printable, render, size

Report = Mapping[str, Any]

_COLUMNS = (
    Column("PROCESS", shrinks=True), Column("ROLE"), Column("PID", right=True), Column("CODE", right=True),
    Column("DRIVERS", right=True), Column("LIBRARIES", right=True), Column("PRIVATE", right=True),
    Column("SHARED", right=True), Column("WITH", shrinks=True),
)  # fmt: skip
_LINES = "CODE, DRIVERS, LIBRARIES: lines of code in memory, without blanks, comments and docstrings."


@click.command(short_help="What code and memory is in which address space, and what must not fail.")
@name_option
@json_option
@click.option("--compare", is_flag=True, help="Start one machine in each placement, and set them side by side.")
@click.option("--transport", metavar="TRANSPORT", type=click.Choice(("zmq", "ring")),
              help="With --compare: what carries channel data, zmq or ring.  [default: ring]")
@click.pass_context
def audit(context: click.Context, name: str, as_json: bool, compare: bool, transport: str | None) -> None:
    """Show for every process of a running machine: the code it has loaded, by its own word, and, read in /proc, the
    memory it maps and shares with whom, its privileges, and whom it can reach. Then the trusted code: that whose
    failure takes every VM along. Takes a few seconds: lines are counted in the files. Code is counted without the
    machine's own, which every process forked from it has in memory, too ("inherited" in --json).

    \b
    Example:
      vmbus-emu audit
      vmbus-emu audit --compare
    """
    if transport is not None and not compare:
        raise click.UsageError("--transport belongs to --compare: a running machine has its own", context)
    if compare:
        from vmbus_emu.client import audit as audits

        with progress_line() as progress:
            report = audits.compare(transport or "ring", progress or (lambda event: None))
        lines = compare_lines
    else:
        with attached(name) as machine:
            report = machine.audit()
        lines = audit_lines
    if as_json:
        click.echo(json_text(report))
    else:
        for line in lines(report):
            click.echo(printable(line))


def audit_lines(report: Report) -> list[str]:
    """One machine: a table, what must not fail, privileges, and who reaches whom."""
    carried = "calls" if report["transport"] == "call" else report["transport"]
    lines = [f"{report['name']}: {report['arch']} over {carried}, {report['state']}"]
    lines += render(_COLUMNS, [_row(one) for one in report["processes"]])
    lines += [_LINES, ""]
    trusted = report["trusted"]
    lines.append(f"must not fail: {_trusted(trusted['ends_every_vm'])}")
    if trusted["interrupts_every_vm"]["processes"]:
        lines.append(f"interrupts every VM: {_trusted(trusted['interrupts_every_vm'])}")
    lines += [f"the box: {_trusted(trusted['box'])}", ""]
    lines += [f"may: {text}" for text in _grouped(report["processes"], _privileges)]
    silent = [f"{one['name']} (pid {one['pid']})" for one in report["processes"] if not one["answered"]]
    if silent:
        lines.append(f"did not answer, so of its code nothing is known: {', '.join(silent)}")
    return [*lines, "", *_reach_lines(report)]


def _row(one: Report) -> list[str]:
    code, memory = one["code"], one["memory"]
    shared = memory["shared"] if memory else []
    partners = sorted({partner for piece in shared for partner in piece["with"]})
    return [
        one["name"], one["role"], str(one["pid"]),
        *([_lines(code), _number(code["drivers"]["lines"]), _number(code["libraries"]["lines"])]
          if code else ["no answer", UNKNOWN, UNKNOWN]),
        size(memory["private_bytes"] if memory else None),
        size(sum(piece["bytes"] for piece in shared)) if shared else UNKNOWN,
        ", ".join(partners) or ("nobody" if shared else UNKNOWN),
    ]  # fmt: skip


def _lines(code: Report) -> str:
    return f"{code['ours']['lines'] - code['ours']['inherited']:,}"


def _number(count: int) -> str:
    return f"{count:,}" if count else UNKNOWN


def _trusted(share: Report) -> str:
    """``hypervisor, 2,780 lines, none of drivers (policy reboot)``."""
    if not share["processes"]:
        return f"nothing but the box ({share['why']})"
    code = share["code"]
    if code is None:
        return f"{', '.join(share['processes'])}, not all of which answered ({share['why']})"
    drivers = code["drivers"]["lines"]
    of_drivers = f"{drivers:,} of them drivers'" if drivers else "none of them a driver's"
    return f"{', '.join(share['processes'])}: {_lines(code)} lines, {of_drivers} ({share['why']})"


def _privileges(one: Report) -> str:
    told = one["privileges"]
    if told is None:
        return "unknown"
    names = told["capabilities"]
    may = ", ".join(names) if len(names) <= 5 else f"{len(names)} of them"
    return (f"uid {told['uid']}, capabilities: {may or 'none'}, seccomp {told['seccomp']}, "
            f"new privileges {'forbidden' if told['no_new_privs'] else 'allowed'}")  # fmt: skip


def _grouped(processes: Sequence[Report], say: Callable[[Report], str]) -> list[str]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for one in processes:
        groups[say(one)].append(one["name"])
    if len(groups) == 1:
        return [f"{said}: all {plural(len(names), 'process', 'es')}" for said, names in groups.items()]
    return [f"{said}: {', '.join(names)}" for said, names in groups.items()]


def _reach_lines(report: Report) -> list[str]:
    lines = ["reaches (over sockets and pipes that are open; [memory files that it could map]):"]
    for one in report["processes"]:
        if one["reaches"] is None:
            lines.append(f"  {one['name']}: unknown")
            continue
        ways: defaultdict[str, set[str]] = defaultdict(set)
        for way in one["reaches"]:
            if way["kind"] in ("unix", "pipe"):
                for partner in way["to"]:
                    ways[partner].add(way["what"])
        told = [partner + _names(names - {""}, " ({})") for partner, names in sorted(ways.items())]
        others = sorted({way["what"] for way in one["reaches"] if way["kind"] == "inet"})
        memory = {way["what"] for way in one["reaches"] if way["kind"] == "memory"}
        lines.append(f"  {one['name']}: {'; '.join(told + others) or 'nobody'}" + _names(memory, " [{}]"))
    if not report["sees_peers"]:
        lines.append("  this kernel does not tell who is at the other end of a socket; only pipes and memory are shown")
    return lines


def _names(names: set[str], form: str) -> str:
    return form.format(", ".join(sorted(names))) if names else ""


# -- the placements, side by side -------------------------------------------------------------------------------------


def compare_lines(report: Report) -> list[str]:
    """All placements: what must not fail in each."""
    arches = report["placements"]
    shares = [report["machines"][arch]["trusted"] for arch in arches]

    def row(title: str, cell: Callable[[Report], str]) -> list[str]:
        return [title, *(cell(share) for share in shares)]

    def code(name: str, count: Callable[[Report], int]) -> Callable[[Report], str]:
        return lambda share: UNKNOWN if share[name]["code"] is None else _number(count(share[name]["code"]))

    def ours(code: Report) -> int:
        return int(code["ours"]["lines"] - code["ours"]["inherited"])

    def drivers(code: Report) -> int:
        return int(code["drivers"]["lines"])

    def guests(code: Report) -> int:
        return int(code["ours"]["parts"].get("partitions.child", 0))

    def libraries(code: Report) -> int:
        return int(code["libraries"]["lines"])

    ends, serves = "ends_every_vm", "interrupts_every_vm"
    table = [
        row("must not fail", lambda share: ", ".join(share[ends]["processes"]) or "nothing"),
        row("  lines of code", code(ends, ours)),
        row("  of these, drivers", code(ends, drivers)),
        row("  of these, guests", code(ends, guests)),
        row("  libraries' lines, besides", code(ends, libraries)),
        row("interrupts VMs, ends none", lambda share: ", ".join(share[serves]["processes"]) or UNKNOWN),
        row("  lines of code", code(serves, ours)),
        row("  of these, drivers", code(serves, drivers)),
        row("all processes", lambda share: str(len(share["all"]["processes"]))),
        row("  lines of code", code("all", ours)),
        ["memory shared with VMs", *(_shared_with_vms(report["machines"][arch]) for arch in arches)],
    ]
    columns = (Column(""), *(Column(arch, right=True) for arch in arches))
    return [
        *render(columns, table), "", "Lines of code in memory, without blanks, comments and docstrings; what several "
        "processes have counts once.", "The machine, which stands for the hardware, is in all of them: "
        f"{_trusted(shares[0]['box'])}.",
    ]  # fmt: skip


def _shared_with_vms(report: Report) -> str:
    """With whom one VM shares memory, and how much."""
    vm = next((one for one in report["processes"] if one["role"] == "child"), None)
    if vm is None:
        return "all of it"
    shared = vm["memory"]["shared"] if vm["memory"] else []
    if not shared:
        return "none"
    partners = sorted({partner for piece in shared for partner in piece["with"]})
    return f"{size(sum(piece['bytes'] for piece in shared))} each: {', '.join(partners)}"
