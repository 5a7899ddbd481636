"""A VM without integration services in the monolith: the device models of the other placements, reached by calls.

The models are the host's: what rises out of one is a host panic, as for a driver. They run on the VM's own thread and
end in the drivers behind their locks, so nothing else needs one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from partitions.boundary import panic
from partitions.child.legacy import LegacyDevices
from partitions.child.port_io import DirectPorts
from partitions.parent.chipset import Chipset
from partitions.parent.guest_memory import GuestMemory
from vmbus_emu.device import BlockDevice, NetworkPort
from vmbus_emu.loop import Loop
from vmbus_emu.memory import PAGE, Region
from vmbus_emu.task import Task

#: What the devices take to be found: calls of models, which ask no medium.
_DEADLINE_S = 10.0


class BoundChipset:
    """The boundary between a VM and its device models."""

    def __init__(self, name: str, chipset: Chipset) -> None:
        self._name = name
        self._chipset = chipset

    def read(self, port: int, size: int) -> int:
        try:
            return self._chipset.read(port, size)
        except BaseException:
            panic(self._name)

    def write(self, port: int, size: int, value: int) -> None:
        try:
            self._chipset.write(port, size, value)
        except BaseException:
            panic(self._name)

    def read_string(self, port: int, size: int, count: int, address: int) -> int:
        try:
            return self._chipset.read_string(port, size, count, address)
        except BaseException:
            panic(self._name)

    def write_string(self, port: int, size: int, count: int, address: int) -> int:
        try:
            return self._chipset.write_string(port, size, count, address)
        except BaseException:
            panic(self._name)


class EmulatedGuest:
    """The chipset of one VM, and what its guest finds. ``disks`` and ``nics``: the boundary's, in their order."""

    def __init__(
        self, loop: Loop, worker: str, config: dict[str, Any], disks: Sequence[BlockDevice],
        nics: Sequence[NetworkPort], log: Callable[[str], Any],
    ) -> None:
        (memory,) = config["io_memory"]
        fd = os.memfd_create(worker, os.MFD_CLOEXEC)
        os.ftruncate(fd, memory["pages"] * PAGE)
        region = Region(fd, memory["gpa"], memory["pages"])
        self._chipset = Chipset(disks, nics, GuestMemory(region.gpa, region.view), self._interrupt)
        self.ports = DirectPorts(BoundChipset(worker, self._chipset))
        self.devices = LegacyDevices(loop, self.ports, region, log)
        found = Task(loop, self.devices.start(config["disks"], config["nics"]))
        loop.run_until(lambda: found.done, _DEADLINE_S)
        found.result()

    def _interrupt(self, irq: int) -> None:
        self.devices.interrupt(irq)

    def stats(self) -> dict[str, Any]:
        """For ``ps``, in the place of a worker's."""
        return {"counters": dataclasses.asdict(self._chipset.stats())}
