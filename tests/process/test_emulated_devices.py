"""VMs without integration services, with real processes: what they do, whom they need, and who goes with whom."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from vmbus_emu.client import MachineError, starter

MIB = 1 << 20
HOSTILE = Path(__file__).parent / "hostile"
OTHER_GUEST = (
    "from vmbus_emu import placement; "
    "placement.ENTRIES['child/emulated'] = 'hostile_emulated_child:HostileEmulatedChild'; "
)
MICROKERNELS = [("microkernel", "zmq"), ("microkernel", "ring"), ("disaggregated", "zmq")]
PLACEMENTS = [*MICROKERNELS, ("monolithic", "zmq")]


def vms(size: str = "4MiB") -> list[dict[str, Any]]:
    return [
        {"name": "vm1", "disk": [{"ram": "4MiB"}]},
        {"name": "vm2", "disk": [{"ram": size}], "integration_services": False},
    ]


def up(lab: Any, arch: str = "microkernel", transport: str = "zmq", **document: Any) -> Any:
    return lab.up(arch, transport=transport, **{"vm": vms(), **document})


def pings(machine: Any, source: str = "vm2", to: str = "vm1") -> bool:
    return machine.exec(source, f"ping -q -c 2 -i 0.01 -W 1 {to}").status == 0


def killed(lab: Any, wait: Any, machine: Any, component: str) -> None:
    os.kill(lab.rows(machine)[component]["pid"], signal.SIGKILL)
    wait(lambda: lab.rows(machine)[component]["state"].startswith("dead"), f"{component} is shown dead")


@pytest.mark.parametrize(("arch", "transport"), PLACEMENTS)
def test_a_vm_without_services_boots_computes_and_talks_to_one_with_them(lab: Any, arch: str, transport: str) -> None:
    machine = up(lab, arch, transport)
    data = random.Random(arch).randbytes(4 * MIB)
    disk = machine.vm("vm2").disk
    disk.write(0, data)
    assert disk.sha256() == hashlib.sha256(data).hexdigest()
    assert pings(machine, "vm2", "vm1")
    assert pings(machine, "vm1", "vm2")
    rows = lab.rows(machine)
    assert rows["vm2-worker"]["role"] == "worker"
    assert rows["vm2-worker"]["host"] == ("hypervisor" if arch == "monolithic" else "vm2-worker")
    accesses = rows["vm2"]["counters"]["accesses" if arch == "monolithic" else "intercepts"]
    counted = rows["vm2-worker"]["counters"]
    assert accesses == counted["reads"] + counted["writes"] + counted["string_accesses"]
    assert (counted["stray"], counted["refused_frames"]) == (0, 0)
    if arch != "monolithic":
        assert rows["hypervisor"]["counters"]["intercepts"] == accesses
    result = machine.exec("vm2", "lsvmbus")
    assert (result.status, b"no integration services" in result.stderr) == (1, True)


def test_the_sheets_counts_are_paid_in_intercepts(lab: Any) -> None:
    machine = up(lab)

    def intercepts() -> int:
        return int(lab.rows(machine)["hypervisor"]["counters"]["intercepts"])

    for mode, expected in (("dma", 26), ("string", 24), ("words", 2064)):
        assert machine.exec("vm2", f"hdparm disk0 {mode}").status == 0
        before = intercepts()
        assert machine.exec("vm2", "read disk0 0 4096").status == 0
        assert intercepts() - before == expected


def test_such_a_vm_has_no_vmbus_in_memory_and_its_memory_is_its_workers_alone(lab: Any) -> None:
    machine = up(lab, transport="ring")
    machine.vm("vm2").disk.write(0, b"x" * 4096)
    rows = lab.rows(machine)

    def maps(component: str, what: str) -> bool:
        with open(f"/proc/{rows[component]['pid']}/maps") as file:
            return what in file.read()

    holders = {name for name in rows if rows[name]["host"] == name and maps(name, "memfd:vm2.worker")}
    assert holders == {"vm2", "vm2-worker"}
    assert not maps("vm2-worker", "memfd:vm1.")


@pytest.mark.parametrize("component", ["vm2", "vm2-worker"])
@pytest.mark.parametrize(("arch", "transport"), MICROKERNELS[::2])
def test_a_vm_and_its_worker_end_together_and_alone_and_come_back_together(
    lab: Any, wait: Any, arch: str, transport: str, component: str
) -> None:
    machine = up(lab, arch, transport)
    machine.vm("vm2").disk.write(0, b"kept".ljust(512))
    before = lab.rows(machine)
    killed(lab, wait, machine, component)
    for name in ("vm2", "vm2-worker"):
        wait(lambda name=name: lab.rows(machine)[name]["state"].startswith("dead"), f"{name} is dead")
    result = machine.exec("vm2", "true")
    assert result.status == 137
    if component == "vm2-worker":
        assert b"vm2-worker" in result.stderr
    after = lab.rows(machine)
    same = [name for name in after if name not in ("vm2", "vm2-worker")]
    assert [after[name]["pid"] for name in same] == [before[name]["pid"] for name in same]
    assert machine.vm("vm1").disk.read(0, 512) == bytes(512)
    machine.start("vm2")
    assert machine.vm("vm2").disk.read(0, 4) == b"kept"
    assert pings(machine)
    assert lab.rows(machine)["vm2-worker"]["incarnation"] == 2


@pytest.mark.parametrize(("arch", "switch"), [("microkernel", "parent"), ("disaggregated", "netvsp")])
def test_the_death_of_who_has_the_switch_costs_frames_and_nothing_else(
    lab: Any, wait: Any, arch: str, switch: str
) -> None:
    machine = up(lab, arch)
    before = lab.rows(machine)
    os.kill(before[switch]["pid"], signal.SIGKILL)
    wait(lambda: lab.rows(machine)[switch]["incarnation"] == 2 and lab.rows(machine)[switch]["state"] == "ready",
         f"{switch} is back")
    machine.vm("vm2").disk.write(0, b"y" * 512)
    wait(lambda: pings(machine), "the NIC has a cable again")
    after = lab.rows(machine)
    for name in ("vm2", "vm2-worker"):
        assert after[name]["pid"] == before[name]["pid"]


def test_a_recovered_hypervisor_goes_on_with_what_it_had_not_answered(lab: Any, wait: Any) -> None:
    machine = up(lab, policy={"hypervisor": "recover"})
    before = lab.rows(machine)
    load = machine.vm("vm2").disk
    load.write(0, b"z" * 4096)
    os.kill(before["hypervisor"]["pid"], signal.SIGKILL)
    data = random.Random(1).randbytes(MIB)
    load.write(0, data)  # begins while there is none
    assert load.read(0, MIB) == data
    after = lab.rows(machine)
    assert after["hypervisor"]["incarnation"] == 2
    for name in ("vm2", "vm2-worker"):
        assert after[name]["pid"] == before[name]["pid"]


@pytest.mark.parametrize(("arch", "transport"), MICROKERNELS)
def test_services_come_and_go_and_the_data_stays(lab: Any, arch: str, transport: str) -> None:
    machine = up(lab, arch, transport)
    disk = machine.vm("vm2").disk
    disk.write(0, b"first".ljust(512))
    address = machine.exec("vm2", "ip").stdout
    changed = machine.services("vm2", True)
    assert (changed["integration_services"], changed["incarnation"]) == (True, 2)
    assert disk.read(0, 5) == b"first"
    assert machine.exec("vm2", "lsvmbus").status == 0
    assert machine.exec("vm2", "ip").stdout == address
    assert "vm2-worker" not in lab.rows(machine)
    assert pings(machine)
    disk.write(0, b"again".ljust(512))
    machine.services("vm2", False)
    assert disk.read(0, 5) == b"again"
    assert machine.exec("vm2", "ip").stdout == address
    assert lab.rows(machine)["vm2-worker"]["state"] == "ready"
    assert pings(machine)


def test_services_says_what_it_cannot_do(lab: Any) -> None:
    up(lab)
    for words, text in (
        (("install", "vm1"), "vm1 has integration services already"), (("remove", "vm2"), "has no integration"),
        (("remove", "vm9"), 'no VM "vm9"'),
    ):
        status, _, errors = lab.cli("services", *words, "--name", "m")
        assert (status, text in errors, "Traceback" in errors) == (1, True, False), errors


def test_the_monolith_chooses_services_at_its_start(lab: Any) -> None:
    up(lab, "monolithic")
    status, _, errors = lab.cli("services", "install", "vm2", "--name", "m")
    assert (status, "is a thread of the monolith" in errors) == (1, True)


def test_a_reboot_brings_the_worker_back_too(lab: Any, wait: Any) -> None:
    machine = up(lab)
    machine.vm("vm2").disk.write(0, b"kept".ljust(512))
    os.kill(lab.rows(machine)["hypervisor"]["pid"], signal.SIGKILL)
    wait(lambda: machine.ps(window=0)["state"] == "ready" and lab.rows(machine)["vm2-worker"]["incarnation"] == 2,
         "the machine is up again")
    assert machine.vm("vm2").disk.read(0, 4) == b"kept"
    assert pings(machine)


def test_a_worker_that_stands_still_is_noticed_and_its_vm_is_not_left_waiting(lab: Any, wait: Any) -> None:
    machine = up(lab)
    os.kill(lab.rows(machine)["vm2-worker"]["pid"], signal.SIGSTOP)
    wait(lambda: lab.rows(machine)["vm2"]["state"].startswith("dead"), "the VM has ended with its worker")
    assert lab.rows(machine)["vm1"]["state"] == "ready"


def test_a_vm_that_is_restarted_gets_a_new_worker(lab: Any, wait: Any) -> None:
    machine = up(lab, policy={"child": "restart"})
    machine.vm("vm2").disk.write(0, b"kept".ljust(512))
    os.kill(lab.rows(machine)["vm2-worker"]["pid"], signal.SIGKILL)
    wait(lambda: lab.rows(machine)["vm2"]["incarnation"] == 2 and lab.rows(machine)["vm2"]["state"] == "ready",
         "the VM is back")
    assert lab.rows(machine)["vm2-worker"]["incarnation"] == 2
    assert machine.vm("vm2").disk.read(0, 4) == b"kept"


def test_a_guest_that_storms_its_registers_harms_nobody(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HOSTILE))  # the machine's process gets our path
    monkeypatch.setattr(starter, "_CODE", OTHER_GUEST + starter._CODE)
    machine = up(lab)
    before = lab.rows(machine)
    result = machine.exec("vm2", "storm")
    assert result.stdout.decode().split() == ["INVALID_VP_STATE", *["ACCESS_DENIED"] * 3], result.stderr
    after = lab.rows(machine)
    for name in after:
        assert (after[name]["pid"], after[name]["state"]) == (before[name]["pid"], "ready"), name
    assert after["vm2-worker"]["counters"]["stray"] > 0
    assert after["hypervisor"]["counters"]["refused"] > before["hypervisor"]["counters"]["refused"]
    assert machine.vm("vm1").disk.read(0, 512) == bytes(512)


def test_a_worker_that_cannot_be_loaded_ends_the_boot_with_its_reason(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "from vmbus_emu import placement; placement.ENTRIES['worker'] = 'no_such_module:Worker'; "
    monkeypatch.setattr(starter, "_CODE", broken + starter._CODE)
    with pytest.raises(MachineError, match=r"vm2-worker.*no_such_module"):
        up(lab)
    assert lab.leftovers() == []
