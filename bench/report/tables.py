"""The tables of the report, as HTML: everything that is drawn, as numbers. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bench.report.bars import segments
from bench.report.sentence import few
from bench.report.stored import Group, Interval, Row, Run, finite, mapped, text
from bench.table import number
from vmbus_emu.client.timeline_svg import text as escaped

_MIB = 1 << 20
#: A heading, and the rows below it, each of which is HTML cells.
Body = Sequence[tuple[str, Sequence[Sequence[str]]]]


def table(caption: str, head: Sequence[str], bodies: Body) -> str:
    """In a box that scrolls by itself; numbers are to the right. An empty heading is left out."""
    columns = "".join(f'<th scope="col" class="{"n" if place else "l"}">{escaped(name)}</th>'
                      for place, name in enumerate(head))  # fmt: skip
    parts = []
    for heading, lines in bodies:
        parts.append("<tbody>")
        if heading:
            parts.append(f'<tr><th scope="rowgroup" colspan="{len(head)}"><span>{escaped(heading)}</span></th></tr>')
        parts += [f"<tr>{''.join(line)}</tr>" for line in lines]
        parts.append("</tbody>")
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(caption)}"><table class="wide">'
            f"<caption><span>{escaped(caption)}</span></caption><thead><tr>{columns}</tr></thead>{''.join(parts)}"
            "</table></div>")  # fmt: skip


def name(words: object) -> str:
    return f'<th scope="row">{escaped(words)}</th>'


def cell(value: float | None, words: str = "") -> str:
    return f'<td class="n">{number(value) if value is not None else "–"}{escaped(words)}</td>'


def within(interval: Interval | None) -> str:
    told = "" if interval is None else f"{number(interval[0])} to {number(interval[1])}"
    return f'<td class="n"><small>{told}</small></td>'


# -- what is in them ----------------------------------------------------------------------------------------------


_TAX = ("", "p50 µs", "95 %", "times", "95 %", "p99 µs", "CPU µs", "crossings", "requests/s", "sets")


def tax(run: Run) -> str:
    """Every job on every configuration."""
    open_loop = any(group.rate for group in run.groups)
    head = list(_TAX)
    if any(row.place.emulated for group in run.groups for row in group.rows):
        head[-2:-2] = ["intercepts"]
    bodies = [(group.title, [_taxed(run, group, row, len(head)) for row in group.rows]) for group in run.groups]
    caption = ("Median latency, how many times that of the first configuration it is, and per request CPU time of all "
               "processes and crossings from one to another; 95 %: the interval; –: not measured"
               + ("; at a rate, latency counts from when each request was due" if open_loop else ""))  # fmt: skip
    return table(caption, head, bodies)


def _taxed(run: Run, group: Group, row: Row, columns: int) -> list[str]:
    sets = f'<td class="n">{int(row.figure("repetitions") or 0)}</td>'
    if row.figure("p50_us") is None:
        why = row.failures or "not measured"
        return [name(row.place.name), f'<td class="wrap no" colspan="{columns - 2}">✗ {escaped(why)}</td>', sets]
    times = run.times(group, row)
    first = row is group.rows[0]
    doubt = "" if times is None or times.significant or few(group) else " n. s."
    cells = ([cell(1.0), within(None)] if first else
             [cell(None if times is None else times.value, doubt), within(None if times is None else times.interval)])
    failed = f" <small>({escaped(row.failures)})</small>" if row.failures else ""
    return [
        name(row.place.name).replace("</th>", f"{failed}</th>"), cell(row.figure("p50_us")),
        within(row.interval("p50_us")), *cells, cell(row.figure("p99_us")), cell(row.figure("cpu_us_per_op")),
        cell(row.figure("crossings_per_op")),
        *([cell(finite(mapped(row.document.get("per_op")).get("intercepts")))] if columns > len(_TAX) else []),
        cell(row.figure("ops_per_s")), sets,
    ]  # fmt: skip


def received(run: Run) -> str:
    """What the other end of bulk transfers says; empty if there were none."""
    figures = ("mbit_per_s", "frames_per_s", "lost_frames")
    bodies = []
    for group in run.groups:
        told = [(row, mapped(row.document.get("received"))) for row in group.rows]
        lines = [[name(row.place.name), *(cell(finite(what.get(one))) for one in figures)]
                 for row, what in told if what]  # fmt: skip
        if lines:
            bodies.append((group.title, lines))
    return table("Received by the other VM", ["", "Mbit/s", "frames/s", "frames lost"], bodies) if bodies else ""


def baselines(run: Run) -> str:
    rows = [[name(text(row.document, "baseline")), cell(row.figure("p50_us")), within(row.interval("p50_us")),
             cell(row.figure("p99_us"))] for row in run.baselines]  # fmt: skip
    return table("Round trips of 64 bytes by other mechanisms, in the same rounds", ["", "p50 µs", "95 %", "p99 µs"],
                 [("", rows)])  # fmt: skip


def bounds(run: Run) -> str:
    """What each kind of message is held against; empty if nothing is."""
    rows = [[name(row.place.name), cell(times.value), within(times.interval), f'<td class="n">{escaped(bound)}</td>']
            for _, row, bound, times in run.bounds()]  # fmt: skip
    caption = "A null request, in units of the bare mechanism that carries its messages at best"
    return table(caption, ["", "times", "95 %", "mechanism"], [("", rows)]) if rows else ""


def processor_time(groups: Iterable[Group]) -> str:
    bodies = []
    for group in groups:
        lines = [[name(row.place.name), f'<td class="n">{escaped(process)}</td>', cell(us)]
                 for row in group.rows for process, us in row.shares().items()]  # fmt: skip
        if lines:
            bodies.append((group.title, lines))
    return table("CPU time per request by process", ["", "process", "µs"], bodies) if bodies else ""


def waterfalls(run: Run) -> str:
    bodies = []
    for row in run.waterfalls:
        found = segments(row)
        lines = [[name(words), f'<td class="n">{escaped(process)}</td>', cell(begin), cell(us)]
                 for words, process, begin, us in found]  # fmt: skip
        if lines:
            lines.append([name("as a whole"), "<td></td>", "<td></td>", cell(row.figure("total_us"))])
            bodies.append((f"{text(row.document, 'job')}, {row.place.name}", lines))
    return table("A single request: what happens when", ["", "process", "at µs", "takes µs"], bodies) if bodies else ""


def busy(run: Run) -> str:
    """What many VMs get done at once."""
    head = ["", "requests/s", "95 %", "fairness", "p50 µs", "p99 µs", "CPU µs", "sets"]
    caption = "With all VMs busy at once; fairness: least over largest share of a VM; –: not measured"
    return table(caption, head, [(_vms(vms), [_busy(row, len(head)) for row in some])
                                 for vms, some in _by_vms(run.scale)])  # fmt: skip


def _busy(row: Row, columns: int) -> list[str]:
    if row.failures and row.figure("ops_per_s") is None:
        return [name(row.place.name), f'<td class="wrap no" colspan="{columns - 1}">✗ {escaped(row.failures)}</td>']
    return [
        name(row.place.name), cell(row.figure("ops_per_s")), within(row.interval("ops_per_s")),
        *(cell(row.figure(one)) for one in ("fairness", "p50_us", "p99_us", "cpu_us_per_op")),
        f'<td class="n">{int(row.figure("repetitions") or 0)}</td>',
    ]  # fmt: skip


def idle(run: Run) -> str:
    """What many VMs cost before they do anything."""
    head = ["", "boot ms", "95 %", "first I/O ms", "MiB per VM", "idle CPU %"]
    rows = [(vms, [row for row in some if any(row.figure(one) is not None for one in _IDLE)])
            for vms, some in _by_vms(run.scale)]  # fmt: skip
    bodies = [
        (_vms(vms), [[name(row.place.name), cell(row.figure("boot_ms")), within(row.interval("boot_ms")),
                      cell(row.figure("first_io_ms")), cell(_mib(row)), cell(row.figure("idle_cpu_percent"))]
                     for row in some])
        for vms, some in rows if some
    ]  # fmt: skip
    caption = "Started, and idle; idle CPU: of one processor, the whole machine; –: not measured"
    return table(caption, head, bodies) if bodies else ""


_IDLE = ("boot_ms", "first_io_ms", "uss_per_vm_bytes", "idle_cpu_percent")


def _mib(row: Row) -> float | None:
    nbytes = row.figure("uss_per_vm_bytes")
    return None if nbytes is None else nbytes / _MIB


def boot(run: Run) -> str:
    head = ["", "up ms", "95 %", "first I/O ms", "down ms", "sets"]
    bodies = [
        (_vms(vms), [[name(row.place.name), cell(row.figure("up_ms")), within(row.interval("up_ms")),
                      cell(row.figure("first_io_ms")), cell(row.figure("down_ms")),
                      f'<td class="n">{int(row.figure("repetitions") or 0)}</td>'] for row in some])
        for vms, some in _by_vms(run.boot)
    ]  # fmt: skip
    return table("From the command to all channels open, to the first completed request, and down again", head, bodies)


def _by_vms(rows: Sequence[Row]) -> Iterator[tuple[int, list[Row]]]:
    for vms in sorted({row.vms for row in rows}):
        yield vms, [row for row in rows if row.vms == vms]


def _vms(count: int) -> str:
    return f"{count or 'unknown number of'} VM{'' if count == 1 else 's'}"
