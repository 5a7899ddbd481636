"""``image extract``: what is copied out of an image, and every reason not to."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from click.testing import CliRunner

from vmbus_emu.cli import image as cli_image
from vmbus_emu.cli.main import cli
from vmbus_emu.protocol.database import laid_out

SIZE = 2 << 20


def extract(*words: str | Path) -> tuple[int, str]:
    """Status, and everything that was printed."""
    ran = CliRunner().invoke(cli, ["image", "extract", *map(str, words)])
    assert ran.exception is None or isinstance(ran.exception, SystemExit)
    return ran.exit_code, ran.output


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A database of 5000 bytes and a journal of 700."""
    block = laid_out(SIZE)._replace(database_length=5000, journal_length=700)
    content = bytearray(os.urandom(SIZE))
    content[:512] = block.encode()
    content[block.database_start : block.database_start + 5000] = b"d" * 5000
    content[block.journal_start : block.journal_start + 700] = b"j" * 700
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    return path


def without_journal(image: Path) -> None:
    content = image.read_bytes()
    image.write_bytes(laid_out(SIZE)._replace(database_length=5000).encode() + content[512:])


def rolled_back(image: Path) -> None:
    """SQLite has zeroed the header of the journal."""
    content = bytearray(image.read_bytes())
    start = laid_out(SIZE).journal_start
    content[start : start + 28] = bytes(28)
    image.write_bytes(content)


def test_the_database_and_its_journal_are_copied_and_explained(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "db.sqlite"
    status, told = extract(image, target)
    assert status == 0
    assert target.read_bytes() == b"d" * 5000
    assert Path(f"{target}-journal").read_bytes() == b"j" * 700
    assert "rolls it back" in told


@pytest.mark.parametrize("how", [without_journal, rolled_back])
def test_without_a_transaction_under_way_there_is_one_file(
    image: Path, tmp_path: Path, how: Callable[[Path], None]
) -> None:
    how(image)
    target = tmp_path / "db.sqlite"
    assert extract(image, target) == (0, f"{target}: 5000 bytes\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["db.sqlite", "disk.img"]


@pytest.mark.parametrize("name", ["db.sqlite", "db.sqlite-journal", "db.sqlite-wal", "db.sqlite-shm"])
def test_nothing_is_replaced_unless_forced_and_no_foreign_journal_is_left(
    image: Path, tmp_path: Path, name: str
) -> None:
    without_journal(image)
    (tmp_path / name).write_bytes(b"other")
    status, told = extract(image, tmp_path / "db.sqlite")
    assert (status, told.count("\n")) == (1, 1)
    assert f"{tmp_path / name} exists" in told
    assert "--force" in told
    assert (tmp_path / name).read_bytes() == b"other"
    assert extract("--force", image, tmp_path / "db.sqlite")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["db.sqlite", "disk.img"]
    assert (tmp_path / "db.sqlite").read_bytes() == b"d" * 5000


@pytest.mark.parametrize(("at", "told"), [(0, "no database of vmbus-emu"), (13, "damaged"), (50, "damaged")])
def test_what_holds_no_database_is_refused(image: Path, tmp_path: Path, at: int, told: str) -> None:
    content = bytearray(image.read_bytes())
    content[at] ^= 1
    image.write_bytes(content)
    status, said = extract(image, tmp_path / "db.sqlite")
    assert (status, said.count("\n")) == (1, 1)
    assert told in said
    assert not (tmp_path / "db.sqlite").exists()


@pytest.mark.parametrize("length", [0, 100, 4096, 4 * 4096])
def test_an_image_that_was_cut_is_refused(image: Path, tmp_path: Path, length: int) -> None:
    os.truncate(image, length)
    status, told = extract(image, tmp_path / "db.sqlite")
    assert (status, told.count("\n")) == (1, 1)
    assert not (tmp_path / "db.sqlite").exists()


def test_an_image_in_use_is_refused(image: Path, tmp_path: Path) -> None:
    with image.open("rb") as machine:
        fcntl.flock(machine, fcntl.LOCK_EX)
        status, told = extract(image, tmp_path / "db.sqlite")
    assert status == 1
    assert "in use" in told
    assert "vmbus-emu down --name NAME" in told
    assert not (tmp_path / "db.sqlite").exists()


def test_a_target_that_cannot_be_written_is_told(image: Path, tmp_path: Path) -> None:
    status, told = extract(image, tmp_path / "nowhere" / "db.sqlite")
    assert (status, told.count("\n")) == (1, 1)
    assert "No such file or directory" in told


@pytest.mark.parametrize("role", ["", "-journal", "-wal", "-shm"])
@pytest.mark.parametrize("kind", ["itself", "hard link", "symbolic link"])
def test_the_image_is_never_what_is_replaced(image: Path, tmp_path: Path, role: str, kind: str) -> None:
    content, path = image.read_bytes(), tmp_path / f"db{role}"
    if kind == "itself":
        image = image.rename(path)
    elif kind == "hard link":
        path.hardlink_to(image)
    else:
        path.symlink_to(image)
    there = sorted(os.listdir(tmp_path))
    status, told = extract("--force", image, tmp_path / "db")
    assert (status, told.count("\n")) == (1, 1)
    assert f"{path} is the image itself" in told
    assert image.read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == there


def old(folder: Path) -> dict[str, bytes]:
    """A database with a transaction under way, beside the image."""
    content = {"db": b"old database", "db-journal": b"old journal", "db-wal": b"old wal"}
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return content


def found(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("db*")}


def test_a_copy_that_fails_loses_nothing(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, real = old(tmp_path), cli_image._copy

    def copy(disk: BinaryIO, start: int, length: int, target: Path) -> None:
        real(disk, start, length, target)
        if length == 700:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli_image, "_copy", copy)
    status, told = extract("--force", image, tmp_path / "db")
    assert (status, told.count("\n")) == (1, 1)
    assert f"{image} cannot be copied to {tmp_path / 'db'}: No space left on device" in told
    assert found(tmp_path) == content
    assert sorted(os.listdir(tmp_path)) == ["db", "db-journal", "db-wal", "disk.img"]


@pytest.mark.parametrize("failing", range(1, 6))
def test_renames_that_fail_are_undone_and_no_database_stands_beside_a_foreign_journal(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    content, real, count = old(tmp_path), Path.rename, 0

    def rename(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == failing:
            raise OSError(13, "Permission denied")
        moved = real(self, target)
        there = found(tmp_path)
        pair = there.get("db-journal", b"none"), there.get("db-wal", b"none")
        assert there.get("db") in (None, content["db"], b"d" * 5000)
        if "db" in there:
            olds, news = (content["db-journal"], content["db-wal"]), (b"j" * 700, b"none")
            assert pair == (olds if there["db"] == content["db"] else news)
        return moved

    monkeypatch.setattr(Path, "rename", rename)
    status, told = extract("--force", image, tmp_path / "db")
    assert (status, "Permission denied" in told) == (1, True)
    assert found(tmp_path) == content
    assert sorted(os.listdir(tmp_path)) == ["db", "db-journal", "db-wal", "disk.img"]


def test_what_is_no_file_of_its_own_is_not_replaced(image: Path, tmp_path: Path) -> None:
    (tmp_path / "db").symlink_to("elsewhere")
    (tmp_path / "other-journal").mkdir()
    for name, wrong in (("db", "db"), ("other", "other-journal")):
        status, told = extract("--force", image, tmp_path / name)
        assert (status, told.count("\n")) == (1, 1)
        assert f"{tmp_path / wrong} is no file of its own" in told
    assert extract(image, tmp_path / "db")[0] == 1
    assert sorted(os.listdir(tmp_path)) == ["db", "disk.img", "other-journal"]


def test_wrong_usage_and_help() -> None:
    assert extract()[0] == 2
    assert extract("/nowhere.img", "db")[0] == 2
    assert "roll" in extract("--help")[1]
