"""The guest's loads as writers: when it is frozen, what they keep on the disk is consistent, and none of them fails."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.waiting_guests import SIZE, Bench, Disk
from vmbus_emu.device import BlockRequest, Op
from vmbus_emu.protocol.database import SECTOR, decode

LOADS = ("sqlitebench", "kvlog")


class HoldableDisk(Disk):
    """``order`` is what it was asked, and when it was held."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.loop)
        self.order: list[Op | str] = []

    def submit(self, request: BlockRequest) -> None:
        self.order.append(Op(request.op))
        super().submit(request)

    def hold_writes(self) -> None:
        self.order.append("held")

    def writes_settled(self) -> bool:
        return not self.pending

    def release_writes(self) -> None:
        self.order.append("released")


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    for name in made.disks:
        made.disks[name] = HoldableDisk(made)
    yield made
    made.close()


def disk0(bench: Bench) -> HoldableDisk:
    disk = bench.disks["disk0"]
    assert isinstance(disk, HoldableDisk)
    return disk


def frozen(bench: Bench) -> bool:
    ends: list[bool] = []
    bench.do(bench.guest.services.freeze, ends.append)
    bench.until(lambda: bool(ends))
    return ends[0]


@pytest.mark.parametrize("load", LOADS)
def test_a_load_rests_between_two_transactions_and_goes_on(bench: Bench, load: str) -> None:
    disk = disk0(bench)
    session = bench.start(load, "-T", "0.3", "disk0")
    bench.until(lambda: disk.has_written(50))
    for _ in range(3):
        assert frozen(bench)
        assert disk.order[-3:] == [Op.FLUSH, "held", Op.FLUSH], "the last transaction is durable before"
        if load == "sqlitebench":
            block = decode(bytes(disk.content[:SECTOR]), SIZE)
            assert block.journal_length == 0, "there is nothing to roll back"
            assert block.database_length > 0
        written = disk.writes
        assert bench.run("sleep", "0.02") == (0, "")
        assert disk.writes == written, "no transaction begins"
        bench.do(bench.guest.services.thaw)
        bench.until(lambda written=written: disk.has_written(written + 10))
    status, told = bench.end(session)
    assert status == 0, told
    assert json.loads(told)["requests"] > 5


@pytest.mark.parametrize("load", LOADS)
def test_a_load_that_begins_while_it_is_frozen_waits_and_can_be_ended(bench: Bench, load: str) -> None:
    disk = disk0(bench)
    assert frozen(bench)
    waiting, other = (bench.start(load, "-T", "0.05", name) for name in ("disk0", "disk1"))
    assert bench.run("sleep", "0.02") == (0, "")
    assert disk.writes == 0
    bench.cancel(other)
    assert bench.end(other)[0] == 130
    bench.do(bench.guest.services.thaw)
    assert bench.end(waiting)[0] == 0
    assert disk.writes > 5


def test_a_transaction_that_cannot_end_is_told_and_goes_on_when_it_can(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from partitions.child.quiesce import Quiesce

    assert Quiesce.__init__.__defaults__ is not None
    monkeypatch.setattr(Quiesce.__init__, "__defaults__", (5.0, 0.02))
    session = bench.start("sqlitebench", "-T", "0.2", "disk0")
    disk = bench.stop_disk()
    assert not frozen(bench)
    assert any("no end of a transaction within 0.02 s: sqlitebench" in line for line in bench.guest.dmesg)
    disk.stopped = False
    bench.do(disk.serve)
    assert bench.end(session)[0] == 0
