"""What the root wires: ports, doorbells and grants, held against a hypervisor's tables. No process, no socket."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from partitions.parent.wiring import Wiring
from vmbus_emu.hypervisor.core import Effect, HandDoorbell, HandOut
from vmbus_emu.hypervisor.tables import Grant
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Access, HvStatus
from vmbus_emu.task import Future, Task

S = HvStatus
GPA, PAGES = 1 << 32, 16
CHILD, VSP = 2, 3


class Bench:
    """The root's wiring, a child with I/O memory, a VSP in a partition of its own, and what is handed out."""

    def __init__(self, wires: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wires = wires
        self.vp = wires.processor()
        self.wiring = Wiring(self.vp)
        assert (wires.child("vm1"), wires.child("storvsp")) == (CHILD, VSP)
        wires.hypervisor.add_memory(CHILD, GPA, PAGES)
        self.handed: list[Effect] = []
        apply = wires.apply

        def watched(effects: list[Effect]) -> None:
            self.handed += [effect for effect in effects if isinstance(effect, HandDoorbell | HandOut)]
            apply(effects)

        monkeypatch.setattr(wires, "apply", watched)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.wires.result(Task(self.wires.loop, coroutine))


@pytest.fixture
def bench(wires: Any, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(wires, monkeypatch)


@pytest.mark.parametrize("vsp", [hv.PARTITION_ROOT, VSP])
def test_a_channel_has_a_doorbell_each_way(bench: Bench, vsp: int) -> None:
    assert bench.run(bench.wiring.make_doorbells(CHILD, vsp, 500)) == [S.SUCCESS] * 4
    assert bench.handed == [HandDoorbell(vsp, 500, CHILD, 500), HandDoorbell(CHILD, 500, vsp, 500)]
    assert S.INVALID_PORT_ID in bench.run(bench.wiring.make_doorbells(CHILD, vsp, 500))
    assert len(bench.handed) == 2


@pytest.mark.parametrize("vsp", [hv.PARTITION_ROOT, VSP])
def test_doorbells_are_deleted_whole_and_can_be_made_again(bench: Bench, vsp: int) -> None:
    for _ in range(2):
        assert bench.run(bench.wiring.make_doorbells(CHILD, vsp, 500)) == [S.SUCCESS] * 4
        assert bench.run(bench.wiring.delete_doorbells(CHILD, vsp, 500)) == [S.SUCCESS] * 2
        stats = bench.wires.hypervisor.stats()
        assert (stats.ports, stats.connections) == (0, 0)
    assert len(bench.handed) == 4


def test_doorbells_that_were_made_in_part_are_cleared_up_by_deleting_them(bench: Bench) -> None:
    assert S.INVALID_PARTITION_ID in bench.run(bench.wiring.make_doorbells(CHILD, 99, 500))
    assert bench.run(bench.wiring.delete_doorbells(CHILD, 99, 500)) == [S.INVALID_PARTITION_ID, S.SUCCESS]
    assert bench.wires.hypervisor.stats().ports == 0


@pytest.mark.parametrize("vsp", [hv.PARTITION_ROOT, VSP])
def test_a_region_is_granted_once_for_reading_and_writing(bench: Bench, vsp: int) -> None:
    assert bench.run(bench.wiring.grant(CHILD, vsp, GPA, PAGES)) is S.SUCCESS
    assert bench.handed == [HandOut(Grant(CHILD, vsp, GPA, PAGES, Access.READ | Access.WRITE))]
    assert bench.run(bench.wiring.grant(CHILD, vsp, GPA, PAGES)) is S.OBJECT_IN_USE
    assert bench.run(bench.wiring.grant(CHILD, vsp, GPA, PAGES - 1)) is S.INVALID_PARAMETER
    assert len(bench.handed) == 1


@pytest.mark.parametrize(("method", "calls"), [
    (lambda wiring: wiring.wire_management(), 2), (lambda wiring: wiring.wire_provider(), 2),
    (lambda wiring: wiring.wire_child(CHILD), 5), (lambda wiring: wiring.wire_vsp(VSP), 4),
])
def test_calls_are_made_before_a_method_returns(
    bench: Bench, method: Callable[[Wiring], Future[bool]], calls: int
) -> None:
    made = method(bench.wiring)
    assert (bench.vp.hypercalls, made.done) == (calls, False)
    assert bench.wires.result(made)
    ports = bench.wires.hypervisor.stats().ports
    assert bench.wires.result(method(bench.wiring)), "what is there already is no fault"
    assert bench.wires.hypervisor.stats().ports == ports


def test_the_calls_for_doorbells_are_made_at_once(bench: Bench) -> None:
    task = Task(bench.wires.loop, bench.wiring.make_doorbells(CHILD, VSP, 500))
    bench.wires.loop.step(0.0)
    assert (bench.vp.hypercalls, task.done) == (4, False)
    assert bench.wires.result(task) == [S.SUCCESS] * 4


@pytest.mark.parametrize("partition", [CHILD, VSP])
def test_a_new_incarnation_of_the_root_makes_its_own_ports_again(bench: Bench, partition: int) -> None:
    child = partition == CHILD
    wire = bench.wiring.wire_child if child else bench.wiring.wire_vsp
    assert bench.wires.result(wire(partition))
    tables = bench.wires.hypervisor.partitions
    before = {number: (set(one.ports), dict(one.connections)) for number, one in tables.items()}
    bench.wires.apply(bench.wires.hypervisor.died(tables[1].vps[0]))
    assert tables[1].ports == {}
    assert tables[partition].connections == {}
    assert bench.wires.result(Wiring(bench.wires.processor()).find_again(partition, child))
    assert {number: (set(one.ports), dict(one.connections)) for number, one in tables.items()} == before


def test_a_new_root_finds_a_vsp_of_which_the_one_before_had_not_heard(bench: Bench) -> None:
    bench.wires.processor(VSP)
    assert bench.wires.result(bench.wiring.wire_vsp(VSP))
    tables = bench.wires.hypervisor.partitions
    before = {number: (set(one.ports), dict(one.connections)) for number, one in tables.items()}
    bench.wires.apply(bench.wires.hypervisor.died(tables[VSP].vps[0]))      # the root dies before the next one's hello
    bench.wires.apply(bench.wires.hypervisor.died(tables[1].vps[0]))
    bench.wires.processor(VSP)
    assert bench.wires.result(Wiring(bench.wires.processor()).find_again(VSP, child=False))
    assert {number: (set(one.ports), dict(one.connections)) for number, one in tables.items()} == before


def test_a_partition_that_is_not_there_cannot_be_wired(bench: Bench) -> None:
    assert not bench.wires.result(bench.wiring.wire_child(99))
