"""A medium's copy: the same bytes and holes, and no file unless it is complete."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmbus_emu.loop import Loop
from vmbus_emu.machine import mediumcopy
from vmbus_emu.machine.mediumcopy import NewFile, copy
from vmbus_emu.task import Task, sleep

SIZE = 64 << 20
PIECES = {0: b"a" * 4096, 10 << 20: os.urandom(9 << 20), SIZE - 512: b"z" * 512}


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture(params=["ram", "file"])
def medium(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    fd = os.memfd_create("m") if request.param == "ram" else os.open(tmp_path / "m.img", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, SIZE)
    for at, data in PIECES.items():
        os.pwrite(fd, data, at)
    yield fd
    os.close(fd)


def copied(loop: Loop, source: int, target: int, size: int = SIZE) -> int:
    task = Task(loop, copy(source, target, size, lambda: sleep(loop, 0)), watched=True)
    assert loop.run_until(lambda: task.done, 30)
    return task.result()


def test_it_has_the_same_bytes_and_the_holes_stay_holes(loop: Loop, medium: int, tmp_path: Path) -> None:
    file = NewFile(str(tmp_path / "out.img"))
    data = copied(loop, medium, file.fd)
    assert not (tmp_path / "out.img").exists(), "not before it is complete"
    file.keep()
    file.close()
    made = tmp_path / "out.img"
    assert made.read_bytes() == os.pread(medium, SIZE, 0)
    wanted = sum(map(len, PIECES.values()))
    assert wanted <= data < wanted + (1 << 20)
    assert made.stat().st_blocks * 512 < wanted + (1 << 20)
    assert os.listdir(tmp_path).count("out.img") == 1


def test_what_is_not_kept_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = NewFile(str(tmp_path / "out.img"))
    os.write(file.fd, b"half")
    file.close()
    assert os.listdir(tmp_path) == []
    refuse_nameless(monkeypatch)
    file = NewFile(str(tmp_path / "out.img"))
    os.write(file.fd, b"half")
    file.close()
    file.close()
    assert os.listdir(tmp_path) == []


def refuse_nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As some file systems do."""
    real = os.open

    def opening(path: Any, flags: int, *more: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no")
        return real(path, flags, *more)

    monkeypatch.setattr(mediumcopy.os, "open", opening)


def test_a_file_system_without_nameless_files_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_nameless(monkeypatch)
    file = NewFile(str(tmp_path / "out.img"))
    os.write(file.fd, b"whole")
    file.keep()
    file.close()
    assert os.listdir(tmp_path) == ["out.img"]
    assert (tmp_path / "out.img").read_bytes() == b"whole"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    late = NewFile(str(tmp_path / "out.img"))
    (tmp_path / "out.img").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        NewFile(str(tmp_path / "out.img"))
    with pytest.raises(FileExistsError):
        late.keep()
    late.close()
    assert (tmp_path / "out.img").read_bytes() == b"mine"


def test_a_medium_that_was_cut_short_fails(loop: Loop, medium: int, tmp_path: Path) -> None:
    file = NewFile(str(tmp_path / "out.img"))
    os.ftruncate(medium, 12 << 20)
    assert copied(loop, medium, file.fd) > 0, "what is missing is a hole"
    file.close()


def test_an_empty_medium_is_one_hole(loop: Loop, tmp_path: Path) -> None:
    fd = os.memfd_create("m")
    os.ftruncate(fd, SIZE)
    file = NewFile(str(tmp_path / "out.img"))
    assert copied(loop, fd, file.fd) == 0
    assert os.fstat(file.fd).st_size == SIZE
    file.close()
    os.close(fd)
