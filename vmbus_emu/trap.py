"""A process that dies at a step of its work. Loaded when one is armed, and not before.

``{"t": "crash_at", "component", "step", "count", "fault", "install"}`` arms a step: methods that the step leads through
are wrapped in this process, so a process in which nothing is armed pays nothing (design: rule 15).
``{"t": "crash_at", "clear": true}`` takes all of that away. Before it dies the process says ``struck``, and when.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from vmbus_emu.lifeline import Lifeline, Message
from vmbus_emu.node import load

_MISSING = object()


class Trap:
    """Counts how often its step is reached."""

    def __init__(self, order: Message, line: Lifeline) -> None:
        self._told = {"t": "struck", "component": order["component"], "at": f"{order['step']}:{order['count']}"}
        self._fault: str = order["fault"]
        self._left: int = order["count"]
        self._line = line

    def due(self) -> bool:
        """The step is reached. Whether it is time: whoever asked now sees to it that :meth:`strike` is called."""
        self._left -= 1
        return self._left == 0

    def strike(self, *ignored: object) -> None:
        """Die."""
        self._line.send({**self._told, "ns": time.monotonic_ns()})
        if self._fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        load("vmbus_emu.wreck:carry_out")(self._fault)

    def reached(self) -> None:
        """The step is reached: die, if it is time."""
        if self.due():
            self.strike()


class Patches:
    """What is wrapped in this process."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], Any]] = []

    def wrap(self, owner: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Put ``around(what was there)`` into the place of a class's method or a module's function."""
        own = vars(owner).get(name, _MISSING)
        setattr(owner, name, around(getattr(owner, name)))
        self.when_cleared(lambda: delattr(owner, name) if own is _MISSING else setattr(owner, name, own))

    def when_cleared(self, call: Callable[[], Any]) -> None:
        """``call()`` when all is taken away, after what was wrapped later is."""
        self._undo.append(call)

    def clear(self) -> None:
        while self._undo:
            self._undo.pop()()


_patches = Patches()


def obey(component: Any, order: Message, line: Lifeline) -> None:
    """One ``crash_at`` message. ``component`` is what the process runs. At most one step is armed at a time."""
    _patches.clear()
    if not order.get("clear"):
        load(order["install"])(order["step"], Trap(order, line), _patches, order["component"], component)
