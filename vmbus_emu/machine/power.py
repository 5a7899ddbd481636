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
from vmbus_emu.machine.supervisor import Process, Supervisor
from vmbus_emu.placement import ProcessSpec
from vmbus_emu.protocol.hypercall import PAGE
from vmbus_emu.runfolder import RunFolder
from vmbus_emu.task import DeadlinePassed, Future, Task, within
from vmbus_emu.topology.data import Topology

#: A machine whose components are not all ready by then does not come up.
BOOT_DEADLINE_S = 60.0

_ROOT_VPS = {"parent": 0, "management": 1}
ROOT_PROCESSES = tuple(_ROOT_VPS)

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
        self._bound: dict[int, Future[None]] = {}
        self._memory: dict[str, list[int]] = {}
        self._front_ready: Future[None] = Future()
        self.zygotes: dict[str, Future[None]] = {}
        #: Component -> settled when it is ready, or cannot become it.
        self.ready: dict[str, Future[None]] = {c.name: Future() for spec in specs.values() for c in spec.components}
        #: Set while powering off: nothing starts any more.
        self.off = False

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
        self.start_front()
        roots = [self._power_on(self._specs[name]) for name in _ROOT_VPS if name in self._specs]
        try:
            await within(self._loop, BOOT_DEADLINE_S, self.ready["hypervisor"])
            for root, descriptors in roots:
                self._announce("bind", root, 1, _ROOT_VPS[root.name], descriptors)
                await within(self._loop, BOOT_DEADLINE_S, self._bound[root.pid])
                self._start(root, self._specs[root.name])
                await within(self._loop, BOOT_DEADLINE_S, self.ready[root.name])
            for ready in self.ready.values():
                await within(self._loop, BOOT_DEADLINE_S, ready)
            await within(self._loop, BOOT_DEADLINE_S, self._front_ready)
        except DeadlinePassed:
            late = [name for name, ready in self.ready.items() if not ready.done]
            raise BootFailed(f"{', '.join(late)} not ready after {BOOT_DEADLINE_S:.0f} s") from None

    def start_front(self) -> None:
        process = self._supervisor.spawn("front", "vmbus_emu.machine.front:Front")
        process.line.send({"t": "start", "config": {"socket": self._folder.socket("front.sock")}})

    def _power_on(self, spec: ProcessSpec) -> tuple[Process, socket.socket]:
        """A process of its role, and our end of its descriptor socket, which goes to the hypervisor."""
        near, far = lifeline.pair()
        return self._supervisor.spawn(spec.name, spec.entry, far), near

    def _start_zygotes(self) -> None:
        for role, name in placement.ZYGOTES.items():
            if any(spec.role == role for spec in self._specs.values()):
                self.start_zygote(role, name)

    def start_zygote(self, role: str, name: str) -> None:
        process = self._supervisor.spawn(name, placement.ZYGOTE_ENTRY)
        self.zygotes[name] = Future()
        process.line.send({"t": "start", "config": {"entry": placement.entry(self._topology, role)}})

    def _announce(self, kind: str, process: Process, partition: int, vp: int, descriptors: socket.socket) -> None:
        """Tell the hypervisor which process stands in for which VP, with its descriptor socket and I/O memory."""
        self._bound[process.pid] = Future()
        message: Message = {"t": kind, "partition": partition, "vp": vp, "pid": process.pid}
        files = self._io_memory(process.name)
        if files:
            regions = placement.io_memory(self._vms[process.name])
            message["memory"] = [{"gpa": region["gpa"], "pages": region["pages"]} for region in regions]
        self._supervisor.processes["hypervisor"].line.send(message, [descriptors.fileno(), *files])
        descriptors.close()

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
        return placement.configuration(self._topology, spec, socket_path, str(self._folder.sockets))

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
        process: Process | None
        zygote = placement.ZYGOTES.get(spec.role)
        if zygote is None:
            process, descriptors = self._power_on(spec)
        else:
            await self.zygotes[zygote]
            descriptors, far = lifeline.pair()
            process = await self._supervisor.spawn_from(
                self._supervisor.processes[zygote], spec.name, spec.entry, far
            )
        if process is None:
            descriptors.close()
            self._cannot_power_on(partition, vp)
            return
        self._announce("powered", process, partition, vp, descriptors)
        await self._bound[process.pid]  # it must have an identity before it speaks
        self._start(process, spec)

    # -- what processes say ---------------------------------------------------------------------------

    def bound(self, pid: int) -> None:
        """The hypervisor knows process ``pid`` now."""
        self._bound.setdefault(pid, Future()).resolve(None)

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
