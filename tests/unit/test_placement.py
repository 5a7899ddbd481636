"""Placement: which component lives in which process, what each is told, and the plan; pure functions of a topology."""

from __future__ import annotations

import importlib

import pytest

from vmbus_emu import placement
from vmbus_emu.iomemory import io_memory
from vmbus_emu.placement import ENTRIES, PLACEMENTS, VSPS, configuration, disks, instance_id, network, processes
from vmbus_emu.plan import plan
from vmbus_emu.topology import Topology, parse
from vmbus_emu.topology.data import MAX_DISKS, MAX_NICS, PAGE

ARCHS = tuple(PLACEMENTS)


def topology(arch: str, vms: int = 2) -> Topology:
    listed = [{"name": f"vm{n}", "disk": [{"ram": "1MiB"}, {"null": "1GiB"}]} for n in range(1, vms + 1)]
    return parse({"name": "t", "arch": arch, "vm": listed})


def hosts(arch: str) -> dict[str, str]:
    """Component to the process that carries it."""
    return {c.name: process.name for process in processes(topology(arch)) for c in process.components}


@pytest.mark.parametrize("arch", ARCHS)
def test_every_component_lives_in_exactly_one_process_and_is_named_once(arch: str) -> None:
    names = [c.name for process in processes(topology(arch)) for c in process.components]
    assert len(names) == len(set(names))
    expected = {"hypervisor", "management", "storvsp", "netvsp", "vm1", "vm2"}
    assert set(names) == expected | (set() if arch == "monolithic" else {"parent"})
    assert all(process.name == process.components[0].name for process in processes(topology(arch)))


def test_the_placements_are_the_designs() -> None:
    assert set(hosts("monolithic").values()) == {"hypervisor"}
    assert {name for name, host in hosts("microkernel").items() if host == "parent"} == {"parent", "storvsp", "netvsp"}
    disaggregated = hosts("disaggregated")
    assert all(name == host for name, host in disaggregated.items())


@pytest.mark.parametrize("path", sorted({*ENTRIES.values(), *VSPS.values(), *placement.DRIVERS.values(),
                                         placement.ZYGOTE_ENTRY}))
def test_everything_named_by_import_path_exists(path: str) -> None:
    module, _, name = path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_an_instance_id_is_the_same_over_restarts_and_unlike_any_other() -> None:
    assert instance_id("vm1", "disk0") == instance_id("vm1", "disk0")
    names = [(f"vm{n}", device) for n in range(50) for device in ("disk0", "disk1", "nic0")]
    assert len({instance_id(*name) for name in names}) == len(names)


@pytest.mark.parametrize("arch", ARCHS)
def test_each_process_is_told_what_its_components_need_and_no_more(arch: str) -> None:
    made = topology(arch)
    told = {spec.name: configuration(made, spec, 1, "hv.sock", "channels") for spec in processes(made)}
    where = hosts(arch)
    for name, config in told.items():
        assert ("storvsp" in config) == (where["storvsp"] == name)
        assert ("netvsp" in config) == (where["netvsp"] == name)
        assert ("partitions" in config) == (where["management"] == name)
        assert (config["transport"], config["poll"]) == (made.transport, made.poll)
        assert [guest["name"] for guest in config["guests"]] == [vm for vm in ("vm1", "vm2") if where[vm] == name]


@pytest.mark.parametrize(("arch", "own"), [
    ("monolithic", []), ("microkernel", []), ("disaggregated", [["storvsp", "vsp"], ["netvsp", "vsp"]]),
])
def test_management_creates_a_partition_for_each_vm_and_each_vsp_of_its_own(arch: str, own: list[list[str]]) -> None:
    made = topology(arch)
    (spec,) = (spec for spec in processes(made) if any(c.name == "management" for c in spec.components))
    assert configuration(made, spec, 1, "s", "c")["partitions"] == [*own, ["vm1", "child"], ["vm2", "child"]]


def test_guest_and_vsp_agree_on_their_devices() -> None:
    made = topology("microkernel")
    for vm in made.vms:
        guest = placement.guest(made, vm)
        assert guest["disks"] == {d["device"]: d["instance"] for d in disks(made) if d["vm"] == vm.name}
        assert guest["nics"] == {p["device"]: p["instance"] for p in network(made)["ports"] if p["vm"] == vm.name}
        assert guest["hosts"] == {other.name: other.address for other in made.vms}


@pytest.mark.parametrize(("disks", "nics", "expected"), [
    (0, 0, []),
    (1, 0, [("storvsp", 1 << 32, 2336)]),
    (0, 2, [("netvsp", 1 << 33, 256)]),
    (3, 1, [("storvsp", 1 << 32, 2400), ("netvsp", 1 << 33, 128)]),
])
def test_a_guest_has_a_region_of_io_memory_for_each_vsp_that_serves_it(
    disks: int, nics: int, expected: list[tuple[str, int, int]]
) -> None:
    (vm,) = parse({"vm": [{"name": "a", "disk": [{"null": "1GiB"}] * disks, "nic": [{}] * nics}]}).vms
    regions = io_memory(vm)
    assert [(region["vsp"], region["gpa"], region["pages"]) for region in regions] == [*expected, ("ic", 3 << 32, 30)]
    assert placement.guest(parse({"vm": [{"name": "b"}]}), vm)["io_memory"] == regions


def test_the_regions_of_the_largest_vm_do_not_meet() -> None:
    (vm,) = parse({"vm": [{"name": "a", "disk": [{"null": "1GiB"}] * MAX_DISKS, "nic": [{}] * MAX_NICS}]}).vms
    storage, network, components = io_memory(vm)
    assert storage["gpa"] + storage["pages"] * PAGE <= network["gpa"]
    assert network["gpa"] + network["pages"] * PAGE <= components["gpa"]


@pytest.mark.parametrize("arch", ARCHS)
def test_the_plan_marks_device_links_as_calls_in_the_monolith_and_as_channels_elsewhere(arch: str) -> None:
    made = plan(topology(arch))
    kinds = {link.kind for link in made.links if link.source.startswith("vm") and "." in link.source}
    assert kinds == ({"call"} if arch == "monolithic" else {"channel"})
    assert any(link.kind == "hypercall" for link in made.links) == (arch != "monolithic")
    carried = {c.name for process in made.processes for c in process.components}
    assert set(hosts(arch)) <= carried
    assert "machine" in carried


def test_a_plan_starts_with_the_machine_and_gives_every_process_a_lifeline() -> None:
    made = plan(topology("disaggregated"))
    assert made.processes[0].name == "machine"
    lifelines = {link.target for link in made.links if link.kind == "lifeline"}
    assert {spec.name for spec in processes(topology("disaggregated"))} <= lifelines
