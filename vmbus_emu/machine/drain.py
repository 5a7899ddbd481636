"""``drain``: the VMs shut down one after the other, each with a flush of its disks, and then the machine reboots.

It needs neither the hypervisor nor the parent partition: a VM is asked over its lifeline, as by a power button. So it
is the orderly way out of policy ``degraded``. A VM's death meanwhile leads to nothing: all of them boot again at the
end, from their disks.

One VM ends as (``how``):

============ =====================================================================================================
off          it shut down; ``unflushed`` says which disks could not be flushed, and why
killed       it had not shut down within the grace time. A thread of the monolith runs on until the reboot ends it
died         it ended while it shut down
not running  it was dead before
============ =====================================================================================================
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container, Mapping
from typing import Any

from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop, Timer
from vmbus_emu.machine.events import Events
from vmbus_emu.machine.intake import Refused
from vmbus_emu.machine.recovery import Recovery
from vmbus_emu.machine.supervisor import Process, Supervisor
from vmbus_emu.topology.data import WORKER_SUFFIX

#: Each VM's time to shut down, in seconds, unless the request says another.
DEFAULT_GRACE_S = 10.0
#: Of that, a guest gives commands that still run at most so long, and at most half, to end by themselves.
PATIENCE_S = 1.0

_MAX_REASONS, _MAX_REASON = 64, 200


class _Draining:
    """One drain, from its request to the end of the reboot."""

    def __init__(self, client: bytes, number: int, grace_s: float, vms: list[str], degraded_s: float | None) -> None:
        self.client = client
        self.number = number
        self.grace_s = grace_s
        self.degraded_s = degraded_s
        self.waiting = deque(vms)
        self.done: list[Message] = []
        self.vm = ""                            # the one that shuts down now, and the process that carries it
        self.process: Process | None = None
        self.asked_ns = 0
        self.killed = False
        self.unflushed: list[str] | None = None     # what it said about its disks, once it has
        self.timer: Timer | None = None
        self.rebooting_ns = 0


class Drain:
    """``hosts``: the process that carries each VM, in the order in which they shut down. ``fallen``: VMs that are dead
    although their process lives. ``outlives_hypervisor``: policy ``degraded`` is that of the hypervisor."""

    def __init__(
        self, loop: Loop, hosts: Mapping[str, str], fallen: Container[str], outlives_hypervisor: bool,
        supervisor: Supervisor, recovery: Recovery, events: Events, reply: Callable[[bytes, Message], Any],
    ) -> None:
        self._loop = loop
        self._hosts = hosts
        self._fallen = fallen
        self._outlives_hypervisor = outlives_hypervisor
        self._supervisor = supervisor
        self._recovery = recovery
        self._events = events
        self._reply = reply
        self._draining: _Draining | None = None
        self._booted = False
        self._degraded_ns = 0
        #: VMs that have shut down since the machine booted, or were stopped.
        self.off: set[str] = set()

    def is_off(self, component: str) -> bool:
        """Whether that is a VM that is off, or its worker."""
        return component.removesuffix(WORKER_SUFFIX) in self.off

    @property
    def active(self) -> bool:
        """Whether one is under way."""
        return self._draining is not None

    def begin(self, client: bytes, number: int, grace_s: float) -> None:
        """Answer request ``number`` of ``client`` step by step. Raises :class:`Refused`.

        Replies: ``{"step": "draining", "vms", "grace_s", "degraded_s"}``, then for each VM ``{"step": "vm", "vm",
        "how", "ms", "unflushed"}``, ``{"step": "rebooting"}``, and at last ``{"drained": {...}}`` or an error.
        """
        self.must_be_possible()
        now = time.monotonic_ns()
        degraded_s = (now - self._degraded_ns) / 1e9 if self._degraded_ns else None
        draining = self._draining = _Draining(client, number, grace_s, list(self._hosts), degraded_s)
        told = {"vms": list(self._hosts), "grace_s": grace_s, "degraded_s": degraded_s}
        self._events.emit("draining", now, **told)
        self._tell(draining, {"step": "draining", **told})
        self._next(draining)

    def must_be_possible(self) -> None:
        """Raises :class:`Refused` if a drain cannot begin now."""
        if self._draining is not None:
            raise Refused("a drain is under way already", "vmbus-emu watch shows its steps")
        if not self._booted or self._recovery.rebooting:
            raise Refused("the machine is booting, there is nothing to drain yet", "try again in a moment")
        if self._recovery.power.off:
            raise Refused("the machine has halted, as its policy says", "vmbus-emu down, then up starts it again")

    def _tell(self, draining: _Draining, message: Message) -> None:
        self._reply(draining.client, {"id": draining.number, **message})

    # -- VM by VM -------------------------------------------------------------------------------------

    def _next(self, draining: _Draining) -> None:
        while draining.waiting:
            vm = draining.vm = draining.waiting.popleft()
            process = draining.process = self._supervisor.running.get(self._hosts[vm])
            draining.asked_ns, draining.killed, draining.unflushed = time.monotonic_ns(), False, None
            if process is not None and vm not in self._fallen and vm not in self.off:
                patience_s = min(PATIENCE_S, draining.grace_s / 2)
                process.line.send({"t": "shut_down", "vm": vm, "patience_s": patience_s})
                draining.timer = self._loop.call_later(draining.grace_s, self._too_late, draining)
                return
            self._note(draining, "not running")
        draining.vm, draining.process = "", None
        self._reboot(draining)

    def _note(self, draining: _Draining, how: str) -> None:
        spent = 0.0 if how == "not running" else (time.monotonic_ns() - draining.asked_ns) / 1e6
        unflushed = draining.unflushed or []
        draining.done.append({"vm": draining.vm, "how": how, "ms": round(spent, 3), "unflushed": unflushed})
        self._events.emit("drained", component=draining.vm, how=how, ms=round(spent, 3), unflushed=unflushed)
        self._tell(draining, {"step": "vm", **draining.done[-1]})

    def _settle(self, draining: _Draining, how: str) -> None:
        """The VM that was asked is done with, in one way or another."""
        if draining.timer is not None:
            draining.timer.cancel()
            draining.timer = None
        if how == "off":
            self.off.add(draining.vm)
        self._note(draining, how)
        self._next(draining)

    def _too_late(self, draining: _Draining) -> None:
        draining.timer = None
        assert draining.process is not None
        if draining.process.name == draining.vm:
            draining.killed = True
            self._supervisor.kill(draining.process)  # and settled when it is gone
        else:
            self._settle(draining, "killed")

    # -- what is heard of them --------------------------------------------------------------------------

    def said(self, vm: str, unflushed: list[Any]) -> None:
        """A guest says that it is ready to lose its power. Of no effect if nobody asked it."""
        draining = self._draining
        if draining is None or draining.vm != vm or draining.unflushed is not None:
            return
        draining.unflushed = [str(reason)[:_MAX_REASON] for reason in unflushed[:_MAX_REASONS]]
        if self._hosts[vm] != vm:  # a thread of the monolith ends with that, a process has yet to
            self._settle(draining, "off")

    def fell(self, vm: str) -> None:
        """A VM that is a thread of the monolith ended by a bug of its own."""
        if self._draining is not None and self._draining.vm == vm:
            self._settle(self._draining, "died")

    def shut_down(self, process: Process) -> bool:
        """Whether a process that was reaped is a VM that ended because it was asked to: powered off, not dead."""
        draining = self._draining
        return (
            draining is not None and draining.process is process and process.name == draining.vm
            and draining.unflushed is not None and process.exit_code == 0
        )  # fmt: skip

    def exited(self, process: Process) -> bool:
        """A process was reaped. ``True``: its policy does not count, because all VMs boot again soon."""
        if process.name == "hypervisor" and self._outlives_hypervisor and not self._recovery.rebooting:
            self._degraded_ns = time.monotonic_ns()
        draining = self._draining
        if draining is None:
            return False
        boots_again = self._hosts.get(process.name) == process.name and not self._recovery.rebooting
        if draining.process is process:
            how = "off" if self.shut_down(process) else "killed" if draining.killed else "died"
            self._settle(draining, how)
        return boots_again

    # -- and again ------------------------------------------------------------------------------------

    def _reboot(self, draining: _Draining) -> None:
        draining.rebooting_ns = time.monotonic_ns()
        if self._recovery.power.off and not self._recovery.rebooting:
            self.stop("the machine has halted meanwhile, as its policy says", "vmbus-emu down, then up starts it again")
            return
        self._tell(draining, {"step": "rebooting"})
        self._recovery.reboot("drained")

    def up(self) -> None:
        """The machine has booted."""
        self._booted = True
        self._degraded_ns = 0
        self.off.clear()
        draining, self._draining = self._draining, None
        if draining is not None:
            self._tell(draining, {"drained": {
                "grace_s": draining.grace_s, "degraded_s": draining.degraded_s, "vms": draining.done,
                "reboot_ms": round((time.monotonic_ns() - draining.rebooting_ns) / 1e6, 3),
            }})  # fmt: skip

    def stop(self, why: str, hint: str = "") -> None:
        """The drain under way, if there is one, will not come to its end."""
        draining, self._draining = self._draining, None
        if draining is not None:
            if draining.timer is not None:
                draining.timer.cancel()
            self._tell(draining, {"error": why, "hint": hint})
