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
    "worker": ("halt", "restart"),
    "role": ("restart", "halt"),
}
DEFAULT_POLICY = {role: policies[0] for role, policies in POLICIES_OF.items()}
#: Versions a child can be told to offer at most (protocol sheet 2.3), oldest first.
VMBUS_VERSIONS = ("2.4", "3.0", "4.0", "4.1", "5.0", "5.1", "5.2", "5.3", "6.0")

#: Names of components; a VM that took one could not be told from it in ``ps`` or in a policy.
RESERVED_NAMES = frozenset(
    ("machine", "hypervisor", "parent", "management", "storvsp", "netvsp", "zygote", "hw", "monolith")
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
#: Addresses per /24 when .0 and .255 are skipped, in 256 of them.
MAX_VMS = 254 * 256

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
class Topology:
    """One machine. ``transport`` means nothing in the monolithic architecture, where a request is a call, and
    ``poll`` nothing on any transport but ``ring``. ``hang_after_s``: 0 is never."""

    name: str
    arch: str
    transport: str
    vms: tuple[VmSpec, ...]
    switches: tuple[SwitchSpec, ...]
    policy: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[str, Any] = field(default_factory=dict)
    poll: str = DEFAULT_POLL
    hang_after_s: float = DEFAULT_HANG_AFTER_S
    heartbeat_s: float = DEFAULT_HEARTBEAT_S

    def to_dict(self) -> dict[str, Any]:
        """Only msgpack's types (MACs stay bytes); :meth:`from_dict` is the exact inverse, after msgpack too."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Topology:
        """The topology that :meth:`to_dict` wrote. Raises ``ValueError`` for anything else."""
        try:
            fields = dict(value)
            fields["vms"] = tuple(_vm_from_dict(vm) for vm in fields["vms"])
            fields["switches"] = tuple(SwitchSpec(**switch) for switch in fields["switches"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a topology: {error}") from error


def _vm_from_dict(value: Mapping[str, Any]) -> VmSpec:
    fields = dict(value)
    fields["disks"] = tuple(DiskSpec(**disk) for disk in fields["disks"])
    fields["nics"] = tuple(NicSpec(**nic) for nic in fields["nics"])
    return VmSpec(**fields)


class TopologyErrors(Exception):
    """Everything that is wrong with a topology or with flags: ``lines``, each ``file:key: what; what to try``."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
