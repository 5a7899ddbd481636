"""What to build, as data: frozen records, the rules for names and sizes, and the defaults of a plain ``up``.

Anyone may import this. Nothing here opens a file or looks at the machine, so a topology can be made,
compared, packed with msgpack (:meth:`Topology.to_dict`) and sent to another process as it is.
The records are made by :mod:`vmbus_emu.topology.file`, which checks; who makes one by hand answers for it.

Units: sizes are bytes. A MAC is six bytes. An address is IPv4 in dotted form, inside 10.0.0.0/16.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vmbus_emu.hardware import DEFAULT_CONTROLLER, kind_of

ARCHES = ("microkernel", "monolithic", "disaggregated")
TRANSPORTS = ("zmq", "ring")
#: How an end of a ring waits for the other: sleep at once, spin within a budget that hits and misses move, always spin.
POLLS = ("never", "adaptive", "always")
DEFAULT_POLL = "adaptive"
#: Seconds of silence by which a process that hangs is replaced, by default, at least and at most; 0 is never.
DEFAULT_HANG_AFTER_S = 0.5
MIN_HANG_AFTER_S, MAX_HANG_AFTER_S = 0.05, 3600.0
#: Seconds between two heartbeats of a VM's integration services, by default (Hyper-V's), at least and at most.
DEFAULT_HEARTBEAT_S = 2.0
MIN_HEARTBEAT_S, MAX_HEARTBEAT_S = 0.02, 60.0
#: How much a VM's clock may be off, in parts per million.
MAX_DRIFT_PPM = 200_000.0
#: What a death may lead to (design: who keeps what, and what its death means).
POLICIES = ("restart", "standby", "halt", "reboot", "degraded", "recover")
#: Who can have a policy: the roles that ``ps`` shows and that can be started anew, and the one process of the monolith.
POLICY_ROLES = (
    "hypervisor", "monolith", "parent", "management", "storvsp", "netvsp", "child", "worker", "role",
)
#: Which of them fit a role, the default first (docs/architecture.md says why not the others).
POLICIES_OF: Mapping[str, tuple[str, ...]] = {
    "hypervisor": ("reboot", "recover", "halt", "degraded"),
    "monolith": ("reboot", "halt"),
    "parent": ("restart", "standby", "halt"),
    "management": ("restart", "halt"),
    "storvsp": ("restart", "standby", "halt"),
    "netvsp": ("restart", "standby", "halt"),
    "child": ("halt", "restart"),
    "worker": ("halt",),
    "role": ("restart", "halt"),
}
DEFAULT_POLICY = {role: policies[0] for role, policies in POLICIES_OF.items()}
#: Versions a child can be told to offer at most (protocol sheet 2.3), oldest first.
VMBUS_VERSIONS = ("2.4", "3.0", "4.0", "4.1", "5.0", "5.1", "5.2", "5.3", "6.0")

#: What the parent partition can run beside the VMs, if asked to.
ROLES = ("dns", "files")
#: Why a placement without a parent partition takes none.
NO_ROLES = "a monolithic hypervisor takes no roles: there is no parent partition, they would run in its own memory"
#: Cores that a role may use, at least and at most.
MIN_CPU_LIMIT, MAX_CPU_LIMIT = 0.01, 1024.0

#: Names of components; a VM that took one could not be told from it in ``ps`` or in a policy.
RESERVED_NAMES = frozenset(
    ("machine", "hypervisor", "parent", "management", "storvsp", "netvsp", "zygote", "hw", "monolith", "dns", "files")
)
NAME_RULE = "a lower-case letter, then up to 31 lower-case letters, digits or dashes"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
MAX_NAME = 32

DEFAULT_NAME = "default"
DEFAULT_VMS = 2
DEFAULT_SWITCH = "s0"
DEFAULT_MEMORY = 16 << 20
DEFAULT_DISK_BYTES = 64 << 20

SECTOR = 512
PAGE = 4096
MIN_MEMORY = 1 << 20
MAX_MEMORY = 1 << 40
MAX_DISK_BYTES = 1 << 60
#: The NIC's index is one byte of its generated MAC; SCSI targets of one controller are 64.
MAX_NICS = 256
MAX_DISKS = 64
#: The integration components of a VM with its services, in the order of their rings.
INTEGRATION_COMPONENTS = ("heartbeat", "shutdown", "timesync", "kvp", "vss")
#: Of a VM without integration services: two IDE channels of two drives, and as many adapters as Hyper-V allows.
MAX_IDE_DISKS = 4
MAX_LEGACY_NICS = 4
#: What the name of such a VM's worker ends with.
WORKER_SUFFIX = "-worker"
#: Addresses per /24 when .0 and .255 are skipped, in 256 of them.
MAX_VMS = 254 * 256

_ADDRESS = re.compile(r"10\.0(\.(0|[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5])){2}\Z")
_SIZE = re.compile(r"\s*([0-9]{1,20})\s*([A-Za-z]*)\s*\Z")
_UNITS = {
    "": 1, "b": 1,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "pib": 1 << 50,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "pb": 10**15,
}
_TIME = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(us|ms|s|m|min)\s*\Z")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0}
HEARTBEAT_RULE = 'give a time from "20ms" to "60s"'
_DRIFT = re.compile(r"\s*([+-]?[0-9]{1,6}(?:\.[0-9]{1,6})?)\s*ppm\s*\Z")
DRIFT_RULE = 'give a rate from "-200000ppm" to "200000ppm"'
HANG_AFTER_RULE = 'give a time from "50ms" to "60m", or "never"'
SIZE_RULE = 'a size is bytes or a text like "64MiB" or "1TiB" ("16MB" is decimal)'


def is_name(value: object) -> bool:
    """Whether ``value`` may name a machine, a VM, a switch or a role."""
    return isinstance(value, str) and _NAME.match(value) is not None


def parse_size(value: object) -> int | None:
    """Bytes of ``"64MiB"``, ``"16MB"``, ``"512"`` or ``512``; ``None`` if it is not a size."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if value >= 0 else None
    match = _SIZE.match(value) if isinstance(value, str) else None
    unit = _UNITS.get(match[2].lower()) if match else None
    return None if match is None or unit is None else int(match[1]) * unit


def parse_hang_after(value: object) -> float | None:
    """Seconds of a time such as ``"500ms"`` within the bounds; 0 of ``"never"``, ``"0"`` or ``0``; else ``None``."""
    if value in ("never", "0") or (type(value) is int and value == 0):
        return 0.0
    match = _TIME.match(value) if isinstance(value, str) else None
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    return seconds if MIN_HANG_AFTER_S <= seconds <= MAX_HANG_AFTER_S else None


def parse_cpu_limit(value: object) -> float | None:
    """Cores, if ``value`` can be a limit of them; else ``None``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if MIN_CPU_LIMIT <= value <= MAX_CPU_LIMIT else None
def parse_heartbeat(value: object) -> float | None:
    """Seconds of a time such as ``"2s"`` within the bounds; else ``None``."""
    match = _TIME.match(value) if isinstance(value, str) else None
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    return seconds if MIN_HEARTBEAT_S <= seconds <= MAX_HEARTBEAT_S else None


def parse_drift(value: object) -> float | None:
    """Parts per million of ``"50ppm"`` within the bounds; else ``None``."""
    match = _DRIFT.match(value) if isinstance(value, str) else None
    return float(match[1]) if match and abs(float(match[1])) <= MAX_DRIFT_PPM else None


def parse_mac(value: object) -> bytes | None:
    """Six bytes of ``"00:15:5d:00:00:01"``; ``None`` for anything else, a group address, or all zeros."""
    if not isinstance(value, str) or re.match(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}\Z", value) is None:
        return None
    mac = bytes.fromhex(value.replace(":", ""))
    return None if mac[0] & 1 or not any(mac) else mac


def format_mac(mac: bytes) -> str:
    return mac.hex(":")


def default_mac(vm_index: int, nic_index: int) -> bytes:
    """The generated MAC of a NIC: Hyper-V's prefix, the NIC's index, the VM's number. Indices count from 0."""
    return bytes((0x00, 0x15, 0x5D, nic_index)) + (vm_index + 1).to_bytes(2, "big")


def default_address(vm_index: int) -> str:
    """The generated address of a VM, counted from 0; no last octet is 0 or 255."""
    high, low = divmod(vm_index, 254)
    return f"10.0.{high}.{low + 1}"


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """One disk. ``path`` (absolute) only for ``file``. ``size_bytes`` 0: as large as the existing file;
    a ``file`` that does not exist is to be created sparse with ``size_bytes``."""

    kind: Literal["file", "ram", "null"]
    path: str | None = None
    size_bytes: int = 0
    read_only: bool = False
    #: The physical device that it hangs on.
    controller: str = DEFAULT_CONTROLLER


@dataclass(frozen=True, slots=True)
class NicSpec:
    switch: str
    mac: bytes


@dataclass(frozen=True, slots=True)
class VmSpec:
    """One VM. ``vmbus_version``: the newest version its VMBus driver may offer; ``None`` is the newest there is.
    ``clock_drift_ppm``: how much too fast its clock runs."""

    name: str
    memory_bytes: int
    integration_services: bool
    disks: tuple[DiskSpec, ...]
    nics: tuple[NicSpec, ...]
    address: str
    vmbus_version: str | None = None
    clock_drift_ppm: float = 0.0


@dataclass(frozen=True, slots=True)
class SwitchSpec:
    name: str


@dataclass(frozen=True, slots=True)
class RoleSpec:
    """One role. ``cpu_limit``: cores that it may use, ``None`` is no limit. ``port``: 0 is the kernel's choice."""

    cpu_limit: float | None = None
    port: int = 0


@dataclass(frozen=True, slots=True)
class Topology:
    """One machine. ``transport`` means nothing in the monolithic architecture, where a request is a call, and
    ``poll`` nothing on any transport but ``ring``. ``hang_after_s``: 0 is never.

    ``hardware``: physical devices besides the default ones, or in their place: ``model``, and of a NIC ``switch`` and
    ``cable`` (``machine.device`` at its far end, or ``None``). ``drivers``: those that are not chosen by the model
    alone, by device (:func:`vmbus_emu.hardware.bound`). ``image``: what a monolith boots from, or ``None``."""

    name: str
    arch: str
    transport: str
    vms: tuple[VmSpec, ...]
    switches: tuple[SwitchSpec, ...]
    policy: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[str, RoleSpec] = field(default_factory=dict)
    poll: str = DEFAULT_POLL
    hang_after_s: float = DEFAULT_HANG_AFTER_S
    drivers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    image: str | None = None
    heartbeat_s: float = DEFAULT_HEARTBEAT_S

    def to_dict(self) -> dict[str, Any]:
        """Only msgpack's types (MACs stay bytes); :meth:`from_dict` is the exact inverse, after msgpack too."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Topology:
        """The topology that :meth:`to_dict` wrote. Raises ``ValueError`` for anything else."""
        try:
            fields = dict(value)
            fields["vms"] = tuple(_vm(vm) for vm in fields["vms"])
            fields["switches"] = tuple(SwitchSpec(**switch) for switch in fields["switches"])
            fields["roles"] = {name: RoleSpec(**role) for name, role in fields["roles"].items()}
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a topology: {error}") from error


def _vm(value: Mapping[str, Any]) -> VmSpec:
    fields = dict(value)
    fields["disks"] = tuple(DiskSpec(**disk) for disk in fields["disks"])
    fields["nics"] = tuple(NicSpec(**nic) for nic in fields["nics"])
    return VmSpec(**fields)


def vm_to_dict(vm: VmSpec) -> dict[str, Any]:
    """Only msgpack's types; :func:`vm_from_dict` is the inverse."""
    return asdict(vm)


def vm_from_dict(value: object) -> VmSpec:
    """The VM that :func:`vm_to_dict` wrote. Raises ``ValueError`` for anything else: what nobody checked before."""
    try:
        vm = _vm(value)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a VM: {error}") from error
    most_disks, most_nics = (
        (MAX_DISKS, MAX_NICS) if vm.integration_services is True else (MAX_IDE_DISKS, MAX_LEGACY_NICS)
    )
    for what, right in (
        ("name", is_name(vm.name)),
        ("memory", type(vm.memory_bytes) is int and MIN_MEMORY <= vm.memory_bytes <= MAX_MEMORY),
        ("integration_services", type(vm.integration_services) is bool),
        ("address", type(vm.address) is str and _ADDRESS.match(vm.address) is not None),
        ("vmbus_version", vm.vmbus_version is None or vm.vmbus_version in VMBUS_VERSIONS),
        ("disk", len(vm.disks) <= most_disks and all(map(_is_disk, vm.disks))),
        ("nic", len(vm.nics) <= most_nics and all(map(_is_nic, vm.nics))),
    ):
        if not right:
            raise ValueError(f"not a VM: its {what} is none")
    return vm


def _is_disk(disk: DiskSpec) -> bool:
    size_is_right = type(disk.size_bytes) is int and disk.size_bytes % SECTOR == 0 and disk.size_bytes <= MAX_DISK_BYTES
    if disk.kind == "file":
        has_medium = type(disk.path) is str and disk.path.startswith("/") and "\0" not in disk.path
    else:
        has_medium = disk.kind in ("ram", "null") and size_is_right and disk.size_bytes > 0
    hangs = type(disk.controller) is str and kind_of(disk.controller) == "storage"
    return has_medium and hangs and size_is_right and disk.size_bytes >= 0 and type(disk.read_only) is bool


def _is_nic(nic: NicSpec) -> bool:
    return type(nic.switch) is str and type(nic.mac) is bytes and len(nic.mac) == 6 and not nic.mac[0] & 1


class TopologyErrors(Exception):
    """Everything that is wrong with a topology or with flags: ``lines``, each ``file:key: what; what to try``."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
