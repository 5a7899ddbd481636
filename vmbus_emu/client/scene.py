"""What there is on a machine for a run with kills: its processes and their policies, its VMs, the disks to load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vmbus_emu import placement
from vmbus_emu.client.aftermath import Device, Expected
from vmbus_emu.client.observer import EMULATED_SPAN, SPAN, Target
from vmbus_emu.machine.policy import needed_by, policy_of
from vmbus_emu.topology.data import DEFAULT_POLICY, Topology, VmSpec

Row = Mapping[str, Any]
#: States in which a component's process is there and serves.
ALIVE = ("ready", "degraded")


class Scene:
    """A machine's topology as a run needs it."""

    def __init__(self, info: Mapping[str, Any]) -> None:
        self.topology = Topology.from_dict(info["topology"])
        self.name: str = info["name"]
        self.arch: str = info["arch"]
        self.transport: str = info["transport"]
        self.vms = {vm.name: vm for vm in self.topology.vms}
        self._specs = {spec.name: spec for spec in placement.processes(self.topology)}
        self.components = {one.name: one.role for spec in self._specs.values() for one in spec.components}
        #: VMs without integration services.
        self.emulated = [vm.name for vm in self.topology.vms if not vm.integration_services]
        workers = {vm: placement.worker_of(vm) for vm in self.emulated}
        self._ends_with = {**workers, **{worker: vm for vm, worker in workers.items()}}

    def describe(self) -> dict[str, Any]:
        """For a run file."""
        policy = {
            "monolith" if self.arch == "monolithic" else spec.role: policy_of(self.topology, spec)
            for spec in self._specs.values()
        }
        if self.topology.roles:
            policy["role"] = self.topology.policy.get("role", DEFAULT_POLICY["role"])
        return {"name": self.name, "arch": self.arch, "transport": self.transport, "policy": policy,
                "emulated": self.emulated}  # fmt: skip

    def expected(self, killed: Mapping[str, Any], rows: Mapping[str, Row]) -> Expected:
        """What a kill should lead to, by what ``rows`` of ``ps`` said before it."""
        host = killed["host"]
        spec = self._specs.get(host)
        if rows.get(host, {}).get("role") == "role":
            return Expected(host, killed["pid"], self.topology.policy.get("role", DEFAULT_POLICY["role"]), ())
        threaded = killed["component"] in self.vms and host != killed["component"]
        if spec is None or threaded:  # a zygote or a spare, whose replacement nobody sees; a VM of the monolith
            return Expected(host, killed["pid"], "halt", ())
        other = self._ends_with.get(host, "")
        successor = other if spec.role == "worker" else ""      # it comes back with its VM, or not
        policy = policy_of(self.topology, self._specs[successor or host])
        if any(rows[name]["state"] not in ALIVE for name in needed_by(spec.role)):
            policy = "halt"
        # A VM without integration services has no channels to lose; its worker takes it along.
        carried = {one.name for one in spec.components}
        served = [vsp for vsp in placement.VSPS if vsp in carried or "parent" in carried]
        there = [vsp for vsp in served if rows[vsp]["state"] in ALIVE]
        return Expected(host, killed["pid"], policy, [
            device for vm in self.vms.values() if vm.integration_services and rows[vm.name]["state"] in ALIVE
            for device in _devices(vm, there)
        ], [other] if other and rows[other]["state"] in ALIVE else (), successor)  # fmt: skip

    @staticmethod
    def can_start_vms(rows: Mapping[str, Row]) -> bool:
        """Whether ``rows`` of ``ps`` show everybody alive who is needed for that."""
        return all(rows[name]["state"] in ALIVE for name in needed_by("child"))

    def target(self, vm: str, lsblk: bytes, overwrite: bool | None, alive: Iterable[str]) -> Target:
        """What to look at in ``vm``. ``lsblk``: what that printed there. ``overwrite``: write on RAM disks, and if
        true on image files; ``None``: write nothing."""
        emulated = vm in self.emulated
        most = EMULATED_SPAN if emulated else SPAN
        neighbour = self._neighbour(vm, alive)
        disks = list(_listed(self.vms[vm], lsblk))
        for name, size, read_only, kind in disks if overwrite is not None else ():
            if not read_only and (kind == "ram" or (kind == "file" and overwrite)):
                mix = "flush" if kind == "file" else "mixed"
                return Target(vm, name, min(size, most), mix, neighbour, emulated)
        for name, size, _, _ in disks:
            return Target(vm, name, min(size, most), "read", neighbour, emulated)
        return Target(vm, "", 0, "read", neighbour, emulated)

    def _neighbour(self, vm: str, alive: Iterable[str]) -> str:
        """The next VM after this one on the same switch: one with integration services, if there is one, for what is
        seen of a network is both ends' doing."""
        names = list(self.vms)
        own = self.vms[vm].nics
        at = names.index(vm) + 1
        there = [
            other for other in (*names[at:], *names[: at - 1])
            if other in alive and own and (nics := self.vms[other].nics) and nics[0].switch == own[0].switch
        ]  # fmt: skip
        return min(there, key=lambda other: other in self.emulated, default="")


def _devices(vm: VmSpec, vsps: Iterable[str]) -> list[Device]:
    counts = {"storvsp": ("disk", len(vm.disks)), "netvsp": ("nic", len(vm.nics))}
    return [(vm.name, f"{kind}{index}") for vsp in vsps for kind, count in (counts[vsp],) for index in range(count)]


def _listed(vm: VmSpec, lsblk: bytes) -> Iterable[tuple[str, int, bool, str]]:
    """Name, bytes, whether it is read-only, and the kind of each disk that the guest has."""
    for line in lsblk.decode(errors="replace").splitlines()[1:]:
        name, size, read_only, *_ = line.split()
        index = name.removeprefix("disk")
        if index.isdecimal() and int(index) < len(vm.disks):
            yield name, int(size), read_only != "0", vm.disks[int(index)].kind
