"""Coroutines on the loop: just enough to write a sequence of asynchronous steps from top to bottom.

Used for what is a *story* (a guest's console command, a VSC's handshake, a power-on), never per I/O on a
measured path. ``await`` a :class:`Future`; a :class:`Task` runs a coroutine and is itself a future of its
result. An exception nobody awaits is raised out of the loop: it is a bug, and ends the process.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from vmbus_emu.loop import Loop

T = TypeVar("T")


class Cancelled(BaseException):
    """Thrown into a coroutine by :meth:`Task.cancel`. Derived so that ``except Exception`` does not stop it."""


class Future(Generic[T]):
    """A value that comes later: set once, by :meth:`resolve` or :meth:`reject`."""

    __slots__ = ("_callbacks", "_done", "_error", "_value")

    def __init__(self) -> None:
        self._done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Future[T]], Any]] = []

    @property
    def done(self) -> bool:
        return self._done

    def resolve(self, value: T) -> None:
        """Set the value and wake who waits. A second call is ignored: late answers are common and harmless."""
        if not self._done:
            self._value = value
            self._settle()

    def reject(self, error: BaseException) -> None:
        """Make the waiters raise ``error``."""
        if not self._done:
            self._error = error
            self._settle()

    def _settle(self) -> None:
        self._done = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def then(self, callback: Callable[[Future[T]], Any]) -> None:
        """Call ``callback(self)`` when settled; at once if it already is."""
        if self._done:
            callback(self)
        else:
            self._callbacks.append(callback)

    def forget(self, callback: Callable[[Future[T]], Any]) -> None:
        """Take a callback back."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def result(self) -> T:
        """The value; raises what it was rejected with."""
        if self._error is not None:
            raise self._error
        if not self._done:
            raise RuntimeError("the future has no result yet")
        return self._value  # type: ignore[return-value]

    def __await__(self) -> Generator[Future[T], None, T]:
        if not self._done:
            yield self
        return self.result()


class Task(Future[T]):
    """A coroutine driven by the loop. Steps run from ``call_soon``, so completions never recurse into it."""

    __slots__ = ("_cancelled", "_coroutine", "_inside", "_loop", "_waiting", "_watched")

    def __init__(self, loop: Loop, coroutine: Coroutine[Any, Any, T], watched: bool = False) -> None:
        """``watched``: somebody looks at the result, so an exception is theirs; otherwise it ends the loop."""
        super().__init__()
        self._loop = loop
        self._coroutine = coroutine
        self._watched = watched
        self._waiting: Future[Any] | None = None
        self._inside = False            # the coroutine is running; it may do so in :meth:`Loop.run_within`
        self._cancelled: BaseException | None = None    # while it was
        loop.call_soon(self._step, None)

    def then(self, callback: Callable[[Future[T]], Any]) -> None:
        self._watched = True
        super().then(callback)

    def __await__(self) -> Generator[Future[T], None, T]:
        self._watched = True
        return super().__await__()

    def cancel(self) -> None:
        """Throw :class:`Cancelled` into the coroutine where it waits, or will wait next."""
        if not self._done:
            self._loop.call_soon(self._step, Cancelled())

    def _wake(self, future: Future[Any]) -> None:
        self._loop.call_soon(self._resume, future)

    def _resume(self, future: Future[Any]) -> None:
        if future is self._waiting:  # otherwise a cancellation came first, and the coroutine waits elsewhere by now
            self._step(None)

    def _step(self, throw: BaseException | None) -> None:
        if self._done:
            return
        if self._inside:
            self._cancelled = throw
            return
        if self._waiting is not None:
            self._waiting.forget(self._wake)
            self._waiting = None
        self._inside = True
        try:
            waiting = self._coroutine.throw(throw) if throw is not None else self._coroutine.send(None)
        except StopIteration as stop:
            self.resolve(stop.value)
            return
        except (Exception, Cancelled) as error:
            if not self._watched and not isinstance(error, Cancelled):
                raise
            self.reject(error)
            return
        self._inside = False
        self._waiting = waiting
        waiting.then(self._wake)
        if self._cancelled is not None:
            cancelled, self._cancelled = self._cancelled, None
            self._loop.call_soon(self._step, cancelled)


def sleep(loop: Loop, seconds: float) -> Future[None]:
    """A future that resolves after ``seconds``."""
    future: Future[None] = Future()
    loop.call_later(seconds, future.resolve, None)
    return future


class DeadlinePassed(Exception):
    """What was awaited did not come in time."""


def within(loop: Loop, seconds: float, future: Future[T]) -> Future[T]:
    """``future``'s outcome, or :class:`DeadlinePassed` after ``seconds``."""
    outcome: Future[T] = Future()
    timer = loop.call_later(seconds, outcome.reject, DeadlinePassed())

    def settle(source: Future[T]) -> None:
        timer.cancel()
        try:
            outcome.resolve(source.result())
        except (Exception, Cancelled) as error:
            outcome.reject(error)

    future.then(settle)
    return outcome
