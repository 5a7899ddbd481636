"""A driver that works badly: slow, failing, losing frames, raising, or hanging, put over one that works well.

:func:`install` overrides what requests come through (a disk's ``submit``, a switch's ``forward``) on the one *object*
and takes that away again when the last fault is undone. So a driver without faults pays nothing, and whoever holds the
driver needs no change. Faults of one driver add up; a second of the same kind replaces the first.

What a driver owes stays owed: exactly one completion each, in-order hand-over to the driver below (so overlapping
requests keep their order), and never more outstanding than the driver's depth.
"""

from __future__ import annotations

import os
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from vmbus_emu.device import BlockRequest, Buffer, Home, Status

#: What this module does; all other faults are a whole process's.
NAMES = frozenset(("slow", "error", "drop", "panic", "hang"))
#: Frames that a slow switch holds; one more is lost, and counted by the port it came from.
WAITING_FRAMES = 4096

Undo = Callable[[], None]


class DriverBug(Exception):
    """What a driver with a bug raises out of a request."""


def install(driver: Any, fault: tuple[str, Any], home: Home, seed: object = 0) -> Undo:
    """Give ``driver`` a fault, ``(name, value)``: slow in seconds, error and drop as a share from 0 to 1.

    ``home`` is the driver's. Both this and what it returns are called where the driver may be called. ``seed``: which
    requests fail is the same in every run with it. ``ValueError``: this driver cannot have that fault.
    """
    name, value = fault
    kind = _FaultyDisk if hasattr(driver, "submit") else _FaultySwitch
    if name not in kind.NAMES:
        raise ValueError(f"a {type(driver).__name__} cannot have the fault {name!r}")
    present = vars(driver).get(kind.WAY)
    over: _Faulty = kind(driver, home) if present is None else present.__self__
    return over.add(name, value, random.Random(f"{name}.{seed}"))


class _Faulty:
    """What lies over one driver: its faults, and the requests that wait in it."""

    #: The method of the driver that is overridden.
    WAY: str
    NAMES: frozenset[str]

    def __init__(self, driver: Any, home: Home) -> None:
        self.driver = driver
        self._home = home
        self._go: Callable[..., Any] = getattr(driver, self.WAY)
        self._faults: dict[str, tuple[Any, random.Random]] = {}
        self._waiting: deque[tuple[Any, ...]] = deque()
        setattr(driver, self.WAY, self.take)

    def take(self, *request: Any) -> Any:
        """In place of the driver's method."""
        raise NotImplementedError

    def add(self, name: str, value: Any, dice: random.Random) -> Undo:
        mine = self._faults[name] = (value, dice)

        def undo() -> None:
            if self._faults.get(name) is mine:  # and not one that replaced it
                del self._faults[name]
                self._settle()

        return undo

    def _settle(self) -> None:
        """After a fault went: hand over what it held back, and leave the driver's way if it was the last."""
        if "slow" not in self._faults:
            while self._waiting:  # what comes in meanwhile waits behind them: order is kept
                self._go(*self._waiting.popleft())
        if not self._faults:
            vars(self.driver).pop(self.WAY, None)

    def strike(self) -> None:
        """Faults that whatever request comes first brings out."""
        if "panic" in self._faults:
            raise DriverBug(f"injected: a bug in {type(self.driver).__name__}")
        if "hang" in self._faults:
            _hang(self._faults["hang"][0])

    def hit(self, name: str) -> bool:
        """Whether this request is one of the share that suffers."""
        if name not in self._faults:
            return False
        share, dice = self._faults[name]
        return dice.random() < float(share)

    def holding(self) -> bool:
        """Whether a request has to wait: it is slow here, or others wait already."""
        return "slow" in self._faults or bool(self._waiting)

    def hold(self, *request: Any) -> None:
        self._waiting.append(request)
        delay = self._faults["slow"][0] if "slow" in self._faults else 0.0
        later = getattr(self._home, "call_later", None)
        if later is not None:
            later(delay, self._due)
            return
        timer = threading.Timer(delay, self._home.call_soon_threadsafe, (self._due,))
        timer.daemon = True
        timer.start()

    def _due(self) -> None:
        """One request's time has come: that of the oldest, in whatever order the timers of threads run out."""
        if self._waiting:  # or they were all handed over when the fault was cleared
            self._go(*self._waiting.popleft())


class _FaultyDisk(_Faulty):
    WAY = "submit"
    NAMES = frozenset(("slow", "error", "panic", "hang"))

    def take(self, request: BlockRequest) -> None:
        self.strike()
        if self.hit("error"):
            self._fail(request, Status.IO_ERROR)
        elif not self.holding():
            self._go(request)
        elif len(self._waiting) + self.driver.stats().outstanding >= self.driver.info.queue_depth:
            self._fail(request, Status.BUSY)
        else:
            self.hold(request)

    def _fail(self, request: BlockRequest, status: Status) -> None:
        """Complete it as the driver would have: those of this package count it."""
        complete = getattr(self.driver, "_complete", None)
        if complete is None:
            request.finish(status)
        else:
            complete(request, status)


class _FaultySwitch(_Faulty):
    WAY = "forward"
    NAMES = frozenset(("slow", "drop", "panic", "hang"))

    def take(self, source: Any, frame: Buffer) -> bool:
        self.strike()
        if self.hit("drop"):
            return False
        if not self.holding():
            return bool(self._go(source, frame))
        if len(self._waiting) >= WAITING_FRAMES:
            return False
        self.hold(source, bytes(frame))
        return True


def _hang(value: Any) -> None:
    while value == "busy":
        pass
    silent, _writer = os.pipe()
    while True:
        os.read(silent, 1)  # nobody ever writes
