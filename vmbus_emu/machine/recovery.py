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
from vmbus_emu.machine.policy import FIRST_DELAY_S, MOST_TAKEOVERS, Backoff, needed_by, policy_of
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
        #: VMs that are to start when management is there again.
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
        self.restarting.discard(process.name)
        if process.name == "management":
            self._hold_vms()
        if self.rebooting:
            self.process_ended()
        elif policy == "reboot":
            self.reboot(f"{process.name} was {process.ending}")
        elif policy == "recover" and self._backoff.failures(spec.name) >= MOST_TAKEOVERS:
            self.reboot(f"{MOST_TAKEOVERS} hypervisors in a row could not take over, the last was {process.ending}")
        elif policy in ("restart", "standby", "recover") and self.can_be_replaced(spec):
            self.restarting.add(spec.name)
            delay = self._backoff.died(spec.name)
            if delay:
                self._say(f"{spec.name}: next incarnation in {delay * 1000:.0f} ms")
                self._loop.call_later(delay, self._restart, spec)
            else:
                self._restart(spec)
        elif policy == "halt" and spec.role == "hypervisor":
            self._halt(f"{process.name} was {process.ending}")
        else:
            self._give_up(spec)

    def can_be_replaced(self, spec: ProcessSpec) -> bool:
        """Whether those it needs are there, or will be again."""
        return needed_by(spec.role) <= self._supervisor.running.keys() | self.restarting

    def _restart(self, spec: ProcessSpec) -> None:
        if self.rebooting or self.power.off:
            return
        if not self.can_be_replaced(spec):
            self.restarting.discard(spec.name)
            self._give_up(spec)
        elif spec.role != "child":
            Task(self._loop, self._revive(spec))
        elif "management" in self._supervisor.running:
            self._start_vm(spec.name)
        else:
            self._held.append(spec)

    def _start_held(self) -> None:
        held, self._held = self._held, []
        for spec in held:
            if spec.name in self.restarting:
                self._restart(spec)

    def _hold_vms(self) -> None:
        """Management died: what it was asked for and had not done, its next incarnation is asked for."""
        for name in sorted(self.restarting - self._started.keys()):
            if self._specs[name].role == "child" and self._specs[name] not in self._held:
                self._held.append(self._specs[name])

    async def _revive(self, spec: ProcessSpec) -> None:
        try:
            process = await self.power.revive(spec)
        except BootFailed as error:
            self._say(str(error))
            process = None
        # It died before it had an identity, which is told apart; or its zygote did, and there is no process yet.
        if process is None and spec.name not in self._supervisor.running and spec.name in self.restarting:
            self._loop.call_later(self._backoff.died(spec.name), self._restart, spec)

    def starting(self, process: Process, spare: bool) -> None:
        """A process is about to be told to start; ``spare``: it is one that waited for that."""
        if process.name in self.restarting:
            self._started[process.name] = process
            self._events.emit(
                "starting", component=process.name, pid=process.pid, incarnation=process.incarnation, spare=spare
            )

    def ordered(self, name: str) -> None:
        """Somebody wants a dead VM to run again."""
        self.power.renew(name)
        self.restarting.add(name)
        self._restart(self._specs[name])

    def _start_vm(self, name: str) -> None:
        """Ask management for a new partition in the place of a VM's dead one."""
        self.power.renew(name)
        message = {"t": "start_partition", "name": name, "kind": "child", "old": self.power.place(name)}
        self._supervisor.processes["management"].line.send(message)

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
