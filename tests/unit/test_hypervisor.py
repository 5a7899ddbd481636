"""The hypervisor's tables: partitions, privileges, ports, messages, events, deaths. No process, no socket.

``Bench`` plays the machine and lets any VP call; memory grants are in test_hypervisor_memory.py.

Long, because it follows the hypercalls of the sheet, one test after another, over one bench.
"""

from __future__ import annotations

import itertools
from struct import Struct

import pytest

from vmbus_emu.hypervisor.calls import CALLS, execute
from vmbus_emu.hypervisor.core import Deliver, Effect, HandDoorbell, Hypervisor, PowerOff, PowerOn, Raise, Reply
from vmbus_emu.hypervisor.lifecycle import MAX_PARTITIONS
from vmbus_emu.hypervisor.synic import MAX_PORTS
from vmbus_emu.hypervisor.tables import Vp
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Code, HvStatus, PortType, Privilege, Property, control_word

ROOT: Vp = (hv.PARTITION_ROOT, 0)
S = HvStatus


class Bench:
    def __init__(self) -> None:
        self.hypervisor = Hypervisor()
        self.hypervisor.bind(ROOT, 100)
        self.sequence = itertools.count(1)
        self.effects: list[Effect] = []

    def call(self, code: int, *fields: object, layout: Struct | None = None, by: Vp = ROOT) -> tuple[HvStatus, bytes]:
        """The call's answer; what else came of it is in ``effects``."""
        layout = layout or CALLS[code].layout
        return self.raw(control_word(code), layout.pack(*fields), by)

    def raw(self, control: int, block: bytes, by: Vp = ROOT) -> tuple[HvStatus, bytes]:
        sequence = next(self.sequence)
        effects = execute(self.hypervisor, by, sequence, control, block)
        replies = [effect for effect in effects if isinstance(effect, Reply)]
        self.effects = [effect for effect in effects if not isinstance(effect, Reply)]
        assert [(reply.vp, reply.sequence) for reply in replies] == [(by, sequence)]
        return replies[0].status, replies[0].output

    def status(self, code: int, *fields: object, by: Vp = ROOT) -> HvStatus:
        return self.call(code, *fields, by=by)[0]

    def create(self, name: bytes = b"vm1") -> int:
        status, output = self.call(Code.CREATE_PARTITION, 0, 0, 0, name)
        assert status is S.SUCCESS
        return int.from_bytes(output, "little")

    def child(self, pid: int = 200) -> int:
        """A partition that runs."""
        number = self.create()
        assert self.status(Code.INITIALIZE_PARTITION, number) is S.SUCCESS
        assert self.hypervisor.bind((number, 0), pid)
        return number

    def port(self, owner: int, number: int, peer: int, kind: int = PortType.MESSAGE, sint: int = 2, vp: int = 0,
             base: int = 0, flags: int = 0) -> HvStatus:
        return self.status(Code.CREATE_PORT, owner, number, 0, 0, 0, peer, kind, 0, sint, vp, base, flags, 0, 0)

    def connect(self, partition: int, number: int, owner: int, port: int) -> HvStatus:
        return self.status(Code.CONNECT_PORT, partition, number, 0, owner, port, b"", 0)

    def joined(self, kind: int = PortType.MESSAGE, flags: int = 0) -> int:
        """A child with connection 4 to port 9 of the root."""
        child = self.child()
        assert self.port(1, 9, child, kind, flags=flags) is S.SUCCESS
        assert self.connect(child, 4, 1, 9) is S.SUCCESS
        return child

    def post(
        self, by: Vp, connection: int = 4, kind: int = 1, payload: bytes = b"x", size: int | None = None
    ) -> HvStatus:
        head = hv.POST_MESSAGE.pack(connection, 0, kind, len(payload) if size is None else size)
        return self.raw(control_word(Code.POST_MESSAGE), head + payload, by)[0]


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- the call itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", [0, 0x5E, 0xFFFF, 0x40 | 1 << 16, 0x40 | 1 << 32, 1 << 63, -1])
def test_an_unknown_call_code_or_a_reserved_bit_is_refused(bench: Bench, control: int) -> None:
    assert bench.raw(control, bytes(100)) == (S.INVALID_HYPERCALL_CODE, b"")


@pytest.mark.parametrize("code", CALLS, ids=lambda code: Code(code).name)
def test_a_block_that_is_too_short_is_refused(bench: Bench, code: int) -> None:
    if size := CALLS[code].layout.size:
        assert bench.raw(control_word(code), bytes(size - 1)) == (S.INVALID_HYPERCALL_INPUT, b"")
        assert bench.hypervisor.stats().refused == 1


@pytest.mark.parametrize("code", CALLS, ids=lambda code: Code(code).name)
def test_a_child_may_only_post_and_signal(bench: Bench, code: int) -> None:
    child = bench.child()
    status, _ = bench.raw(control_word(code), bytes(CALLS[code].layout.size), (child, 0))
    allowed = code in (Code.POST_MESSAGE, Code.SIGNAL_EVENT)
    assert (status is not S.ACCESS_DENIED) == allowed
    assert (CALLS[code].privilege & hv.CHILD_PRIVILEGES == CALLS[code].privilege) == allowed


# -- partitions -------------------------------------------------------------------------------------------


def test_ids_are_never_used_again(bench: Bench) -> None:
    first = bench.create()
    assert bench.status(Code.DELETE_PARTITION, first) is S.SUCCESS
    assert bench.create() == first + 1


def test_a_partition_goes_through_its_life_in_order_only(bench: Bench) -> None:
    number = bench.create()
    assert bench.status(Code.FINALIZE_PARTITION, number) is S.INVALID_PARTITION_STATE
    assert bench.status(Code.START_VIRTUAL_PROCESSOR, number, 0, 0) is S.INVALID_PARTITION_STATE
    assert bench.status(Code.INITIALIZE_PARTITION, number) is S.SUCCESS
    assert bench.status(Code.INITIALIZE_PARTITION, number) is S.INVALID_PARTITION_STATE
    assert bench.status(Code.DELETE_PARTITION, number) is S.INVALID_PARTITION_STATE
    assert bench.status(Code.FINALIZE_PARTITION, number) is S.SUCCESS
    assert bench.status(Code.FINALIZE_PARTITION, number) is S.INVALID_PARTITION_STATE
    assert bench.status(Code.DELETE_PARTITION, number) is S.SUCCESS
    assert bench.status(Code.DELETE_PARTITION, number) is S.INVALID_PARTITION_ID


@pytest.mark.parametrize("number", [0, 1, 77, hv.PARTITION_SELF])
@pytest.mark.parametrize("code", [Code.INITIALIZE_PARTITION, Code.FINALIZE_PARTITION, Code.DELETE_PARTITION])
def test_nobody_ends_itself_or_what_is_not_there(bench: Bench, code: Code, number: int) -> None:
    assert bench.status(code, number) is S.INVALID_PARTITION_ID


def test_a_name_must_be_ascii(bench: Bench) -> None:
    assert bench.status(Code.CREATE_PARTITION, 0, 0, 0, "vm\xe4".encode()) is S.INVALID_PARAMETER


def test_the_number_of_partitions_is_bounded(bench: Bench) -> None:
    for _ in range(MAX_PARTITIONS - 1):
        bench.create()
    assert bench.status(Code.CREATE_PARTITION, 0, 0, 0, b"one more") is S.INSUFFICIENT_MEMORY


def test_starting_a_processor_is_answered_when_the_machine_has_powered_it_on(bench: Bench) -> None:
    number = bench.create(b"vm7")
    bench.status(Code.INITIALIZE_PARTITION, number)
    block = hv.START_VP.pack(number, 0, 0)
    assert execute(bench.hypervisor, ROOT, 5, Code.START_VIRTUAL_PROCESSOR, block) == [PowerOn(number, 0, "vm7")]
    assert bench.status(Code.START_VIRTUAL_PROCESSOR, number, 0, 0) is S.INVALID_VP_STATE
    assert bench.status(Code.FINALIZE_PARTITION, number) is S.INVALID_PARTITION_STATE
    assert bench.hypervisor.powered((number, 0), 300) == [Reply(ROOT, 5, S.SUCCESS)]
    assert bench.hypervisor.powered((number, 0), 301) == [], "it runs already, and nobody asked"
    assert bench.call(Code.GET_PARTITION_PROPERTY, number, Property.PROCESS_ID)[1] == (300).to_bytes(8, "little")
    assert bench.status(Code.START_VIRTUAL_PROCESSOR, number, 0, 0) is S.INVALID_VP_STATE
    assert bench.status(Code.START_VIRTUAL_PROCESSOR, number, 1, 0) is S.INVALID_VP_INDEX


def test_a_machine_that_cannot_power_on_lets_the_start_fail_and_be_tried_again(bench: Bench) -> None:
    number = bench.create()
    bench.status(Code.INITIALIZE_PARTITION, number)
    block = hv.START_VP.pack(number, 0, 0)
    execute(bench.hypervisor, ROOT, 5, Code.START_VIRTUAL_PROCESSOR, block)
    assert bench.hypervisor.powered((number, 0), None) == [Reply(ROOT, 5, S.INSUFFICIENT_MEMORY)]
    assert execute(bench.hypervisor, ROOT, 6, Code.START_VIRTUAL_PROCESSOR, block) == [PowerOn(number, 0, "vm1")]


def test_finalizing_ends_the_processes_and_takes_every_way_to_the_partition(bench: Bench) -> None:
    child = bench.joined()
    assert bench.port(child, 1, 1) is S.SUCCESS
    assert bench.connect(1, 5, child, 1) is S.SUCCESS
    assert bench.status(Code.FINALIZE_PARTITION, child) is S.SUCCESS
    assert bench.effects == [PowerOff(child, (200,))]
    assert bench.post(ROOT, 5) is S.INVALID_CONNECTION_ID
    stats = bench.hypervisor.stats()
    assert (stats.ports, stats.connections) == (0, 0)
    assert bench.port(child, 1, 1) is S.INVALID_PARTITION_STATE
    assert bench.port(1, 9, child) is S.SUCCESS
    assert bench.connect(child, 4, 1, 9) is S.INVALID_PARTITION_STATE


@pytest.mark.parametrize(("what", "value"), [(Property.PRIVILEGES, int(hv.CHILD_PRIVILEGES)), (Property.STATE, 1)])
def test_properties_of_a_child(bench: Bench, what: Property, value: int) -> None:
    child = bench.child()
    assert bench.call(Code.GET_PARTITION_PROPERTY, child, what) == (S.SUCCESS, value.to_bytes(8, "little"))
    assert bench.status(Code.GET_PARTITION_PROPERTY, child, 0xBAD) is S.INVALID_PARAMETER
    assert bench.status(Code.GET_PARTITION_PROPERTY, 99, what) is S.INVALID_PARTITION_ID


def test_the_children_of_a_partition_are_found_one_after_the_other(bench: Bench) -> None:
    def following(previous: int, of: int = hv.PARTITION_SELF, by: Vp = ROOT) -> tuple[HvStatus, int]:
        status, output = bench.call(Code.GET_NEXT_CHILD_PARTITION, of, previous, by=by)
        return status, int.from_bytes(output, "little")

    assert following(hv.PARTITION_INVALID) == (S.SUCCESS, hv.PARTITION_INVALID)
    first, second, third = bench.create(), bench.child(201), bench.create()
    seen = [first]
    while (number := following(seen[-1], hv.PARTITION_ROOT)[1]) != hv.PARTITION_INVALID:
        seen.append(number)
    assert seen == [first, second, third]
    assert bench.status(Code.DELETE_PARTITION, first) is S.SUCCESS
    assert following(hv.PARTITION_INVALID) == following(first) == (S.SUCCESS, second)
    assert following(hv.PARTITION_INVALID, second) == (S.SUCCESS, hv.PARTITION_INVALID), "it has none"
    assert following(0, 99)[0] is S.INVALID_PARTITION_ID
    assert following(0, by=(second, 0))[0] is S.ACCESS_DENIED


def test_whoever_asks_for_a_start_hears_of_it_when_the_one_who_asked_first_is_dead(bench: Bench) -> None:
    management: Vp = (hv.PARTITION_ROOT, 1)
    number = bench.create()
    assert bench.status(Code.INITIALIZE_PARTITION, number) is S.SUCCESS
    assert bench.hypervisor.bind(management, 101)
    block = hv.START_VP.pack(number, 0, 0)

    def starting() -> bytes:
        return bench.call(Code.GET_PARTITION_PROPERTY, number, Property.STARTING)[1]

    assert not any(starting())
    assert execute(bench.hypervisor, management, 7, Code.START_VIRTUAL_PROCESSOR, block) == [PowerOn(number, 0, "vm1")]
    assert any(starting())
    assert bench.status(Code.START_VIRTUAL_PROCESSOR, number, 0, 0) is S.INVALID_VP_STATE, "somebody waits for it"
    bench.hypervisor.died(101)
    assert bench.hypervisor.bind(management, 102)
    assert execute(bench.hypervisor, management, 1, Code.START_VIRTUAL_PROCESSOR, block) == [], "the machine was asked"
    assert bench.status(Code.START_VIRTUAL_PROCESSOR, number, 0, 0) is S.INVALID_VP_STATE
    assert bench.status(Code.DELETE_PARTITION, number) is S.INVALID_PARTITION_STATE
    assert bench.hypervisor.powered((number, 0), 300) == [Reply(management, 1, S.SUCCESS)]
    assert not any(starting())


def test_a_partition_with_more_privileges_still_reaches_only_itself_and_its_children(bench: Bench) -> None:
    first, second = bench.child(200), bench.child(201)
    bench.hypervisor.partitions[first].privileges = hv.ROOT_PRIVILEGES
    by = (first, 0)
    assert bench.call(Code.GET_PARTITION_ID, by=by) == (S.SUCCESS, first.to_bytes(8, "little"))
    for code in (Code.FINALIZE_PARTITION, Code.DELETE_PARTITION):
        assert bench.status(code, second, by=by) is S.INVALID_PARTITION_ID
        assert bench.status(code, hv.PARTITION_ROOT, by=by) is S.INVALID_PARTITION_ID
    assert bench.status(Code.GET_PARTITION_PROPERTY, second, Property.STATE, by=by) is S.INVALID_PARTITION_ID
    assert bench.status(Code.CREATE_PORT, second, 1, 0, 0, 0, first, 1, 0, 2, 0, 0, 0, 0, 0, by=by) is (
        S.INVALID_PARTITION_ID)
    assert bench.status(Code.CONNECT_PORT, first, 1, 0, second, 1, b"", 0, by=by) is S.INVALID_PARTITION_ID


# -- ports and messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "status"), [
    ({"kind": 0}, S.INVALID_PARAMETER), ({"kind": 3}, S.INVALID_PARAMETER), ({"sint": 16}, S.INVALID_PARAMETER),
    ({"number": hv.MAX_ID + 1}, S.INVALID_PORT_ID), ({"owner": 99}, S.INVALID_PARTITION_ID),
    ({"kind": PortType.EVENT, "flags": 0}, S.INVALID_PARAMETER),
    ({"kind": PortType.EVENT, "base": 2047, "flags": 2}, S.INVALID_PARAMETER),
    ({"kind": PortType.EVENT, "base": 2047, "flags": 1}, S.SUCCESS),
    ({"number": hv.MAX_ID}, S.SUCCESS), ({"owner": hv.PARTITION_SELF}, S.SUCCESS),
    ({"kind": PortType.DOORBELL}, S.SUCCESS), ({"kind": PortType.DOORBELL, "vp": 1}, S.INVALID_VP_INDEX),
    ({"kind": 5}, S.INVALID_PARAMETER),
])
def test_what_a_port_may_be(bench: Bench, changes: dict[str, int], status: HvStatus) -> None:
    settings = {"owner": 1, "number": 9, "peer": 1, **changes}
    assert bench.port(**settings) is status


def test_port_and_connection_ids_are_used_once_at_a_time(bench: Bench) -> None:
    child = bench.joined()
    assert bench.port(1, 9, child) is S.INVALID_PORT_ID
    assert bench.connect(child, 4, 1, 9) is S.INVALID_CONNECTION_ID
    assert bench.connect(child, hv.MAX_ID + 1, 1, 9) is S.INVALID_CONNECTION_ID
    assert bench.status(Code.DISCONNECT_PORT, child, 4) is S.SUCCESS
    assert bench.status(Code.DISCONNECT_PORT, child, 4) is S.INVALID_CONNECTION_ID
    assert bench.connect(child, 4, 1, 9) is S.SUCCESS


def test_only_the_partition_a_port_is_for_may_be_connected_to_it(bench: Bench) -> None:
    child, other = bench.joined(), bench.child(201)
    assert bench.connect(other, 4, 1, 9) is S.INVALID_PORT_ID
    assert bench.connect(child, 5, 1, 8) is S.INVALID_PORT_ID
    assert bench.connect(99, 5, 1, 9) is S.INVALID_PARTITION_ID


def test_the_number_of_ports_of_a_partition_is_bounded(bench: Bench) -> None:
    for number in range(MAX_PORTS):
        assert bench.port(1, number, 1) is S.SUCCESS
    assert bench.port(1, MAX_PORTS, 1) is S.INSUFFICIENT_MEMORY


def test_a_message_arrives_at_the_ports_owner_with_the_ports_number(bench: Bench) -> None:
    child = bench.joined()
    assert bench.post((child, 0), payload=b"hello") is S.SUCCESS
    assert bench.effects == [Deliver(ROOT, 2, hv.SynicMessage(1, 9, b"hello"), 1)]


@pytest.mark.parametrize(("kind", "payload", "size", "status"), [
    (0, b"x", 1, S.INVALID_PARAMETER), (0x80000001, b"x", 1, S.INVALID_PARAMETER),
    (1, bytes(241), 241, S.INVALID_PARAMETER),
    (1, b"x", 2, S.INVALID_PARAMETER), (1, b"x", 0xFFFFFFFF, S.INVALID_PARAMETER), (1, bytes(240), 240, S.SUCCESS),
    (1, b"", 0, S.SUCCESS), (1, b"longer", 1, S.SUCCESS),
])
def test_what_a_message_may_be(bench: Bench, kind: int, payload: bytes, size: int, status: HvStatus) -> None:
    child = bench.joined()
    assert bench.post((child, 0), kind=kind, payload=payload, size=size) is status


def test_a_port_has_sixteen_buffers_and_gets_them_back_by_end_of_message(bench: Bench) -> None:
    child = bench.joined()
    for _ in range(hv.MESSAGE_BUFFERS_PER_PORT):
        assert bench.post((child, 0)) is S.SUCCESS
    assert bench.post((child, 0)) is S.INSUFFICIENT_BUFFERS
    bench.hypervisor.end_of_message((child, 0), 9, 16)      # not its port
    bench.hypervisor.end_of_message((1, 1), 9, 16)          # not this VP's
    bench.hypervisor.end_of_message(ROOT, 9, -5)
    assert bench.post((child, 0)) is S.INSUFFICIENT_BUFFERS
    for _ in range(2):                                      # the same once more frees nothing
        bench.hypervisor.end_of_message(ROOT, 9, 1)
    assert [bench.post((child, 0)) for _ in range(2)] == [S.SUCCESS, S.INSUFFICIENT_BUFFERS]
    bench.hypervisor.end_of_message(ROOT, 9, 1 << 60)
    assert [bench.post((child, 0)) for _ in range(17)] == [S.SUCCESS] * 16 + [S.INSUFFICIENT_BUFFERS]


def test_only_the_low_24_bits_name_a_connection_and_it_has_one_kind(bench: Bench) -> None:
    child = bench.joined()
    assert bench.post((child, 0), connection=4 | 0xFF << 24) is S.SUCCESS
    assert bench.post((child, 0), connection=5) is S.INVALID_CONNECTION_ID
    assert bench.status(Code.SIGNAL_EVENT, 4, 0, 0, by=(child, 0)) is S.INVALID_CONNECTION_ID


def test_a_deleted_port_takes_its_connections_along(bench: Bench) -> None:
    child = bench.joined()
    assert bench.status(Code.DELETE_PORT, 1, 9, 0) is S.SUCCESS
    assert bench.status(Code.DELETE_PORT, 1, 9, 0) is S.INVALID_PORT_ID
    assert bench.post((child, 0)) is S.INVALID_CONNECTION_ID
    assert bench.status(Code.DISCONNECT_PORT, child, 4) is S.INVALID_CONNECTION_ID


def test_an_event_flag_is_raised_once_until_it_was_seen(bench: Bench) -> None:
    child = bench.child()
    assert bench.port(1, 9, child, PortType.EVENT, sint=5, base=100, flags=3) is S.SUCCESS
    assert bench.connect(child, 4, 1, 9) is S.SUCCESS
    by = (child, 0)
    assert bench.status(Code.SIGNAL_EVENT, 4, 2, 0, by=by) is S.SUCCESS
    assert bench.effects == [Raise(ROOT, 5, 102)]
    assert bench.status(Code.SIGNAL_EVENT, 4, 2, 0, by=by) is S.SUCCESS
    assert bench.effects == []
    assert bench.status(Code.SIGNAL_EVENT, 4, 3, 0, by=by) is S.INVALID_PARAMETER
    assert bench.post(by) is S.INVALID_CONNECTION_ID
    bench.hypervisor.events_seen(ROOT, 4, 102)      # another SINT
    bench.hypervisor.events_seen((1, 1), 5, 102)    # another VP
    assert (bench.status(Code.SIGNAL_EVENT, 4, 2, 0, by=by), bench.effects) == (S.SUCCESS, [])
    bench.hypervisor.events_seen(ROOT, 5, 102)
    assert bench.status(Code.SIGNAL_EVENT, 4, 2, 0, by=by) is S.SUCCESS
    assert bench.effects == [Raise(ROOT, 5, 102)]


# -- doorbells ----------------------------------------------------------------------------------------------


def test_connecting_to_a_doorbell_hands_both_ends_a_descriptor_before_the_reply(bench: Bench) -> None:
    child = bench.child()
    assert bench.port(1, 9, child, PortType.DOORBELL) is S.SUCCESS
    assert bench.effects == []
    block = hv.CONNECT_PORT.pack(child, 4, 0, 1, 9, b"", 0)
    assert execute(bench.hypervisor, ROOT, 7, Code.CONNECT_PORT, block) == [
        HandDoorbell(1, 9, child, 4), Reply(ROOT, 7, S.SUCCESS),
    ]


def test_a_doorbell_takes_one_connection_at_a_time(bench: Bench) -> None:
    child = bench.joined(PortType.DOORBELL)
    assert (bench.connect(child, 5, 1, 9), bench.effects) == (S.OBJECT_IN_USE, [])
    assert bench.connect(child, 4, 1, 9) is S.INVALID_CONNECTION_ID
    assert bench.hypervisor.stats().connections == 1
    assert bench.status(Code.DISCONNECT_PORT, child, 4) is S.SUCCESS
    assert (bench.connect(child, 5, 1, 9), bench.effects) == (S.SUCCESS, [HandDoorbell(1, 9, child, 5)])


def test_ports_of_other_kinds_take_many_connections_and_hand_out_nothing(bench: Bench) -> None:
    for number, kind in enumerate((PortType.MESSAGE, PortType.EVENT)):
        child = bench.child(300 + number)
        assert bench.port(1, number, child, kind, flags=1) is S.SUCCESS
        assert [(bench.connect(child, n, 1, number), bench.effects) for n in (4, 5)] == [(S.SUCCESS, [])] * 2


def test_a_doorbell_is_not_rung_by_hypercalls(bench: Bench) -> None:
    child = bench.joined(PortType.DOORBELL, flags=1)
    assert bench.status(Code.SIGNAL_EVENT, 4, 0, 0, by=(child, 0)) is S.INVALID_CONNECTION_ID
    assert bench.post((child, 0)) is S.INVALID_CONNECTION_ID
    assert bench.effects == []


def test_a_deleted_doorbell_takes_its_connection_along_and_may_be_made_again(bench: Bench) -> None:
    child = bench.joined(PortType.DOORBELL)
    assert bench.status(Code.DELETE_PORT, 1, 9, 0) is S.SUCCESS
    assert bench.status(Code.DISCONNECT_PORT, child, 4) is S.INVALID_CONNECTION_ID
    assert bench.port(1, 9, child, PortType.DOORBELL) is S.SUCCESS
    assert (bench.connect(child, 4, 1, 9), bench.effects) == (S.SUCCESS, [HandDoorbell(1, 9, child, 4)])


def test_a_doorbell_goes_with_the_process_that_it_rings(bench: Bench) -> None:
    child = bench.child(200)
    assert bench.port(child, 9, 1, PortType.DOORBELL) is S.SUCCESS
    assert bench.connect(1, 4, child, 9) is S.SUCCESS
    bench.hypervisor.died(200)
    assert (bench.hypervisor.stats().ports, bench.hypervisor.stats().connections) == (0, 0)


# -- deaths -------------------------------------------------------------------------------------------------


def test_a_dead_processes_ports_go_so_that_nobody_posts_into_the_void(bench: Bench) -> None:
    child = bench.child()
    assert bench.port(child, 1, 1) is S.SUCCESS
    assert bench.connect(1, 5, child, 1) is S.SUCCESS
    assert bench.hypervisor.died(200) == []
    assert bench.post(ROOT, 5) is S.INVALID_CONNECTION_ID
    assert bench.hypervisor.died(200) == []
    assert bench.hypervisor.bind((child, 0), 201), "its place is free again"


def test_the_parents_death_is_told_to_every_running_child_and_each_time_with_another_number(bench: Bench) -> None:
    children = [bench.child(200), bench.child(201)]
    bench.create()      # has no processor: nobody to tell
    bench.hypervisor.bind((1, 1), 101)
    assert bench.hypervisor.died(101) == [], "management is not the parent"
    for incarnation in (2, 3):
        message = hv.SynicMessage(hv.MESSAGE_PARENT_RESET, 0, incarnation.to_bytes(4, "little"))
        number = bench.hypervisor.next_message
        assert bench.hypervisor.died(100) == [
            Deliver((child, 0), hv.SINT_VMBUS, message, number + place) for place, child in enumerate(children)]
        assert bench.hypervisor.bind(ROOT, 100)


def test_a_processor_is_bound_once_and_only_in_a_partition(bench: Bench) -> None:
    assert not bench.hypervisor.bind(ROOT, 5)
    assert not bench.hypervisor.bind((77, 0), 5)


def test_the_root_has_every_privilege_that_a_call_asks_for() -> None:
    needed = Privilege(0)
    for call in CALLS.values():
        needed |= call.privilege
    assert needed & ~hv.ROOT_PRIVILEGES == 0
