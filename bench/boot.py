"""Boot, scale and idle cost: ``python -m bench.boot [--quick]``.

What it measures, each configuration interleaved with the others over several rounds, medians with the range:

* ``up`` of 4 VMs and of 64 VMs, and ``down``, as the user's whole command, minus the start of a Python that imports
  the four packages the project is built on (measured in the same round);
* ``pingall`` over 64 VMs (4,032 pings);
* memory (USS) of each child after boot and after ``pingall``;
* CPU of a whole idle machine of 64 VMs.

Prints a table and, with ``--json FILE``, the samples.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import psutil

from vmbus_emu.client import Machine

_BASE = [sys.executable, "-c", "import zmq, msgpack, psutil, click"]
_CLI = [sys.executable, "-m", "vmbus_emu"]
_IDLE_S = 10.0

Samples = dict[str, list[float]]


def _seconds(command: Sequence[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def _record(samples: Samples, name: str, value: float) -> None:
    samples.setdefault(name, []).append(value)


def _boot_round(samples: Samples, arch: str, vms: int) -> None:
    base = _seconds(_BASE)
    _record(samples, "python with the four packages, s", base)
    up = _seconds([*_CLI, "up", "--arch", arch, "--vms", str(vms)])
    _record(samples, f"up {arch} {vms} VMs, s beyond python", up - base)
    down = _seconds([*_CLI, "down"])
    _record(samples, f"down {arch} {vms} VMs, s beyond python", down - base)


def _child_uss(machine: Machine) -> list[float]:
    rows = machine.ps(window=0)["partitions"]
    return [row["uss_bytes"] / 2**20 for row in rows if row["role"] == "child" and row["uss_bytes"]]


def _cpu_seconds(pids: Sequence[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(t.user + t.system for t in times)


def _scale_round(samples: Samples, vms: int, idle: bool) -> None:
    with Machine({"vm": [{"name": f"vm{i + 1}"} for i in range(vms)]}) as machine:
        _record(samples, f"child USS after boot, {vms} VMs, MiB (largest)", max(_child_uss(machine)))
        if idle:
            pids = sorted({row["pid"] for row in machine.ps(window=0)["partitions"]})
            before = _cpu_seconds(pids)
            time.sleep(_IDLE_S)  # the measurement
            _record(samples, f"idle machine of {vms} VMs, % of a core", 100 * (_cpu_seconds(pids) - before) / _IDLE_S)
        report = machine.pingall()
        if report["received"] != report["sent"]:
            raise SystemExit(f"pingall lost {report['sent'] - report['received']} of {report['sent']} pings")
        _record(samples, f"pingall {vms} VMs ({report['sent']} pings), s", report["elapsed_s"])
        _record(samples, f"child USS after pingall, {vms} VMs, MiB (largest)", max(_child_uss(machine)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", metavar="FILE", help="write the samples")
    options = parser.parse_args()
    samples: Samples = {}
    with tempfile.TemporaryDirectory(prefix="vme") as folder:
        os.environ["VMBUS_EMU_RUN"] = folder
        rounds = 3 if options.quick else 10
        for number in range(rounds):
            for arch in ("microkernel", "disaggregated", "monolithic"):
                _boot_round(samples, arch, 4)
            _boot_round(samples, "microkernel", 64)
            if number < 3:
                _scale_round(samples, 64, idle=number == 0)
    steal = psutil.cpu_times().steal
    print(f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores, "
          f"load {os.getloadavg()[0]:.2f}, steal {steal:.0f} s since boot")
    for name, values in samples.items():
        print(f"{name:58} {statistics.median(values):8.3f}  ({min(values):.3f} to {max(values):.3f}, n={len(values)})")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(samples, file, indent=1)


if __name__ == "__main__":
    main()
