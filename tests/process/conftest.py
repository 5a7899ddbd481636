"""The laboratory of the process tests: machines with real processes, and the proof that nothing of them is left.

``lab`` is a factory: :meth:`Lab.up` starts a machine in a run base of this test alone, :meth:`Lab.cli` runs the
program there. At the end, also of a failed test, every machine goes down; then every process that a machine
recorded, and every process in a machine's session, must be gone, and the run base must be empty. A failed test's
report carries the logs of the machines that were up.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from vmbus_emu.client import Machine, MachineError, NotRunning
from vmbus_emu.client.starter import recorded_processes
from vmbus_emu.procfs import has_ended, start_time, stat_fields
from vmbus_emu.runfolder import BASE_VARIABLE, RunFolder, list_machines
from vmbus_emu.topology import Topology

DEADLINE_S = 10.0
_SESSION = 3                                      # in /proc/PID/stat, counted from the state
_LISTENING = 0x10000
_LOG_BYTES = 20_000

Row = Mapping[str, Any]


class Lab:
    """The machines of one test, below ``base``, where ``VMBUS_EMU_RUN`` points."""

    #: Dead stays dead: for a test of what a death takes along, and of nothing that follows.
    NOTHING_FOLLOWS: ClassVar[Mapping[str, str]] = {
        "hypervisor": "degraded", "monolith": "halt", "parent": "halt", "management": "halt", "storvsp": "halt",
        "netvsp": "halt",
    }

    def __init__(self, base: Path) -> None:
        self.base = base
        self.folder = base / "files"                  # for images and the like; not a machine's name
        self.run = base / "run"
        self.folder.mkdir()
        self._machines: list[Machine] = []
        self._programs: list[subprocess.Popen[bytes]] = []
        self._recorded: dict[int, int] = {}           # pid to start time
        self._sessions: set[int] = set()              # machines' pids: each leads a session of its own

    # -- starting -----------------------------------------------------------------------------------

    def up(self, arch: str = "microkernel", name: str = "m", vms: int = 2, **document: Any) -> Machine:
        """A machine that is up: small RAM disks, or what ``document`` (a topology) says."""
        machine = self.machine({"name": name, "arch": arch, "vm": small_vms(vms), **document})
        machine.up()
        self.note(machine.name)
        return machine

    def machine(self, what: Topology | str | Mapping[str, Any]) -> Machine:
        """A machine that is not up yet."""
        self._machines.append(Machine(what))
        return self._machines[-1]

    def attach(self, name: str = "m") -> Machine:
        """A further connection to a running machine."""
        self._machines.append(Machine.attach(name))
        return self._machines[-1]

    def note(self, name: str = "m") -> None:
        """Remember the processes of machine ``name`` as they are recorded now, and its session."""
        folder = RunFolder(name)
        self._recorded |= recorded_processes(folder)
        pid = folder.holder()
        if pid is not None:
            self._sessions.add(pid)

    def note_session(self, pid: int) -> None:
        """Remember a machine's process whose run folder nobody has seen yet."""
        self._sessions.add(pid)

    def program(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """The command line, running; ended with the test. Its streams are unbuffered: what is read was needed."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        options = {**streams, "bufsize": 0, **options}
        self._programs.append(subprocess.Popen([sys.executable, "-m", "vmbus_emu", *arguments], **options))
        return self._programs[-1]

    def cli(self, *arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        """The command line to its end: status, standard output, standard error."""
        program = self.program(*arguments, stdin=subprocess.PIPE)
        out, errors = program.communicate(stdin, timeout=60)
        return program.returncode, out, errors.decode()

    def json(self, *arguments: str) -> Any:
        """What the command line prints with ``--json``."""
        status, out, errors = self.cli(*arguments, "--json")
        assert status == 0, errors
        return json.loads(out)

    # -- looking ------------------------------------------------------------------------------------

    def rows(self, machine: Machine) -> dict[str, Row]:
        """``ps`` by component name."""
        return {row["name"]: row for row in machine.ps(window=0)["partitions"]}

    def integrated(self, machine: Machine) -> None:
        """Wait until every VM's integration components are open that are offered to all: they come after its disks and
        NICs, when it is up already. The monolith calls, and has none."""
        vms = machine.info()["topology"]["vms"]
        wanted = 3 * sum(vm["integration_services"] for vm in vms)
        parent = self.rows(machine).get("parent")
        if parent is not None:
            wait_until(
                lambda: self.rows(machine)["parent"]["counters"].get("ic_channels") == wanted,
                f"{wanted} channels of integration components",
            )

    def kill(self, machine: Machine, component: str) -> int:
        """``kill -9`` of the process that carries ``component``; returns its pid once ``ps`` shows it dead."""
        pid: int = self.rows(machine)[component]["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self.rows(machine)[component]["state"] == "dead", f"{component} is shown dead")
        return pid

    def survivors(self) -> list[str]:
        """Processes of this test's machines that still exist. One that is dead and unreaped is not counted."""
        found = dict(self._recorded)
        for entry in os.listdir("/proc"):
            fields = stat_fields(int(entry)) if entry.isdecimal() else []
            if fields and int(fields[_SESSION]) in self._sessions:
                found[int(entry)] = start_time(int(entry))
        return [_title(pid) for pid, started in sorted(found.items()) if not has_ended(pid, started)]

    def listening_sockets(self) -> list[str]:
        """Unix sockets below the run base that somebody listens at."""
        lines = Path("/proc/net/unix").read_text().splitlines()[1:]
        words = [line.split() for line in lines]
        return [w[7] for w in words if len(w) > 7 and w[7].startswith(str(self.run)) and int(w[3], 16) & _LISTENING]

    def leftovers(self) -> list[str]:
        """Everything a machine could have left: processes, listening sockets, files."""
        return self.survivors() + self.listening_sockets() + [str(path) for path in self.files()]

    def files(self) -> list[Path]:
        """What is in the run base. Folders may disappear while this looks."""
        return sorted(Path(folder, name) for folder, folders, files in os.walk(self.run) for name in folders + files)

    def logs(self) -> Iterator[tuple[str, str]]:
        """Every component's log: its path below the run base, and its end."""
        for path in (path for path in self.files() if ".log" in path.name):
            with contextlib.suppress(OSError):
                yield str(path.relative_to(self.run)), path.read_bytes()[-_LOG_BYTES:].decode(errors="replace")

    # -- the end ------------------------------------------------------------------------------------

    def close(self) -> list[str]:
        """End everything; what is left nevertheless, which is then ended too."""
        for entry in list_machines():
            self.note(entry.name)
        for program in self._programs:
            with program:                              # closes the pipes and reaps
                program.kill()
        for entry in list_machines():
            self._take_down(entry.name)
        for machine in self._machines:
            machine.close()
        with contextlib.suppress(AssertionError):      # a machine that a test ended by a signal may be on its way
            wait_until(lambda: not self.leftovers(), "nothing is left", 2)
        for pid in self._sessions:                     # those that were killed and are this process's children
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        left = self.leftovers()
        for text in self.survivors():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(text.split()[0]), signal.SIGKILL)
        return left

    def _take_down(self, name: str) -> None:
        """By the program's own means, so that also stale files are swept by what users have."""
        for text in self.survivors():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(text.split()[0]), signal.SIGCONT)  # what a test stopped need not cost the grace period
        with contextlib.suppress(NotRunning, MachineError):
            machine = Machine.attach(name)
            machine.down(timeout=5)
            machine.close()
        if any(entry.name == name for entry in list_machines()):
            self.cli("down", "--name", name, "--timeout", "5")


def small_vms(count: int) -> list[dict[str, Any]]:
    """VMs as a topology names them, each with a RAM disk that costs nothing."""
    return [{"name": f"vm{number + 1}", "disk": [{"ram": "4MiB"}]} for number in range(count)]


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for something that gives no event to wait for: states of foreign processes, files."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.002)  # between two looks


def _title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode()}"
    return str(pid)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    base = Path(tempfile.mkdtemp(prefix="vm", dir="/tmp"))  # socket paths are short
    monkeypatch.setenv(BASE_VARIABLE, str(base / "run"))
    laboratory = Lab(base)
    yield laboratory
    try:
        left = laboratory.close()
    finally:
        shutil.rmtree(base)
    assert not left


@pytest.fixture
def wait() -> Callable[..., None]:
    """:func:`wait_until`, for test modules, which cannot import this one."""
    return wait_until


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test's report carries the logs, while they are still there."""
    report = yield
    laboratory = getattr(item, "funcargs", {}).get("lab")
    if report.when == "call" and report.failed and isinstance(laboratory, Lab):
        report.sections += [(f"log {path}", text) for path, text in laboratory.logs()]
    return report
