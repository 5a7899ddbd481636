"""The machine: the stand-in for the physical box. It belongs to no architecture and is on no data path.

It powers processes on and watches them die, owns the media and the serial consoles, and answers the management
socket through its front door. It is the direct parent of every process of the machine and asks the kernel to
kill them all should it die: the plug was pulled.

Longer than most: every message of a process, every death and every request comes by here, and is handed on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Any

from vmbus_emu import placement
from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop
from vmbus_emu.machine import intake
from vmbus_emu.machine.beats import Beats
from vmbus_emu.machine.consoles import VM_DIED, Consoles
from vmbus_emu.machine.conversations import Conversations
from vmbus_emu.machine.crashes import HOST_ROLES, Crashes, last_words
from vmbus_emu.machine.drain import Drain
from vmbus_emu.machine.events import Events
from vmbus_emu.machine.figures import Figures
from vmbus_emu.machine.integration import Integration
from vmbus_emu.machine.listing import Listing
from vmbus_emu.machine.media import Medium
from vmbus_emu.machine.orders import Orders
from vmbus_emu.machine.policy import policy_of
from vmbus_emu.machine.power import ROOT_PROCESSES, BootFailed, Power
from vmbus_emu.machine.recovery import Recovery, describe
from vmbus_emu.machine.shutdown import Shutdown, phases
from vmbus_emu.machine.supervisor import SPARE, Process, Supervisor
from vmbus_emu.runfolder import RunFolder
from vmbus_emu.task import Future, Task
from vmbus_emu.topology.data import Topology

#: Before the front door, or a zygote that never was ready, is started anew: it must not keep the machine busy forking.
RESTART_DELAY_S = 0.05
#: Messages refused that are written to the log; the rest are only counted.
LOGGED_REFUSALS = 20


class Machine:
    """One machine, from power-on to power-off."""

    def __init__(self, loop: Loop, topology: Topology, folder: RunFolder, media: dict[str, Medium]) -> None:
        self.loop = loop
        self.topology = topology
        self.folder = folder
        self.state = "starting"
        self._specs = {spec.name: spec for spec in placement.processes(topology)}
        self._hosts = {c.name: spec.name for spec in self._specs.values() for c in spec.components}
        self._vms = {vm.name: vm for vm in topology.vms}
        self._figures = Figures(loop)
        self._fallen: dict[str, str] = {}
        self._names = {spec.name: frozenset(c.name for c in spec.components) for spec in self._specs.values()}
        self._refused = 0
        self._front_restarts = 0
        self._shutdown: Shutdown | None = None
        self._media = media
        self._conversations = Conversations(loop, self._to_front, self._request, self._client_gone)
        self._reply = self._conversations.reply
        self._events = Events(self._reply)
        self._consoles = Consoles(self._reply)
        self.supervisor = Supervisor(loop, topology.name, folder.path, self._received, self._exited)
        self.progress: Callable[[str, int, int], Any] = lambda component, done, total: None
        self.log = self.supervisor.log("machine").line
        self._beats = Beats(
            loop, self.supervisor, self._events, topology.hang_after_s, lambda name: self._carried(name)[0], self.log
        )
        self._recovery = Recovery(
            loop, topology, self.supervisor, self._specs, self._events, self._new_power(), self._reboot, self.log
        )
        self._crashes = Crashes(loop, folder.path / "crashes", topology.name, self.supervisor)
        self._drain = Drain(
            loop, {vm: self._hosts[vm] for vm in self._vms}, self._fallen,
            policy_of(topology, self._specs["hypervisor"]) == "degraded", self.supervisor, self._recovery,
            self._events, self._reply,
        )  # fmt: skip
        self._integration = Integration(
            loop, {vm: self._hosts[vm] for vm in self._vms}, self._fallen, placement.integration_carrier(topology),
            media, self.supervisor, self._drain, self._events, self._reply,
        )  # fmt: skip
        self._listing = Listing(
            self.supervisor, self._specs, self._figures, self._recovery, self._beats, self._drain, self._integration,
            self._fallen,
        )  # fmt: skip
        self._orders = Orders(
            loop, topology, self._specs, self.supervisor, self._recovery, self._drain, self._integration, self._events,
            self._reply,
        )  # fmt: skip

    @property
    def _power(self) -> Power:
        return self._recovery.power

    def _new_power(self) -> Power:
        power = Power(self.loop, self.topology, self.folder, self._media, self.supervisor, self._specs)
        power.on_start = lambda process, spare: self._recovery.starting(process, spare)
        return power

    async def boot(self) -> None:
        """Bring everything up. Raises :class:`BootFailed`."""
        self._beats.begin()
        await self._power.boot(self.progress)
        self._up()

    def _up(self) -> None:
        self.state = "ready"
        self.log("ready")
        self._events.emit("up")
        self._recovery.booted()
        self._drain.up()

    def _reboot(self) -> Power:
        """Everything has ended: a fresh start, with the media as they are."""
        self._fallen.clear()
        power = self._new_power()

        def booted(future: Future[None]) -> None:
            try:
                future.result()
            except BootFailed as error:
                self._recovery.boot_failed(str(error))
                self._drain.stop(f"the VMs are drained, but the reboot failed: {error}", "it is tried again")
                return
            self._up()

        Task(self.loop, power.boot(lambda component, done, total: None)).then(booted)
        return power

    # -- messages from processes ----------------------------------------------------------------------

    def _received(self, process: Process, message: Message, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)  # nobody sends the machine descriptors
        role, carried = self._carried(process.name)
        if not intake.accepts(role, carried, message):
            self._refuse(process, message)
            return
        self._beats.heard(process, message)
        match message["t"]:
            case "ready":
                self._became_ready(message["component"])
            case "good":
                self._recovery.good(message["component"])
            case "device":
                self._device(message)
            case "struck":
                self._refused += not self._orders.armed.struck(process, message)
            case "lost":
                guest = self.supervisor.running.get(message["vm"])
                if guest is not None and message["vm"] in self._vms and guest.pid == message["pid"]:
                    guest.line.send({"t": "given_up", "names": [], "device": message["device"]})
            case "born":
                asked = self.supervisor.born(process.name, message["name"], message["incarnation"], message["pid"])
                self._refused += not asked
            case "bound":
                self._power.bound(message["pid"])
            case "power_on":
                self._power.power_on_partition(message)
            case "power_off":
                self._power_off(message["pids"])
            case "component_died":
                self._component_died(message["component"], message["why"])
            case "shut_down":
                self._drain.said(message["component"], message["unflushed"])
                self._integration.stops.said(message["component"], message["unflushed"])
                self._settle_state()
            case "heartbeat":
                self._refused += not self._integration.beat(message["vm"], message["state"])
            case "integration_done":
                self._refused += not self._integration.done(process, message)
            case "log":
                self.supervisor.log(message["component"]).line(message["text"])
            case "not_started":
                self._not_started(message["component"], message["why"])
            case "stats":
                self._figures.arrived(process.name, message["id"], intake.figures(message["stats"], carried))
            case "request":
                self._conversations.arrived(message["client"], message["pid"], message["request"])
            case "client_gone":
                self._conversations.unreachable(message["client"])
            case "out" | "need" | "exit":
                self._refused += not self._consoles.from_guest(process, message)

    def _carried(self, name: str) -> tuple[str, Collection[str]]:
        """A process's role, and the components for which it may speak."""
        name = name.removesuffix(SPARE)
        if name in self._specs:
            return self._specs[name].role, self._names[name]
        return ("front" if name == "front" else "zygote"), (name,)

    def _refuse(self, process: Process, message: Message) -> None:
        self._refused += 1
        if self._refused <= LOGGED_REFUSALS:
            self.log(f"{process.name} (pid {process.pid}) sent what it may not: {message['t'][:40]!r}")

    def _component_died(self, component: str, why: str) -> None:
        """A guest of the monolith ended by a bug of its own; its host process lives on."""
        self.log(f"{component}: guest code failed: {why}")
        self._fallen[component] = why
        self.state = "degraded"
        self._not_started(component, why)
        host = self.supervisor.processes[self._hosts[component]]
        death = {**describe(host, [component]), "component": component, "host": host.name, "reason": why}
        self._events.emit("died", **death)
        self._drain.fell(component)
        self._integration.fell(component)
        self._consoles.vm_died(component, f"{component} died: {why}")

    def _not_started(self, component: str, why: str) -> None:
        self._recovery.not_started(component)
        self._power.cannot_boot([component], f"{component} did not start: {why}")

    def _power_off(self, pids: list[int]) -> None:
        for process in self.supervisor.running.values():
            if process.pid in pids and process.name != "hypervisor":
                self.supervisor.kill(process)

    def _became_ready(self, component: str) -> None:
        self._power.became_ready(component)
        host = self.supervisor.processes.get(self._hosts.get(component, ""))
        if host is not None and host.name == component:
            self._recovery.ready(component)
            self._recovery.tell_guest(host)
            self._settle_state()

    def _device(self, message: Message) -> None:
        fields = {name: message[name] for name in ("component", "device", "resent")}
        self._events.emit(message["what"][:16], message["ns"], **fields)

    def _exited(self, process: Process) -> None:
        self.log(f"{process.name} (pid {process.pid}, incarnation {process.incarnation}) {process.ending}")
        self._consoles.process_died(process)
        self._figures.died(process.name)
        self._integration.exited(process)
        self._power.exited(process)
        if process.name == "front":
            self._conversations.front_gone()
        if process.name in self._power.zygotes:
            self.supervisor.stillborn(process.name)
        if self._shutdown is not None:
            self._shutdown.exited(process)
            return
        if process.name == "front":  # the machine's own part: without it nobody could ask what happened
            self._front_restarts += 1
            self.loop.call_later(RESTART_DELAY_S, self._restart_front)
            return
        said = last_words(self.supervisor.log(process.name.removesuffix(SPARE)).tail).reason
        reason = f"{process.name} (pid {process.pid}) was {process.ending}" + (f": {said}" if said else "")
        if not self._drain.shut_down(process) and not self._integration.stops.as_asked(process):
            carried = sorted(self._names.get(process.name, ()))
            self._events.emit("died", **describe(process, carried), reason=said, **self._captured(process, carried))
        if process.name.endswith(SPARE):
            self._recovery.spare_died(process)
        elif process.name in self._specs:
            self._component_process_died(process, reason)
        else:
            self._zygote_died(process, reason)

    def _captured(self, process: Process, carried: list[str]) -> Message:
        """The name of the file with what a process of the host still said, unless the machine itself ends all."""
        spec = self._specs.get(process.name)
        if spec is None or spec.role not in HOST_ROLES or self._recovery.rebooting or self._power.off:
            return {}
        return {"crash": self._crashes.capture(process, carried)}

    def _zygote_died(self, process: Process, reason: str) -> None:
        role = next(role for role, name in placement.ZYGOTES.items() if name == process.name)
        born = self._power.zygotes.get(process.name)
        if self._recovery.rebooting and self._power.off:
            self._recovery.process_ended()
        elif born is not None and born.done:
            self._power.start_zygote(role, process.name)
        elif born is not None and self.state == "starting":  # it cannot load its role's code; no other one could
            born.reject(BootFailed(reason))
            self._power.cannot_boot([s.name for s in self._specs.values() if s.role == role], reason)
        elif born is not None:  # the code is good: somebody killed this one early
            self.loop.call_later(RESTART_DELAY_S, self._restart_zygote, self._power, role, process.name)

    @staticmethod
    def _restart_zygote(power: Power, role: str, name: str) -> None:
        if not power.off:
            power.start_zygote(role, name)

    def _component_process_died(self, process: Process, reason: str) -> None:
        if "hypervisor" in self.supervisor.running:
            self.supervisor.running["hypervisor"].line.send({"t": "died", "pid": process.pid})
        if not self._power.booting:
            self._power.cannot_boot(self._names[process.name], reason)
            stopped = self._integration.stops.exited(process)
            if not self._drain.exited(process) and not stopped:
                self._recovery.died(process)
            self._settle_state()
        elif self._recovery.replaces(process):
            self._recovery.died(process)
        else:  # of what others need, nobody would come up who is not there yet
            alone = self._specs[process.name].role == "child"
            self._power.cannot_boot(self._names[process.name] if alone else self._power.ready, reason)
        self._tell_of_death(process)

    def _settle_state(self) -> None:
        """What the machine as a whole is, by what its processes are."""
        if self.state in ("starting", "stopping"):
            return
        running = self.supervisor.running
        if self._recovery.rebooting:
            self.state = "rebooting"
        elif self._drain.active:
            self.state = "draining"
        elif self._vms and not any(self._hosts[vm] in running for vm in self._vms):
            self.state = "halted"
        elif self._fallen or self._recovery.restarting or not self._specs.keys() - self._drain.off <= running.keys():
            self.state = "degraded"
        else:
            self.state = "ready"

    def _restart_front(self) -> None:
        if self._shutdown is None:
            self._power.start_front()

    def _tell_of_death(self, process: Process) -> None:
        """To those who are not in the way of its replacement: whom a message wakes has the processor before us."""
        running = self.supervisor.running
        for role in ROOT_PROCESSES:
            if role in running:
                message = {"t": "peer_died", "name": process.name, "incarnation": process.incarnation}
                running[role].line.send({**message, "partition": self._power.place(process.name)})

    # -- requests -----------------------------------------------------------------------------------

    def _to_front(self, message: Message) -> None:
        front = self.supervisor.running.get("front")
        if front is not None:
            front.line.send(message)

    def _client_gone(self, client: bytes) -> None:
        self._consoles.client_gone(client)
        self._events.client_gone(client)

    def _request(self, client: bytes, request: Message) -> None:
        number = request.get("id", 0)
        if type(number) is not int:
            number = 0
        wrong = intake.understood(request)
        if wrong:
            self._reply(client, {"id": number, "error": wrong})
            return
        match request["verb"]:
            case "info":
                self._reply(client, {"id": number, "info": self.info()})
            case "ps":
                Task(self.loop, self._ps(client, number))
            case "watch":
                self._events.watch(client, number, request.get("past", False))
            case "kill" | "fault" | "start" | "drain" | "stop" | "kvp" | "snapshot":
                self._orders.carry_out(client, number, request)
                self._settle_state()
            case "exec":
                self._exec(client, number, request["vm"], request.get("argv", []))
            case "stdin" | "credit" | "cancel":
                self._consoles.from_client(client, request)
            case "down":
                self.power_off(lambda step: self._reply(client, {"id": number, **step}))

    def _exec(self, client: bytes, number: int, vm: str, argv: list[str]) -> None:
        if vm not in self._vms:
            known = ", ".join(self._vms) or "none"
            self._reply(client, {"id": number, "error": f"no VM {vm!r} here", "hint": f"the VMs are: {known}"})
            return
        host = self.supervisor.processes.get(self._hosts[vm])
        ending = None
        if host is None:
            ending = "was never started"
        elif vm in self._drain.off:
            ending = "is off: it was shut down"
        elif not host.running:
            ending = f"is dead: {host.name} was {host.ending}"
        elif vm in self._fallen:
            ending = f"is dead: {self._fallen[vm]}"
        elif not self._power.ready[vm].done:
            self._reply(client, {"id": number, "error": f"{vm} is still starting", "hint": "try again in a moment"})
            return
        if host is None or ending is not None:
            reason = f"{vm} {ending}"
            self._reply(client, {"id": number, "t": "exit", "session": 0, "status": VM_DIED, "reason": reason})
            return
        self._consoles.start(client, number, vm, host, argv)

    def info(self) -> Message:
        return {
            "name": self.topology.name,
            "arch": self.topology.arch,
            "transport": "call" if self.topology.arch == "monolithic" else self.topology.transport,
            "state": self.state,
            "vms": list(self._vms),
            "pid": os.getpid(),
            "topology": self.topology.to_dict(),
        }

    async def _ps(self, client: bytes, number: int) -> None:
        counters = {"front_restarts": self._front_restarts, "refused": self._refused}
        rows = await self._listing.rows(counters)
        self._reply(client, {"id": number, "info": self.info(), "rows": rows})

    # -- power off ----------------------------------------------------------------------------------

    def power_off(self, report: Any) -> None:
        """Stop every process, in order, naming what is waited for; then the front door, then the machine itself."""
        if self._shutdown is None:
            self.state = "stopping"
            self._power.off = True
            self._drain.stop("the machine is taken down")
            self._beats.end()
            guests = [self._hosts[vm] for vm in self._vms]
            self._shutdown = Shutdown(self.loop, self.supervisor, phases(self._specs, guests), report, self._gone)
            self._shutdown.begin()
        else:
            self._shutdown.listeners.append(report)

    def _gone(self) -> None:
        self.loop.stop()
