"""A VM for a machine that runs: described like one in a topology file, and checked against those that are there.

Its MAC and its address follow from its number, as those of a topology's VMs do; the lowest that is free.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vmbus_emu.topology import data as data
from vmbus_emu.topology.data import Topology, TopologyErrors, VmSpec
from vmbus_emu.topology.file import Overrides, Reader
from vmbus_emu.topology.limits import check_limits
from vmbus_emu.topology.table import Table


def newcomer(topology: Topology, document: Mapping[str, Any], files: Sequence[str] = ()) -> VmSpec:
    """The VM in ``document``, a table like a topology file's ``[[vm]]``, that can join those of ``topology``.

    ``files``: image files for its disks. Relative paths start from the current folder. Raises
    :class:`TopologyErrors`.
    """
    reader = _Reader(topology)
    vm = reader.join(document, list(files))
    errors = reader.errors or check_limits(replace(topology, vms=(*topology.vms, vm)))
    if errors:
        raise TopologyErrors(errors)
    return vm


class _Reader(Reader):
    """Reads one VM, and knows what the others have."""

    def __init__(self, topology: Topology) -> None:
        super().__init__("flags", os.curdir, Overrides())
        self._topology = topology
        for vm in topology.vms:
            self._addresses[vm.address] = vm.name
            self._macs |= {nic.mac: f"{vm.name}.nic{index}" for index, nic in enumerate(vm.nics)}
            for index, disk in enumerate(vm.disks):
                self._disk_reader.note(f"{vm.name}.disk{index}", disk)

    def join(self, document: Mapping[str, Any], files: list[str]) -> VmSpec:
        top = Table(self.error, "flags:", {}, None)
        table = Table(self.error, "flags:vm", document, None)
        name = table.text("name", data.is_name, data.NAME_RULE)
        if name in data.RESERVED_NAMES:
            table.error("name", f'"{name}" is the name of a component', "choose another")
        there = [vm.name for vm in self._topology.vms]
        if name in there:
            table.error("name", f'there is a VM "{name}" already', "choose another")
        for vm in there:
            if vm + data.WORKER_SUFFIX == name or vm == f"{name}{data.WORKER_SUFFIX}":
                table.error("name", f'"{name}" and "{vm}" would be a VM and its worker', "choose another")
        switches = [switch.name for switch in self._topology.switches]
        return self._vm(top, self._index(), document, name, files, switches)

    def _index(self) -> int:
        """The number of the first VM that the default names and addresses of nobody are taken from."""
        for index in range(data.MAX_VMS):
            taken = any(data.default_mac(index, nic) in self._macs for nic in range(data.MAX_NICS))
            if not taken and data.default_address(index) not in self._addresses:
                return index
        return data.MAX_VMS - 1
