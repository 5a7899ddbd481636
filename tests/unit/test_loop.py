"""The event loop: order of callbacks, timers, descriptors, calls from other threads."""

from __future__ import annotations

import os
import threading
import time

import pytest

from vmbus_emu.loop import HANGUP, READ, WRITE, Loop


def test_deferred_calls_run_in_order_and_what_they_defer_runs_a_round_later(loop: Loop) -> None:
    seen: list[str] = []

    def first() -> None:
        seen.append("a")
        loop.call_soon(seen.append, "c")

    loop.call_soon(first)
    loop.call_soon(seen.append, "b")
    loop.step(0.0)
    assert seen == ["a", "b"]
    loop.step(0.0)
    assert seen == ["a", "b", "c"]


def test_timers_run_by_time_then_by_order_of_setting(loop: Loop) -> None:
    seen: list[str] = []
    loop.call_later(0.002, seen.append, "later")
    for name in ("first", "second"):
        loop.call_later(0.0, seen.append, name)
    assert loop.run_until(lambda: len(seen) == 3, 5.0)
    assert seen == ["first", "second", "later"]


def test_a_cancelled_timer_never_runs(loop: Loop) -> None:
    seen: list[str] = []
    loop.call_later(0.0, seen.append, "no").cancel()
    loop.call_later(0.001, seen.append, "yes")
    assert loop.run_until(lambda: bool(seen), 5.0)
    assert seen == ["yes"]


def test_a_loop_with_something_to_do_does_not_sleep(loop: Loop) -> None:
    loop.call_later(30.0, lambda: None)
    begin = time.monotonic()
    loop.call_soon(loop.call_soon, lambda: None)
    loop.step()
    loop.step(0.0)
    loop.mark(lambda: loop.call_soon(lambda: None))  # a pump that leaves something to do
    loop.step()
    assert time.monotonic() - begin < 5.0


def test_run_until_gives_up_at_its_deadline(loop: Loop) -> None:
    assert loop.run_until(lambda: False, 0.01) is False


def test_run_until_sees_what_a_deferred_call_did_before_it_sleeps(loop: Loop) -> None:
    done: list[int] = []
    loop.call_soon(done.append, 1)
    begin = time.monotonic()
    assert loop.run_until(lambda: bool(done), 60.0)
    assert time.monotonic() - begin < 5.0


def test_stop_ends_run_after_the_current_callback(loop: Loop) -> None:
    seen: list[str] = []

    def last() -> None:
        loop.stop()
        seen.append("still")

    loop.call_soon(last)
    loop.run()
    assert seen == ["still"]


def test_a_descriptor_is_reported_while_it_is_ready_and_not_after_it_is_unwatched(loop: Loop) -> None:
    reading, writing = os.pipe()
    events: list[int] = []
    loop.watch(reading, events.append)
    os.write(writing, b"x")
    loop.step(1.0)
    loop.step(1.0)
    assert events == [READ, READ]
    loop.unwatch(reading)
    loop.unwatch(reading)
    loop.step(0.0)
    assert len(events) == 2
    os.close(reading)
    os.close(writing)


def test_watching_again_changes_handler_and_events(loop: Loop) -> None:
    reading, writing = os.pipe()
    seen: list[int] = []
    loop.watch(writing, lambda events: pytest.fail("the old handler"), READ)
    loop.watch(writing, seen.append, WRITE)
    loop.step(1.0)
    os.close(reading)
    loop.step(1.0)
    assert seen[0] == WRITE
    assert seen[1] & HANGUP
    loop.unwatch(writing)
    os.close(writing)


def test_a_handler_unwatched_in_the_same_round_is_not_called(loop: Loop) -> None:
    pipes = [os.pipe() for _ in range(2)]
    called: list[int] = []

    def handler(fd: int) -> None:
        called.append(fd)
        for reading, _ in pipes:
            loop.unwatch(reading)

    for reading, writing in pipes:
        loop.watch(reading, lambda events, fd=reading: handler(fd))  # type: ignore[misc]
        os.write(writing, b"x")
    loop.step(1.0)
    assert len(called) == 1
    for ends in pipes:
        for fd in ends:
            os.close(fd)


def test_calls_from_other_threads_wake_the_loop_and_none_is_lost(loop: Loop) -> None:
    seen: list[int] = []

    def work(base: int) -> None:
        for number in range(500):
            loop.call_soon_threadsafe(seen.append, base + number)

    threads = [threading.Thread(target=work, args=(base,)) for base in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    assert loop.run_until(lambda: len(seen) == 1500, 10.0)
    for thread in threads:
        thread.join()
    assert [n for n in seen if n < 1000] == list(range(500)), "the calls of one thread keep their order"


def test_the_longest_stall_is_measured(loop: Loop) -> None:
    loop.step(0.0)
    loop.call_soon(time.sleep, 0.02)  # the stall
    loop.step(0.0)
    assert 0.02 <= loop.longest_stall < 5.0


def test_an_exception_of_a_callback_ends_the_loop(loop: Loop) -> None:
    def bug() -> None:
        raise ZeroDivisionError

    loop.call_soon(bug)
    with pytest.raises(ZeroDivisionError):
        loop.run()


def test_what_was_seen_of_a_descriptor_is_not_told_to_the_next_one_with_its_number(loop: Loop) -> None:
    ends = [os.pipe() for _ in range(2)]
    seen: list[str] = []
    spare: list[int] = []

    def first(events: int) -> None:
        """Closes both, and has a new, empty pipe under one of their numbers."""
        for reading, _ in ends:
            loop.unwatch(reading)
            os.close(reading)
        spare.extend(os.pipe())
        loop.watch(spare[0], lambda events: seen.append("new"))
        seen.append("old")

    for reading, writing in ends:
        loop.watch(reading, first)
        os.write(writing, b"x")
    loop.step(0.0)
    assert spare[0] in [reading for reading, _ in ends]
    assert seen == ["old"]
    os.write(spare[1], b"x")
    loop.step(0.0)
    assert seen == ["old", "new"]
    loop.unwatch(spare[0])
    for fd in (*spare, *(writing for _, writing in ends)):
        os.close(fd)


# -- waiting inside the loop ----------------------------------------------------------------------------------------


def test_a_call_can_wait_inside_and_everything_else_goes_on_in_order(loop: Loop) -> None:
    seen: list[str] = []
    reading, writing = os.pipe()
    loop.watch(reading, lambda events: (seen.append(os.read(reading, 1).decode()), loop.unwatch(reading)))

    def outer() -> None:
        seen.append("begin")
        assert loop.run_within(lambda: "x" in seen and "timer" in seen)
        seen.append("end")

    loop.call_soon(outer)
    loop.call_soon(seen.append, "a")
    loop.call_soon(seen.append, "b")
    loop.call_soon(os.write, writing, b"x")
    loop.call_later(0.001, seen.append, "timer")
    loop.call_soon(loop.call_soon, seen.append, "c")
    assert loop.run_until(lambda: "end" in seen, 5.0)
    assert (seen[:3], seen[-1]) == (["begin", "a", "b"], "end")
    assert sorted(seen[3:-1]) == ["c", "timer", "x"]
    os.close(reading)
    os.close(writing)


def test_one_that_waits_inside_does_not_sleep_on_what_it_has_just_dispatched(loop: Loop) -> None:
    """The condition comes true in a deferred call, or in a pump, and no descriptor will ever be ready."""
    done: list[str] = []

    def outer() -> None:
        loop.call_soon(done.append, "call")
        assert loop.run_within(lambda: done == ["call"])
        loop.mark(lambda: done.append("pump"))
        assert loop.run_within(lambda: done == ["call", "pump"])
        loop.mark(lambda: loop.call_soon(done.append, "both"))
        assert loop.run_within(lambda: done == ["call", "pump", "both"])
        done.append("end")

    loop.call_soon(outer)
    begin = time.monotonic()
    assert loop.run_until(lambda: "end" in done, 5.0)
    assert time.monotonic() - begin < 4.0


def test_waits_nest_and_the_innermost_ends_first(loop: Loop) -> None:
    seen: list[str] = []

    def wait(name: str, until: str) -> None:
        assert loop.run_within(lambda: until in seen)
        seen.append(name)

    loop.call_soon(wait, "outer", "go")
    loop.call_soon(wait, "inner", "go")
    loop.call_later(0.001, seen.append, "go")
    assert loop.run_until(lambda: len(seen) == 3, 5.0)
    assert seen == ["go", "inner", "outer"]


def test_a_stopped_loop_ends_every_wait_and_then_itself(loop: Loop) -> None:
    ended: list[bool] = []

    def wait() -> None:
        ended.append(loop.run_within(lambda: False))

    loop.call_soon(wait)
    loop.call_soon(wait)
    loop.call_later(0.001, loop.stop)
    loop.run()
    assert ended == [False, False]


def test_only_a_deferred_call_may_wait_inside(loop: Loop) -> None:
    refused: list[str] = []

    def wait(name: str) -> None:
        with pytest.raises(RuntimeError, match="deferred call"):
            loop.run_within(lambda: True)
        refused.append(name)

    reading, writing = os.pipe()
    loop.watch(reading, lambda events: (wait("handler"), loop.unwatch(reading)))
    os.write(writing, b"x")
    loop.call_later(0.0, wait, "timer")
    loop.mark(lambda: wait("pump"))

    def within() -> None:
        loop.mark(lambda: wait("pump within"))
        assert loop.run_within(lambda: "pump within" in refused)
        assert loop.run_within(lambda: True)  # this one may still

    loop.call_soon(within)
    assert loop.run_until(lambda: len(refused) == 4, 5.0)
    wait("outside")
    os.close(reading)
    os.close(writing)
