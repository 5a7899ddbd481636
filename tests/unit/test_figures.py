"""What the machine believes: figures for ``ps``, messages of its processes, requests of its clients."""

from __future__ import annotations

from typing import Any

import pytest

from vmbus_emu.lifeline import CHUNK, WINDOW
from vmbus_emu.loop import Loop
from vmbus_emu.machine import figures, intake
from vmbus_emu.machine.consoles import VM_DIED, Consoles
from vmbus_emu.machine.figures import Figures, process_row
from vmbus_emu.machine.supervisor import Process, signal_name
from vmbus_emu.task import Task


class Line:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any, fds: Any = ()) -> None:
        self.sent.append(message)


def process(name: str = "vm1", **more: Any) -> Process:
    line: Any = Line()
    return Process(name, 42, 1, -1, line, **more)


def sent(of: Process) -> list[Any]:
    line: Any = of.line
    messages: list[Any] = line.sent
    return messages


# -- figures ------------------------------------------------------------------------------------------------


def collect(loop: Loop, asked: Figures, *processes: Process) -> Task[dict[str, Any]]:
    task = Task(loop, asked.collect({p.name: p for p in processes}), watched=True)
    loop.step(0.0)
    return task


def test_figures_are_complete_when_everybody_has_answered(loop: Loop) -> None:
    asked, vm1, vm2 = Figures(loop), process(), process("vm2")
    task = collect(loop, asked, vm1, vm2)
    number = sent(vm1)[0]["id"]
    assert sent(vm1) == sent(vm2) == [{"t": "stats", "id": number}]
    asked.arrived("vm1", number, {"vm1": {"io": 1}})
    loop.step(0.0)
    assert not task.done
    asked.arrived("vm2", number, {"vm2": {"io": 2}})
    assert loop.run_until(lambda: task.done, 5.0)
    assert task.result() == {"vm1": {"io": 1}, "vm2": {"io": 2}}


def test_who_does_not_answer_in_time_is_missing_and_a_late_or_second_answer_does_no_harm(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "DEADLINE_S", 0.01)
    asked = Figures(loop)
    task = collect(loop, asked, process(), process("vm2"))
    for io in (1, 2):
        asked.arrived("vm1", 1, {"vm1": {"io": io}})
    asked.arrived("vm3", 1, {"vm3": {"io": 9}})     # was not asked
    asked.arrived("vm2", 99, {"vm2": {"io": 9}})
    assert loop.run_until(lambda: task.done, 5.0)
    assert task.result() == {"vm1": {"io": 1}}
    asked.arrived("vm2", 1, {"vm2": {"io": 9}})


def test_nobody_to_ask_is_nothing_to_wait_for(loop: Loop) -> None:
    task = collect(loop, Figures(loop))
    assert loop.run_until(lambda: task.done, 0.2)
    assert task.result() == {}


@pytest.mark.parametrize(("carrier", "ready", "expected"), [
    (None, False, ("starting", None, None, None)), (process(), False, ("starting", 42, None, None)),
    (process(), True, ("ready", 42, None, None)), (process(signal="SIGKILL"), True, ("dead", 42, "SIGKILL", None)),
    (process(exit_code=3), False, ("dead", 42, None, 3)),
])
def test_a_rows_state_is_that_of_the_process(carrier: Process | None, ready: bool, expected: tuple[Any, ...]) -> None:
    row = process_row("vm1", "child", "vm1", carrier, ready)
    assert (row["state"], row["pid"], row["signal"], row["exit_code"]) == expected


def test_the_age_of_the_last_io_is_unknown_before_the_first() -> None:
    assert process_row("vm1", "child", "vm1", process(), True, {"last_io": 0.0}, 5.0)["last_io_age_s"] is None
    assert process_row("vm1", "child", "vm1", process(), True, {"last_io": 3.0}, 5.0)["last_io_age_s"] == 2.0
    assert process_row("vm1", "child", "vm1", process(), True, {"last_io": 9.0}, 5.0)["last_io_age_s"] == 0.0


@pytest.mark.parametrize("number", range(1, 65))
def test_every_signal_has_some_name(number: int) -> None:
    assert signal_name(number).startswith("SIG")


def test_real_time_signals_are_counted_from_the_first() -> None:
    assert [signal_name(n) for n in (9, 34, 35, 64)] == ["SIGKILL", "SIGRTMIN", "SIGRTMIN+1", "SIGRTMAX"]


def test_reported_figures_are_cut_to_what_they_may_be() -> None:
    stats = {"vm1": {"io": 5, "last_io": 1.5, "counters": {"a": 1, "b": "x", "c": float("nan"), 7: 2}, "more": {}},
             "vm2": {"io": 6}}
    assert intake.figures(stats, ("vm1",)) == {"vm1": {"io": 5, "last_io": 1.5, "counters": {"a": 1, "7": 2}}}
    assert intake.figures({"vm1": {"io": -1, "last_io": "now", "counters": []}}, ("vm1",)) == {"vm1": {}}
    assert intake.figures({"vm1": []}, ("vm1",)) == {}
    many = {"vm1": {"counters": {str(n): n for n in range(1000)}}}
    assert len(intake.figures(many, ("vm1",))["vm1"]["counters"]) == 64


# -- who may say what ---------------------------------------------------------------------------------------

CHILD_MAY = [
    {"t": "ready", "component": "vm1"}, {"t": "not_started", "component": "vm1", "why": "x"},
    {"t": "stats", "id": 1, "stats": {}}, {"t": "log", "component": "vm1", "text": "x"},
    {"t": "out", "session": 1, "stream": 2, "data": b"x" * CHUNK}, {"t": "need", "session": 1, "chunks": 1},
    {"t": "exit", "session": 1, "status": 0},
]
CHILD_MAY_NOT: list[dict[str, Any]] = [
    {"t": "ready", "component": "vm2"}, {"t": "ready"}, {"t": "ready", "component": ["vm1"]},
    {"t": "not_started", "component": "vm2", "why": "x"}, {"t": "component_died", "component": "vm2", "why": "x"},
    {"t": "log", "component": "../../x", "text": "x"}, {"t": "stats", "id": {}, "stats": {}}, {"t": "stats", "id": 1},
    {"t": "born", "name": "vm1", "incarnation": 1, "pid": 1}, {"t": "bound", "pid": 1}, {"t": "power_off", "pids": [1]},
    {"t": "power_on", "partition": 2, "vp": 0, "name": "vm1"}, {"t": "client_gone", "client": b"x"},
    {"t": "request", "client": b"x", "pid": 1, "request": {"verb": "down"}}, {"t": "malformed"}, {"t": ""},
    {"t": "out", "session": 1, "stream": 3, "data": b""}, {"t": "out", "session": 1, "stream": 1, "data": "text"},
    {"t": "out", "session": 1, "stream": 1, "data": bytes(CHUNK + 1)},
    {"t": "out", "session": True, "stream": 1, "data": b""},
    {"t": "exit", "session": 1, "status": "0"},
]


@pytest.mark.parametrize("message", CHILD_MAY, ids=repr)
def test_what_a_guest_may_say(message: dict[str, Any]) -> None:
    assert intake.accepts("child", {"vm1"}, message)


@pytest.mark.parametrize("message", CHILD_MAY_NOT, ids=lambda message: repr(message)[:60])
def test_what_a_guest_may_not_say(message: dict[str, Any]) -> None:
    assert not intake.accepts("child", {"vm1"}, message)


def test_the_machines_own_parts_have_their_own_words() -> None:
    assert intake.accepts("zygote", ("zygote",), {"t": "born", "name": "vm1", "incarnation": 1, "pid": 1})
    assert intake.accepts("front", ("front",), {"t": "request", "client": b"x", "pid": 1, "request": {}})
    assert intake.accepts("hypervisor", {"hypervisor"}, {"t": "power_off", "pids": [1]})
    assert intake.accepts("management", {"management"}, {"t": "not_started", "component": "vm9", "why": "x"})
    assert not intake.accepts("front", ("front",), {"t": "born", "name": "vm1", "incarnation": 1, "pid": 1})
    assert not intake.accepts("zygote", ("zygote",), {"t": "request", "client": b"x", "pid": 1, "request": {}})
    assert not intake.accepts("parent", {"parent"}, {"t": "power_off", "pids": [1]})


@pytest.mark.parametrize(("request_", "wrong"), [
    ({"verb": "info"}, ""), ({"verb": "exec", "vm": "vm1", "argv": ["true"]}, ""), ({"verb": "exec", "vm": "vm1"}, ""),
    ({}, "no verb"), ({"verb": []}, "no verb"), ({"verb": "dance"}, "'dance'"), ({"verb": "exec"}, "takes a VM"),
    ({"verb": "exec", "vm": 1}, "vm must be str"), ({"verb": "exec", "vm": "vm1", "argv": "true"}, "argv must be list"),
    ({"verb": "exec", "vm": "vm1", "argv": [1]}, "words"), ({"verb": "credit", "chunks": "1"}, "chunks must be int"),
    ({"verb": "stdin", "data": "text"}, "data must be bytes"),
    ({"verb": "cancel", "session": {}}, "session must be int"),
])
def test_a_request_is_understood_or_told_what_is_wrong(request_: dict[str, Any], wrong: str) -> None:
    answer = intake.understood(request_)
    assert wrong in answer
    assert bool(wrong) == bool(answer)


# -- consoles -----------------------------------------------------------------------------------------------


class Desk:
    def __init__(self) -> None:
        self.replies: list[tuple[bytes, dict[str, Any]]] = []
        self.consoles = Consoles(lambda client, message: self.replies.append((client, message)))
        self.vm1, self.vm2 = process(), process("vm2")
        self.consoles.start(b"alice", 7, "vm1", self.vm1, ["cat"])
        self.replies.clear()
        sent(self.vm1).clear()


@pytest.fixture
def desk() -> Desk:
    return Desk()


def out(session: int = 1) -> dict[str, Any]:
    return {"t": "out", "session": session, "stream": 1, "data": b"x"}


def test_output_goes_to_the_client_of_the_session(desk: Desk) -> None:
    assert desk.consoles.from_guest(desk.vm1, out() | {"id": 99, "error": "forged"})
    assert desk.replies == [(b"alice", {"id": 7, "t": "out", "session": 1, "stream": 1, "data": b"x"})]


def test_a_guest_cannot_speak_in_another_ones_session(desk: Desk) -> None:
    for message in (out(), {"t": "exit", "session": 1, "status": 0}, out(2)):
        assert not desk.consoles.from_guest(desk.vm2, message)
    assert desk.replies == []


def test_a_client_cannot_speak_in_another_ones_session_and_only_with_known_fields(desk: Desk) -> None:
    desk.consoles.from_client(b"bob", 1, {"verb": "cancel", "session": 1})
    desk.consoles.from_client(b"alice", 1, {"verb": "cancel", "session": 2})
    assert sent(desk.vm1) == []
    more = {"t": "stop", "vm": "vm2"}
    desk.consoles.from_client(b"alice", 1, {"verb": "stdin", "session": 1, "data": b"x", "end": True, **more})
    assert sent(desk.vm1) == [{"t": "stdin", "session": 1, "data": b"x", "end": True}]


def test_output_beyond_its_credit_ends_the_session(desk: Desk) -> None:
    for _ in range(WINDOW):
        assert desk.consoles.from_guest(desk.vm1, out())
    desk.consoles.from_client(b"alice", 1, {"verb": "credit", "session": 1, "chunks": 2})
    sent(desk.vm1).clear()
    assert [desk.consoles.from_guest(desk.vm1, out()) for _ in range(4)] == [True, True, False, False]
    assert desk.replies[-1][1]["status"] == 1
    assert "more than its reader allowed" in desk.replies[-1][1]["reason"]
    assert sent(desk.vm1) == [{"t": "cancel", "session": 1}]


def test_a_guest_asks_for_no_more_input_than_it_got(desk: Desk) -> None:
    need = {"t": "need", "session": 1, "chunks": 1}
    assert not desk.consoles.from_guest(desk.vm1, need)
    desk.consoles.from_client(b"alice", 1, {"verb": "stdin", "session": 1, "data": b"x"})
    assert [desk.consoles.from_guest(desk.vm1, need | {"chunks": n}) for n in (-1, 0, 2, 1, 1)] == [
        False, False, False, True, False]


def test_an_exit_status_is_a_byte_and_ends_the_session(desk: Desk) -> None:
    assert desk.consoles.from_guest(desk.vm1, {"t": "exit", "session": 1, "status": 300})
    assert desk.replies[-1][1]["status"] == 1
    assert not desk.consoles.from_guest(desk.vm1, out())


def test_the_death_of_a_vm_ends_its_sessions_with_the_reason(desk: Desk) -> None:
    desk.consoles.start(b"bob", 8, "vm2", desk.vm2, ["cat"])
    desk.replies.clear()
    desk.vm1.signal = "SIGKILL"
    desk.consoles.process_died(desk.vm1)
    desk.consoles.process_died(desk.vm1)
    assert [(client, m["status"]) for client, m in desk.replies] == [(b"alice", VM_DIED)]
    assert "vm1 died" in desk.replies[0][1]["reason"]
    assert "SIGKILL" in desk.replies[0][1]["reason"]


def test_a_client_that_is_gone_has_its_commands_cancelled(desk: Desk) -> None:
    desk.consoles.client_gone(b"alice")
    desk.consoles.client_gone(b"alice")
    assert sent(desk.vm1) == [{"t": "cancel", "session": 1}]
    assert not desk.consoles.from_guest(desk.vm1, out())


def test_nobody_waits_for_the_figures_of_the_dead(loop: Loop) -> None:
    asked, vm1, vm2 = Figures(loop), process(), process("vm2")
    task = collect(loop, asked, vm1, vm2)
    asked.arrived("vm1", sent(vm1)[0]["id"], {"vm1": {"io": 1}})
    assert not task.done
    asked.died("vm2")
    loop.step(0.0)
    assert task.result() == {"vm1": {"io": 1}}
