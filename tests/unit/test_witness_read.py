"""The witness that only reads: it overwrites nothing, takes what it finds, and works on a disk that is read-only."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from partitions.child.commands import witness
from partitions.child.console import CommandError
from vmbus_emu.device import BlockInfo, BlockRequest, Op, Status
from vmbus_emu.loop import Loop
from vmbus_emu.witness.check import judge
from vmbus_emu.witness.history import READ, UNSEEN, History


class ReadOnlyDisk:
    """Holds what no witness wrote."""

    info = BlockInfo(64, read_only=True)

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.ops: set[int] = set()

    def allocate(self, nbytes: int) -> memoryview:
        return memoryview(bytearray(nbytes))

    def submit(self, request: BlockRequest) -> None:
        self.ops.add(request.op)
        memoryview(request.buffer)[:] = b"\x5a" * (request.blocks * 512)  # type: ignore[arg-type]
        self._loop.call_soon(request.finish, Status.OK)


def plan(mix: str, disk: ReadOnlyDisk) -> witness.Plan:
    return witness._plan({"o": mix, "i": "closed", "t": "3600", "d": "4"}, disk)  # type: ignore[arg-type]


def test_reads_are_planned_and_not_judged_by_what_they_find() -> None:
    loop = Loop()
    disk = ReadOnlyDisk(loop)
    history = History.create(100)
    load = witness.Load(loop, disk, history, plan("read", disk))  # type: ignore[arg-type]
    load.start()
    assert loop.run_until(lambda: load.finished.done, 20)
    assert disk.ops == {Op.READ}
    assert {(one.kind, one.seen, one.acknowledged) for one in history} == {(READ, UNSEEN, True)}
    assert (len(history), judge(history, {}).findings) == (100, [])
    history.close()
    loop.close()


@pytest.mark.parametrize("mix", ["write", "mixed", "flush"])
def test_every_other_mix_refuses_a_disk_that_is_read_only(mix: str) -> None:
    disk = ReadOnlyDisk(SimpleNamespace())  # type: ignore[arg-type]
    assert plan("read", disk).mix == "read"
    with pytest.raises(CommandError, match="read-only"):
        plan(mix, disk)
