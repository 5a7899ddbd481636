"""How a guest ends in order when it is asked to: as an init that stops its services, syncs, and powers off.

Loaded with the first such order.
"""

from __future__ import annotations

from partitions.child.commands import blockio
from partitions.child.console import CommandError
from partitions.child.guest import Guest
from vmbus_emu.device import Op
from vmbus_emu.node import Node
from vmbus_emu.task import sleep

#: Between two looks at whether a disk has completed what a command left under way, and at whether the machine has taken
#: what the guest still had to say, in seconds.
_LOOK_S = 0.001


async def power_off(guest: Guest, patience_s: float) -> list[str]:
    """Make ``guest`` ready to lose its power; what could not be flushed, and why, one text for each such disk.

    No command begins any more. Those that run may end by themselves for ``patience_s`` seconds and are cancelled then.
    What they had under way on the disks completes, and then every disk is flushed. Takes as long as the slowest disk
    does: whoever asked has the deadline.
    """
    await guest.console.end_all(patience_s)
    flushes = []
    for name, disk in guest.disks.items():
        while disk.stats().outstanding:
            await sleep(guest.loop, _LOOK_S)
        flushes.append((name, disk, blockio.start(disk, Op.FLUSH)))
    unflushed = []
    for name, disk, flush in flushes:
        try:
            await blockio.finish(guest.loop, disk, flush)
        except CommandError as error:
            unflushed.append(f"{name}: {error}")
    guest.kernel_log("power off" + (f", not flushed: {', '.join(unflushed)}" if unflushed else ""))
    return unflushed


async def leave(node: Node, guest: Guest, patience_s: float) -> None:
    """Power ``guest`` off, whose process this is, and end the process. ``patience_s``: as above."""
    unflushed = await power_off(guest, patience_s)
    line = node.lifeline
    line.send({"t": "shut_down", "component": node.name, "unflushed": unflushed})
    while line.backlog:  # output of commands, which leaves before
        await sleep(node.loop, _LOOK_S)
    node.leave(0)
