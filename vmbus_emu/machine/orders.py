"""What a user may order to happen to a running machine: a component's end, a fault, a VM's new start.

Which fault fits which component is a table (:mod:`vmbus_emu.faults`); what does not fit is refused with the reason. A
component that shares a process takes it along: the answer names both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from vmbus_emu import faults, placement
from vmbus_emu.faults import ENDING, LASTING, SIGNALS, Fault
from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop
from vmbus_emu.machine.events import Events
from vmbus_emu.machine.power import BootFailed
from vmbus_emu.machine.recovery import Recovery
from vmbus_emu.machine.supervisor import SPARE, Process, Supervisor
from vmbus_emu.placement import ProcessSpec
from vmbus_emu.task import Future
from vmbus_emu.topology.data import Topology

Reply = Callable[[bytes, Message], Any]


class Refused(Exception):
    """``error, hint``: why an order is not carried out, and what to try."""


class Orders:
    """Answers requests through ``reply(client, message)``."""

    def __init__(
        self, loop: Loop, topology: Topology, specs: Mapping[str, ProcessSpec], supervisor: Supervisor,
        recovery: Recovery, events: Events, reply: Reply,
    ) -> None:
        self._loop = loop
        self._arch = topology.arch
        self._vms = [vm.name for vm in topology.vms]
        self._supervisor = supervisor
        self._recovery = recovery
        self._events = events
        self._reply = reply
        self._components = {c.name: (spec.name, c.role) for spec in specs.values() for c in spec.components}

    def carry_out(self, client: bytes, number: int, request: Message) -> None:
        """``kill``, ``fault`` or ``start``, which :func:`vmbus_emu.machine.intake.understood` has looked at."""
        try:
            match request["verb"]:
                case "kill":
                    answer: Message = {"killed": self._kill(request.get("component", ""), request.get("fault", "kill"))}
                case "fault":
                    answer = {"faults": self._fault(request)}
                case _:
                    self._start(client, number, request.get("vm", ""))
                    return
        except Refused as refused:
            error, hint = refused.args
            self._reply(client, {"id": number, "error": error, "hint": hint})
            return
        self._reply(client, {"id": number, **answer})

    # -- kill -----------------------------------------------------------------------------------------

    def _kill(self, component: str, text: str) -> Message:
        fault = _parsed(text)
        process, host = self._fitting(component, fault)
        if fault.name not in ENDING:
            raise Refused(f"{fault.name} ends nothing", f"vmbus-emu fault {component} {text}")
        told: Message = {
            "component": component, "host": host, "pid": process.pid, "incarnation": process.incarnation,
            "fault": fault.name, "signal": SIGNALS[fault.name].name if fault.name in SIGNALS else None,
        }  # fmt: skip
        before = time.monotonic_ns()
        if fault.name in SIGNALS:
            self._supervisor.kill(process, SIGNALS[fault.name])
        else:
            process.line.send({"t": "fault", "fault": fault.name, "value": fault.value, "components": [component]})
        self._events.emit("killed", before, **told)
        return {**told, "ns": before}

    def _fitting(self, component: str, fault: Fault) -> tuple[Process, str]:
        """The process that a fault of ``component`` strikes, and its name."""
        own = component.removesuffix(SPARE)
        if own in self._components:
            host, role = self._components[own]
            host = component if component != own else host
        elif component in placement.ZYGOTES.values():
            host, role = component, "zygote"
        else:
            raise Refused(f"there is no component {component!r}", f"there are {', '.join(self._components)}")
        why, _, hint = faults.refusal(self._arch, role, fault.name).partition("; ")
        if why:
            raise Refused(f"{component} cannot {fault.name}: {why}", hint)
        process = self._supervisor.processes.get(host)
        if process is None or not process.running:
            raise Refused(f"{component} is not running", "vmbus-emu ps shows what is")
        return process, host

    # -- fault ----------------------------------------------------------------------------------------

    def _fault(self, request: Message) -> list[Message]:
        """Give drivers a lasting fault, or take all away."""
        if request.get("clear"):
            named = request.get("component")
            clear: Message = {"t": "fault", "clear": True} | ({"components": [named]} if named else {})
            carriers = {host for host, role in self._components.values() if role in placement.VSPS}
            for host in carriers:
                process = self._supervisor.processes.get(host)
                if process is not None and process.running:
                    process.line.send(clear)
            self._events.emit("faults cleared", component=named)
            return []
        component, duration = request.get("component", ""), request.get("seconds", 0)
        done = []
        for text in request.get("faults", []):
            fault = _parsed(text)
            if fault.name not in LASTING:
                raise Refused(f"{fault.name} does not last", f"vmbus-emu kill {component} --fault {fault.name}")
            process, _ = self._fitting(component, fault)
            order = {"t": "fault", "fault": fault.name, "components": [component]}
            process.line.send({**order, "value": fault.value, "seed": request.get("seed", 0)})
            if duration:
                self._loop.call_later(duration, process.line.send, {**order, "clear": True})
            done.append({"component": component, "fault": text, "pid": process.pid})
            self._events.emit("fault", component=component, fault=text)
        return done

    # -- start ----------------------------------------------------------------------------------------

    def _start(self, client: bytes, number: int, vm: str) -> None:
        running = self._supervisor.running
        if vm not in self._vms:
            raise Refused(f"there is no VM {vm!r}", f"the VMs are {', '.join(self._vms) or 'none'}")
        if self._components[vm][0] != vm:
            raise Refused(f"{vm} is a thread of the monolith", "vmbus-emu down and up start it again")
        if vm in running or vm in self._recovery.restarting:
            raise Refused(f"{vm} is running already", "vmbus-emu ps shows its state")
        if not {"hypervisor", "management"} <= running.keys():
            raise Refused(
                f"{vm} cannot be started without hypervisor and management", "vmbus-emu ps shows which is dead"
            )
        self._recovery.start_vm(vm)
        self._recovery.power.ready[vm].then(lambda future: self._started(client, number, vm, future))

    def _started(self, client: bytes, number: int, vm: str, future: Future[None]) -> None:
        try:
            future.result()
        except BootFailed as error:
            self._recovery.restarting.discard(vm)
            self._reply(client, {"id": number, "error": str(error), "hint": f"vmbus-emu logs {vm} has more"})
            return
        process = self._supervisor.processes[vm]
        self._reply(client, {"id": number, "started": vm, "pid": process.pid, "incarnation": process.incarnation})


def _parsed(text: str) -> Fault:
    try:
        return faults.parse(text)
    except ValueError as error:
        raise Refused(str(error), "vmbus-emu kill --help lists the faults") from None
