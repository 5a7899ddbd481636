"""Does real data survive the way through a VM's disk path, in every placement, and is an image safe from others?"""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmbus_emu.client import MachineError

if TYPE_CHECKING:
    from conftest import Lab

PLACEMENTS = ("monolithic", "microkernel", "disaggregated")
MIB = 1 << 20


def random_image(path: Path, size: int, seed: int = 1) -> bytes:
    content = random.Random(seed).randbytes(size)
    path.write_bytes(content)
    return content


def with_disk(disk: dict[str, Any], *more: dict[str, Any]) -> list[dict[str, Any]]:
    """vm1 with these disks, and a vm2."""
    return [{"name": "vm1", "disk": [disk, *more]}, {"name": "vm2", "disk": [{"ram": "1MiB"}]}]


@pytest.mark.parametrize("arch", PLACEMENTS)
def test_sha256_through_the_vm_is_that_of_the_file_and_writes_are_in_the_file_after_down(lab: Lab, arch: str) -> None:
    image = lab.folder / "a.img"
    content = random_image(image, 16 * MIB)
    status, _, errors = lab.cli("up", "--name", "m", "--arch", arch, "--disk", str(image))
    assert status == 0, errors
    status, out, _ = lab.cli("exec", "--name", "m", "vm1", "--", "sha256", "disk0")
    assert (status, out.decode()) == (0, f"{hashlib.sha256(content).hexdigest()}  disk0\n")

    patch = random.Random(2).randbytes(300_001)  # begins and ends inside a block, longer than one request
    status, _, errors = lab.cli("exec", "--name", "m", "vm1", "--", "write", "disk0", "1000003", stdin=patch)
    assert status == 0, errors
    changed = content[:1000003] + patch + content[1000003 + len(patch):]
    machine = lab.attach()
    assert machine.vm("vm1").disk.sha256() == hashlib.sha256(changed).hexdigest()
    machine.down()
    assert image.read_bytes() == changed


@pytest.mark.parametrize("arch", PLACEMENTS)
def test_a_read_only_disk_can_be_read_and_refuses_writes_with_a_reason(lab: Lab, arch: str) -> None:
    image = lab.folder / "a.img"
    content = random_image(image, MIB)
    image.chmod(0o444)
    machine = lab.up(arch, vm=with_disk({"file": str(image), "read_only": True}))
    result = machine.exec("vm1", "write disk0 0 hello")
    assert result.status == 1
    assert b"write at block 0: the disk is read-only" in result.stderr
    with pytest.raises(MachineError, match="read-only"):
        machine.vm("vm1").disk.write(512, b"x" * 512)
    assert machine.exec("vm1", "discard disk0 0 512").status == 1
    assert machine.vm("vm1").disk.sha256() == hashlib.sha256(content).hexdigest()
    machine.down()
    assert image.read_bytes() == content


@pytest.mark.parametrize("arch", PLACEMENTS)
def test_an_image_in_use_is_refused_to_a_second_machine_and_free_after_down(lab: Lab, arch: str) -> None:
    image = lab.folder / "a.img"
    random_image(image, MIB)
    first = lab.up(arch, name="a", vm=with_disk({"file": str(image)}))
    status, out, errors = lab.cli("up", "--name", "b", "--arch", arch, "--disk", str(image))
    assert (status, out) == (1, b"")
    assert errors.count("\n") == 1
    assert f"vm1.disk0: {image} is in use by another machine" in errors
    assert not (lab.run / "b").exists()
    first.down()
    second = lab.up(arch, name="b", vm=with_disk({"file": str(image)}))
    second.vm("vm1").disk.write(0, b"mine")


def test_readers_share_an_image_and_keep_writers_out(lab: Lab) -> None:
    image = lab.folder / "a.img"
    content = random_image(image, MIB)
    shared = {"file": str(image), "read_only": True}
    machines = [lab.up(name=name, vm=with_disk(shared)) for name in ("a", "b")]
    for machine in machines:
        assert machine.vm("vm1").disk.sha256() == hashlib.sha256(content).hexdigest()
    with pytest.raises(MachineError, match="in use by another machine"):
        lab.up(name="c", vm=with_disk({"file": str(image)}))


@pytest.mark.parametrize("arch", PLACEMENTS)
def test_an_image_with_a_size_is_created_sparse(lab: Lab, arch: str) -> None:
    image = lab.folder / "new.img"
    machine = lab.up(arch, vm=with_disk({"file": str(image), "size": "1GiB"}))
    assert image.stat().st_size == 1 << 30
    assert image.stat().st_blocks == 0
    machine.vm("vm1").disk.write((1 << 30) - 4096, b"at the end".ljust(4096))
    machine.vm("vm1").disk.flush()
    machine.down()
    with image.open("rb") as file:
        file.seek(-4096, os.SEEK_END)
        assert file.read() == b"at the end".ljust(4096)
    assert image.stat().st_blocks * 512 <= 64 * 1024  # what was written, not what could be


def test_a_vm_sees_several_disks_each_its_own(lab: Lab) -> None:
    contents = [random_image(lab.folder / f"{number}.img", MIB, seed=number) for number in range(3)]
    disks = [{"file": str(lab.folder / f"{number}.img")} for number in range(3)]
    machine = lab.up("disaggregated", vm=with_disk(*disks))
    sums = [machine.vm("vm1").disks(f"disk{number}").sha256() for number in range(3)]
    assert sums == [hashlib.sha256(content).hexdigest() for content in contents]
    result = machine.exec("vm1", "sha256 disk3")
    assert (result.status, b"disk3" in result.stderr) == (1, True)


def test_an_image_that_shrank_since_the_check_does_not_come_up(lab: Lab) -> None:
    image = lab.folder / "a.img"
    random_image(image, MIB)
    machine = lab.machine({"name": "m", "vm": with_disk({"file": str(image)})})
    image.write_bytes(b"")
    with pytest.raises(MachineError, match="has 0 bytes; a disk needs a multiple of 512"):
        machine.up()
