"""The machine: the stand-in for the physical box. It belongs to no architecture and is on no data path.

It powers processes on and watches them die, owns the media and the serial consoles, and answers the management
socket through its front door. It is the direct parent of every process of the machine and asks the kernel to
kill them all should it die: the plug was pulled.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vmbus_emu import lifeline, placement
from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop
from vmbus_emu.machine import intake
from vmbus_emu.machine.consoles import VM_DIED, Consoles
from vmbus_emu.machine.figures import Figures, process_row
from vmbus_emu.machine.media import Medium
from vmbus_emu.machine.shutdown import Shutdown
from vmbus_emu.machine.supervisor import Process, Supervisor
from vmbus_emu.placement import ProcessSpec
from vmbus_emu.protocol.hypercall import PAGE
from vmbus_emu.runfolder import RunFolder
from vmbus_emu.task import DeadlinePassed, Future, Task, within
from vmbus_emu.topology.data import Topology

#: A machine whose components are not all ready by then does not come up.
BOOT_DEADLINE_S = 60.0

#: Messages refused that are written to the log; the rest are only counted.
LOGGED_REFUSALS = 20

_ROOT_VPS = {"parent": 0, "management": 1}


class BootFailed(Exception):
    """Why the machine does not come up, in one line."""


class Machine:
    """One machine, from power-on to power-off."""

    def __init__(self, loop: Loop, topology: Topology, folder: RunFolder, media: dict[str, Medium]) -> None:
        self.loop = loop
        self.topology = topology
        self.folder = folder
        self.state = "starting"
        self._media = media
        self._specs = {spec.name: spec for spec in placement.processes(topology)}
        self._hosts = {c.name: spec.name for spec in self._specs.values() for c in spec.components}
        self._vms = {vm.name: vm for vm in topology.vms}
        self._ready: dict[str, Future[None]] = {name: Future() for name in self._hosts}
        self._bound: dict[int, Future[None]] = {}
        self._partitions: dict[str, int] = {}
        self._memory: dict[str, int] = {}
        self._figures = Figures(loop)
        self._fallen: dict[str, str] = {}
        self._names = {spec.name: frozenset(c.name for c in spec.components) for spec in self._specs.values()}
        self._refused = 0
        self._front_restarts = 0
        self._front_ready: Future[None] = Future()
        self._zygote_ready: dict[str, Future[None]] = {}
        self._shutdown: Shutdown | None = None
        self._consoles = Consoles(self._reply)
        self.supervisor = Supervisor(loop, topology.name, folder.path, self._received, self._exited)
        self.progress: Callable[[str, int, int], Any] = lambda component, done, total: None
        self.log = self.supervisor.log("machine").line

    # -- power on -----------------------------------------------------------------------------------

    async def boot(self) -> None:
        """Bring everything up. Raises :class:`BootFailed`."""
        total = len(self._ready)
        done = 0

        def count(name: str) -> None:
            nonlocal done
            done += 1
            self.progress(name, done, total)

        for name, ready in self._ready.items():
            ready.then(lambda future, name=name: count(name))  # type: ignore[misc]
        self._start_zygotes()
        hypervisor = self._specs["hypervisor"]
        process = self.supervisor.spawn("hypervisor", hypervisor.entry)
        self._send_media(process, hypervisor)
        process.line.send({"t": "start", "config": self._config(hypervisor)})
        self._start_front()
        roots = [self._power_on(self._specs[name]) for name in _ROOT_VPS if name in self._specs]
        try:
            await within(self.loop, BOOT_DEADLINE_S, self._ready["hypervisor"])
            for root, descriptors in roots:
                self._announce("bind", root, 1, _ROOT_VPS[root.name], descriptors)
                await within(self.loop, BOOT_DEADLINE_S, self._bound[root.pid])
                self._start(root, self._specs[root.name])
                await within(self.loop, BOOT_DEADLINE_S, self._ready[root.name])
            for ready in self._ready.values():
                await within(self.loop, BOOT_DEADLINE_S, ready)
            await within(self.loop, BOOT_DEADLINE_S, self._front_ready)
        except DeadlinePassed:
            late = [name for name, ready in self._ready.items() if not ready.done]
            raise BootFailed(f"{', '.join(late)} not ready after {BOOT_DEADLINE_S:.0f} s") from None
        self.state = "ready"
        self.log("ready")

    def _start_front(self) -> None:
        process = self.supervisor.spawn("front", "vmbus_emu.machine.front:Front")
        process.line.send({"t": "start", "config": {"socket": self.folder.socket("front.sock")}})

    def _power_on(self, spec: ProcessSpec) -> tuple[Process, socket.socket]:
        """A process of its role, and our end of its descriptor socket, which goes to the hypervisor."""
        near, far = lifeline.pair()
        return self.supervisor.spawn(spec.name, spec.entry, far), near

    def _start_zygotes(self) -> None:
        for role, name in placement.ZYGOTES.items():
            if any(spec.role == role for spec in self._specs.values()):
                self._start_zygote(role, name)

    def _start_zygote(self, role: str, name: str) -> None:
        process = self.supervisor.spawn(name, placement.ZYGOTE_ENTRY)
        self._zygote_ready[name] = Future()
        process.line.send({"t": "start", "config": {"entry": placement.ENTRIES[role]}})

    def _announce(self, kind: str, process: Process, partition: int, vp: int, descriptors: socket.socket) -> None:
        """Tell the hypervisor which process stands in for which VP, with its descriptor socket and I/O memory."""
        self._bound[process.pid] = Future()
        message: Message = {"t": kind, "partition": partition, "vp": vp, "pid": process.pid}
        fds = [descriptors.fileno()]
        if process.name in self._vms:
            message["memory"] = {"gpa": placement.IO_MEMORY_GPA, "pages": placement.IO_MEMORY_PAGES}
            fds.append(self._io_memory(process.name))
        self.supervisor.processes["hypervisor"].line.send(message, fds)
        descriptors.close()

    def _io_memory(self, vm: str) -> int:
        if vm not in self._memory:
            fd = os.memfd_create(f"{vm}.io", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, placement.IO_MEMORY_PAGES * PAGE)
            self._memory[vm] = fd
        return self._memory[vm]

    def _start(self, process: Process, spec: ProcessSpec) -> None:
        self._send_media(process, spec)
        process.line.send({"t": "start", "config": self._config(spec)})

    def _send_media(self, process: Process, spec: ProcessSpec) -> None:
        if any(component.role == "storvsp" for component in spec.components):
            for medium in self._media.values():
                fds = [medium.fd] if medium.fd >= 0 else []
                process.line.send({"t": "medium", "name": medium.name, "info": medium.describe()}, fds)

    def _config(self, spec: ProcessSpec) -> Message:
        incarnation = self.supervisor.processes["hypervisor"].incarnation
        socket_path = self.folder.socket(f"hv-{incarnation}.sock")
        return placement.configuration(self.topology, spec, socket_path, str(self.folder.sockets))

    # -- messages from processes ----------------------------------------------------------------------

    def _received(self, process: Process, message: Message, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)  # nobody sends the machine descriptors
        role, carried = self._carried(process.name)
        if not intake.accepts(role, carried, message):
            self._refuse(process, message)
            return
        match message["t"]:
            case "ready":
                self._became_ready(process, message["component"])
            case "born":
                self.supervisor.born(message["name"], message["pid"])
            case "bound":
                self._bound.setdefault(message["pid"], Future()).resolve(None)
            case "power_on":
                self._power_on_partition(message)
            case "power_off":
                self._power_off(message["pids"])
            case "component_died":
                self._component_died(message["component"], message["why"])
            case "log":
                self.supervisor.log(message["component"]).line(message["text"])
            case "not_started":
                self._not_started(message["component"], message["why"])
            case "stats":
                self._figures.arrived(process.name, message["id"], intake.figures(message["stats"], carried))
            case "request":
                self._request(message["client"], message["request"])
            case "client_gone":
                self._consoles.client_gone(message["client"])
            case "out" | "need" | "exit":
                self._refused += not self._consoles.from_guest(process, message)

    def _carried(self, name: str) -> tuple[str, Collection[str]]:
        """A process's role, and the components for which it may speak."""
        if name in self._specs:
            return self._specs[name].role, self._names[name]
        return ("front" if name == "front" else "zygote"), (name,)

    def _refuse(self, process: Process, message: Message) -> None:
        self._refused += 1
        if self._refused <= LOGGED_REFUSALS:
            self.log(f"{process.name} (pid {process.pid}) sent what it may not: {message['t'][:40]!r}")

    def _became_ready(self, process: Process, component: str) -> None:
        if component == "front":
            self._front_ready.resolve(None)
        elif component in self._zygote_ready:
            self._zygote_ready[component].resolve(None)
        elif self._hosts.get(component) == process.name:
            self._ready[component].resolve(None)

    def _component_died(self, component: str, why: str) -> None:
        """A guest of the monolith ended by a bug of its own; its host process lives on."""
        self.log(f"{component}: guest code failed: {why}")
        self._fallen[component] = why
        self.state = "degraded"
        self._not_started(component, why)
        self._consoles.vm_died(component, f"{component} died: {why}")

    def _not_started(self, component: str, why: str) -> None:
        ready = self._ready.get(component)
        if ready is not None:
            ready.reject(BootFailed(f"{component} did not start: {why}"))

    def _power_on_partition(self, message: Message) -> None:
        name = message["name"]
        spec = self._specs.get(name)
        running = self.supervisor.running
        if spec is None or name in running or self._shutdown is not None:
            self._cannot_power_on(message["partition"], message["vp"])
            return
        Task(self.loop, self._bear(spec, message["partition"], message["vp"]))

    def _cannot_power_on(self, partition: int, vp: int) -> None:
        hypervisor = self.supervisor.processes["hypervisor"]
        hypervisor.line.send({"t": "powered", "partition": partition, "vp": vp, "pid": None})

    async def _bear(self, spec: ProcessSpec, partition: int, vp: int) -> None:
        process: Process | None
        zygote = placement.ZYGOTES.get(spec.role)
        if zygote is None:
            process, descriptors = self._power_on(spec)
        else:
            await self._zygote_ready[zygote]
            descriptors, far = lifeline.pair()
            process = await self.supervisor.spawn_from(
                self.supervisor.processes[zygote], spec.name, spec.entry, far
            )
        if process is None:
            descriptors.close()
            self._cannot_power_on(partition, vp)
            return
        self._partitions[spec.name] = partition
        self._announce("powered", process, partition, vp, descriptors)
        await self._bound[process.pid]  # it must have an identity before it speaks
        self._start(process, spec)

    def _power_off(self, pids: list[int]) -> None:
        for process in self.supervisor.running.values():
            if process.pid in pids and process.name != "hypervisor":
                self.supervisor.kill(process)

    def _exited(self, process: Process) -> None:
        self.log(f"{process.name} (pid {process.pid}, incarnation {process.incarnation}) {process.ending}")
        self._consoles.process_died(process)
        if process.name in self._zygote_ready:
            self.supervisor.stillborn()
        if self._shutdown is not None:
            self._shutdown.exited(process)
            return
        if process.name == "front":  # the machine's own part: without it nobody could ask what happened
            self._front_restarts += 1
            self._start_front()
            return
        tail = self.supervisor.log(process.name).tail
        reason = f"{process.name} (pid {process.pid}) was {process.ending}" + (f": {tail[-1]}" if tail else "")
        for role, name in placement.ZYGOTES.items():
            if process.name == name:
                if self._zygote_ready[name].done:
                    self._start_zygote(role, name)
                else:  # it cannot load its role's code; another one could not either
                    self._cannot_boot([s.name for s in self._specs.values() if s.role == role], reason)
                return
        self._cannot_boot(self._names[process.name], reason)
        self._tell_of_death(process)
        if self.state in ("ready", "degraded"):
            alive = any(self._hosts[vm] in self.supervisor.running for vm in self._vms)
            self.state = "degraded" if alive or not self._vms else "halted"

    def _cannot_boot(self, components: Collection[str], reason: str) -> None:
        for component in components:
            self._ready[component].reject(BootFailed(reason))  # of no effect on one that is ready

    def _tell_of_death(self, process: Process) -> None:
        running = self.supervisor.running
        if "hypervisor" in running:
            running["hypervisor"].line.send({"t": "died", "pid": process.pid})
        for role in _ROOT_VPS:
            if role in running:
                running[role].line.send({"t": "peer_died", "name": process.name})
        if "hypervisor" not in running:
            self._tell_guests(running)

    def _tell_guests(self, running: Mapping[str, Process]) -> None:
        """Without a hypervisor no message reaches the guests any more, so which VSPs are dead they hear from us."""
        dead = [vsp for vsp in placement.VSPS if self._hosts[vsp] not in running]
        for name in self._vms:
            if name in running and dead:
                running[name].line.send({"t": "vsps_died", "names": dead})

    # -- requests -----------------------------------------------------------------------------------

    def _reply(self, client: bytes, reply: Message) -> None:
        front = self.supervisor.running.get("front")
        if front is not None:
            front.line.send({"t": "reply", "client": client, "reply": reply})

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
        elif not host.running:
            ending = f"is dead: {host.name} was {host.ending}"
        elif vm in self._fallen:
            ending = f"is dead: {self._fallen[vm]}"
        elif not self._ready[vm].done:
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
        }

    # -- ps -----------------------------------------------------------------------------------------

    async def _ps(self, client: bytes, number: int) -> None:
        asked = set(self.supervisor.running) - {"front"} - set(self._zygote_ready)  # those have no figures
        stats = await self._figures.collect({name: self.supervisor.processes[name] for name in asked})
        now = time.monotonic()
        rows = [self._machine_row()]
        for name, ready in self._zygote_ready.items():
            rows.append(process_row(name, "zygote", name, self.supervisor.processes.get(name), ready.done))
        for spec in self._specs.values():
            process = self.supervisor.processes.get(spec.name)
            for name, role in ((component.name, component.role) for component in spec.components):
                row = process_row(name, role, spec.name, process, self._ready[name].done, stats.get(name, {}), now)
                if name in self._fallen:
                    row["state"] = "dead"
                rows.append(row)
        self._reply(client, {"id": number, "info": self.info(), "rows": rows})

    def _machine_row(self) -> Message:
        front = self.supervisor.processes.get("front")
        counters = {
            "front_pid": front.pid if front else None,
            "front_restarts": self._front_restarts,
            "refused": self._refused,
        }
        row = process_row("machine", "machine", "machine", None, True, {"counters": counters})
        return {**row, "pid": os.getpid(), "state": "ready", "incarnation": 1}

    # -- power off ----------------------------------------------------------------------------------

    def power_off(self, report: Any) -> None:
        """Stop every process, in order, naming what is waited for; then the front door, then the machine itself."""
        if self._shutdown is None:
            self.state = "stopping"
            self._shutdown = Shutdown(self.loop, self.supervisor, self._phases(), report, self._gone)
            self._shutdown.begin()
        else:
            self._shutdown.listeners.append(report)

    def _phases(self) -> list[list[str]]:
        """Guests first, then who serves them, the hypervisor last, and the door through which we report."""
        guests = [self._hosts[vm] for vm in self._vms]
        first = [*guests, "management"]
        second = [name for name in self._specs if name not in first and name != "hypervisor"]
        zygotes = list(placement.ZYGOTES.values())
        return [[n for n in first if n != "hypervisor"] + zygotes, second, ["hypervisor"], ["front"]]

    def _gone(self) -> None:
        self.loop.stop()
