"""Commands about what the guest has from its integration services: the time, and what it and the host tell each other.
"""

from __future__ import annotations

import time

from partitions.child.commands.options import parts_per_million
from partitions.child.console import CommandError, Session, Usage
from vmbus_emu.protocol.kvp import Item, Pool

_NS = 1_000_000_000
#: The last year that is written with four digits, in nanoseconds since 1970.
_LAST_NS = 253_402_300_800 * _NS


async def date(session: Session, arguments: list[str]) -> int:
    now = session.guest.services.clock.now()
    if not 0 <= now < _LAST_NS:
        raise CommandError("the clock shows no year from 1970 to 9999")
    if arguments == ["-n"]:
        await session.print(str(now))
        return 0
    if arguments:
        raise Usage("it takes -n, or nothing")
    whole = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now // _NS))
    await session.print(f"{whole}.{now % _NS // 1000:06} UTC")
    return 0


async def clock(session: Session, arguments: list[str]) -> int:
    clock = session.guest.services.clock
    if len(arguments) == 2 and arguments[0] == "drift":
        clock.drift_ppm = parts_per_million(arguments[1])
    elif arguments:
        raise Usage("it takes drift PPM, or nothing")
    await session.print(f"drift       {clock.drift_ppm:g} ppm")
    await session.print(f"correction  {clock.correction_ppm:.3f} ppm")
    await session.print(f"last error  {clock.last_error_ns / 1000:.1f} us")
    await session.print(f"set         {clock.steps} times, {clock.samples} samples since")
    return 0


async def kvp(session: Session, arguments: list[str]) -> int:
    store = session.guest.services.kvp
    pools = Pool.EXTERNAL, Pool.GUEST, Pool.AUTO
    match arguments:
        case []:
            for pool in pools:
                for key, value in store.pool(pool).items():
                    await session.print(f"{pool.name.lower():9} {key}={value}")
        case ["get", key]:
            found = next((store.pool(pool)[key] for pool in pools if key in store.pool(pool)), None)
            if found is None:
                raise CommandError(f"no key {key!r}; kvp lists them")
            await session.print(found)
        case ["set", key, value]:
            if not store.set_own(Item(key, value)):
                raise CommandError("that does not fit: a key has 1 to 255 characters, a value up to 1023")
        case ["delete", key]:
            if not store.delete_own(key):
                raise CommandError(f"this guest has not set {key!r}")
        case _:
            raise Usage("it takes nothing, or get KEY, set KEY VALUE, delete KEY")
    return 0
