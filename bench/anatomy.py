"""Where the microseconds of a null request over the ring go: ``python -m bench.anatomy``.

Both ends in one process, so that every step can be timed by itself: the caches are warm and nothing waits. The sum is
what the code costs; what ``vmbus-emu bench`` measures beyond it is the way of two cache lines from core to core, twice,
and the loops' rounds. Medians; the cost of reading the clock is taken off.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial

from bench.litmus import RING_PAGES
from drivers.disk import NullDisk
from partitions.child.storvsc import StorVsc
from partitions.parent.storvsp import StorVspSession
from vmbus_emu.device import BlockInfo, BlockRequest, Op
from vmbus_emu.guest_ring import GuestRing
from vmbus_emu.host_ring import HostRing
from vmbus_emu.loop import Loop
from vmbus_emu.memory import PAGE, Pool, Region
from vmbus_emu.polling import Poller
from vmbus_emu.ring import fence, reset

_ROUNDS = 20000
_POOL_PAGES = 64


def main() -> None:
    loop = Loop()
    poller = Poller(loop)
    pages = 2 * RING_PAGES + _POOL_PAGES
    fd = os.memfd_create("anatomy", os.MFD_CLOEXEC)
    os.ftruncate(fd, pages * PAGE)
    ours, theirs = (Region(os.dup(fd), 1 << 32, pages) for _ in range(2))
    up, down = range(RING_PAGES), range(RING_PAGES, 2 * RING_PAGES)
    for ring in (up, down):
        reset(ours.ring(ring))
    (to_host, rings_host), (to_guest, rings_guest) = (os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(2))
    host = HostRing(loop, poller, theirs.ring(up), theirs.ring(down), to_host, rings_guest, theirs)
    pool = Pool(ours, 2 * RING_PAGES, _POOL_PAGES)
    guest = GuestRing(loop, poller, ours.ring(down), ours.ring(up), to_guest, rings_host, ours, (pool,))
    StorVspSession(host, NullDisk(BlockInfo(1 << 20)))
    disk = StorVsc(loop, "disk0", print)
    attached = disk.attach(guest)
    loop.run_until(lambda: attached.done, 10)

    now = time.perf_counter_ns
    steps: dict[str, list[int]] = {}
    clock = []

    def timed(name: str, step: Callable[[], object]) -> None:
        begin = now()
        step()
        steps.setdefault(name, []).append(now() - begin)

    def settle(channel: GuestRing | HostRing) -> None:
        channel.publish()
        fence()
        channel.touched = False
        channel.ring_peer()

    for end in (guest, host):
        end.wake()  # no doorbells: this is the way of a request that is met awake
    done: list[BlockRequest] = []
    for _ in range(_ROUNDS):
        begin = now()
        clock.append(now() - begin)
        request = BlockRequest(Op.READY, on_done=done.append)
        timed("guest: storvsc submits, packet into the ring", partial(disk.submit, request))
        timed("guest: publish, fence, look who must be rung", partial(settle, guest))
        timed("host: packet out of the ring, storvsp, driver, answer into the ring", host.drain)
        timed("host: publish, fence, look who must be rung", partial(settle, host))
        timed("guest: answer out of the ring, storvsc completes", guest.drain)
        timed("either: one look at an empty ring", guest.has_news)
        settle(guest)
        poller._touched.clear()  # we settle ourselves
    if len(done) != _ROUNDS:
        raise SystemExit("not every request completed")
    overhead = statistics.median(clock)
    for name, values in steps.items():
        print(f"{(statistics.median(values) - overhead) / 1000:7.2f} us  {name}")


if __name__ == "__main__":
    main()
