"""Deaths at a step (``kill --at``): arming a process or its replacement, and hearing that one came to its step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from vmbus_emu import crashpoints
from vmbus_emu.crashpoints import STEPS, At
from vmbus_emu.faults import SIGNALS
from vmbus_emu.lifeline import Message
from vmbus_emu.machine.events import Events
from vmbus_emu.machine.intake import Refused
from vmbus_emu.machine.policy import policy_of
from vmbus_emu.machine.recovery import Recovery
from vmbus_emu.machine.supervisor import Process, Supervisor
from vmbus_emu.placement import ProcessSpec
from vmbus_emu.topology.data import Topology

_CLEAR: Message = {"t": "crash_at", "clear": True}


class _Order(NamedTuple):
    component: str
    fault: str
    at: str
    pid: int            #: of the process that ran when it was given,
    next: bool          #: and whether it is for that one or for the one after it


class Armed:
    """At most one step is armed per process."""

    def __init__(
        self, topology: Topology, specs: Mapping[str, ProcessSpec], supervisor: Supervisor, recovery: Recovery,
        events: Events,
    ) -> None:
        self._topology = topology
        self._specs = specs
        self._supervisor = supervisor
        self._recovery = recovery
        self._events = events
        self._orders: dict[str, _Order] = {}

    def arm(self, component: str, process: Process, fault: str, text: str) -> Message:
        """Have ``component``, which ``process`` carries, die at step ``text``; what a client is told.

        For a step of negotiation ``process`` is killed now, and the step is armed in its replacement. Raises
        :class:`Refused`.
        """
        at = self._fitting(component, process, fault, text)
        following = STEPS[at.step].next
        told: Message = {
            "component": component, "host": process.name, "pid": process.pid, "incarnation": process.incarnation,
            "fault": "kill" if following else fault, "signal": "SIGKILL" if following else _signal(fault),
        }  # fmt: skip
        order = {
            "t": "crash_at", "component": component, "step": at.step, "count": at.number, "fault": fault,
            "install": crashpoints.INSTALLERS[component],
        }  # fmt: skip
        self._orders[process.name] = _Order(component, fault, str(at), process.pid, following)
        before = time.monotonic_ns()
        if following:
            self._recovery.power.crash_at[process.name] = order
            self._supervisor.kill(process)
            self._events.emit("killed", before, **told)
        else:
            process.line.send(order)
            self._events.emit(
                "armed", before, component=component, pid=process.pid, incarnation=process.incarnation, at=str(at)
            )
        return {**told, "ns": before, "at": str(at)}

    def _fitting(self, component: str, process: Process, fault: str, text: str) -> At:
        try:
            at = crashpoints.parse(text)
        except ValueError as error:
            raise Refused(str(error), "vmbus-emu kill --help lists them") from None
        why, _, hint = crashpoints.refusal(
            component, at.step, self._topology.arch, self._topology.transport
        ).partition("; ")
        if why:
            raise Refused(f"{component} cannot die at {at.step}: {why}", hint)
        if fault not in crashpoints.FAULTS:
            raise Refused(f"nothing can {fault} at a step", f"try {', '.join(crashpoints.FAULTS)}")
        if STEPS[at.step].next and policy_of(self._topology, self._specs[process.name]) not in ("restart", "standby"):
            raise Refused(
                f"{component} cannot die at {at.step}: nothing would take its place and come there",
                "vmbus-emu up --policy gives it another policy",
            )
        return at

    def disarm(self, host: str) -> None:
        """It did not come to its step, and need not any more."""
        self._orders.pop(host, None)
        self._recovery.power.crash_at.pop(host, None)
        process = self._supervisor.running.get(host)
        if process is not None:
            process.line.send(_CLEAR)

    def struck(self, process: Process, message: Message) -> bool:
        """``process`` says that it is at its step, and dies. ``False``: it was not to."""
        order = self._orders.get(process.name)
        said = message["component"], message["at"]
        if order is None or said != (order.component, order.at) or (process.pid != order.pid) is not order.next:
            return False
        del self._orders[process.name]
        self._events.emit(
            "killed", message["ns"], component=order.component, host=process.name, pid=process.pid,
            incarnation=process.incarnation, fault=order.fault, signal=_signal(order.fault), at=order.at,
        )
        return True


def _signal(fault: str) -> str | None:
    return SIGNALS[fault].name if fault in SIGNALS else None
