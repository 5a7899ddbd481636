"""Which component lives in which process: the architecture, as data.

:data:`PLACEMENTS` is the whole difference between the designs. Everything else here is derived from it and a
topology, by pure functions: the processes to start, and what each is told.
Components are named by import path; a process loads its own and nothing else.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vmbus_emu import hardware
from vmbus_emu.iomemory import io_memory, synthetic_memory
from vmbus_emu.topology.data import INTEGRATION_COMPONENTS, WORKER_SUFFIX, Topology, VmSpec

#: arch -> component -> the process it lives in. ``child`` stands for each VM, ``worker`` for the device models of each
#: VM without integration services; ``*`` is a process of its own.
PLACEMENTS: dict[str, dict[str, str]] = {
    "monolithic": {
        "hypervisor": "hypervisor",
        "management": "hypervisor",
        "storvsp": "hypervisor",
        "netvsp": "hypervisor",
        "child": "hypervisor",
        "worker": "hypervisor",
    },
    "microkernel": {
        "hypervisor": "*",
        "parent": "*",
        "storvsp": "parent",
        "netvsp": "parent",
        "management": "*",
        "role": "*",
        "child": "*",
        "worker": "*",
    },
    "disaggregated": {
        "hypervisor": "*",
        "parent": "*",
        "storvsp": "*",
        "netvsp": "*",
        "management": "*",
        "role": "*",
        "child": "*",
        "worker": "*",
    },
}

#: What a process runs, by the role that gives it its name, or by role and transport where that makes a difference.
ENTRIES = {
    "hypervisor": "vmbus_emu.hypervisor.process:HypervisorProcess",
    "parent": "partitions.parent.process:ParentProcess",
    "storvsp": "partitions.parent.process:VspProcess",
    "netvsp": "partitions.parent.process:VspProcess",
    "management": "partitions.parent.management:Management",
    "child": "partitions.child.process:ChildProcess",
    "child/ring": "partitions.child.ring_links:RingChildProcess",
    "child/emulated": "partitions.child.emulated:EmulatedChildProcess",
    "worker": "partitions.parent.worker:Worker",
    "monolith": "partitions.monolith:Monolith",
}

#: What the processes of the parent partition's roles run; they come and go while the machine runs.
ROLE_ENTRIES = {"dns": "partitions.roles.dns:DnsRole", "files": "partitions.roles.files:FilesRole"}

#: Roles whose processes come out of a zygote that has loaded their code: VMs, because there are many, and what VMs
#: wait for when it dies.
ZYGOTES = {
    "child": "zygote", "parent": "zygote.parent", "storvsp": "zygote.storvsp", "netvsp": "zygote.netvsp",
    "hypervisor": "zygote.hypervisor",
}
#: What a spare does while it waits.
REHEARSAL_ENTRY = "partitions.parent.rehearsal:Rehearsal"
ZYGOTE_ENTRY = "vmbus_emu.machine.zygote:Zygote"

#: The VSPs by component name, loaded by the process that carries them.
VSPS = {
    "storvsp": "partitions.parent.storage:StorageVsp",
    "netvsp": "partitions.parent.network:NetworkVsp",
}

#: How the names of a VSP's channel sockets begin: short, for socket paths have 107 bytes.
_CHANNELS = {"storvsp": "st", "netvsp": "nt", "ic": "ic"}

#: One more VSP, of the integration components: no component, but a part of the parent wherever that is.
INTEGRATION_ENTRY = "partitions.parent.integration:IntegrationVsp"

#: What only ``ring`` needs, loaded where it is needed.
TRANSPORT_ENTRIES = {
    "asking": "partitions.parent.ring_asking:RingAsking",
    "channels": "partitions.parent.ring_vsp_channels:RingChannels",
    "inbox": "vmbus_emu.inbox:DescriptorInbox",
}

_BUILT_IN = frozenset(entry for entry, _ in hardware.BUILT_IN.values())

#: Drivers of media and switches, by what the topology calls them.
DRIVERS = {
    "file": "drivers.disk:file_disk",
    "ram": "drivers.disk:ram_disk",
    "null": "drivers.disk:null_disk",
    "switch": "drivers.switch:Switch",
}

#: VMs whose VMBus driver is limited to these versions are old, and so are their integration components.
FIRST_GENERATION = ("2.4",)

#: Workers stand in for VPs of the root partition from this number on.
FIRST_WORKER_VP = 2

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


def entry(topology: Topology, role: str, name: str = "") -> str:
    """The import path of what the process of ``role`` runs; ``name``: of the component, for which VMs differ."""
    if topology.arch == "monolithic":
        return ENTRIES["monolith"]
    if role == "child" and any(vm.name == name and not vm.integration_services for vm in topology.vms):
        return ENTRIES["child/emulated"]
    return ENTRIES.get(f"{role}/{topology.transport}") or ENTRIES[role]


def worker_of(vm: str) -> str:
    """The name of a VM's worker."""
    return vm + WORKER_SUFFIX


def recovers(topology: Topology) -> bool:
    """Whether a dead hypervisor's next incarnation goes on where it ended. By default it does not."""
    return topology.policy.get("hypervisor") == "recover"


def zygotes(topology: Topology) -> dict[str, str]:
    """The zygotes a machine has, by the role whose processes they bear."""
    roles = {spec.role for spec in processes(topology) if zygote_of(spec)}
    if not recovers(topology):
        roles.discard("hypervisor")  # nothing waits for another one: it is dead, or the machine reboots
    return {role: name for role, name in ZYGOTES.items() if role in roles}


def zygote_of(spec: ProcessSpec) -> str | None:
    """The zygote that processes like ``spec`` come out of. None bears VMs without integration services: the VMs' zygote
    has VMBus in memory, which such a VM must not have."""
    return None if spec.entry == ENTRIES["child/emulated"] else ZYGOTES.get(spec.role)


def preloaded(topology: Topology, spec: ProcessSpec) -> list[str]:
    """What a zygote loads, so that processes like ``spec`` need not."""
    own = [spec.entry]
    names = [component.name for component in spec.components]
    if spec.role == "child" and topology.transport == "ring":
        own.append(TRANSPORT_ENTRIES["inbox"])
    if "parent" in names and topology.transport == "ring":
        own.append(TRANSPORT_ENTRIES["asking"])
    if any(name in VSPS for name in names) and topology.transport == "ring":
        own += [TRANSPORT_ENTRIES["channels"], TRANSPORT_ENTRIES["inbox"]]
    if "parent" in names:
        own.append(INTEGRATION_ENTRY)
        own += [TRANSPORT_ENTRIES[what] for what in ("channels", "inbox") if topology.transport == "ring"]
    own += [VSPS[name] for name in names if name in VSPS]
    if "storvsp" in names:
        own += sorted({DRIVERS[disk.kind] for vm in topology.vms for disk in vm.disks})
        own += _own_drivers(topology, hardware.STORAGE)
        if topology.policy.get(spec.role) == "standby":
            own.append(REHEARSAL_ENTRY)
    if "netvsp" in names:
        own += [DRIVERS["switch"], *_own_drivers(topology, hardware.NIC)]
    return own


def _own_drivers(topology: Topology, kind: str) -> list[str]:
    """Those of this package; what others bring must not come into a zygote, which cannot let go of it."""
    chosen = [device["driver"] for device in devices(topology, kind).values()]
    return sorted({driver["entry"] for driver in chosen if driver is not None and not driver["path"]} & _BUILT_IN)


def processes(topology: Topology) -> tuple[ProcessSpec, ...]:
    """The processes of a machine, in the order in which they are listed (not necessarily started)."""
    hosts: dict[str, tuple[str, list[ComponentSpec]]] = {}
    for component in components(topology):
        place = PLACEMENTS[topology.arch][component.role]
        host = component.name if place == "*" else place
        hosts.setdefault(host, (component.role, []))[1].append(component)
    return tuple(
        ProcessSpec(name, role, entry(topology, role, name), tuple(carried))
        for name, (role, carried) in hosts.items()
    )


def components(topology: Topology) -> Iterator[ComponentSpec]:
    """Every component of the machine but the machine itself, and the roles, which are none of its parts."""
    for role in PLACEMENTS[topology.arch]:
        if role not in ("child", "role", "worker"):
            yield ComponentSpec(role, role)
    for vm in topology.vms:
        yield ComponentSpec(vm.name, "child")
        if not vm.integration_services:
            yield ComponentSpec(worker_of(vm.name), "worker")


def integration_carrier(topology: Topology) -> str:
    """The process with the integration services."""
    return "hypervisor" if topology.arch == "monolithic" else "parent"


def serves(spec: ProcessSpec) -> list[str]:
    """The VSPs in a process like ``spec``, the integration components' included."""
    names = [component.name for component in spec.components]
    return [name for name in names if name in VSPS] + (["ic"] if "parent" in names else [])


def channel_names(vsp: str, incarnation: int) -> str:
    """How the names of the channel sockets of an incarnation of a VSP's process begin."""
    return f"{_CHANNELS[vsp]}{incarnation}-"


def instance_id(vm: str, device: str) -> uuid.UUID:
    """The VMBus instance id of a VM's device: the same over restarts, so that a guest knows its disk again."""
    # Not uuid5: the digests of the standard library cost 8 ms to load, and this runs while a machine boots.
    return uuid.UUID(int=random.Random(f"{vm}.{device}").getrandbits(128), version=4)


# -- what processes are told ----------------------------------------------------------------------------


def configuration(
    topology: Topology, spec: ProcessSpec, incarnation: int, hypervisor: str, channels: str
) -> dict[str, Any]:
    """Everything an incarnation of process ``spec`` is told at its start. ``hypervisor``: its socket; ``channels``: the
    folder of theirs."""
    names = [component.name for component in spec.components]
    config: dict[str, Any] = {
        "socket": hypervisor,
        "channels": channels,
        "components": names,
        "transport": topology.transport,
        "poll": topology.poll,
        "hypervisor_recovers": recovers(topology),
        "heartbeat_s": topology.heartbeat_s,
    }
    if "parent" in names:
        config["io_memory"] = {vm.name: synthetic_memory(vm) for vm in topology.vms}
        config["ic"] = {
            "entry": INTEGRATION_ENTRY, "channels": channel_names("ic", incarnation),
            "vms": {vm.name: INTEGRATION_COMPONENTS for vm in topology.vms},
        }  # fmt: skip
    if "storvsp" in names:
        config["storvsp"] = {
            "entry": VSPS["storvsp"], "disks": disks(topology), "channels": channel_names("storvsp", incarnation),
            "controllers": devices(topology, hardware.STORAGE),
        }  # fmt: skip
    if "netvsp" in names:
        config["netvsp"] = {
            "entry": VSPS["netvsp"], **network(topology), "channels": channel_names("netvsp", incarnation),
        }  # fmt: skip
    if "management" in names:
        own = [[name, "vsp"] for name in VSPS if PLACEMENTS[topology.arch][name] == "*"]
        config["partitions"] = own + [[vm.name, "child"] for vm in topology.vms]
    for vm in topology.vms:
        if spec.name == worker_of(vm.name):
            config["worker"] = worker(topology, vm)
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
            "controller": disk.controller,
        }
        for vm in topology.vms
        for index, disk in enumerate(vm.disks)
    ]


def devices(topology: Topology, kind: str) -> dict[str, dict[str, Any]]:
    """The physical devices of one kind, by name: what each is, and its driver (``name``, ``version``, ``entry``,
    ``path``), or ``None``."""
    there = {**hardware.DEFAULT_HARDWARE, **topology.hardware}
    return {
        name: {**described, "driver": driver}
        for name, described, driver in hardware.bound(there, topology.drivers, topology.image)
        if hardware.kind_of(name) == kind
    }


def unsupported(topology: Topology) -> dict[str, str]:
    """The physical devices that no driver is known for: their models."""
    there = {**hardware.DEFAULT_HARDWARE, **topology.hardware}
    bound = hardware.bound(there, topology.drivers, topology.image)
    return {name: described["model"] for name, described, driver in bound if driver is None}


def network(topology: Topology) -> dict[str, Any]:
    """The network component's configuration."""
    return {
        "driver": DRIVERS["switch"],
        "switches": [switch.name for switch in topology.switches],
        "nics": devices(topology, hardware.NIC),
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


def worker(topology: Topology, vm: VmSpec) -> dict[str, Any]:
    """What a VM's worker is told of it, but for its partition and the VP that it stands in for."""
    (memory,) = io_memory(vm)
    return {
        "vm": vm.name,
        "memory": memory,
        "disks": [disk for disk in disks(topology) if disk["vm"] == vm.name],
        "controllers": devices(topology, hardware.STORAGE),
        "nics": [port for port in network(topology)["ports"] if port["vm"] == vm.name],
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
        "integration_services": vm.integration_services,
        "worker": "" if vm.integration_services else worker_of(vm.name),
        "components": INTEGRATION_COMPONENTS if vm.integration_services else (),
        "component_framework": (1, 0) if vm.vmbus_version in FIRST_GENERATION else None,
        "clock_drift_ppm": vm.clock_drift_ppm,
        "io_memory": io_memory(vm),
    }
