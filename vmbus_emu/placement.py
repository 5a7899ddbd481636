"""Which component lives in which process: the architecture, as data.

:data:`PLACEMENTS` is the whole difference between the designs. Everything else here is derived from it and a
topology, by pure functions: the processes to start, what each is told, and the plan that ``vmbus-emu plan`` shows.
Components are named by import path; a process loads its own and nothing else.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vmbus_emu.topology.data import DiskSpec, Topology, VmSpec

#: arch -> component -> the process it lives in. ``child`` stands for each VM; ``*`` is a process of its own.
PLACEMENTS: dict[str, dict[str, str]] = {
    "monolithic": {
        "hypervisor": "hypervisor",
        "management": "hypervisor",
        "storvsp": "hypervisor",
        "netvsp": "hypervisor",
        "child": "hypervisor",
    },
    "microkernel": {
        "hypervisor": "*",
        "parent": "*",
        "storvsp": "parent",
        "netvsp": "parent",
        "management": "*",
        "child": "*",
    },
    "disaggregated": {
        "hypervisor": "*",
        "parent": "*",
        "storvsp": "*",
        "netvsp": "*",
        "management": "*",
        "child": "*",
    },
}

#: What a process runs, by the role that gives it its name.
ENTRIES = {
    "hypervisor": "vmbus_emu.hypervisor.process:HypervisorProcess",
    "parent": "partitions.parent.process:ParentProcess",
    "storvsp": "partitions.parent.process:VspProcess",
    "netvsp": "partitions.parent.process:VspProcess",
    "management": "partitions.parent.management:Management",
    "child": "partitions.child.process:ChildProcess",
    "monolith": "partitions.monolith:Monolith",
}

#: Roles whose processes come out of a zygote that has loaded their code: there are many of them.
ZYGOTES = {"child": "zygote"}
ZYGOTE_ENTRY = "vmbus_emu.machine.zygote:Zygote"

#: The VSPs by component name, loaded by the process that carries them.
VSPS = {
    "storvsp": "partitions.parent.storage:StorageVsp",
    "netvsp": "partitions.parent.network:NetworkVsp",
}

#: Drivers by what the topology calls them.
DRIVERS = {
    "file": "drivers.disk:file_disk",
    "ram": "drivers.disk:ram_disk",
    "null": "drivers.disk:null_disk",
    "switch": "drivers.switch:Switch",
}

#: What each component is, for ``plan``; in the monolith the VSPs' places are taken by the bare drivers.
MEANING = {
    "hypervisor": "partitions, hypercalls, messages, memory grants",
    "parent": "VMBus provider: offers, channels, GPADLs",
    "storvsp": "storage VSP and disk drivers",
    "netvsp": "network VSP and virtual switch",
    "management": "the controlling function: creates and starts partitions",
    "child": "guest with storvsc and netvsc",
    "zygote": "has the code of a VM loaded and forks VMs",
}
MONOLITH_MEANING = MEANING | {
    "storvsp": "disk drivers alone: guests call them, there is no VSP",
    "netvsp": "virtual switch alone: guests call it, there is no VSP",
    "child": "guest thread, its devices are function calls",
}

#: Each VM's I/O memory: one memory file at this guest-physical address, granted page by page.
IO_MEMORY_GPA = 1 << 32
IO_MEMORY_PAGES = 1024

#: All VMs live in 10.0.0.0/16.
PREFIX_LENGTH = 16


@dataclass(frozen=True, slots=True)
class ComponentSpec:
    name: str
    role: str


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to start. Its name is that of the component it is named after."""

    name: str
    role: str
    entry: str
    components: tuple[ComponentSpec, ...]


def processes(topology: Topology) -> tuple[ProcessSpec, ...]:
    """The processes of a machine, in the order in which they are listed (not necessarily started)."""
    hosts: dict[str, tuple[str, list[ComponentSpec]]] = {}
    for component in components(topology):
        place = PLACEMENTS[topology.arch][component.role]
        host = component.name if place == "*" else place
        hosts.setdefault(host, (component.role, []))[1].append(component)
    monolith = topology.arch == "monolithic"
    return tuple(
        ProcessSpec(name, role, ENTRIES["monolith" if monolith else role], tuple(carried))
        for name, (role, carried) in hosts.items()
    )


def components(topology: Topology) -> Iterator[ComponentSpec]:
    """Every component of the machine but the machine itself."""
    for role in PLACEMENTS[topology.arch]:
        if role != "child":
            yield ComponentSpec(role, role)
    for vm in topology.vms:
        yield ComponentSpec(vm.name, "child")


def instance_id(vm: str, device: str) -> uuid.UUID:
    """The VMBus instance id of a VM's device: the same over restarts, so that a guest knows its disk again."""
    # Not uuid5: the digests of the standard library cost 8 ms to load, and this runs while a machine boots.
    return uuid.UUID(int=random.Random(f"{vm}.{device}").getrandbits(128), version=4)


# -- what processes are told ----------------------------------------------------------------------------


def configuration(topology: Topology, spec: ProcessSpec, hypervisor: str, channels: str) -> dict[str, Any]:
    """Everything process ``spec`` is told at its start. ``hypervisor``: its socket; ``channels``: their folder."""
    names = [component.name for component in spec.components]
    config: dict[str, Any] = {"socket": hypervisor, "channels": channels, "components": names}
    if "storvsp" in names:
        config["storvsp"] = {"entry": VSPS["storvsp"], "disks": disks(topology)}
    if "netvsp" in names:
        config["netvsp"] = {"entry": VSPS["netvsp"], **network(topology)}
    if "management" in names:
        own = [[name, "vsp"] for name in VSPS if PLACEMENTS[topology.arch][name] == "*"]
        config["partitions"] = own + [[vm.name, "child"] for vm in topology.vms]
    config["guests"] = [guest(topology, vm) for vm in topology.vms if vm.name in names]
    return config


def disks(topology: Topology) -> list[dict[str, Any]]:
    """The storage component's configuration; descriptors of the media follow by name."""
    return [
        {
            "vm": vm.name,
            "device": f"disk{index}",
            "medium": f"{vm.name}.disk{index}",
            "instance": instance_id(vm.name, f"disk{index}").bytes_le,
            "driver": DRIVERS[disk.kind],
        }
        for vm in topology.vms
        for index, disk in enumerate(vm.disks)
    ]


def network(topology: Topology) -> dict[str, Any]:
    """The network component's configuration."""
    return {
        "driver": DRIVERS["switch"],
        "switches": [switch.name for switch in topology.switches],
        "ports": [
            {
                "vm": vm.name,
                "device": f"nic{index}",
                "switch": nic.switch,
                "mac": nic.mac,
                "instance": instance_id(vm.name, f"nic{index}").bytes_le,
            }
            for vm in topology.vms
            for index, nic in enumerate(vm.nics)
        ],
    }


def guest(topology: Topology, vm: VmSpec) -> dict[str, Any]:
    """What a guest knows of itself and its neighbours."""
    return {
        "name": vm.name,
        "address": vm.address,
        "prefix": PREFIX_LENGTH,
        "hosts": {other.name: other.address for other in topology.vms},
        "disks": {f"disk{i}": instance_id(vm.name, f"disk{i}").bytes_le for i in range(len(vm.disks))},
        "nics": {f"nic{i}": instance_id(vm.name, f"nic{i}").bytes_le for i in range(len(vm.nics))},
        "memory_bytes": vm.memory_bytes,
        "vmbus_version": vm.vmbus_version,
        "io_memory": {"gpa": IO_MEMORY_GPA, "pages": IO_MEMORY_PAGES},
    }


# -- the plan -------------------------------------------------------------------------------------------


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
    """A way from ``source`` to ``target``; ``kind`` is call, channel, hypercall or lifeline."""

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
    links: list[PlanLink] = []
    box = PlanComponent("machine", "machine", "the box: power, media, consoles")
    planned = [PlanProcess("machine", "machine", (box,))]
    for role, name in ZYGOTES.items():
        if any(process.role == role for process in processes(topology)):
            planned.append(PlanProcess(name, "zygote", (PlanComponent(name, "zygote", MEANING["zygote"]),)))
            links.append(PlanLink("machine", name, "lifeline", "births"))
    for process in processes(topology):
        planned.append(
            PlanProcess(
                process.name,
                process.role,
                tuple(PlanComponent(c.name, c.role, meaning[c.role]) for c in process.components),
            )
        )
        links.append(PlanLink("machine", process.name, "lifeline", "power, console, descriptors"))
        if not monolith and process.role != "hypervisor":
            links.append(PlanLink(process.name, "hypervisor", "hypercall", "control messages only"))
    for vm in topology.vms:
        links += _data_links(topology, vm, monolith)
    return Plan(tuple(planned), tuple(links))


def _data_links(topology: Topology, vm: VmSpec, monolith: bool) -> Iterator[PlanLink]:
    kind = "call" if monolith else "channel"
    for index, disk in enumerate(vm.disks):
        note = "BlockDevice, one lock per device" if monolith else f"storvsc to storvsp over {topology.transport}"
        yield PlanLink(f"{vm.name}.disk{index}", "storvsp", kind, note)
        yield PlanLink("storvsp", f"{disk.kind} driver", "call", _medium(disk))
    for index, nic in enumerate(vm.nics):
        note = "NetworkPort, one lock per switch" if monolith else f"netvsc to netvsp over {topology.transport}"
        yield PlanLink(f"{vm.name}.nic{index}", "netvsp", kind, note)
        yield PlanLink("netvsp", f"switch {nic.switch}", "call", "learning virtual switch")


def _medium(disk: DiskSpec) -> str:
    mode = ", read-only" if disk.read_only else ""
    if disk.kind == "file":
        return f"{disk.path}{mode}"
    return f"{disk.size_bytes} bytes{mode}"
