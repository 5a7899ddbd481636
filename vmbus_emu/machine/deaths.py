"""What follows when a process of the machine has ended, or a VM that is a thread of one."""

from __future__ import annotations

from vmbus_emu import placement
from vmbus_emu.lifeline import Message
from vmbus_emu.machine.crashes import HOST_ROLES, last_words
from vmbus_emu.machine.parts import Parts
from vmbus_emu.machine.power import ROOT_PROCESSES, BootFailed, Power
from vmbus_emu.machine.recovery import describe
from vmbus_emu.machine.supervisor import SPARE, Process
from vmbus_emu.machine.workers import partner

#: Before the front door, or a zygote that never was ready, is started anew: it must not keep the machine busy forking.
RESTART_DELAY_S = 0.05


class Deaths:
    """Everybody who may wait for an end hears of it; policies follow."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def exited(self, process: Process) -> None:
        """A process was reaped."""
        parts = self._parts
        parts.log(f"{process.name} (pid {process.pid}, incarnation {process.incarnation}) {process.ending}")
        parts.consoles.process_died(process)
        parts.figures.died(process.name)
        parts.bindings.died(process)
        parts.integration.exited(process)
        ordered = self._ordered(process)
        restarts = parts.services.exited(process)
        parts.power.exited(process)
        if process.name == "front":
            parts.conversations.front_gone()
        if process.name in parts.power.zygotes:
            parts.supervisor.stillborn(process.name)
        if parts.shutdown is not None:
            parts.shutdown.exited(process)
            return
        if process.name == "front":  # the machine's own part: without it nobody could ask what happened
            parts.front_restarts += 1
            parts.loop.call_later(RESTART_DELAY_S, self._restart_front)
            return
        said = last_words(parts.supervisor.log(process.name.removesuffix(SPARE)).tail).reason
        reason = f"{process.name} (pid {process.pid}) was {process.ending}" + (f": {said}" if said else "")
        if not ordered:
            self._tell_users(process, said)
        if process.name.endswith(SPARE):
            parts.recovery.spare_died(process)
        elif process.name in parts.roster.specs:
            self._component_process_died(process, reason, ordered, restarts)
        elif process.name in parts.roles:
            parts.roles.exited(process)
            if parts.recovery.rebooting and parts.power.off:
                parts.recovery.process_ended()
        else:
            self._zygote_died(process, reason)

    def _ordered(self, process: Process) -> bool:
        """Whether a process that was reaped had been told to end: nobody's death, and no policy follows. Each who may
        have told it hears of its end here."""
        parts, leaving = self._parts, self._parts.fates.leaving
        asked = [
            parts.services.expects(process), parts.drain.shut_down(process), parts.roles.leaves(process),
            parts.comings.ends(process), parts.integration.stops.exited(process), process.name in leaving,
        ]  # fmt: skip
        leaving.discard(process.name)
        return any(asked)

    def _tell_users(self, process: Process, said: str) -> None:
        """With the name of the file that has what a process of the host still said, unless the machine itself ends
        all."""
        parts = self._parts
        carried = sorted(parts.roster.names.get(process.name, (process.name,) if process.name in parts.roles else ()))
        spec = parts.roster.specs.get(process.name)
        ends_all = parts.recovery.rebooting or parts.power.off
        crash: Message = {}
        if spec is not None and spec.role in HOST_ROLES and not ends_all:
            crash = {"crash": parts.crashes.capture(process, carried)}
        why = said or parts.fates.taken_along.get(process.name, "")
        parts.events.emit("died", **describe(process, carried), reason=why, **crash)

    # -- who has no component ---------------------------------------------------------------------------

    def _restart_front(self) -> None:
        if self._parts.shutdown is None:
            self._parts.power.start_front()

    def _zygote_died(self, process: Process, reason: str) -> None:
        power, recovery, specs = self._parts.power, self._parts.recovery, self._parts.roster.specs
        role = next(role for role, name in placement.ZYGOTES.items() if name == process.name)
        born = power.zygotes.get(process.name)
        if recovery.rebooting and power.off:
            recovery.process_ended()
        elif born is not None and born.done:
            power.start_zygote(role, process.name)
        elif born is not None and self._parts.standing.word == "starting":  # it cannot load its code; no other could
            born.reject(BootFailed(reason))
            power.cannot_boot([s.name for s in specs.values() if placement.zygote_of(s) == process.name], reason)
        elif born is not None:  # the code is good: somebody killed this one early
            self._parts.loop.call_later(RESTART_DELAY_S, self._restart_zygote, power, role, process.name)

    @staticmethod
    def _restart_zygote(power: Power, role: str, name: str) -> None:
        if not power.off:
            power.start_zygote(role, name)

    # -- who has --------------------------------------------------------------------------------------

    def _component_process_died(self, process: Process, reason: str, ordered: bool, restarts: bool) -> None:
        parts, power, names = self._parts, self._parts.power, self._parts.roster.names
        if "hypervisor" in parts.supervisor.running:
            parts.supervisor.running["hypervisor"].line.send({"t": "died", "pid": process.pid})
        if not restarts:
            self._end_partner(process, reason, ordered)
        if not power.booting:
            power.cannot_boot(names[process.name], reason)
            counts = not parts.drain.exited(process) and not ordered
            if counts or parts.recovery.rebooting:  # a reboot waits for everybody's end
                parts.recovery.died(process)
            if process.name == "management":
                parts.loop.call_soon(parts.comings.management_is_back)
            parts.standing.settle()
        elif parts.recovery.replaces(process):
            parts.recovery.died(process)
        else:  # of what others need, nobody would come up who is not there yet
            alone = parts.roster.specs[process.name].role in ("child", "worker")
            power.cannot_boot(names[process.name] if alone else power.ready, reason)
        self._tell_root(process)

    def _end_partner(self, process: Process, reason: str, ordered: bool) -> None:
        """A VM and its worker end together."""
        parts, fates = self._parts, self._parts.fates
        other = parts.supervisor.running.get(partner(parts.roster.specs, process.name) or "")
        if other is not None:
            fates.taken_along[other.name] = reason
            if ordered:
                fates.leaving.add(other.name)
            parts.log(f"{other.name} ends with {reason}")
            parts.supervisor.kill(other)

    def _tell_root(self, process: Process) -> None:
        """Those who are not in the way of its replacement: whom a message wakes has the processor before us."""
        running = self._parts.supervisor.running
        for role in ROOT_PROCESSES:
            if role in running:
                message: Message = {"t": "peer_died", "name": process.name, "incarnation": process.incarnation}
                running[role].line.send({**message, "partition": self._parts.power.place(process.name)})

    def component_died(self, component: str, why: str) -> None:
        """A guest of the monolith ended by a bug of its own; its host process lives on."""
        parts = self._parts
        parts.log(f"{component}: guest code failed: {why}")
        parts.fates.fallen[component] = why
        parts.standing.word = "degraded"
        self.not_started(component, why)
        host = parts.supervisor.processes[parts.roster.hosts[component]]
        death = {**describe(host, [component]), "component": component, "host": host.name, "reason": why}
        parts.events.emit("died", **death)
        parts.drain.fell(component)
        parts.integration.fell(component)
        parts.consoles.vm_died(component, f"{component} died: {why}")

    def not_started(self, component: str, why: str) -> None:
        """It will not be ready."""
        self._parts.recovery.not_started(component)
        self._parts.power.cannot_boot([component], f"{component} did not start: {why}")
