"""The two ends of a ring channel in one process, as a guest and a VSP would set them up."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from vmbus_emu.guest_ring import GuestRing
from vmbus_emu.host_ring import HostRing
from vmbus_emu.loop import Loop
from vmbus_emu.memory import PAGE, Pool, Region
from vmbus_emu.polling import Poller
from vmbus_emu.ring import reset

GPA = 1 << 32


@dataclass
class SharedMemory:
    """One region, mapped once by each side, as two processes would have it."""

    pages: int
    fd: int = field(init=False)
    guest: Region = field(init=False)
    host: Region = field(init=False)

    def __post_init__(self) -> None:
        self.fd = os.memfd_create("ring-test", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.pages * PAGE)
        self.guest = Region(os.dup(self.fd), GPA, self.pages)
        self.host = Region(os.dup(self.fd), GPA, self.pages)

    def close(self) -> None:
        self.guest.close()
        self.host.close()
        os.close(self.fd)


@dataclass
class Ends:
    memory: SharedMemory
    guest: GuestRing
    host: HostRing
    buffers: Pool
    reserve: Pool

    def close(self) -> None:
        self.guest.close()
        self.host.close()
        self.memory.close()


def ring_ends(
    loop: Loop, poller: Poller, ring_pages: int = 16, buffer_pages: int = 512, reserve_pages: int = 256,
    max_ranges: int = 32,
) -> Ends:
    """Both ends on one loop. ``ring_pages``: of each ring, its control page included."""
    memory = SharedMemory(2 * ring_pages + buffer_pages + reserve_pages)
    up, down = range(ring_pages), range(ring_pages, 2 * ring_pages)
    to_host, to_guest = memory.guest.ring(up), memory.guest.ring(down)
    reset(to_host)
    reset(to_guest)
    guest_bell, rings_guest = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    host_bell, rings_host = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    buffers = Pool(memory.guest, 2 * ring_pages, buffer_pages)
    reserve = Pool(memory.guest, 2 * ring_pages + buffer_pages, reserve_pages)
    host = HostRing(
        loop, poller, memory.host.ring(up), memory.host.ring(down), host_bell, rings_guest,
        memory.host, max_ranges,
    )
    guest = GuestRing(
        loop, poller, to_guest, to_host, guest_bell, rings_host, memory.guest, (buffers, reserve)
    )
    return Ends(memory, guest, host, buffers, reserve)
