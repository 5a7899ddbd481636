"""The guest operating system: its devices, its IP stack, its kernel log, and the console that runs commands.

The same object in every placement. In a child partition it lives in a process and its devices are VSCs; in the
monolith it lives in a thread and its devices are drivers behind the boundary. It cannot tell; the clock can.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from partitions.child.bulk import Receiver
from partitions.child.console import Console
from partitions.child.inet import IpStack
from partitions.child.services import Services
from vmbus_emu.canary import Canary
from vmbus_emu.device import BlockDevice, NetworkPort
from vmbus_emu.loop import Loop

_DMESG_LINES = 1000

#: ``lsvmbus``: relid, kind, instance id, state per channel; ``None`` where there is no VMBus.
BusListing = Callable[[], list[tuple[int, str, str, str]]]


class Guest:
    """``config`` is :func:`vmbus_emu.placement.guest`; ``send`` takes the console's messages to the machine."""

    def __init__(
        self,
        loop: Loop,
        config: Mapping[str, Any],
        disks: Mapping[str, BlockDevice],
        nics: Mapping[str, NetworkPort],
        send: Callable[[dict[str, Any]], Any],
        log: Callable[[str], Any],
    ) -> None:
        self.loop = loop
        self.name: str = config["name"]
        self.address: str = config["address"]
        self.prefix: int = config["prefix"]
        #: The component that has this guest's emulated devices, if it has such.
        self.worker: str = config.get("worker", "")
        self.memory_bytes: int = config["memory_bytes"]
        self.hosts: dict[str, str] = dict(config["hosts"])
        self.disks = disks
        self.nics = nics
        self.bus_listing: BusListing | None = None
        #: What would give this guest integration services, if it has none.
        self.without_services: str | None = None
        #: What the devices' transport counts.
        self.link_counters: Callable[[], dict[str, int]] = dict
        #: Private memory of this guest, which tells whether somebody wrote where nobody should.
        self.canary = Canary()
        self.booted_at = time.monotonic()
        self.dmesg: deque[str] = deque(maxlen=_DMESG_LINES)
        self._log = log
        first = next(iter(nics.values()), None)
        self.ip = (
            None if first is None else IpStack(loop, first, self.address, self.prefix, self.hosts, self.kernel_log)
        )
        #: What other guests send in bulk arrives there.
        self.receiver = None if self.ip is None else Receiver(self.ip)
        self.services = Services(self, config.get("clock_drift_ppm", 0.0))
        self.console = Console(self, send)

    def know(self, hosts: Mapping[str, str]) -> None:
        """Other VMs have come or gone: these are the names now."""
        self.hosts.clear()
        self.hosts.update(hosts)

    @property
    def uptime(self) -> float:
        """Seconds since this guest started."""
        return time.monotonic() - self.booted_at

    def kernel_log(self, text: str) -> None:
        """One line into ``dmesg`` and into the machine's log of this VM."""
        self.dmesg.append(f"[{self.uptime:12.6f}] {text}")
        self._log(text)

    def announce_devices(self) -> None:
        """What a kernel says about the devices it found."""
        for name, disk in self.disks.items():
            info = disk.info
            mode = ", read-only" if info.read_only else ""
            self.kernel_log(f"{name}: {info.block_count} blocks of 512 bytes ({info.size_bytes} bytes){mode}")
        for name, nic in self.nics.items():
            self.kernel_log(f"{name}: address {nic.info.mac.hex(':')}, mtu {nic.info.mtu}")
        if self.ip is not None:
            self.kernel_log(f"ip: {self.address}/{self.prefix}")

    def stats(self) -> dict[str, Any]:
        """For ``ps``: completed disk requests and frames, the time of the last one, counters."""
        disks = [disk.stats() for disk in self.disks.values()]
        nics = [nic.stats() for nic in self.nics.values()]
        return {
            "io": sum(s.completed for s in disks) + sum(s.tx_frames + s.rx_frames for s in nics),
            "last_io": max([s.last_io for s in disks] + [s.last_io for s in nics], default=0.0),
            "counters": {
                "disk_reads": sum(s.reads for s in disks),
                "disk_writes": sum(s.writes for s in disks),
                "disk_errors": sum(s.errors for s in disks),
                "frames_out": sum(s.tx_frames for s in nics),
                "frames_in": sum(s.rx_frames for s in nics),
                "frames_lost": sum(s.tx_drops + s.rx_drops for s in nics),
                "commands": self.console.commands_run,
                **self.link_counters(),
            },
        }
