"""Coroutines on the loop: futures settle once, tasks step without recursion, cancelling reaches where they wait."""

from __future__ import annotations

import pytest

from vmbus_emu.loop import Loop
from vmbus_emu.task import Cancelled, DeadlinePassed, Future, Task, sleep, within


def rounds(loop: Loop, count: int = 5) -> None:
    for _ in range(count):
        loop.step(0.0)


def test_a_future_settles_once_and_late_answers_are_ignored() -> None:
    future: Future[int] = Future()
    seen: list[int] = []
    future.then(lambda f: seen.append(f.result()))
    future.resolve(1)
    future.resolve(2)
    future.reject(ValueError())
    future.then(lambda f: seen.append(f.result()))
    assert seen == [1, 1]


def test_a_future_without_a_result_says_so_and_a_rejected_one_raises() -> None:
    future: Future[int] = Future()
    with pytest.raises(RuntimeError):
        future.result()
    future.reject(KeyError("why"))
    with pytest.raises(KeyError):
        future.result()


def test_a_forgotten_callback_is_not_called() -> None:
    future: Future[None] = Future()

    def never(settled: Future[None]) -> None:
        pytest.fail("forgotten, and called")

    future.then(never)
    future.forget(never)
    future.forget(never)
    future.resolve(None)


def test_a_task_has_its_coroutines_result(loop: Loop) -> None:
    async def two() -> int:
        await sleep(loop, 0.0)
        return 2

    async def sum_of_twos() -> int:
        return await Task(loop, two()) + await Task(loop, two())

    task = Task(loop, sum_of_twos(), watched=True)
    assert loop.run_until(lambda: task.done, 5.0)
    assert task.result() == 4


def test_a_thousand_awaits_that_are_ready_do_not_recurse(loop: Loop) -> None:
    waiting: list[Future[int]] = [Future() for _ in range(5000)]

    async def add() -> int:
        return sum([await future for future in waiting])

    task = Task(loop, add(), watched=True)
    loop.step(0.0)
    for future in reversed(waiting):
        future.resolve(1)
    assert loop.run_until(lambda: task.done, 5.0)
    assert task.result() == 5000


def test_an_exception_nobody_looks_at_ends_the_loop(loop: Loop) -> None:
    async def bug() -> None:
        raise ZeroDivisionError

    Task(loop, bug())
    with pytest.raises(ZeroDivisionError):
        loop.step(0.0)


def test_an_exception_that_somebody_awaits_is_theirs(loop: Loop) -> None:
    async def bug() -> None:
        raise ZeroDivisionError

    async def careful() -> str:
        try:
            await Task(loop, bug())
        except ZeroDivisionError:
            return "caught"
        return "missed"

    task = Task(loop, careful(), watched=True)
    rounds(loop)
    assert task.result() == "caught"


def test_cancel_raises_where_the_coroutine_waits_past_except_exception(loop: Loop) -> None:
    async def stubborn() -> None:
        try:
            await Future[None]()
        except Exception:
            pytest.fail("a cancellation is no error")

    task = Task(loop, stubborn())
    loop.step(0.0)
    task.cancel()
    rounds(loop)
    with pytest.raises(Cancelled):
        task.result()


def test_a_task_cancelled_before_its_first_step_still_ends(loop: Loop) -> None:
    async def wait() -> None:
        await Future[None]()

    task = Task(loop, wait())
    task.cancel()
    rounds(loop)
    assert task.done


def test_a_finished_task_cannot_be_cancelled(loop: Loop) -> None:
    async def one() -> int:
        return 1

    task = Task(loop, one(), watched=True)
    loop.step(0.0)
    task.cancel()
    rounds(loop)
    assert task.result() == 1


@pytest.mark.parametrize("times", [1, 2, 3])
def test_what_a_cancelled_coroutine_waited_for_does_not_wake_it_later(loop: Loop, times: int) -> None:
    """It cleans up, and waits while it does: only its own future may continue it."""
    first: Future[str] = Future()
    cleanups: list[Future[str]] = [Future() for _ in range(times)]
    order: list[str] = []

    async def work() -> str:
        pending = first
        for cleanup in cleanups:
            try:
                order.append(await pending)
            except Cancelled:
                order.append("cancelled")
                pending = cleanup
        return await pending

    task = Task(loop, work(), watched=True)
    loop.step(0.0)
    for _ in range(times):
        task.cancel()
    rounds(loop)
    first.resolve("late")
    for cleanup in cleanups[:-1]:
        cleanup.resolve("late")
    rounds(loop)
    assert not task.done
    cleanups[-1].resolve("clean")
    rounds(loop)
    assert task.result() == "clean"
    assert order == ["cancelled"] * times


def test_a_cancellation_right_behind_the_awaited_result_hits_the_next_wait_only(loop: Loop) -> None:
    first: Future[int] = Future()
    ready: Future[int] = Future()
    cleanup: Future[str] = Future()
    ready.resolve(2)

    async def work() -> str:
        try:
            await first
            await Future[None]()
        except Cancelled:
            return await cleanup
        return "never"

    task = Task(loop, work(), watched=True)
    loop.step(0.0)
    first.resolve(1)   # the wake-up is queued
    task.cancel()      # and the cancellation behind it
    rounds(loop)
    assert not task.done
    cleanup.resolve("clean")
    rounds(loop)
    assert task.result() == "clean"


def test_a_wake_up_that_a_cancellation_overtook_is_not_taken_for_the_next(loop: Loop) -> None:
    first: Future[int] = Future()
    second: Future[int] = Future()
    cleanup: Future[str] = Future()

    async def work() -> str:
        await first
        try:
            await second
        except Cancelled:
            return await cleanup
        return "never"

    task = Task(loop, work(), watched=True)
    loop.step(0.0)
    first.resolve(1)                        # queued: go on, to wait for the second
    loop.call_soon(second.resolve, 2)       # then its wake-up is queued, behind the cancellation
    task.cancel()
    rounds(loop)
    assert not task.done
    cleanup.resolve("clean")
    rounds(loop)
    assert task.result() == "clean"


def test_within_passes_on_the_outcome_or_says_that_time_is_up(loop: Loop) -> None:
    quick: Future[int] = Future()
    failing: Future[int] = Future()
    never: Future[int] = Future()
    outcomes = [within(loop, 60.0, quick), within(loop, 60.0, failing), within(loop, 0.001, never)]
    quick.resolve(1)
    failing.reject(KeyError())
    assert loop.run_until(lambda: all(outcome.done for outcome in outcomes), 5.0)
    assert outcomes[0].result() == 1
    with pytest.raises(KeyError):
        outcomes[1].result()
    with pytest.raises(DeadlinePassed):
        outcomes[2].result()
    never.resolve(3)
    with pytest.raises(DeadlinePassed):
        outcomes[2].result()


def test_one_that_waits_inside_the_loop_is_cancelled_where_it_waits_next(loop: Loop) -> None:
    reached: list[str] = []
    gate: list[bool] = []

    async def work() -> None:
        loop.run_within(lambda: bool(gate))
        reached.append("through")
        await Future[None]()
        reached.append("never")

    task = Task(loop, work(), watched=True)
    loop.call_soon(task.cancel)
    loop.call_soon(task.cancel)
    loop.call_later(0.001, gate.append, True)
    assert loop.run_until(lambda: task.done, 5.0)
    with pytest.raises(Cancelled):
        task.result()
    assert reached == ["through"]


def test_one_that_ends_after_it_was_cancelled_inside_keeps_its_result(loop: Loop) -> None:
    gate: list[bool] = []

    async def work() -> int:
        loop.run_within(lambda: bool(gate))
        return 7

    task = Task(loop, work(), watched=True)
    loop.call_soon(task.cancel)
    loop.call_later(0.001, gate.append, True)
    assert loop.run_until(lambda: task.done, 5.0)
    rounds(loop)
    assert task.result() == 7
