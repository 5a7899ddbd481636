"""``image extract``: what is copied out of an image, and every reason not to."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

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


def test_the_database_and_its_journal_are_copied_and_explained(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "db.sqlite"
    status, told = extract(image, target)
    assert status == 0
    assert target.read_bytes() == b"d" * 5000
    assert Path(f"{target}-journal").read_bytes() == b"j" * 700
    assert "rolls it back" in told


def test_without_a_transaction_under_way_there_is_one_file(image: Path, tmp_path: Path) -> None:
    without_journal(image)
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
    assert "vmbus-emu down" in told
    assert not (tmp_path / "db.sqlite").exists()


def test_a_target_that_cannot_be_written_is_told(image: Path, tmp_path: Path) -> None:
    status, told = extract(image, tmp_path / "nowhere" / "db.sqlite")
    assert (status, told.count("\n")) == (1, 1)
    assert "No such file or directory" in told


def test_wrong_usage_and_help() -> None:
    assert extract()[0] == 2
    assert extract("/nowhere.img", "db")[0] == 2
    assert "roll" in extract("--help")[1]
