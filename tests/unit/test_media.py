"""The machine's media: images opened and locked once, RAM disks, and what cannot be used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmbus_emu.machine.media import MediaError, Medium, open_all
from vmbus_emu.topology.data import DiskSpec, Topology, VmSpec

Open = Callable[..., dict[str, Medium]]


def close(media: dict[str, Medium]) -> None:
    for medium in media.values():
        if medium.fd >= 0:
            os.close(medium.fd)
    media.clear()


@pytest.fixture
def insert() -> Iterator[Open]:
    """Open the media of a machine with one VM that has these disks; closed at the end, and none is leaked."""
    before = len(os.listdir("/proc/self/fd"))
    opened: list[dict[str, Medium]] = []

    def made(*disks: DiskSpec, vm: str = "vm1") -> dict[str, Medium]:
        spec = VmSpec(vm, 1 << 24, True, disks, (), "10.0.0.1")
        opened.append(open_all(Topology("t", "microkernel", "zmq", (spec,), ())))
        return opened[-1]

    yield made
    for media in opened:
        close(media)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.write_bytes(b"content!" * 512)
    return path


def file(path: Path, size: int = 0, read_only: bool = False) -> DiskSpec:
    return DiskSpec("file", str(path), size, read_only)


def test_media_are_named_by_vm_and_device_with_serials_that_stay(insert: Open, image: Path) -> None:
    media = insert(DiskSpec("ram", size_bytes=1 << 20), file(image), DiskSpec("null", size_bytes=1 << 40))
    assert list(media) == ["vm1.disk0", "vm1.disk1", "vm1.disk2"]
    assert [medium.block_count for medium in media.values()] == [2048, 8, 1 << 31]
    assert media["vm1.disk2"].fd == -1
    serials = [medium.serial for medium in media.values()]
    assert len(set(serials)) == 3
    close(media)
    assert [medium.serial for medium in insert(DiskSpec("ram", size_bytes=512)).values()] == serials[:1]


def test_a_ram_disk_is_memory_of_its_size_that_no_other_program_inherits(insert: Open) -> None:
    fd = insert(DiskSpec("ram", size_bytes=1 << 20))["vm1.disk0"].fd
    assert os.fstat(fd).st_size == 1 << 20
    assert os.fstat(fd).st_blocks == 0
    assert not os.get_inheritable(fd)


def test_an_image_that_does_not_exist_is_created_sparse_and_an_existing_one_keeps_its_size(
    insert: Open, image: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new.img"
    media = insert(file(new, 1 << 30), file(image, 1 << 30))
    assert (new.stat().st_size, new.stat().st_blocks) == (1 << 30, 0)
    assert [medium.block_count for medium in media.values()] == [1 << 21, 8]
    assert image.read_bytes() == b"content!" * 512


def test_a_writable_image_is_exclusive_and_free_again_after_it_was_closed(insert: Open, image: Path) -> None:
    media = insert(file(image))
    for read_only in (False, True):
        with pytest.raises(MediaError, match="is in use by another machine"):
            insert(file(image, read_only=read_only))
    close(media)
    insert(file(image))


def test_a_read_only_image_is_shared_and_cannot_be_written(insert: Open, image: Path) -> None:
    first = insert(file(image, read_only=True))["vm1.disk0"]
    second = insert(file(image, read_only=True))["vm1.disk0"]
    assert first.read_only
    assert os.pread(second.fd, 8, 0) == b"content!"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(first.fd, b"x", 0)
    with pytest.raises(MediaError, match="in use"):
        insert(file(image))


@pytest.mark.parametrize(("content", "why"), [(b"", "has 0 bytes"), (bytes(513), "multiple of 512")])
def test_an_image_that_is_no_whole_number_of_blocks_is_refused(
    insert: Open, tmp_path: Path, content: bytes, why: str
) -> None:
    odd = tmp_path / "odd.img"
    odd.write_bytes(content)
    with pytest.raises(MediaError, match=why):
        insert(file(odd))


def test_when_one_medium_cannot_be_used_none_is_left_open(insert: Open, image: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MediaError, match="cannot open"):
        insert(DiskSpec("ram", size_bytes=512), file(image), file(tmp_path / "missing"))
    assert len(os.listdir("/proc/self/fd")) == before
    insert(file(image))


def test_a_folder_is_no_image(insert: Open, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="cannot open"):
        insert(file(tmp_path))
