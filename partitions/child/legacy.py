"""What a guest without integration services finds when it boots: IDE disks and legacy network adapters.

Where they are is not found out but known (docs/fidelity.md): the n-th disk is the n-th drive of the IDE controller, the
n-th NIC the n-th adapter. All of their memory, the devices' and the drivers', is one region.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from partitions.child.ide import IdeBus, IdeDisk
from partitions.child.port_io import PortIo
from partitions.child.tulip import TulipNic
from vmbus_emu.loop import Loop
from vmbus_emu.memory import Pool, Region
from vmbus_emu.protocol import tulip


class LegacyDevices:
    """``disks`` and ``nics`` by name, once :meth:`start` is through."""

    def __init__(self, loop: Loop, ports: PortIo, region: Region, log: Callable[[str], Any]) -> None:
        self._loop = loop
        self._ports = ports
        self._pool = Pool(region, 0, region.pages)
        self._log = log
        self._bus = IdeBus(loop, ports, self._pool, log)
        self.disks: dict[str, IdeDisk] = {}
        self.nics: dict[str, TulipNic] = {}

    async def start(self, disks: Iterable[str], nics: Iterable[str]) -> list[str]:
        """Find the devices; the names of those that are not there."""
        wanted = list(disks)
        self.disks = await self._bus.find(wanted)
        for index, name in enumerate(nics):
            base = tulip.BASE_PORT + index * tulip.PORTS_PER_ADAPTER
            self.nics[name] = TulipNic(self._loop, self._ports, self._pool, base, self._log)
            await self.nics[name].start()
        return [name for name in wanted if name not in self.disks]

    def interrupt(self, irq: int) -> None:
        """An interrupt line rose."""
        self._bus.interrupt(irq)
        if irq in tulip.IRQS:
            nics = list(self.nics.values())
            index = tulip.IRQS.index(irq)
            if index < len(nics):
                nics[index].interrupt()
