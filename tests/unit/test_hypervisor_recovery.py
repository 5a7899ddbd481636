"""A hypervisor dies, another one goes on: calls are executed once, messages arrive once, doorbells come in pairs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vmbus_emu.hypervisor import recovery
from vmbus_emu.hypervisor.calls import execute, handed, receive
from vmbus_emu.hypervisor.changes import APPLY, snapshot
from vmbus_emu.hypervisor.core import (
    Deliver,
    HandDoorbell,
    HandOut,
    Hypervisor,
    PowerOff,
    PowerOn,
    Raise,
    Reply,
)
from vmbus_emu.hypervisor.tables import Grant, Vp
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol import intercept
from vmbus_emu.protocol.hypercall import Access, Code, HvStatus, PortType

ROOT: Vp = (1, 0)
CHILD: Vp = (2, 0)
GPA, PAGES = 1 << 32, 16
S = HvStatus
CREATE = hv.CREATE_PARTITION.pack(0, 0, 0, b"vm1")


def port(owner: int, number: int, peer: int, kind: int) -> bytes:
    return hv.CREATE_PORT.pack(owner, number, 0, 0, 0, peer, kind, 0, 2, 0, 0, 8 * (kind == PortType.EVENT), 0, 0)


def connect(partition: int, number: int, owner: int) -> bytes:
    return hv.CONNECT_PORT.pack(partition, number, 0, owner, number, b"", 0)


def table(hypervisor: Hypervisor) -> list[Any]:
    return [
        hypervisor.partitions, hypervisor.grants, hypervisor.starters, hypervisor.callers, hypervisor.owed,
        hypervisor.next_partition, hypervisor.next_message, hypervisor.parent_incarnation, hypervisor.suspended,
    ]


class Bench:
    """A root and a child with a port of each kind in the root: 1 message, 2 event, 4 doorbell (not connected)."""

    def __init__(self) -> None:
        self.hypervisor = Hypervisor(recorded=True)
        self.written: list[Any] = []
        self.hypervisor.bind(ROOT, 100)
        self.sequence = 0
        for code, block in (
            (Code.CREATE_PARTITION, CREATE), (Code.INITIALIZE_PARTITION, hv.PARTITION_ID.pack(2)),
            *[(Code.CREATE_PORT, port(1, kind, 2, kind)) for kind in PortType],
            *[(Code.CONNECT_PORT, connect(2, kind, 1)) for kind in (PortType.MESSAGE, PortType.EVENT)],
        ):
            assert self.call(code, block)[-1].status is S.SUCCESS
        self.hypervisor.bind(CHILD, 200)
        self.hypervisor.add_memory(2, GPA, PAGES)

    def call(self, code: int, block: bytes, by: Vp = ROOT, sequence: int = 0) -> list[Any]:
        if not sequence:
            self.sequence += 1
        return receive(self.hypervisor, by, sequence or self.sequence, code, block)

    def post(self, text: bytes, sequence: int) -> list[Any]:
        return self.call(Code.POST_MESSAGE, hv.POST_MESSAGE.pack(1, 0, 1, len(text)) + text, CHILD, sequence)

    def successor(self) -> Hypervisor:
        """Made of the changes, and of the snapshot: they are the same."""
        self.written += self.hypervisor.changes
        self.hypervisor.changes.clear()
        made = recovery.restore(self.written)
        assert table(made) == table(self.hypervisor) == table(recovery.restore(snapshot(self.hypervisor)))
        self.hypervisor = made
        return made


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_call_that_is_asked_again_is_answered_and_not_executed_again(bench: Bench) -> None:
    first = bench.call(Code.CREATE_PARTITION, CREATE, sequence=50)
    assert bench.call(Code.CREATE_PARTITION, CREATE, sequence=50) == first
    partitions = dict(bench.successor().partitions)
    assert bench.call(Code.CREATE_PARTITION, CREATE, sequence=50) == first
    assert bench.hypervisor.partitions == partitions
    refused = bench.call(Code.DELETE_PORT, hv.DELETE_PORT.pack(1, 77, 0), sequence=51)
    assert refused == [Reply(ROOT, 51, S.INVALID_PORT_ID)]
    bench.call(Code.CREATE_PORT, port(1, 77, 2, 1), sequence=52)
    bench.successor()
    assert bench.call(Code.DELETE_PORT, hv.DELETE_PORT.pack(1, 77, 0), sequence=51) == refused


def test_answers_are_kept_until_the_caller_has_them_and_their_number_is_bounded(bench: Bench) -> None:
    limit = 2 * hv.MAX_CALLS
    root = hv.PARTITION_ID.pack(1)
    assert bench.call(Code.GET_PARTITION_ID, b"", sequence=limit) == [Reply(ROOT, limit, S.SUCCESS, root)]
    assert bench.call(Code.GET_PARTITION_ID, b"", sequence=limit + 1) == [Reply(ROOT, limit + 1, S.OPERATION_DENIED)]
    bench.hypervisor.answered(ROOT, 10)
    bench.hypervisor.answered(ROOT, 3)      # an old one, late
    assert list(bench.successor().callers[ROOT].results) == [limit]
    assert bench.call(Code.GET_PARTITION_ID, b"", sequence=9) == []
    assert bench.call(Code.GET_PARTITION_ID, b"", sequence=limit + 1)[0].status is S.SUCCESS


def test_a_new_process_in_a_vp_counts_its_calls_from_one_and_gets_no_answer_of_the_old_one(bench: Bench) -> None:
    bench.call(Code.CREATE_PARTITION, CREATE, sequence=51)
    bench.call(Code.START_VIRTUAL_PROCESSOR, hv.START_VP.pack(3, 0, 0), sequence=52)
    bench.call(Code.INITIALIZE_PARTITION, hv.PARTITION_ID.pack(3), sequence=53)
    bench.call(Code.START_VIRTUAL_PROCESSOR, hv.START_VP.pack(3, 0, 0), sequence=54)
    bench.hypervisor.ended(ROOT)
    bench.hypervisor.bind(ROOT, 101)
    assert bench.successor().powered((3, 0), 300) == [], "who asked is dead"
    assert bench.call(Code.GET_PARTITION_ID, b"", sequence=51) == [Reply(ROOT, 51, S.SUCCESS, hv.PARTITION_ID.pack(1))]
    assert bench.hypervisor.partitions[3].vps == {0: 300}


def test_what_was_accepted_and_not_acknowledged_is_delivered_again_in_order(bench: Bench) -> None:
    delivered = [bench.post(text, n)[0] for n, text in enumerate((b"one", b"two", b"three"), 1)]
    raised = bench.call(Code.SIGNAL_EVENT, hv.SIGNAL_EVENT.pack(2, 3, 0), CHILD, 4)[0]
    assert [effect.number for effect in delivered] == [1, 2, 3]
    bench.hypervisor.end_of_message(ROOT, 1, 1)
    assert recovery.outstanding(bench.successor()) == [raised, *delivered[1:]]
    assert raised == Raise(ROOT, 2, 3)
    assert bench.call(Code.SIGNAL_EVENT, hv.SIGNAL_EVENT.pack(2, 3, 0), CHILD, 5)[:-1] == [], "it is still set"
    bench.hypervisor.end_of_message(ROOT, 1, 3)
    bench.hypervisor.events_seen(ROOT, 2, 3)
    assert recovery.outstanding(bench.successor()) == []
    assert bench.post(b"four", 6)[0].number == 4, "a number is never used twice"


def test_a_notice_of_the_parents_death_is_repeated_until_it_was_taken_and_only_the_latest(bench: Bench) -> None:
    for pid in (101, 102):
        bench.hypervisor.ended(ROOT)
        bench.hypervisor.bind(ROOT, pid)
    message = hv.SynicMessage(hv.MESSAGE_PARENT_RESET, 0, (3).to_bytes(4, "little"))
    assert recovery.outstanding(bench.successor()) == [Deliver(CHILD, hv.SINT_VMBUS, message, 2)]
    bench.hypervisor.end_of_message(CHILD, 0, 1)
    assert recovery.outstanding(bench.successor()) == [Deliver(CHILD, hv.SINT_VMBUS, message, 2)]
    bench.hypervisor.end_of_message(CHILD, 0, 2)
    assert recovery.outstanding(bench.successor()) == []


def test_descriptors_are_handed_out_again_until_it_is_certain_that_they_were(bench: Bench) -> None:
    doorbell, grant = HandDoorbell(1, 4, 2, 4), HandOut(Grant(2, 1, GPA, PAGES, Access.READ))
    for sequence, code, block, effect in (
        (50, Code.CONNECT_PORT, connect(2, 4, 1), doorbell),
        (51, Code.MAP_GPA_PAGES, hv.GRANT.pack(2, 1, GPA, PAGES, 1), grant),
    ):
        assert bench.call(code, block, sequence=sequence) == [effect, Reply(ROOT, sequence, S.SUCCESS)]
        for _ in range(2):
            assert recovery.outstanding(bench.successor()) == [effect]
        assert handed(bench.hypervisor)
        assert not handed(bench.hypervisor)
        assert recovery.outstanding(bench.successor()) == []
        assert bench.call(code, block, sequence=sequence) == [Reply(ROOT, sequence, S.SUCCESS)]


def test_what_is_owed_outlives_who_asked_but_not_the_ends_it_is_for(bench: Bench) -> None:
    grant = HandOut(Grant(2, 1, GPA, PAGES, Access.READ))
    bench.hypervisor.bind((1, 1), 101)
    bench.call(Code.MAP_GPA_PAGES, hv.GRANT.pack(2, 1, GPA, PAGES, 1), (1, 1), 1)
    bench.hypervisor.ended((1, 1))
    bench.hypervisor.bind((1, 1), 102)
    assert recovery.outstanding(bench.successor()) == [grant]
    bench.hypervisor.ended(ROOT)        # the grantee
    assert grant not in recovery.outstanding(bench.successor())
    handed(bench.hypervisor)
    assert bench.hypervisor.callers[1, 1].results == {}
    bench.successor()


def test_a_power_on_is_asked_for_again_until_the_machine_answered(bench: Bench) -> None:
    bench.call(Code.CREATE_PARTITION, CREATE)
    bench.call(Code.INITIALIZE_PARTITION, hv.PARTITION_ID.pack(3))
    block = hv.START_VP.pack(3, 0, 0)
    asked = [PowerOn(3, 0, "vm1")]
    assert bench.call(Code.START_VIRTUAL_PROCESSOR, block, sequence=50) == asked
    assert recovery.outstanding(bench.successor()) == asked
    assert bench.call(Code.START_VIRTUAL_PROCESSOR, block, sequence=50) == [], "it is under way"
    answer = [Reply(ROOT, 50, S.SUCCESS)]
    assert recovery.bind_again(bench.hypervisor, (3, 0), 300) == answer, "that is how the machine answers a dead one"
    assert bench.hypervisor.powered((3, 0), 300) == []
    assert recovery.outstanding(bench.successor()) == []
    assert bench.call(Code.START_VIRTUAL_PROCESSOR, block, sequence=50) == answer


def test_who_lives_is_the_machines_word(bench: Bench) -> None:
    state = bench.hypervisor
    assert recovery.bind_again(state, ROOT, 100) == []
    notices = recovery.bind_again(state, ROOT, 101)     # the one of the tables is dead
    assert [type(effect) for effect in notices] == [Deliver]
    assert (state.partitions[1].vps, state.callers[ROOT].results) == ({0: 101}, {})
    assert recovery.bind_again(state, (9, 0), 400) == [PowerOff(9, (400,))]
    execute(state, ROOT, 0, Code.FINALIZE_PARTITION, hv.PARTITION_ID.pack(2))
    assert recovery.bind_again(state, CHILD, 200) == [PowerOff(2, (200,))], "the power-off was not carried out"
    bench.successor()


def test_every_kind_of_change_is_made_by_something() -> None:
    kinds: set[str] = set()
    bench = Bench()
    bench.post(b"x", 1)
    bench.call(Code.SIGNAL_EVENT, hv.SIGNAL_EVENT.pack(2, 3, 0), CHILD, 2)
    bench.hypervisor.end_of_message(ROOT, 1, 1)
    bench.hypervisor.events_seen(ROOT, 2, 3)
    bench.hypervisor.answered(ROOT, 2)
    for code, block in (
        (Code.CONNECT_PORT, connect(2, 4, 1)), (Code.DISCONNECT_PORT, hv.DISCONNECT_PORT.pack(2, 4)),
        (Code.MAP_GPA_PAGES, hv.GRANT.pack(2, 1, GPA, PAGES, 1)),
        (Code.UNMAP_GPA_PAGES, hv.GRANT.pack(2, 1, GPA, PAGES, 1)),
        (Code.DELETE_PORT, hv.DELETE_PORT.pack(1, 4, 0)), (Code.CREATE_PARTITION, CREATE),
        (Code.INITIALIZE_PARTITION, hv.PARTITION_ID.pack(3)), (Code.START_VIRTUAL_PROCESSOR, hv.START_VP.pack(3, 0, 0)),
    ):
        bench.call(code, block)
        handed(bench.hypervisor)
    bench.hypervisor.powered((3, 0), 300)
    bench.call(Code.INSTALL_INTERCEPT, intercept.INSTALL.pack(2, 3, intercept.TYPE_IO_PORT_RANGE, 80 | 81 << 16))
    receive(bench.hypervisor, CHILD, 3, None, intercept.Trap(80, 1, 0).encode())
    bench.call(Code.SET_VP_REGISTERS, intercept.encode_registers(2, 0, {intercept.RAX: 1}))
    bench.call(Code.ASSERT_VIRTUAL_INTERRUPT, intercept.ASSERT_INTERRUPT.pack(2, 0, 0, 0x3E, 0))
    bench.hypervisor.end_of_interrupt(CHILD, 0x3E)
    bench.hypervisor.ended(ROOT)
    bench.hypervisor.end_of_message(CHILD, 0, 99)
    bench.hypervisor.bind(ROOT, 101)
    for code in (Code.FINALIZE_PARTITION, Code.DELETE_PARTITION):
        bench.call(code, hv.PARTITION_ID.pack(3))
    kinds |= {change[0] for change in bench.hypervisor.changes}
    kinds |= {change[0] for change in snapshot(bench.successor())}
    assert kinds == set(APPLY)


# -- with virtual processors --------------------------------------------------------------------------------


def play(wires: Any, dies: set[int]) -> tuple[list[Any], int]:
    """A little of everything, while the hypervisor dies at the moments ``dies``; what came of it, and how many
    moments there were."""
    moment = 0

    def now() -> bool:
        nonlocal moment
        moment += 1
        return moment in dies

    wires.dies = now
    root, seen, raised = wires.processor(), [], set()
    root.on_message = lambda sint, message: seen.append(message.payload)
    root.on_event = lambda sint, flag: raised.add(flag)
    calls = [root.call(code, block) for code, block in (
        (Code.CREATE_PARTITION, CREATE), (Code.INITIALIZE_PARTITION, hv.PARTITION_ID.pack(2)),
        *[(Code.CREATE_PORT, port(1, kind, 2, kind)) for kind in PortType],
        *[(Code.CONNECT_PORT, connect(2, kind, 1)) for kind in PortType],
        (Code.START_VIRTUAL_PROCESSOR, hv.START_VP.pack(2, 0, 0)),
    )]
    pairs: list[tuple[int, int]] = []
    ends = ("port", 1, 4), ("connection", 2, 4)
    calls[-2].then(lambda future: pairs.append((wires.handed[ends[0]], wires.handed[ends[1]])))
    answers = [wires.result(call) for call in calls]
    child = wires.processor(2)
    wires.hypervisor.add_memory(2, GPA, PAGES)
    wires.apply([])
    later = [child.post(1, 1, b"one"), child.post(1, 1, b"two"),
             child.call(Code.SIGNAL_EVENT, hv.SIGNAL_EVENT.pack(2, 3, 0)),
             root.call(Code.MAP_GPA_PAGES, hv.GRANT.pack(2, 1, GPA, PAGES, 3))]
    answers += [wires.result(future) for future in later]
    assert wires.loop.run_until(lambda: len(seen) >= 2 and raised, 5.0)
    wires.settle()
    assert pairs == [(wires.handed[ends[0]], wires.handed[ends[1]])], "it was handed out again after the answer"
    assert pairs[0][0] == pairs[0][1], "the ends of two pipes"
    tables = wires.hypervisor
    pending = [(p.messages, p.pending_flags) for p in tables.partitions[1].ports.values()]
    left = tables.grants, tables.next_message, sorted(wires.handed)
    return [answers, seen, raised, pending, wires.started, *left], moment


def test_a_death_at_every_single_moment_and_another_soon_after_it_is_noticed_by_nobody(
    wires: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, moments = play(wires, set())
    assert expected[1] == [b"one", b"two"]
    assert moments > 60
    for first in range(1, moments + 1):
        for second in (0, first + 1, first + 2, first + 5, first + 20):
            lab = type(wires)(monkeypatch)
            assert play(lab, {first, second})[0] == expected, (first, second)
            assert lab.deaths
            lab.close()


# -- the process --------------------------------------------------------------------------------------------


def test_a_process_without_a_file_cannot_recover(monkeypatch: pytest.MonkeyPatch) -> None:
    from vmbus_emu.hypervisor.process import HypervisorProcess

    monkeypatch.setattr("vmbus_emu.hypervisor.process.ZmqPort", lambda *arguments, **limits: None)
    node: Any = SimpleNamespace(loop=None, context=None, io_memory=())
    with pytest.raises(ValueError, match="no memory file"):
        HypervisorProcess(node).start({"socket": "hv", "recover": True})
