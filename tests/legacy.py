"""Emulated devices and their drivers in one process, connected by calls: what the monolith has, and what an intercept's
way lies between elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from partitions.child.ide import IdeBus, IdeDisk
from partitions.child.port_io import DirectPorts
from partitions.child.tulip import TulipNic
from partitions.parent.chipset import Chipset
from partitions.parent.guest_memory import GuestMemory
from vmbus_emu.device import BlockDevice, NetworkPort
from vmbus_emu.loop import Loop
from vmbus_emu.memory import PAGE, Pool, Region
from vmbus_emu.protocol import tulip
from vmbus_emu.task import Task

GPA = 1 << 28
DEADLINE_S = 10.0


class Memory:
    """I/O memory, mapped by the guest and by the models."""

    def __init__(self, pages: int = 1024) -> None:
        fd = os.memfd_create("legacy-test", os.MFD_CLOEXEC)
        os.ftruncate(fd, pages * PAGE)
        self._guest = Region(os.dup(fd), GPA, pages)
        self._host = Region(fd, GPA, pages)
        self._pages = pages
        self.pool = self.whole()
        self.window = GuestMemory(GPA, self._host.view)

    def whole(self) -> Pool:
        """All of it, to be given away anew, with what is in it."""
        return Pool(self._guest, 0, self._pages)

    def close(self) -> None:
        self._guest.close()
        self._host.close()


class IdeBench:
    """Drives behind a controller, and the guest's disks that reach them."""

    def __init__(self, loop: Loop, drivers: Sequence[BlockDevice]) -> None:
        self.memory = Memory()
        self.log: list[str] = []
        self.chipset = Chipset(drivers, [], self.memory.window, lambda irq: self._bus.interrupt(irq))
        self.ports = DirectPorts(self.chipset)
        self._bus = IdeBus(loop, self.ports, self.memory.pool, self.log.append)
        found = Task(loop, self._bus.find([f"disk{index}" for index in range(len(drivers))]))
        assert loop.run_until(lambda: found.done, DEADLINE_S)
        self.disks: dict[str, IdeDisk] = found.result()

    @property
    def disk(self) -> IdeDisk:
        return self.disks["disk0"]

    def close(self) -> None:
        self.memory.close()


class NicBench:
    """A guest's NIC, its adapter, and the port behind that."""

    def __init__(self, loop: Loop, port: NetworkPort, log: Callable[[str], object]) -> None:
        self.memory = Memory(64)
        self.chipset = Chipset([], [port], self.memory.window, lambda irq: self.nic.interrupt())
        self.ports = DirectPorts(self.chipset)
        self.boot(loop, log)

    def boot(self, loop: Loop, log: Callable[[str], object]) -> None:
        """Begin the VM's next life, in the memory of the one before."""
        self.nic = TulipNic(loop, self.ports, self.memory.whole(), tulip.BASE_PORT, log)
        started = Task(loop, self.nic.start())
        assert loop.run_until(lambda: started.done, DEADLINE_S)
        started.result()

    def close(self) -> None:
        self.memory.close()
