"""Commands about the guest itself."""

from __future__ import annotations

import os

from partitions.child.commands.options import seconds
from partitions.child.console import Session, Usage
from vmbus_emu import task


async def lsvmbus(session: Session, arguments: list[str]) -> int:
    listing = session.guest.bus_listing
    if session.guest.without_services is not None:
        await session.complain(
            "lsvmbus: this guest has no integration services, and with them no VMBus; "
            f"{session.guest.without_services} gives it both"
        )
        return 1
    if listing is None:
        await session.complain("lsvmbus: there is no VMBus here; this guest's devices are function calls")
        return 1
    await session.print(f"{'ID':>3}  {'DEVICE':32} {'INSTANCE':36}  STATE")
    for relid, kind, instance, state in listing():
        await session.print(f"{relid:>3}  {kind:32} {instance:36}  {state}")
    return 0


async def dmesg(session: Session, arguments: list[str]) -> int:
    for line in list(session.guest.dmesg):
        await session.print(line)
    return 0


async def hostname(session: Session, arguments: list[str]) -> int:
    await session.print(session.guest.name)
    return 0


async def uptime(session: Session, arguments: list[str]) -> int:
    await session.print(f"up {session.guest.uptime:.3f} s")
    return 0


async def uname(session: Session, arguments: list[str]) -> int:
    kind = "monolithic: devices are calls" if session.guest.bus_listing is None else "synthetic devices over VMBus"
    if session.guest.without_services is not None:
        kind = "emulated devices, no integration services"
    await session.print(f"vmbus-emu guest {session.guest.name} ({kind}), pid {os.getpid()}")
    return 0


async def free(session: Session, arguments: list[str]) -> int:
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    await session.print(f"guest memory {session.guest.memory_bytes} bytes; its process holds {resident} bytes")
    return 0


async def memcheck(session: Session, arguments: list[str]) -> int:
    damage = session.guest.canary.damage()
    if damage is None:
        await session.print("intact")
        return 0
    await session.print(f"CORRUPT {damage.size} bytes at {damage.first:#x} to {damage.last:#x}")
    return 1


async def echo(session: Session, arguments: list[str]) -> int:
    await session.print(" ".join(arguments))
    return 0


async def cat(session: Session, arguments: list[str]) -> int:
    while data := await session.read():
        await session.write(data)
    return 0


async def sleep(session: Session, arguments: list[str]) -> int:
    if len(arguments) != 1:
        raise Usage("it takes a number of seconds")
    await task.sleep(session.guest.loop, seconds(arguments[0], "time"))
    return 0


async def true(session: Session, arguments: list[str]) -> int:
    return 0


async def false(session: Session, arguments: list[str]) -> int:
    return 1
