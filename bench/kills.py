"""What kills cost: ``python -m bench.kills PART [--kills N] [--json FILE]``.

Parts, all with 2 VMs whose RAM disks are overwritten by a witness and read back and judged at the end:

* ``replaced``: SIGKILL of storvsp (disaggregated) and of the parent (microkernel), policies ``standby`` and
  ``restart``, each transport; what a VM without service waited for, by steps;
* ``hypervisor``: policy ``recover``, SIGKILLs and then every other fault in turn; how many are recovered from;
* ``anything``: every component at random instants, and whether processes, descriptors, memory or files grow;
* ``throughput``: what one and ten kills a second of storvsp's process take from a closed loop of writes.

Configurations take turns, a machine of its own each time. The time of a kill runs from the moment before it to the
first good completion in the slower VM of a request that was outstanding, or planned, when its service was interrupted.
Exit status 1 if anything was lost, unexpected or duplicated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench.statistics import interval
from vmbus_emu.client import Machine
from vmbus_emu.runfolder import RunFolder

#: Kills of one machine before the next configuration's turn.
TURN = 50
#: Seconds from one kill to the next: more than one takes, with the look at what came of it.
PERIOD_S = 0.2
#: Until a process that is silent is found to hang: the default bound.
HANG_S = 0.5
FAULTS = ("segv", "exit", "panic", "oom", "stop", "hang", "scribble")
STEPS = ("detect_ms", "start_ms", "renegotiate_ms", "disk_reply_ms", "network_reply_ms")
#: Footprints in a run of ``anything``.
LOOKS = 5
WRONG = ("lost", "unexpected", "duplicated")

Run = Mapping[str, Any]


class Setup(NamedTuple):
    arch: str
    transport: str
    policy: Mapping[str, str]
    victim: str

    def __str__(self) -> str:
        return f"{self.victim}, {self.arch}, {self.transport}, {self.policy.get(self.victim, '')}"


@contextmanager
def running(setup: Setup) -> Iterator[Machine]:
    name = f"bench-kills-{os.getpid()}"
    vms = [{"name": f"vm{number}", "disk": [{"ram": "16MiB"}]} for number in (1, 2)]
    document = {
        "name": name, "arch": setup.arch, "transport": setup.transport, "policy": dict(setup.policy), "vm": vms,
    }  # fmt: skip
    with Machine(document) as machine:
        yield machine


def chaos(machine: Machine, kill: str | Sequence[str], kills: int, seed: int, fault: str = "kill") -> Run:
    return machine.chaos(kill, every=PERIOD_S, duration=PERIOD_S * kills, seed=seed, fault=fault)


def quantiles(values: Sequence[float]) -> str:
    ordered = sorted(values)
    at = {share: ordered[min(int(len(ordered) * share), len(ordered) - 1)] for share in (0.5, 0.99)}
    low, high = interval(ordered)
    middle = f"p50 {at[0.5]:6.1f} ({low:.1f} to {high:.1f})"
    return f"{middle}  p99 {at[0.99]:6.1f}  max {ordered[-1]:6.1f}  n={len(ordered)}"


class Book:
    """What all runs together showed."""

    def __init__(self) -> None:
        self.kills: dict[str, list[dict[str, Any]]] = {}
        self.operations: dict[str, int] = {}
        self.findings: list[str] = []
        self.figures: dict[str, Any] = {}

    def add(self, name: str, run: Run) -> None:
        self.kills.setdefault(name, []).extend(run["kills"])
        self.findings += [f"{name}: {finding}" for finding in run["findings"]]
        for what, number in run["operations"].items():
            self.operations[what] = self.operations.get(what, 0) + number

    def report(self) -> None:
        for name, kills in self.kills.items():
            print(f"{name}: {len(kills)} kills")
            for step in STEPS:
                spans = [kill[step] for kill in kills if kill[step] is not None]
                if spans:
                    print(f"  {step:15} {quantiles(spans)}")
        told = ", ".join(f"{number} {what}" for what, number in self.operations.items())
        print(f"writes and reads: {told}")
        for finding in self.findings:
            print(f"finding: {finding}")

    @property
    def wrong(self) -> bool:
        return any(self.operations.get(what) for what in WRONG)


# -- the parts ------------------------------------------------------------------------------------------


def replaced(kills: int, book: Book) -> None:
    setups = [
        Setup(arch, transport, {victim: policy}, victim)
        for arch, victim in (("disaggregated", "storvsp"), ("microkernel", "parent"))
        for transport in ("zmq", "ring")
        for policy in ("standby", "restart")
    ]
    for turn in range(max(1, kills // TURN)):
        for setup in setups:
            with running(setup) as machine:
                book.add(str(setup), chaos(machine, setup.victim, min(TURN, kills), turn))


def hypervisor(kills: int, book: Book) -> None:
    setups = [Setup("microkernel", transport, {"hypervisor": "recover"}, "hypervisor") for transport in ("zmq", "ring")]
    for setup in setups:
        one_by_one = [("kill", kills), *((fault, kills // len(FAULTS)) for fault in FAULTS)]
        total: dict[str, list[int]] = {"SIGKILL": [0, 0], "mixed faults": [0, 0]}
        for fault, number in one_by_one:
            with running(setup) as machine:
                made, rebooted = _hypervisors(machine, fault, max(1, number), f"{setup}, {fault}", book)
            tally = total["SIGKILL" if fault == "kill" else "mixed faults"]
            tally[0] += made
            tally[1] += made - rebooted
        for what, (made, good) in total.items():
            book.figures[f"{setup}, {what}: taken over"] = (good, made)
            print(f"{setup}, {what}: {good} of {made} taken over, {100 * good / made:.1f} %")


def _hypervisors(machine: Machine, fault: str, number: int, name: str, book: Book) -> tuple[int, int]:
    """How many met with ``fault``, and after how many of these the machine rebooted."""
    made = rebooted = 0
    while made < number:
        if fault == "scribble":     # it goes on with what it has; its successor finds what it wrote over
            machine.chaos("hypervisor", every=0.5, duration=0.5, seed=made, fault=fault)
            run = machine.chaos("hypervisor", every=PERIOD_S, duration=PERIOD_S, seed=made)
        else:
            period = PERIOD_S if fault == "kill" else 2 * HANG_S
            run = machine.chaos("hypervisor", every=period, duration=period * min(TURN, number), seed=made, fault=fault)
        made += max(1, len(run["kills"]))
        rebooted += sum(event["event"] == "rebooting" for event in run["events"])
        book.add(name, run)
    return made, rebooted


def anything(kills: int, book: Book) -> None:
    policy = {"hypervisor": "recover", "child": "restart", "storvsp": "standby"}
    for transport in ("zmq", "ring"):
        setup = Setup("disaggregated", transport, policy, "all")
        name = f"all, disaggregated, {transport}"
        made = 0
        looks: list[tuple[int, dict[str, float]]] = []
        with running(setup) as machine:
            while made < kills:
                run = chaos(machine, "all", min(2 * TURN, kills), made)
                made += len(run["kills"])
                book.add(name, run)
                if made >= len(looks) * kills / LOOKS:
                    looks.append((made, footprint(machine)))
        book.figures[name] = looks
        for number, look in looks:
            print(f"{name}: after {number} kills: " + ", ".join(f"{what} {value:g}" for what, value in look.items()))


def footprint(machine: Machine) -> dict[str, float]:
    """What a machine occupies when it rests: the sum over its processes, and files in its run folder."""
    deadline = time.monotonic() + 10
    while any(row["state"] != "ready" for row in machine.ps(window=0)["partitions"]):
        if time.monotonic() > deadline:
            raise SystemExit("the machine does not come to rest")
    processes = [psutil.Process(pid) for pid in {row["pid"] for row in machine.ps(window=0)["partitions"]}]
    lasting = [one for one in processes if one.name().endswith("machine")] or processes[:1]
    folder = RunFolder(machine.name).path
    return {
        "processes": len(processes),
        "descriptors": sum(one.num_fds() for one in processes),
        "memory of the machine's process, MiB": round(lasting[0].memory_full_info().uss / 2**20, 2),
        "memory of all processes, MiB": round(sum(one.memory_full_info().uss for one in processes) / 2**20, 1),
        "files": sum(len(files) for _, _, files in os.walk(folder)),
    }


def throughput(seconds: int, book: Book) -> None:
    """Rounds of 10 s with kills, each between two without, over ``seconds`` of each."""
    shares: dict[str, list[float]] = {}
    for _ in range(max(1, seconds // 10)):
        for transport in ("zmq", "ring"):
            setup = Setup("disaggregated", transport, {"storvsp": "standby"}, "storvsp")
            with running(setup) as machine:
                calm, _ = rate(machine, 20000, 0.0)
                writes = round(calm * 10)
                for every in (1.0, 0.1):
                    disturbed, kills = rate(machine, writes, every)
                    (calm, _), before = rate(machine, writes, 0.0), calm
                    print(f"{setup}: {kills / (writes / disturbed):.1f} kills/s")
                    name = f"{setup}: throughput lost at {1 / every:.0f} kills/s, %"
                    shares.setdefault(name, []).append(100 * (1 - 2 * disturbed / (calm + before)))
    for name, values in shares.items():
        low, high = interval(values)
        book.figures[name] = values
        print(f"{name} {sorted(values)[len(values) // 2]:.1f} ({low:.1f} to {high:.1f}, n={len(values)})")


def rate(machine: Machine, writes: int, every: float) -> tuple[float, int]:
    """Writes of 4 KiB per second, of ``writes`` in vm1, while storvsp is killed ``every`` so many seconds; 0: never.
    And how many kills that were."""
    kills = 0
    stop = threading.Event()

    box = next(row["pid"] for row in machine.ps(window=0)["partitions"] if row["name"] == "machine")

    def kill() -> None:
        nonlocal kills
        while not stop.wait(every):
            with suppress(ProcessLookupError):
                os.kill(_serving(box), signal.SIGKILL)
                kills += 1

    killer = threading.Thread(target=kill)
    if every:
        killer.start()
    try:
        result = machine.exec("vm1", f"iobench -j -r -o write -d 8 -n {writes} disk0", timeout=120)
        return float(json.loads(result.stdout)["per_s"]), kills
    finally:
        stop.set()
        if every:
            killer.join()


def _serving(box: int) -> int:
    """The pid of storvsp: the oldest of that name that the machine ``box`` has, the other is its spare. Read from the
    kernel: to ask the machine ten times a second would take from the load, too."""
    for child in Path(f"/proc/{box}/task/{box}/children").read_text().split():
        with suppress(OSError):
            if Path(f"/proc/{child}/cmdline").read_bytes().rstrip(b" \0").endswith(b": storvsp"):
                return int(child)
    raise ProcessLookupError("no storvsp")


PARTS: Mapping[str, Callable[[int, Book], None]] = {
    "replaced": replaced, "hypervisor": hypervisor, "anything": anything, "throughput": throughput,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="What kills cost.")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--kills", type=int, default=500, help="per configuration; of throughput: seconds")
    parser.add_argument("--json", type=Path, help="write all kills and figures there")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
          f"load {os.getloadavg()[0]:.2f}")  # fmt: skip
    book = Book()
    try:
        PARTS[options.part](options.kills, book)
    finally:
        book.report()
        if options.json:
            options.json.write_text(json.dumps(
                {"kills": book.kills, "operations": book.operations, "findings": book.findings,
                 "figures": book.figures}
            ))  # fmt: skip
    sys.exit(book.wrong)


if __name__ == "__main__":
    main()
