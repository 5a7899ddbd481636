"""The host's side of the integration components: one more VSP of the parent partition, with a channel per component.

Heartbeat, shutdown and time synchronisation are offered to every guest; key-value exchange and VSS when they are wanted
for the first time (docs/decisions/0022-which-components-are-opened.md). What management wants of a guest comes as
:meth:`IntegrationVsp.ask`; :mod:`partitions.parent.integration_orders` says what.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import UUID

from partitions.heartbeats import MISSED, Heartbeat
from partitions.parent.ic_session import Answer, IcSession, State
from partitions.parent.vsp import Device, Vsp
from partitions.parent.vsplink import ProviderSide
from vmbus_emu.channel import Channel
from vmbus_emu.loop import Timer
from vmbus_emu.node import Node
from vmbus_emu.protocol import ic
from vmbus_emu.protocol.ic import TimeFlag

#: Offered to every guest. The others are offered when somebody wants them.
ALWAYS = ("heartbeat", "shutdown", "timesync")
#: Seconds between two samples of the time; the first ones come quicker, each after twice the time of the one before.
FIRST_SAMPLE_S, SAMPLE_S = 0.25, 5.0

#: Between two attempts to reach a guest that is about to connect, in seconds.
_FIRST_RETRY_S, _LAST_RETRY_S = 0.002, 0.25

#: Takes the session of a component that is ready, or the reason why there is none.
Ready = Callable[[IcSession | str], Any]


class IntegrationVsp(Vsp):
    """``config["ic"]``: ``vms``, the names of the components of each."""

    NAME = "ic"

    def __init__(self, node: Node, config: dict[str, Any]) -> None:
        super().__init__(node, config)
        self.component = node.name
        self._heartbeat_s: float = config["heartbeat_s"]
        self._by_name: dict[tuple[str, str], Device] = {}
        self._sessions: dict[int, IcSession] = {}
        self._timers: dict[int, Timer] = {}
        self._hearts: dict[str, Heartbeat] = {}
        self._told: dict[str, str | None] = {}
        self._wanted: set[int] = set()
        self._waiting: dict[int, list[Ready]] = {}
        for vm, components in config["ic"]["vms"].items():
            self._take_in(vm, components)

    def _take_in(self, vm: str, components: Iterable[str]) -> None:
        self._hearts[vm] = Heartbeat()
        for name in components:
            device = self._by_name[vm, name] = self.add(vm, name, ic.COMPONENTS[name].instance.bytes_le)
            if name in ALWAYS:
                self._wanted.add(device.key)

    def add_vm(self, arrival: Mapping[str, Any]) -> None:
        """A VM came while this runs."""
        self._take_in(arrival["vm"], arrival["components"])
        for name in ALWAYS:
            self._loop.call_soon(self._offer, self._by_name[arrival["vm"], name])

    def take_out(self, device: Device) -> Callable[[], Any]:
        del self._by_name[device.vm, device.name]
        self._hearts.pop(device.vm, None)
        self._told.pop(device.vm, None)
        return lambda: None

    def interface(self, device: Device) -> UUID:
        return ic.COMPONENTS[device.name].interface

    def good(self) -> None:
        """Whether this process is good for anything is for others to say."""

    def offer_all(self, provider: ProviderSide) -> None:
        self._provider = provider
        for key in sorted(self._wanted):
            self._offer(self._devices[key])

    # -- sessions -----------------------------------------------------------------------------------

    def open_session(self, device: Device, channel: Channel) -> None:
        component = ic.COMPONENTS[device.name]
        session = self._sessions[device.key] = IcSession(channel, component, lambda: self._negotiated(device))
        self._begin(device, session, _FIRST_RETRY_S)

    def _begin(self, device: Device, session: IcSession, retry_s: float) -> None:
        """Only behind this call the guest is told that its channel is open, and connects."""
        self._timers.pop(device.key, None)
        if not session.begin():
            following = min(2 * retry_s, _LAST_RETRY_S)
            self._timers[device.key] = self._node.loop.call_later(retry_s, self._begin, device, session, following)

    def close_session(self, device: Device, closed: Callable[[], Any]) -> None:
        session = self._sessions.pop(device.key, None)
        if session is not None:
            session.close()
        timer = self._timers.pop(device.key, None)
        if timer is not None:
            timer.cancel()
        if device.name == "heartbeat":
            self._hearts[device.vm].gone()
            self._tell(device.vm)
        closed()

    def _negotiated(self, device: Device) -> None:
        session = self._sessions[device.key]
        for ready in self._waiting.pop(device.key, ()):
            ready(session if session.state is State.READY else f"{device.vm} speaks no version of {device.name}")
        if session.state is not State.READY:
            self._node.log(f"{device.vm}: {device.name}: no version in common")
        elif device.name == "heartbeat":
            self._beat(device, session)
        elif device.name == "timesync":
            self._send_time(device, session, TimeFlag.SYNC, FIRST_SAMPLE_S)

    def session(self, vm: str, name: str, deadline_s: float, ready: Ready) -> None:
        """The session of a component, as soon as it is ready; offered now if it was not yet."""
        device = self._by_name.get((vm, name))
        if device is None:
            ready(f"{vm} has no integration services")
            return
        session = self._sessions.get(device.key)
        if session is not None and session.state is not State.NEGOTIATING:
            ready(session if session.state is State.READY else f"{vm} speaks no version of {name}")
            return
        waiting = self._waiting.setdefault(device.key, [])
        waiting.append(ready)
        self._node.loop.call_later(deadline_s, self._not_ready, device, ready)
        if device.key not in self._wanted:
            self._wanted.add(device.key)
            self._offer(device)

    def _not_ready(self, device: Device, ready: Ready) -> None:
        waiting = self._waiting.get(device.key, [])
        if ready in waiting:
            waiting.remove(ready)
            ready(f"the {device.name} service of {device.vm} does not answer")

    # -- heartbeat ------------------------------------------------------------------------------------

    def _beat(self, device: Device, session: IcSession) -> None:
        heart = self._hearts[device.vm]
        beat = ic.encode_beat(heart.beat())
        if session.unanswered <= MISSED:
            session.request(beat, lambda answer: self._heard(device, answer))
        self._tell(device.vm)
        self._timers[device.key] = self._node.loop.call_later(self._heartbeat_s, self._beat, device, session)

    def _heard(self, device: Device, answer: Answer | None) -> None:
        beat = ic.decode_beat(answer.body) if answer is not None and not answer.status else None
        if beat is not None:
            self._hearts[device.vm].heard(beat)
            self._tell(device.vm)

    def _tell(self, vm: str) -> None:
        state = self._hearts[vm].state
        if state != self._told.get(vm):
            self._told[vm] = state
            self._node.lifeline.send({"t": "heartbeat", "vm": vm, "state": state or ""})

    # -- time -----------------------------------------------------------------------------------------

    def _send_time(self, device: Device, session: IcSession, flag: TimeFlag, pause_s: float) -> None:
        host = ic.Time(ic.to_1601(time.time_ns()), time.monotonic_ns() // 100, flag)
        if not session.unanswered:  # what waits for a guest that does not run would be of no use to it
            session.request(ic.encode_time(host, session.version), lambda answer: None)
        following = min(2 * pause_s, SAMPLE_S)
        self._timers[device.key] = self._node.loop.call_later(
            pause_s, self._send_time, device, session, TimeFlag.SAMPLE, following
        )

    # -- for the parent's process ---------------------------------------------------------------------

    def drivers(self) -> Mapping[str, Any]:
        """None."""
        return {}

    def counters(self) -> dict[str, int]:
        """Among those of the parent."""
        return {
            "ic_channels": sum(device.channel is not None for device in self._devices.values()),
            "ic_beats": sum(heart.answered for heart in self._hearts.values()),
            "ic_protocol_errors": self._protocol_errors,
        }
