"""Commands about emulated devices."""

from __future__ import annotations

from partitions.child.commands.options import disk
from partitions.child.console import CommandError, Session, Usage

_MEANING = {
    "dma": "the controller moves the data by itself",
    "string": "one REP for each sector",
    "words": "one access for each word",
}


async def hdparm(session: Session, arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        raise Usage("it takes a disk, and a mode")
    device = disk(session, arguments[0])
    mode = getattr(device, "mode", None)
    if mode is None:
        raise CommandError(f"{arguments[0]} is no IDE disk: it has no modes")
    if len(arguments) == 2:
        if arguments[1] not in _MEANING:
            raise Usage(f"there is no mode {arguments[1]!r}")
        device.mode = arguments[1]  # type: ignore[attr-defined]  # it has one, as was just seen
    await session.print(f"{arguments[0]}: {device.mode}, {_MEANING[device.mode]}")  # type: ignore[attr-defined]
    return 0
