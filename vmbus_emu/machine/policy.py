"""What follows a death, by the role of the process that died (design: who keeps what, and what its death means).

========= ====================================================================================================
restart   a new incarnation, forked when the old one is gone
standby   the same, from a spare that was started and given its configuration before
halt      dead stays dead; who needs it is told that it will not come back
recover   the hypervisor's next incarnation goes on with the tables of the one before, under running VMs
reboot    the machine ends all its processes and powers on again
degraded  the hypervisor is not replaced, and everything else goes on without it
========= ====================================================================================================
"""

from __future__ import annotations

from vmbus_emu.placement import ProcessSpec
from vmbus_emu.topology.data import DEFAULT_POLICY, Topology

#: Seconds before a component is started anew: doubled for every consecutive incarnation that dies without having
#: been good for anything. The first one is replaced at once.
FIRST_DELAY_S = 0.01
LAST_DELAY_S = 1.0
#: Hypervisors in a row that do not get as far as listening, before the machine reboots: their ledger is at fault.
MOST_TAKEOVERS = 3
_NEEDED = {"hypervisor": frozenset[str](), "child": frozenset(("hypervisor", "management"))}


def policy_of(topology: Topology, spec: ProcessSpec) -> str:
    """The policy of a process: its own role's, or that of a component it carries, or its role's default."""
    role = "monolith" if topology.arch == "monolithic" else spec.role
    carried = [component.role for component in spec.components]
    for name in (role, *carried) if role != "monolith" else (role, "hypervisor"):
        if name in topology.policy:
            return topology.policy[name]
    return DEFAULT_POLICY[role]


def is_replaced(topology: Topology, spec: ProcessSpec) -> bool:
    """Whether a dead process of ``spec`` has a successor, while everything else goes on."""
    return policy_of(topology, spec) in ("restart", "standby", "recover")


def needed_by(role: str) -> frozenset[str]:
    """Who must live for a process of ``role`` to be started anew: a hypervisor to give it its place, and for a VM,
    management to ask for it."""
    return _NEEDED.get(role, frozenset(("hypervisor",)))


class Backoff:
    """How long to wait before the next incarnation of each component."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}

    def good(self, name: str) -> None:
        """The incarnation that runs now has done what it is for, at least once."""
        self._failures.pop(name, None)

    def failures(self, name: str) -> int:
        """How many incarnations in a row have been good for nothing."""
        return self._failures.get(name, 0)

    def died(self, name: str) -> float:
        """One died; the delay in seconds before the next."""
        failures = self._failures.get(name, 0)
        self._failures[name] = failures + 1
        return min(FIRST_DELAY_S * 2.0 ** (failures - 1), LAST_DELAY_S) if failures else 0.0
