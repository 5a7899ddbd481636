"""Who hangs: silence on a lifeline, told apart from slowness, and never held against who could not have spoken.

The machine asks each process it watches for a beat, three times per bound, and the process's loop answers: so a loop
that does not turn is silent, whatever its threads do. Any other message is as good as a beat. Who owes an answer is
looked at in /proc, twelve times per bound, until it comes. What half a bound of that shows decides:

========= ====================================================================================================
stopped   (state T) hangs; a process in a debugger (state t) does not
sleeps    (state S) and did not wake up once between two looks: hangs
slow      it ran, could run (state R), or sits in the kernel for I/O (state D): left alone, and counted
computes  slow, and has used twenty times the bound of CPU time without a word: hangs
dozes     slow, and was found asleep for twenty times the bound without a word: hangs
========= ====================================================================================================

All of that is said of the thread that turns the loop. In the monolith other threads run drivers, too: its beat names
the calls of drivers that go on (:mod:`partitions.long_calls`), and of each one's thread it is said as well, as long as
it is the same call. A guest's own code is not judged there either.

Who has not said "ready" yet has ten times as long, unless it is stopped. A look that comes late counts for nobody: the
machine itself was stopped, or the host is overloaded. What hangs is killed; from there its death is one like any other.

A zygote reads nothing but orders to bear a child, so it is not asked: its answer to an order is its beat, and while it
has none it can only be stopped. A VM is never judged: ``ps`` shows that it does not answer
(:mod:`vmbus_emu.machine.figures`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop, Timer
from vmbus_emu.machine import intake
from vmbus_emu.machine.events import Events
from vmbus_emu.machine.supervisor import SPARE, Process, Supervisor
from vmbus_emu.procfs import Thread, first_thread, is_stopped, thread

#: Turns of the timer per bound; between two questions; and in silence that are a hang. So a hang is over after ten
#: turns at most, and two are left for the replacement to start.
TURNS, ASKED, PATIENCE = 12, 4, 6
#: A process that is starting may be silent so many times as long.
STARTING = 10
#: So many times the bound without a word is a hang, whatever it does, but for waiting for I/O or for a core.
FOR_EVER = 20
#: A turn that is later than so many is not on schedule.
LATE = 1.0

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def stands_still(before: Thread | None, now: Thread | None) -> bool:
    """Whether a thread does nothing: it is stopped, or slept all the time from one look to the other."""
    if before is None or now is None:
        return False
    return now.state == "T" or (now.state == "S" and now.switches == before.switches)


class Silence:
    """The silence of one process. Pure: it is told of each turn and shown the process, and says when it hangs."""

    def __init__(self, bound_s: float) -> None:
        self._bound_ticks = bound_s * _TICKS_PER_S
        self._leniency = STARTING
        #: How often it was slow: silent for as long as a hang, and at work.
        self.slow = 0
        self.spoke()

    def spoke(self, ready: bool = False) -> None:
        """Something arrived from it. ``ready``: it has started."""
        if ready:
            self._leniency = 1
        #: For how many turns on schedule it has owed an answer, and how many of the last it was stopped.
        self.turns = self.stopped = 0
        self._still = self._dozed = 0             # turns: of the last, how many it stood still; all that it slept
        self._first: Thread | None = None
        self._last: Thread | None = None
        self._counted = False

    def turn(self, on_time: bool, seen: Callable[[], Thread | None], owes: bool = True) -> str:
        """A turn of the timer: why the process hangs, or an empty text. ``owes``: it owes an answer; if not, it hangs
        only when it is stopped."""
        now = seen() if on_time else None
        if now is None:                           # or it is over, which its pidfd tells
            return ""
        self.stopped = self.stopped + 1 if now.state == "T" else 0
        if self.stopped >= PATIENCE:
            return "it is stopped"
        return self._weigh(now) if owes else ""

    def _weigh(self, now: Thread) -> str:
        before = self._last if self._last is not None else now
        if self._first is None:
            self._first = now
        self._last = now
        self.turns += 1
        self._dozed += now.state == "S"
        self._still = self._still + 1 if stands_still(before, now) else 0
        if self._still >= PATIENCE * self._leniency:
            return "it sleeps"
        if self._dozed >= FOR_EVER * TURNS * self._leniency:
            return "it dozes"
        if now.ticks - self._first.ticks >= FOR_EVER * self._bound_ticks * self._leniency:
            return "it computes"
        if self.turns >= PATIENCE * self._leniency and not self._still and not self._counted:
            self._counted = True
            self.slow += 1
        return ""


class _Watched:
    """One process, and whether it owes an answer."""

    __slots__ = ("asked", "calls", "hangs", "process", "silence", "zygote")

    def __init__(self, process: Process, zygote: bool, bound_s: float) -> None:
        self.process = process
        self.zygote = zygote
        self.silence = Silence(bound_s)
        #: By thread and number, the calls of drivers that go on in it.
        self.calls: dict[tuple[int, int], Silence] = {}
        self.asked = zygote                       # to load its code: it says "ready" when it has
        self.hangs = False


class Beats:
    """``role_of`` gives a process's role by its name; ``say`` writes to the machine's log."""

    def __init__(
        self, loop: Loop, supervisor: Supervisor, events: Events, bound_s: float, role_of: Callable[[str], str],
        say: Callable[[str], Any],
    ) -> None:
        """``bound_s``: 0 watches nobody."""
        self._loop = loop
        self._supervisor = supervisor
        self._events = events
        self._bound_s = bound_s
        self._turn_s = bound_s / TURNS
        self._role_of = role_of
        self._say = say
        self._watched: dict[int, _Watched] = {}   # by pid
        self._timer: Timer | None = None
        self._turns = 0
        self._turned = 0.0                        # when the last turn was, monotonic seconds
        self._unanswered: set[int] = set()        # pids
        self._excused: set[int] = set()           # pids
        self._zygotes_owe = False

    def begin(self) -> None:
        """Watch from now on."""
        if self._bound_s and self._timer is None:
            self._turned = time.monotonic()
            self._schedule(ASKED)

    def end(self) -> None:
        """Watch nobody any more: who does not end when asked is another's to see."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._bound_s = 0.0
        self._watched.clear()

    def excuse(self, process: Process, excused: bool = True) -> None:
        """Its silence counts for nothing now: the machine itself has stopped it."""
        if excused:
            self._excused.add(process.pid)
        else:
            self._excused.discard(process.pid)

    def heard(self, process: Process, message: Message) -> None:
        """Something arrived from a process."""
        watched = self._of(process)
        if watched is not None:
            kind = message["t"]
            # A spare is not told to start, so it never says that it has: that its loop turns will do. How long a birth
            # takes a zygote depends on others, too, so it keeps its patience.
            watched.silence.spoke((kind == "ready" or process.name.endswith(SPARE)) and not watched.zygote)
            if kind == ("ready" if watched.zygote else "beat"):
                watched.asked = False
                self._note_calls(watched, message)
                if process.pid in self._unanswered and not watched.calls:
                    self._unanswered.discard(process.pid)
                    self._rest()

    def _note_calls(self, watched: _Watched, message: Message) -> None:
        """Those that its beat does not name any more are over, whatever they did meanwhile."""
        going_on = intake.long_calls(message) or ()
        watched.calls = {call: watched.calls.get(call) or self._call() for call in going_on}

    def _call(self) -> Silence:
        silence = Silence(self._bound_s)
        silence.spoke(ready=True)
        return silence

    def show(self, row: Message, process: Process | None, silent: bool) -> None:
        """Put into a row of ``ps`` what is known here. ``silent``: the process did not answer ``ps``, and slept."""
        watched = self._watched.get(process.pid) if process is not None else None
        if watched is not None and watched.silence.slow and row["name"] == row["host"]:
            row["counters"] = {**row["counters"], "slow": watched.silence.slow}
        if row["state"] in ("starting", "ready") and (silent or (watched is not None and watched.hangs)):
            row["state"] = "hung"

    # -- turns ----------------------------------------------------------------------------------------

    def _schedule(self, turns: int) -> None:
        due = self._turned + turns * self._turn_s
        self._timer = self._loop.call_later(max(0.0, due - time.monotonic()), self._turn, turns, due)

    def _rest(self) -> None:
        """If nobody owes anything, there is nothing to look at before the next questions."""
        if self._timer is not None and not self._unanswered and not self._zygotes_owe:
            self._timer.cancel()
            self._schedule(ASKED - self._turns % ASKED)

    def _turn(self, turns: int, due: float) -> None:
        self._turns += turns
        self._turned = time.monotonic()
        on_time = self._turned - due <= LATE * self._turn_s
        watched = [one for one in map(self._of, self._supervisor.running.values()) if one is not None]
        self._watched = {one.process.pid: one for one in watched}
        self._unanswered.clear()
        self._zygotes_owe = False
        for one in watched:
            if one.hangs:
                continue
            if one.process.pid in self._excused:
                for silence in (one.silence, *one.calls.values()):
                    silence.spoke()
                continue
            if one.zygote:
                self._turn_zygote(one, on_time)
                continue
            if one.asked:
                self._judge(one, on_time)
            elif self._turns % ASKED == 0:
                one.asked = True
                one.silence.spoke()               # until now it owed nothing
                one.process.line.send({"t": "beat", "id": self._turns})
            self._judge_calls(one, on_time)
            if one.asked or one.calls:
                self._unanswered.add(one.process.pid)
        self._schedule(1)
        self._rest()

    def _turn_zygote(self, one: _Watched, on_time: bool) -> None:
        process = one.process
        owes = one.asked or self._supervisor.awaits(process.name)
        # Of an idle one it is enough to see now and then whether it is stopped.
        if owes or one.silence.stopped or (self._turns % TURNS == 0 and is_stopped(process.pid)):
            self._judge(one, on_time, owes)
            self._zygotes_owe = True

    def _of(self, process: Process) -> _Watched | None:
        """What is known of a process; ``None`` if it is not watched."""
        watched = self._watched.get(process.pid)
        if watched is None or watched.process is not process:
            role = self._role_of(process.name) if self._bound_s else "child"
            if role == "child":
                return None
            watched = self._watched[process.pid] = _Watched(process, role == "zygote", self._bound_s)
        return watched

    def _judge(self, one: _Watched, on_time: bool, owes: bool = True) -> None:
        process = one.process
        why = one.silence.turn(on_time, lambda: first_thread(process.pid), owes)
        if why:
            self._hung(one, one.silence, why)

    def _judge_calls(self, one: _Watched, on_time: bool) -> None:
        pid = one.process.pid
        for (number, _), silence in one.calls.items():
            was_slow = silence.slow
            why = silence.turn(on_time, partial(thread, pid, number))
            one.silence.slow += silence.slow - was_slow
            if why and not one.hangs:
                self._hung(one, silence, f"{why} in a driver")

    def _hung(self, one: _Watched, silence: Silence, why: str) -> None:
        process = one.process
        one.hangs = True
        silent_ms = round(max(silence.turns, PATIENCE) * self._turn_s * 1000)
        self._say(f"{process.name} (pid {process.pid}) hangs: no answer for {silent_ms} ms, and {why}")
        self._events.emit(
            "hung", component=process.name, pid=process.pid, incarnation=process.incarnation, silent_ms=silent_ms,
            reason=why,
        )
        self._supervisor.kill(process)
