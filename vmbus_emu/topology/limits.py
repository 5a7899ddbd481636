"""Whether this host lets a topology run: descriptors, processes and ZeroMQ sockets, counted before anything starts.

Called by ``up`` (through :func:`vmbus_emu.topology.build` or directly). The model is the table :data:`DEMANDS`;
a test of the real processes may hold it against what they use. Counts are upper estimates: a refusal that
comes a little early beats a machine that dies half built with "too many open files".
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass

from vmbus_emu.topology.data import INTEGRATION_COMPONENTS, Topology

#: Sockets per context; what partitions/parent/process.py asks libzmq for.
MAX_SOCKETS = 16384
#: Beside the VMs': machine, front door, zygote, hypervisor, parent, management, one per VSP, the command line's own.
OTHER_PROCESSES = 10
Limit = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Demand:
    """What one process opens: descriptors and sockets at rest, per VM, per disk channel and per NIC channel."""

    process: str
    base: int
    per_vm: int
    per_disk: int
    per_nic: int
    sockets_base: int = 0
    sockets_per_disk: int = 0
    sockets_per_nic: int = 0
    sockets_per_vm: int = 0


#: Standard streams, the loop, logs, ZeroMQ's own threads and mailboxes, the run folder's lock.
_BASE = 40
# Per VM the machine keeps its lifeline, its pidfd, its console, the media and two memory files, the hypervisor its
# connection, its descriptor socket and the memory files. A channel over ZeroMQ costs its listener, its connection,
# its mailbox, and two that come and go while it is opened and torn down; one over rings needs fewer. Of the five
# integration components of a VM all are counted, although two of them may never be opened.
_MACHINE = Demand("machine", base=_BASE, per_vm=9, per_disk=0, per_nic=0)
_HYPERVISOR = Demand("hypervisor", base=_BASE, per_vm=5, per_disk=0, per_nic=0, sockets_base=4)
_COMPONENTS = len(INTEGRATION_COMPONENTS)
DEMANDS: Mapping[str, tuple[Demand, ...]] = {
    "microkernel": (
        _MACHINE,
        _HYPERVISOR,
        Demand("parent", _BASE, per_vm=3 + 5 * _COMPONENTS, per_disk=5, per_nic=5, sockets_base=8, sockets_per_disk=1,
               sockets_per_nic=1, sockets_per_vm=_COMPONENTS),
    ),
    "disaggregated": (
        _MACHINE,
        _HYPERVISOR,
        Demand("parent", _BASE, per_vm=3 + 5 * _COMPONENTS, per_disk=0, per_nic=0, sockets_base=8,
               sockets_per_vm=_COMPONENTS),
        Demand("storvsp", _BASE, per_vm=1, per_disk=5, per_nic=0, sockets_base=4, sockets_per_disk=1),
        Demand("netvsp", _BASE, per_vm=1, per_disk=0, per_nic=5, sockets_base=4, sockets_per_nic=1),
    ),
    # No channels and no processes per VM: a console pair and a wake-up for its thread, and its media.
    "monolithic": (_MACHINE, Demand("monolith", _BASE, per_vm=4, per_disk=1, per_nic=1, sockets_base=4)),
}


def check_limits(
    topology: Topology,
    nofile: Limit | None = None,
    nproc: Limit | None = None,
    max_sockets: int = MAX_SOCKETS,
    demands: Mapping[str, tuple[Demand, ...]] = DEMANDS,
) -> list[str]:
    """Lines ``limits:vms: what; what to try``; none if it fits.

    ``nofile`` and ``nproc`` are (soft, hard) as ``resource.getrlimit`` gives them, by default this process's;
    the hard one counts, for the machine raises the soft one to it.
    """
    vms = len(topology.vms)
    disks = sum(len(vm.disks) for vm in topology.vms)
    nics = sum(len(vm.nics) for vm in topology.vms)
    descriptors_limit = (nofile or resource.getrlimit(resource.RLIMIT_NOFILE))[1]
    processes_limit = (nproc or resource.getrlimit(resource.RLIMIT_NPROC))[1]
    lines = []

    def refuse(need: str, limit: int, fits: int, hint: str) -> None:
        smaller = f"try --vms {fits}" if fits >= 1 else "none fits"
        lines.append(f"limits:vms: {vms} VMs need {need}; the limit is {limit}; {smaller}, or {hint}")

    for demand in demands[topology.arch]:
        wanted = demand.per_vm * vms + demand.per_disk * disks + demand.per_nic * nics
        if not _fits(demand.base + wanted, descriptors_limit):
            refuse(f"{demand.base + wanted} descriptors in one process ({demand.process})", descriptors_limit,
                   _share(vms, wanted, descriptors_limit - demand.base), "raise it (ulimit -Hn)")
        sockets = demand.sockets_per_disk * disks + demand.sockets_per_nic * nics + demand.sockets_per_vm * vms
        if demand.sockets_base + sockets > max_sockets:
            refuse(f"{demand.sockets_base + sockets} ZeroMQ sockets in one process ({demand.process})", max_sockets,
                   _share(vms, sockets, max_sockets - demand.sockets_base), "give them fewer disks and NICs")
    if topology.arch != "monolithic" and not _fits(vms + OTHER_PROCESSES, processes_limit):
        refuse(f"{vms + OTHER_PROCESSES} processes", processes_limit, processes_limit - OTHER_PROCESSES,
               "raise it (ulimit -Hu), or --arch monolithic")
    return lines


def _fits(wanted: int, limit: int) -> bool:
    return limit == resource.RLIM_INFINITY or wanted <= limit


def _share(vms: int, wanted: int, room: int) -> int:
    """How many of ``vms`` equal VMs fit when together they want ``wanted`` and there is ``room``."""
    return max(0, room) * vms // wanted
