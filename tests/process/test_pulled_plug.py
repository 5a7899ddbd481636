"""``kill -9`` of the machine's process, the plug pulled, at 50 random moments of up, traffic and down.

Within a second no process, no listening socket and no lock survives; the files that nobody could remove are
recognised as stale, and the next ``up`` of that name sweeps them.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmbus_emu.client import Machine, MachineError
from vmbus_emu.runfolder import RunFolder, list_machines

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

SEED = 20_771
PHASES = ("up",) * 20 + ("traffic",) * 20 + ("down",) * 10
ARCHES = ("monolithic", "microkernel", "disaggregated")
#: The longest a phase is let run before the plug is pulled, in seconds: about as long as it takes.
LONGEST = {"up": 0.3, "traffic": 0.15, "down": 0.05}
ALL_GONE_S = 1.0
TRAFFIC = (("vm1", "sha256 disk0"), ("vm2", "dd if=disk0 of=null bs=64k"), ("vm2", "ping -q -i 0.001 vm1"))


class Plug:
    """The machine's process, held by a descriptor: it cannot be mistaken for a later one of the same number."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def pull(self) -> None:
        """Kill it. It may have ended by itself."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        select.select([self._pidfd], [], [], 10)
        os.close(self._pidfd)


class Trials:
    """One name, one image, and a machine that is powered on and killed again and again."""

    def __init__(self, lab: Lab, wait: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lab = lab
        self.wait = wait
        self.image = lab.folder / "a.img"
        self.image.write_bytes(bytes(4 << 20))
        self.spawned: list[Plug] = []
        self.swept = 0
        spawn = os.posix_spawn

        def recorded(*arguments: Any, **options: Any) -> int:
            """How the client starts the machine's process: its pid is known before anything else of it."""
            pid = spawn(*arguments, **options)
            self.lab.note_session(pid)
            self.spawned.append(Plug(pid))
            return pid

        monkeypatch.setattr(os, "posix_spawn", recorded)

    def document(self, arch: str) -> dict[str, Any]:
        disks: list[dict[str, Any]] = [{"file": str(self.image)}, {"ram": "4MiB"}]
        return {"name": "m", "arch": arch, "vm": [{"name": f"vm{i + 1}", "disk": [d]} for i, d in enumerate(disks)]}

    def run(self, phase: str, arch: str, delay: float) -> None:
        stale = [entry.name for entry in list_machines() if entry.stale]
        marker = self.lab.run / "m" / "marker"
        if stale:
            marker.write_text("of the machine before")
        with ExitStack() as connections:
            machine = Machine(self.document(arch))
            connections.callback(machine.close)
            if phase == "up":
                work = [Background(machine.up)]
                self.wait(lambda: self.spawned, "the machine's process is there")
            else:
                machine.up()
                work = [Background(partial(self._attached(connections).exec, *command)) for command in TRAFFIC]
                if phase == "down":
                    work.append(Background(machine.down))
            time.sleep(delay)  # the random moment
            self._pull()
            errors = [background.end() for background in work]
        assert all(error is None or isinstance(error, MachineError) for error in errors), errors
        assert RunFolder("m").holder() is None
        assert all(entry.stale for entry in list_machines())
        if phase != "up" and stale:
            assert not marker.exists(), "up did not sweep what the machine before had left"
            self.swept += 1

    @staticmethod
    def _attached(connections: ExitStack) -> Machine:
        machine = Machine.attach("m")
        connections.callback(machine.close)
        return machine

    def _pull(self) -> None:
        self.lab.note()
        plug = self.spawned.pop()
        pulled = time.monotonic()
        plug.pull()
        self.wait(lambda: not self.lab.survivors(), "all processes are gone", ALL_GONE_S)
        self.wait(lambda: not self.lab.listening_sockets(), "nobody listens", ALL_GONE_S)
        self.wait(self.image_is_free, "the image's lock is free", ALL_GONE_S)
        assert time.monotonic() - pulled < ALL_GONE_S

    def image_is_free(self) -> bool:
        with self.image.open("rb+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True


class Background:
    """A call on a thread of its own, and how it ended."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except BaseException as error:
            self._error = error

    def end(self) -> BaseException | None:
        self._thread.join(20)
        assert not self._thread.is_alive(), "a client hangs after its machine's death"
        return self._error


@contextmanager
def described(trial: int, phase: str, arch: str, delay: float) -> Iterator[None]:
    """A failure names the trial, so that it can be repeated."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"trial {trial}: {arch}, the plug pulled {delay:.4f} s into {phase}; seed {SEED}")
        raise


def test_nothing_survives_the_plug_pulled_at_50_random_moments(
    lab: Lab, wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    randomness = random.Random(SEED)
    phases = list(PHASES)
    randomness.shuffle(phases)
    assert len(phases) == 50
    trials = Trials(lab, wait, monkeypatch)
    for number, phase in enumerate(phases):
        arch = randomness.choice(ARCHES)
        delay = randomness.uniform(0, LONGEST[phase])
        with described(number, phase, arch, delay):
            trials.run(phase, arch, delay)
    assert trials.swept >= 10  # the dice must have given the sweeping something to do


@pytest.mark.parametrize("arch", ARCHES)
def test_processes_that_cannot_act_any_more_die_with_the_machine_too(lab: Lab, wait: Wait, arch: str) -> None:
    machine = lab.up(arch)
    rows = lab.rows(machine)
    stopped = {row["pid"] for name, row in rows.items() if name != "machine"}
    for pid in stopped | {rows["machine"]["counters"]["front_pid"]}:
        os.kill(pid, signal.SIGSTOP)  # none can see the end of its lifeline: this is the kernel's to do
    os.kill(rows["machine"]["pid"], signal.SIGKILL)
    wait(lambda: not lab.survivors(), "all processes are gone", ALL_GONE_S)


@pytest.mark.parametrize("arch", ARCHES)
def test_the_files_of_a_killed_machine_are_stale_and_the_next_up_sweeps_them(lab: Lab, wait: Wait, arch: str) -> None:
    machine = lab.up(arch)
    pid = machine.info()["pid"]
    os.kill(pid, signal.SIGKILL)
    wait(lambda: not lab.survivors(), "all processes are gone", ALL_GONE_S)
    left = {path.name for path in (lab.run / "m").rglob("*")}
    assert {"machine.json", "lock", "front.sock", "vm1.log"} <= left
    (listed,) = lab.json("ls")["machines"]
    assert (listed["name"], listed["stale"], listed["pid"], listed["arch"]) == ("m", True, None, arch)
    status, _, errors = lab.cli("ps", "--name", "m")
    assert (status, "its machine died and left files" in errors) == (1, True)

    marker = Path(lab.run / "m" / "marker")
    marker.write_text("")
    again = lab.up(arch)
    assert not marker.exists()
    (listed,) = lab.json("ls")["machines"]
    assert (listed["stale"], listed["pid"]) == (False, again.info()["pid"])


def test_down_sweeps_what_a_killed_machine_left_and_says_so(lab: Lab, wait: Wait) -> None:
    machine = lab.up()
    os.kill(machine.info()["pid"], signal.SIGKILL)
    wait(lambda: not lab.survivors(), "all processes are gone", ALL_GONE_S)
    assert lab.leftovers() != []
    status, out, _ = lab.cli("down", "--name", "m")
    assert (status, out) == (0, b"m: was not running; removed what a killed machine left\n")
    assert lab.leftovers() == []


def test_a_client_that_waits_is_told_of_the_machines_death(lab: Lab, wait: Wait) -> None:
    machine = lab.up()
    pid = machine.info()["pid"]
    other = lab.attach()
    waiting = Background(lambda: other.exec("vm1", "sleep 60"))
    wait(lambda: lab.rows(machine)["vm1"]["counters"]["commands"] == 1, "the command has begun")
    os.kill(pid, signal.SIGKILL)
    error = waiting.end()
    assert isinstance(error, MachineError)
    assert str(error) == f'"m" died: its machine process (pid {pid}) is gone'
