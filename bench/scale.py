"""What becomes of a machine with many VMs: its boot, its memory, what it costs idle, and all VMs busy at once.

One machine gives one sample set: booted as a user does it (:mod:`bench.boot`); its memory read; left alone, and the
processor time counted that it used nevertheless; then every VM reads its RAM disk, all in the same window
(``iobench -B``), in which no VM has not begun yet or is done already. A share is what a VM completed in that window.
"""

from __future__ import annotations

import json
import shlex
import statistics
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from bench.boot import Contender, booted, median
from bench.costs import costs, processes, used_ns
from bench.doubt import Watch
from bench.machines import Configuration, Unmeasured
from bench.measurement import Measurement, Told, untold
from bench.statistics import median_interval, percentile
from vmbus_emu.client import Machine, MachineError
from vmbus_emu.witness.samples import Samples

#: Rounds of :func:`run`, and numbers of VMs.
ROUNDS = 3
VMS = (1, 2, 4, 8, 16, 32, 64)
#: What is compared unless somebody chooses: the monolith, and the microkernel over both transports.
CONFIGURATIONS = (
    Configuration("monolithic", "call"), Configuration("microkernel", "zmq"),
    Configuration("microkernel", "ring", "adaptive"),
)  # fmt: skip
#: Every VM's load.
SIZE, DEPTH, _SPAN = 4096, 4, "1M"
_NS = 1_000_000_000
#: Room for the requests of all VMs together, and of one at least, per second.
_MOST_PER_S, _LEAST_ROOM_PER_S = 2_000_000, 100_000
#: How long guests may take to come to the start, and what they run before and after the window: so much, and so much
#: more for each VM, which has to share the processors with the others.
_START_S, _START_PER_VM_S = 0.2, 0.01
_MARGIN_S, _MARGIN_PER_VM_S = 0.1, 0.008
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of the window in which nobody does anything, and of that in which all do; seconds."""

    idle_s: float = 2.0
    busy_s: float = 1.0


@dataclass(slots=True)
class Busy:
    """All VMs at work: requests of each within the window, their latencies, processor time per request."""

    shares: Sequence[int]
    seconds: float
    latencies_ns: array[int]
    cpu_us_per_op: float

    @property
    def ops_per_s(self) -> float:
        return sum(self.shares) / self.seconds


@dataclass(slots=True)
class One:
    """One machine. ``carrier_bytes``: memory of each process that carries VMs, of its own (USS)."""

    boot_s: float
    first_io_s: float
    carrier_bytes: Sequence[int]
    idle_cpu_percent: float
    busy: Busy


def fairness(shares: Sequence[int]) -> float | None:
    """The smallest share over the largest: 1 is fair, 0: somebody got nothing. ``None``: nobody got anything."""
    return min(shares) / max(shares) if shares and max(shares) else None


def measured(watch: Watch, lengths: Lengths, one: Contender) -> One | str:
    """One machine, or why it could not be measured."""
    try:
        with booted(one) as up:
            rows = up.machine.ps(window=0)["partitions"]
            pids = processes(rows)
            carriers = {row["host"] for row in rows if row["role"] == "child"}
            memory = [row["uss_bytes"] for row in rows if row["name"] in carriers and row["uss_bytes"]]
            idle = idle_percent(pids, lengths.idle_s)
            busy = load_all(up.machine, pids, one.vms, lengths.busy_s)
            watch.ours(up.cpu_s())
            return One(up.up_s, up.first_io_s, memory, idle, busy)
    except (Unmeasured, MachineError) as why:
        return str(why)


def idle_percent(pids: Mapping[int, str], seconds: float) -> float:
    """Processor time of all processes while nobody asks them for anything, in percent of one processor."""
    before, begin = costs(pids), time.monotonic_ns()
    time.sleep(seconds)     # the window itself
    after, end = costs(pids), time.monotonic_ns()
    return 100 * used_ns(before, after) / (end - begin)


def load_all(machine: Machine, pids: Mapping[int, str], vms: int, seconds: float) -> Busy:
    """Every VM reads 4 KiB at random places of its RAM disk, four at a time. Raises :class:`Unmeasured`."""
    from vmbus_emu.client.door import Door
    from vmbus_emu.client.talk import GuestCommand, Talk
    from vmbus_emu.runfolder import RunFolder

    names = [f"vm{number}" for number in range(1, vms + 1)]
    room = int(max(_MOST_PER_S / vms, _LEAST_ROOM_PER_S) * seconds) + 1000
    with ExitStack() as stack:
        samples = [stack.enter_context(closing(Samples.create(room))) for _ in names]
        door = stack.enter_context(closing(Door(RunFolder(machine.name))))
        talk = Talk(door)
        before = costs(pids)
        begin = time.monotonic_ns() + round((_START_S + _START_PER_VM_S * vms) * _NS)
        margin = _MARGIN_S + _MARGIN_PER_VM_S * vms
        common = f"iobench -j -o read -b {SIZE} -r -s {_SPAN} -d {DEPTH} -B {begin} -W {margin:.3f} -T {seconds:.3f}"
        loads = [
            GuestCommand(talk, vm, shlex.split(f"{common} -S {one.path} disk0"))
            for vm, one in zip(names, samples, strict=True)
        ]  # fmt: skip
        talk.until(lambda: all(load.ended for load in loads), time.monotonic() + 2 * margin + seconds + _PATIENCE_S)
        used = used_ns(before, costs(pids))
        told = [_told(load) for load in loads]
        if any(one.full for one in samples):
            raise Unmeasured("more requests than there is room for")
        completed = sum(one["completed"] for one in told)
        shares = [len(one) for one in samples]
        latencies = array("q", chain.from_iterable(one.values() for one in samples))
    if not latencies:
        raise Unmeasured(f"no request was served in {seconds:g} s")
    return Busy(shares, seconds, latencies, used / completed / 1000)


def _told(load: Any) -> dict[str, Any]:
    """What a load printed."""
    if not load.ended:
        load.cancel()
        raise Unmeasured(f"{load.vm}: its load has not ended")
    if load.status:
        raise Unmeasured(f"{load.vm}: {load.complaint}")
    told: dict[str, Any] = json.loads(load.output)
    return told


def row(one: Contender, sets: Sequence[One | str], smallest: tuple[int, float] | None = None) -> dict[str, Any]:
    """Medians over the machines, null where none was measured. ``smallest``: VMs and bytes of the machine with the
    fewest; in the monolith, where VMs share one process, a VM's memory is what that grew by for each."""
    good = [found for found in sets if isinstance(found, One)]
    pooled = sorted(chain.from_iterable(found.busy.latencies_ns for found in good))
    rates = [found.busy.ops_per_s for found in good]
    boots = [found.boot_s * 1000 for found in good]
    tail = percentile(pooled, 0.99)
    return {
        "arch": one.of.arch, "transport": one.of.transport, "poll": one.of.poll, "vms": one.vms,
        "boot_ms": median(iter(boots)), "interval_boot_ms": _interval(boots),
        "first_io_ms": median(found.first_io_s * 1000 for found in good),
        "uss_per_vm_bytes": uss_per_vm(one, good, smallest),
        "idle_cpu_percent": median(found.idle_cpu_percent for found in good),
        "ops_per_s": median(iter(rates)), "interval_ops_per_s": _interval(rates),
        "fairness": median(fairness(found.busy.shares) for found in good),
        "p50_us": median(statistics.median(found.busy.latencies_ns) / 1000 for found in good),
        "p99_us": None if tail is None else tail / 1000,
        "cpu_us_per_op": median(found.busy.cpu_us_per_op for found in good),
        "repetitions": len(good), "failed": [why for why in sets if isinstance(why, str)],
    }  # fmt: skip


def _interval(values: Sequence[float]) -> list[float] | None:
    found = median_interval(values)
    return None if found is None else list(found)


def carrier_bytes(sets: Iterable[One | str]) -> float | None:
    """Memory of a process that carries VMs."""
    return median(
        statistics.median(found.carrier_bytes) if found.carrier_bytes else None
        for found in sets if isinstance(found, One)
    )  # fmt: skip


def uss_per_vm(one: Contender, good: Sequence[One], smallest: tuple[int, float] | None) -> float | None:
    carrier = carrier_bytes(good)
    if one.of.transport != "call" or carrier is None:
        return carrier
    if smallest is None or smallest[0] >= one.vms:
        return None
    return (carrier - smallest[1]) / (one.vms - smallest[0])


def run(
    configurations: Sequence[Configuration] = CONFIGURATIONS, counts: Sequence[int] = VMS, rounds: int = ROUNDS,
    seed: int | None = None, told: Told = untold, command: Sequence[str] = (), lengths: Lengths | None = None,
) -> dict[str, Any]:
    """Measure every configuration with so many VMs, once in each round. A run, with ``scale``."""
    measurement = Measurement(seed, command)
    contenders = [Contender(of, vms) for vms in sorted(counts) for of in configurations]
    measure = partial(measured, measurement.watch, lengths or Lengths())
    sets = measurement.rounds(contenders, rounds, measure, lambda one: one.name, told)
    smallest: dict[Configuration, tuple[int, float]] = {}
    for one in contenders:
        carrier = carrier_bytes(sets[one])
        if carrier is not None:
            smallest.setdefault(one.of, (one.vms, carrier))
    medians = {
        f"throughput of {one.name}": [machine.busy.ops_per_s for machine in found if isinstance(machine, One)]
        for one, found in sets.items()
    }  # fmt: skip
    rows = [row(one, found, smallest.get(one.of)) for one, found in sets.items()]
    return measurement.document(medians, scale=rows)
