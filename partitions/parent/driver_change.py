"""Replacing the driver of a storage controller under running VMs: requests wait, none fails.

What is with the old driver ends first, as long as :data:`PATIENCE_S`; new requests are held meanwhile. Then every
disk on the controller gets the new driver, and what was held goes to that. If the old driver does not let go, or the
new one does not come up, the old one goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from partitions.driver_store import DriverFailed
from partitions.media import Disks
from partitions.parent.storvsp import StorVspSession
from vmbus_emu.loop import Loop
from vmbus_emu.task import sleep

#: The old driver's time to finish what it has, in seconds, and the time between two looks at that.
PATIENCE_S = 2.0
_LOOK_S = 0.0005


class DriverChange:
    """One change. ``sessions()``: those of the controller's disks at that moment, by medium."""

    def __init__(
        self, loop: Loop, disks: Disks, controller: str, sessions: Callable[[], list[tuple[str, StorVspSession]]]
    ) -> None:
        self._loop = loop
        self._disks = disks
        self._sessions = sessions
        self.controller = controller

    async def run(self, described: Mapping[str, Any]) -> tuple[float, str]:
        """How long requests were held, in ms, and why nothing has changed, or an empty text."""
        begun = time.monotonic()
        for _, session in self._sessions():
            session.hold()
        why = ""
        while any(session.with_driver for _, session in self._sessions()):
            if time.monotonic() - begun > PATIENCE_S:
                why = f"hw.{self.controller}: its driver did not finish what it has within {PATIENCE_S:.0f} s"
                break
            await sleep(self._loop, _LOOK_S)
        if not why:
            why = self._change(described)
        for medium, session in self._sessions():
            session.resume(self._disks.drivers[medium])
        return (time.monotonic() - begun) * 1000, why

    def _change(self, described: Mapping[str, Any]) -> str:
        disks, controller = self._disks, self.controller
        former = disks.store.choose(controller, described)
        try:
            disks.store.driver(controller)  # it loads, also if there is no disk
            made = {medium: disks.attached(medium) for medium, on in disks.controllers.items() if on == controller}
        except DriverFailed as failed:
            disks.store.restore(controller, former)
            return str(failed)
        disks.drivers.update(made)
        return ""
