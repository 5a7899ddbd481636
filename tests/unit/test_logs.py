"""Logs: time-stamped lines, completed across writes, rotated, and never the death of the machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from vmbus_emu.machine.logs import KEEP, ROTATE_BYTES, LogFile

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6} (.*)")


def lines(path: Path) -> list[str]:
    matches = [LINE.fullmatch(line) for line in path.read_text(errors="replace").splitlines()]
    assert all(matches), "every line has its time"
    return [match[1] for match in matches if match]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vm1.log"


def test_lines_are_completed_across_writes(path: Path) -> None:
    log = LogFile(str(path))
    for piece in (b"one\ntw", b"o\nth", b"ree"):
        log.write(piece)
    assert lines(path) == ["one", "two"]
    log.end_of_stream()
    log.end_of_stream()
    assert lines(path) == ["one", "two", "three"]
    assert list(log.tail) == ["one", "two", "three"]
    log.close()


def test_nothing_is_made_before_the_first_line(path: Path) -> None:
    log = LogFile(str(path))
    log.write(b"unfinished")
    assert not path.exists()
    log.close()


def test_a_line_without_end_is_cut_instead_of_kept(path: Path) -> None:
    log = LogFile(str(path))
    log.write(b"x" * 100_000)
    assert len(lines(path)[0]) == 100_000
    log.write(b"y\n")
    assert lines(path)[1] == "y"
    log.close()


def test_any_bytes_are_a_line(path: Path) -> None:
    log = LogFile(str(path))
    log.write(b"\xff\xfe\x1b[2J\n")
    assert log.tail[0].endswith("[2J")
    log.close()


def test_rotation_keeps_a_bounded_number_of_bounded_files(path: Path) -> None:
    log = LogFile(str(path))
    for number in range(5 * ROTATE_BYTES // 1000):
        log.line(f"{number:06} " + "x" * 993)
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["vm1.log", *(f"vm1.log.{n}" for n in range(1, KEEP + 1))]
    assert all(file.stat().st_size <= ROTATE_BYTES for file in files)
    numbers = [int(line[:6]) for file in (files[2], files[1], files[0]) for line in lines(file)]
    assert numbers == list(range(numbers[0], 5 * ROTATE_BYTES // 1000)), "no line is lost between two files"
    log.close()


def test_a_further_incarnation_appends(path: Path) -> None:
    for word in ("first", "second"):
        log = LogFile(str(path))
        log.line(word)
        log.close()
        log.close()
    assert lines(path) == ["first", "second"]


def test_a_log_that_cannot_be_written_loses_lines_and_nothing_else(path: Path) -> None:
    log = LogFile(str(path.parent / "missing" / "vm1.log"))
    log.line("lost")
    os.mkdir(path.parent / "missing")
    log.line("kept")
    assert lines(path.parent / "missing" / "vm1.log") == ["kept"]
    assert list(log.tail) == ["lost", "kept"]
    log.close()


def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    log = LogFile("/dev/full")
    log.line("lost")
    assert list(log.tail) == ["lost"]
    log.close()
