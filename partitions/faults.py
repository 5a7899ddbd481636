"""The faults of a process that runs drivers: which of them get one, and what becomes of the rest of the process.

``{"t": "fault", "fault": name, "value": …, "components": […], "seed": …}`` gives the drivers of the named components a
fault, or, where a fault is not a driver's, carries it out on the whole process. ``{"t": "fault", "clear": true}`` takes
all lasting ones away; with ``components`` or ``fault`` only theirs or only that one. The machine has asked the table in
:mod:`vmbus_emu.faults` before it sends any of this. Loaded with the first such message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from vmbus_emu.device import Home
from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop
from vmbus_emu.node import load

#: Seconds to wait for a device in the monolith. One that hangs keeps its lock for ever, and this thread has more to do.
PATIENCE_S = 0.1
#: These a driver has until it is cleared; the others end something.
LASTING = frozenset(("slow", "error", "drop"))

#: The drivers of a component by name, and where each may be called; none if it has none.
DriversOf = Callable[[str], Mapping[str, tuple[Any, Home]]]


class DriverFaults:
    """``thread_of(vm)``: the loop of a VM that is a thread of this process, ``None`` of any other component."""

    def __init__(
        self, drivers_of: DriversOf, thread_of: Callable[[str], Loop | None], log: Callable[[str], Any]
    ) -> None:
        self._drivers_of = drivers_of
        self._thread_of = thread_of
        self._log = log
        self._undo: dict[tuple[str, str, str], tuple[Home, Callable[[], Any]]] = {}

    def handle(self, message: Message) -> None:
        """One ``fault`` message of the machine."""
        if message.get("clear"):
            self._clear(message.get("components"), message.get("fault"))
            return
        fault = (message["fault"], message.get("value"))
        for component in message["components"]:
            drivers = self._drivers_of(component)
            if fault[0] in LASTING or (drivers and fault[0] in load("drivers.faulty:NAMES")):
                seed = message.get("seed", 0)
                for name, (driver, home) in drivers.items():
                    key = (component, name, fault[0])
                    self._at(home, name, partial(self._install, key, driver, fault, home, seed))
                continue
            carry_out = load("vmbus_emu.wreck:carry_out")
            thread = self._thread_of(component)
            if thread is None:
                carry_out(*fault)
            else:
                thread.call_soon_threadsafe(carry_out, *fault)

    def _install(
        self, key: tuple[str, str, str], driver: Any, fault: tuple[str, Any], home: Home, seed: object
    ) -> None:
        self._undo[key] = (home, load("drivers.faulty:install")(driver, fault, home, f"{seed}.{key[1]}"))

    def _clear(self, components: list[str] | None, fault: str | None) -> None:
        for key, (home, undo) in list(self._undo.items()):
            component, name, kind = key
            if (components is None or component in components) and fault in (None, kind):
                self._at(home, name, partial(self._take_away, key, undo))

    def _take_away(self, key: tuple[str, str, str], undo: Callable[[], Any]) -> None:
        del self._undo[key]
        undo()

    def _at(self, home: Home, name: str, call: Callable[[], Any]) -> None:
        """Call where the driver may be called: on its loop, which is this one, or holding its lock."""
        lock = getattr(home, "lock", None)
        if lock is None:
            call()
        elif lock.acquire(timeout=PATIENCE_S):
            try:
                call()
            finally:
                lock.release()
        else:
            self._log(f"{name} hangs: its faults stay as they are")
