"""Workers of VMs without integration services: each lives and dies with its VM, and its NICs hang on cables.

The worker is started before its VM and is ready before that is, so no access of the guest finds nobody. When one of the
two dies, so does the other: the devices' state is lost with the worker, and of no use without the VM.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from vmbus_emu import placement
from vmbus_emu.machine.supervisor import Process, Supervisor
from vmbus_emu.placement import ProcessSpec
from vmbus_emu.topology.data import Topology


def partner(specs: Mapping[str, ProcessSpec], name: str) -> str | None:
    """The other one of a VM and its worker; ``None`` if that is no such pair."""
    for spec in specs.values():
        if spec.role == "child" and name in (spec.name, placement.worker_of(spec.name)):
            other = placement.worker_of(name) if name == spec.name else spec.name
            return other if other in specs else None
    return None


class Cables:
    """Connects workers' adapters with the process that has the switches."""

    def __init__(self, topology: Topology, specs: Mapping[str, ProcessSpec], supervisor: Supervisor) -> None:
        self.topology = topology
        self._specs = specs
        self._supervisor = supervisor

    def started(self, process: Process) -> None:
        """``process`` was told to start: what hangs between it and others is made anew."""
        spec = self._specs[process.name]
        if spec.role == "worker":
            self._connect(process.name)
        elif any(component.role == "netvsp" for component in spec.components):
            for other in self._specs.values():
                if other.role == "worker":
                    self._connect(other.name)

    def _connect(self, worker: str) -> None:
        running = self._supervisor.running
        host = next(s.name for s in self._specs.values() for c in s.components if c.role == "netvsp")
        if worker not in running or host not in running:
            return
        for vm in self.topology.vms:
            for index in range(len(vm.nics) if placement.worker_of(vm.name) == worker else 0):
                ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                for name, end in zip((worker, host), ends, strict=True):
                    message = {"t": "cable", "vm": vm.name, "device": f"nic{index}"}
                    running[name].line.send(message, [end.fileno()])
                    end.close()
