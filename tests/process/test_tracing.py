"""Requests of real machines taken apart: every point is passed, in order, in the process that it belongs to; and a
machine that is not traced writes nothing and has no wrapper in any of its processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench import breakdown, tracing
from vmbus_emu.client import Machine, starter
from vmbus_emu.device import Op
from vmbus_emu.tracing import environment
from vmbus_emu.witness.traces import TraceFile

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

REQUESTS = 100
GUEST_ZMQ, GUEST_RING = ["guest encode", "msgpack", "send"], ["guest encode", "into the ring"]
SERVER_ZMQ = ["wake-up", "receive", "unpack", "decode", "driver", "completion encode", "completion msgpack",
              "completion send"]  # fmt: skip
SERVER_RING = ["wake-up", "out of the ring", "decode", "driver", "completion encode", "completion into the ring"]
BACK_ZMQ = ["completion wake-up", "completion receive", "completion unpack", "callback"]
BACK_RING = ["completion wake-up", "completion out of the ring", "callback"]

#: arch, transport, and what is done where, in turn.
PLACES = [
    ("microkernel", "zmq", [("vm1", GUEST_ZMQ), ("parent", SERVER_ZMQ), ("vm1", BACK_ZMQ)]),
    ("microkernel", "ring", [("vm1", GUEST_RING), ("parent", SERVER_RING), ("vm1", BACK_RING)]),
    ("disaggregated", "ring", [("vm1", GUEST_RING), ("storvsp", SERVER_RING), ("vm1", BACK_RING)]),
    ("monolithic", "call", [("hypervisor", ["call in", "driver", "call back"])]),
]
WRITE_AND_FLUSH = f"iobench -o commit -d 1 -n {REQUESTS} disk0"
READ = f"iobench -o read -c -d 1 -n {REQUESTS} disk1"


def document(arch: str, transport: str, image: Path) -> dict[str, Any]:
    """Two VMs, of which the second shares a VSP with the first."""
    image.write_bytes(b"".join(lba.to_bytes(512, "little") for lba in range(8192)))
    made: dict[str, Any] = {"arch": arch, "vm": [
        {"name": "vm1", "disk": [{"ram": "4MiB"}, {"file": str(image)}]}, {"name": "vm2", "disk": [{"ram": "4MiB"}]},
    ]}  # fmt: skip
    return made | ({} if transport == "call" else {"transport": transport})


@pytest.mark.parametrize(("arch", "transport", "way"), PLACES, ids=[f"{place[0]}-{place[1]}" for place in PLACES])
def test_every_request_of_a_traced_machine_is_taken_apart(
    lab: Lab, arch: str, transport: str, way: list[tuple[str, list[str]]]
) -> None:
    host = tracing.server(arch)
    names = {process for process, _ in way}
    assert host in names
    files = {name: TraceFile.create(20 * REQUESTS) for name in sorted(names)}
    with Machine(document(arch, transport, lab.folder / "a.img"), environment(files)) as machine:
        for command in (WRITE_AND_FLUSH, READ):
            result = machine.exec("vm1", command)
            assert result.status == 0, result.stderr
    guest = way[0][0]
    found = breakdown.requests({name: file.records() for name, file in files.items()}, transport, guest, host)
    assert not any(file.full for file in files.values())
    for file in files.values():
        file.close()

    assert [one.op for one in found] == [Op.WRITE, Op.FLUSH] * REQUESTS + [Op.READ] * REQUESTS
    for one in found:
        assert [(part.name, part.process) for part in one.segments] == [
            (name, process) for process, names_there in way for name in names_there
        ]
        for part, following in pairwise(one.segments):
            assert part.begin <= part.end == following.begin
    assert all(one.end <= following.begin for one, following in pairwise(found))
    rows = breakdown.means(breakdown.typical(found[2 * REQUESTS :]))
    assert sum(row["us"] for row in rows) == pytest.approx(rows[-1]["start_us"] + rows[-1]["us"])
    assert [row["name"] for row in rows if row["us"] <= 0 and "wake-up" not in row["name"]] == []
    assert len(breakdown.followed_by_flush(found)) == REQUESTS


#: Put before the lines with which the machine's interpreter starts: on SIGUSR1 a process tells which of ours it has.
PROBE = """
import os
import signal
import sys


def tell(number, frame):
    draft = os.path.join({folder!r}, f"draft.{{os.getpid()}}")
    with open(draft, "w") as file:
        file.write(" ".join(name for name in sys.modules if "trac" in name))
    os.replace(draft, os.path.join({folder!r}, f"modules.{{os.getpid()}}"))


signal.signal(signal.SIGUSR1, tell)
exec({code!r})
"""
WRAPPER = "partitions.tracepoints"


def tracing_code(lab: Lab, wait: Wait, pid: int) -> set[str]:
    """What process ``pid`` has loaded that has to do with tracing."""
    answer = lab.folder / f"modules.{pid}"
    os.kill(pid, signal.SIGUSR1)
    wait(answer.exists, f"process {pid} has told its modules")
    return {name for name in answer.read_text().split() if name.startswith(("vmbus_emu.", "partitions."))}


@pytest.mark.parametrize("traced", [False, True], ids=["off", "on"])
def test_only_processes_that_are_named_have_the_code_that_wraps(
    lab: Lab, wait: Wait, monkeypatch: pytest.MonkeyPatch, traced: bool
) -> None:
    monkeypatch.setattr(starter, "_CODE", PROBE.format(folder=str(lab.folder), code=starter._CODE))
    file = TraceFile.create(1000)
    added = environment({"vm1": file}) if traced else None
    with Machine(document("microkernel", "ring", lab.folder / "a.img"), added) as machine:
        assert machine.exec("vm1", READ).status == 0
        assert machine.exec("vm2", "iobench -o null -n 10 disk0").status == 0
        rows = lab.rows(machine)
        pids = {name: row["pid"] for name, row in rows.items() if row["pid"] and name != "machine"}
        assert {"vm1", "vm2", "parent", "hypervisor", "zygote"} <= pids.keys()
        loaded = {name: tracing_code(lab, wait, pid) for name, pid in pids.items()}
    written = file.records()
    file.close()
    wrapped = {name for name, modules in loaded.items() if WRAPPER in modules}
    assert wrapped == ({"vm1"} if traced else set())
    assert bool(written) is traced
    if not traced:
        assert not any("vmbus_emu.tracing" in modules for modules in loaded.values())
