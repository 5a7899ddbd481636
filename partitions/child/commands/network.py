"""Commands about the network."""

from __future__ import annotations

import time

from partitions.child.commands.options import count, flags, seconds
from partitions.child.console import CommandError, Session, Usage
from partitions.child.inet import EchoOutcome, EchoReply, IpStack
from vmbus_emu.task import Cancelled, Task, sleep

_PAYLOAD_BYTES = 56
_ICMP_HEADER = 8
#: Hosts that ``fping`` waits for at the same time.
_FPING_WINDOW = 8


def stack_of(session: Session) -> IpStack:
    """The guest's IP stack."""
    if session.guest.ip is None:
        raise CommandError("this guest has no network adapter")
    return session.guest.ip


def address_of(stack: IpStack, host: str) -> str:
    """The address of a host name, or of an address."""
    address = stack.resolve(host)
    if address is None:
        raise CommandError(f"{host}: name not known; see hosts")
    return address


def _payload(length: int) -> bytes:
    return bytes(index & 0xFF for index in range(length))


def _why(outcome: EchoOutcome) -> str:
    return "no answer" if outcome is None or isinstance(outcome, EchoReply) else outcome.value


async def ping(session: Session, arguments: list[str]) -> int:
    options, words = flags(arguments, "c:i:s:W:q")
    if len(words) != 1:
        raise Usage("it takes one host")
    stack = stack_of(session)
    host = words[0]
    address = address_of(stack, host)
    total = count(options.get("c", "0"), "count")
    interval = seconds(options.get("i", "1"), "interval")
    wait = seconds(options.get("W", "5"), "wait")
    length = count(options.get("s", str(_PAYLOAD_BYTES)), "size")
    quiet = "q" in options
    if length > 65507:
        raise Usage("size is at most 65507")
    await session.print(f"PING {host} ({address}) {length} bytes of data.")
    times: list[float] = []
    sent = 0
    begin = time.monotonic()
    try:
        while not total or sent < total:
            sent += 1
            outcome = await stack.echo(address, sent, _payload(length), wait)
            if isinstance(outcome, EchoReply):
                times.append(outcome.rtt_seconds * 1000)
                if not quiet:
                    await session.print(
                        f"{outcome.nbytes} bytes from {host} ({address}): icmp_seq={sent} ttl={outcome.ttl} "
                        f"time={times[-1]:.3f} ms"
                    )
            elif not quiet:
                await session.print(f"From {session.guest.address} icmp_seq={sent} {_why(outcome)}")
            if sent != total:
                await sleep(session.guest.loop, interval)
    except Cancelled:
        await _ping_summary(session, host, sent, times, begin)
        raise
    await _ping_summary(session, host, sent, times, begin)
    return 0 if times else 1


async def _ping_summary(session: Session, host: str, sent: int, times: list[float], begin: float) -> None:
    lost = 100 * (sent - len(times)) / sent if sent else 0.0
    elapsed = (time.monotonic() - begin) * 1000
    await session.print(f"\n--- {host} ping statistics ---")
    await session.print(
        f"{sent} packets transmitted, {len(times)} received, {lost:g}% packet loss, time {elapsed:.0f}ms"
    )
    if times:
        mean = sum(times) / len(times)
        await session.print(f"rtt min/avg/max = {min(times):.3f}/{mean:.3f}/{max(times):.3f} ms")


async def fping(session: Session, arguments: list[str]) -> int:
    options, hosts = flags(arguments, "c:W:")
    if not hosts:
        raise Usage("it takes at least one host")
    stack = stack_of(session)
    tries = count(options.get("c", "1"), "count", 1)
    wait = seconds(options.get("W", "5"), "wait")
    failed = 0
    pending = list(reversed(hosts))
    under_way: list[Task[bool]] = []

    async def one(host: str) -> bool:
        address = stack.resolve(host)
        if address is None:
            await session.print(f"{host} is unknown")
            return False
        best: float | None = None
        why = "no answer"
        answered = 0
        for number in range(tries):
            outcome = await stack.echo(address, number + 1, _payload(_PAYLOAD_BYTES), wait)
            if isinstance(outcome, EchoReply):
                answered += 1
                best = min(best or outcome.rtt_seconds, outcome.rtt_seconds)
            else:
                why = _why(outcome)
        if best is None:
            await session.print(f"{host} is unreachable: {why}")
        else:
            await session.print(f"{host} is alive ({best * 1000:.3f} ms), {answered}/{tries} answered")
        return answered == tries

    try:
        # One host alone first: its ARP request tells the whole segment who we are, and most of the others' tell us,
        # so that many guests doing this at once do not each broadcast for each of the others.
        failed += not await one(pending.pop())
        while pending or under_way:
            while pending and len(under_way) < _FPING_WINDOW:
                under_way.append(Task(session.guest.loop, one(pending.pop()), watched=True))
            failed += not await under_way.pop(0)
    except Cancelled:
        for task in under_way:
            task.cancel()
        raise
    return 1 if failed else 0


async def arp(session: Session, arguments: list[str]) -> int:
    names = {address: name for name, address in session.guest.hosts.items()}
    for address, mac in sorted(stack_of(session).arp_table().items()):
        await session.print(f"{names.get(address, '?')} ({address}) at {mac}")
    return 0


async def ip(session: Session, arguments: list[str]) -> int:
    options, words = flags(arguments, "s")
    if words:
        raise Usage("it takes no words")
    for index, (name, nic) in enumerate(session.guest.nics.items()):
        info = nic.info
        address = f" {session.guest.address}/{session.guest.prefix}" if index == 0 else ""
        await session.print(f"{name}: mac {info.mac.hex(':')} mtu {info.mtu}{address}")
        if "s" in options:
            s = nic.stats()
            await session.print(f"    tx {s.tx_frames} frames {s.tx_bytes} bytes {s.tx_drops} dropped")
            await session.print(f"    rx {s.rx_frames} frames {s.rx_bytes} bytes {s.rx_drops} dropped")
    return 0


async def hosts(session: Session, arguments: list[str]) -> int:
    for name, address in session.guest.hosts.items():
        await session.print(f"{address:15} {name}")
    return 0


