"""What a dead incarnation of management left in the tables, and the next one takes out. No process, no socket."""

from __future__ import annotations

from typing import Any

import pytest

from partitions.parent.leftovers import clear_up, remove
from vmbus_emu.hypervisor.core import Effect, PowerOff, PowerOn
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Code
from vmbus_emu.task import Task

MANAGEMENT = (hv.PARTITION_ROOT, 1)


class Bench:
    """Management, which dies and is there again. What is powered on gets its process when the test says so."""

    def __init__(self, wires: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wires = wires
        self.vp = wires.processor(*MANAGEMENT)
        self.powered: list[PowerOn] = []
        self.ended: list[PowerOff] = []
        apply = wires.apply

        def held(effects: list[Effect]) -> None:
            self.powered += [effect for effect in effects if isinstance(effect, PowerOn)]
            self.ended += [effect for effect in effects if isinstance(effect, PowerOff)]
            apply([effect for effect in effects if not isinstance(effect, PowerOn)])

        monkeypatch.setattr(wires, "apply", held)

    @property
    def there(self) -> set[int]:
        return set(self.wires.hypervisor.partitions) - {hv.PARTITION_ROOT}

    def initialized(self) -> int:
        number: int = self.wires.child()
        self.wires.result(self.vp.call(Code.INITIALIZE_PARTITION, hv.PARTITION_ID.pack(number)))
        return number

    def starting(self) -> int:
        number = self.initialized()
        self.vp.call(Code.START_VIRTUAL_PROCESSOR, hv.START_VP.pack(number, 0, 0))
        self.wires.settle()
        assert [effect.partition for effect in self.powered][-1] == number
        return number

    def next_incarnation(self) -> None:
        self.wires.end(*MANAGEMENT)
        self.vp = self.wires.processor(*MANAGEMENT)

    def power(self, number: int, pid: int | None) -> None:
        """The machine's answer."""
        self.wires.apply(self.wires.hypervisor.powered((number, 0), pid))
        self.wires.settle()

    def clear_up(self, *known: int) -> Task[int]:
        task = Task(self.wires.loop, clear_up(self.vp, known))
        self.wires.settle()
        return task


@pytest.fixture
def bench(wires: Any, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(wires, monkeypatch)


def test_of_an_empty_machine_nothing_is_taken(bench: Bench) -> None:
    assert bench.wires.result(bench.clear_up()) == 0


def test_what_has_no_process_goes_whatever_was_done_of_it(bench: Bench) -> None:
    for _ in range(2):
        bench.wires.child()
        bench.initialized()
    bench.next_incarnation()
    assert bench.wires.result(bench.clear_up()) == 4
    assert bench.there == set()
    assert bench.powered == []


def test_what_has_a_process_or_is_known_to_the_machine_stays(bench: Bench) -> None:
    known, runs, left = bench.initialized(), bench.initialized(), bench.initialized()
    bench.wires.processor(runs)
    bench.next_incarnation()
    assert bench.wires.result(bench.clear_up(known)) == 1
    assert bench.there == {known, runs}
    assert left not in bench.there
    assert bench.ended == [PowerOff(left, ())], "nobody lost a process"


@pytest.mark.parametrize(("pid", "deleted"), [(300, 0), (None, 1)])
def test_what_is_being_started_is_waited_for(bench: Bench, pid: int | None, deleted: int) -> None:
    number, later = bench.starting(), bench.initialized()
    bench.next_incarnation()
    clearing = bench.clear_up()
    assert (clearing.done, bench.there) == (False, {number, later})
    bench.power(number, pid)
    assert bench.wires.result(clearing) == deleted + 1
    assert bench.there == ({number} if pid else set())
    assert len(bench.powered) == 1, "its process was asked for once"


def test_what_got_its_process_before_it_was_looked_at_stays(bench: Bench) -> None:
    number = bench.starting()
    bench.next_incarnation()
    bench.power(number, 300)
    assert bench.wires.result(bench.clear_up()) == 0
    assert bench.there == {number}


def test_to_remove_says_whether_it_was_there(bench: Bench) -> None:
    number = bench.initialized()
    assert bench.wires.result(Task(bench.wires.loop, remove(bench.vp, number))) is True
    assert bench.wires.result(Task(bench.wires.loop, remove(bench.vp, number))) is False
