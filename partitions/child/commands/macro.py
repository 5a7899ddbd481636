"""What the guest's larger loads have in common: their flags, and what they print."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from partitions.child.commands.options import count, disk, flags, samples, seconds
from partitions.child.console import Session, Usage
from vmbus_emu.device import BlockDevice
from vmbus_emu.witness.samples import Samples

_NS = 1_000_000_000


@dataclass(slots=True)
class Asked:
    """On which disk, how deep, for how long; ``record`` takes the latency of each request, in ns."""

    device: BlockDevice
    depth: int
    duration_ns: int
    record: Callable[[int], Any]
    samples: Samples | None

    def report(self, requests: int, duration_ns: int) -> str:
        """The line for standard output, and the count for whoever made the file of samples."""
        if self.samples is not None:
            self.samples.settle()
        return json.dumps({"requests": requests, "seconds": duration_ns / _NS})


def asked(session: Session, arguments: list[str], most_depth: int) -> Asked:
    """``[-d DEPTH] [-T SECONDS] [-S FILE] DISK``."""
    options, words = flags(arguments, "d:T:S:")
    if len(words) != 1:
        raise Usage("it takes one disk")
    depth = count(options.get("d", "1"), "-d", 1)
    if depth > most_depth:
        raise Usage(f"-d is at most {most_depth}")
    record = samples(options["S"]) if "S" in options else None
    return Asked(
        disk(session, words[0]), depth, round(seconds(options.get("T", "1"), "-T") * _NS),
        _forget if record is None else record.append, record,
    )  # fmt: skip


def _forget(ns: int) -> None:
    """Nobody asked for it."""
