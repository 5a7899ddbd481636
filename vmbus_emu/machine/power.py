"""Powering on: the order in which a machine's processes start, and what each is given before it may speak.

A process gets its identity first (the hypervisor binds its pid to a virtual processor and says so), then its media,
then its configuration. The root partition's processes are started by the machine; every other partition's because
the hypervisor asked for it (StartVirtualProcessor).
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from vmbus_emu import lifeline, placement
from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop
from vmbus_emu.machine.media import Medium
from vmbus_emu.machine.supervisor import SPARE, Process, Supervisor
from vmbus_emu.placement import ProcessSpec
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import PAGE
from vmbus_emu.runfolder import RunFolder
from vmbus_emu.task import DeadlinePassed, Future, Task, within
from vmbus_emu.topology.data import Topology

#: A machine whose components are not all ready by then does not come up.
BOOT_DEADLINE_S = 60.0

_ROOT_VPS = {"parent": 0, "management": 1}
ROOT_PROCESSES = tuple(_ROOT_VPS)
#: Seconds after a recovery before the next spare is made: it would take CPU from guests that are served again only now.
SPARE_AFTER_S = 0.02

#: Two partitions map a region of I/O memory. Could one of them cut its file short, the other would die of SIGBUS at
#: its next access: so the size is final, and nobody can add or take a seal.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

Progress = Callable[[str, int, int], Any]


class BootFailed(Exception):
    """Why the machine does not come up, in one line."""


class Power:
    """Starts the processes in ``specs``. The machine tells it what they say (``became_ready``, ``bound``)."""

    def __init__(
        self,
        loop: Loop,
        topology: Topology,
        folder: RunFolder,
        media: Mapping[str, Medium],
        supervisor: Supervisor,
        specs: Mapping[str, ProcessSpec],
    ) -> None:
        self._loop = loop
        self._topology = topology
        self._folder = folder
        self._media = media
        self._supervisor = supervisor
        self._specs = specs
        self._vms = {vm.name: vm for vm in topology.vms}
        self._bound: dict[int, Future[bool]] = {}
        self._places: dict[str, tuple[int, int]] = {}       # partition and VP of each component's process
        self._memory: dict[str, list[int]] = {}
        self._spares: dict[str, tuple[Process, socket.socket]] = {}
        self._front_ready: Future[None] = Future()
        self._booted = False
        self.zygotes: dict[str, Future[None]] = {}
        #: Component -> settled when it is ready, or cannot become it.
        self.ready: dict[str, Future[None]] = {c.name: Future() for spec in specs.values() for c in spec.components}
        #: Set while powering off: nothing starts any more.
        self.off = False
        #: Called with each process that the hypervisor asked for.
        self.on_powered: Callable[[Process], Any] = lambda process: None

    async def boot(self, progress: Progress) -> None:
        """Bring everything up. Raises :class:`BootFailed`."""
        total = len(self.ready)
        done = 0

        def count(name: str) -> None:
            nonlocal done
            done += 1
            progress(name, done, total)

        for name, ready in self.ready.items():
            ready.then(lambda future, name=name: count(name))  # type: ignore[misc]
        self._start_zygotes()
        hypervisor = self._specs["hypervisor"]
        process = self._supervisor.spawn("hypervisor", hypervisor.entry)
        self._send_media(process, hypervisor)
        process.line.send({"t": "start", "config": self._config(hypervisor)})
        if "front" in self._supervisor.running:
            self._front_ready.resolve(None)
        else:
            self.start_front()
        roots = {name: self._born(self._specs[name]) for name in _ROOT_VPS if name in self._specs}
        try:
            await within(self._loop, BOOT_DEADLINE_S, self.ready["hypervisor"])
            for name, birth in roots.items():
                self._places[name] = hv.PARTITION_ROOT, _ROOT_VPS[name]
                born = await within(self._loop, BOOT_DEADLINE_S, birth)
                if born is not None:
                    await self._install("bind", self._specs[name], *born)
                await within(self._loop, BOOT_DEADLINE_S, self.ready[name])
            for ready in self.ready.values():
                await within(self._loop, BOOT_DEADLINE_S, ready)
            await within(self._loop, BOOT_DEADLINE_S, self._front_ready)
        except DeadlinePassed:
            late = [name for name, ready in self.ready.items() if not ready.done]
            raise BootFailed(f"{', '.join(late)} not ready after {BOOT_DEADLINE_S:.0f} s") from None
        self._booted = True

    def start_front(self) -> None:
        process = self._supervisor.spawn("front", "vmbus_emu.machine.front:Front")
        process.line.send({"t": "start", "config": {"socket": self._folder.socket("front.sock")}})

    # -- processes begin --------------------------------------------------------------------------------

    def _born(self, spec: ProcessSpec, spare: bool = False) -> Future[tuple[Process, socket.socket] | None]:
        """A process of its role, and our end of its descriptor socket, which goes to the hypervisor; ``None`` if its
        zygote died. Raises :class:`BootFailed` if that never came up."""
        return Task(self._loop, self._give_birth(spec, spare), watched=True)

    async def _give_birth(self, spec: ProcessSpec, spare: bool) -> tuple[Process, socket.socket] | None:
        zygote = placement.ZYGOTES.get(spec.role)
        near, far = lifeline.pair()
        if zygote is None:
            return self._supervisor.spawn(spec.name, spec.entry, far, spare), near
        await self.zygotes[zygote]
        mother = self._supervisor.processes[zygote]
        process = await self._supervisor.spawn_from(mother, spec.name, spec.entry, far, spare)
        if process is None:
            near.close()
            return None
        return process, near

    def _start_zygotes(self) -> None:
        for role, name in placement.ZYGOTES.items():
            if any(spec.role == role for spec in self._specs.values()):
                self.start_zygote(role, name)

    def start_zygote(self, role: str, name: str) -> None:
        process = self._supervisor.spawn(name, placement.ZYGOTE_ENTRY)
        self.zygotes[name] = Future()
        spec = next(spec for spec in self._specs.values() if spec.role == role)
        process.line.send({"t": "start", "config": {"entries": placement.preloaded(self._topology, spec)}})

    async def _install(self, kind: str, spec: ProcessSpec, process: Process, descriptors: socket.socket) -> bool:
        """Give a process its identity, and then its configuration: it must have the one before it speaks."""
        bound = self._announce(kind, process, *self._places[spec.name], descriptors)
        if not await bound:
            return False
        self._start(process, spec)
        return True

    # -- and again ------------------------------------------------------------------------------------

    async def revive(self, spec: ProcessSpec) -> Process | None:
        """A new process in the place of one that is dead and reaped; ``None`` if it did not get that far."""
        for component in spec.components:
            self.ready[component.name] = Future()
        born = self._spares.pop(spec.name, None)
        if born is not None:
            self._supervisor.promote(born[0])
        else:
            born = await self._born(spec)
        if born is None or self.off:
            return None
        return born[0] if await self._install("bind", spec, *born) else None

    async def keep_spare(self, spec: ProcessSpec) -> None:
        """Have a process wait, with its code, its media and its devices, for the place of ``spec``."""
        if spec.name in self._spares or self.off:
            return
        born = await self._born(spec, spare=True)
        if born is None:
            return
        if self.off or spec.name in self._spares:
            self._supervisor.kill(born[0])
            born[1].close()
            return
        self._spares[spec.name] = born
        self._send_media(born[0], spec)
        born[0].line.send({"t": "prepare", "config": self._config(spec)})

    def exited(self, process: Process) -> None:
        """A process was reaped: nobody waits for it any more."""
        bound = self._bound.pop(process.pid, None)
        if bound is not None:
            bound.resolve(False)
        if process.name == "hypervisor":  # it will not answer any more
            for bound in self._bound.values():
                bound.resolve(False)
            self._bound.clear()
        name = process.name.removesuffix(SPARE)
        spare = self._spares.get(name)
        if spare is not None and spare[0] is process:
            spare[1].close()
            del self._spares[name]

    def renew(self, name: str) -> None:
        """Component ``name`` is about to start again."""
        self.ready[name] = Future()

    def place(self, name: str) -> int:
        """The partition that a component's process is, or was last, in; 0: none yet."""
        return self._places.get(name, (0, 0))[0]

    def _running(self) -> list[tuple[int, str, str]]:
        """What a new incarnation of the parent partition's processes finds: partition, component, kind."""
        alive = self._supervisor.running
        return [
            (partition, name, "vsp" if name in placement.VSPS else "child")
            for name, (partition, _) in self._places.items()
            if partition != hv.PARTITION_ROOT and (name in alive or name in placement.VSPS)
        ]

    def _announce(
        self, kind: str, process: Process, partition: int, vp: int, descriptors: socket.socket
    ) -> Future[bool]:
        """Tell the hypervisor which process stands in for which VP, with its descriptor socket and I/O memory."""
        bound: Future[bool] = Future()
        if not process.running or "hypervisor" not in self._supervisor.running:
            bound.resolve(False)
            descriptors.close()
            return bound
        self._bound[process.pid] = bound
        message: Message = {"t": kind, "partition": partition, "vp": vp, "pid": process.pid}
        files = self._io_memory(process.name)
        if files:
            regions = placement.io_memory(self._vms[process.name])
            message["memory"] = [{"gpa": region["gpa"], "pages": region["pages"]} for region in regions]
        self._supervisor.processes["hypervisor"].line.send(message, [descriptors.fileno(), *files])
        descriptors.close()
        return bound

    def _io_memory(self, name: str) -> Sequence[int]:
        """The memory files behind the regions of a VM's I/O memory, the same ones over its restarts; none for any
        other process, and none on a transport that shares no memory."""
        if name not in self._vms or self._topology.transport != "ring":
            return ()
        if name not in self._memory:
            self._memory[name] = [
                _memory_file(f"{name}.{region['vsp']}", region["pages"] * PAGE)
                for region in placement.io_memory(self._vms[name])
            ]
        return self._memory[name]

    def _start(self, process: Process, spec: ProcessSpec) -> None:
        self._send_media(process, spec)
        process.line.send({"t": "start", "config": self._config(spec)}, self._io_memory(spec.name))

    def _send_media(self, process: Process, spec: ProcessSpec) -> None:
        if any(component.role == "storvsp" for component in spec.components):
            for medium in self._media.values():
                fds = [medium.fd] if medium.fd >= 0 else []
                process.line.send({"t": "medium", "name": medium.name, "info": medium.describe()}, fds)

    def _config(self, spec: ProcessSpec) -> Message:
        incarnation = self._supervisor.processes["hypervisor"].incarnation
        socket_path = self._folder.socket(f"hv-{incarnation}.sock")
        config = placement.configuration(self._topology, spec, socket_path, str(self._folder.sockets))
        config["running"] = self._running() if self._booted else []
        if self._booted:
            config["partitions"] = []  # management's to bring up: all of it is there
        return config

    def power_on_partition(self, message: Message) -> None:
        name = message["name"]
        spec = self._specs.get(name)
        running = self._supervisor.running
        if spec is None or name in running or self.off:
            self._cannot_power_on(message["partition"], message["vp"])
            return
        Task(self._loop, self._bear(spec, message["partition"], message["vp"]))

    def _cannot_power_on(self, partition: int, vp: int) -> None:
        hypervisor = self._supervisor.processes["hypervisor"]
        hypervisor.line.send({"t": "powered", "partition": partition, "vp": vp, "pid": None})

    async def _bear(self, spec: ProcessSpec, partition: int, vp: int) -> None:
        try:
            born = await self._born(spec)
        except BootFailed:
            born = None
        if born is None:
            self._cannot_power_on(partition, vp)
            return
        self._places[spec.name] = partition, vp
        self.on_powered(born[0])
        await self._install("powered", spec, *born)

    # -- what processes say ---------------------------------------------------------------------------

    def bound(self, pid: int) -> None:
        """The hypervisor knows process ``pid`` now."""
        bound = self._bound.pop(pid, None)
        if bound is not None:
            bound.resolve(True)

    def became_ready(self, component: str) -> None:
        if component == "front":
            self._front_ready.resolve(None)
        elif component in self.zygotes:
            self.zygotes[component].resolve(None)
        else:
            self.ready[component].resolve(None)

    def cannot_boot(self, components: Collection[str], reason: str) -> None:
        """These will not become ready. Of no effect on one that is."""
        for component in components:
            self.ready[component].reject(BootFailed(reason))


def _memory_file(name: str, size: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd
