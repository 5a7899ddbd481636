"""What a run is measured on: the machine, the interpreter, the versions."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = ("vmbus-emu", "pyzmq", "msgpack", "psutil", "iceoryx2", "matplotlib")


def describe(folder: Path | None = None) -> dict[str, Any]:
    """The machine, the interpreter and the versions. What cannot be told is ``None``."""
    return {
        "cpu": _cpu_model(), "cores": os.cpu_count(), "affinity": sorted(os.sched_getaffinity(0)),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "turbo_off": _read("/sys/devices/system/cpu/intel_pstate/no_turbo"),
        "memory_bytes": psutil.virtual_memory().total, "kernel": platform.release(),
        "virtualized": "hypervisor" in (_read("/proc/cpuinfo") or ""),
        "python": platform.python_version(), "implementation": platform.python_implementation(),
        "gil": bool(getattr(sys, "_is_gil_enabled", lambda: True)()),
        "switch_interval_s": sys.getswitchinterval(),
        "versions": {name: _version(name) for name in _PACKAGES}, "zmq": _libzmq(),
        "revision": _revision(folder or Path(__file__).parent), "load": os.getloadavg()[0],
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _cpu_model() -> str | None:
    lines = (_read("/proc/cpuinfo") or "").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _libzmq() -> str:
    import zmq

    return zmq.zmq_version()


def _revision(folder: Path) -> str | None:
    """The commit of a checkout, with ``+`` if it has been changed."""
    try:
        commit = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "")
