"""One process, one event loop: descriptors, timers, deferred calls, and ZeroMQ sockets, over one epoll.

The measured path of every placement runs through here, so it is small and written out. It is not asyncio:
a ZeroMQ socket's descriptor is edge-triggered, and a *send* can eat the edge (libzmq processes its mailbox
inside ``send``), so a socket that was touched must be drained again before the loop may sleep.
:class:`Pump` is that rule: whoever touched a socket marks its pump, and the loop runs all marked pumps
before it blocks.

A callback that raises ends the loop, and with it the process: an uncaught exception is a bug, and whatever
else lives in this process is its blast radius.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR


class Timer:
    """A pending call; ``cancel`` makes it never run."""

    __slots__ = ("args", "callback", "when")

    def __init__(self, when: float, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.when = when
        self.callback: Callable[..., Any] | None = callback
        self.args = args

    def cancel(self) -> None:
        self.callback = None


class Poller(Protocol):
    """What looks at shared memory for the loop (:class:`vmbus_emu.polling.Poller`)."""

    def before_sleep(self, timeout: float) -> float | None: ...
    def looked(self, now: float) -> None: ...


class Loop:
    """Runs callbacks until :meth:`stop`. Everything but :meth:`call_soon_threadsafe` belongs to one thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], Any]] = {}
        self._soon: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._pumps: list[Callable[[], Any]] = []
        self._running = True
        self._deferring = False         # the innermost round is running a deferred call
        #: ``time.monotonic()`` when the loop last woke: cheap enough for "age of the last I/O".
        self.now = time.monotonic()
        #: The longest time, in seconds, that callbacks kept the loop from looking at its descriptors.
        self.longest_stall = 0.0
        #: Asked before each sleep, if there are rings to look at.
        self.poller: Poller | None = None
        #: I/O workers that are at work for this loop: while there are any, it does not spin.
        self.working = 0
        self._looked = self.now
        #: Descriptors watched since the last look: what that look saw is not theirs.
        self._fresh: set[int] = set()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._foreign: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self.watch(self._wake_fd, self._woken)

    # -- descriptors ------------------------------------------------------------------------------

    def watch(self, fd: int, handler: Callable[[int], Any], events: int = READ) -> None:
        """Call ``handler(events)`` whenever ``fd`` is ready (level-triggered)."""
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
            self._fresh.add(fd)
        self._handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Forget ``fd``. Call before closing it. Harmless when it is not watched."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    # -- calls ------------------------------------------------------------------------------------

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        """Run ``callback(*args)`` in the next round, before the loop sleeps."""
        self._soon.append((callback, args))

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Timer:
        """Run ``callback(*args)`` after ``delay`` seconds."""
        timer = Timer(time.monotonic() + delay, callback, args)
        heapq.heappush(self._timers, (timer.when, next(self._sequence), timer))
        return timer

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any) -> None:
        """Like :meth:`call_soon`, from any thread."""
        self._foreign.append((callback, args))
        os.eventfd_write(self._wake_fd, 1)

    def mark(self, pump: Callable[[], Any]) -> None:
        """Run ``pump`` once more before the loop sleeps. The caller keeps track of already being marked."""
        self._pumps.append(pump)

    def _woken(self, events: int) -> None:
        os.eventfd_read(self._wake_fd)
        while self._foreign:
            callback, args = self._foreign.popleft()
            callback(*args)

    # -- running ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until :meth:`stop` is called from a callback."""
        self._running = True
        while self._running:
            self.step()

    def run_until(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Run until ``condition()`` holds; ``False`` if ``deadline`` (seconds from now) passed first."""
        end = time.monotonic() + deadline
        self._running = True
        while not condition():
            self._run_deferred()  # may be all that the condition waits for, so look again before sleeping
            left = end - time.monotonic()
            if condition() or left <= 0:
                return condition()
            self._wait(left)
        return True

    def run_within(self, condition: Callable[[], bool]) -> bool:
        """From inside a deferred call, such as a task's step: go on with everything else until ``condition()`` holds;
        ``False`` if the loop was stopped first. For code that cannot return to the loop to wait: a library that calls
        back and wants its answer on return. Such waits may nest; the innermost ends first.

        Only a deferred call may: those run before a round fetches its events, so none is fetched and not dispatched
        yet. Raises ``RuntimeError`` in a handler, timer or pump.
        """
        if not self._deferring:
            raise RuntimeError("only a deferred call can wait inside the loop")
        self._deferring = False
        try:
            while not condition():
                if self._running:
                    self._run_deferred()  # may be all that the condition waits for, so look again before sleeping
                if condition():
                    break
                if not self._running:
                    return False
                self._wait(-1.0)
        finally:
            self._deferring = True
        return True

    def step(self, longest: float = -1.0) -> None:
        """One round: deferred calls and marked pumps, then wait for descriptors and timers, and dispatch.

        ``longest``: seconds to wait at most; negative for as long as nothing happens.
        """
        self._run_deferred()
        if self._running:
            self._wait(longest)

    def _run_deferred(self) -> None:
        soon = self._soon
        if soon:
            self._deferring = True
            for _ in range(len(soon)):
                if not soon:
                    break  # one of them waited inside, and the others were run meanwhile
                callback, args = soon.popleft()
                callback(*args)
            self._deferring = False
        if self._pumps:
            pumps, self._pumps = self._pumps, []
            for pump in pumps:
                pump()

    def _wait(self, longest: float) -> None:
        timeout = longest
        if self._soon or self._pumps:
            timeout = 0.0
        elif self._next_timer():
            until = max(0.0, self._timers[0][0] - time.monotonic())
            timeout = until if longest < 0 else min(until, longest)
        poller = self.poller
        if poller is not None:
            may_sleep = poller.before_sleep(timeout)
            if may_sleep is None:
                if self._timers:
                    self._run_timers()
                return
            timeout = may_sleep
        busy = (time.monotonic() if poller is None else self.now) - self._looked
        if busy > self.longest_stall:
            self.longest_stall = busy
        ready = self._epoll.poll(timeout)
        self.now = self._looked = time.monotonic()
        handlers, fresh = self._handlers, self._fresh
        if fresh:
            fresh.clear()
        for fd, events in ready:
            handler = handlers.get(fd)  # an earlier handler of this round may have unwatched it
            if handler is not None and not (fresh and fd in fresh):  # or closed it, and another has its number now
                handler(events)
        if self._timers:
            self._run_timers()
        if poller is not None:
            poller.looked(self._looked)

    def _next_timer(self) -> bool:
        """Whether there is one, at the head of the heap. What was cancelled shall not wake anybody."""
        timers = self._timers
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
        return bool(timers)

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                timer.callback(*timer.args)

    def stop(self) -> None:
        """Leave :meth:`run` after the current callback."""
        self._running = False

    def close(self) -> None:
        """Release the loop's own descriptors."""
        self._epoll.close()
        os.close(self._wake_fd)
