"""A load that begins at a given moment, and of which only a window is recorded."""

from __future__ import annotations

import time

import pytest

from partitions.child.commands import window as module
from partitions.child.commands.window import Window, window
from partitions.child.console import CommandError, Usage
from vmbus_emu.loop import Loop
from vmbus_emu.task import Task

MS = 1_000_000


class Clock:
    """``time`` as the module sees it."""

    def __init__(self) -> None:
        self.now = 1000 * MS

    def monotonic_ns(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_only_what_completes_in_the_window_is_recorded(clock: Clock) -> None:
    recorded: list[int] = []
    record = Window(1000 * MS, 100 * MS, 50 * MS).only(recorded.append)
    for moment in (1000, 1099, 1100, 1149, 1150, 1200):
        clock.now = moment * MS
        record(moment)
    assert recorded == [1100, 1149]


def test_the_load_runs_before_the_window_and_after_it() -> None:
    assert Window(0, 100 * MS, 50 * MS).whole_ns == 250 * MS


def test_who_comes_too_late_says_so(clock: Clock, loop: Loop) -> None:
    late = Task(loop, Window(880 * MS, 100 * MS, 50 * MS).begin(loop), watched=True)
    assert loop.run_until(lambda: late.done, 10.0)
    with pytest.raises(CommandError, match="began 120 ms late; a margin of 100 ms is short"):
        late.result()


def test_it_begins_when_the_moment_has_come(loop: Loop) -> None:
    begin = time.monotonic_ns() + 20 * MS
    task = Task(loop, Window(begin, 10_000 * MS, MS).begin(loop))
    assert loop.run_until(lambda: task.done, 10.0)
    assert time.monotonic_ns() >= begin


def test_what_the_options_say(clock: Clock) -> None:
    assert window({}) is None
    assert window({"B": "1500000000", "T": "0.5", "W": "0.2"}) == Window(1500 * MS, 200 * MS, 500 * MS)


@pytest.mark.parametrize(("options", "told"), [
    ({"W": "1"}, "-W goes with -B"), ({"B": "1"}, "-B goes with -T"), ({"B": "x", "T": "1"}, "no moment"),
    ({"B": "9" * 30, "T": "1"}, "no moment"), ({"B": "900000000000", "T": "1"}, "no moment"),
    ({"B": "1", "T": "x"}, "seconds"),
])
def test_options_that_make_no_sense(clock: Clock, options: dict[str, str], told: str) -> None:
    with pytest.raises(Usage, match=told):
        window(options)
