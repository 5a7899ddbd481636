"""Driver packages: what they declare, the trial they must pass in a process of their own, and images made of them."""

from __future__ import annotations

import configparser
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import vmbus_emu
from vmbus_emu import hardware, image, placement
from vmbus_emu.client import MachineError
from vmbus_emu.client.drivers import of_image, try_out, with_drivers
from vmbus_emu.hardware import Driver
from vmbus_emu.node import load
from vmbus_emu.topology import parse

EXAMPLE = str(Path(vmbus_emu.__file__).parents[1] / "examples" / "driver-megaraid")
PROJECT = '[project]\nname = "x"\nversion = "1"\n[project.entry-points."vmbus_emu.drivers"]\nx = "bad_driver:DRIVER"\n'
HEAD = "from vmbus_emu.hardware import Driver\n"

#: What a package does -> what is told of it.
BAD = {
    "raise RuntimeError('no such bus')": "RuntimeError: no such bus",
    "import os; os._exit(7)": "its process ended with status 7",
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": "its process ended with status -11",
    "DRIVER = 3": "it is a int, not a vmbus_emu.hardware.Driver",
    "": "no attribute 'DRIVER'",
    "DRIVER = Driver('x', '1', 'storage', ('1:2',), print)": "its models are none",
    "DRIVER = Driver('x', '1', 'tape', ('1000:0001',), print)": "not for storage or nic",
    "DRIVER = Driver('X Y', '1', 'nic', ('1000:0001',), print)": "its name is none",
    "DRIVER = Driver('x', '1', 'storage', ('1000:0001',), lambda model, disk: None)": "cannot drive",
    "DRIVER = Driver('x', '1', 'storage', ('1000:0001',), lambda model, disk: 1 / 0)": "ZeroDivisionError",
    "from drivers.absent import AbsentDisk\n"
    "DRIVER = Driver('x', '1', 'storage', ('1000:0001',), lambda m, d: AbsentDisk(d.info))":
        "it claims 1000:0001 and cannot drive it: a null request ended with IO_ERROR",
    "from drivers.disk import NullDisk\n"
    "DRIVER = Driver('x', '1', 'storage', ('1000:0001',), lambda m, d: NullDisk(d.info))":
        "what it read is not what was written",
    "from partitions.parent.held_disk import HeldDisk\n"
    "DRIVER = Driver('x', '1', 'storage', ('1000:0001',), lambda m, d: HeldDisk(d.info))": "did not end",
    "class N:\n def __init__(self, *a): pass\n def transmit(self, f): return True\n def arrived(self, f): pass\n"
    "DRIVER = Driver('x', '1', 'nic', ('1000:0001',), lambda *a: N())": "did not come out",
}


def package(folder: Path, code: str) -> str:
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "bad_driver.py").write_text(HEAD + code + "\n")
    return str(folder)


@pytest.mark.parametrize("code", list(BAD), ids=range(len(BAD)))
def test_a_bad_package_fails_alone_with_its_reason(tmp_path: Path, code: str) -> None:
    with pytest.raises(MachineError) as raised:
        try_out(package(tmp_path, code))
    assert BAD[code] in str(raised.value)
    assert str(raised.value).count("\n") == 0
    assert raised.value.hint == "no machine has seen it"


def test_a_package_that_hangs_is_ended_at_the_deadline(tmp_path: Path) -> None:
    source = package(tmp_path, "import signal; signal.pause()")
    with pytest.raises(MachineError, match="it hangs: no answer for 1 s"):
        try_out(source, deadline_s=1)


def test_the_example_package_passes_and_says_what_it_is() -> None:
    (found,) = try_out(EXAMPLE)
    assert found == {
        "name": "megaraid", "version": "1.0", "kind": "storage", "models": ["1000:005d", "1000:0016"],
        "entry": "vmbus_emu_megaraid:DRIVER", "path": EXAMPLE,
    }  # fmt: skip


@pytest.mark.parametrize("name", list(hardware.BUILT_IN))
def test_every_driver_of_this_package_passes_with_all_its_models(name: str) -> None:
    (found,) = try_out(name)
    entry, models = hardware.BUILT_IN[name]
    assert (found["name"], tuple(found["models"])) == (name, models)
    driver = load(entry)
    assert isinstance(driver, Driver)
    assert driver.fault() == ""


@pytest.mark.parametrize(
    ("source", "words"),
    [("no-such-driver", 'there is no driver "no-such-driver"'), (".", "names no drivers"), ("/", "no pyproject.toml")],
)
def test_what_is_no_package_is_told(source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MachineError, match=words):
        try_out(source)


# -- which driver a device has ------------------------------------------------------------------------------


def test_without_a_table_there_is_a_default_set_with_drivers() -> None:
    topology = parse({})
    assert placement.unsupported(topology) == {}
    controllers = placement.devices(topology, "storage")
    assert {name: one["driver"]["name"] for name, one in controllers.items()} == {"storage0": "nvme"}
    assert with_drivers(topology) == (topology, [])


def test_a_model_chooses_its_driver_and_one_that_nobody_knows_is_told_with_the_disks_it_costs() -> None:
    topology = parse({
        "hardware": {"storage0": {"model": "8086:2922"}, "storage7": {"model": "1000:005d"}},
        "vm": [{"name": "vm1"}, {"name": "vm2", "disk": [{"ram": "1MiB", "controller": "storage7"}]}],
    })
    controllers = placement.devices(topology, "storage")
    assert controllers["storage0"]["driver"]["name"] == "ahci"
    assert controllers["storage7"]["driver"] is None
    assert [disk["controller"] for disk in placement.disks(topology)] == ["storage0", "storage7"]
    told, lines = with_drivers(topology)
    assert told == topology
    assert [line.partition(";")[0] for line in lines] == [
        "hw.storage7 (1000:005d): no driver knows it, so vm2.disk0 fails"
    ]


def install(folder: Path, name: str, code: str) -> None:
    """As a package manager would leave it in ``folder``."""
    (folder / f"{name}_driver.py").write_text(HEAD + code + "\n")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vmbus_emu.drivers]\n{name} = {name}_driver:DRIVER\n")


def test_installed_packages_are_found_by_their_entry_points_and_a_bad_one_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "good", "from drivers.nvme import attach\n"
                              "DRIVER = Driver('good', '3.1', 'storage', ('1000:005d',), attach)")
    install(tmp_path, "broken", "raise OSError('no firmware')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(vmbus_emu.__file__).parents[1]}")
    topology, lines = with_drivers(parse({"hardware": {"storage1": {"model": "1000:005d"}}}))
    assert topology.drivers == {
        "storage1": {"name": "good", "version": "3.1", "entry": "good_driver:DRIVER", "path": ""}
    }
    assert lines == ["broken: broken_driver:DRIVER is of no use: OSError: no firmware"]
    assert [found["name"] for found in try_out("good")] == ["good"]


def test_what_is_declared_for_installers_is_what_the_table_says() -> None:
    config = configparser.ConfigParser()
    config.read(Path(vmbus_emu.__file__).parents[1] / "setup.cfg")
    declared = config["options.entry_points"][hardware.GROUP].split("\n")
    assert [line for line in declared if line] == [f"{n} = {entry}" for n, (entry, _) in hardware.BUILT_IN.items()]


# -- images -----------------------------------------------------------------------------------------------


def test_an_image_has_the_code_of_its_drivers_and_a_checksum_over_it(tmp_path: Path) -> None:
    path = str(tmp_path / "esx.img")
    manifest = image.build([*try_out("ahci"), *try_out(EXAMPLE)], path)
    assert [(one["name"], one["entry"]) for one in manifest["drivers"]] == [
        ("ahci", "ahci:DRIVER"), ("megaraid", "vmbus_emu_megaraid:DRIVER"),
    ]  # fmt: skip
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == ["code/ahci.py", "code/vmbus_emu_megaraid/__init__.py", "manifest.json"]
    read = image.read(path)
    assert read["sha256"] == manifest["sha256"]
    assert {one["path"] for one in read["drivers"]} == {f"{path}/code"}


def test_an_image_that_was_changed_or_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "esx.img"
    image.build(try_out("nvme"), str(path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("code/more.py", "import os")
    with pytest.raises(MachineError, match="not what its checksum says"):
        image.read(str(path))
    for content in (b"", b"PK\3\4 nothing", b"no zip"):
        path.write_bytes(content)
        with pytest.raises(MachineError, match="is no image"):
            image.read(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", json.dumps({"schema": 1, "drivers": [{"name": 3}], "sha256": ""}))
    with pytest.raises(MachineError, match="is no image"):
        image.read(str(path))
    with pytest.raises(MachineError, match="cannot read"):
        image.read(str(tmp_path / "nowhere.img"))
    with pytest.raises(MachineError, match="cannot write"):
        image.build([], str(tmp_path / "no" / "folder.img"))


def test_with_an_image_there_are_no_drivers_but_those_in_it(tmp_path: Path) -> None:
    path = str(tmp_path / "esx.img")
    image.build(try_out("nvme"), path)
    topology = parse({"arch": "monolithic"})
    chosen = of_image(topology, path)
    assert list(chosen) == ["storage0"]
    following = replace(topology, image=path, drivers=chosen)
    assert placement.unsupported(following) == {"nic0": "8086:100e"}
