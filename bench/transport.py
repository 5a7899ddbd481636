"""The transports against each other and against their peers: ``python -m bench.transport [--rounds N] [SECTION ...]``.

Each round runs every contender once, in random order, in fresh processes. Shown are the medians over the rounds, and
for what is compared the ratio *within* a round, with a 95 % interval of its median from the order statistics: these
machines are shared, and absolute times of two rounds are not comparable.

Sections (all by default):

* ``null``: round trip of the null request at depth 1, beside bare pyzmq, ``multiprocessing.Pipe`` and iceoryx2 (if it
  is installed), also with both ends on one core;
* ``depth``: requests per second at depth 32, counted where the completions arrive; doorbells per message; 4 KiB reads
  at random places of a cached file, with the processor time of all processes per request;
* ``large``: 1 MiB reads of a cached file, every byte read by the guest, beside a plain loop of ``preadv``;
* ``sizes``: time per request as the block grows from 4 KiB to 1 MiB, at depth 1;
* ``idle``: a machine of 64 VMs after traffic: processor time over ten seconds.

``iobench`` inside the guest is the workload; it counts at the completion.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench.runner import available, measured_baseline
from bench.statistics import interval
from vmbus_emu.client import Machine

IMAGE_BYTES = 64 << 20
_IDLE_S = 10.0

Row = dict[str, float]


class Setup(NamedTuple):
    """One machine to measure in."""

    arch: str
    transport: str = "zmq"
    poll: str = "adaptive"
    pinned: bool = False

    @property
    def name(self) -> str:
        if self.arch == "monolithic":
            return "call"
        if self.transport == "zmq":
            return "zmq"
        return f"ring {self.poll}" + (", one core" if self.pinned else "")


CALL, ZMQ = Setup("monolithic"), Setup("microkernel")
RING, BLOCKING = Setup("microkernel", "ring"), Setup("microkernel", "ring", "never")
ONE_CORE = Setup("microkernel", "ring", pinned=True)


class Guest:
    """A running machine with one VM: a null disk and a file."""

    def __init__(self, setup: Setup, image: Path) -> None:
        disks = [{"null": "1TiB"}, {"file": str(image)}]
        wanted: dict[str, Any] = {"arch": setup.arch, "vm": [{"name": "vm1", "disk": disks}]}
        if setup.arch != "monolithic":
            wanted |= {"transport": setup.transport}
            if setup.transport == "ring":
                wanted |= {"poll": setup.poll}
        self._cores = os.sched_getaffinity(0)
        if setup.pinned:
            os.sched_setaffinity(0, {min(self._cores)})  # what is started from here inherits it
        self.machine = Machine(wanted)
        self.machine.up()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exception: object) -> None:
        self.machine.down()
        os.sched_setaffinity(0, self._cores)

    def iobench(self, arguments: str) -> Row:
        result = self.machine.exec("vm1", f"iobench -j {arguments}", timeout=300)
        if result.status:
            raise SystemExit(f"iobench {arguments}: {result.stderr.decode()}")
        figures: Row = json.loads(result.stdout)
        return figures

    def counters(self) -> Row:
        """Packets and doorbells of the whole machine, and the processor time its processes have used."""
        rows = self.machine.ps(window=0)["partitions"]
        total = {name: float(sum((row["counters"] or {}).get(name) or 0 for row in rows if row["name"] != "netvsp"))
                 for name in ("packets", "doorbells", "missed_doorbells")}
        times = [psutil.Process(pid).cpu_times() for pid in {row["pid"] for row in rows}]
        return total | {"cpu_s": sum(one.user + one.system for one in times)}

    def measured(self, arguments: str) -> Row:
        """``iobench``, with what the machine did meanwhile per request."""
        before = self.counters()
        figures = self.iobench(arguments)
        after = self.counters()
        figures["cpu_us"] = (after["cpu_s"] - before["cpu_s"]) / figures["requests"] * 1e6
        packets = after["packets"] - before["packets"]
        figures["doorbells"] = (after["doorbells"] - before["doorbells"]) / packets if packets else math.nan
        figures["missed"] = after["missed_doorbells"]
        return figures


def peer(name: str, seconds: float = 0.5) -> Row:
    latencies = measured_baseline(name, seconds)
    if latencies is None:
        raise SystemExit(f"{name} cannot be measured here")
    return {"p50_us": statistics.median(latencies) / 1000}


def preadv(image: Path, size: int, count: int) -> Row:
    command = [sys.executable, "-m", "bench.baselines", "preadv", *map(str, (image, size, count, IMAGE_BYTES))]
    figures: Row = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
    return figures


class Table:
    """Rounds of rows by contender."""

    def __init__(self) -> None:
        self._rounds: list[dict[str, Row]] = []

    def round(self, contenders: dict[str, Callable[[], Row]]) -> None:
        names = list(contenders)
        random.shuffle(names)
        self._rounds.append({name: contenders[name]() for name in names})

    def column(self, name: str, figure: str) -> list[float]:
        return [one[name][figure] for one in self._rounds]

    def line(self, name: str, figure: str, unit: str, scale: float = 1.0) -> None:
        values = [value * scale for value in self.column(name, figure)]
        low, high = interval(values)
        print(f"  {name:28} {statistics.median(values):10.2f} {unit:12} ({low:.2f} to {high:.2f})")

    def ratio(self, name: str, figure: str, other: str, other_figure: str = "") -> None:
        pairs = zip(self.column(name, figure), self.column(other, other_figure or figure), strict=True)
        values = [ours / theirs for ours, theirs in pairs]
        low, high = interval(values)
        print(f"  {name + ' / ' + other:28} {statistics.median(values):10.3f} {'':12} ({low:.3f} to {high:.3f})")

    @property
    def contenders(self) -> list[str]:
        return list(self._rounds[0])


def _in_guest(setup: Setup, image: Path, run: Callable[[Guest], Row]) -> Callable[[], Row]:
    def contender() -> Row:
        with Guest(setup, image) as guest:
            return run(guest)

    return contender


# -- sections -------------------------------------------------------------------------------------------


def null(rounds: int, image: Path) -> None:
    def trips(guest: Guest) -> Row:
        guest.iobench("-n 2000 disk0")
        return guest.iobench("-n 20000 disk0")

    contenders: dict[str, Callable[[], Row]] = {
        setup.name: _in_guest(setup, image, trips) for setup in (CALL, ZMQ, RING, BLOCKING, ONE_CORE)
    }
    peers = available(("pyzmq-msgpack", "mp-pipe", "iceoryx2"))
    for name in peers:
        contenders[name] = lambda name=name: peer(name)  # type: ignore[misc]
    table = Table()
    for _ in range(rounds):
        table.round(contenders)
    print("null request, p50 of a round trip")
    for name in contenders:
        table.line(name, "p50_us", "us")
    for name in (ZMQ.name, RING.name, BLOCKING.name, ONE_CORE.name):
        table.ratio(name, "p50_us", "pyzmq-msgpack")
    for name in peers[1:]:
        table.ratio(RING.name, "p50_us", name)


def depth(rounds: int, image: Path) -> None:
    def load(guest: Guest) -> Row:
        guest.iobench("-n 5000 -d 32 disk0")
        empty = guest.measured("-n 100000 -d 32 disk0")
        guest.iobench("-o read -b 64k -n 1024 disk1")  # the file into the page cache, and every block once
        reads = guest.measured(f"-o read -b 4k -d 32 -n 60000 -r -s {IMAGE_BYTES} disk1")
        return {f"null {key}": value for key, value in empty.items()} | {
            f"read {key}": value for key, value in reads.items()}

    setups = (CALL, ZMQ, RING, BLOCKING)
    table = Table()
    for _ in range(rounds):
        table.round({setup.name: _in_guest(setup, image, load) for setup in setups})
    print("null requests at depth 32")
    for setup in setups:
        table.line(setup.name, "null per_s", "thousand/s", 1e-3)
        table.line(setup.name, "null cpu_us", "CPU us each")
    table.ratio(RING.name, "null per_s", ZMQ.name)
    for setup in (RING, BLOCKING):
        table.line(setup.name, "null doorbells", "bells/packet")
        table.line(setup.name, "null missed", "missed")
    print("4 KiB reads of a cached file at depth 32, random places")
    for setup in setups:
        table.line(setup.name, "read per_s", "thousand/s", 1e-3)
        table.line(setup.name, "read p99_us", "us p99")
        table.line(setup.name, "read cpu_us", "CPU us each")
    for setup in (ZMQ, RING, BLOCKING):
        table.ratio(setup.name, "read per_s", CALL.name)


def large(rounds: int, image: Path) -> None:
    def load(guest: Guest) -> Row:
        reads = f"-o read -b 1M -r -t -s {IMAGE_BYTES}"
        guest.iobench(f"{reads} -n 128 disk1")
        figures = {f"depth {d}": guest.iobench(f"{reads} -n 2000 -d {d} disk1")["bytes_per_s"] for d in (1, 2, 4)}
        return figures | {"bytes_per_s": figures["depth 4"]}

    setups = (CALL, ZMQ, RING)
    table = Table()
    contenders = {setup.name: _in_guest(setup, image, load) for setup in setups}
    contenders["preadv"] = lambda: preadv(image, 1 << 20, 2000)
    for _ in range(rounds):
        table.round(contenders)
    print("1 MiB reads of a cached file, touched, random places")
    table.line("preadv", "bytes_per_s", "MB/s", 1e-6)
    for setup in setups:
        for figure in ("depth 1", "depth 2", "depth 4"):
            print(f"  {figure}:", end="")
            table.line(setup.name, figure, "MB/s", 1e-6)
            print(f"  {figure}:", end="")
            table.ratio(setup.name, figure, "preadv", "bytes_per_s")


def sizes(rounds: int, image: Path) -> None:
    blocks = [4 << shift for shift in range(9)]

    def load(guest: Guest) -> Row:
        guest.iobench("-o read -b 64k -n 1024 disk1")
        return {str(kib): guest.iobench(
            f"-o read -b {kib}k -r -n {max(500, 20000 // kib)} -s {IMAGE_BYTES} disk1")["p50_us"] for kib in blocks}

    table = Table()
    for _ in range(rounds):
        table.round({setup.name: _in_guest(setup, image, load) for setup in (CALL, ZMQ, RING)})
    print("time per read by block size, p50 us at depth 1 (and ns per KiB)")
    for setup in (CALL, ZMQ, RING):
        medians = {kib: statistics.median(table.column(setup.name, str(kib))) for kib in blocks}
        shown = (f"{kib}k {us:.1f} ({us / kib * 1000:.0f})" for kib, us in medians.items())
        print(f"  {setup.name:16} {', '.join(shown)}")


def idle(rounds: int, image: Path) -> None:
    for setup in (ZMQ, RING):
        vms = [{"name": f"vm{index + 1}"} for index in range(64)]
        with Machine({"arch": setup.arch, "transport": setup.transport, "vm": vms}) as machine:
            machine.pingall()
            machine.exec("vm1", "iobench -n 1000 disk0")
            rows = machine.ps(window=0)["partitions"]
            pids = {row["pid"] for row in rows}
            time.sleep(1.0)  # until the answers to ps are given, too
            used = [_processor_time(pids)]
            time.sleep(_IDLE_S)  # the measurement
            used.append(_processor_time(pids))
            uss = max(row["uss_bytes"] or 0 for row in machine.ps()["partitions"] if row["role"] == "child")
        print(f"64 VMs idle after traffic, {setup.name}: {100 * (used[1] - used[0]) / _IDLE_S:.3f} % of a core; "
              f"USS of the largest child {uss / 2**20:.2f} MiB")


def _processor_time(pids: set[int]) -> float:
    """Seconds on a processor, of all threads, to the nanosecond: clock ticks would hide what idle processes use."""
    tasks = (task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir())
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


SECTIONS: dict[str, Callable[[int, Path], None]] = {
    "null": null, "depth": depth, "large": large, "sizes": sizes, "idle": idle,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"some of {' '.join(SECTIONS)}")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown or options.rounds < 1:
        parser.error(f"no section {', '.join(sorted(unknown))}" if unknown else "--rounds is at least 1")
    print(f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores, "
          f"load {os.getloadavg()[0]:.2f}, steal {psutil.cpu_times().steal:.0f} s since boot, {options.rounds} rounds")
    with tempfile.TemporaryDirectory(prefix="vme") as folder:
        os.environ["VMBUS_EMU_RUN"] = folder
        image = Path(folder) / "disk.img"
        image.write_bytes(random.Random(7).randbytes(IMAGE_BYTES))
        for name in options.sections or SECTIONS:
            SECTIONS[name](options.rounds, image)


if __name__ == "__main__":
    main()
