"""How things stand: with the machine as a whole, and with VMs that do not run although nobody stopped them."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmbus_emu.machine.drain import Drain
from vmbus_emu.machine.recovery import Recovery
from vmbus_emu.machine.roster import Roster
from vmbus_emu.machine.supervisor import Supervisor


@dataclass(slots=True)
class Fates:
    """What became of VMs, by name."""

    #: Ended by bugs of their own although their process lives, which is the monolith's, and why.
    fallen: dict[str, str] = field(default_factory=dict)
    #: VM or worker -> why it was ended with the other one of the two.
    taken_along: dict[str, str] = field(default_factory=dict)
    #: Those of them whose other one had been ordered to end.
    leaving: set[str] = field(default_factory=set)


class Standing:
    """``word``: ``starting``, ``ready``, ``degraded``, ``draining``, ``rebooting``, ``halted`` or ``stopping``."""

    def __init__(
        self, roster: Roster, supervisor: Supervisor, recovery: Recovery, drain: Drain, fates: Fates
    ) -> None:
        self.word = "starting"
        self._roster = roster
        self._supervisor = supervisor
        self._recovery = recovery
        self._drain = drain
        self._fates = fates

    def settle(self) -> None:
        """What the machine as a whole is, by what its processes are."""
        if self.word not in ("starting", "stopping"):
            self.word = self._found()

    def _found(self) -> str:
        running = self._supervisor.running
        missing = [name for name in self._roster.specs if name not in running and not self._drain.is_off(name)]
        if self._recovery.rebooting:
            return "rebooting"
        if self._drain.active:
            return "draining"
        if self._roster.vms and not any(host in running for host in self._roster.vm_hosts.values()):
            return "halted"
        return "degraded" if missing or self._fates.fallen or self._recovery.restarting else "ready"
