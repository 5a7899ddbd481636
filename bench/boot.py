"""From the command to a machine that serves, and back: what a user waits for.

A time is that of the user's whole command (``vmbus-emu up``, ``vmbus-emu down``), minus the start of a Python that
imports the four packages the project is built on, measured just before. ``up`` returns when all channels of all VMs
are open; the first I/O is a read of vm1, asked for as soon as ``up`` has returned.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from bench.costs import costs, processes
from bench.doubt import Watch
from bench.machines import Configuration, Unmeasured
from bench.measurement import Measurement, Told, untold
from bench.statistics import median_interval
from vmbus_emu.client import Machine, MachineError, NotRunning

#: Rounds of :func:`run`, and numbers of VMs.
ROUNDS = 5
VMS = (1, 4, 16, 64)
_BASE = (sys.executable, "-c", "import zmq, msgpack, psutil, click")
_CLI = (sys.executable, "-m", "vmbus_emu")
_FIRST_IO = "iobench -j -o read -n 1 disk0"
#: A command that takes longer does not work.
_PATIENCE_S = 120.0
_NS = 1_000_000_000


class Contender(NamedTuple):
    of: Configuration
    vms: int

    @property
    def name(self) -> str:
        return f"{self.vms} VM{'' if self.vms == 1 else 's'} on {self.of.name}"


@dataclass(slots=True)
class Booted:
    """A machine that is up. Times are beyond that of ``python_s``."""

    machine: Machine
    python_s: float
    up_s: float
    first_io_s: float
    down_s: float | None = None

    def cpu_s(self) -> float:
        """What its living processes have used since they began."""
        pids = processes(self.machine.ps(window=0)["partitions"])
        return sum(used for used, _ in costs(pids).values()) / _NS

    def down(self) -> None:
        """Power it off, by the user's command."""
        self.machine.close()
        self.down_s = _seconds([*_CLI, "down", "--name", self.machine.name]) - self.python_s


@contextmanager
def booted(one: Contender) -> Iterator[Booted]:
    """A machine that the user's command booted, with the disks and adapters it gives; down at the end. Raises
    :class:`Unmeasured` if it does not come up."""
    import vmbus_emu.client.door  # noqa: F401  # not while something is measured

    python_s = _seconds(_BASE)
    name = f"bench-{os.getpid()}"
    command = [*_CLI, "up", "--name", name, "--arch", one.of.arch, "--vms", str(one.vms)]
    if one.of.transport != "call":
        command += ["--transport", one.of.transport]
    if one.of.poll is not None:
        command += ["--poll", one.of.poll]
    begin = time.monotonic_ns()
    try:
        up_s = _seconds(command)
        with contextlib.closing(Machine.attach(name)) as machine:
            result = machine.exec("vm1", _FIRST_IO, timeout=_PATIENCE_S)
            if result.status:
                raise Unmeasured(f"no I/O: {_last_line(result.stderr)}")
            first_io_s = (json.loads(result.stdout)["ended_ns"] - begin) / _NS
            yield Booted(machine, python_s, up_s - python_s, first_io_s - python_s)
    except MachineError as error:
        raise Unmeasured(f"{one.name}: {error}") from None
    finally:
        with contextlib.suppress(NotRunning), contextlib.closing(Machine.attach(name)) as left:
            left.down()


def _seconds(command: Sequence[str]) -> float:
    begin = time.perf_counter()
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise Unmeasured(f"not done after {_PATIENCE_S:g} s: {' '.join(command[2:])}") from None
    elapsed = time.perf_counter() - begin
    if ended.returncode:
        raise Unmeasured(_last_line(ended.stderr))
    return elapsed


def _last_line(errors: bytes) -> str:
    return (errors.decode(errors="replace").strip().splitlines() or ["no word why"])[-1]


class Times(NamedTuple):
    """Of one machine, ms."""

    up: float
    first_io: float
    down: float


def measured(watch: Watch, one: Contender) -> Times | str:
    """One machine, up and down; or why not."""
    try:
        with booted(one) as machine:
            watch.ours(machine.cpu_s())
            machine.down()
            assert machine.down_s is not None
            return Times(machine.up_s * 1000, machine.first_io_s * 1000, machine.down_s * 1000)
    except Unmeasured as why:
        return str(why)


def row(one: Contender, sets: Sequence[Times | str]) -> dict[str, Any]:
    """Medians over the machines; null where none was measured."""
    good = [times for times in sets if isinstance(times, Times)]
    interval = median_interval([times.up for times in good])
    return {
        "arch": one.of.arch, "transport": one.of.transport, "poll": one.of.poll, "vms": one.vms,
        "up_ms": median(times.up for times in good),
        "interval_up_ms": None if interval is None else list(interval),
        "first_io_ms": median(times.first_io for times in good),
        "down_ms": median(times.down for times in good),
        "repetitions": len(good), "failed": [why for why in sets if isinstance(why, str)],
    }  # fmt: skip


def median(values: Iterator[float | None]) -> float | None:
    """Of those that were measured; ``None`` of none."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def run(
    configurations: Sequence[Configuration], counts: Sequence[int] = VMS, rounds: int = ROUNDS, seed: int | None = None,
    told: Told = untold, command: Sequence[str] = (),
) -> dict[str, Any]:
    """Boot every configuration with so many VMs, once in each round. A run, with ``boot``."""
    measurement = Measurement(seed, command)
    contenders = [Contender(of, vms) for vms in counts for of in configurations]
    sets = measurement.rounds(contenders, rounds, partial(measured, measurement.watch), lambda one: one.name, told)
    medians = {
        f"boot of {one.name}": [times.up for times in found if isinstance(times, Times)]
        for one, found in sets.items()
    }  # fmt: skip
    return measurement.document(medians, boot=[row(one, found) for one, found in sets.items()])
