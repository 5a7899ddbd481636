"""Following a drain to its end (:mod:`vmbus_emu.machine.drain` says what its steps are)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vmbus_emu.client.errors import checked

if TYPE_CHECKING:
    from vmbus_emu.client.door import Door


def drain(
    door: Door, grace_s: float, boot_s: float, progress: Callable[[Mapping[str, Any]], Any], **more: Any
) -> dict[str, Any]:
    """Ask for a drain, and wait: for each step at most the grace time and ``boot_s`` seconds. ``more``: what is to be
    booted. Raises
    :class:`~vmbus_emu.client.errors.MachineError`."""
    number = door.send("drain", grace_s=grace_s, **more)
    longest = grace_s + boot_s
    deadline = time.monotonic() + longest
    while (reply := door.receive(deadline)) is not None:
        if reply.get("id") != number:
            continue
        if "drained" in checked(reply):
            return dict(reply["drained"])
        deadline = time.monotonic() + longest
        progress(reply)
    raise door.silence(longest)
