"""What a topology says about VMs without integration services, and what follows for processes, memory and plan."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from vmbus_emu.client.observer import intervals
from vmbus_emu.client.scene import Scene
from vmbus_emu.faults import refusal
from vmbus_emu.iomemory import io_memory, synthetic_memory
from vmbus_emu.placement import PLACEMENTS, configuration, processes, zygote_of
from vmbus_emu.plan import plan
from vmbus_emu.topology import Overrides, Topology, TopologyErrors, parse


def topology(arch: str = "microkernel", **more: Any) -> Topology:
    return parse({"name": "t", "arch": arch, "vm": [
        {"name": "vm1", "disk": [{"ram": "1MiB"}]},
        {"name": "vm2", "disk": [{"ram": "1MiB"}], "integration_services": False, **more},
    ]})  # fmt: skip


@pytest.mark.parametrize("arch", PLACEMENTS)
def test_a_worker_is_a_component_of_such_a_vm_alone(arch: str) -> None:
    hosts = {c.name: spec.name for spec in processes(topology(arch)) for c in spec.components}
    assert {name for name in hosts if name.endswith("-worker")} == {"vm2-worker"}
    assert hosts["vm2-worker"] == ("hypervisor" if arch == "monolithic" else "vm2-worker")


def test_such_a_vm_is_another_program_and_comes_out_of_no_zygote_with_vmbus() -> None:
    specs = {spec.name: spec for spec in processes(topology())}
    assert specs["vm2"].entry != specs["vm1"].entry
    assert (zygote_of(specs["vm1"]), zygote_of(specs["vm2"]), zygote_of(specs["vm2-worker"])) == ("zygote", None, None)


def test_it_shares_one_region_with_its_worker_and_the_worker_is_told_its_devices_and_no_others() -> None:
    made = topology()
    vm = made.vms[1]
    (region,) = io_memory(vm)
    assert region["gpa"] + region["pages"] * 4096 < 1 << 32, "emulated devices have 32 address bits"
    spec = next(spec for spec in processes(made) if spec.name == "vm2-worker")
    told = configuration(made, spec, 1, "s", "c")["worker"]
    assert (told["vm"], told["memory"]) == ("vm2", region)
    assert [disk["medium"] for disk in told["disks"]] == ["vm2.disk0"]
    assert [nic["vm"] for nic in told["nics"]] == ["vm2"]


@pytest.mark.parametrize("arch", PLACEMENTS)
def test_the_plan_shows_the_worker_and_the_ways_to_it(arch: str) -> None:
    made = plan(topology(arch))
    components = {c.name: c.what for process in made.processes for c in process.components}
    assert "emulated" in components["vm2-worker"]
    assert "no integration services" in components["vm2"]
    kinds = {(link.source, link.target): link.kind for link in made.links}
    assert kinds["vm2.disk0", "vm2-worker"] == ("call" if arch == "monolithic" else "intercept")
    assert (("vm2-worker", "netvsp") in kinds) == (arch != "monolithic")


def test_the_flag_takes_them_away_and_names_a_vm_that_there_is() -> None:
    flagged = parse({"name": "t"}, flags=Overrides(no_services=("vm2",)))
    assert [vm.integration_services for vm in flagged.vms] == [True, False]
    with pytest.raises(TopologyErrors, match='there is no VM "vm7"'):
        parse({"name": "t"}, flags=Overrides(no_services=("vm7",)))


@pytest.mark.parametrize(("more", "text"), [
    ({"disk": [{"ram": "1MiB"}] * 5}, "5 of them, and emulated devices are 4 at most"),
    ({"nic": [{}] * 5}, "vm2.nic: 5 of them"),
    ({"vmbus_version": "5.3"}, "has no VMBus"),
])
def test_what_emulated_devices_cannot_be_is_told(more: dict[str, Any], text: str) -> None:
    with pytest.raises(TopologyErrors, match=text):
        topology(**more)


def test_nothing_else_may_have_a_workers_name() -> None:
    with pytest.raises(TopologyErrors, match='"vm1-worker" is what the worker'):
        parse({"name": "t", "vm": [{"name": "vm1-worker"}, {"name": "vm1"}]})


def test_a_topology_with_it_survives_its_dictionary() -> None:
    made = topology()
    assert Topology.from_dict(made.to_dict()) == made


def test_faults_fit_a_worker_as_any_process() -> None:
    assert refusal("microkernel", "worker", "kill") == ""
    assert "drives no device" in refusal("microkernel", "worker", "slow")


def test_a_kill_of_the_parent_is_not_expected_to_cost_such_a_vm_a_channel() -> None:
    made = topology()
    scene = Scene({"topology": made.to_dict(), "name": "t", "arch": "microkernel", "transport": "zmq"})
    rows = {c.name: {"state": "ready"} for spec in processes(made) for c in spec.components}
    expected = scene.expected({"host": "parent", "component": "parent", "pid": 1}, rows)
    assert {vm for vm, _ in expected.devices} == {"vm1"}


@pytest.mark.parametrize(("component", "along"), [
    ("vm1", []), ("vm2", ["vm2-worker"]), ("vm2-worker", ["vm2"]), ("parent", []),
])  # fmt: skip
def test_a_kill_of_a_vm_or_of_its_worker_is_over_with_both(component: str, along: list[str]) -> None:
    made = topology()
    scene = Scene({"topology": made.to_dict(), "name": "t", "arch": "microkernel", "transport": "zmq"})
    rows = {c.name: {"state": "ready"} for spec in processes(made) for c in spec.components}
    killed = {"host": component, "component": component, "pid": 1}
    assert list(scene.expected(killed, rows).along) == along
    dead = {**rows, "vm2": {"state": "dead"}, "vm2-worker": {"state": "dead"}}
    assert list(scene.expected(killed, dead).along) == []


def test_a_worker_comes_back_if_its_vm_does() -> None:
    made = parse({"name": "t", "vm": [{"name": "vm1", "integration_services": False}], "policy": {"child": "restart"}})
    scene = Scene({"topology": made.to_dict(), "name": "t", "arch": "microkernel", "transport": "zmq"})
    rows = {c.name: {"state": "ready"} for spec in processes(made) for c in spec.components}
    killed = {"host": "vm1-worker", "component": "vm1-worker", "pid": 1}
    expected = scene.expected(killed, rows)
    assert (expected.policy, expected.successor) == ("restart", "vm1")


def test_such_a_vm_is_loaded_less_and_nobody_pings_it_who_can_ping_another() -> None:
    vms = [{"name": name, "integration_services": name != "vm2", "disk": [{"ram": "4MiB"}], "nic": [{"switch": "s0"}]}
           for name in ("vm1", "vm2", "vm3")]  # fmt: skip
    made = parse({"name": "t", "vm": vms, "switch": [{"name": "s0"}]})
    scene = Scene({"topology": made.to_dict(), "name": "t", "arch": "microkernel", "transport": "zmq"})
    listed = b"NAME SIZE RO\ndisk0 4194304 0\n"
    targets = [scene.target(vm, listed, False, scene.vms) for vm in scene.vms]
    assert [target.neighbour for target in targets] == ["vm3", "vm3", "vm1"]
    assert [target.emulated for target in targets] == [False, True, False]
    assert scene.target("vm1", listed, False, ["vm1", "vm2"]).neighbour == "vm2"
    assert targets[1].span < targets[0].span
    assert [intervals(target, targets) for target in targets] == [(0.001, 0.005), (0.04, 0.01), (0.001, 0.005)]
    many = [targets[1]] * 10
    assert intervals(many[0], many) == (0.2, 0.05)
    assert scene.describe()["emulated"] == ["vm2"]


def test_the_memory_regions_do_not_meet() -> None:
    vm = topology(nic=[{}] * 4).vms[1]
    regions = [*synthetic_memory(vm), *io_memory(vm)]
    spans = sorted((region["gpa"], region["gpa"] + region["pages"] * 4096) for region in regions)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
