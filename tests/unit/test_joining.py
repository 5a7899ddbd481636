"""A VM that joins a running machine: its defaults are free ones, and what it says is checked against the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vmbus_emu.topology import Topology, TopologyErrors, newcomer, parse
from vmbus_emu.topology.data import default_address, default_mac, vm_from_dict, vm_to_dict


def errors(topology: Topology, document: dict[str, Any], *files: str) -> str:
    with pytest.raises(TopologyErrors) as raised:
        newcomer(topology, document, files)
    return str(raised.value)


def test_it_gets_what_the_next_vm_of_a_topology_would_get() -> None:
    vm = newcomer(parse({}), {"name": "vm3"})
    assert vm == parse({"vm": [{"name": f"vm{n}"} for n in (1, 2, 3)]}).vms[2]


def test_it_takes_the_first_number_that_nobody_has_anything_of() -> None:
    topology = parse({"vm": [
        {"name": "a"}, {"name": "b", "address": "10.0.0.3", "nic": [{"mac": default_mac(0, 9).hex(":")}]},
    ]})  # fmt: skip
    # Number 0 is a's, and b has an address and a MAC of its own: nobody has anything of number 1.
    vm = newcomer(topology, {"name": "c"})
    assert (vm.address, vm.nics[0].mac) == (default_address(1), default_mac(1, 0))
    later = newcomer(parse({"vm": [{"name": "a"}, {"name": "b"}]}), {"name": "c", "address": "10.0.0.9"})
    assert (later.address, later.nics[0].mac) == ("10.0.0.9", default_mac(2, 0))


def test_it_may_say_what_a_vm_of_a_topology_may_say(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    image.write_bytes(bytes(1024))
    vm = newcomer(parse({}), {"name": "db", "memory": "8MiB", "vmbus_version": "5.0"}, [str(image)])
    assert (vm.memory_bytes, vm.vmbus_version, vm.disks[0].path) == (8 << 20, "5.0", str(image))
    assert vm_from_dict(vm_to_dict(vm)) == vm


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    image.write_bytes(bytes(1024))
    there = parse({"vm": [{"name": "vm1", "disk": [{"file": str(image)}]}]})
    told = errors(there, {"name": "vm1", "memory": 1, "address": "10.0.0.1", "boots": 3}, str(image))
    for words in ("there is a VM", "is 1 bytes", "also the address of vm1", "unknown key", "also the image of vm1"):
        assert words in told
    assert "is missing" in errors(there, {})
    assert "name of a component" in errors(there, {"name": "parent"})


def test_a_machine_without_switches_gives_it_no_nic() -> None:
    assert newcomer(parse({"switch": []}), {"name": "vm3"}).nics == ()


@pytest.mark.parametrize(
    "wrong",
    [
        None, 3, [], {}, {"name": "UP"}, {"memory_bytes": True}, {"memory_bytes": 1}, {"integration_services": 1},
        {"integration_services": False, "disks": [{"kind": "ram", "size_bytes": 512}] * 5},
        {"address": "10.0.0.256"}, {"address": "10.0.0.1\n"}, {"vmbus_version": "9"}, {"disks": None},
        {"disks": [{"kind": "file", "path": "a.img"}]}, {"disks": [{"kind": "tape", "size_bytes": 512}]},
        {"disks": [{"kind": "ram", "size_bytes": 0}]}, {"disks": [{"kind": "ram", "size_bytes": 512, "read_only": 1}]},
        {"nics": [{"switch": "s0", "mac": b"short"}]}, {"nics": [{}]}, {"unknown": 1},
    ],
)
def test_what_is_no_vm_is_refused_as_a_value(wrong: Any) -> None:
    good = vm_to_dict(newcomer(parse({}), {"name": "vm3"}))
    value = {**good, **wrong} if isinstance(wrong, dict) and wrong else wrong
    with pytest.raises(ValueError, match="not a VM"):
        vm_from_dict(value)
