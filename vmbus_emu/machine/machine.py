"""The machine: the stand-in for the physical box. It belongs to no architecture and is on no data path.

It powers processes on and watches them die, owns the media and the serial consoles, and answers the management
socket through its front door. It is the direct parent of every process of the machine and asks the kernel to
kill them all should it die: the plug was pulled.

Longer than most: every message of a process, every death and every request comes by here, and is handed on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vmbus_emu import placement
from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop
from vmbus_emu.machine import intake
from vmbus_emu.machine.beats import Beats
from vmbus_emu.machine.bindings import Bindings
from vmbus_emu.machine.comings import Comings
from vmbus_emu.machine.consoles import Consoles
from vmbus_emu.machine.conversations import Conversations
from vmbus_emu.machine.crashes import HOST_ROLES, Crashes, last_words
from vmbus_emu.machine.drain import DEFAULT_GRACE_S, Drain
from vmbus_emu.machine.events import Events
from vmbus_emu.machine.figures import Figures
from vmbus_emu.machine.integration import Integration
from vmbus_emu.machine.listing import Listing
from vmbus_emu.machine.media import Medium
from vmbus_emu.machine.orders import Orders
from vmbus_emu.machine.policy import policy_of
from vmbus_emu.machine.power import BOOT_DEADLINE_S, ROOT_PROCESSES, BootFailed, Power
from vmbus_emu.machine.recovery import Recovery, describe
from vmbus_emu.machine.requests import Handler, Requests
from vmbus_emu.machine.roles import Roles
from vmbus_emu.machine.roster import Roster
from vmbus_emu.machine.services import Services
from vmbus_emu.machine.sessions import Sessions
from vmbus_emu.machine.shutdown import Shutdown, phases
from vmbus_emu.machine.supervisor import SPARE, Process, Supervisor
from vmbus_emu.machine.telling import Telling
from vmbus_emu.machine.wires import Plug
from vmbus_emu.machine.workers import partner
from vmbus_emu.runfolder import RunFolder
from vmbus_emu.task import DeadlinePassed, Future, Task, within
from vmbus_emu.topology.data import Topology

#: Before the front door, or a zygote that never was ready, is started anew: it must not keep the machine busy forking.
RESTART_DELAY_S = 0.05
#: Messages refused that are written to the log; the rest are only counted.
LOGGED_REFUSALS = 20


class Machine:
    """One machine, from power-on to power-off."""

    def __init__(
        self, loop: Loop, topology: Topology, folder: RunFolder, media: dict[str, Medium], plugs: Mapping[str, Plug]
    ) -> None:
        self.loop = loop
        self.folder = folder
        self.state = "starting"
        self._roster = Roster(topology, media, lambda changed: self._power.use(changed))
        self._specs, self._hosts, self._vms = self._roster.specs, self._roster.hosts, self._roster.vms
        self._figures = Figures(loop)
        self._fallen: dict[str, str] = {}
        #: VM or worker -> why it was ended with the other one of the two.
        self._taken_along: dict[str, str] = {}
        #: Those of them whose other one had been ordered to end.
        self._leaving: set[str] = set()
        self._names = self._roster.names
        self._refused = 0
        self._front_restarts = 0
        self._shutdown: Shutdown | None = None
        self._media = media
        self._plugs = plugs
        self._conversations = Conversations(
            loop, self._to_front, lambda client, request: self._requests.arrived(client, request), self._client_gone
        )
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
            loop, self._roster.vm_hosts, self._fallen,
            policy_of(topology, self._specs["hypervisor"]) == "degraded", self.supervisor, self._recovery,
            self._events, self._reply,
        )  # fmt: skip
        self._integration = Integration(
            loop, self._roster, self._fallen, placement.integration_carrier(topology), self.supervisor, self._beats,
            self._drain, self._events, self._reply,
        )  # fmt: skip
        self._listing = Listing(
            self.supervisor, self._specs, self._figures, self._recovery, self._beats, self._drain, self._integration,
            self._fallen,
        )  # fmt: skip
        self._roles = Roles(
            loop, topology, self.supervisor, self._events, folder.groups_file, self.log, lambda: self._power.off
        )
        self._comings = Comings(
            loop, self._roster, self.supervisor, self._recovery, self._drain, self._events, self._reply,
            self._vms_changed,
        )  # fmt: skip
        self._bindings = Bindings(
            loop, self._roster, self.supervisor, self._recovery, self._events, self._reply
        )
        self._services = Services(loop, self._roster, self.supervisor, self._recovery, self._drain, self._reply)
        self._orders = Orders(
            loop, self._roster, self.supervisor, self._recovery, self._drain, self._events, self._reply, self._roles
        )
        self._telling = Telling(
            loop, self._roster, self.supervisor, self._figures, self._listing, self._roles, self._beats, self._reply,
            lambda: self.state, lambda: {"front_restarts": self._front_restarts, "refused": self._refused},
            self._carried,
        )  # fmt: skip
        self._sessions = Sessions(
            self._roster, self.supervisor, self._recovery, self._drain, self._consoles, self._reply, self._fallen,
            self._taken_along,
        )  # fmt: skip
        self._requests = Requests(self._reply, self._handlers(), self._settle_state)

    def _handlers(self) -> dict[str, Handler]:
        """Who carries out which verb."""
        telling, orders, consoles, integration = self._telling, self._orders, self._consoles, self._integration
        return {
            "info": telling.info, "ps": telling.ps, "audit": telling.audit, "watch": self._events.watch,
            "kill": orders.kill, "fault": orders.fault, "start": orders.start, "stop": integration.stop,
            "kvp": integration.kvp, "snapshot": integration.snapshot, "vm": self._comings.carry_out,
            "services": self._services.begin, "role": self._role, "driver": self._bindings.carry_out,
            "drain": self._begin_drain, "exec": self._sessions.begin, "stdin": consoles.from_client,
            "credit": consoles.from_client, "cancel": consoles.from_client, "down": self._down,
        }  # fmt: skip

    @property
    def topology(self) -> Topology:
        """What the machine is, with the VMs it has now."""
        return self._roster.topology

    def info(self) -> Message:
        """What is told of a machine that came up."""
        return self._telling.described()

    @property
    def _power(self) -> Power:
        return self._recovery.power

    def _new_power(self) -> Power:
        power = Power(self.loop, self.topology, self.folder, self._media, self.supervisor, self._specs)
        power.plugs = self._plugs
        power.on_start = lambda process, spare: self._recovery.starting(process, spare)
        return power

    async def boot(self) -> None:
        """Bring everything up. Raises :class:`BootFailed`."""
        self._beats.begin()
        await self._power.boot(self.progress)
        roles: Future[None] = Future()
        self._roles.begin(lambda why: roles.resolve(None) if why is None else roles.reject(BootFailed(why)))
        try:
            await within(self.loop, BOOT_DEADLINE_S, roles)
        except DeadlinePassed:
            raise BootFailed(f"the roles do not serve after {BOOT_DEADLINE_S:.0f} s") from None
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
        self._comings.all_ended()
        power = self._new_power()
        self.loop.call_soon(self._comings.boots_again)

        def booted(future: Future[None]) -> None:
            try:
                future.result()
            except BootFailed as error:
                self._recovery.boot_failed(str(error))
                self._drain.stop(f"the VMs are drained, but the reboot failed: {error}", "it is tried again")
                return
            self._up()
            self._roles.begin(lambda why: None if why is None else self.log(why))

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
            case "ready" if role == "role":
                self._roles.became_ready(process, message)
            case "not_started" if role == "role":
                self._roles.not_started(process, message["why"])
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
            case "driver_bound":
                self._refused += not self._bindings.bound(process, message)
            case "partition_ended":
                self._comings.partition_ended(message["name"])
            case "not_started":
                self._not_started(message["component"], message["why"])
            case "stats":
                self._figures.arrived(process.name, message["id"], intake.figures(message["stats"], carried))
            case "loaded":
                self._figures.arrived(process.name, message["id"], {process.name: intake.files(message["files"])})
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
        if name in self._roles:
            return "role", (name,)
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
        self._taken_along.pop(component, None)
        if component == "management":
            self.loop.call_soon(self._comings.management_is_back)
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
        self._bindings.died(process)
        self._integration.exited(process)
        ordered = self._ordered(process)
        restarts = self._services.exited(process)
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
        if not ordered:
            carried = sorted(self._names.get(process.name, (process.name,) if process.name in self._roles else ()))
            why = said or self._taken_along.get(process.name, "")
            self._events.emit("died", **describe(process, carried), reason=why, **self._captured(process, carried))
        if process.name.endswith(SPARE):
            self._recovery.spare_died(process)
        elif process.name in self._specs:
            self._component_process_died(process, reason, ordered, restarts)
        elif process.name in self._roles:
            self._roles.exited(process)
            if self._recovery.rebooting and self._power.off:
                self._recovery.process_ended()
        else:
            self._zygote_died(process, reason)

    def _ordered(self, process: Process) -> bool:
        """Whether a process that was reaped had been told to end: nobody's death, and no policy follows. Each who may
        have told it hears of its end here."""
        asked = [
            self._services.expects(process), self._drain.shut_down(process), self._roles.leaves(process),
            self._comings.ends(process), self._integration.stops.exited(process), process.name in self._leaving,
        ]  # fmt: skip
        self._leaving.discard(process.name)
        return any(asked)

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
            borne = [spec.name for spec in self._specs.values() if placement.zygote_of(spec) == process.name]
            self._power.cannot_boot(borne, reason)
        elif born is not None:  # the code is good: somebody killed this one early
            self.loop.call_later(RESTART_DELAY_S, self._restart_zygote, self._power, role, process.name)

    @staticmethod
    def _restart_zygote(power: Power, role: str, name: str) -> None:
        if not power.off:
            power.start_zygote(role, name)

    def _component_process_died(self, process: Process, reason: str, ordered: bool, restarts: bool) -> None:
        if "hypervisor" in self.supervisor.running:
            self.supervisor.running["hypervisor"].line.send({"t": "died", "pid": process.pid})
        if not restarts:
            self._end_partner(process, reason, ordered)
        if not self._power.booting:
            self._power.cannot_boot(self._names[process.name], reason)
            counts = not self._drain.exited(process) and not ordered
            if counts or self._recovery.rebooting:  # a reboot waits for everybody's end
                self._recovery.died(process)
            if process.name == "management":
                self.loop.call_soon(self._comings.management_is_back)
            self._settle_state()
        elif self._recovery.replaces(process):
            self._recovery.died(process)
        else:  # of what others need, nobody would come up who is not there yet
            alone = self._specs[process.name].role in ("child", "worker")
            self._power.cannot_boot(self._names[process.name] if alone else self._power.ready, reason)
        self._tell_of_death(process)

    def _end_partner(self, process: Process, reason: str, ordered: bool) -> None:
        """A VM and its worker end together."""
        other = self.supervisor.running.get(partner(self._specs, process.name) or "")
        if other is not None:
            self._taken_along[other.name] = reason
            if ordered:
                self._leaving.add(other.name)
            self.log(f"{other.name} ends with {reason}")
            self.supervisor.kill(other)

    def _vms_changed(self) -> None:
        """A VM has come, or is gone."""
        self.folder.update_vms(list(self._vms))
        self._roles.vms_changed(self._roster.addresses())
        for vm in self._fallen.keys() - self._vms.keys():
            del self._fallen[vm]
        self._settle_state()

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
        elif self._fallen or self._recovery.restarting or any(
            name not in running and not self._drain.is_off(name) for name in self._specs
        ):
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

    def _begin_drain(self, client: bytes, number: int, request: Message) -> None:
        """All VMs shut down in turn, then the machine reboots: a monolith from another image, if it is given one."""
        if "image" in request:
            self._drain.must_be_possible()
            self._bindings.install(request)
        self._drain.begin(client, number, request.get("grace_s", DEFAULT_GRACE_S))

    def _role(self, client: bytes, number: int, request: Message) -> None:
        self._roles.order(request, lambda answer: self._reply(client, {"id": number, **answer}))

    def _down(self, client: bytes, number: int, request: Message) -> None:
        self.power_off(lambda step: self._reply(client, {"id": number, **step}))

    # -- power off ----------------------------------------------------------------------------------

    def power_off(self, report: Any) -> None:
        """Stop every process, in order, naming what is waited for; then the front door, then the machine itself."""
        if self._shutdown is None:
            self.state = "stopping"
            self._power.off = True
            self._drain.stop("the machine is taken down")
            self._beats.end()
            guests = [self._hosts[vm] for vm in self._vms]
            ordered = phases(self._specs, guests)
            ordered[0] += self._roles
            self._shutdown = Shutdown(self.loop, self.supervisor, ordered, report, self._gone)
            self._shutdown.begin()
        else:
            self._shutdown.listeners.append(report)

    def _gone(self) -> None:
        self._roles.close()
        self.loop.stop()
