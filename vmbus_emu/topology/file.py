"""From a TOML document and flags to a :class:`Topology`, with everything that is wrong at once.

:mod:`vmbus_emu.topology` calls this; nobody else needs to. The document is what ``tomllib`` returned (or any
mapping of that shape) and may hold anything: a wrong value is a line in :attr:`Reader.errors` and a default
in its place, so that one run finds all faults. The only look at the outside is ``stat`` of the disk images.

A key's place in a line is its path: ``arch``, ``vm1.memory``, ``vm1.disk0.file``; a VM without a usable name
is ``vm[2]``, counted from 0. Values from the command line stand as ``flags:--disk``.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vmbus_emu import hardware
from vmbus_emu.topology import data as data
from vmbus_emu.topology.data import DiskSpec, NicSpec, SwitchSpec, Topology, VmSpec
from vmbus_emu.topology.disk import DiskReader
from vmbus_emu.topology.role import read_roles
from vmbus_emu.topology.table import Table, describe, suggest

TOP_KEYS = (
    "name", "arch", "transport", "poll", "hang_after", "heartbeat", "policy", "hardware", "vm", "switch", "role",
)
VM_KEYS = ("name", "memory", "integration_services", "address", "vmbus_version", "clock_drift", "disk", "nic")
NIC_KEYS = ("switch", "mac")
SWITCH_KEYS = ("name",)
HARDWARE_KEYS = {hardware.STORAGE: ("model",), hardware.NIC: ("model", "switch", "cable")}


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says; it wins over the file. Values are as typed: they are checked with the rest.

    ``disks``: ``FILE`` (for the first VM) or ``VM=FILE``; a VM named here has these disks and no others.
    ``policies``: ``ROLE=POLICY``. ``vms``: that many VMs, the file's first, then default ones.
    """

    name: str | None = None
    arch: str | None = None
    transport: str | None = None
    vms: int | str | None = None
    disks: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    poll: str | None = None
    hang_after: str | None = None
    #: VMs that are to have no integration services.
    no_services: tuple[str, ...] = ()
    image: str | None = None


class Reader:
    """Reads one document, once. ``source``: the file as the user gave it; ``folder``: where relative paths start."""

    def __init__(self, source: str, folder: str, flags: Overrides) -> None:
        self.errors: list[str] = []
        self._source = source
        self._flags = flags
        self._macs: dict[bytes, str] = {}
        self._addresses: dict[str, str] = {}
        self._disk_reader = DiskReader(self.error, folder)

    def error(self, place: str, what: str, hint: str) -> None:
        """Note one fault; keys and values of the document cannot break the line."""
        line = f"{place}: {what}; {hint}"
        self.errors.append("".join(character if character.isprintable() else "?" for character in line))

    def read(self, document: Mapping[str, Any]) -> Topology:
        """The topology; of use only if :attr:`errors` stays empty."""
        top = Table(self.error, f"{self._source}:", document, TOP_KEYS)
        flags = {
            "--name": self._flags.name, "--arch": self._flags.arch, "--transport": self._flags.transport,
            "--poll": self._flags.poll, "--hang-after": self._flags.hang_after,
        }
        flagged = Table(self.error, "flags:", flags, None)

        def table(key: str) -> tuple[Table, str]:
            flag = "--" + key.replace("_", "-")
            return (top, key) if flags[flag] is None else (flagged, flag)

        name = data.DEFAULT_NAME
        holder, key = table("name")
        if key in holder:
            name = holder.text(key, data.is_name, data.NAME_RULE) or name
        holder, key = table("arch")
        arch = holder.choice(key, data.ARCHES, data.ARCHES[0])
        holder, key = table("transport")
        transport = holder.choice(key, data.TRANSPORTS, data.TRANSPORTS[0])
        understood = holder.values.get(key, transport) == transport
        if transport == "ring" and arch != "monolithic" and host_machine() != "x86_64":
            holder.error(key, "the ring needs a machine with total store order (x86-64)", "use zmq")
        holder, key = table("poll")
        poll = holder.choice(key, data.POLLS, data.DEFAULT_POLL)
        # A file for the ring may be tried with another transport by flag: then its poll says nothing.
        overridden = holder is top and self._flags.transport is not None
        if key in holder and understood and transport == "zmq" and arch != "monolithic" and not overridden:
            holder.error(key, "only transport ring polls", "add --transport ring")
        holder, key = table("hang_after")
        hang_after_s = holder.hang_after(key) if key in holder else data.DEFAULT_HANG_AFTER_S
        switches = self._switches(top)
        devices = self._hardware(top, name, [switch.name for switch in switches])
        image = self._flags.image
        if image is not None and arch != "monolithic":
            self.error("flags:--image", "only a monolith boots from an image", "add --arch monolithic")
        return Topology(
            name, arch, transport, self._vms(top, switches), switches, self._policy(top),
            devices, read_roles(self.error, top, arch), poll, hang_after_s,
            heartbeat_s=top.parsed("heartbeat", data.parse_heartbeat, data.HEARTBEAT_RULE, data.DEFAULT_HEARTBEAT_S),
            image=None if image is None else os.path.abspath(image),
        )

    def _hardware(self, top: Table, machine: str, switches: list[str]) -> dict[str, Any]:
        """Physical devices besides the default ones; disks may hang on its controllers from here on."""
        outer = Table(self.error, top.at("hardware"), top.values.get("hardware", {}), None)
        devices: dict[str, Any] = {}
        for name, value in outer.values.items():
            kind = hardware.kind_of(name)
            if kind is None:
                outer.error(str(name), "is no device", hardware.DEVICE_RULE)
                continue
            table = Table(self.error, outer.at(name), value, HARDWARE_KEYS[kind])
            device: dict[str, Any] = {"model": table.text("model", hardware.is_model, hardware.MODEL_RULE) or ""}
            if kind == hardware.NIC:
                device |= self._nic_hardware(table, machine, switches)
            devices[name] = device
        controllers = [name for name in {**hardware.DEFAULT_HARDWARE, **devices} if hardware.kind_of(name) == "storage"]
        self._disk_reader.controllers = tuple(controllers)
        return devices

    def _nic_hardware(self, table: Table, name: str, switches: list[str]) -> dict[str, Any]:
        cable = None
        if "cable" in table:
            rule = 'the machine and the NIC at its far end, like "other.nic0"'
            cable = table.text("cable", _is_far_end, rule)
            if cable is not None and cable.partition(".")[0] == name:
                table.error("cable", "leads back to this machine", f"give {rule}")
        switch = switches[0] if switches else ""
        if "switch" in table or (cable is not None and not switches):
            switch = table.choice("switch", switches, switch)
        return {"switch": switch, "cable": cable}

    def _switches(self, top: Table) -> tuple[SwitchSpec, ...]:
        if "switch" not in top:
            return (SwitchSpec(data.DEFAULT_SWITCH),)
        names: list[str] = []
        for index, value in enumerate(top.tables("switch") or []):
            table = Table(self.error, top.at(f"switch[{index}]"), value, SWITCH_KEYS)
            name = table.text("name", data.is_name, data.NAME_RULE)
            if name in names:
                table.error("name", f'"{name}" is taken by switch[{names.index(name)}]', "give each its own name")
            names.append(name or "")
        return tuple(SwitchSpec(name) for name in names)

    def _policy(self, top: Table) -> dict[str, str]:
        table = Table(self.error, top.at("policy"), top.values.get("policy", {}), data.POLICY_ROLES)
        policy = {
            role: table.choice(role, data.POLICIES_OF[role], "") for role in table.values if role in data.POLICY_ROLES
        }
        for text in self._flags.policies:
            role, equals, word = text.partition("=")
            if not equals:
                self.error("flags:--policy", f'"{text}" is not ROLE=POLICY', "for example parent=restart")
            elif role not in data.POLICY_ROLES:
                self.error("flags:--policy", f'"{text}": unknown role', suggest(role, data.POLICY_ROLES))
            elif word not in data.POLICIES:
                self.error("flags:--policy", f'"{text}": unknown policy', suggest(word, data.POLICIES_OF[role]))
            elif word not in data.POLICIES_OF[role]:
                known = " or ".join(data.POLICIES_OF[role])
                self.error("flags:--policy", f'"{text}": {role} cannot be told to {word}', f"it takes {known}")
            else:
                policy[role] = word
        return policy

    # -- VMs ----------------------------------------------------------------------------------------

    def _vms(self, top: Table, switches: tuple[SwitchSpec, ...]) -> tuple[VmSpec, ...]:
        place = top.at("vm")
        values = top.tables("vm") if "vm" in top else _default_vms(0, data.DEFAULT_VMS)
        if values is None:
            return ()
        if self._flags.vms is not None:
            place = "flags:--vms"
            count = _count(self._flags.vms)
            if count is None:
                self.error(place, f"is {describe(self._flags.vms)}", "give a number of VMs")
            else:  # one too many is enough to say so
                values = values[:count]
                values += _default_vms(len(values), min(count, data.MAX_VMS + 1))
        if not 1 <= len(values) <= data.MAX_VMS:
            self.error(place, f"{'no' if not values else 'too many'} VMs", f"give 1 to {data.MAX_VMS}")
            return ()
        names = self._vm_names(top, values)
        disks = self._flag_disks(names)
        for name in self._flags.no_services:
            if name not in names:
                known = [known for known in names if known is not None]
                self.error("flags:--no-services", f'there is no VM "{name}"', suggest(name, known))
        ports = [switch.name for switch in switches]
        return tuple(
            self._vm(top, index, value, names[index], disks.get(index, []), ports) for index, value in enumerate(values)
        )

    def _vm_names(self, top: Table, values: list[Any]) -> list[str | None]:
        names: dict[str, int] = {}
        result: list[str | None] = []
        for index, value in enumerate(values):
            name: str | None = None
            if isinstance(value, Mapping):
                table = Table(self.error, top.at(f"vm[{index}]"), value, None)
                name = table.text("name", data.is_name, data.NAME_RULE)
                if name in data.RESERVED_NAMES:
                    table.error("name", f'"{name}" is the name of a component', f'try "vm{index + 1}"')
                elif name in names:
                    table.error("name", f'"{name}" is taken by vm[{names[name]}]', "give each its own name")
                    name = None
            if name is not None:
                names[name] = index
            result.append(name)
        for name, index in names.items():
            if name + data.WORKER_SUFFIX in names:
                worker = name + data.WORKER_SUFFIX
                place = top.at(f"vm[{names[worker]}].name")
                self.error(place, f'"{worker}" is what the worker of vm[{index}] is called', "give another name")
        return result

    def _flag_disks(self, names: list[str | None]) -> dict[int, list[str]]:
        disks: dict[int, list[str]] = {}
        known = [name for name in names if name is not None]
        for text in self._flags.disks:
            name, equals, file = text.partition("=")
            if not equals or "/" in name:  # a path may contain "="; a VM's name never contains "/"
                disks.setdefault(0, []).append(text)
            elif name in known:
                disks.setdefault(names.index(name), []).append(file)
            else:
                self.error("flags:--disk", f'"{text}": there is no VM "{name}"', suggest(name, known))
        return disks

    def _vm(
        self, top: Table, index: int, value: object, name: str | None, files: list[str], switches: list[str]
    ) -> VmSpec:
        table = Table(self.error, top.at(name or f"vm[{index}]"), value, VM_KEYS)
        memory = data.DEFAULT_MEMORY
        if "memory" in table:
            memory = table.size("memory", data.PAGE, data.MIN_MEMORY, data.MAX_MEMORY)
        services = table.boolean("integration_services", True)
        if name in self._flags.no_services:
            services = False
        version = None
        if not services and "vmbus_version" in table:
            table.error("vmbus_version", "a VM without integration services has no VMBus", "remove one of the two")
        disks, nics = self._disks(table, files), self._nics(table, index, switches)
        if not services:
            self._check_legacy(table, disks, nics)
        if "vmbus_version" in table:
            version = table.choice("vmbus_version", data.VMBUS_VERSIONS, "")
        return VmSpec(
            name or f"vm[{index}]", memory, services, disks, nics, self._address(table, index), version or None,
            table.parsed("clock_drift", data.parse_drift, data.DRIFT_RULE, 0.0),
        )

    @staticmethod
    def _check_legacy(table: Table, disks: tuple[DiskSpec, ...], nics: tuple[NicSpec, ...]) -> None:
        for what, count, most in (("disk", len(disks), data.MAX_IDE_DISKS), ("nic", len(nics), data.MAX_LEGACY_NICS)):
            if count > most:
                table.error(
                    what, f"{count} of them, and emulated devices are {most} at most",
                    f"give {most}, or integration_services = true",
                )  # fmt: skip

    def _address(self, table: Table, index: int) -> str:
        address = data.default_address(index)
        if "address" in table:
            address = table.text("address", _is_guest_address, "an IPv4 address inside 10.0.0.0/16") or address
        if address in self._addresses:
            table.error("address", f"{address} is also the address of {self._addresses[address]}", "give another one")
        self._addresses.setdefault(address, table.name)
        return address

    def _nics(self, table: Table, vm_index: int, switches: list[str]) -> tuple[NicSpec, ...]:
        values = (table.tables("nic") or []) if "nic" in table else [{}] if switches else []
        if len(values) > data.MAX_NICS:
            table.error("nic", f"{len(values)} NICs", f"a VM has at most {data.MAX_NICS}")
            return ()
        nics = []
        for index, value in enumerate(values):
            nic = Table(self.error, table.at(f"nic{index}"), value, NIC_KEYS)
            switch = switches[0] if switches else ""
            if "switch" in nic or not switches:
                switch = nic.choice("switch", switches, switch)
            mac = data.default_mac(vm_index, index)
            if "mac" in nic:
                given = data.parse_mac(nic.values["mac"])
                if given is None:
                    nic.error("mac", f"is {describe(nic.values['mac'])}", 'give a unicast MAC like "00:15:5d:00:00:01"')
                mac = given or mac
            if mac in self._macs:
                nic.error("mac", f"{data.format_mac(mac)} is also the MAC of {self._macs[mac]}", "give another one")
            self._macs.setdefault(mac, nic.name)
            nics.append(NicSpec(switch, mac))
        return tuple(nics)

    # -- disks --------------------------------------------------------------------------------------

    def _disks(self, table: Table, files: list[str]) -> tuple[DiskSpec, ...]:
        if files:
            flagged = [self._disk_reader.flagged("--disk", file, os.curdir) for file in files]
            return tuple(disk for disk in flagged if disk is not None)
        if "disk" not in table:
            return (DiskSpec("ram", None, data.DEFAULT_DISK_BYTES),)
        values = table.tables("disk") or []
        if len(values) > data.MAX_DISKS:
            table.error("disk", f"{len(values)} disks", f"a VM has at most {data.MAX_DISKS}")
            return ()
        disks = [self._disk_reader.read(table.at(f"disk{index}"), value) for index, value in enumerate(values)]
        return tuple(disk for disk in disks if disk is not None)


def host_machine() -> str:
    """What ``platform.machine()`` says, without the millisecond that loading that module takes."""
    return os.uname().machine


def _default_vms(start: int, stop: int) -> list[Any]:
    return [{"name": f"vm{index + 1}"} for index in range(start, stop)]


def _count(value: int | str) -> int | None:
    """A number as typed on the command line."""
    if isinstance(value, int):
        return value if value >= 0 else None
    return int(value) if value.isascii() and value.isdecimal() and len(value) <= 9 else None


def _is_far_end(value: object) -> bool:
    machine, dot, device = value.partition(".") if isinstance(value, str) else ("", "", "")
    return bool(dot) and data.is_name(machine) and hardware.kind_of(device) == hardware.NIC


def _is_guest_address(value: object) -> bool:
    if not isinstance(value, str) or not value.isascii():
        return False
    try:
        address = ipaddress.IPv4Address(value)
    except ValueError:
        return False
    network = ipaddress.IPv4Network("10.0.0.0/16")
    return address in network and address not in (network.network_address, network.broadcast_address)
