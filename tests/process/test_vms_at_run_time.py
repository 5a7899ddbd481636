"""VMs that are added, stopped and removed while others run: they are whole, or not there; nothing of them is left."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from vmbus_emu.client import Machine, MachineError
from vmbus_emu.client.door import Door
from vmbus_emu.runfolder import RunFolder
from vmbus_emu.topology import TopologyErrors

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

PLACES = [("monolithic", None), ("microkernel", "zmq"), ("microkernel", "ring"), ("disaggregated", "zmq"),
          ("disaggregated", "ring")]
APART = PLACES[1:]
RAM = [{"ram": "4MiB"}]


def up(lab: Lab, arch: str, transport: str | None, **document: Any) -> Machine:
    chosen = {} if transport is None else {"transport": transport}
    return lab.up(arch, vm=[{"name": f"vm{n}", "disk": RAM} for n in (1, 2)], **chosen, **document)


def descriptors(lab: Lab, machine: Machine) -> dict[str, int]:
    """How many every host process has open, by its name."""
    rows = lab.rows(machine).values()
    hosts = {row["name"]: row["pid"] for row in rows if row["name"] == row["host"] and row["role"] != "child"}
    return {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in hosts.items()}


def add_aside(lab: Lab, name: str) -> Callable[[], Any]:
    """``vm add`` on a thread of its own; what is returned waits for its outcome."""
    outcome: list[Any] = []
    machine = lab.attach()

    def run() -> None:
        try:
            outcome.append(machine.add_vm(name, disk=RAM))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def end() -> Any:
        thread.join(30)
        assert not thread.is_alive()
        return outcome[0]

    return end


@pytest.mark.parametrize(("arch", "transport"), PLACES)
def test_a_vm_comes_works_and_goes_and_nothing_of_it_is_left(
    lab: Lab, wait: Wait, arch: str, transport: str | None
) -> None:
    machine = up(lab, arch, transport)
    # Once before, so that what a process keeps from the first time on is not counted.
    machine.add_vm("first", disk=RAM)
    machine.remove_vm("first")
    lab.integrated(machine)
    before, pids = descriptors(lab, machine), {name: row["pid"] for name, row in lab.rows(machine).items()}
    image = lab.folder / "a.img"
    image.write_bytes(b"before".ljust(1 << 20, b"\0"))
    added = machine.add_vm("vm3", files=[str(image)], memory="8MiB")
    assert added["address"] == "10.0.0.3"
    assert machine.vm("vm3").disk.read(0, 6) == b"before"
    machine.vm("vm3").disk.write(0, b"after!")
    assert [pair["ok"] for pair in machine.pingall()["pairs"]] == [True] * 6
    assert RunFolder("m").info()["vms"] == ["vm1", "vm2", "vm3"]
    assert lab.rows(machine)["vm3"]["state"] == "ready"
    assert machine.info()["state"] == "ready"
    with pytest.raises(TopologyErrors, match="is also the image of vm3"):
        machine.add_vm("vm4", files=[str(image)])
    machine.remove_vm("vm3")
    assert image.read_bytes()[:6] == b"after!"
    assert "vm3" not in lab.rows(machine)
    assert machine.exec("vm1", "ping -c 1 -W 1 vm3").status != 0
    assert machine.exec("vm1", "ping -c 1 vm2").status == 0
    assert {name: row["pid"] for name, row in lab.rows(machine).items()} == pids
    # Not equal: of the first one something may have been left still when they were counted.
    wait(lambda: all(descriptors(lab, machine)[name] <= count for name, count in before.items()), f"again {before}")
    assert machine.info()["state"] == "ready"
    # The same name again is a new VM: another disk, and what the others know of it is true.
    machine.add_vm("vm3", disk=RAM)
    assert machine.vm("vm3").disk.read(0, 6) == bytes(6)
    assert machine.exec("vm3", "ping -c 1 vm1").status == 0


@pytest.mark.parametrize(("arch", "transport"), PLACES[::2])
def test_a_vm_without_services_comes_with_its_worker_and_both_go(
    lab: Lab, wait: Wait, arch: str, transport: str | None
) -> None:
    machine = up(lab, arch, transport)
    image = lab.folder / "a.img"
    image.write_bytes(b"before".ljust(1 << 20, b"\0"))
    added = machine.add_vm("vm3", files=[str(image)], integration_services=False)
    rows = lab.rows(machine)
    assert (rows["vm3"]["state"], rows["vm3-worker"]["state"]) == ("ready", "ready")
    assert machine.vm("vm3").disk.read(0, 6) == b"before"
    assert all(pair["ok"] for pair in machine.pingall()["pairs"])
    if arch != "monolithic":
        machine.stop_vm("vm3")
        wait(lambda: lab.rows(machine)["vm3-worker"]["state"] == "halted", "the worker ends with its VM")
        assert machine.ps()["state"] == "ready"
        assert machine.start("vm3")["incarnation"] == 2
        machine.services("vm3", install=True)
        assert "vm3-worker" not in lab.rows(machine)
        machine.services("vm3", install=False)
        assert machine.vm("vm3").disk.read(0, 6) == b"before"
    pids = {row["pid"] for name, row in lab.rows(machine).items() if name in ("vm3", "vm3-worker")}
    machine.remove_vm("vm3")
    left = lab.rows(machine)
    assert not {"vm3", "vm3-worker"} & left.keys()
    assert arch == "monolithic" or not pids & {row["pid"] for row in left.values()}
    with machine.watch(past=True) as events:
        seen = []
        while (event := events.next(5.0)) is not None and event["event"] != "removed":
            seen.append(event)
    assert event is not None
    assert event["component"] == "vm3"
    assert not [one for one in seen if one["event"] == "died"]
    again = machine.add_vm("vm4", integration_services=False)
    assert again["address"] == added["address"]
    assert all(pair["ok"] for pair in machine.pingall()["pairs"])


@pytest.mark.parametrize(("arch", "transport"), APART)
def test_a_vm_that_was_stopped_stays_off_until_it_is_started(lab: Lab, arch: str, transport: str) -> None:
    machine = up(lab, arch, transport, policy={"child": "restart"})
    machine.vm("vm2").disk.write(0, b"kept")
    machine.stop_vm("vm2")
    row = lab.rows(machine)["vm2"]
    assert (row["state"], row["incarnation"]) == ("halted", 1)
    assert machine.info()["state"] == "ready"
    assert b"vm2 is off" in machine.exec("vm2", "true").stderr
    assert machine.exec("vm1", "null disk0 10").status == 0
    with pytest.raises(MachineError, match="vm2 is not running"):
        machine.stop_vm("vm2")
    assert machine.start("vm2")["incarnation"] == 2
    assert machine.vm("vm2").disk.read(0, 4) == b"kept"
    assert machine.exec("vm1", "ping -c 1 vm2").status == 0


def test_a_thread_of_the_monolith_is_removed_but_not_stopped(lab: Lab) -> None:
    machine = up(lab, "monolithic", None)
    with pytest.raises(MachineError, match="vm2 is a thread of the monolith") as raised:
        machine.stop_vm("vm2")
    assert "vm remove vm2" in raised.value.hint
    machine.remove_vm("vm2")
    with pytest.raises(MachineError, match="vm1 is the machine's only VM"):
        machine.remove_vm("vm1")
    assert machine.exec("vm1", "echo alive").stdout == b"alive\n"


@pytest.mark.parametrize("step", ["create", "attach", "initialize", "start"])
@pytest.mark.parametrize(("arch", "transport"), [("microkernel", "ring"), ("disaggregated", "zmq")])
def test_management_that_dies_while_it_adds_a_vm_is_replaced_and_the_vm_comes(
    lab: Lab, arch: str, transport: str, step: str
) -> None:
    machine = up(lab, arch, transport)
    partitions = lab.rows(machine)["hypervisor"]["counters"]["partitions"]
    door = Door(RunFolder("m"))
    door.ask("kill", component="management", at=step)
    door.close()
    added = add_aside(lab, "vm3")()
    assert not isinstance(added, Exception), added
    rows = lab.rows(machine)
    assert (rows["management"]["incarnation"], rows["vm3"]["state"]) == (2, "ready")
    assert rows["hypervisor"]["counters"]["partitions"] == partitions + 1
    assert machine.exec("vm3", "ping -c 1 vm1").status == 0
    assert machine.vm("vm3").disk.read(0, 4) == bytes(4)


def test_a_vm_that_does_not_start_leaves_nothing(lab: Lab, wait: Wait) -> None:
    machine = up(lab, "microkernel", "zmq", policy={"management": "halt"})
    image = lab.folder / "a.img"
    image.write_bytes(bytes(1 << 20))
    door = Door(RunFolder("m"))
    door.ask("kill", component="management", at="attach")
    door.close()
    with pytest.raises(MachineError, match="vm3 was not added") as raised:
        machine.add_vm("vm3", files=[str(image)])
    assert "without hypervisor and management" in str(raised.value)
    assert "vm3" not in lab.rows(machine)
    assert RunFolder("m").info()["vms"] == ["vm1", "vm2"]
    with pytest.raises(MachineError, match="without hypervisor and management"):
        machine.remove_vm("vm2")
    other = lab.up("microkernel", name="other", vm=[{"name": "vm1", "disk": [{"file": str(image)}]}])  # it is unlocked
    assert other.exec("vm1", "null disk0 1").status == 0
    assert machine.exec("vm1", "ping -c 1 vm2").status == 0


@pytest.mark.parametrize("policy", ["restart", "standby"])
def test_the_next_parent_knows_who_came_and_who_went(lab: Lab, wait: Wait, policy: str) -> None:
    machine = up(lab, "microkernel", "zmq", policy={"parent": policy})
    if policy == "standby":
        wait(lambda: "parent.spare" in lab.rows(machine), "there is a spare")
    machine.add_vm("vm3", disk=RAM)
    machine.remove_vm("vm2")
    machine.vm("vm3").disk.write(0, b"acknowledged")
    os.kill(lab.rows(machine)["parent"]["pid"], 9)
    assert machine.vm("vm3").disk.read(0, 12) == b"acknowledged"
    assert machine.exec("vm3", "ping -c 3 vm1").status == 0
    machine.add_vm("vm2", disk=RAM)
    assert machine.exec("vm2", "ping -c 1 vm3").status == 0


def test_a_reboot_boots_the_vms_there_are_now(lab: Lab) -> None:
    machine = up(lab, "microkernel", "ring")
    machine.add_vm("vm3", disk=RAM)
    machine.remove_vm("vm1")
    machine.stop_vm("vm2")
    report = machine.drain()
    assert [vm["vm"] for vm in report["vms"]] == ["vm2", "vm3"]
    rows = lab.rows(machine)
    assert [name for name, row in rows.items() if row["role"] == "child"] == ["vm2", "vm3"]
    assert {rows[vm]["state"] for vm in ("vm2", "vm3")} == {"ready"}
    assert machine.exec("vm3", "ping -c 1 vm2").status == 0


def test_the_verbs_say_what_they_did_and_what_is_wrong(lab: Lab) -> None:
    up(lab, "microkernel", "zmq")
    status, out, errors = lab.cli("vm", "add", "vm3", "--name", "m", "--ram", "4MiB", "--json")
    assert (status, errors) == (0, "")
    assert {**json.loads(out), "pid": 0} == {
        "schema": 1, "vm": "vm3", "pid": 0, "incarnation": 1, "address": "10.0.0.3"
    }
    for arguments, code, words in (
        (("add", "vm3"), 2, 'there is a VM "vm3" already'),
        (("add", "parent"), 2, "is the name of a component"),
        (("add", "vm4", "--disk", "/nowhere/a.img"), 2, "does not exist"),
        (("add", "vm4", "--memory", "lots"), 2, '"lots"'),
        (("add", "vm4", "--switch", "s9"), 2, '"s9"'),
        (("remove", "vm9"), 1, 'no VM "vm9"'),
        (("stop", "vm9"), 1, 'no VM "vm9"'),
    ):
        status, out, errors = lab.cli("vm", arguments[0], "--name", "m", *arguments[1:])
        assert (status, out, errors.count("\n")) == (code, b"", 1), errors
        assert words in errors
    assert lab.cli("vm", "stop", "vm3", "--name", "m") == (0, b"vm3: off; vmbus-emu start --name m vm3 starts it\n", "")
    assert lab.cli("vm", "start", "vm3", "--name", "m")[0] == 0
    assert lab.cli("vm", "remove", "vm3", "--name", "m") == (0, b"vm3: removed\n", "")


def test_a_client_that_describes_nonsense_is_refused_and_nobody_suffers(lab: Lab) -> None:
    machine = up(lab, "microkernel", "zmq")
    good = {
        "name": "vm3", "memory_bytes": 1 << 24, "integration_services": True, "address": "10.0.0.9", "disks": [],
        "nics": [], "vmbus_version": None,
    }
    door = Door(RunFolder("m"))
    for wrong in (
        {}, {"name": "vm1"}, {"name": "hypervisor"}, {"name": "../x"}, {"memory_bytes": -1}, {"memory_bytes": "1"},
        {"address": "10.0.0.1"}, {"address": 5}, {"address": "10.1.0.1"}, {"disks": [{"kind": "file"}]}, {"disks": 3},
        {"disks": [{"kind": "ram", "size_bytes": 1}]}, {"nics": [{"switch": "s0", "mac": b"\1" * 6}]},
        {"nics": [{"switch": "no", "mac": bytes(6)}]}, {"nics": [{"switch": "s0", "mac": "abc"}]}, {"extra": 1},
    ):
        spec = {**good, **wrong} if wrong else {}
        with pytest.raises(MachineError):
            door.ask("vm", what="add", spec=spec)
    for request in ({"what": "boil"}, {"what": "remove"}, {"what": "add"}, {}, {"what": "add", "spec": 3}):
        with pytest.raises(MachineError):
            door.ask("vm", **request)
    assert door.ask("vm", 20.0, what="add", spec=good)["vm"] == "vm3"
    door.close()
    assert machine.exec("vm3", "echo here").stdout == b"here\n"
