"""Powering on: the order in which a machine's processes start, and what each is given before it may speak.

A process gets its identity first (the hypervisor is told to bind its pid to a virtual processor), then its media,
then its configuration. The root partition's processes are started by the machine; every other partition's because
the hypervisor asked for it (StartVirtualProcessor). A little long: to start the first time and again is one story.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vmbus_emu import lifeline, placement
from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop
from vmbus_emu.machine.identities import Identities
from vmbus_emu.machine.media import Medium
from vmbus_emu.machine.policy import is_replaced
from vmbus_emu.machine.spares import Spares
from vmbus_emu.machine.supervisor import SPARE, Process, Supervisor
from vmbus_emu.machine.wires import Plug
from vmbus_emu.machine.workers import Cables
from vmbus_emu.placement import ProcessSpec
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.runfolder import RunFolder
from vmbus_emu.task import DeadlinePassed, Future, Task, within
from vmbus_emu.topology.data import Topology

#: A machine whose components are not all ready by then does not come up.
BOOT_DEADLINE_S = 60.0

_ROOT_VPS = {"parent": 0, "management": 1}
ROOT_PROCESSES = tuple(_ROOT_VPS)
#: Seconds after a recovery before the next spare is made: it would take CPU from guests that are served again only now.
SPARE_AFTER_S = 0.02
#: Seconds after a death before the socket files it left are removed: nobody waits for that.
SWEEP_AFTER_S = 0.1

Progress = Callable[[str, int, int], Any]


def _kind(spec: ProcessSpec) -> str:
    """What the root's processes call a component that has a partition of its own."""
    return "vsp" if spec.name in placement.VSPS else "child"


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
        self._cables = Cables(topology, specs, supervisor)
        #: Of processes whose end somebody waits for.
        self._ends: dict[str, Future[None]] = {}
        self._identities = Identities(topology, supervisor, placement.recovers(topology))
        self._places: dict[str, tuple[int, int]] = {}       # partition and VP of each component's process
        self._bearing: set[tuple[int, int]] = set()
        #: Worker -> the partition of its VM, which has no process yet when the worker starts.
        self._worked_for: dict[str, int] = {}
        self._spares = Spares(supervisor)
        self._front_ready: Future[None] = Future()
        self._booted = False
        #: Processes that took a dead one's place.
        self._revived: set[str] = set()
        self.zygotes: dict[str, Future[None]] = {}
        #: Component -> settled when it is ready, or cannot become it.
        self.ready: dict[str, Future[None]] = {c.name: Future() for spec in specs.values() for c in spec.components}
        #: Component -> the step at which its next process is to die, as that is told (:mod:`vmbus_emu.trap`).
        self.crash_at: dict[str, Message] = {}
        #: The cables of physical NICs, by name.
        self.plugs: Mapping[str, Plug] = {}
        #: Set while powering off: nothing starts any more.
        self.off = False
        #: Called with each process before it is told to start, and with whether it was a spare.
        self.on_start: Callable[[Process, bool], Any] = lambda process, spare: None

    def use(self, topology: Topology) -> None:
        """The machine is one of ``topology`` now; its specs have been changed. Of what runs nothing changes: who starts
        from now on is told of it."""
        self._topology = topology
        self._identities.use(topology)
        self._cables.topology = topology
        names = [component.name for spec in self._specs.values() for component in spec.components]
        self.ready = {name: self.ready.get(name) or Future() for name in names}
        for kept in (self._places, self.crash_at, self._worked_for):
            for name in kept.keys() - set(names):
                del kept[name]

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
        self._identities.start(process, self._config(hypervisor, process))
        if "front" in self._supervisor.running:
            self._front_ready.resolve(None)
        else:
            self.start_front()
        roots = {name: self._born(self._specs[name]) for name in _ROOT_VPS if name in self._specs}
        self._places.update({name: (hv.PARTITION_ROOT, _ROOT_VPS[name]) for name in roots})
        try:
            await within(self._loop, BOOT_DEADLINE_S, self.ready["hypervisor"])
            for name, birth in roots.items():
                born = await within(self._loop, BOOT_DEADLINE_S, birth)
                if born is not None:
                    await self._install("bind", self._specs[name], *born)
                await within(self._loop, BOOT_DEADLINE_S, self.ready[name])
            await self._all_ready()
            await within(self._loop, BOOT_DEADLINE_S, self._front_ready)
        except DeadlinePassed:
            late = [name for name, ready in self.ready.items() if not ready.done]
            raise BootFailed(f"{', '.join(late)} not ready after {BOOT_DEADLINE_S:.0f} s") from None
        self._booted = True

    async def _all_ready(self) -> None:
        """Who dies meanwhile and is replaced is awaited again."""
        awaited: list[Future[None]] = []
        while awaited != list(self.ready.values()):
            awaited = list(self.ready.values())
            for ready in awaited:
                await within(self._loop, BOOT_DEADLINE_S, ready)

    @property
    def booting(self) -> bool:
        """Not everything has been ready yet."""
        return not self._booted and not self.off

    def start_front(self) -> None:
        process = self._supervisor.spawn("front", "vmbus_emu.machine.front:Front")
        process.line.send({"t": "start", "config": {"socket": self._folder.socket("front.sock")}})

    # -- processes begin --------------------------------------------------------------------------------

    def _born(self, spec: ProcessSpec, spare: bool = False) -> Future[tuple[Process, socket.socket] | None]:
        """A process of its role, and our end of its descriptor socket, which goes to the hypervisor; ``None`` if its
        zygote died. Raises :class:`BootFailed` if that never came up."""
        return Task(self._loop, self._give_birth(spec, spare), watched=True)

    async def _give_birth(self, spec: ProcessSpec, spare: bool) -> tuple[Process, socket.socket] | None:
        zygote = placement.zygote_of(spec)
        if zygote not in self.zygotes:
            zygote = None
        near, far = lifeline.pair()
        if zygote is None:
            return self._supervisor.spawn(spec.name, spec.entry, far, spare), near
        await self.zygotes[zygote]
        mother = self._supervisor.processes[zygote]
        process = await self._supervisor.spawn_from(mother, spec.name, spec.entry, far, spare)
        if process is not None and self.off:  # all were ended while this one was being born
            self._supervisor.kill(process)
        if process is None or self.off:
            near.close()
            return None
        return process, near

    def _start_zygotes(self) -> None:
        for role, name in placement.zygotes(self._topology).items():
            self.start_zygote(role, name)

    def start_zygote(self, role: str, name: str) -> None:
        spec = next((spec for spec in self._specs.values() if placement.zygote_of(spec) == name), None)
        if spec is None:  # its VMs have lost their integration services meanwhile: it bears nobody any more
            self.zygotes.pop(name, None)
            return
        process = self._supervisor.spawn(name, placement.ZYGOTE_ENTRY)
        if name not in self.zygotes or self.zygotes[name].done:  # else somebody may be waiting for it already
            self.zygotes[name] = Future()
        process.line.send({"t": "start", "config": {"entries": placement.preloaded(self._topology, spec)}})

    async def _install(
        self, kind: str, spec: ProcessSpec, process: Process, descriptors: socket.socket, prepared: bool = False
    ) -> bool:
        """Give a process its identity, and then its configuration. The hypervisor looks at what we have sent it before
        it calls somebody a stranger, so once its word is on its way the process may speak."""
        bound = self._identities.announce(kind, process, *self._places[spec.name], descriptors)
        early = self._identities.announced and not bound.done
        if early:
            self._start(process, spec, prepared)
        if not await bound:
            return False
        if not early:
            self._start(process, spec, prepared)
        return True

    # -- and again ------------------------------------------------------------------------------------

    async def revive(self, spec: ProcessSpec) -> Process | None:
        """A new process in the place of one that is dead and reaped; ``None`` if it did not get that far."""
        for component in spec.components:
            self.renew(component.name)
        self._revived.add(spec.name)
        spare = self._spares.take(spec.name)
        born = spare or await self._born(spec)
        if born is None or self.off:
            return None
        if spec.role == "hypervisor":  # it needs no identity: it gives them
            born[1].close()
            self.on_start(born[0], False)
            self._identities.start(born[0], self._config(spec, born[0]))
            return born[0]
        for name in ("hypervisor", "parent") if spec.role == "management" else ("hypervisor",):
            if self.booting:  # in the order of the first start
                await self.ready[name]
        return born[0] if await self._install("bind", spec, *born, spare is not None) else None

    def hypervisor_is_back(self) -> None:
        """It listens again: whoever has a virtual processor is told where."""
        self._identities.tell({"t": "hypervisor", "socket": self._hypervisor_socket()})

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
        self._spares.keep(spec.name, born)
        self._send_media(born[0], spec)
        born[0].line.send({"t": "prepare", "config": self._config(spec, born[0])})

    def exited(self, process: Process) -> None:
        """A process was reaped: nobody waits for it any more."""
        self._identities.exited(process)
        ended = self._ends.pop(process.name, None)
        if ended is not None:
            ended.resolve(None)
        self._loop.call_later(SWEEP_AFTER_S, self._sweep, process)
        self._spares.exited(process)

    def ended(self, name: str) -> Future[None]:
        """Settled when the process of that name, which runs, has ended."""
        return self._ends.setdefault(name, Future())

    def _sweep(self, process: Process) -> None:
        """Remove the socket files of a process that had no time for that."""
        spec = self._specs.get(process.name.removesuffix(SPARE))
        if spec is None:
            return
        begins = [placement.channel_names(vsp, process.incarnation) for vsp in placement.serves(spec)]
        if spec.role == "hypervisor":
            begins.append(f"hv-{process.incarnation}.")
        with contextlib.suppress(FileNotFoundError):    # the whole folder is gone, if the machine is down by now
            for name in os.listdir(self._folder.sockets):
                if name.startswith(tuple(begins)):
                    os.unlink(self._folder.socket(name))

    def renew(self, name: str) -> None:
        """Component ``name`` is about to start again; who waits already for that goes on waiting."""
        if self.ready[name].done:
            self.ready[name] = Future()

    def place(self, name: str) -> int:
        """The partition that a component's process is, or was last, in; 0: none yet."""
        return self._places.get(name, (0, 0))[0]

    def order(self, name: str) -> Message:
        """What asks management for a new partition in the place of the component's old one, if it had one."""
        self.renew(name)
        return {"t": "start_partition", "name": name, "kind": _kind(self._specs[name]), "old": self.place(name)}

    def _running(self) -> list[tuple[int, str, str]]:
        """What a new incarnation of the parent partition's processes finds: partition, component, kind."""
        alive = self._supervisor.running
        return [
            (partition, name, _kind(self._specs[name]))
            for name, (partition, _) in self._places.items()
            if partition != hv.PARTITION_ROOT and (name in alive or name in placement.VSPS)
        ]

    def _start(self, process: Process, spec: ProcessSpec, prepared: bool) -> None:
        self.on_start(process, prepared)
        if prepared:
            process.line.send({"t": "needed"})
        else:
            self._send_media(process, spec)
        if spec.name in self.crash_at:
            process.line.send(self.crash_at.pop(spec.name))
        process.line.send({"t": "start", "config": self._config(spec, process)}, self._identities.io_memory(spec.name))
        self._cables.started(process)

    def _send_media(self, process: Process, spec: ProcessSpec) -> None:
        serves = any(component.role == "storvsp" for component in spec.components)
        for medium in self._media.values():
            if serves or spec.name == placement.worker_of(medium.name.partition(".")[0]):
                fds = [medium.fd] if medium.fd >= 0 else []
                process.line.send({"t": "medium", "name": medium.name, "info": medium.describe()}, fds)
        if any(component.role == "netvsp" for component in spec.components):
            for name, plug in self.plugs.items():
                process.line.send({"t": "wire", "name": name, "far": plug.far}, [plug.fd])

    def _config(self, spec: ProcessSpec, process: Process) -> Message:
        # Who starts while the hypervisor comes back is told where it listens when it does, as all the others are.
        listens = spec.role == "hypervisor" or self.ready["hypervisor"].done
        path = self._hypervisor_socket() if listens else ""
        config = placement.configuration(
            self._topology, spec, process.incarnation, path, str(self._folder.sockets)
        )
        again = spec.name in self._revived
        config["running"] = self._running() if again else []
        if "worker" in config:
            config["worker"]["partition"] = self._worked_for[spec.name]
            config["worker"]["index"] = self._places[spec.name][1]
        if "management" in config["components"]:
            parent = self._specs.get("parent")
            config["known"] = [number for number, _ in self._places.values() if number != hv.PARTITION_ROOT]
            config["parent_returns"] = parent is not None and is_replaced(self._topology, parent)
            if again:
                config["partitions"] = []  # what is not there is asked for, one by one
        return config

    def _hypervisor_socket(self) -> str:
        incarnation = self._supervisor.processes["hypervisor"].incarnation
        return self._folder.socket(f"hv-{incarnation}.sock")

    def power_on_partition(self, message: Message) -> None:
        """The hypervisor wants a process for a partition; one that came back may ask again for what is under way."""
        name, place = message["name"], (message["partition"], message["vp"])
        spec = self._specs.get(name)
        runs = name in self._supervisor.running
        if place in self._bearing or (runs and self._places.get(name) == place):
            return
        if spec is None or runs or self.off:
            self._cannot_power_on(*place)
            return
        Task(self._loop, self._bear(spec, *place))

    def _cannot_power_on(self, partition: int, vp: int) -> None:
        hypervisor = self._supervisor.processes["hypervisor"]
        hypervisor.line.send({"t": "powered", "partition": partition, "vp": vp, "pid": None})

    async def _bear(self, spec: ProcessSpec, partition: int, vp: int) -> None:
        self._bearing.add((partition, vp))
        try:
            await self._start_worker(placement.worker_of(spec.name), partition)
            born = await self._born(spec)
        except BootFailed as error:
            self.cannot_boot([spec.name], str(error))  # with more of a reason than the hypervisor will hear
            born = None
        self._bearing.discard((partition, vp))
        if born is None:
            self._cannot_power_on(partition, vp)
            return
        self._places[spec.name] = partition, vp
        parent = self._supervisor.running.get("parent")
        if parent is not None and "parent" in self._revived:  # the one that attached it may be dead
            parent.line.send({"t": "partition", "partition": partition, "name": spec.name, "kind": _kind(spec)})
        await self._install("powered", spec, *born)

    async def _start_worker(self, name: str, partition: int) -> None:
        """Start the worker of the VM that is about to start in ``partition``, if it has one, and wait until it is
        ready. Raises :class:`BootFailed`."""
        spec = self._specs.get(name)
        if spec is None:
            return
        if name in self._supervisor.running:  # the last one's, which is on its way out
            await self.ended(name)
        self.renew(name)
        self._worked_for[name] = partition
        taken = {vp for place, vp in self._places.values() if place == hv.PARTITION_ROOT}
        free = next(vp for vp in itertools.count(placement.FIRST_WORKER_VP) if vp not in taken)
        self._places.setdefault(name, (hv.PARTITION_ROOT, free))
        born = await self._born(spec)
        if born is None:
            raise BootFailed(f"{name} could not be started")
        if not await self._install("bind", spec, *born) and not self.ready[name].done:
            raise BootFailed(f"{name} has no place in the hypervisor")
        try:  # if it is dead by now, this says of what
            await within(self._loop, BOOT_DEADLINE_S, self.ready[name])
        except DeadlinePassed:
            raise BootFailed(f"{name} not ready after {BOOT_DEADLINE_S:.0f} s") from None

    # -- what processes say ---------------------------------------------------------------------------

    def bound(self, pid: int) -> None:
        """The hypervisor knows process ``pid`` now."""
        self._identities.bound(pid)

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

    def close(self) -> None:
        """Every process has ended, and this object starts none any more."""
        self._identities.close()
