"""Installing and removing integration services: a VM restarts with the other set of drivers.

The VM is shut down in order, so that what it wrote is on its disks; then its place in the topology is another one (with
a worker, or without), and it is started as any dead VM is. Disks, addresses and data are the machine's and stay what
they are.
"""

from __future__ import annotations

import dataclasses

from vmbus_emu import placement
from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop
from vmbus_emu.machine.drain import Drain
from vmbus_emu.machine.intake import Refused
from vmbus_emu.machine.power import BootFailed
from vmbus_emu.machine.recovery import Recovery
from vmbus_emu.machine.requests import Reply
from vmbus_emu.machine.roster import Roster
from vmbus_emu.machine.supervisor import Process, Supervisor
from vmbus_emu.task import DeadlinePassed, Future, Task, within
from vmbus_emu.topology.data import MAX_IDE_DISKS, MAX_LEGACY_NICS, VmSpec

#: How long commands of the guest may run on, and how long all of its end may take before it is killed, in seconds.
PATIENCE_S = 1.0
GRACE_S = 10.0


class Services:
    def __init__(
        self, loop: Loop, roster: Roster, supervisor: Supervisor, recovery: Recovery, drain: Drain, reply: Reply
    ) -> None:
        self._loop = loop
        self._roster = roster
        self._supervisor = supervisor
        self._recovery = recovery
        self._drain = drain
        self._reply = reply
        #: Processes whose end is ours to wait for.
        self._ends: dict[str, Future[None]] = {}
        self._changing: set[str] = set()

    def begin(self, client: bytes, number: int, request: Message) -> None:
        """``vm``, ``install``: answers when the VM runs again. Raises :class:`Refused`."""
        vm, install = request.get("vm", ""), request.get("install", True)
        spec = self._roster.vms.get(vm)
        if spec is None:
            raise Refused(f"there is no VM {vm!r}", f"the VMs are {', '.join(self._roster.vms) or 'none'}")
        if self._drain.active or self._recovery.rebooting:
            raise Refused("the machine is being drained, or reboots", "try again when it has booted")
        if self._roster.topology.arch == "monolithic":
            raise Refused(
                f"{vm} is a thread of the monolith, and cannot restart alone",
                "take the machine down, and set integration_services in its topology",
            )
        if vm in self._changing:
            raise Refused(f"the services of {vm} are being changed already", "try again in a moment")
        if spec.integration_services is install:
            raise Refused(f"{vm} has {'' if install else 'no '}integration services already", "vmbus-emu ps shows it")
        if not install and (len(spec.disks) > MAX_IDE_DISKS or len(spec.nics) > MAX_LEGACY_NICS):
            raise Refused(
                f"{vm} has {len(spec.disks)} disks and {len(spec.nics)} NICs",
                f"without integration services it has at most {MAX_IDE_DISKS} and {MAX_LEGACY_NICS}",
            )
        if vm in self._recovery.restarting or not self._recovery.can_be_replaced(self._roster.specs[vm]):
            raise Refused(f"{vm} cannot be started now", "it needs hypervisor and management; vmbus-emu ps shows them")
        Task(self._loop, self._change(client, number, spec, install))

    def expects(self, process: Process) -> bool:
        """Whether the end of ``process`` is a step of ours, and nobody's death."""
        return process.name in self._ends

    def exited(self, process: Process) -> bool:
        """A process was reaped. Whether that was a step of ours."""
        ended = self._ends.pop(process.name, None)
        if ended is not None:
            ended.resolve(None)
        return ended is not None

    async def _change(self, client: bytes, number: int, vm: VmSpec, install: bool) -> None:
        self._changing.add(vm.name)
        try:
            await self._shut_down(vm.name)
            changed = dataclasses.replace(vm, integration_services=install)
            topology = self._roster.topology
            self._roster.become(dataclasses.replace(
                topology, vms=tuple(changed if one.name == vm.name else one for one in topology.vms)
            ))
            self._drain.off.discard(vm.name)
            self._recovery.ordered(vm.name)
            await self._recovery.power.ready[vm.name]
        except BootFailed as error:
            self._recovery.restarting.discard(vm.name)
            self._reply(client, {"id": number, "error": str(error), "hint": f"vmbus-emu logs {vm.name} has more"})
            return
        finally:
            self._changing.discard(vm.name)
        process = self._supervisor.processes[vm.name]
        started: Message = {"started": vm.name, "pid": process.pid, "incarnation": process.incarnation}
        self._reply(client, {"id": number, **started, "integration_services": install})

    async def _shut_down(self, vm: str) -> None:
        """End the VM in order, and its worker, if they run."""
        order = {"t": "shut_down", "patience_s": PATIENCE_S}
        for name in (vm, placement.worker_of(vm)):
            process = self._supervisor.running.get(name)
            if process is None:
                continue
            ended = self._ends[name] = Future()
            if name == vm:
                process.line.send(order)
                try:
                    await within(self._loop, GRACE_S, ended)
                    continue
                except DeadlinePassed:
                    pass
            self._supervisor.kill(process)
            await ended
