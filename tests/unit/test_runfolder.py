"""Where a machine's files are, whether it runs, and what may be removed.

Whether *another* process holds a lock can only be asked with another process: the few tests that need one
start a Python that holds the lock until its standard input closes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from vmbus_emu import posixlock, runfolder
from vmbus_emu.runfolder import RunFolder, RunFolderError, Running, list_machines, sweep
from vmbus_emu.topology import Overrides, build

HOLD = """
import sys
from vmbus_emu.runfolder import RunFolder
folder = RunFolder("lab")
folder.acquire()
folder.write_info({"pid": 1, "arch": "microkernel", "vms": ["vm1"]})
print("held", flush=True)
sys.stdin.read()
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(runfolder.__file__).parents[1])}


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A base folder short enough for socket paths, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="ve-", dir="/tmp") as folder:
        monkeypatch.setenv("VMBUS_EMU_RUN", folder)
        yield Path(folder)


@pytest.fixture
def other(base: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that runs the machine "lab"."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


def test_the_runtime_folder_is_used_if_it_is_ours_and_short(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMBUS_EMU_RUN")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    assert runfolder.base_folder() == base / "vmbus-emu"
    fallback = Path(f"/tmp/vmbus-emu-{os.getuid()}")
    deep = base / ("d" * 30)
    deep.mkdir()
    (base / "link").symlink_to(base)
    for unfit in ("", "relative", str(base / "missing"), str(deep), str(base / "link")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", unfit)
        assert runfolder.base_folder() == fallback


def test_a_relative_base_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMBUS_EMU_RUN", "here")
    with pytest.raises(RunFolderError, match="not an absolute path"):
        RunFolder("lab")


@pytest.mark.parametrize("name", ["", "..", "a/b", "Lab", "x" * 33, "lab\n", "1a"])
def test_what_is_no_name_makes_no_folder(base: Path, name: str) -> None:
    with pytest.raises(RunFolderError):
        RunFolder(name)


def test_the_longest_socket_path_fits_or_the_folder_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = len("/lab/s/") + runfolder.MAX_SOCKET_NAME
    room = runfolder.MAX_SOCKET_PATH - fixed
    longest = "/" + "b" * (room - 1)
    monkeypatch.setenv("VMBUS_EMU_RUN", longest)
    folder = RunFolder("lab")
    assert len(folder.socket("x" * runfolder.MAX_SOCKET_NAME)) == 107
    with pytest.raises(ValueError, match="too long"):
        folder.socket("x" * (runfolder.MAX_SOCKET_NAME + 1))
    monkeypatch.setenv("VMBUS_EMU_RUN", longest + "b")
    with pytest.raises(RunFolderError, match="108 bytes"):
        RunFolder("lab")


def test_the_folder_is_for_its_owner_alone(base: Path) -> None:
    folder = RunFolder("lab")
    assert not folder.exists()
    folder.create()
    folder.create()
    assert folder.exists()
    for path in (folder.path, folder.sockets, folder.logs):
        assert path.stat().st_mode & 0o777 == 0o700


def test_a_base_that_others_can_enter_or_that_is_a_link_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_base = base / "open"
    open_base.mkdir()
    open_base.chmod(0o755)
    monkeypatch.setenv("VMBUS_EMU_RUN", str(open_base))
    with pytest.raises(RunFolderError, match="open to other users"):
        RunFolder("lab").create()
    (base / "link").symlink_to(base)
    monkeypatch.setenv("VMBUS_EMU_RUN", str(base / "link"))
    with pytest.raises(RunFolderError, match="not a folder of this user"):
        RunFolder("lab").create()
    (base / "file").touch()
    monkeypatch.setenv("VMBUS_EMU_RUN", str(base / "file"))
    with pytest.raises(RunFolderError):
        RunFolder("lab").create()


def test_nobody_holds_what_was_never_started(base: Path) -> None:
    folder = RunFolder("lab")
    assert folder.holder() is None
    folder.create()
    assert folder.holder() is None
    folder.lock_file.touch()
    assert folder.holder() is None


def test_the_holder_knows_itself_and_does_not_lose_the_lock_by_asking(base: Path) -> None:
    folder = RunFolder("lab")
    lock = folder.acquire()
    try:
        assert RunFolder("lab").holder() == os.getpid()
        assert [(entry.name, entry.pid) for entry in list_machines()] == [("lab", os.getpid())]
        with pytest.raises(Running):
            RunFolder("lab").acquire()
        asked = subprocess.run(
            [sys.executable, "-c", 'from vmbus_emu.runfolder import RunFolder; print(RunFolder("lab").holder())'],
            stdout=subprocess.PIPE, check=True, env=environment(),
        )
        assert int(asked.stdout) == os.getpid()
    finally:
        folder.release(lock)
    assert folder.holder() is None


def test_another_process_that_holds_the_lock_is_seen_named_and_spared(
    base: Path, other: subprocess.Popen[bytes]
) -> None:
    folder = RunFolder("lab")
    assert folder.holder() == other.pid
    with pytest.raises(Running) as caught:
        folder.acquire()
    assert caught.value.pid == other.pid
    assert sweep("lab") is False
    (entry,) = list_machines()
    assert (entry.name, entry.pid, entry.stale, entry.info["vms"]) == ("lab", other.pid, False, ["vm1"])


def test_a_killed_machine_is_stale_and_swept(base: Path, other: subprocess.Popen[bytes]) -> None:
    other.kill()
    other.wait()
    (entry,) = list_machines()
    assert (entry.pid, entry.stale) == (None, True)
    assert sweep("lab") is True
    assert list_machines() == []
    assert list(base.iterdir()) == []
    assert sweep("lab") is False


def test_sweeping_never_follows_a_link(base: Path) -> None:
    with tempfile.TemporaryDirectory() as outside:
        kept = Path(outside, "kept")
        kept.touch()
        (base / "lab").symlink_to(outside)
        assert sweep("lab") is False
        assert list_machines() == []
        (base / "lab").unlink()
        folder = RunFolder("lab")
        folder.create()
        (folder.path / "inner").symlink_to(outside)
        assert sweep("lab") is True
        assert kept.exists()


def test_a_lock_taken_on_a_swept_file_is_taken_again_on_the_new_one(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder("lab")
    real = posixlock.try_lock
    swept: list[bool] = []

    def sweep_first(lock: int) -> bool:
        if not swept:
            swept.append(True)
            folder.remove()
        return real(lock)

    monkeypatch.setattr(posixlock, "try_lock", sweep_first)
    lock = folder.acquire()
    try:
        assert os.path.samestat(os.fstat(lock), folder.lock_file.stat())
    finally:
        folder.release(lock)


def test_the_description_is_read_back_and_anything_else_is_nothing(base: Path) -> None:
    folder = RunFolder("lab")
    assert folder.info() == {}
    folder.create()
    folder.write_info({"pid": 7, "vms": ["vm1"]})
    assert folder.info() == {"schema": 1, "name": "lab", "pid": 7, "vms": ["vm1"]}
    assert sorted(path.name for path in folder.path.iterdir()) == ["logs", "machine.json", "s"]
    for junk in ("", "{", "[]", "3", json.dumps({"schema": 2}), "[" * 100000, "\udcff"):
        folder.info_file.write_bytes(junk.encode("utf-8", "surrogateescape"))
        assert folder.info() == {}


def test_taking_the_lock_with_a_topology_describes_the_machine(base: Path) -> None:
    folder = RunFolder("lab")
    lock = folder.acquire(build(None, Overrides(name="lab")))
    try:
        info = folder.info()
        assert (info["name"], info["pid"], info["arch"]) == ("lab", os.getpid(), "microkernel")
        assert info["vms"] == ["vm1", "vm2"]
        started = psutil.boot_time() + info["start_time"] / os.sysconf("SC_CLK_TCK")
        assert abs(started - psutil.Process().create_time()) < 2  # the boot time is known to a second
    finally:
        folder.release(lock)


def test_an_error_is_one_line_with_a_hint() -> None:
    error = RunFolderError("what", "try this")
    assert (str(error), error.hint, isinstance(error, OSError)) == ("what", "try this", True)


def test_only_folders_with_a_machines_name_are_listed(base: Path) -> None:
    for name in ("b", "a", "Nope", ".hidden"):
        (base / name).mkdir()
    (base / "file").touch()
    assert [entry.name for entry in list_machines()] == ["a", "b"]
