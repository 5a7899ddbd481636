"""The guest's integration components over VMBus: heartbeat, shutdown, time, key-value exchange, VSS.

Each is an :class:`~partitions.child.ic_session.IcDevice` with a service that turns messages into calls of
:class:`partitions.child.services.Services`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from partitions.child.ic_session import IcDevice, Respond
from partitions.child.services import Services
from vmbus_emu.loop import Loop
from vmbus_emu.protocol import ic
from vmbus_emu.protocol.ic import AppState, Beat, Status, TimeFlag, Version, Vss, VssOp

#: From the answer to a shutdown to its beginning, in seconds: the answer leaves first.
_ANSWER_FIRST_S = 0.005
#: Of the host's patience, a guest gives commands that still run so much, and at most so many seconds, to end.
_SHARE, _MOST_PATIENCE_S = 0.5, 1.0


class GuestComponents:
    """``newest``: framework version of a guest of an earlier generation."""

    def __init__(
        self, loop: Loop, services: Services, log: Callable[[str], Any], newest: Version | None = None
    ) -> None:
        self._loop = loop
        self._services = services
        self.devices: Mapping[str, IcDevice] = {
            "heartbeat": IcDevice(ic.HEARTBEAT, self._heartbeat, log, newest),
            "shutdown": IcDevice(ic.SHUTDOWN, self._shutdown, log, newest),
            "timesync": IcDevice(ic.TIME_SYNC, self._time, log, newest),
            "kvp": IcDevice(ic.KVP, services.kvp.serve, log, newest),
            "vss": IcDevice(ic.VSS, self._vss, log, newest, services.thaw),
        }

    def _heartbeat(self, body: bytes, version: Version, respond: Respond) -> None:
        beat = ic.decode_beat(body)
        if beat is None:
            respond(Status.FAIL, body)
            return
        respond(Status.OK, ic.encode_beat(Beat(beat.sequence + 1, AppState.HEALTHY)))

    def _shutdown(self, body: bytes, version: Version, respond: Respond) -> None:
        shutdown = ic.decode_shutdown(body)
        if shutdown is None:
            respond(Status.FAIL, body)
        elif shutdown.flags & ~ic.ShutdownFlag.FORCE:
            respond(Status.NOT_SUPPORTED, body)
        else:
            respond(Status.OK, body)
            patience_s = min(_MOST_PATIENCE_S, shutdown.timeout * _SHARE)
            self._loop.call_later(_ANSWER_FIRST_S, self._services.power_off, patience_s, shutdown.text)

    def _time(self, body: bytes, version: Version, respond: Respond) -> None:
        told = ic.decode_time(body, version)
        if told is None or told.parent < ic.EPOCH_1601:
            respond(Status.FAIL, body)
            return
        host_ns = ic.from_1601(told.parent)
        if told.reference:  # the message was under way, and waited, for so long
            host_ns += max(0, time.monotonic_ns() - told.reference * 100)
        if told.flags & TimeFlag.SYNC:
            self._services.clock.step(host_ns)
        elif told.flags & TimeFlag.SAMPLE:
            self._services.clock.sample(host_ns)
        respond(Status.OK, body)

    def _vss(self, body: bytes, version: Version, respond: Respond) -> None:
        asked = ic.decode_vss(body)
        match asked.op if asked is not None else None:
            case VssOp.HOT_BACKUP:
                respond(Status.OK, ic.encode_vss(Vss(VssOp.HOT_BACKUP)))
            case VssOp.FREEZE:
                self._services.freeze(lambda ok: respond(Status.OK if ok else Status.FAIL, body))
            case VssOp.THAW:
                respond(Status.OK if self._services.thaw() else Status.FAIL, body)
            case VssOp.BACKUP_COMPLETE:
                respond(Status.OK, body)
            case None:
                respond(Status.FAIL, body)
            case _:
                respond(Status.NOT_SUPPORTED, body)
