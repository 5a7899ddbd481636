"""Which files the role ``files`` shows: what is below its shared folders, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from partitions.roles.files import resolved


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "logs" / "old").mkdir(parents=True)
    (folder / "logs" / "vm1.log").write_text("said\n")
    (folder / "logs" / "old" / "a b.log").write_text("old\n")
    (folder / "logs-not-shared").mkdir()
    (folder / "lock").touch()
    (tmp_path / "secret").write_text("secret\n")
    (folder / "logs" / "out").symlink_to(tmp_path / "secret")
    (folder / "logs" / "up").symlink_to(tmp_path)
    (folder / "logs" / "side").symlink_to(folder / "lock")
    (folder / "logs" / "in").symlink_to("vm1.log")
    os.mkfifo(folder / "logs" / "pipe")
    return folder


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("/", ""), ("/logs", "logs"), ("/logs/", "logs"), ("/logs/vm1.log", "logs/vm1.log"),
        ("/logs/vm1.log?x=1#y", "logs/vm1.log"), ("/logs//./vm1.log", "logs/vm1.log"),
        ("/logs/old/a%20b.log", "logs/old/a b.log"), ("/logs/in", "logs/vm1.log"),
    ],
)
def test_what_is_shared_is_found(run: Path, target: str, found: str) -> None:
    assert resolved(str(run), target) == str(run / found)


@pytest.mark.parametrize(
    "target",
    [
        "", "logs/vm1.log", "/lock", "/s", "/pids", "/machine.json", "/logs-not-shared", "/LOGS/vm1.log",
        "/logs/../lock", "/../run/logs/vm1.log", "/logs/%2e%2e/lock", "/logs/..%2flock", "/logs/old/../../lock",
        "/%2e%2e/secret", "//secret", "//logs/vm1.log", "/logs/out", "/logs/up/secret", "/logs/side", "/logs/pipe",
        "/logs/none", "/logs/vm1.log%00.txt", "/logs/vm1.log/x", "/reports", "/..", "/.", "/logs/\\..\\lock",
    ],
)
def test_nothing_else_is_there(run: Path, target: str) -> None:
    assert resolved(str(run), target) in (None, str(run) if target == "/." else None)
