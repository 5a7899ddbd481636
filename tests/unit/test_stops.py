"""stop, and what the machine is told by the integration services: who is asked, who waits, what follows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vmbus_emu.loop import Loop
from vmbus_emu.machine.intake import Refused, understood
from vmbus_emu.machine.integration import Integration


class Line:
    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


class Process:
    def __init__(self, name: str) -> None:
        self.name = name
        self.line = Line()
        self.exit_code: int | None = None
        self.ending = "killed by SIGSEGV"


class Box:
    """A machine as the integration services see it, with VMs in processes, or (``threads``) in the monolith."""

    def __init__(self, loop: Loop, threads: bool = False) -> None:
        self.carrier = "hypervisor" if threads else "parent"
        names = ("hypervisor",) if threads else ("hypervisor", "parent", "vm1", "vm2")
        self.processes = {name: Process(name) for name in names}
        self.running = dict(self.processes)
        self.killed: list[str] = []
        self.active = False
        self.off: set[str] = set()
        self.fallen: set[str] = set()
        self.replies: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.vm_hosts = {vm: "hypervisor" if threads else vm for vm in ("vm1", "vm2")}
        self.vms = {vm: SimpleNamespace(integration_services=True) for vm in self.vm_hosts}
        self.media: dict[str, Any] = {}
        made: Any = self
        self.integration = Integration(loop, made, self.fallen, self.carrier, made, made, made, made, self.reply)
        self.stops = self.integration.stops

    def kill(self, process: Process) -> None:
        self.killed.append(process.name)

    def emit(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    def reply(self, client: bytes, message: dict[str, Any]) -> None:
        self.replies.append(message)

    def request(self, verb: str, **fields: Any) -> None:
        getattr(self.integration, verb)(b"c", 7, {"verb": verb, "vm": "vm1", **fields})

    @property
    def asked(self) -> dict[str, Any]:
        return self.processes[self.carrier].line.sent[-1]

    def answer(self, ok: bool = True, why: str = "", by: str = "") -> bool:
        process: Any = self.processes[by or self.carrier]
        return self.integration.done(process, {"id": self.asked["id"], "ok": ok, "why": why, "items": []})

    def exited(self, name: str, code: int | None = None) -> bool:
        process: Any = self.processes[name]
        process.exit_code = code
        del self.running[name]
        self.integration.exited(process)
        return self.stops.exited(process)


@pytest.fixture
def box(loop: Loop) -> Box:
    return Box(loop)


def test_a_vm_that_shuts_down_is_off_and_no_policy_follows(box: Box) -> None:
    box.request("stop", grace_s=4.0)
    assert (box.asked["t"], box.asked["do"], box.asked["vm"], box.asked["grace_s"]) == (
        "integration", "shutdown", "vm1", 4.0)
    assert box.answer()
    assert box.replies == [], "the answer says only that it tries"
    box.stops.said("vm1", ["disk0: flush: I/O error"])
    assert box.exited("vm1", 0)
    (reply,) = box.replies
    assert (reply["stopped"], reply["how"], reply["unflushed"]) == ("vm1", "off", ["disk0: flush: I/O error"])
    assert box.off == {"vm1"}
    assert [event["event"] for event in box.events] == ["stopped"]


def test_one_that_dies_meanwhile_is_dead(box: Box) -> None:
    for said, code in ((False, 0), (True, 1)):
        box.request("stop")
        box.answer()
        if said:
            box.stops.said("vm1", [])
        assert not box.exited("vm1", code)
        assert "died before it had shut down" in box.replies.pop()["error"]
        box.running["vm1"] = box.processes["vm1"]
    assert box.off == set()


def test_one_that_refuses_or_does_not_answer_runs_on(box: Box) -> None:
    box.request("stop")
    box.answer(False, "the shutdown service of vm1 does not answer")
    assert box.replies == [{
        "id": 7, "error": "vm1 does not shut down: the shutdown service of vm1 does not answer",
        "hint": "vmbus-emu stop vm1 --force pulls the plug",
    }]  # fmt: skip
    assert not box.exited("vm1", 0), "whatever it does later was not asked for"


def test_one_that_is_late_is_off_all_the_same(box: Box, loop: Loop) -> None:
    box.request("stop", grace_s=0.01)
    box.answer()
    assert loop.run_until(lambda: bool(box.replies), 5.0)
    assert "still tries to" in box.replies[0]["error"]
    box.stops.said("vm1", [])
    assert box.exited("vm1", 0)
    assert (len(box.replies), box.off) == (1, {"vm1"})


def test_force_kills_and_whoever_waited_is_told(box: Box) -> None:
    box.request("stop")
    with pytest.raises(Refused, match="vm1 is being stopped already"):
        box.request("stop")
    box.request("stop", force=True)
    assert box.killed == ["vm1"]
    assert box.exited("vm1")
    assert [reply.get("error", reply.get("how")) for reply in box.replies] == [
        "vm1: somebody pulled the plug", "plug pulled"]


def test_without_the_parent_nobody_can_be_asked_and_its_death_ends_every_question(box: Box) -> None:
    box.request("stop")
    box.exited("parent")
    assert "parent died while it was asked" in box.replies.pop()["error"]
    box.request("stop")
    assert "parent is not running" in box.replies.pop()["error"]


def test_a_thread_is_off_with_its_last_word_and_cut_by_its_host(loop: Loop) -> None:
    box = Box(loop, threads=True)
    box.request("stop")
    box.stops.said("vm1", [])
    assert box.replies.pop()["how"] == "off"
    box.off.clear()
    box.request("stop", force=True)
    assert box.asked["do"] == "cut"
    box.answer()
    assert box.replies.pop()["how"] == "plug pulled"
    box.off.clear()
    box.request("stop", force=True)
    box.answer(False, "vm1 does not answer")
    assert box.replies.pop()["error"] == "vm1 is unkillable: vm1 does not answer"
    box.request("stop")
    box.integration.fell("vm1")
    assert box.replies.pop()["error"] == "vm1 died before it had shut down"


def test_what_does_not_run_is_not_asked(box: Box) -> None:
    for verb in ("stop", "kvp"):
        box.off = {"vm1"}
        with pytest.raises(Refused, match="vm1 is not running"):
            box.request(verb)
        box.off = set()
        box.fallen = box.integration._fallen = {"vm1"}  # type: ignore[assignment]
        with pytest.raises(Refused, match="vm1 is not running"):
            box.request(verb)
        box.fallen = box.integration._fallen = set()  # type: ignore[assignment]
    with pytest.raises(Refused, match="there is no VM 'vm9'"):
        box.request("stop", vm="vm9")
    box.active = True
    with pytest.raises(Refused, match="being drained"):
        box.request("stop")


def test_an_answer_counts_once_and_from_whom_was_asked(box: Box) -> None:
    box.request("stop")
    assert not box.answer(by="vm2")
    assert box.answer()
    assert box.answer(), "one that comes late is no offence"
    stranger: Any = box.processes["vm2"]
    assert not box.integration.done(stranger, {"id": 0, "ok": True, "why": "", "items": []})


def test_heartbeats_are_of_vms_known_words_and_end_with_who_reports_them(box: Box) -> None:
    assert box.integration.beat("vm1", "ok")
    assert box.events == [], "that it lives is no event"
    assert box.integration.beat("vm1", "lost")
    assert box.integration.beat("vm1", "lost")
    assert box.integration.beat("vm1", "ok")
    assert [event["state"] for event in box.events] == ["lost", "ok"]
    assert not box.integration.beat("vm9", "ok")
    assert not box.integration.beat("vm1", "fine")
    box.integration.beat("vm2", "ok")
    box.exited("vm2")
    assert (box.integration.heartbeat("vm1"), box.integration.heartbeat("vm2")) == ("ok", None)
    box.exited("parent")
    assert box.integration.heartbeat("vm1") is None


@pytest.mark.parametrize("request_", [
    {"verb": "stop", "vm": 1}, {"verb": "stop", "vm": "vm1", "grace_s": -1}, {"verb": "stop", "force": 1},
    {"verb": "kvp", "vm": "vm1", "value": 1}, {"verb": "snapshot", "vm": "vm1", "path": b"x"},
])  # fmt: skip
def test_malformed_requests_are_refused(request_: dict[str, Any]) -> None:
    assert understood(request_)


def test_a_vm_without_services_cannot_be_asked_but_its_plug_can_be_pulled(box: Box) -> None:
    box.vms["vm1"].integration_services = False
    for verb in ("stop", "kvp", "snapshot"):
        with pytest.raises(Refused) as refused:
            box.request(verb)
        why, hint = refused.value.args
        assert (why, "services install vm1" in hint) == ("vm1 has no integration services", True)
    box.request("stop", force=True)
    assert box.killed == ["vm1"]
