"""VMs that come and go while the machine runs: ``vm add``, ``vm stop``, ``vm remove``.

The machine owns what belongs to the box (media, the console, the process); the partition is management's, by
hypercalls. So a VM comes in the order media, hosts' devices, partition, and goes in the reverse one. A management that
dies meanwhile is replaced, clears up what the dead one left half done, and is asked again. What cannot be finished is
undone: there is no half of a VM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vmbus_emu import placement
from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop, Timer
from vmbus_emu.machine.drain import PATIENCE_S, Drain
from vmbus_emu.machine.events import Events
from vmbus_emu.machine.intake import Refused
from vmbus_emu.machine.power import BootFailed
from vmbus_emu.machine.recovery import Recovery
from vmbus_emu.machine.roster import Roster
from vmbus_emu.machine.supervisor import SPARE, Process, Supervisor
from vmbus_emu.task import Future
from vmbus_emu.topology.data import WORKER_SUFFIX, VmSpec

#: Seconds after which a VM that is to end counts as one that does not.
END_S = 10.0


@dataclass(slots=True)
class _Ending:
    """A VM that is to end. ``why``: what its client is told in the end; ``None``: that it is done."""

    client: bytes
    number: int
    verb: str                       #: ``stop`` or ``remove``
    why: str | None = None
    partition_gone: bool = False
    timer: Timer | None = None


class Comings:
    """Answers requests through ``reply(client, message)``; ``changed()`` is called when a VM has come or gone."""

    def __init__(
        self, loop: Loop, roster: Roster, supervisor: Supervisor, recovery: Recovery, drain: Drain, events: Events,
        reply: Callable[[bytes, Message], Any], changed: Callable[[], Any],
    ) -> None:
        self._loop = loop
        self._roster = roster
        self._supervisor = supervisor
        self._recovery = recovery
        self._drain = drain
        self._events = events
        self._reply = reply
        self._changed = changed
        self._adding: dict[str, tuple[bytes, int]] = {}
        self._ending: dict[str, _Ending] = {}

    def carry_out(self, client: bytes, number: int, request: Message) -> None:
        """``what`` is add (``spec``), stop or remove (``vm``). Raises :class:`Refused`."""
        self._must_be_settled()
        match request.get("what"):
            case "add":
                self._add(client, number, request.get("spec"))
            case "stop" | "remove" as verb:
                self._end(client, number, request.get("vm", ""), verb)
            case _:
                raise Refused("vm: what is to be done with it?", "add, stop or remove")

    def _must_be_settled(self) -> None:
        if self._recovery.rebooting or self._recovery.power.booting:
            raise Refused("the machine is booting", "try again in a moment")
        if self._drain.active:
            raise Refused("the machine is being drained", "try again when it has booted")
        if self._recovery.power.off:
            raise Refused("the machine has halted, as its policy says", "vmbus-emu down, then up starts it again")

    # -- add ------------------------------------------------------------------------------------------

    def _add(self, client: bytes, number: int, value: object) -> None:
        vm = self._roster.admit(value)
        spec = self._roster.specs[self._roster.hosts[vm.name]]
        if not self._recovery.can_be_replaced(spec):
            self._roster.strike(vm.name)
            raise Refused(
                f"{vm.name} cannot be started without hypervisor and management", "vmbus-emu ps shows which is dead"
            )
        self._announce(vm)
        self._events.emit("added", component=vm.name)
        self._adding[vm.name] = client, number
        if spec.name == vm.name:
            self._recovery.ordered(vm.name)
        self._await(vm.name)

    def _announce(self, vm: VmSpec) -> None:
        """Tell everybody who serves VMs, spares included, and the other VMs."""
        for process in self._supervisor.running.values():
            spec = self._roster.specs.get(process.name.removesuffix(SPARE))
            if spec is None or spec.role == "child":
                continue
            told = self._roster.arrival(vm, spec)
            for disk in told.get("disks", ()):
                medium = self._roster.media[disk["medium"]]
                fds = [medium.fd] if medium.fd >= 0 else []
                process.line.send({"t": "medium", "name": medium.name, "info": medium.describe()}, fds)
            if len(told) > 2:
                process.line.send(told)
        self._tell_addresses()

    def _tell_addresses(self) -> None:
        hosts = self._roster.addresses()
        for process in {self._roster.vm_hosts[vm] for vm in self._roster.vms} & self._supervisor.running.keys():
            self._supervisor.processes[process].line.send({"t": "hosts", "hosts": hosts})
        self._changed()

    def _await(self, vm: str) -> None:
        # Not within the death or the message that settles it: its policy is looked at first.
        self._recovery.power.ready[vm].then(lambda future: self._loop.call_soon(self._settled, vm, future))

    def _settled(self, vm: str, future: Future[None]) -> None:
        if vm not in self._adding or future is not self._recovery.power.ready[vm]:
            return
        client, number = self._adding.pop(vm)
        try:
            future.result()
        except BootFailed as error:
            self._recovery.forget(vm)
            self._ask_for_end(vm, _Ending(client, number, "remove", str(error)))
            return
        process = self._supervisor.processes[self._roster.hosts[vm]]
        address = self._roster.vms[vm].address
        told = {"pid": process.pid, "incarnation": process.incarnation, "address": address}
        self._reply(client, {"id": number, "vm": vm, **told})

    # -- stop and remove ------------------------------------------------------------------------------

    def _end(self, client: bytes, number: int, vm: str, verb: str) -> None:
        if vm not in self._roster.vms:
            raise Refused(f"there is no VM {vm!r}", f"the VMs are {', '.join(self._roster.vms) or 'none'}")
        host = self._roster.hosts[vm]
        if vm in self._ending or vm in self._adding or vm in self._recovery.restarting:
            raise Refused(f"{vm} is being started or ended", "try again in a moment")
        if verb == "remove" and len(self._roster.vms) == 1:
            raise Refused(f"{vm} is the machine's only VM", "vmbus-emu vm add another one first, or vmbus-emu down")
        if verb == "stop" and host != vm:
            raise Refused(
                f"{vm} is a thread of the monolith, and nothing starts it again",
                f"vmbus-emu vm remove {vm} ends it for good, vmbus-emu drain boots all again",
            )
        if verb == "stop" and vm not in self._supervisor.running:
            raise Refused(f"{vm} is not running", f"vmbus-emu start {vm} starts it")
        if not self._recovery.can_be_replaced(self._roster.specs[host]):
            raise Refused(
                f"{vm} cannot be ended without hypervisor and management", "vmbus-emu ps shows which is dead"
            )
        self._ask_for_end(vm, _Ending(client, number, verb))

    def _ask_for_end(self, vm: str, ending: _Ending) -> None:
        self._ending[vm] = ending
        ending.timer = self._loop.call_later(END_S, self._too_late, vm)
        self._ask(vm)

    def _ask(self, vm: str) -> None:
        """Ask whoever has the partition to end it; a management that is to come is asked when it is there."""
        host = self._roster.hosts[vm]
        asked = self._supervisor.running.get("management" if host == vm else host)
        if asked is not None and asked.name not in self._recovery.restarting:
            old = self._recovery.power.place(vm)
            asked.line.send({"t": "end_partition", "name": vm, "old": old, "patience_s": PATIENCE_S})
        elif not self._recovery.can_be_replaced(self._roster.specs[host]):
            self._partition_gone(vm)  # nobody is left who could have it

    def management_is_back(self) -> None:
        """Its next incarnation is there, or there will be none."""
        for vm, ending in list(self._ending.items()):
            if not ending.partition_gone:
                self._ask(vm)

    def partition_ended(self, vm: str) -> None:
        """Management says that it has deleted a VM's partition. Of no effect if nobody asked for that."""
        if vm in self._ending:
            self._partition_gone(vm)

    def _partition_gone(self, vm: str) -> None:
        self._ending[vm].partition_gone = True
        process = self._supervisor.running.get(vm)
        if process is not None:  # the hypervisor asked for that already, unless it is dead
            self._supervisor.kill(process)
        else:
            self._over(vm)

    def ends(self, process: Process) -> bool:
        """Whether a process that was reaped had been ordered to end: it is no death, and has no successor."""
        if process.name.endswith(WORKER_SUFFIX):
            return process.name.removesuffix(WORKER_SUFFIX) in self._ending and not self._recovery.rebooting
        ending = self._ending.get(process.name)
        if self._recovery.rebooting:  # everybody ends, and boots again
            return False
        if ending is not None:
            self._drain.off.add(process.name)
            if ending.partition_gone:
                self._loop.call_soon(self._over, process.name)
        return ending is not None

    def _over(self, vm: str) -> None:
        worker = self._supervisor.running.get(placement.worker_of(vm))
        if worker is not None:
            self._supervisor.kill(worker)
            self._recovery.power.ended(worker.name).then(lambda future: self._loop.call_soon(self._over, vm))
            return
        ending = self._ending.pop(vm, None)
        if ending is None:
            return
        if ending.timer is not None:
            ending.timer.cancel()
        if ending.verb == "remove":
            self._strike(vm)
        self._events.emit("removed" if ending.verb == "remove" else "stopped", component=vm)
        self._changed()
        if ending.why is None:
            self._reply(ending.client, {"id": ending.number, "vm": vm})
        else:
            why = f"{vm} was not added: {ending.why}"
            hint = f"nothing is left of it; vmbus-emu logs {vm} may say more"
            self._reply(ending.client, {"id": ending.number, "error": why, "hint": hint})

    def _strike(self, vm: str) -> None:
        for process in self._supervisor.running.values():
            spec = self._roster.specs.get(process.name.removesuffix(SPARE))
            if spec is not None and spec.role not in ("child", "management"):
                process.line.send({"t": "vm_removed", "vm": vm})
        self._forget(vm)

    def _forget(self, vm: str) -> None:
        self._roster.strike(vm)
        self._recovery.forget(vm)
        self._drain.off.discard(vm)
        self._supervisor.forget(vm)
        self._tell_addresses()

    def _too_late(self, vm: str) -> None:
        ending = self._ending.pop(vm)
        process = self._supervisor.running.get(vm)
        if process is not None:
            self._ending[vm] = ending
            ending.timer = None
            ending.partition_gone = True
            self._supervisor.kill(process)
            return
        why = f"{vm} did not end within {END_S:.0f} s"
        hint = "it is a thread that never returns: vmbus-emu drain ends all, and boots them again"
        self._reply(ending.client, {"id": ending.number, "error": why, "hint": hint})

    # -- reboots --------------------------------------------------------------------------------------

    def all_ended(self) -> None:
        """Every process has ended: what was to go is gone, and boots no more."""
        for vm, ending in list(self._ending.items()):
            del self._ending[vm]
            if ending.timer is not None:
                ending.timer.cancel()
            if ending.verb == "remove":
                self._forget(vm)
                self._reply(ending.client, {"id": ending.number, "vm": vm})
            else:
                why = {"error": f"the machine rebooted meanwhile, and {vm} with it", "hint": f"stop {vm} again"}
                self._reply(ending.client, {"id": ending.number, **why})

    def boots_again(self) -> None:
        """A new power-on has begun: who was being added boots with all the others."""
        for vm in self._adding:
            self._await(vm)
