"""Hardware and drivers of real machines: models that VMs do not notice, drivers that come while VMs run, and images."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vmbus_emu
from vmbus_emu import image
from vmbus_emu.client import Machine, MachineError
from vmbus_emu.client.drivers import try_out

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

EXAMPLE = str(Path(vmbus_emu.__file__).parents[1] / "examples" / "driver-megaraid")
APART = [("microkernel", "zmq"), ("microkernel", "ring"), ("disaggregated", "zmq"), ("disaggregated", "ring")]
PLACES = [("monolithic", None), *APART]
RAID = {"storage1": {"model": "1000:005d"}}


def up(lab: Lab, arch: str, transport: str | None, hardware: dict[str, Any], **document: Any) -> Machine:
    """vm1 on the first controller, vm2 on the second if there is one."""
    second = {"ram": "4MiB"} | ({"controller": "storage1"} if "storage1" in hardware else {})
    vms = [{"name": "vm1", "disk": [{"ram": "4MiB"}]}, {"name": "vm2", "disk": [second]}]
    chosen = {} if transport is None else {"transport": transport}
    return lab.up(arch, vm=vms, hardware=hardware, **chosen, **document)


def package(folder: Path, code: str) -> str:
    """A driver package whose driver is called ``x``; ``code`` may say what it does."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "x"\nversion = "1"\n[project.entry-points."vmbus_emu.drivers"]\nx = "x_driver:DRIVER"\n'
    )
    (folder / "x_driver.py").write_text(f"from vmbus_emu.hardware import Driver\n{code}\n")
    return str(folder)


def seen_by_guests(machine: Machine) -> list[str]:
    """Everything that a guest can see of its devices and drivers, without times and pids."""
    seen = []
    for vm in ("vm1", "vm2"):
        for command in ("lsvmbus", "lsblk", "inquiry disk0", "inquiry disk0 0x80", "inquiry disk0 0xb0", "ip", "dmesg"):
            text = machine.exec(vm, command).stdout.decode()
            # Disks and NICs may come up in either order, and so may their channels be numbered.
            lines = re.sub(r"\[ *\d+\.\d+\]|pid \d+|^ *\d+ |channel \d+", "", text, flags=re.MULTILINE).split("\n")
            seen.append("\n".join(sorted(lines)))
    return seen


@pytest.mark.parametrize(("arch", "transport"), PLACES)
def test_another_model_of_disk_controller_and_nic_changes_nothing_inside_a_vm(
    lab: Lab, arch: str, transport: str | None
) -> None:
    seen = []
    for storage, nic in (("1b36:0010", "8086:100e"), ("8086:2922", "10ec:8139"), ("8086:7010", "8086:10d3")):
        machine = up(lab, arch, transport, {"storage0": {"model": storage}, "nic0": {"model": nic}})
        machine.vm("vm1").disk.write(512, bytes(range(256)) * 4096)     # 1 MiB: longer than a command of two of them
        assert machine.vm("vm1").disk.read(512, 1 << 20) == bytes(range(256)) * 4096
        assert machine.exec("vm1", "ping -c 1 vm2").status == 0
        listed = {one["device"]: one["driver"] for one in machine.drivers()}
        lab.integrated(machine)
        seen.append((seen_by_guests(machine), machine.vm("vm1").disk.sha256()))
        machine.down()
    assert listed == {"hw.storage0": "piix", "hw.nic0": "e1000"}
    assert any("4194304" in text for text in seen[0][0])
    assert arch == "monolithic" or all(seen[0][0])
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize(("arch", "transport"), APART)
def test_hardware_that_no_driver_knows_fails_alone_until_a_driver_is_added(
    lab: Lab, arch: str, transport: str
) -> None:
    machine = up(lab, arch, transport, RAID)
    assert machine.warnings == [
        "hw.storage1 (1000:005d): no driver knows it, so vm2.disk0 fails; vmbus-emu driver add PATH loads one"
    ]
    assert b"I/O error" in machine.exec("vm2", "read disk0 0 512").stderr
    assert machine.exec("vm1", "read disk0 0 512").status == 0
    assert machine.exec("vm2", "ping -c 1 vm1").status == 0
    pids = {name: row["pid"] for name, row in lab.rows(machine).items()}
    (bound,) = machine.add_driver(EXAMPLE)
    assert {**bound, "held_ms": 0} == {
        "device": "hw.storage1", "driver": "megaraid", "version": "1.0", "was": None, "held_ms": 0, "error": None,
    }
    machine.vm("vm2").disk.write(0, b"usable")
    assert machine.vm("vm2").disk.read(0, 6) == b"usable"
    assert {name: row["pid"] for name, row in lab.rows(machine).items()} == pids
    carrier = lab.rows(machine)["storvsp"]["pid"]
    os.kill(carrier, 9)                                 # its next incarnation has the driver from the start
    assert machine.vm("vm2").disk.read(0, 6) == b"usable"
    assert [one["driver"] for one in machine.drivers()] == ["nvme", "megaraid", "e1000"]


@pytest.mark.parametrize(("arch", "transport"), APART)
def test_a_driver_is_replaced_under_load_and_no_request_fails(lab: Lab, arch: str, transport: str) -> None:
    machine = up(lab, arch, transport, {"storage0": {"model": "8086:2922"}})
    faster = package(lab.folder / "faster", (
        "from drivers.queued import QueuedDisk\n"
        "DRIVER = Driver('x', '2.0', 'storage', ('8086:2922',), lambda model, disk: QueuedDisk(disk, 4, 65536))"
    ))  # fmt: skip
    results: list[Any] = []
    writer = lab.attach()
    load = threading.Thread(target=lambda: results.append(
        writer.exec("vm1", "iobench -o write -b 131072 -d 16 -T 2 disk0", timeout=30)
    ))  # fmt: skip
    load.start()
    held = []
    for source in (faster, "ahci", faster, "ahci"):
        (bound,) = machine.add_driver(source)
        assert bound["error"] is None
        held.append(bound["held_ms"])
    load.join(30)
    assert results[0].status == 0, results[0].stderr
    assert all(0 < ms < 2000 for ms in held)
    assert lab.rows(machine)["vm1"]["counters"]["disk_errors"] == 0
    assert lab.rows(machine)["storvsp"]["incarnation"] == 1
    assert sorted(os.listdir(faster)) == ["pyproject.toml", "x_driver.py"]


def test_bad_driver_packages_fail_alone(lab: Lab) -> None:
    machine = up(lab, "microkernel", "zmq", RAID, policy={"parent": "restart"})
    pids = {name: row["pid"] for name, row in lab.rows(machine).items()}
    claims = "DRIVER = Driver('x', '1', 'storage', ('1000:005d',), {})"
    for number, (code, words) in enumerate((
        ("raise RuntimeError('on import')", "RuntimeError: on import"),
        (claims.format("lambda model, disk: 1 / 0"), "cannot drive it: ZeroDivisionError"),
        (claims.format("print").replace("1000:005d", "1000:9999"), "x drives 1000:9999, and this machine has"),
        ("import os; os._exit(3)", "its process ended with status 3"),
    )):
        with pytest.raises(MachineError) as raised:
            machine.add_driver(package(lab.folder / f"bad{number}", code))
        assert words in str(raised.value)
    status, out, errors = lab.cli("driver", "add", "--name", "m", str(lab.folder / "bad0"))
    assert (status, out, errors.count("\n")) == (1, b"", 1)
    assert {name: row["pid"] for name, row in lab.rows(machine).items()} == pids
    assert machine.exec("vm1", "read disk0 0 512").status == 0
    assert machine.drivers()[1]["driver"] is None


def test_a_driver_that_behaves_in_its_trial_alone_costs_its_process_and_is_not_kept(lab: Lab) -> None:
    machine = up(lab, "microkernel", "zmq", RAID)
    head = "import sys\nmain = sys.modules['__main__'].__spec__\ntrial = main and 'driver_trial' in main.name\n"
    drive = "from drivers.queued import QueuedDisk\nDRIVER = Driver('x', '1', 'storage', ('1000:005d',), {})"
    fails = package(lab.folder / "fails", head + drive.format(
        "lambda m, d: QueuedDisk(d, 1, 512) if trial else 1 / 0"
    ))  # fmt: skip
    (bound,) = machine.add_driver(fails)
    assert "cannot drive vm2.disk0: ZeroDivisionError" in bound["error"]
    assert lab.rows(machine)["parent"]["incarnation"] == 1
    # One that ends the process in which it is loaded: that one is replaced, without it.
    dies = package(lab.folder / "dies", head + "import os\ntrial or os._exit(1)\n" + drive.format(
        "lambda m, d: QueuedDisk(d, 1, 512)"
    ))  # fmt: skip
    (bound,) = machine.add_driver(dies)
    assert "parent was exited with status 1 while it loaded the driver" in bound["error"]
    assert machine.exec("vm1", "read disk0 0 512").status == 0
    assert lab.rows(machine)["parent"]["incarnation"] == 2
    assert machine.drivers()[1]["driver"] is None
    (bound,) = machine.add_driver(EXAMPLE)
    assert bound["error"] is None
    assert machine.exec("vm2", "read disk0 0 512").status == 0


def test_a_spare_has_the_driver_too(lab: Lab, wait: Wait) -> None:
    machine = up(lab, "microkernel", "zmq", RAID, policy={"parent": "standby"})
    wait(lambda: "parent.spare" in lab.rows(machine), "there is a spare")
    machine.add_driver(EXAMPLE)
    machine.vm("vm2").disk.write(0, b"kept")
    os.kill(lab.rows(machine)["parent"]["pid"], 9)
    assert machine.vm("vm2").disk.read(0, 4) == b"kept"


# -- the monolith ---------------------------------------------------------------------------------------------


def test_a_monolith_boots_only_with_the_drivers_of_its_image(lab: Lab) -> None:
    old, new = str(lab.folder / "old.img"), str(lab.folder / "new.img")
    assert lab.cli("image", "build", "--drivers", "nvme,e1000", old)[0] == 0
    built = lab.json("image", "build", "--drivers", f"nvme,e1000,{EXAMPLE}", new)
    assert [one["name"] for one in built["drivers"]] == ["nvme", "e1000", "megaraid"]
    lab_toml = lab.folder / "lab.toml"
    lab_toml.write_text('name = "m"\narch = "monolithic"\n[hardware.storage1]\nmodel = "1000:005d"\n')
    for flags in ((), ("--image", old)):
        status, out, errors = lab.cli("up", str(lab_toml), *flags)
        assert (status, out, errors.count("\n")) == (1, b"", 1)
        assert "has no driver for hw.storage1 (1000:005d)" in errors
        assert "image build --drivers" in errors
    assert lab.cli("up", str(lab_toml), "--image", new)[0] == 0
    lab.note("m")
    machine = lab.attach("m")
    assert {one["device"]: (one["driver"], one["version"]) for one in machine.drivers()} == {
        "hw.storage0": ("nvme", "1.0"), "hw.storage1": ("megaraid", "1.0"), "hw.nic0": ("e1000", "1.0"),
    }
    assert machine.exec("vm1", "ping -c 1 vm2").status == 0
    with pytest.raises(MachineError, match="fixed when its image is built"):
        machine.add_driver(EXAMPLE)
    with pytest.raises(MachineError, match="would not boot"):
        machine.install_image(old)
    assert machine.exec("vm1", "echo on").stdout == b"on\n"


def test_a_new_driver_of_a_monolith_is_a_new_image_and_a_reboot(lab: Lab) -> None:
    first, second = str(lab.folder / "1.img"), str(lab.folder / "2.img")
    image.build([*try_out("ahci"), *try_out("e1000")], first)
    other = package(lab.folder / "other", (
        "from drivers.queued import QueuedDisk\n"
        "DRIVER = Driver('x', '2.0', 'storage', ('8086:2922',), lambda model, disk: QueuedDisk(disk, 4, 65536))"
    ))  # fmt: skip
    image.build([*try_out(other), *try_out("e1000")], second)
    lab_toml = lab.folder / "lab.toml"
    lab_toml.write_text('name = "m"\narch = "monolithic"\n[hardware.storage0]\nmodel = "8086:2922"\n')
    assert lab.cli("up", str(lab_toml), "--image", first)[0] == 0
    machine = lab.attach("m")
    lab.note("m")
    machine.vm("vm1").disk.write(0, b"before")
    report = json.loads(lab.cli("image", "install", second, "--name", "m", "--json")[1])
    assert report["down_ms"] >= report["reboot_ms"] > 0
    assert machine.vm("vm1").disk.read(0, 6) == b"before"
    assert (machine.drivers()[0]["driver"], machine.drivers()[0]["version"]) == ("x", "2.0")
    with open(second, "ab") as file:
        file.write(b"more")
    status, _, errors = lab.cli("image", "install", str(lab.folder / "no.img"), "--name", "m")
    assert (status, "cannot read" in errors) == (1, True)
    with pytest.raises(MachineError, match="only a monolith boots from an image"):
        lab.up("microkernel", name="other").install_image(first)


# -- cables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["microkernel", "disaggregated", "monolithic"])
def test_a_cable_joins_the_switches_of_two_machines(lab: Lab, wait: Wait, arch: str) -> None:
    one = lab.up(arch, name="one", vms=2, hardware={"nic0": {"model": "8086:100e", "cable": "two.nic0"}})
    nic = [{"mac": "00:15:5d:00:00:99"}]
    two = lab.up(
        "microkernel", name="two", transport="ring", vm=[{"name": "far", "address": "10.0.9.9", "nic": nic}],
        hardware={"nic0": {"model": "10ec:8139", "cable": "one.nic0"}},
    )
    assert one.exec("vm1", "ping -c 2 10.0.9.9").status == 0
    assert two.exec("far", "ping -c 2 10.0.0.2").status == 0
    counters = lab.rows(two)["netvsp"]["counters"]
    assert counters["cable_in"] >= 4
    assert counters["cable_out"] >= 4
    # The cable is the machine's: a driver's process may die, and the driver be replaced.
    if arch != "monolithic":
        os.kill(lab.rows(one)["netvsp"]["pid"], 9)
        assert one.exec("vm2", "ping -c 3 -W 2 10.0.9.9").status == 0
    (bound,) = two.add_driver("rtl8139")
    assert (bound["device"], bound["error"]) == ("hw.nic0", None)
    assert one.exec("vm2", "ping -c 1 10.0.9.9").status == 0
    two.down()
    assert one.exec("vm1", "ping -c 1 -W 1 10.0.9.9").status != 0
    assert one.exec("vm1", "ping -c 1 vm2").status == 0
