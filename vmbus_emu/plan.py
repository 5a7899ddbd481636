"""What ``up`` would build, as data: processes, the components in them, and the ways between. Starts nothing.

Pure functions of a topology, for ``vmbus-emu plan``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vmbus_emu.placement import processes, worker_of, zygotes
from vmbus_emu.topology.data import DiskSpec, Topology, VmSpec

#: What each component is, for ``plan``; in the monolith the VSPs' places are taken by the bare drivers.
MEANING = {
    "hypervisor": "partitions, hypercalls, messages, memory grants",
    "parent": "VMBus provider: offers, channels, GPADLs",
    "storvsp": "storage VSP and disk drivers",
    "netvsp": "network VSP and virtual switch",
    "management": "the controlling function: creates and starts partitions",
    "child": "guest with storvsc and netvsc",
    "worker": "emulated IDE controller and network adapters of one VM, disk drivers",
}
#: What the zygote of a role is there for.
ZYGOTE_MEANING = {
    "child": "has the code of a VM loaded and forks VMs",
    "parent": "forks the parent's next incarnation",
    "storvsp": "forks storvsp's next incarnation",
    "netvsp": "forks netvsp's next incarnation",
    "hypervisor": "forks the hypervisor's next incarnation",
}
#: What a role of the parent partition is.
ROLE_MEANING = {
    "dns": "DNS server for the names of the VMs, on the host's loopback",
    "files": "logs, crash files and reports over HTTP, on the host's loopback",
}
MONOLITH_MEANING = MEANING | {
    "storvsp": "disk drivers alone: guests call them, there is no VSP",
    "netvsp": "virtual switch alone: guests call it, there is no VSP",
    "child": "guest thread, its devices are function calls",
    "worker": "emulated IDE controller and network adapters of one VM, reached by calls",
}
#: What a VM without integration services is, in the monolith too.
EMULATED_MEANING = "guest with drivers of emulated devices, no integration services"


@dataclass(frozen=True, slots=True)
class PlanComponent:
    name: str
    role: str
    what: str


@dataclass(frozen=True, slots=True)
class PlanProcess:
    name: str
    role: str
    components: tuple[PlanComponent, ...]


@dataclass(frozen=True, slots=True)
class PlanLink:
    """A way from ``source`` to ``target``; ``kind`` is call, channel, intercept, cable, hypercall or
    lifeline."""

    source: str
    target: str
    kind: str
    note: str


@dataclass(frozen=True, slots=True)
class Plan:
    processes: tuple[PlanProcess, ...]
    links: tuple[PlanLink, ...]


def plan(topology: Topology) -> Plan:
    """What ``up`` would build. Starts nothing."""
    monolith = topology.arch == "monolithic"
    meaning = MONOLITH_MEANING if monolith else MEANING
    emulated = {vm.name: EMULATED_MEANING for vm in topology.vms if not vm.integration_services}
    links: list[PlanLink] = []
    box = PlanComponent("machine", "machine", "the box: power, media, consoles")
    planned = [PlanProcess("machine", "machine", (box,))]
    for role, name in zygotes(topology).items():
        planned.append(PlanProcess(name, "zygote", (PlanComponent(name, "zygote", ZYGOTE_MEANING[role]),)))
        links.append(PlanLink("machine", name, "lifeline", "births"))
    for process in processes(topology):
        planned.append(
            PlanProcess(
                process.name,
                process.role,
                tuple(PlanComponent(c.name, c.role, emulated.get(c.name, meaning[c.role])) for c in process.components),
            )
        )
        links.append(PlanLink("machine", process.name, "lifeline", "power, console, descriptors"))
        if not monolith and process.role != "hypervisor":
            links.append(PlanLink(process.name, "hypervisor", "hypercall", "control messages only"))
    for name in topology.roles:
        planned.append(PlanProcess(name, "role", (PlanComponent(name, "role", ROLE_MEANING[name]),)))
        links.append(PlanLink("machine", name, "lifeline", "power, the names of the VMs"))
    for vm in topology.vms:
        links += _data_links(topology, vm, monolith)
    return Plan(tuple(planned), tuple(links))


def _data_links(topology: Topology, vm: VmSpec, monolith: bool) -> Iterator[PlanLink]:
    if not vm.integration_services:
        yield from _emulated_links(vm, monolith)
        return
    kind = "call" if monolith else "channel"
    for index, disk in enumerate(vm.disks):
        note = "BlockDevice, one lock per device" if monolith else f"storvsc to storvsp over {topology.transport}"
        yield PlanLink(f"{vm.name}.disk{index}", "storvsp", kind, note)
        yield PlanLink("storvsp", f"{disk.kind} driver", "call", _medium(disk))
    for index, nic in enumerate(vm.nics):
        note = "NetworkPort, one lock per switch" if monolith else f"netvsc to netvsp over {topology.transport}"
        yield PlanLink(f"{vm.name}.nic{index}", "netvsp", kind, note)
        yield PlanLink("netvsp", f"switch {nic.switch}", "call", "learning virtual switch")


def _emulated_links(vm: VmSpec, monolith: bool) -> Iterator[PlanLink]:
    worker = worker_of(vm.name)
    kind = "call" if monolith else "intercept"
    way = "register accesses, each a call" if monolith else "register accesses, each through the hypervisor"
    for index, disk in enumerate(vm.disks):
        yield PlanLink(f"{vm.name}.disk{index}", worker, kind, f"IDE: {way}")
        yield PlanLink(worker, f"{disk.kind} driver", "call", _medium(disk))
    for index, nic in enumerate(vm.nics):
        yield PlanLink(f"{vm.name}.nic{index}", worker, kind, f"21140: {way}")
        if not monolith:
            yield PlanLink(worker, "netvsp", "cable", "frames over a socket pair")
        yield PlanLink("netvsp", f"switch {nic.switch}", "call", "learning virtual switch")


def _medium(disk: DiskSpec) -> str:
    mode = ", read-only" if disk.read_only else ""
    if disk.kind == "file":
        return f"{disk.path}{mode}"
    return f"{disk.size_bytes} bytes{mode}"
