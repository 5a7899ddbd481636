"""Which process stands in for which virtual processor: what the machine tells the hypervisor, and only the machine may.

With each identity go the hypervisor's end of the process's descriptor socket, and the files behind its I/O memory. A
hypervisor that is to be recovered after its death (policy ``recover``) has a ledger, which is kept here too, with
everything its next incarnation must be handed again.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmbus_emu.iomemory import io_memory
from vmbus_emu.lifeline import Message
from vmbus_emu.machine.supervisor import Process, Supervisor
from vmbus_emu.protocol.hypercall import PAGE
from vmbus_emu.task import Future
from vmbus_emu.topology.data import Topology, VmSpec

#: Two partitions map a region of I/O memory. Could one of them cut its file short, the other would die of SIGBUS at
#: its next access: so the size is final, and nobody can add or take a seal.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(slots=True)
class Identity:
    """``descriptors``: the hypervisor's end, kept while it may have to be handed to another incarnation."""

    process: Process
    partition: int
    vp: int
    descriptors: socket.socket
    bound: Future[bool]


class Identities:
    """``recovers``: whether a dead hypervisor's next incarnation goes on where it ended."""

    def __init__(self, topology: Topology, supervisor: Supervisor, recovers: bool) -> None:
        self.recovers = recovers
        self._supervisor = supervisor
        self._vms: Mapping[str, VmSpec] = {}
        self._hypervisor: Process | None = None
        self._known: dict[int, Identity] = {}         # by pid
        #: By VM and by whom the region is for.
        self._memory: dict[tuple[str, str], int] = {}
        self._ledger = [os.memfd_create("ledger", os.MFD_CLOEXEC)] if recovers else []
        self.use(topology)

    def use(self, topology: Topology) -> None:
        """Whose memory there is from now on: emulated devices share some on either transport. That of a VM which is no
        more is given back."""
        ring = topology.transport == "ring"
        self._vms = {vm.name: vm for vm in topology.vms if ring or not vm.integration_services}
        names = {vm.name for vm in topology.vms}
        for key in [key for key in self._memory if key[0] not in names]:
            os.close(self._memory.pop(key))

    def start(self, hypervisor: Process, config: Message) -> None:
        """Start a hypervisor; a later incarnation is told who lives, and goes on."""
        later, self._hypervisor = self._hypervisor is not None, hypervisor
        hypervisor.line.send({"t": "start", "config": {**config, "recover": later}}, self._ledger)
        if later:
            for identity in self._known.values():
                self._send("bind", identity, again=True)
            hypervisor.line.send({"t": "complete"})

    def announce(
        self, kind: str, process: Process, partition: int, vp: int, descriptors: socket.socket
    ) -> Future[bool]:
        """Tell the hypervisor that ``process`` stands in for ``vp`` of ``partition``; settled with ``False`` if one of
        them died before. ``kind``: ``bind``, or ``powered`` for what it asked for. ``descriptors`` is ours from now on.
        """
        bound: Future[bool] = Future()
        listens = self._hypervisor is not None and self._hypervisor.running
        if not process.running or not (listens or self.recovers):
            if kind == "powered" and self._hypervisor is not None:  # who asked for it waits: it was on, and died
                self._send(kind, Identity(process, partition, vp, descriptors, bound))
                self._hypervisor.line.send({"t": "died", "pid": process.pid})
            bound.resolve(False)
            descriptors.close()
            return bound
        identity = self._known[process.pid] = Identity(process, partition, vp, descriptors, bound)
        if listens:  # otherwise it is told of this one, too, when it starts
            self._send(kind, identity)
        return bound

    @property
    def announced(self) -> bool:
        """Whether everything that was announced has been sent to a hypervisor that lives."""
        return self._hypervisor is not None and self._hypervisor.running and not self._hypervisor.line.backlog

    def _send(self, kind: str, identity: Identity, **more: bool) -> None:
        assert self._hypervisor is not None
        process = identity.process
        message: Message = {"t": kind, "partition": identity.partition, "vp": identity.vp, "pid": process.pid, **more}
        files = self.io_memory(process.name)
        if files:
            regions = io_memory(self._vms[process.name])
            message["memory"] = [{"gpa": region["gpa"], "pages": region["pages"]} for region in regions]
        self._hypervisor.line.send(message, [identity.descriptors.fileno(), *files])
        if not self.recovers:
            identity.descriptors.close()

    def bound(self, pid: int) -> None:
        """The hypervisor knows process ``pid`` now."""
        if pid in self._known:
            self._known[pid].bound.resolve(True)

    def exited(self, process: Process) -> None:
        """A process was reaped: nobody waits for it any more, and if it was the hypervisor, for no answer of it."""
        dead = self._known.pop(process.pid, None)
        unanswered = [dead] if dead is not None else []
        if dead is not None:
            dead.descriptors.close()
        elif process is self._hypervisor and not self.recovers:
            unanswered = list(self._known.values())
        for identity in unanswered:
            identity.bound.resolve(False)

    def tell(self, message: Message) -> None:
        """Send ``message`` to every process that has an identity."""
        for identity in self._known.values():
            identity.process.line.send(message)

    def io_memory(self, name: str) -> Sequence[int]:
        """The memory files behind the regions of a VM's I/O memory, the same ones over its restarts; none for any
        other process, and none on a transport that shares no memory."""
        if name not in self._vms:
            return ()
        files = []
        for region in io_memory(self._vms[name]):
            key = name, region["vsp"]
            if key not in self._memory:
                self._memory[key] = _memory_file(".".join(key), region["pages"] * PAGE)
            files.append(self._memory[key])
        return files

    def close(self) -> None:
        """All processes have ended: what was kept for them is not needed any more."""
        for fd in (*self._ledger, *self._memory.values()):
            os.close(fd)
        self._ledger = []
        self._memory.clear()


def _memory_file(name: str, size: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd
