"""What processes tell the machine, handed to the part that it is for. What one may not send is refused and counted."""

from __future__ import annotations

import os

from vmbus_emu.lifeline import Message
from vmbus_emu.machine import intake
from vmbus_emu.machine.deaths import Deaths
from vmbus_emu.machine.parts import Parts
from vmbus_emu.machine.supervisor import Process

#: Messages refused that are written to the log; the rest are only counted.
LOGGED_REFUSALS = 20


class Messages:
    """From every process's lifeline."""

    def __init__(self, parts: Parts, deaths: Deaths) -> None:
        self._parts = parts
        self._deaths = deaths

    def received(self, process: Process, message: Message, fds: list[int]) -> None:
        parts = self._parts
        for fd in fds:
            os.close(fd)  # nobody sends the machine descriptors
        role, carried = parts.carried(process.name)
        if not intake.accepts(role, carried, message):
            self._refuse(process, message)
            return
        parts.beats.heard(process, message)
        match message["t"]:
            case "ready" if role == "role":
                parts.roles.became_ready(process, message)
            case "not_started" if role == "role":
                parts.roles.not_started(process, message["why"])
            case "ready":
                self._became_ready(message["component"])
            case "not_started":
                self._deaths.not_started(message["component"], message["why"])
            case "good":
                parts.recovery.good(message["component"])
            case "device":
                self._device(message)
            case "struck":
                parts.refused += not parts.orders.armed.struck(process, message)
            case "lost":
                self._lost(message)
            case "born":
                asked = parts.supervisor.born(process.name, message["name"], message["incarnation"], message["pid"])
                parts.refused += not asked
            case "bound":
                parts.power.bound(message["pid"])
            case "power_on":
                parts.power.power_on_partition(message)
            case "power_off":
                self._power_off(message["pids"])
            case "partition_ended":
                parts.comings.partition_ended(message["name"])
            case "component_died":
                self._deaths.component_died(message["component"], message["why"])
            case "shut_down":
                parts.drain.said(message["component"], message["unflushed"])
                parts.integration.stops.said(message["component"], message["unflushed"])
                parts.standing.settle()
            case "heartbeat":
                parts.refused += not parts.integration.beat(message["vm"], message["state"])
            case "integration_done":
                parts.refused += not parts.integration.done(process, message)
            case "driver_bound":
                parts.refused += not parts.bindings.bound(process, message)
            case "log":
                parts.supervisor.log(message["component"]).line(message["text"])
            case "stats":
                parts.figures.arrived(process.name, message["id"], intake.figures(message["stats"], carried))
            case "loaded":
                parts.figures.arrived(process.name, message["id"], {process.name: intake.files(message["files"])})
            case "request":
                parts.conversations.arrived(message["client"], message["pid"], message["request"])
            case "client_gone":
                parts.conversations.unreachable(message["client"])
            case "out" | "need" | "exit":
                parts.refused += not parts.consoles.from_guest(process, message)

    def _refuse(self, process: Process, message: Message) -> None:
        self._parts.refused += 1
        if self._parts.refused <= LOGGED_REFUSALS:
            self._parts.log(f"{process.name} (pid {process.pid}) sent what it may not: {message['t'][:40]!r}")

    def _lost(self, message: Message) -> None:
        """A guest has lost a device for good, which it is told."""
        guest = self._parts.supervisor.running.get(message["vm"])
        if guest is not None and message["vm"] in self._parts.roster.vms and guest.pid == message["pid"]:
            guest.line.send({"t": "given_up", "names": [], "device": message["device"]})

    def _power_off(self, pids: list[int]) -> None:
        """The hypervisor has no use for these processes any more."""
        for process in self._parts.supervisor.running.values():
            if process.pid in pids and process.name != "hypervisor":
                self._parts.supervisor.kill(process)

    def _became_ready(self, component: str) -> None:
        parts = self._parts
        parts.power.became_ready(component)
        parts.fates.taken_along.pop(component, None)
        if component == "management":
            parts.loop.call_soon(parts.comings.management_is_back)
        host = parts.supervisor.processes.get(parts.roster.hosts.get(component, ""))
        if host is not None and host.name == component:
            parts.recovery.ready(component)
            parts.recovery.tell_guest(host)
            parts.standing.settle()

    def _device(self, message: Message) -> None:
        fields = {name: message[name] for name in ("component", "device", "resent")}
        self._parts.events.emit(message["what"][:16], message["ns"], **fields)
