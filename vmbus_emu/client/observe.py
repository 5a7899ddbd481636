"""What the kernel says about processes: CPU and memory. Read by the observer, so the observed pay nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psutil

UNKNOWN: dict[str, Any] = {"cpu_percent": None, "uss_bytes": None}


class Sampler:
    """CPU time of ``pids`` at this moment, to be compared with a later one."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._before = {pid: _cpu_seconds(pid) for pid in pids}

    def figures(self, pid: int | None, elapsed: float | None) -> dict[str, Any]:
        """CPU in percent of one core over the ``elapsed`` seconds since this object was made; and USS in bytes."""
        if pid is None:
            return UNKNOWN
        cpu = None
        before, now = self._before.get(pid), _cpu_seconds(pid)
        if elapsed and before is not None and now is not None:
            cpu = round(100 * (now - before) / elapsed, 1)
        try:
            uss: int | None = psutil.Process(pid).memory_full_info().uss
        except psutil.Error:
            uss = None
        return {"cpu_percent": cpu, "uss_bytes": uss}


def _cpu_seconds(pid: int) -> float | None:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)
