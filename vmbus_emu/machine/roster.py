"""Which VMs the machine has, and all that follows from that: the one place where a VM comes and goes at run time.

What the topology gave at power-on is kept here in mappings that others hold, too, and only read. A VM that is admitted
or struck changes them all at once, so nobody has a half of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from vmbus_emu import placement
from vmbus_emu.iomemory import synthetic_memory
from vmbus_emu.lifeline import Message
from vmbus_emu.machine.intake import Refused
from vmbus_emu.machine.media import MediaError, Medium, open_media
from vmbus_emu.placement import ComponentSpec, ProcessSpec
from vmbus_emu.topology import data as data
from vmbus_emu.topology.data import Topology, VmSpec


class Roster:
    """``topology`` and ``media`` are those at power-on; both are kept up to date. ``changed(topology)`` is called with
    each that follows, when all mappings have followed."""

    def __init__(
        self, topology: Topology, media: dict[str, Medium], changed: Callable[[Topology], Any] = lambda topology: None
    ) -> None:
        self.topology = topology
        self.media = media
        self._changed = changed
        #: By process.
        self.specs: dict[str, ProcessSpec] = {}
        #: The components of each process, and the process of each component.
        self.names: dict[str, frozenset[str]] = {}
        self.hosts: dict[str, str] = {}
        #: By name, in the order in which they came; and the process that carries each.
        self.vms: dict[str, VmSpec] = {}
        self.vm_hosts: dict[str, str] = {}
        self._follow()

    def _follow(self) -> None:
        """Bring every mapping up to what the topology says, in place."""
        specs = {spec.name: spec for spec in placement.processes(self.topology)}
        hosts = {one.name: spec.name for spec in specs.values() for one in spec.components}
        vms = {vm.name: vm for vm in self.topology.vms}
        _become(self.specs, specs)
        _become(self.names, {name: frozenset(one.name for one in spec.components) for name, spec in specs.items()})
        _become(self.hosts, hosts)
        _become(self.vms, vms)
        _become(self.vm_hosts, {vm: hosts[vm] for vm in vms})

    def become(self, topology: Topology) -> None:
        """From now on this is a machine of ``topology``."""
        self.topology = topology
        self._follow()
        self._changed(topology)

    @property
    def components(self) -> dict[str, ComponentSpec]:
        """By name."""
        return {one.name: one for spec in self.specs.values() for one in spec.components}

    def admit(self, value: object) -> VmSpec:
        """Take the VM that a client describes (:func:`vmbus_emu.topology.data.vm_to_dict`), and open its media.

        Raises :class:`Refused`; then nothing has changed.
        """
        vm = self._checked(value)
        try:
            media = open_media(vm)
        except MediaError as error:
            what, _, hint = str(error).partition("; ")
            raise Refused(what, hint) from None
        self.media.update(media)
        self.become(replace(self.topology, vms=(*self.topology.vms, vm)))
        return vm

    def _checked(self, value: object) -> VmSpec:
        """The client looked at it already, but another one may have been faster, and a client can say anything."""
        try:
            vm = data.vm_from_dict(value)
        except ValueError as error:
            raise Refused(str(error), "vmbus-emu vm add describes one that is right") from None
        if {vm.name, placement.worker_of(vm.name)} & {*self.hosts, *data.RESERVED_NAMES}:
            raise Refused(f'"{vm.name}" is the name of a component already', "vmbus-emu ps lists them; choose another")
        switches = [switch.name for switch in self.topology.switches]
        for nic in vm.nics:
            if nic.switch not in switches:
                raise Refused(f"there is no switch {nic.switch!r}", f"there are {', '.join(switches) or 'none'}")
        for other in self.topology.vms:
            taken = {nic.mac for nic in other.nics} & {nic.mac for nic in vm.nics}
            if other.address == vm.address or taken:
                raise Refused(f"{other.name} has that address already", "try again: another one is chosen then")
        return vm

    def strike(self, name: str) -> None:
        """The VM is no more: close its media, and forget it."""
        for index in range(len(self.vms[name].disks)):
            medium = self.media.pop(f"{name}.disk{index}")
            if medium.fd >= 0:
                os.close(medium.fd)
        self.become(replace(self.topology, vms=tuple(vm for vm in self.topology.vms if vm.name != name)))

    def arrival(self, vm: VmSpec, spec: ProcessSpec) -> Message:
        """What a process with host components is told of a VM that came while it ran."""
        carried = {one.role for one in spec.components}
        told: Message = {"t": "vm_added", "vm": vm.name}
        if "storvsp" in carried:
            told["disks"] = [disk for disk in placement.disks(self.topology) if disk["vm"] == vm.name]
        if "netvsp" in carried:
            told["ports"] = [port for port in placement.network(self.topology)["ports"] if port["vm"] == vm.name]
        if "parent" in carried:
            told |= {"io_memory": synthetic_memory(vm), "components": data.INTEGRATION_COMPONENTS}
        if vm.name in self.names[spec.name]:
            told["guest"] = placement.guest(self.topology, vm)
        return told

    def addresses(self) -> dict[str, str]:
        """What every guest knows of the others."""
        return {vm.name: vm.address for vm in self.topology.vms}


def _become(mapping: dict[str, Any], wanted: Mapping[str, Any]) -> None:
    """Make ``mapping`` equal to ``wanted`` in place, in its order; others hold it."""
    mapping.clear()
    mapping.update(wanted)
