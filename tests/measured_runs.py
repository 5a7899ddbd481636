"""Runs as ``vmbus-emu bench --json`` keeps them, made by hand: for the tests of the report."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

from bench.devices import DEVICES
from bench.devices import configurations as device_configurations
from bench.jobs import STANDARD as JOBS
from bench.jobs import Job
from bench.machines import STANDARD as CONFIGURATIONS
from bench.machines import Configuration, Measured
from bench.results import SCHEMA, baseline, ratios, result

Document = dict[str, Any]

#: About what each takes, in us.
_PACE = {"call": 2.0, "zmq": 90.0, "ring": 9.0}
#: A name that is none, in whatever it stands.
HOSTILE = "</script><script>alert(\"1\")</script><b>&'\x00\x1b\ud800"


def environment() -> Document:
    return {
        "cpu": "A processor", "cores": 2, "affinity": [0, 1], "governor": None, "turbo_off": None,
        "memory_bytes": 25 << 30, "kernel": "6.1", "virtualized": True, "python": "3.11.7",
        "implementation": "CPython", "gil": True, "switch_interval_s": 0.005,
        "versions": {"vmbus-emu": "0.1.0", "iceoryx2": None}, "zmq": "4.3.5", "revision": "abc+", "load": 0.5,
        "began": "2026-01-01T00:00:00Z", "pinning": {"how": "apart", "vm1": [0], "parent": [1]},
        "watched": {"elapsed_s": 160.2, "steal": 0.001, "foreign_cpus": 0.02, "pressure": None},
    }  # fmt: skip


def document(**changes: Any) -> Document:
    return {
        "schema": SCHEMA, "environment": environment(), "stable": True, "reasons": [], "seed": 7,
        "command": ["vmbus-emu", "bench", "--json", "run.json"], "ended": "2026-01-01T00:02:40Z",
        "results": [], "baselines": [], "ratios": [], **changes,
    }  # fmt: skip


def measured(us: float, chance: random.Random, count: int = 4000) -> Measured:
    latencies = array("q", (round(us * 1000 * chance.lognormvariate(0, 0.2)) for _ in range(count)))
    shares = {"vm1": us * 0.6, "parent": us * 0.4, "hypervisor": us * 0.001}
    return Measured(latencies, sum(latencies) / 1e9, sum(shares.values()), shares, 2.0, {"packets": 2.0})


def run(
    jobs: Sequence[Job] = tuple(JOBS.values()), configurations: Sequence[Configuration] = CONFIGURATIONS,
    rounds: int = 10, count: int = 4000,
) -> Document:
    """A run of ``rounds`` sample sets of ``count`` requests of each job on each configuration; the caller's own."""
    return deepcopy(_run(tuple(jobs), tuple(configurations), rounds, count))


@cache
def _run(jobs: Sequence[Job], configurations: Sequence[Configuration], rounds: int, count: int) -> Document:
    chance = random.Random(5)
    rows = [
        result(job, of, [measured(_PACE[of.transport] * job.depth**0.6, chance, count) for _ in range(rounds)])
        for job in jobs for of in configurations
    ]  # fmt: skip
    bases = [
        baseline(name, [measured(us, chance, count).latencies_ns for _ in range(rounds)])
        for name, us in (("call", 0.1), ("pipe", 40.0), ("pyzmq-msgpack", 60.0), ("shm-spin", 0.8))
    ]
    return document(results=rows, baselines=bases, ratios=ratios(rows, bases))


def depths() -> Document:
    jobs = [Job("read-4k", "read", 4096, depth) for depth in (1, 2, 8, 64)]
    return run(jobs, rounds=4, count=1200)


def scale() -> list[Document]:
    return [
        {
            "arch": of.arch, "transport": of.transport, "poll": of.poll, "vms": vms, "boot_ms": 20 + slow * vms,
            "interval_boot_ms": [19 + slow * vms, 24 + slow * vms], "first_io_ms": 22 + slow * vms,
            "uss_per_vm_bytes": int(slow * 3e6 + 4e6 / vms), "idle_cpu_percent": 0.1 * vms,
            "ops_per_s": 2e5 / slow, "interval_ops_per_s": [1.8e5 / slow, 2.2e5 / slow], "fairness": 0.9,
            "p50_us": 10 * slow * vms, "p99_us": 60 * slow * vms, "cpu_us_per_op": 12 * slow, "repetitions": 3,
            "failed": [],
        }
        for slow, of in enumerate(CONFIGURATIONS[:3], 1) for vms in (1, 2, 4, 8, 16, 32, 64)
    ]  # fmt: skip


def boot() -> list[Document]:
    return [
        {"arch": of.arch, "transport": of.transport, "poll": of.poll, "vms": vms, "up_ms": 30 + slow * vms,
         "interval_up_ms": [28 + slow * vms, 33 + slow * vms], "first_io_ms": 33 + slow * vms,
         "down_ms": 12 + vms / slow, "repetitions": 5}
        for slow, of in enumerate(CONFIGURATIONS[:3], 1) for vms in (1, 4, 16, 64)
    ]  # fmt: skip


def waterfalls() -> list[Document]:
    return [_waterfall(of, us) for of, us in zip(CONFIGURATIONS[:3], (2.2, 130.0, 12.5), strict=True)]


def _waterfall(of: Configuration, total: float) -> Document:
    steps = [
        ("encode", "vm1", 8), ("send", "vm1", 10), ("wake-up", "parent", 22), ("decode", "parent", 7),
        ("driver", "parent", 9), ("completion encode", "parent", 6), ("completion send", "parent", 9),
        ("wake-up", "vm1", 18), ("completion decode", "vm1", 7), ("callback", "vm1", 4),
    ]  # fmt: skip
    if of.transport == "call":
        steps = [("submit", "hypervisor", 35), ("driver", "hypervisor", 55), ("callback", "hypervisor", 10)]
    segments = list(_segments(steps, total / 100))
    return {"job": "read-4k", "arch": of.arch, "transport": of.transport, "poll": of.poll, "size": 4096,
            "requests": 400, "total_us": total, "untraced_p50_us": total * 0.9, "traced_p50_us": total * 1.02,
            "segments": segments}  # fmt: skip


def _segments(steps: Sequence[tuple[str, str, int]], us: float) -> Iterator[Document]:
    begin = 0.0
    for name, process, share in steps:
        yield {"name": name, "process": process, "start_us": begin, "us": share * us}
        begin += share * us


def nulled(value: Any) -> Any:
    """``value`` with everything null that is no list and no mapping."""
    if isinstance(value, dict):
        return {name: nulled(one) for name, one in value.items()}
    return [nulled(one) for one in value] if isinstance(value, list) else None


def hostile(value: Any) -> Any:
    """``value`` with every word of it replaced."""
    if isinstance(value, dict):
        return {name: hostile(one) for name, one in value.items()}
    if isinstance(value, list):
        return [hostile(one) for one in value]
    return HOSTILE if isinstance(value, str) else value


def _full() -> Document:
    jobs = [JOBS[name] for name in ("null", "read-4k", "ping")]
    return run(jobs, rounds=8, count=1200) | {"scale": scale(), "boot": boot(), "waterfalls": waterfalls()}


#: With everything that a run can have.
FULL = _full()
UNSTABLE = FULL | {"stable": False, "reasons": [
    "the host took away 7 % of the processors (steal): measure at another time, or on a machine of your own",
    "other processes used 1.00 processors meanwhile: end them, see top",
]}  # fmt: skip


def devices() -> Document:
    """Synthetic and emulated devices, in both architectures."""
    jobs, configurations = [JOBS[name] for name in ("read-4k", "ping")], device_configurations(
        ("microkernel", "monolithic"), DEVICES)
    made = run(jobs, configurations, rounds=5, count=60)
    for row in made["results"]:
        count = {"dma": 26.0, "string": 24.0, "words": 2064.0}.get(row["devices"])
        if count is not None:
            row["per_op"] = {"accesses" if row["arch"] == "monolithic" else "intercepts": count}
    return made


def roles() -> list[Document]:
    """The microkernel's rows: of two jobs, over ZeroMQ and rings, in the three arms."""
    return [
        {
            "job": job, "arch": of.arch, "transport": of.transport, "poll": of.poll, "size": JOBS[job].size, "depth": 1,
            "arm": arm, "role": role, "cpu_limit": limit, "held_by": held_by, "ops_per_s": 8e3 / slow,
            "p50_us": 110.0 * slow, "p99_us": 230.0 * slow, "cpu_us_per_op": 150.0,
            "interval_p50_us": [100.0 * slow, 120.0 * slow], "repetitions": 10, "failed": [],
            "queries_per_s": role and 1000.0 * slow, "role_cpu": role and 0.1 * slow, "load_cpu": role and 0.01,
            "processors": {"vm1": 0, "vm2": 1, "parent": 1, **({"dns": 1, "load": 1} if role else {})},
            "times": role and {"p50_us": {"value": float(slow), "interval": [slow - 0.5, slow + 0.5],
                                          "significant": slow > 2}, "p99_us": None},
            "sets": {"p50_us": [110.0 * slow] * 10},
        }
        for job in ("read-4k", "ping") for of in CONFIGURATIONS[1:3]
        for arm, role, limit, held_by, slow in (
            ("none", None, None, None, 1), ("busy", "dns", None, "no limit", 5),
            ("limited", "dns", 0.2, "0.2 cores, by cgroup v1", 2),
        )
    ]  # fmt: skip


def half_failed() -> Document:
    """The monolith was measured, the microkernel not, of another configuration two of three sets."""
    chance = random.Random(1)
    good = [measured(2.0, chance, 300) for _ in range(3)]
    rows = [result(JOBS["null"], CONFIGURATIONS[0], good),
            result(JOBS["null"], CONFIGURATIONS[1], ["null: no request was served in 0.3 s"] * 3),
            result(JOBS["null"], CONFIGURATIONS[2], ["null: it died", *good[:2]])]  # fmt: skip
    return document(results=rows, ratios=ratios(rows, []))


CASES = {
    "empty": {}, "nothing": document(), "full": FULL, "unstable": UNSTABLE, "depths": depths(),
    "few": run([JOBS["null"]], rounds=2, count=60), "nulls": nulled(FULL), "hostile": hostile(FULL),
    "failed": half_failed(), "scale": document(scale=scale()), "boot": document(boot=boot()),
    "devices": devices(), "roles": document(roles=roles()), "baselines": document(baselines=run([])["baselines"]),
}  # fmt: skip
