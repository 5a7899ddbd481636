"""What a running machine's processes are made of: for ``vmbus-emu audit``. A report is data (docs/isolation.md).

A process says itself which code it has loaded; everything else is read in /proc. The *trusted* code is that whose
failure takes every VM along: what a bug in it costs follows from the process it is in and from that process's policy.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vmbus_emu import placement, topology
from vmbus_emu.client.codelines import code_lines
from vmbus_emu.client.procfiles import Seen, Snapshot
from vmbus_emu.evidence import OF_DRIVERS
from vmbus_emu.machine.policy import policy_of
from vmbus_emu.topology.data import Topology

if TYPE_CHECKING:
    from vmbus_emu.client.door import Door

SCHEMA = 1
ARCHES = ("microkernel", "disaggregated", "monolithic")
#: Our packages; every other file is a library's, or of a driver that another package brought.
PACKAGES = ("vmbus_emu", "partitions", "drivers", "bench")
DRIVERS = "drivers"
#: The part of drivers that other packages brought.
OTHER_DRIVERS = "other drivers"
#: The machine's own code.
BOX = "vmbus_emu.machine"
#: Packages that are counted apart, the longest names first.
_PARTS = (
    "vmbus_emu.hypervisor", BOX, "vmbus_emu.protocol", "vmbus_emu.topology", "vmbus_emu.vmbus", "partitions.child",
    "partitions.parent", "vmbus_emu", "partitions", "drivers", "bench",
)  # fmt: skip
#: Roles of processes that run the machine's own code.
_BOX_ROLES = ("machine", "front")
#: Policies under which a dead hypervisor takes nobody along.
_SPARES_ALL = ("recover", "degraded")

Files = Mapping[str, Sequence[str]]
Report = dict[str, Any]


def audit(door: Door) -> Report:
    """Everything about one machine. Raises :class:`~vmbus_emu.client.errors.MachineError`."""
    reply = door.ask("audit")
    snapshot = Snapshot({row["name"]: row["pid"] for row in reply["processes"]})
    files = {row["name"]: None if row["loaded"] is None else reply["files"][row["loaded"]]
             for row in reply["processes"]}  # fmt: skip
    sharing = snapshot.sharing()
    info = reply["info"]
    return {
        "schema": SCHEMA, "name": info["name"], "arch": info["arch"], "transport": info["transport"],
        "state": info["state"], "sees_peers": snapshot.knows_peers,
        "processes": [_process(row, files[row["name"]], snapshot, sharing) for row in reply["processes"]],
        "trusted": trusted(Topology.from_dict(info["topology"]), files),
    }  # fmt: skip


def _process(row: Mapping[str, Any], files: Files | None, snapshot: Snapshot, sharing: Mapping[Any, Any]) -> Report:
    name = row["name"]
    seen = snapshot.processes[name]
    granted = seen.privileges
    return {
        **{key: row[key] for key in ("name", "role", "pid", "components")}, "answered": files is not None,
        "code": None if files is None else code([files], row["role"] not in _BOX_ROLES),
        "memory": _memory(name, seen, sharing),
        "privileges": None if granted is None else granted._asdict(),
        "reaches": _reaches(name, seen, snapshot),
    }  # fmt: skip


# -- code -------------------------------------------------------------------------------------------------------------


def code(loaded: Iterable[Files], forked: bool = True) -> Report:
    """Of one or several processes: the modules they have loaded, each counted once, with lines of code. Drivers of
    other packages are counted with ours.

    ``inherited``: of our ``lines``, those of the machine's own code, which came with a fork of the machine.
    ``forked``: whether that is all they have it for.
    """
    paths = {(folder, path) for files in loaded for folder, some in files.items() for path in some}
    modules: dict[str, str] = {}
    brought: set[str] = set()
    libraries: list[str] = []
    for folder, path in paths:
        module = module_name(path)
        if folder.startswith(OF_DRIVERS):
            modules[module] = os.path.join(folder.removeprefix(OF_DRIVERS), path)
            brought.add(module)
        elif module.partition(".")[0] in PACKAGES:
            modules[module] = os.path.join(folder, path)
        else:
            libraries.append(os.path.join(folder, path))
    parts: defaultdict[str, int] = defaultdict(int)
    for module, path in modules.items():
        part = OTHER_DRIVERS if module in brought else next(part for part in _PARTS if below(module, part))
        parts[part] += code_lines(path) or 0
    drivers = sorted(brought | {module for module in modules if below(module, DRIVERS) and module != DRIVERS})
    counted = [lines for lines in map(code_lines, libraries) if lines is not None]
    return {
        "ours": {"modules": len(modules), "lines": sum(parts.values()), "parts": dict(sorted(parts.items())),
                 "inherited": parts.get(BOX, 0) if forked else 0},
        "drivers": {"modules": drivers, "lines": parts.get(DRIVERS, 0) + parts.get(OTHER_DRIVERS, 0)},
        "libraries": {"modules": len(counted), "lines": sum(counted), "compiled": len(libraries) - len(counted)},
        "modules": sorted(modules),
    }  # fmt: skip


def module_name(path: str) -> str:
    """``vmbus_emu.client`` of ``vmbus_emu/client/__init__.py``."""
    stem = path.removesuffix(".py").removesuffix("/__init__") if path.endswith(".py") else path.partition(".")[0]
    return stem.replace("/", ".")


def below(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


# -- memory and ways --------------------------------------------------------------------------------------------------


def _memory(name: str, seen: Seen, sharing: Mapping[Any, Any]) -> Report | None:
    """``copy_on_write_bytes``: pages that other processes have too, until somebody writes and so gets its own."""
    if seen.mapped is None:
        return None
    shared = [
        {"name": _memory_name(mine[name].path), "bytes": mine[name].end,
         "access": mine[name].access[:2].replace("-", ""), "with": sorted(set(mine) - {name})}
        for mine in sharing.values() if name in mine
    ]  # fmt: skip
    return {
        "private_bytes": sum(one.private for one in seen.mapped if not one.is_shared),
        "copy_on_write_bytes": sum(one.shared for one in seen.mapped if not one.is_shared),
        "shared": sorted(shared, key=lambda one: (one["name"], one["with"])),
    }


def _memory_name(path: str) -> str:
    return path.removeprefix("/memfd:") or "anonymous"


def _reaches(name: str, seen: Seen, snapshot: Snapshot) -> list[Report] | None:
    """What it could write to or read from with what it has open, each once: ``kind``, ``what``, ``to`` whom."""
    if seen.descriptors is None:
        return None
    found: set[tuple[str, str, tuple[str, ...]]] = set()
    for one in seen.descriptors:
        what = snapshot.path(one) if one.kind == "unix" else one.name
        found.add((one.kind, what, tuple(snapshot.other_ends(name, one))))
    return [{"kind": kind, "what": what, "to": list(to)} for kind, what, to in sorted(found)]


# -- the code that must not fail --------------------------------------------------------------------------------------


def trusted(wanted: Topology, files: Mapping[str, Files | None]) -> Report:
    """What a failure costs, by process: ``ends_every_vm``, ``interrupts_every_vm``, and the ``box`` itself. Each has
    its ``processes``, ``why``, and their ``code`` (``None`` if one of them did not answer)."""
    specs = {spec.name: spec for spec in placement.processes(wanted)}
    hypervisor = specs["hypervisor"]
    policy = policy_of(wanted, hypervisor)
    ends = [] if policy in _SPARES_ALL else ["hypervisor"]
    serving = [name for name, spec in specs.items()
               if name != "hypervisor" and any(one.role in ("parent", *placement.VSPS) for one in spec.components)]
    return {
        "ends_every_vm": _share(ends, f"policy {policy}", files),
        "interrupts_every_vm": _share(serving, "every channel, or all of one kind, ends in it", files),
        "box": _share(["machine"], "stands for the hardware, in every placement", files),
        "all": _share([name for name, loaded in files.items() if loaded is not None], "every process", files),
    }  # fmt: skip


def _share(names: Sequence[str], why: str, files: Mapping[str, Files | None]) -> Report:
    loaded = [files.get(name) for name in names]
    known = [one for one in loaded if one is not None]
    whole = code(known, "machine" not in names) if len(known) == len(loaded) else None
    return {"processes": list(names), "why": why, "code": whole}


# -- the placements, side by side -------------------------------------------------------------------------------------


def compare(transport: str, tell: Callable[[Mapping[str, Any]], Any]) -> Report:
    """A machine in each placement, one after the other, each audited and ended; ``tell`` hears of each. Raises
    :class:`~vmbus_emu.client.errors.MachineError`."""
    from vmbus_emu.client.temporary import refuse_if_running, temporary

    topologies = [machine(arch, transport) for arch in ARCHES]
    for wanted in topologies:
        refuse_if_running(wanted.name, "the comparison")
    machines: dict[str, Report] = {}
    for done, wanted in enumerate(topologies):
        tell({"component": wanted.arch, "state": "starts", "done": done, "total": len(ARCHES)})
        with temporary(wanted) as one:
            for vm in wanted.vms:
                one.vm(vm.name).disk.read(0, wanted.vms[0].disks[0].size_bytes)  # what is loaded on first use has been
                one.exec(vm.name, ["ping", "-c", "1", vm.name])
            machines[wanted.arch] = one.audit()
    return {"schema": SCHEMA, "transport": transport, "placements": list(ARCHES), "machines": machines}


def machine(arch: str, transport: str) -> Topology:
    """What is audited for a comparison: two VMs with a disk and a NIC each, in placement ``arch``."""
    document: dict[str, Any] = {
        "name": f"audit-{arch}", "arch": arch, "switch": [{"name": "s0"}],
        "vm": [{"name": vm, "disk": [{"ram": "4MiB"}], "nic": [{"switch": "s0"}]} for vm in ("vm1", "vm2")],
    }  # fmt: skip
    return topology.parse(document if arch == "monolithic" else {**document, "transport": transport})
