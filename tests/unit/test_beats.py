"""Who hangs: silence held against what /proc shows, over the time in which the machine itself ran on schedule.

Long, because each test is a course of some seconds, told reading by reading, over one pretended /proc.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from vmbus_emu.loop import Loop
from vmbus_emu.machine import beats, figures, intake
from vmbus_emu.machine.beats import ASKED, FOR_EVER, PATIENCE, STARTING, TURNS, Beats, Silence, stands_still
from vmbus_emu.machine.events import Events
from vmbus_emu.machine.figures import Figures, process_row
from vmbus_emu.machine.supervisor import Process
from vmbus_emu.procfs import Thread
from vmbus_emu.task import Task
from vmbus_emu.topology import Overrides, TopologyErrors, build, load, parse
from vmbus_emu.topology.data import Topology

BOUND_S = 0.5
TICKS_PER_TURN = 100 * BOUND_S / TURNS


class Suspect:
    """A process whose first thread does what a test says."""

    def __init__(self, state: str = "S", ready: bool = True) -> None:
        self.state = state
        self.ticks = 1000.0
        self.switches = 50
        self.gone = False
        self.silence = Silence(BOUND_S)
        self.silence.spoke(ready)

    def seen(self) -> Thread | None:
        return None if self.gone else Thread(self.state, int(self.ticks), self.switches)

    def turn(self, on_time: bool = True, owes: bool = True) -> str:
        return self.silence.turn(on_time, self.seen, owes)

    def turns(self, most: int, used: float = 0.0, woke: int = 0, **how: bool) -> tuple[int, str]:
        """Turns until it hangs, ``most`` at most; ``used``, ``woke``: its CPU time, and how often it ran, in each."""
        for number in range(1, most + 1):
            why = self.turn(**how)
            if why:
                return number, why
            self.ticks += used
            self.switches += woke
        return most, ""


# -- who hangs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "why"), [("S", "it sleeps"), ("T", "it is stopped")])
def test_who_sleeps_or_is_stopped_and_silent_for_half_a_bound_hangs(state: str, why: str) -> None:
    assert Suspect(state).turns(100) == (PATIENCE, why)


def test_the_time_to_the_question_and_the_time_after_it_leave_some_of_the_bound_to_start_a_replacement() -> None:
    assert (ASKED + PATIENCE) / TURNS < 0.9
    assert TURNS % ASKED == 0


def test_who_speaks_at_the_last_moment_begins_anew() -> None:
    suspect = Suspect()
    for _ in range(3):
        assert suspect.turns(PATIENCE - 1) == (PATIENCE - 1, "")
        suspect.silence.spoke()
    assert suspect.turns(100) == (PATIENCE, "it sleeps")


def test_a_process_that_is_over_is_left_to_its_pidfd() -> None:
    suspect = Suspect()
    suspect.turns(PATIENCE - 1)
    suspect.gone = True
    assert suspect.turns(100) == (100, "")


# -- who is slow ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["D", "R", "t"])
def test_who_waits_for_io_or_for_a_core_or_is_in_a_debugger_is_slow_however_long(state: str) -> None:
    suspect = Suspect(state)
    assert suspect.turns(1000) == (1000, "")
    assert suspect.silence.slow == 1            # once for each silence
    suspect.silence.spoke()
    suspect.turns(PATIENCE - 1)
    suspect.silence.spoke()
    suspect.turns(PATIENCE + 1)
    assert suspect.silence.slow == 2


def test_a_moment_of_io_in_between_gives_all_the_time_again() -> None:
    suspect = Suspect()
    suspect.turns(PATIENCE - 1)
    suspect.state = "D"
    suspect.turns(1)
    suspect.state = "S"
    assert suspect.turns(100) == (PATIENCE, "it sleeps")


def test_who_wakes_between_two_looks_is_slow_and_hangs_after_twenty_bounds_only() -> None:
    suspect = Suspect()
    assert suspect.turns(10_000, woke=1) == (FOR_EVER * TURNS, "it dozes")
    assert suspect.silence.slow == 1


def test_who_worked_until_it_slept_for_ever_is_given_its_time_from_then_on() -> None:
    suspect = Suspect()
    suspect.turns(3, used=4, woke=2)
    assert suspect.turns(100) == (PATIENCE + 1, "it sleeps")    # a turn more, to see that it works no longer


def test_who_computes_for_ever_hangs_after_twenty_bounds_of_cpu_time() -> None:
    suspect = Suspect("R")
    number, why = suspect.turns(10_000, used=TICKS_PER_TURN)
    assert why == "it computes"
    assert FOR_EVER * TURNS <= number <= FOR_EVER * TURNS + 2
    starved = Suspect("R")                      # it gets a tenth of a core
    assert starved.turns(5 * FOR_EVER * TURNS, used=TICKS_PER_TURN / 10) == (5 * FOR_EVER * TURNS, "")


def test_a_word_in_between_begins_the_computing_anew() -> None:
    suspect = Suspect("R")
    for _ in range(5):
        assert suspect.turns(FOR_EVER * TURNS // 2, used=TICKS_PER_TURN)[1] == ""
        suspect.silence.spoke()


# -- who cannot be blamed -----------------------------------------------------------------------------


def test_turns_that_come_late_count_for_nobody() -> None:
    suspect = Suspect()
    assert suspect.turns(1000, on_time=False) == (1000, "")
    suspect.turns(PATIENCE - 1)
    assert suspect.turns(1000, on_time=False) == (1000, "")
    assert suspect.turn() == "it sleeps"


def test_who_starts_has_ten_times_as_long_but_not_when_it_is_stopped() -> None:
    assert Suspect(ready=False).turns(1000) == (PATIENCE * STARTING, "it sleeps")
    assert Suspect("T", ready=False).turns(1000) == (PATIENCE, "it is stopped")
    number, why = Suspect("R", ready=False).turns(100_000, used=TICKS_PER_TURN)
    assert why == "it computes"
    assert number > FOR_EVER * STARTING * TURNS


def test_who_owes_no_answer_can_only_be_stopped() -> None:
    assert Suspect("S").turns(1000, owes=False) == (1000, "")
    assert Suspect("R").turns(10_000, used=10, owes=False) == (10_000, "")
    assert Suspect("T").turns(1000, owes=False) == (PATIENCE, "it is stopped")


@pytest.mark.parametrize(("before", "now", "still"), [
    (Thread("S", 5, 9), Thread("S", 5, 9), True), (Thread("S", 5, 9), Thread("S", 5, 10), False),
    (Thread("R", 5, 9), Thread("T", 90, 99), True), (Thread("S", 5, 9), Thread("R", 5, 9), False),
    (Thread("S", 5, 9), Thread("D", 5, 9), False), (Thread("S", 5, 9), Thread("t", 5, 9), False),
    (None, Thread("T", 5, 9), False), (Thread("T", 5, 9), None, False),
])
def test_what_stands_still(before: Thread | None, now: Thread | None, still: bool) -> None:
    assert stands_still(before, now) is still


# -- asking -----------------------------------------------------------------------------------------


class Line:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any, fds: Any = ()) -> None:
        self.sent.append(message)


class Supervisor:
    """What :class:`Beats` sees of one, with processes that do as a test says."""

    def __init__(self, *names: str) -> None:
        self.processes = {name: Process(name, 100 + n, 1, -1, Line()) for n, name in enumerate(names)}  # type: ignore[arg-type]
        self.killed: list[str] = []
        self.bearing: set[str] = set()

    @property
    def running(self) -> dict[str, Process]:
        return {name: process for name, process in self.processes.items() if process.running}

    def awaits(self, zygote: str) -> bool:
        return zygote in self.bearing

    def kill(self, process: Process) -> None:
        self.killed.append(process.name)

    def sent(self, name: str) -> list[Any]:
        line: Any = self.processes[name].line
        messages: list[Any] = line.sent
        return messages


ROLES = {"vm1": "child", "zygote": "zygote", "front": "front"}


class Clock:
    """The time that :mod:`vmbus_emu.machine.beats` sees, and the turns of its timer."""

    def __init__(self, supervisor: Supervisor, bound_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.threads: dict[int, Thread] = {}
        self.looks = 0
        self.said: list[str] = []
        self.told: list[Any] = []
        self.supervisor = supervisor
        self._timer: tuple[float, Any, tuple[Any, ...]] | None = None
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(beats, "first_thread", self._first_thread)
        monkeypatch.setattr(beats, "thread", lambda pid, number: self._first_thread(number))
        monkeypatch.setattr(beats, "is_stopped", lambda pid: self._first_thread(pid).state == "T")
        events = Events(lambda client, message: self.told.append(message))
        events.watch(b"client", 1, {})
        given: Any = supervisor
        loop: Any = self
        self.beats = Beats(loop, given, events, bound_s, lambda name: ROLES.get(name, "storvsp"), self.said.append)
        self.beats.begin()

    def _first_thread(self, pid: int) -> Thread:
        self.looks += 1
        return self.threads.get(pid, Thread("S", 5, 9))

    def call_later(self, delay: float, callback: Any, *args: Any) -> Any:
        self._timer = (self.now + delay, callback, args)
        return self

    def cancel(self) -> None:
        self._timer = None

    @property
    def turning(self) -> bool:
        return self._timer is not None

    def turn(self, late_s: float = 0.0) -> None:
        assert self._timer is not None
        when, callback, args = self._timer
        self.now = when + late_s
        callback(*args)

    def answer(self, *names: str, kind: str = "beat", **fields: Any) -> None:
        for name in names:
            self.beats.heard(self.supervisor.processes[name], {"t": kind, "id": 1, **fields})

    def until_killed(self, most: int, *answering: str) -> int:
        """The time until somebody is killed, in turns; what is more than ``most`` if nobody is."""
        begin = self.now
        passed = 0
        while passed <= most and not self.supervisor.killed:
            self.turn()
            self.answer(*answering)
            passed = round((self.now - begin) * TURNS / BOUND_S)
        return passed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(Supervisor("hypervisor", "storvsp", "vm1", "zygote", "front", "storvsp.spare"), BOUND_S, monkeypatch)


def test_everybody_but_vms_and_zygotes_is_asked_and_asked_again_only_when_it_answered(clock: Clock) -> None:
    for _ in range(3):
        clock.turn()
    assert clock.looks == 2 * 4 + 3                 # who owes an answer; the zygote, which loads its code, all the time
    asked = {name: len(clock.supervisor.sent(name)) for name in clock.supervisor.processes}
    assert asked == {"hypervisor": 1, "storvsp": 1, "vm1": 0, "zygote": 0, "front": 1, "storvsp.spare": 1}
    assert {message["t"] for message in clock.supervisor.sent("storvsp")} == {"beat"}
    clock.answer("storvsp")
    clock.answer("front", kind="request")           # as good as an answer, but not one
    for _ in range(ASKED):
        clock.turn()
    assert (len(clock.supervisor.sent("storvsp")), len(clock.supervisor.sent("front"))) == (2, 1)


def test_who_answers_at_once_is_never_looked_at_and_the_timer_rests_in_between(clock: Clock) -> None:
    names = ("hypervisor", "storvsp", "front", "storvsp.spare")
    clock.answer("zygote", kind="ready")
    begin, turns = clock.now, 0
    while clock.now < begin + 10 * BOUND_S:
        clock.turn()
        clock.answer(*names)
        turns += 1
    assert clock.looks == 10                        # once per bound: is the zygote stopped?
    assert turns <= 10 * TURNS / ASKED + 1


def test_who_hangs_is_told_of_killed_once_and_shown_as_hung(clock: Clock) -> None:
    clock.answer("hypervisor", "storvsp", "front", "storvsp.spare", kind="ready")
    for _ in range(20):
        clock.turn()
        clock.answer("hypervisor", "front", "storvsp.spare")
    assert clock.supervisor.killed == ["storvsp"]
    (hung,) = (one["event"] for one in clock.told if one.get("event", {}).get("event") == "hung")
    assert (hung["component"], hung["pid"], hung["incarnation"]) == ("storvsp", 101, 1)
    assert (hung["silent_ms"], hung["reason"]) == (round(1000 * BOUND_S * PATIENCE / TURNS), "it sleeps")
    assert clock.said == [f"storvsp (pid 101) hangs: no answer for {hung['silent_ms']} ms, and it sleeps"]
    process = clock.supervisor.processes["storvsp"]
    row = process_row("storvsp", "storvsp", "storvsp", process, True)
    clock.beats.show(row, process, False)
    assert row["state"] == "hung"


def test_a_vm_is_not_judged_but_shown_as_hung_when_ps_had_no_answer(clock: Clock) -> None:
    process = clock.supervisor.processes["vm1"]
    clock.threads[process.pid] = Thread("T", 1, 9)
    clock.answer("zygote", kind="ready")
    for _ in range(100):
        clock.turn()
        clock.answer("hypervisor", "storvsp", "front", "storvsp.spare")
    assert clock.supervisor.killed == []
    for silent, state in (True, "hung"), (False, "ready"):
        row = process_row("vm1", "child", "vm1", process, True)
        clock.beats.show(row, process, silent)
        assert row["state"] == state
    row = process_row("vm1", "child", "vm1", Process("vm1", 1, 1, -1, process.line, signal="SIGKILL"), True)
    clock.beats.show(row, process, True)
    assert row["state"] == "dead"


def test_a_row_counts_how_often_its_process_was_slow_and_only_where_it_stands(clock: Clock) -> None:
    process = clock.supervisor.processes["storvsp"]
    clock.answer("storvsp", kind="ready")
    clock.threads[process.pid] = Thread("D", 1, 9)
    for _ in range(20):
        clock.turn()
        clock.answer("hypervisor", "front", "storvsp.spare")
    assert clock.supervisor.killed == []
    for name, counters in ("storvsp", {"slow": 1}), ("netvsp", {}):
        row = process_row(name, name, "storvsp", process, True)
        clock.beats.show(row, process, False)
        assert (row["counters"], row["state"]) == (counters, "ready")


def test_a_spare_has_started_when_it_answers_once(clock: Clock) -> None:
    clock.answer("hypervisor", "storvsp", "front", kind="ready")
    clock.turn()
    clock.answer("hypervisor", "storvsp", "front", "storvsp.spare")
    assert clock.until_killed(100, "hypervisor", "storvsp", "front") <= ASKED + PATIENCE
    assert clock.supervisor.killed == ["storvsp.spare"]


def test_a_late_turn_is_not_counted_and_a_stopped_machine_kills_nobody(clock: Clock) -> None:
    clock.answer("hypervisor", "storvsp", "front", "storvsp.spare", kind="ready")
    for _ in range(50):
        clock.turn(late_s=5.0)
    assert clock.supervisor.killed == []
    late = BOUND_S / TURNS * beats.LATE
    for _ in range(50):
        clock.turn(late_s=late * 1.01)
    assert clock.supervisor.killed == []
    for _ in range(PATIENCE):
        clock.turn(late_s=late * 0.99)
    assert set(clock.supervisor.killed) == {"hypervisor", "storvsp", "front", "storvsp.spare"}


def test_whom_the_machine_itself_has_stopped_is_excused_and_judged_anew_afterwards(clock: Clock) -> None:
    process = clock.supervisor.processes["storvsp"]
    clock.answer("zygote", "hypervisor", "storvsp", "front", "storvsp.spare", kind="ready")
    clock.threads[process.pid] = Thread("T", 1, 9)
    clock.beats.excuse(process)
    for _ in range(100):
        clock.turn()
        clock.answer("hypervisor", "front", "storvsp.spare")
    assert clock.supervisor.killed == []
    clock.beats.excuse(process, excused=False)
    assert clock.until_killed(100, "hypervisor", "front", "storvsp.spare") >= PATIENCE
    assert clock.supervisor.killed == ["storvsp"]


# -- calls of drivers on other threads --------------------------------------------------------------------


@pytest.fixture
def monolith(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(Supervisor("hypervisor"), BOUND_S, monkeypatch)
    clock.answer("hypervisor", kind="ready")
    return clock


def turns_until_killed(clock: Clock, most: int, *calls: list[list[int]], **does: float) -> int:
    """Turns until it is killed, at most so many; the monolith answers each question, with each of ``calls`` in turn.
    ``does``: CPU ticks that thread 7 uses in a turn, and how often it wakes."""
    asked = 0
    for number in range(1, most + 1):
        clock.turn()
        if clock.supervisor.killed:
            return number
        sent = len(clock.supervisor.sent("hypervisor"))
        if sent > asked:
            clock.answer("hypervisor", calls=calls[asked % len(calls)])
            asked = sent
        seen = clock.threads.setdefault(7, Thread("S", 5, 9))
        ticks, switches = seen.ticks + does.get("used", 0), seen.switches + int(does.get("woke", 0))
        clock.threads[7] = Thread(seen.state, int(ticks), switches)
    return most


@pytest.mark.parametrize(("state", "does", "least", "most", "why"), [
    ("S", {}, PATIENCE, PATIENCE + 2, "it sleeps in a driver"),
    ("R", {"used": 5}, 200, 10_000, "it computes in a driver"),
    ("S", {"woke": 1}, FOR_EVER * TURNS, FOR_EVER * TURNS + 2, "it dozes in a driver"),
])
def test_a_call_of_a_driver_that_does_not_return_is_a_hang_though_the_loop_turns(
    monolith: Clock, state: str, does: dict[str, float], least: int, most: int, why: str
) -> None:
    monolith.threads[7] = Thread(state, 5, 9)
    turns = turns_until_killed(monolith, 10_000, [[7, 1]], **does)
    assert least <= turns <= most
    assert monolith.supervisor.killed == ["hypervisor"]
    (hung,) = (one["event"] for one in monolith.told if one.get("event", {}).get("event") == "hung")
    assert (hung["component"], hung["reason"]) == ("hypervisor", why)


def test_a_call_in_the_kernel_is_slow_and_counted_once(monolith: Clock) -> None:
    monolith.threads[7] = Thread("D", 5, 9)
    turns_until_killed(monolith, 1000, [[7, 1]])
    assert monolith.supervisor.killed == []
    process = monolith.supervisor.processes["hypervisor"]
    row = process_row("hypervisor", "hypervisor", "hypervisor", process, True)
    monolith.beats.show(row, process, False)
    assert row["counters"] == {"slow": 1}


@pytest.mark.parametrize("next_call", [[], [[7, 2]], [[8, 1]]])
def test_who_returned_and_is_in_another_call_has_all_the_time_again(
    monolith: Clock, next_call: list[list[int]]
) -> None:
    turns_until_killed(monolith, 1000, [[7, 1]], next_call)
    assert monolith.supervisor.killed == []


def test_any_other_word_is_no_sign_of_life_of_a_call(monolith: Clock) -> None:
    turns = 0
    while not monolith.supervisor.killed and turns < 100:
        monolith.turn()
        monolith.answer("hypervisor", calls=[[7, 1]])
        monolith.answer("hypervisor", kind="out")
        turns += 1
    assert turns <= 2 * ASKED + PATIENCE


def test_the_timer_rests_when_no_call_goes_on(monolith: Clock) -> None:
    monolith.turn()
    monolith.answer("hypervisor", calls=[[7, 1]])
    monolith.turn()
    looks = monolith.looks
    monolith.answer("hypervisor", calls=[])
    begin, turns = monolith.now, 0
    while monolith.now < begin + 10 * BOUND_S:
        monolith.turn()
        monolith.answer("hypervisor", calls=[])
        turns += 1
    assert (monolith.looks, monolith.supervisor.killed) == (looks, [])
    assert turns <= 10 * TURNS / ASKED + 1


@pytest.mark.parametrize(("calls", "understood"), [
    ([], True), ([[7, 1]], True), ([[7, 1], [8, 2]], True), ([[7, 1], [7, 1]], False), ([[7]], False), ([7], False),
    ({}, False), ("x", False), ([[7, True]], False), ([["7", 1]], False), ([[7, [1]]], False),
    ([[n, 1] for n in range(intake.MOST_CALLS + 1)], False),
], ids=lambda value: repr(value)[:30])
def test_calls_are_pairs_of_numbers(calls: Any, understood: bool) -> None:
    assert intake.accepts("hypervisor", ("x",), {"t": "beat", "id": 7, "calls": calls}) is understood


def only_the_zygote(clock: Clock) -> None:
    for name in ("hypervisor", "storvsp", "front", "storvsp.spare"):
        clock.supervisor.processes[name].signal = "SIGKILL"
    clock.answer("zygote", kind="ready")
    clock.turn()


def test_an_idle_zygote_owes_nothing_but_is_seen_to_be_stopped_within_two_bounds(clock: Clock) -> None:
    only_the_zygote(clock)
    clock.looks = 0
    assert clock.until_killed(1199) == 1200
    assert clock.looks == 100                       # one per bound
    clock.threads[clock.supervisor.processes["zygote"].pid] = Thread("T", 5, 9)
    assert clock.until_killed(100) <= TURNS + PATIENCE
    assert clock.supervisor.killed == ["zygote"]


def test_a_zygote_that_is_asked_for_a_birth_owes_it(clock: Clock) -> None:
    only_the_zygote(clock)
    for _ in range(3):                              # what was asked for is born
        clock.supervisor.bearing = {"zygote"}
        clock.turn()
        clock.supervisor.bearing = set()
        clock.answer("zygote", kind="born")
    assert clock.until_killed(120) > 120
    clock.supervisor.bearing = {"zygote"}
    assert PATIENCE * STARTING <= clock.until_killed(1000) <= PATIENCE * STARTING + ASKED


def test_a_stopped_zygote_holds_up_a_birth_no_longer_than_a_bound(clock: Clock) -> None:
    only_the_zygote(clock)
    clock.supervisor.bearing = {"zygote"}
    clock.threads[clock.supervisor.processes["zygote"].pid] = Thread("T", 5, 9)
    assert clock.until_killed(100) <= ASKED + PATIENCE


def test_a_zygote_that_never_loads_its_code_owes_that(clock: Clock) -> None:
    for name in ("hypervisor", "storvsp", "front", "storvsp.spare"):
        clock.supervisor.processes[name].signal = "SIGKILL"
    assert PATIENCE * STARTING <= clock.until_killed(1000) <= PATIENCE * STARTING + ASKED


def test_a_new_process_with_the_pid_of_a_dead_one_is_another(clock: Clock) -> None:
    clock.answer("storvsp", kind="ready")
    for _ in range(2):
        clock.turn()
    old = clock.supervisor.processes["storvsp"]
    old.signal = "SIGKILL"
    clock.supervisor.processes["storvsp"] = new = Process("storvsp", old.pid, 2, -1, old.line)
    clock.answer("storvsp", kind="ready")
    assert clock.until_killed(100, "hypervisor", "front", "storvsp.spare") >= PATIENCE
    assert (clock.supervisor.killed, new.incarnation) == (["storvsp"], 2)


def test_after_the_end_and_with_a_bound_of_never_nobody_is_watched(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.turn()
    clock.beats.end()
    assert not clock.turning
    clock.answer("hypervisor", "storvsp", "front", "storvsp.spare")     # the last ones to questions of before
    assert not clock.turning
    never = Clock(Supervisor("storvsp"), 0.0, monkeypatch)
    assert not never.turning
    never.answer("storvsp")
    assert never.supervisor.sent("storvsp") == []


def test_on_a_real_loop_the_timer_turns_and_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    try:
        supervisor = Supervisor("storvsp")
        given: Any = supervisor
        monkeypatch.setattr(beats, "first_thread", lambda pid: Thread("T", 5, 9))
        events = Events(lambda client, message: None)
        watching = Beats(loop, given, events, 0.05, lambda name: "storvsp", lambda text: None)
        watching.begin()
        assert loop.run_until(lambda: bool(supervisor.killed), 10.0)
        assert [message["t"] for message in supervisor.sent("storvsp")] == ["beat"]
    finally:
        loop.close()


def test_a_beat_is_believed_of_every_process_that_has_a_loop() -> None:
    for role in ("hypervisor", "parent", "storvsp", "netvsp", "management", "child", "front"):
        assert intake.accepts(role, ("x",), {"t": "beat", "id": 7})
        assert not intake.accepts(role, ("x",), {"t": "beat", "id": "7"})
    assert not intake.accepts("zygote", ("zygote",), {"t": "beat", "id": 7})


# -- who does not answer ps ---------------------------------------------------------------------------


@pytest.mark.parametrize(("second", "hung"), [
    (Thread("S", 5, 9), True), (Thread("T", 5, 10), True), (Thread("S", 6, 10), False), (Thread("R", 5, 9), False),
    (Thread("D", 5, 9), False), (None, False),
])
def test_who_sleeps_through_the_deadline_of_ps_is_hung_until_it_answers(
    monkeypatch: pytest.MonkeyPatch, second: Thread | None, hung: bool
) -> None:
    looks = [Thread("S", 5, 9), second]
    monkeypatch.setattr(figures, "DEADLINE_S", 0.02)
    monkeypatch.setattr(figures, "first_thread", lambda pid: looks.pop(0))
    loop = Loop()
    try:
        asked, line = Figures(loop), Line()
        process = Process("vm1", 42, 1, -1, line)  # type: ignore[arg-type]
        task = Task(loop, asked.collect({"vm1": process}), watched=True)
        assert loop.run_until(lambda: task.done, 5.0)
        assert (task.result(), looks) == ({}, [])
        assert asked.hung == ({"vm1"} if hung else set())
        asked.arrived("vm1", line.sent[0]["id"], {"vm1": {"io": 1}})
        assert asked.hung == set()
    finally:
        loop.close()


# -- hang_after in a topology -------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("text", "seconds"), [
    ('"500ms"', 0.5), ('"2s"', 2.0), ('"1m"', 60.0), ('"50ms"', 0.05), ('"1.5 s"', 1.5), ('"never"', 0.0), ("0", 0.0),
    ('"0"', 0.0), ('"60m"', 3600.0), ('"60min"', 3600.0),
])
def test_hang_after_is_a_time_or_never(folder: Path, text: str, seconds: float) -> None:
    (folder / "lab.toml").write_text(f"hang_after = {text}\n")
    made = load("lab.toml")
    assert made.hang_after_s == seconds
    assert Topology.from_dict(made.to_dict()) == made


def test_a_flag_wins_and_the_default_is_half_a_second() -> None:
    assert build(None, Overrides()).hang_after_s == 0.5
    assert parse({"hang_after": "5s"}, flags=Overrides(hang_after="80ms")).hang_after_s == 0.08
    assert parse({"hang_after": "5s"}, flags=Overrides(hang_after="never")).hang_after_s == 0.0


@pytest.mark.parametrize("value", [
    "49ms", "61m", "1h", "", "soon", "-1s", "500", 500, 0.5, True, False, None, ["1s"], {"s": 1}, "1s\n1s", "9" * 400,
])
def test_what_is_no_time_is_told_where_it_stands(value: object) -> None:
    with pytest.raises(TopologyErrors) as raised:
        parse({"hang_after": value}, source="lab.toml")
    (line,) = raised.value.lines
    assert line.startswith("lab.toml:hang_after: is ")
    assert line.endswith('; give a time from "50ms" to "60m", or "never"')


def test_a_wrong_flag_is_told_as_a_flag() -> None:
    with pytest.raises(TopologyErrors) as raised:
        build(None, Overrides(hang_after="soon"))
    assert raised.value.lines == ['flags:--hang-after: is "soon"; give a time from "50ms" to "60m", or "never"']
