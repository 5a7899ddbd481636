"""A process's last words: taken apart, kept in few files, read again, and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vmbus_emu.cli import crashfiles
from vmbus_emu.cli.crashfiles import Crash, parse
from vmbus_emu.cli.logs import crash_lines
from vmbus_emu.loop import Loop
from vmbus_emu.machine.crashes import KEPT, Crashes, last_words
from vmbus_emu.machine.logs import LogFile
from vmbus_emu.runfolder import RunFolder

PANIC = ["*** HOST PANIC in vm1.disk0: DriverBug('x')", "Traceback (most recent call last):", "  File", "DriverBug: x"]


def test_the_screen_is_what_follows_the_panic_and_the_panic_is_the_reason() -> None:
    assert last_words(["before", *PANIC]) == (PANIC[0], PANIC, ["before"])


def test_a_signals_and_an_exceptions_screen() -> None:
    fatal = ["Fatal Python error: Segmentation fault", "", "Stack", "  File", "Extension modules: zmq"]
    assert last_words(["a", *fatal]) == (fatal[0], fatal, ["a"])
    assert last_words(PANIC[1:]) == ("DriverBug: x", PANIC[1:], [])


def test_who_said_nothing_about_its_end_has_no_screen() -> None:
    assert last_words(["one", "two"]) == ("two", (), ["one", "two"])
    assert last_words([]) == ("", (), [])


class Process:
    def __init__(self, name: str, incarnation: int) -> None:
        self.name, self.incarnation, self.pid, self.ending = name, incarnation, 7, "killed by SIGABRT"


class Supervisor:
    def __init__(self, folder: Path) -> None:
        self._log = LogFile(str(folder / "hypervisor.log"))

    def log(self, name: str) -> LogFile:
        return self._log


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunFolder:
    monkeypatch.setenv("VMBUS_EMU_RUN", "/tmp/vmbus-emu-unit")
    folder = RunFolder("m")
    folder.path = tmp_path
    return folder


def test_what_is_written_is_read_again_and_only_the_last_stay(loop: Loop, folder: RunFolder) -> None:
    supervisor: Any = Supervisor(folder.path)
    crashes = Crashes(loop, folder.path / "crashes", "m", supervisor)
    assert crashfiles.latest(folder, None) is None
    for incarnation in range(1, KEPT + 3):
        for line in (f"incarnation {incarnation}", *PANIC):
            supervisor.log("hypervisor").line(line)
        process: Any = Process("hypervisor", incarnation)
        name = crashes.capture(process, ["hypervisor", "storvsp"])
        assert loop.run_until((folder.path / "crashes" / name).exists, 5.0)
    assert sorted(path.name for path in (folder.path / "crashes").iterdir()) == sorted(
        f"hypervisor-{incarnation}.txt" for incarnation in range(3, KEPT + 3))
    last = crashfiles.latest(folder, None)
    assert last is not None
    assert (last.file, last.screen, last.log) == (name, PANIC, [f"incarnation {KEPT + 2}"])
    assert {key: last.header[key] for key in ("machine", "component", "pid", "incarnation", "ended")} == {
        "machine": "m", "component": "hypervisor", "pid": "7", "incarnation": str(KEPT + 2),
        "ended": "killed by SIGABRT"}
    assert crashfiles.latest(folder, "storvsp") is not None
    assert crashfiles.latest(folder, "parent") is None


def test_a_death_without_words_is_not_told_in_those_of_the_one_before(loop: Loop, folder: RunFolder) -> None:
    supervisor: Any = Supervisor(folder.path)
    crashes = Crashes(loop, folder.path / "crashes", "m", supervisor)
    supervisor.log("hypervisor").line(PANIC[0])
    processes: list[Any] = [Process("hypervisor", 1), Process("hypervisor", 2)]
    for process in processes:
        crashes.capture(process, ["hypervisor"])
    assert loop.run_until((folder.path / "crashes" / "hypervisor-2.txt").exists, 5.0)
    found = crashfiles.latest(folder, None)
    assert found is not None
    assert found.screen == ["none: it was killed by SIGABRT, and said nothing about that"]
    assert (found.silent, found.log) == (True, ["none"])


def test_the_screen_is_purple_in_colour_only_and_steers_no_terminal() -> None:
    crash = Crash("f", {"component": "hypervisor"}, ["*** HOST PANIC\x1b[2J"], ["log \x07"])
    plain = crash_lines(crash, colour=False)
    assert plain == ["component:   hypervisor", "", "*** HOST PANIC?[2J", "", "last log lines:", "  log ?"]
    coloured = crash_lines(crash, colour=True)
    assert coloured[2].startswith("\x1b[97m\x1b[45m *** HOST PANIC?[2J")
    assert [line for at, line in enumerate(coloured) if at != 2] == [line for at, line in enumerate(plain) if at != 2]
    crash.screen = ["none: it was killed by SIGKILL, and said nothing about that"]
    assert "\x1b" not in "".join(crash_lines(crash, colour=True))


def test_a_file_that_is_none_of_ours_is_read_as_far_as_it_goes() -> None:
    assert parse("f", "") == Crash("f")
    assert parse("f", "nonsense\nscreen:\nnot indented\n  yes\n").screen == ["yes"]
