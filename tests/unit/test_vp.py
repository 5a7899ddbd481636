"""A process's side of the hypervisor: answers find their calls, messages keep their order through full ports."""

from __future__ import annotations

from typing import Any

import pytest

from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Code, HvStatus, PortType, SynicMessage
from vmbus_emu.vp import VirtualProcessor


def joined(wires: Any, kind: int = PortType.MESSAGE) -> tuple[VirtualProcessor, int]:
    """The root's VP, and a child with connection 4 to the root's port 9."""
    root = wires.processor()
    child = wires.child()
    block = hv.CREATE_PORT.pack(1, 9, 0, 0, 0, child, kind, 0, 2, 0, 0, 8 if kind == PortType.EVENT else 0, 0, 0)
    assert wires.result(root.call(Code.CREATE_PORT, block))[0] is HvStatus.SUCCESS
    block = hv.CONNECT_PORT.pack(child, 4, 0, 1, 9, b"", 0)
    assert wires.result(root.call(Code.CONNECT_PORT, block))[0] is HvStatus.SUCCESS
    return root, child


def test_answers_find_their_calls(wires: Any) -> None:
    root = wires.processor()
    wrong = root.call(Code.GET_PARTITION_PROPERTY, hv.GET_PROPERTY.pack(99, 0))
    right = root.call(Code.GET_PARTITION_ID)
    assert wires.result(right) == (HvStatus.SUCCESS, (1).to_bytes(8, "little"))
    assert wires.result(wrong) == (HvStatus.INVALID_PARTITION_ID, b"")
    assert root.hypercalls == 2


def test_messages_of_a_connection_arrive_in_order_through_a_port_that_is_often_full(wires: Any) -> None:
    root, number = joined(wires)
    child = wires.processor(number)
    seen: list[bytes] = []
    root.on_message = lambda sint, message: seen.append(message.payload)
    posted = [child.post(4, 1, index.to_bytes(2, "little")) for index in range(200)]
    assert wires.loop.run_until(lambda: len(seen) == 200, 10.0)
    assert seen == [index.to_bytes(2, "little") for index in range(200)]
    wires.settle()
    assert {future.result() for future in posted} == {HvStatus.SUCCESS}
    assert root.messages == 200
    assert wires.hypervisor.partitions[1].ports[9].in_use == 0


def test_a_receiver_that_takes_nothing_holds_up_its_sender_and_does_not_lose_a_message(wires: Any) -> None:
    root = wires.processor()
    number = wires.child()
    for call, block in (
        (Code.CREATE_PORT, hv.CREATE_PORT.pack(number, 1, 0, 0, 0, 1, 1, 0, 2, 0, 0, 0, 0, 0)),
        (Code.CONNECT_PORT, hv.CONNECT_PORT.pack(1, 5, 0, number, 1, b"", 0)),
    ):
        assert wires.result(root.call(call, block))[0] is HvStatus.SUCCESS
    posted = [root.post(5, 1, bytes([index])) for index in range(40)]
    assert wires.loop.run_until(lambda: posted[15].done, 5.0)
    wires.settle()
    assert not posted[16].done
    child = wires.processor(number)     # it comes at last
    seen: list[SynicMessage] = []
    child.on_message = lambda sint, message: seen.append(message)
    assert wires.loop.run_until(lambda: len(seen) == 40, 10.0)
    assert [message.payload[0] for message in seen] == list(range(40))


def test_what_waits_for_a_partition_that_died_is_given_up(wires: Any) -> None:
    root = wires.processor()
    number = wires.child()
    wires.result(root.call(Code.CREATE_PORT, hv.CREATE_PORT.pack(number, 1, 0, 0, 0, 1, 1, 0, 2, 0, 0, 0, 0, 0)))
    wires.result(root.call(Code.CONNECT_PORT, hv.CONNECT_PORT.pack(1, 5, 0, number, 1, b"", 0)))
    posted = [root.post(5, 1, b"x") for _ in range(30)]
    assert wires.loop.run_until(lambda: posted[15].done, 5.0)
    root.disconnect(5)
    root.disconnect(5)
    assert {future.result() for future in posted[16:]} == {HvStatus.INVALID_CONNECTION_ID}
    hypercalls = root.hypercalls
    assert not wires.loop.run_until(lambda: root.hypercalls > hypercalls, 0.02), "nothing is tried again"


def test_a_message_nobody_can_receive_does_not_hold_up_the_next(wires: Any) -> None:
    _, number = joined(wires)
    child = wires.processor(number)
    outcomes = [child.post(77, 1, b"x"), child.post(77, 1, b"y"), child.post(4, 1, b"z")]
    assert [wires.result(outcome) for outcome in outcomes] == [
        HvStatus.INVALID_CONNECTION_ID, HvStatus.INVALID_CONNECTION_ID, HvStatus.SUCCESS]


def test_a_long_queue_to_a_hypervisor_that_is_gone_is_refused_without_recursion(wires: Any) -> None:
    root = wires.processor()
    number = wires.child()
    wires.result(root.call(Code.CREATE_PORT, hv.CREATE_PORT.pack(number, 1, 0, 0, 0, 1, 1, 0, 2, 0, 0, 0, 0, 0)))
    wires.result(root.call(Code.CONNECT_PORT, hv.CONNECT_PORT.pack(1, 5, 0, number, 1, b"", 0)))
    posted = [root.post(5, 1, b"x") for _ in range(2000)]
    assert wires.loop.run_until(lambda: posted[15].done, 5.0)
    wires.cut = True
    assert wires.loop.run_until(lambda: posted[-1].done, 10.0)
    assert posted[-1].result() is HvStatus.OPERATION_DENIED
    assert wires.result(root.call(Code.GET_PARTITION_ID)) == (HvStatus.OPERATION_DENIED, b"")


def test_an_event_is_seen_and_may_be_raised_again(wires: Any) -> None:
    root, number = joined(wires, PortType.EVENT)
    child = wires.processor(number)
    seen: list[tuple[int, int]] = []
    root.on_event = lambda sint, flag: seen.append((sint, flag))
    for _ in range(2):
        assert wires.result(child.call(Code.SIGNAL_EVENT, hv.SIGNAL_EVENT.pack(4, 3, 0)))[0] is HvStatus.SUCCESS
        wires.settle()
    assert seen == [(2, 3), (2, 3)]


@pytest.mark.parametrize("recoverable", [False, True])
def test_a_hypervisor_that_is_gone_for_good_refuses_all(wires: Any, recoverable: bool) -> None:
    root = wires.processor()
    root.recoverable = recoverable
    sent = [root.call(Code.GET_PARTITION_ID), root.post(99, 1, b"x")]
    wires.cut = True
    waiting = root.post(99, 1, b"y")
    root.abandon()
    later = root.call(Code.GET_PARTITION_ID)
    refused = (HvStatus.OPERATION_DENIED, b"")
    assert [wires.result(call) for call in (sent[0], later)] == [refused] * 2
    assert [wires.result(posted) for posted in (sent[1], waiting)] == [HvStatus.OPERATION_DENIED] * 2
    wires.cut = False
    assert wires.result(root.call(Code.GET_PARTITION_ID)) == refused


# -- a hypervisor that dies and comes back --------------------------------------------------------------------


def test_calls_during_an_outage_wait_if_the_hypervisor_comes_back(wires: Any) -> None:
    root = wires.processor()
    root.recoverable = True
    wires.cut = True
    calls = [root.call(Code.CREATE_PARTITION, hv.CREATE_PARTITION.pack(0, 0, 0, b"vm")) for _ in range(hv.MAX_CALLS)]
    assert wires.result(root.call(Code.GET_PARTITION_ID)) == (HvStatus.OPERATION_DENIED, b""), "not without bound"
    wires.settle()
    assert not any(call.done for call in calls)
    wires.cut = False
    wires.die()
    outcomes = [wires.result(call) for call in calls]
    assert outcomes[:2] == [(HvStatus.SUCCESS, hv.PARTITION_ID.pack(number)) for number in (2, 3)]
    assert wires.hypervisor.next_partition == 2 + sum(status is HvStatus.SUCCESS for status, _ in outcomes)
    assert wires.result(root.call(Code.GET_PARTITION_ID))[0] is HvStatus.SUCCESS


def test_a_process_that_starts_while_there_is_no_hypervisor_attaches_when_it_is_told(wires: Any) -> None:
    root = wires.processor()
    late = VirtualProcessor(wires.loop, (1, 0))     # type: ignore[arg-type]
    late.recoverable = True
    late.reconnect("incarnation 0")     # it has not been told to start
    assert late._path == ""
    wires.cut = True
    late.connect("")
    call = late.call(Code.GET_PARTITION_ID)
    wires.settle()
    assert not call.done
    wires.cut = False
    late.reconnect("incarnation 0")
    assert wires.result(call)[0] is HvStatus.SUCCESS
    assert root is not late


def test_what_a_hypervisor_has_sent_is_not_thrown_away_when_it_is_named_again(wires: Any) -> None:
    root, number = joined(wires)
    child = wires.processor(number)
    seen: list[bytes] = []
    root.on_message = lambda sint, message: seen.append(message.payload)
    posted = child.post(4, 1, b"one")
    port = root._port
    root.reconnect("incarnation 0")
    assert root._port is port
    assert wires.result(posted) is HvStatus.SUCCESS
    assert wires.loop.run_until(lambda: seen == [b"one"], 5.0)


def test_calls_that_found_no_room_leave_when_there_is_some(wires: Any) -> None:
    root = wires.processor()
    root.recoverable = True
    first = root.call(Code.GET_PARTITION_ID)
    wires.cut = True        # its queue is full, but it lives
    second = root.call(Code.GET_PARTITION_ID)
    wires.cut = False
    third = root.call(Code.GET_PARTITION_ID)
    assert [wires.result(call)[0] for call in (first, second, third)] == [HvStatus.SUCCESS] * 3


def test_a_call_whose_answer_is_lost_is_not_executed_twice(wires: Any) -> None:
    root = wires.processor()
    call = root.call(Code.CREATE_PARTITION, hv.CREATE_PARTITION.pack(0, 0, 0, b"vm"))
    wires.die()             # its answer was on its way
    assert wires.result(call) == (HvStatus.SUCCESS, hv.PARTITION_ID.pack(2))
    assert set(wires.hypervisor.partitions) == {1, 2}


def test_a_message_is_seen_once_and_its_buffer_freed_though_the_end_of_message_was_lost(wires: Any) -> None:
    root, number = joined(wires)
    child = wires.processor(number)
    seen: list[bytes] = []

    def on_message(sint: int, message: SynicMessage) -> None:
        seen.append(message.payload)
        if len(seen) == 1:
            wires.die()     # before the end of this round, when the EOM leaves

    root.on_message = on_message
    for payload in (b"one", b"two"):
        assert wires.result(child.post(4, 1, payload)) is HvStatus.SUCCESS
    assert wires.loop.run_until(lambda: len(seen) == 2, 5.0)
    wires.settle()
    assert (seen, root.messages, wires.deaths) == ([b"one", b"two"], 2, 1)
    assert wires.hypervisor.partitions[1].ports[9].in_use == 0


def test_an_event_whose_receipt_is_lost_is_raised_again_and_does_not_swallow_the_next(wires: Any) -> None:
    root, number = joined(wires, PortType.EVENT)
    child = wires.processor(number)
    seen: list[int] = []
    root.on_event = lambda sint, flag: seen.append(flag)
    signalled = child.call(Code.SIGNAL_EVENT, hv.SIGNAL_EVENT.pack(4, 3, 0))
    wires.die()             # with the event on its way
    assert wires.result(signalled)[0] is HvStatus.SUCCESS
    wires.settle()
    assert seen == [3]
    assert wires.result(child.call(Code.SIGNAL_EVENT, hv.SIGNAL_EVENT.pack(4, 3, 0)))[0] is HvStatus.SUCCESS
    wires.settle()
    assert seen == [3, 3]


def test_the_hypervisor_forgets_answers_that_have_arrived(wires: Any) -> None:
    root = wires.processor()
    for _ in range(500):
        assert wires.result(root.call(Code.GET_PARTITION_ID))[0] is HvStatus.SUCCESS
        assert len(wires.hypervisor.callers[1, 0].results) <= hv.CALLS_PER_ANSWERED + 1
    wires.die()
    wires.settle()
    assert wires.hypervisor.callers[1, 0].results == {}, "it is told on reconnecting"
