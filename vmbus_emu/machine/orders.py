"""What a user may order to happen to a running machine: a component's end, a fault, a VM's new start.

Which fault fits which component is a table (:mod:`vmbus_emu.faults`); what does not fit is refused with the reason. A
component that shares a process takes it along: the answer names both.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from vmbus_emu import faults, placement
from vmbus_emu.faults import ENDING, LASTING, SIGNALS, Fault
from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop
from vmbus_emu.machine.armed import Armed
from vmbus_emu.machine.drain import Drain
from vmbus_emu.machine.events import Events
from vmbus_emu.machine.intake import Refused
from vmbus_emu.machine.policy import policy_of
from vmbus_emu.machine.power import BootFailed
from vmbus_emu.machine.recovery import Recovery
from vmbus_emu.machine.requests import Reply
from vmbus_emu.machine.roster import Roster
from vmbus_emu.machine.supervisor import SPARE, Process, Supervisor
from vmbus_emu.task import Future


class _Lasting:
    """A lasting fault that is on. It ends with the process that has it."""

    def __init__(self, component: str, fault: Fault, text: str, process: Process, seed: int, seconds: float) -> None:
        self.component = component
        self.kind = fault.name
        self.process = process
        self._text = text
        self._seed = seed
        self._ends = time.monotonic() + seconds if seconds else None

    def describe(self) -> Message:
        """For a reply. ``left_s``: when it is cleared; ``None``: not by itself."""
        left = None if self._ends is None else round(max(0.0, self._ends - time.monotonic()), 3)
        return {
            "component": self.component, "fault": self._text, "host": self.process.name, "pid": self.process.pid,
            "incarnation": self.process.incarnation, "seed": self._seed, "left_s": left,
        }  # fmt: skip


class Orders:
    """Answers requests through ``reply(client, message)``."""

    def __init__(
        self, loop: Loop, roster: Roster, supervisor: Supervisor, recovery: Recovery, drain: Drain, events: Events,
        reply: Reply, roles: Collection[str] = (),
    ) -> None:
        """``roles``: those of the parent partition that there are, at any time."""
        self._loop = loop
        topology, specs = roster.topology, roster.specs
        self._arch = topology.arch
        self._degraded = policy_of(topology, specs["hypervisor"]) == "degraded"
        self._roster = roster
        self._supervisor = supervisor
        self._recovery = recovery
        self._drain = drain
        self._lasting: list[_Lasting] = []
        self._events = events
        self._reply = reply
        self._specs = specs
        self._roles = roles
        self.armed = Armed(topology, specs, supervisor, recovery, events)

    @property
    def _components(self) -> dict[str, tuple[str, str]]:
        """The process and the role of each component."""
        return {one.name: (self._roster.hosts[one.name], one.role) for one in self._roster.components.values()}

    # -- kill -----------------------------------------------------------------------------------------

    def kill(self, client: bytes, number: int, request: Message) -> None:
        """Strike once, or arm a step at which it is to die. Raises :class:`Refused`."""
        self._reply(client, {"id": number, "killed": self._kill(request)})

    def _kill(self, request: Message) -> Message:
        component, text = request.get("component", ""), request.get("fault", "kill")
        fault = _parsed(text)
        process, host = self._fitting(component, fault)
        if request.get("clear"):
            self.armed.disarm(host)
            return {}
        if request.get("at"):
            return self.armed.arm(component, process, fault.name, request["at"])
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
        elif component in self._roles:
            host, role = component, "role"
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

    def fault(self, client: bytes, number: int, request: Message) -> None:
        """Give drivers lasting faults, or take some or all away; answers which are on then. Raises :class:`Refused`."""
        self._reply(client, {"id": number, "faults": self._fault(request)})

    def _fault(self, request: Message) -> list[Message]:
        component = request.get("component", "")
        if request.get("clear"):
            self._clear(component)
        else:
            chosen = [self._chosen(component, text) for text in request.get("faults", ())]  # all of them, or none
            for text, fault, process in chosen:
                self._give(component, text, fault, process, request.get("seconds", 0), request.get("seed", 0))
        return [one.describe() for one in self._on()]

    def _on(self) -> list[_Lasting]:
        self._lasting = [one for one in self._lasting if one.process.running]
        return self._lasting

    def _chosen(self, component: str, text: str) -> tuple[str, Fault, Process]:
        fault = _parsed(text)
        if fault.name not in LASTING:
            raise Refused(
                f"{fault.name} does not last, it strikes once", f"vmbus-emu kill {component} --fault {fault.name}"
            )
        return text, fault, self._fitting(component, fault)[0]

    def _give(self, component: str, text: str, fault: Fault, process: Process, seconds: float, seed: int) -> None:
        order = {"t": "fault", "fault": fault.name, "components": [component]}
        process.line.send({**order, "value": fault.value, "seed": seed})
        given = _Lasting(component, fault, text, process, seed, seconds)
        # A second fault of a kind takes the place of the first, in the driver too.
        self._lasting = [one for one in self._on() if (one.component, one.kind) != (component, fault.name)] + [given]
        if seconds:
            self._loop.call_later(seconds, self._expire, given, {**order, "clear": True})
        self._events.emit("fault", component=component, fault=text)

    def _expire(self, given: _Lasting, order: Message) -> None:
        if given in self._on():
            self._lasting.remove(given)
            given.process.line.send(order)
            self._events.emit("faults cleared", component=given.component, fault=given.kind)

    def _clear(self, component: str) -> None:
        if component and component not in self._components:
            raise Refused(f"there is no component {component!r}", f"there are {', '.join(self._components)}")
        named = {"components": [component]} if component else {}
        for host in sorted({host for host, role in self._components.values() if role in placement.VSPS}):
            process = self._supervisor.processes.get(host)
            if process is not None and process.running:
                process.line.send({"t": "fault", "clear": True, **named})
        self._lasting = [one for one in self._on() if component and one.component != component]
        self._events.emit("faults cleared", component=component or None)

    # -- start ----------------------------------------------------------------------------------------

    def start(self, client: bytes, number: int, request: Message) -> None:
        """A VM that does not run starts; answers when it is ready. Raises :class:`Refused`."""
        vm, running = request.get("vm", ""), self._supervisor.running
        if vm not in self._roster.vms:
            raise Refused(f"there is no VM {vm!r}", f"the VMs are {', '.join(self._roster.vms) or 'none'}")
        if self._components[vm][0] != vm and vm in self._drain.off and not self._drain.active:
            self._start_thread(client, number, vm)
            return
        if self._components[vm][0] != vm:
            raise Refused(f"{vm} is a thread of the monolith", "vmbus-emu drain reboots all, and starts it again")
        if self._drain.active:
            raise Refused("the machine is being drained", f"{vm} boots again at the end of it")
        if vm in running or vm in self._recovery.restarting:
            raise Refused(f"{vm} is running already", "vmbus-emu ps shows its state")
        if "hypervisor" not in running and self._degraded and not self._recovery.rebooting:
            raise Refused(
                f"{vm} cannot be started: the hypervisor is dead, and policy degraded replaces it by none",
                "vmbus-emu drain shuts the VMs down in order and reboots",
            )
        if not self._recovery.can_be_replaced(self._specs[vm]):
            raise Refused(
                f"{vm} cannot be started without hypervisor and management", "vmbus-emu ps shows which is dead"
            )
        self._drain.off.discard(vm)
        self._recovery.ordered(vm)
        self._recovery.power.ready[vm].then(lambda future: self._started(client, number, vm, future))

    def _start_thread(self, client: bytes, number: int, vm: str) -> None:
        """A thread of the monolith that was stopped has a successor."""
        self._drain.off.discard(vm)
        power = self._recovery.power
        power.renew(vm)
        self._supervisor.processes[self._components[vm][0]].line.send({"t": "start_vm", "vm": vm})
        power.ready[vm].then(lambda future: self._started(client, number, vm, future))

    def _started(self, client: bytes, number: int, vm: str, future: Future[None]) -> None:
        try:
            future.result()
        except BootFailed as error:
            self._recovery.restarting.discard(vm)
            self._reply(client, {"id": number, "error": str(error), "hint": f"vmbus-emu logs {vm} has more"})
            return
        process = self._supervisor.processes[self._components[vm][0]]
        self._reply(client, {"id": number, "started": vm, "pid": process.pid, "incarnation": process.incarnation})


def _parsed(text: str) -> Fault:
    try:
        return faults.parse(text)
    except ValueError as error:
        raise Refused(str(error), "vmbus-emu kill --help lists the faults") from None
