"""``vmbus-emu audit`` of running machines: what is in which address space is the placement, and nothing else."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vmbus_emu

if TYPE_CHECKING:
    from conftest import Lab

EXAMPLE = str(Path(vmbus_emu.__file__).parents[1] / "examples" / "driver-megaraid")


def audited(lab: Lab) -> dict[str, dict[str, Any]]:
    report = lab.json("audit", "--name", "m")
    assert report["sees_peers"]
    return {one["name"]: one for one in report["processes"]}


def reached(one: dict[str, Any], *kinds: str) -> set[str]:
    """Processes to which it has something open of that kind."""
    return {partner for way in one["reaches"] if way["kind"] in kinds for partner in way["to"]}


def test_on_rings_a_vm_shares_its_memory_with_the_process_of_its_vsps_and_with_nobody_else(lab: Lab) -> None:
    machine = lab.up("disaggregated", transport="ring", switch=[{"name": "s0"}])
    lab.integrated(machine)
    rows = lab.rows(machine)
    found = audited(lab)
    assert {name: one["pid"] for name, one in found.items() if name != "front"} == {
        name: row["pid"] for name, row in rows.items()
    }
    for vm in ("vm1", "vm2"):
        shared = {piece["name"]: piece for piece in found[vm]["memory"]["shared"]}
        assert {name: piece["with"] for name, piece in shared.items()} == {
            f"{vm}.storvsp": ["storvsp"], f"{vm}.netvsp": ["netvsp"], f"{vm}.ic": ["parent"],
        }
        assert all(piece["access"] == "rw" for piece in shared.values())
        assert shared[f"{vm}.storvsp"]["bytes"] == 2336 * 4096    # iomemory.STORAGE_PAGES and one disk's rings
    assert found["hypervisor"]["memory"]["shared"] == []          # it hands descriptors out, and maps none
    assert {piece["name"] for piece in found["storvsp"]["memory"]["shared"]} == {"vm1.storvsp", "vm2.storvsp"}


def test_in_the_microkernel_the_hypervisor_has_no_driver_and_shares_no_memory(lab: Lab) -> None:
    lab.integrated(lab.up())
    report = lab.json("audit", "--name", "m")
    found = {one["name"]: one for one in report["processes"]}
    hypervisor, parent = found["hypervisor"]["code"], found["parent"]["code"]
    assert hypervisor["drivers"] == {"modules": [], "lines": 0}
    assert "vmbus_emu.hypervisor.core" in hypervisor["modules"]
    assert not any(module.startswith(("partitions", "drivers")) for module in hypervisor["modules"])
    assert {"drivers.disk", "drivers.switch"} <= set(parent["drivers"]["modules"])
    assert parent["drivers"]["lines"] > 100
    assert found["zygote"]["code"]["modules"] == found["vm1"]["code"]["modules"]
    # On ZeroMQ nobody shares memory; whom a VM reaches has a socket for it.
    assert all(one["memory"]["shared"] == [] for one in found.values())
    assert reached(found["vm1"], "unix", "pipe") == {"machine", "hypervisor", "parent"}
    assert reached(found["vm1"], "memory") == set()
    assert {way["what"][:3] for way in found["vm1"]["reaches"] if way["to"] == ["parent"]} == {"st1", "nt1", "ic1"}
    for one in found.values():
        assert one["privileges"]["uid"] == os.geteuid()
        assert one["memory"]["private_bytes"] > 1 << 20
    trusted = report["trusted"]
    assert trusted["ends_every_vm"]["processes"] == ["hypervisor"]
    assert trusted["ends_every_vm"]["code"]["ours"]["lines"] < trusted["interrupts_every_vm"]["code"]["ours"]["lines"]


def test_a_driver_that_another_package_brought_is_a_driver_where_it_was_loaded(lab: Lab) -> None:
    disks = {"vm1": {"ram": "4MiB"}, "vm2": {"ram": "4MiB", "controller": "storage1"}}
    machine = lab.up(hardware={"storage1": {"model": "1000:005d"}},
                     vm=[{"name": vm, "disk": [disk]} for vm, disk in disks.items()])  # fmt: skip
    before = audited(lab)["parent"]["code"]
    machine.add_driver(EXAMPLE)
    machine.vm("vm2").disk.write(0, b"usable")
    after = audited(lab)
    drivers = after["parent"]["code"]["drivers"]
    assert set(drivers["modules"]) > {*before["drivers"]["modules"], "vmbus_emu_megaraid"}
    assert drivers["lines"] > before["drivers"]["lines"] + 5
    assert after["parent"]["code"]["ours"]["parts"]["other drivers"] > 5
    assert [name for name, one in after.items() if "vmbus_emu_megaraid" in one["code"]["modules"]] == ["parent"]


def test_in_the_monolith_one_process_has_it_all(lab: Lab) -> None:
    machine = lab.up("monolithic")
    machine.vm("vm1").disk.read(0, 512)
    report = lab.json("audit", "--name", "m")
    found = {one["name"]: one for one in report["processes"]}
    assert set(found) == {"machine", "front", "hypervisor"}
    modules = set(found["hypervisor"]["code"]["modules"])
    assert {"drivers.disk", "drivers.switch", "partitions.monolith", "partitions.child.guest"} <= modules
    assert {"vm1", "vm2", "management", "storvsp"} <= set(found["hypervisor"]["components"])
    code = report["trusted"]["ends_every_vm"]["code"]
    assert code["drivers"]["modules"] == found["hypervisor"]["code"]["drivers"]["modules"]
    assert code["drivers"]["lines"] > 100


def test_a_process_that_does_not_answer_is_told_from_outside_alone(lab: Lab) -> None:
    machine = lab.up()
    pid = lab.rows(machine)["vm1"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        found = audited(lab)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (found["vm1"]["answered"], found["vm1"]["code"]) == (False, None)
    assert found["vm1"]["memory"]["private_bytes"] > 1 << 20
    assert "parent" in reached(found["vm1"], "unix")
    assert all(one["answered"] for name, one in found.items() if name != "vm1")
    assert machine.exec("vm1", "lsblk").status == 0


def test_an_audit_leaves_the_zygote_able_to_bear(lab: Lab) -> None:
    machine = lab.up(vms=1)
    audited(lab)
    lab.kill(machine, "vm1")
    assert machine.start("vm1")["incarnation"] == 2


def test_the_placements_side_by_side_show_less_trusted_code_in_the_microkernel_and_less_in_all_in_the_monolith(
    lab: Lab,
) -> None:
    report = lab.json("audit", "--compare")
    ends, everything = (
        {arch: one["trusted"][share]["code"] for arch, one in report["machines"].items()}
        for share in ("ends_every_vm", "all")
    )
    assert list(ends) == ["microkernel", "disaggregated", "monolithic"]
    for arch in ("microkernel", "disaggregated"):
        assert ends[arch]["ours"]["lines"] < ends["monolithic"]["ours"]["lines"]
        assert everything[arch]["ours"]["lines"] > everything["monolithic"]["ours"]["lines"]
        assert (ends[arch]["drivers"]["lines"], ends["monolithic"]["drivers"]["lines"] > 0) == (0, True)
    assert lab.json("ls")["machines"] == []
