"""A spare's rehearsal: real sockets and rings in one process, and nothing left of it, whenever it ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from partitions.parent.process import ParentProcess, VspCarrier, VspProcess
from partitions.parent.rehearsal import Rehearsal
from vmbus_emu import placement
from vmbus_emu.node import Birth, Node
from vmbus_emu.topology import parse

KINDS: dict[str, tuple[str, type[VspCarrier], str]] = {
    "parent": ("microkernel", ParentProcess, "parent"), "vsp": ("disaggregated", VspProcess, "storvsp"),
}  # fmt: skip


class Stage:
    def __init__(self, folder: Path, kind: str, transport: str) -> None:
        arch, self.kind, role = KINDS[kind]
        topology = parse({
            "name": "r", "arch": arch, "transport": transport, "vm": [{"name": "vm1", "disk": [{"ram": "1MiB"}]}],
        })  # fmt: skip
        (spec,) = [spec for spec in placement.processes(topology) if spec.role == role]
        self.folder = folder
        self.config = placement.configuration(topology, spec, 3, str(folder / "hv"), str(folder))
        self.machine, self.end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.node = Node(Birth("r", role, spec.entry, str(folder), 3, os.getpid()), self.end, None)
        self.node.max_sockets = 64
        self.context: Any = self.node.context
        if transport == "ring":
            self.poller = self.node.poller

    def rehearse(self) -> Rehearsal:
        return Rehearsal(self.kind, self.node, self.config)

    def close(self) -> None:
        self.node.loop.close()
        self.machine.close()
        self.end.close()
        self.context.term()


@pytest.fixture(params=[(kind, transport) for kind in KINDS for transport in ("zmq", "ring")], ids="-".join)
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path, *request.param)
    yield made
    made.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_rehearsal_hears_every_answer_and_leaves_nothing(stage: Stage) -> None:
    for number in range(3):
        rehearsal = stage.rehearse()
        assert stage.node.loop.run_until(lambda r=rehearsal: r.over, 5.0)   # type: ignore[misc]
        assert rehearsal.unanswered == 0
        stage.node.loop.run_until(lambda: False, 0.1)
        if not number:
            before = descriptors()      # libzmq keeps those of its threads
    assert os.listdir(stage.folder) == []
    assert descriptors() <= before
    stage.machine.setblocking(False)
    with pytest.raises(BlockingIOError):    # the machine hears nothing of it
        stage.machine.recv(1)


def test_a_rehearsal_may_be_ended_at_any_moment(stage: Stage) -> None:
    loop = stage.node.loop
    lengths = [1]
    for rounds in (*range(0, 40, 2), *range(40, 400, 60)):
        rehearsal = stage.rehearse()
        for _ in range(rounds):
            if not rehearsal.over:
                loop.step(0.001)
        lengths.append(rehearsal.unanswered)
        rehearsal.end()
        rehearsal.end()
        assert rehearsal.over
        loop.run_until(lambda: False, 0.1)
        assert os.listdir(stage.folder) == []
        if len(lengths) == 2:
            before = descriptors()
    assert descriptors() <= before
    assert {-1, 0} < set(lengths)
