"""Does a wake-up ever get lost? ``python -m bench.litmus [--messages N] [--mode MODE] [--seed N]``.

Two processes, a guest's end and a host's end of one ring channel, nothing above them. The guest sends bursts of random
length and waits until every packet has come back, in order; so each burst ends with both ends about to sleep, at every
possible moment of the other's doing the same. That is where a missing fence, or a wrong order around one, would show:
as a sleeper whom nobody rang, found by the look after 20 ms and counted as ``missed_doorbells``.

The count must be 0. To see that the benchmark can tell, ``--without-fence`` leaves the fence out.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import struct
import sys
import time

import vmbus_emu.polling
from vmbus_emu.device import Memory
from vmbus_emu.guest_ring import GuestRing
from vmbus_emu.host_ring import HostRing
from vmbus_emu.loop import Loop
from vmbus_emu.memory import PAGE, Region
from vmbus_emu.polling import MODES, Poller
from vmbus_emu.protocol.packets import COMPLETION, COMPLETION_REQUESTED, IN_BAND
from vmbus_emu.ring import reset
from vmbus_emu.ring_channel import RingChannel

RING_PAGES = 16
_GPA = 1 << 32
_DEADLINE_S = 86400.0
_MESSAGE = bytes(64)
_BURSTS = (1, 1, 1, 2, 3, 5, 8, 16, 32, 64, 128, 200)
_COUNTS = struct.Struct("<QQQ")


def _end(fd: int, pages: int) -> tuple[memoryview, memoryview, Region]:
    region = Region(os.dup(fd), _GPA, pages)
    return region.ring(range(RING_PAGES)), region.ring(range(RING_PAGES, 2 * RING_PAGES)), region


def _counts(loop: Loop, channel: RingChannel) -> tuple[int, int, int]:
    assert isinstance(loop.poller, Poller)
    return loop.poller.missed_doorbells, channel.doorbells, loop.poller.sleeps


def _host(fd: int, mode: str, bell: int, peer_bell: int, report: int) -> None:
    """Echo until told to stop; then say what was counted."""
    loop = Loop()
    up, down, region = _end(fd, 2 * RING_PAGES)
    channel = HostRing(loop, Poller(loop, mode), up, down, bell, peer_bell, region)
    ended: list[str] = []
    channel.on_failed = ended.append

    def echo(packet_type: int, flags: int, transaction_id: int, message: bytes, data: Memory | None) -> None:
        if not flags:
            ended.append("")
        elif not channel.send(COMPLETION, 0, transaction_id, message):
            ended.append("the guest takes no answers")

    channel.on_packet = echo
    loop.run_until(lambda: bool(ended), _DEADLINE_S)
    if ended[0]:
        raise SystemExit(ended[0])
    os.write(report, _COUNTS.pack(*_counts(loop, channel)))


def _guest(fd: int, mode: str, bell: int, peer_bell: int, messages: int, seed: int) -> tuple[int, int, int]:
    loop = Loop()
    up, down, region = _end(fd, 2 * RING_PAGES)
    channel = GuestRing(loop, Poller(loop, mode), down, up, bell, peer_bell, region, ())
    chance = random.Random(seed)
    sent = answered = 0
    failed: list[str] = []
    channel.on_failed = failed.append

    def burst() -> None:
        nonlocal sent
        for _ in range(chance.choice(_BURSTS)):
            sent += 1
            if not channel.send(IN_BAND, COMPLETION_REQUESTED, sent, _MESSAGE):
                failed.append("a burst that fits found no room")

    def came(packet_type: int, flags: int, transaction_id: int, message: bytes, data: Memory | None) -> None:
        nonlocal answered
        answered += 1
        if transaction_id != answered or message != _MESSAGE:
            failed.append(f"answer {transaction_id} came where {answered} was due")
        if answered == sent and sent < messages:
            burst()

    channel.on_packet = came
    burst()
    loop.run_until(lambda: (answered == sent and sent >= messages) or bool(failed), _DEADLINE_S)
    if failed:
        raise SystemExit(f"litmus: {failed[0]}")
    channel.send(IN_BAND, 0, 0, _MESSAGE)
    loop.run_until(lambda: False, 0.1)
    return _counts(loop, channel)


def run(messages: int, mode: str, seed: int) -> dict[str, float]:
    """``messages`` packets, half of them in each direction; what both ends counted."""
    pages = 2 * RING_PAGES
    fd = os.memfd_create("litmus", os.MFD_CLOEXEC)
    os.ftruncate(fd, pages * PAGE)
    up, down, _ = _end(fd, pages)
    reset(up)
    reset(down)
    (to_host, rings_host), (to_guest, rings_guest) = (os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(2))
    answer, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _host(fd, mode, to_host, rings_guest, report)
            status = 0
        finally:
            os._exit(status)
    begin = time.perf_counter()
    try:
        guest = _guest(fd, mode, to_guest, rings_host, messages // 2, seed)
        elapsed = time.perf_counter() - begin
        host = _COUNTS.unpack(os.read(answer, _COUNTS.size))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    missed, doorbells, sleeps = (ours + theirs for ours, theirs in zip(guest, host, strict=True))
    return {"messages": messages, "seconds": elapsed, "missed": missed, "doorbells": doorbells, "sleeps": sleeps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000_000)
    parser.add_argument("--mode", choices=MODES, action="append", help="may be given several times")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without-fence", action="store_true")
    options = parser.parse_args()
    if options.without_fence:
        setattr(vmbus_emu.polling, "fence", lambda: None)  # noqa: B010  # an import, seen by the poller alone
    modes = options.mode or ["never", "adaptive"]
    missed = 0
    for mode in modes:
        figures = run(options.messages // len(modes), mode, options.seed)
        missed += int(figures["missed"])
        print(f"{mode:9} {figures['messages']:.0f} messages in {figures['seconds']:.1f} s, "
              f"{figures['sleeps']:.0f} sleeps, {figures['doorbells']:.0f} doorbells, {figures['missed']:.0f} missed",
              flush=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
