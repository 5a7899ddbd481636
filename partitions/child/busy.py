"""A disk whose depth others have taken says BUSY, and has done nothing (rule 9); it is asked again a little later.

Who must ask no more once nobody waits (a cancelled command), or keep an order among what was refused, keeps
:data:`RETRY_S` only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vmbus_emu.device import BUSY, BlockDevice, BlockRequest, Memory, Op
from vmbus_emu.loop import Loop

RETRY_S = 0.001


def submit(
    loop: Loop, disk: BlockDevice, op: Op, lba: int, blocks: int, buffer: Memory | None,
    done: Callable[[BlockRequest], Any],
) -> None:
    """Until the disk takes it. ``done`` is called once, with the request that ended in another way than BUSY."""

    def ended(request: BlockRequest) -> None:
        if request.status is BUSY:
            loop.call_later(RETRY_S, submit, loop, disk, op, lba, blocks, buffer, done)
        else:
            done(request)

    disk.submit(BlockRequest(op, lba, blocks, buffer, ended))
