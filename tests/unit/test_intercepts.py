"""An access to a port: from the VP that traps to whoever owns the port's intercept, and back (protocol sheet 1.8)."""

from __future__ import annotations

import struct

import pytest

from vmbus_emu.hypervisor import recovery
from vmbus_emu.hypervisor.calls import execute, receive
from vmbus_emu.hypervisor.changes import APPLY
from vmbus_emu.hypervisor.core import Deliver, Effect, HandOut, Hypervisor, Interrupt, Reply
from vmbus_emu.hypervisor.tables import Grant, Vp
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol import intercept
from vmbus_emu.protocol.hypercall import Access, Code, HvStatus
from vmbus_emu.protocol.intercept import Trap

S = HvStatus
ROOT: Vp = (1, 0)
WORKER: Vp = (1, 2)
CHILD: Vp = (2, 0)
IN = Trap(0x1F7, 1, 0, rip=0x1000, rax=0xFFFF00)


class Bench:
    """A root with a worker as its VP 2, and a child whose ports 0x1F0 to 0x1F7 are the worker's."""

    def __init__(self) -> None:
        self.state = Hypervisor(recorded=True)
        self.state.bind(ROOT, 100)
        self.state.bind(WORKER, 102)
        self.call(Code.CREATE_PARTITION, hv.CREATE_PARTITION.pack(0, 0, 0, b"vm1"), ROOT)
        self.call(Code.INITIALIZE_PARTITION, hv.PARTITION_ID.pack(2), ROOT)
        self.state.bind(CHILD, 200)
        assert self.install(0x1F0, 0x1F7) is S.SUCCESS

    def call(self, code: Code, block: bytes, caller: Vp = WORKER) -> list[Effect]:
        return execute(self.state, caller, 1, hv.control_word(code), block)

    def status(self, code: Code, block: bytes, caller: Vp = WORKER) -> HvStatus:
        (reply,) = (e for e in self.call(code, block, caller) if isinstance(e, Reply) and e.vp == caller)
        return reply.status

    def install(self, first: int, last: int, partition: int = 2, access: int = 3, caller: Vp = WORKER) -> HvStatus:
        block = intercept.INSTALL.pack(partition, access, intercept.TYPE_IO_PORT_RANGE, first | last << 16)
        return self.status(Code.INSTALL_INTERCEPT, block, caller)

    def trap(self, access: Trap, sequence: int = 1, caller: Vp = CHILD) -> list[Effect]:
        return receive(self.state, caller, sequence, None, access.encode())

    def answer(self, registers: dict[int, int], caller: Vp = WORKER) -> list[Effect]:
        return self.call(Code.SET_VP_REGISTERS, intercept.encode_registers(2, 0, registers), caller)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_message_has_its_fields_where_the_sheet_says() -> None:
    raw = intercept.encode_message(3, Trap(0x1F0, 2 | 8 | 16, 0, 0x11, 0x22, 0x33, 0x44, 0x55))
    assert len(raw) == 128
    assert struct.unpack_from("<I", raw) == (3,)
    assert (raw[4] & 15, raw[5]) == (2, 0)
    assert struct.unpack_from("<QQ", raw, 24) == (0x11, 0x202)
    assert struct.unpack_from("<HB", raw, 40) == (0x1F0, 0x1A)
    assert struct.unpack_from("<Q", raw, 48) == (0x22,)
    assert struct.unpack_from("<QQQ", raw, 104) == (0x33, 0x44, 0x55)
    assert intercept.decode_message(raw) == (3, Trap(0x1F0, 0x1A, 0, 0x11, 0x22, 0x33, 0x44, 0x55))
    assert intercept.decode_message(raw + b"x") is None


def test_an_access_becomes_a_message_to_the_owner_and_its_registers_the_answer(bench: Bench) -> None:
    (sent,) = bench.trap(IN)
    assert isinstance(sent, Deliver)
    assert (sent.vp, sent.sint, sent.message.kind, sent.message.port) == (WORKER, 0, 0x80010000, 2)
    assert intercept.decode_message(sent.message.payload) == (0, IN)
    answer, done = bench.answer({intercept.RAX: 0xFFFF50, intercept.RIP: 0x1001})
    assert done == Reply(WORKER, 1, S.SUCCESS)
    assert answer == Reply(CHILD, 1, S.SUCCESS, intercept.REGISTERS.pack(0x1001, 0xFFFF50, 0, 0, 0))
    assert (bench.state.intercepts, bench.state.suspended) == (1, {})


def test_what_the_owner_does_not_set_stays_but_for_the_instruction_pointer(bench: Bench) -> None:
    bench.trap(Trap(0x1F0, 0x1A, 1, 5, 6, 7, 8, 9))
    answer, _ = bench.answer({})
    assert isinstance(answer, Reply)
    assert intercept.REGISTERS.unpack(answer.output) == (7, 6, 7, 8, 9)     # REP OUTSW has two bytes


def test_a_port_that_nobody_intercepts_reads_as_ones(bench: Bench) -> None:
    for size, rax in ((1, 0xABCDFF), (2, 0xABFFFF), (4, 0xFFFFFFFF)):
        (reply,) = bench.trap(Trap(0x80, size, 0, 0, 0xABCDEF), size)
        assert isinstance(reply, Reply)
        assert intercept.REGISTERS.unpack(reply.output)[:2] == (1, rax)
    (reply,) = bench.trap(Trap(0x80, 1, 1, 0, 0x12), 9)
    assert isinstance(reply, Reply)
    assert intercept.REGISTERS.unpack(reply.output)[1] == 0x12


@pytest.mark.parametrize("access", [Trap(0x1F0, 3, 0), Trap(0x1F0, 0, 0), Trap(0x1F0, 8, 0), Trap(0x1F0, 1, 2)])
def test_an_access_that_there_is_not_is_refused(bench: Bench, access: Trap) -> None:
    assert bench.trap(access) == [Reply(CHILD, 1, S.INVALID_PARAMETER)]


def test_one_processor_has_one_access_outstanding(bench: Bench) -> None:
    bench.trap(IN)
    assert bench.trap(IN, 2) == [Reply(CHILD, 2, S.INVALID_VP_STATE)]


def test_only_the_owner_may_answer_and_only_what_is_asked(bench: Bench) -> None:
    registers = intercept.encode_registers(2, 0, {intercept.RAX: 1})
    assert bench.status(Code.SET_VP_REGISTERS, registers) is S.INVALID_VP_STATE
    bench.trap(IN)
    assert bench.status(Code.SET_VP_REGISTERS, registers, ROOT) is S.ACCESS_DENIED
    assert bench.status(Code.SET_VP_REGISTERS, registers, CHILD) is S.ACCESS_DENIED
    for bad in (
        intercept.encode_registers(2, 0, {7: 1}), registers + b"x", registers[: intercept.SET_REGISTERS.size],
        intercept.SET_REGISTERS.pack(2, 0, 0) + intercept.REGISTER.pack(intercept.RAX, 1),  # and stays suspended
    ):
        assert bench.status(Code.SET_VP_REGISTERS, bad) is S.INVALID_PARAMETER
    other = intercept.encode_registers(1, 0, {})
    assert bench.status(Code.SET_VP_REGISTERS, other) is S.INVALID_PARTITION_ID
    assert bench.status(Code.SET_VP_REGISTERS, registers) is S.SUCCESS


def test_intercepts_are_the_parents_to_install_and_do_not_overlap(bench: Bench) -> None:
    assert bench.install(0x1F7, 0x1F8) is S.OBJECT_IN_USE
    assert bench.install(0x1F8, 0x1F8) is S.SUCCESS
    assert bench.install(0x300, 0x301, caller=CHILD) is S.ACCESS_DENIED
    assert bench.install(0x300, 0x301, partition=1) is S.INVALID_PARTITION_ID
    assert bench.install(0x300, 0x301, access=1) is S.INVALID_PARAMETER
    assert bench.install(0x301, 0x300) is S.INVALID_PARAMETER
    assert bench.install(0x301, 0x10000) is S.INVALID_PARAMETER
    for number in range(62):
        assert bench.install(0x400 + number, 0x400 + number) is S.SUCCESS
    assert bench.install(0x300, 0x300) is S.INSUFFICIENT_MEMORY


def test_the_death_of_the_owner_leaves_the_vp_standing_and_the_ports_free(bench: Bench) -> None:
    bench.trap(IN)
    bench.state.ended(WORKER)
    assert (bench.state.suspended, bench.state.partitions[2].intercepts) == ({}, [])
    assert bench.state.callers[CHILD].results == {1: None}, "it is answered by nobody"


def test_an_interrupt_is_raised_once_until_it_was_taken(bench: Bench) -> None:
    def raised(vector: int, destination: int = 0, caller: Vp = WORKER) -> list[Effect]:
        block = intercept.ASSERT_INTERRUPT.pack(2, 0, destination, vector, 0)
        return [e for e in bench.call(Code.ASSERT_VIRTUAL_INTERRUPT, block, caller) if not isinstance(e, Reply)]

    assert raised(0x3E) == [Interrupt(CHILD, 0x3E)]
    assert raised(0x3E) == []
    assert raised(0x3F) == [Interrupt(CHILD, 0x3F)]
    bench.state.end_of_interrupt(CHILD, 0x3E)
    bench.state.end_of_interrupt(CHILD, 0x55)
    assert raised(0x3E) == [Interrupt(CHILD, 0x3E)]
    assert (raised(0x0F), raised(0x100), raised(0x40, 1), raised(0x40, 0, CHILD)) == ([], [], [], [])


def test_memory_can_be_granted_to_one_vp_of_a_partition(bench: Bench) -> None:
    bench.state.add_memory(2, 1 << 28, 16)
    word = Access.READ | Access.WRITE | 2 << hv.GRANT_VP_SHIFT
    grant = Grant(2, 1, 1 << 28, 16, Access.READ | Access.WRITE, 2)
    assert bench.call(Code.MAP_GPA_PAGES, hv.GRANT.pack(2, 1, 1 << 28, 16, word))[0] == HandOut(grant)
    assert bench.status(Code.MAP_GPA_PAGES, hv.GRANT.pack(2, 1, 1 << 28, 16, 3 | 9 << 16)) is S.INVALID_VP_INDEX
    bench.state.ended(ROOT)
    assert bench.state.grants == {grant}, "it is not the provider's"
    bench.state.ended(WORKER)
    assert bench.state.grants == set()


def test_a_later_hypervisor_delivers_again_what_was_not_answered(bench: Bench) -> None:
    (sent,) = bench.trap(IN)
    bench.call(Code.ASSERT_VIRTUAL_INTERRUPT, intercept.ASSERT_INTERRUPT.pack(2, 0, 0, 0x3E, 0))
    successor = Hypervisor(recorded=True)
    for change in bench.state.changes:
        APPLY[change[0]](successor, *change[1:])
    assert set(recovery.outstanding(successor)) == {sent, Interrupt(CHILD, 0x3E)}
    assert receive(successor, CHILD, 1, None, IN.encode()) == [], "it waits already"
    bench.state = successor
    answer, _ = bench.answer({intercept.RAX: 1})
    assert receive(successor, CHILD, 1, None, IN.encode()) == [answer]
    assert recovery.outstanding(successor) == [Interrupt(CHILD, 0x3E)]
