"""After a death: what the policy says, carried out.

The machine tells of every process that was reaped. So the old one is fully gone before its replacement begins, and
what it had may be handed on (design: rule 5). A replacement that dies in turn, at whatever step, is simply the next
death.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vmbus_emu import placement
from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop
from vmbus_emu.machine.events import Events
from vmbus_emu.machine.policy import FIRST_DELAY_S, MOST_TAKEOVERS, Backoff, is_replaced, needed_by, policy_of
from vmbus_emu.machine.power import SPARE_AFTER_S, BootFailed, Power
from vmbus_emu.machine.supervisor import SPARE, Process, Supervisor
from vmbus_emu.placement import ProcessSpec
from vmbus_emu.task import Task
from vmbus_emu.topology.data import Topology

#: Whose death a guest sees as its devices' absence, and which of them.
_SERVES = ("parent", *placement.VSPS)


class Recovery:
    """``boot`` powers on what has ended altogether, ``power`` is the first one; ``say`` writes to the machine's log."""

    def __init__(
        self, loop: Loop, topology: Topology, supervisor: Supervisor, specs: Mapping[str, ProcessSpec],
        events: Events, power: Power, boot: Callable[[], Power], say: Callable[[str], Any],
    ) -> None:
        self._loop = loop
        self._topology = topology
        self._supervisor = supervisor
        self._specs = specs
        self._events = events
        self.power = power
        self._boot = boot
        self._say = say
        self._backoff = Backoff()
        self._spare_backoff = Backoff()
        #: Components that are about to have a new process.
        self.restarting: set[str] = set()
        self._started: dict[str, Process] = {}
        self.rebooting = False
        self._given_up: set[str] = set()
        #: What management was asked to start, and has not.
        self._asked: set[str] = set()
        #: What is to start when management is there again.
        self._held: list[ProcessSpec] = []

    def booted(self) -> None:
        """Everything is up: now there is time for spares."""
        self.rebooting = False
        self._given_up.clear()
        self._backoff.good("boot")
        for spec in self._specs.values():
            if policy_of(self._topology, spec) == "standby":
                self._spare(spec)

    def good(self, component: str) -> None:
        """A component's process did what it is for."""
        for spec in self._specs.values():
            if any(one.name == component for one in spec.components):
                self._backoff.good(spec.name)
                self._spare_backoff.good(spec.name)

    def ready(self, component: str) -> None:
        """A component said that it is ready."""
        process = self._started.get(component)
        if process is not None and process.running:
            del self._started[component]
            self.restarting.discard(component)
            if component == "hypervisor":
                self.power.hypervisor_is_back()
            self._events.emit("ready", component=component, pid=process.pid, incarnation=process.incarnation)
            self._start_held()
            if component not in _SERVES:
                self._backoff.good(component)
            if policy_of(self._topology, self._specs[component]) == "standby":
                self._loop.call_later(SPARE_AFTER_S, self._spare, self._specs[component])

    # -- deaths ---------------------------------------------------------------------------------------

    def spare_died(self, process: Process) -> None:
        """The replacement in waiting died; who has its place is not touched by that."""
        if self.rebooting:
            self.process_ended()
            return
        spec = self._specs[process.name.removesuffix(SPARE)]
        self._loop.call_later(self._spare_backoff.died(spec.name) + SPARE_AFTER_S, self._spare, spec)

    def _spare(self, spec: ProcessSpec) -> None:
        Task(self._loop, self.power.keep_spare(spec))

    def died(self, process: Process) -> None:
        """Follow the policy of the process that was reaped."""
        spec = self._specs[process.name]
        policy = policy_of(self._topology, spec)
        self._started.pop(process.name, None)
        self._asked.discard(process.name)
        self.restarting.discard(process.name)
        if process.name == "management":
            self._hold_partitions()
        if self.rebooting and self.power.off:
            self.process_ended()
        elif policy == "reboot":
            self.reboot(f"{process.name} was {process.ending}")
        elif policy == "recover" and self._backoff.failures(spec.name) >= MOST_TAKEOVERS:
            self.reboot(f"{MOST_TAKEOVERS} hypervisors in a row could not take over, the last was {process.ending}")
        elif policy in ("restart", "standby", "recover") and self.can_be_replaced(spec):
            self.restarting.add(spec.name)
            if self.power.booting:  # which waits for it
                for component in spec.components:
                    self.power.renew(component.name)
            delay = self._backoff.died(spec.name)
            if delay:
                self._say(f"{spec.name}: next incarnation in {delay * 1000:.0f} ms")
                self._loop.call_later(delay, self._restart, self.power, spec)
            else:
                self._restart(self.power, spec)
        elif policy == "halt" and spec.role == "hypervisor":
            self._halt(f"{process.name} was {process.ending}")
        else:
            self._give_up(spec)
            self._start_held()

    def replaces(self, process: Process) -> bool:
        """Whether a process that was reaped is to have a successor, while everything else goes on."""
        spec = self._specs[process.name]
        tired = spec.role == "hypervisor" and self._backoff.failures(spec.name) >= MOST_TAKEOVERS
        return is_replaced(self._topology, spec) and self.can_be_replaced(spec) and not tired

    def can_be_replaced(self, spec: ProcessSpec) -> bool:
        """Whether those it needs are there, or will be again."""
        return needed_by(spec.role) <= self._supervisor.running.keys() | self.restarting

    def _restart(self, power: Power, spec: ProcessSpec) -> None:
        """``power``: what it was decided for. By now all may have been powered off, and on again."""
        running = self._supervisor.running
        if power is not self.power or power.off or spec.name not in self.restarting - self._asked - running.keys():
            return
        if not self.can_be_replaced(spec):
            self.restarting.discard(spec.name)
            power.cannot_boot([spec.name], f"{spec.name} cannot be started without hypervisor and management")
            self._give_up(spec)
        elif not self._is_ordered(spec):
            Task(self._loop, self._revive(spec))
        elif "management" in running.keys() - self.restarting:
            self._asked.add(spec.name)
            running["management"].line.send(power.order(spec.name))
        elif spec not in self._held:
            self._held.append(spec)

    def _is_ordered(self, spec: ProcessSpec) -> bool:
        """Whether it is management's to start: a VM, or who never had the partition it is to have of its own."""
        return spec.role == "child" or (spec.name in placement.VSPS and not self.power.place(spec.name))

    def _start_held(self) -> None:
        """What was held may have been started after all."""
        held, self._held = self._held, []
        for spec in held:
            if self._is_ordered(spec):
                self._restart(self.power, spec)

    def _hold_partitions(self) -> None:
        """Management died: what it was asked for and had not done, its next incarnation is asked for."""
        if self.power.booting:  # of all that is not there yet
            self._asked = {
                name for name, spec in self._specs.items()
                if not self.power.place(name) and name != "hypervisor" and spec.role != "worker"
            }  # fmt: skip
            self.restarting |= self._asked
        self._held += [spec for name, spec in self._specs.items() if name in self._asked and spec not in self._held]
        self._asked.clear()

    def not_started(self, name: str) -> None:
        """Management could not start what it was asked for."""
        spec = self._specs.get(name)
        if spec is None or name not in self._asked or self.power.booting:
            return
        self._asked.remove(name)
        if is_replaced(self._topology, spec):
            self._loop.call_later(max(self._backoff.died(name), FIRST_DELAY_S), self._restart, self.power, spec)

    async def _revive(self, spec: ProcessSpec) -> None:
        try:
            process = await self.power.revive(spec)
        except BootFailed as error:
            self._say(str(error))
            process = None
        # It died before it had an identity, which is told apart; or its zygote did, and there is no process yet.
        if process is None and spec.name not in self._supervisor.running and spec.name in self.restarting:
            self._loop.call_later(self._backoff.died(spec.name), self._restart, self.power, spec)

    def starting(self, process: Process, spare: bool) -> None:
        """A process is about to be told to start; ``spare``: it is one that waited for that."""
        self._asked.discard(process.name)
        if process.name in self.restarting:
            self._started[process.name] = process
            self._events.emit(
                "starting", component=process.name, pid=process.pid, incarnation=process.incarnation, spare=spare
            )

    def ordered(self, name: str) -> None:
        """Somebody wants a dead VM to run again."""
        self.power.renew(name)
        self.restarting.add(name)
        self._restart(self.power, self._specs[name])

    def forget(self, name: str) -> None:
        """Nobody wants that VM to run any more."""
        self.restarting.discard(name)
        self._asked.discard(name)
        self._started.pop(name, None)
        self._held = [spec for spec in self._held if spec.name != name]

    # -- giving up ------------------------------------------------------------------------------------

    def _give_up(self, spec: ProcessSpec) -> None:
        """Nothing brings it back: whoever waits for its devices is told."""
        if spec.role == "hypervisor":
            for name in self._specs.keys() & self._supervisor.running.keys():
                self._supervisor.processes[name].line.send({"t": "hypervisor_gone"})
        names = [one.name for one in spec.components if one.name in placement.VSPS]
        if spec.role == "parent" and "hypervisor" in self._supervisor.running:
            names = list(placement.VSPS)  # it has told the guests that all channels are gone; none will be offered
        self._given_up.update(names)
        for process in self._supervisor.running.values():
            self.tell_guest(process)

    def tell_guest(self, process: Process) -> None:
        """What a guest must not wait for."""
        spec = self._specs.get(process.name)
        if self._given_up and spec is not None and spec.role == "child":
            process.line.send({"t": "given_up", "names": sorted(self._given_up)})

    # -- all at once ----------------------------------------------------------------------------------

    def reboot(self, reason: str) -> None:
        """End every process but the front door, and power on again when all are gone."""
        if self.rebooting or self.power.off:
            return
        self._say(f"rebooting: {reason}")
        self._events.emit("rebooting", reason=reason)
        self.rebooting = True
        self._given_up.clear()  # before the first guest of the next boot is told
        self._end_all()
        self.process_ended()

    def boot_failed(self, reason: str) -> None:
        """A reboot did not come up; it is tried again, and for ever: whoever watches a machine can take it down."""
        self._say(f"the reboot failed: {reason}")
        self._end_all()
        self._loop.call_later(max(self._backoff.died("boot"), FIRST_DELAY_S), self._boot_again, reason)

    def _boot_again(self, reason: str) -> None:
        self.rebooting = False
        self.power.off = False
        self.reboot(reason)

    def _end_all(self) -> None:
        self.power.off = True
        self.restarting.clear()
        self._started.clear()
        self._asked.clear()
        self._held.clear()
        for process in self._supervisor.running.values():
            if process.name != "front":
                self._supervisor.kill(process)

    def process_ended(self) -> None:
        """Of a machine that reboots: one process less to wait for."""
        if self.power.off and not set(self._supervisor.running) - {"front"}:
            self.power.close()
            self._backoff.good("hypervisor")
            self.power = self._boot()

    def _halt(self, reason: str) -> None:
        self._say(f"halted: {reason}")
        self._events.emit("halted", reason=reason)
        self._end_all()


def describe(process: Process, carried: list[str]) -> Message:
    """A death, for an event."""
    return {
        "component": process.name, "carried": carried, "pid": process.pid, "incarnation": process.incarnation,
        "signal": process.signal, "exit_code": process.exit_code,
    }
