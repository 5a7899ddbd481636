"""What happens in a machine, as it happens: deaths, restarts, devices that go and come back.

For ``watch`` and ``kill``.

An event is a mapping: ``n`` (a number, counting up), ``ns`` (``time.monotonic_ns()`` when it happened, by the clock of
who saw it: all processes of a system share that clock), ``event``, and fields by the kind of event:

============ ======================================================================================================
killed       ``component``, ``pid``, ``signal``: this machine was asked to, and sent it; ``at``: at that step, if any
armed        ``component``, ``pid``, ``incarnation``, ``at``: it is to die when it comes to that step
died         ``component``, ``carried``, ``pid``, ``incarnation``, ``signal``, ``exit_code``, ``reason``;
             ``crash``: the file that is being written about it; ``host``: the process that lives on without it
hung         ``component``, ``pid``, ``incarnation``, ``silent_ms``, ``reason``: it is being killed for not answering
starting     ``component``, ``pid``, ``incarnation``, ``spare``: the replacement exists (``spare``: it had been waiting)
ready        ``component``, ``pid``, ``incarnation``
detached     ``component`` (a VM), ``device``: its channel is gone
attached     ``component``, ``device``, ``resent``: it has a channel again, and sent so many requests anew
given up     ``component``, ``device``: nothing will bring it back
fault        ``component``, ``fault``: a driver has a lasting fault
faults       ``component`` (``None``: all), ``fault`` (if it is only that one): lasting faults were taken away
cleared
added        ``component``: a VM that the topology did not have; then ``starting`` and ``ready``
stopped      ``component``: a VM's power was cut by order, and it stays off
removed      ``component``: that VM is no more
driver       ``component`` (a physical device), ``driver``, ``error`` (``None``: it drives the device now)
draining     ``vms``, ``grace_s``, ``degraded_s``: the VMs are to shut down
drained      ``component`` (a VM), ``how``, ``ms``, ``unflushed`` (:mod:`vmbus_emu.machine.drain`)
stopped      ``component`` (a VM), ``how``, ``ms``, ``unflushed`` (:mod:`vmbus_emu.machine.stops`)
heartbeat    ``component`` (a VM), ``state``: ``lost``, or ``ok`` again
rebooting    ``reason``; then ``up`` when it is
halted       ``reason``
============ ======================================================================================================
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from vmbus_emu.lifeline import Message

#: Events that somebody who comes later can still ask for.
KEPT = 1000


class Events:
    """``reply(client, message)`` reaches a client."""

    def __init__(self, reply: Callable[[bytes, Message], Any]) -> None:
        self._reply = reply
        self._count = 0
        self._kept: deque[Message] = deque(maxlen=KEPT)
        self._watchers: dict[bytes, int] = {}       # client -> the number of its request

    def emit(self, event: str, ns: int = 0, **fields: Any) -> None:
        """Something happened, at ``ns``; 0: now."""
        self._count += 1
        message = {"n": self._count, "ns": ns or time.monotonic_ns(), "event": event, **fields}
        self._kept.append(message)
        for client, request in self._watchers.items():
            self._reply(client, {"id": request, "event": message})

    def watch(self, client: bytes, number: int, request: Message) -> None:
        """``client`` wants every event from now on; with ``past``, those that are kept first."""
        self._watchers[client] = number
        self._reply(client, {"id": number, "watching": self._count})
        for message in list(self._kept) if request.get("past", False) else ():
            self._reply(client, {"id": number, "event": message})

    def client_gone(self, client: bytes) -> None:
        self._watchers.pop(client, None)
