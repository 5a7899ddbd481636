"""Files that verbs write when they are done: what is there stays as it is until then, and whatever is wrong is told."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from vmbus_emu.cli import outfile
from vmbus_emu.cli.errors import Failure, explain
from vmbus_emu.cli.outfile import OutFile, OutFileType, attempt, complain, to_stdout


@click.command()
@click.option("--one", type=OutFileType())
@click.option("--two", type=OutFileType())
@click.option("--told", default="new")
def writing(one: OutFile | None, two: OutFile | None, told: str) -> None:
    unwritten = [attempt(file, lambda: told) for file in (one, two)]
    click.echo("the table", err=to_stdout(one, two))
    complain(unwritten)


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(writing, [str(word) for word in words])


def test_a_file_appears_as_a_whole_with_the_rights_it_had(tmp_path: Path) -> None:
    path, fresh = tmp_path / "kept", tmp_path / "fresh"
    path.write_text("old, and longer")
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to("kept")
    assert run("--one", link, "--two", fresh).exit_code == 0
    assert (path.read_text(), fresh.read_text()) == ("new", "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["fresh", "kept", "link"]


@pytest.mark.parametrize("words", [["--two"], ["--told"], ["--other", "x"], ["--two", "/nowhere/x"], ["--help"]])
def test_a_command_line_that_is_not_carried_out_touches_nothing(tmp_path: Path, words: list[str]) -> None:
    path = tmp_path / "kept"
    path.write_text("old")
    run("--one", path, *words)
    run("--one", tmp_path / "fresh", *words)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept"]


def test_what_cannot_be_written_is_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for name, told in (("", "No such file"), ("nowhere/x", "No such file"), (".", "it is a directory"),
                       ("new/", "No such file"), ("file/x", "Not a directory"),
                       ("x" * 300, "name too long")):  # fmt: skip
        ended = run("--one", f"{tmp_path}/{name}" if name else name)
        assert (ended.exit_code, told in ended.stderr) == (2, True), ended.stderr
    monkeypatch.setattr(os, "access", lambda path, rights: False)
    for name in ("file", "fresh"):
        assert "permission denied" in run("--one", tmp_path / name).stderr
    assert os.listdir(tmp_path) == ["file"]


def test_no_two_go_to_the_same_place(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    for one, two in (("-", "-"), ("-", "/dev/stdout"), (tmp_path / "file", tmp_path / "link")):
        ended = run("--one", one, "--two", two)
        assert (ended.exit_code, "--one goes to" in ended.stderr) == (2, True)
    assert run("--one", "/dev/null", "--two", "/dev/null").exit_code == 0


def test_standard_output_carries_nothing_else(tmp_path: Path) -> None:
    ended = run("--two", "-")
    assert (ended.exit_code, ended.stdout, ended.stderr) == (0, "new", "the table\n")
    ended = run("--two", tmp_path / "file")
    assert (ended.stdout, ended.stderr) == ("the table\n", "")


def test_a_full_disk_is_one_line_after_everything_else_and_the_old_file_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = run("--one", "/dev/full", "--two", "/dev/full")
    assert (ended.exit_code, ended.stdout) == (1, "the table\n")
    first, second = ended.stderr.splitlines()
    assert first == second
    assert first.startswith("vmbus-emu: error: /dev/full was not written: No space left on device; ")
    path = tmp_path / "kept"
    path.write_text("old")

    def full(name: Path, data: bytes, *others: object) -> None:
        with open(name, "wb") as file:
            file.write(data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outfile, "_write", full)
    ended = run("--one", path)
    assert (ended.exit_code, path.read_text()) == (1, "old")
    assert os.listdir(tmp_path) == ["kept"]


def test_a_file_that_cannot_be_replaced_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(self: Path, target: Path) -> None:
        raise OSError(16, "Device or resource busy")

    path = tmp_path / "mounted"
    path.write_text("old, and longer")
    monkeypatch.setattr(Path, "replace", busy)
    assert run("--one", path).exit_code == 0
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["mounted"]


def test_who_has_gone_away_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*arguments: object, **named: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(click, "echo", gone)
    with pytest.raises(BrokenPipeError):
        OutFile("-").write("x")


def test_what_can_be_written_once_waits(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert attempt(OutFile(str(path)), lambda: b"early", early=True) is None
    assert path.read_bytes() == b"early"
    assert attempt(OutFile("/dev/full", in_place=True), lambda: "x", early=True) is None
    assert isinstance(attempt(OutFile("/dev/full", in_place=True), lambda: "x"), Failure)
    assert OutFile(str(path)).is_same(path)
    assert not OutFile("-").is_same(path)


def test_a_full_disk_is_never_a_traceback() -> None:
    for error, told in ((OSError(28, "No space left on device"), "nothing more can be written: No space left"),
                        (OSError(28, "No space left on device", "/tmp/x"), "/tmp/x: No space left")):  # fmt: skip
        lines, status = explain(error) or ([], 0)
        assert status == 1
        assert told in lines[0]
    assert explain(OSError(9, "Bad file descriptor")) is None
