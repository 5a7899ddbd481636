"""What emulated devices cost, beside synthetic ones: which configurations and jobs that takes.

The same drivers, disks and switch stand behind both. A VM without integration services reaches them by registers, each
access an intercept; in the monolith the same device models are reached by calls, which tells what they cost themselves
from what the intercepts do. An IDE disk moves data by DMA, by one REP for each sector, or word by word; the network
adapter, a 21140, does it by DMA in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from bench.jobs import STANDARD, BadJob, Job, checked
from bench.machines import MODES, SYNTHETIC, Configuration

#: Rounds, unless others are asked for: a window by words is long (:func:`bench.machines.slowness`).
ROUNDS = 8
DEVICES = (SYNTHETIC, *MODES)
JOBS = ("read-4k", "write-flush-4k", "ping")
#: Bytes of a read by words, at most: 33,000 intercepts, which take about ten seconds.
MOST_BY_WORDS = 64 << 10


def configurations(archs: Iterable[str], devices: Iterable[str]) -> list[Configuration]:
    """Of each architecture those with synthetic devices first: the first of all is what the others are held against."""
    wanted = [one for one in DEVICES if one in set(devices)]
    made = []
    for arch in archs:
        transport = "call" if arch == "monolithic" else "zmq"
        made += [Configuration(arch, transport, None, one) for one in wanted]
        if SYNTHETIC in wanted and arch != "monolithic":
            made.insert(made.index(Configuration(arch, transport)) + 1, Configuration(arch, "ring", "adaptive"))
    return made


def jobs(sizes: Sequence[int], seconds: float, chosen: Iterable[Configuration]) -> list[Job]:
    """The jobs, and reads of other ``sizes`` (bytes). Raises :class:`BadJob`."""
    read = STANDARD["read-4k"]
    by_words = any(one.devices == "words" for one in chosen)
    for size in sizes:
        if by_words and size > MOST_BY_WORDS:
            raise BadJob(
                f"a read of {size} bytes word by word takes {size // 2} intercepts: --devices without words, or sizes "
                f"up to {MOST_BY_WORDS >> 10}k"
            )
    others = [replace(read, size=size) for size in dict.fromkeys(sizes) if size != read.size]
    found = [read, *others, *(STANDARD[name] for name in JOBS if name != read.name)]
    return [checked(replace(job, seconds=seconds)) for job in found]
