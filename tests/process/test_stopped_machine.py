"""A machine that is stopped by a signal: every verb says so and how to continue it, and nothing is lost by it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from vmbus_emu.client import Machine, MachineError
from vmbus_emu.client.errors import DEADLINE_S, STOPPED_S

if TYPE_CHECKING:
    from conftest import Lab

#: Verbs that need the machine's answer.
ASKING = [
    ["ps"], ["ps", "--json"], ["exec", "vm1", "--", "echo"], ["exec", "--timeout", "8", "vm1", "--", "echo"],
    ["kill", "storvsp"], ["start", "vm1"], ["pingall"], ["watch"], ["watch", "--past", "--json"],
    ["chaos", "--kill", "storvsp", "--for", "2s"],
]
#: Verbs that read files, and what they say nevertheless.
READING = [(["ls"], "stopped"), (["logs"], "ready"), (["plan"], "storvsp")]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def pids(lab: Lab, machine: Machine) -> dict[str, tuple[int, str]]:
    return {name: (row["pid"], row["state"]) for name, row in lab.rows(machine).items()}


def words(verb: list[str]) -> list[str]:
    return verb if verb[0] == "ls" else [verb[0], "--name", "m", *verb[1:]]


def test_every_verb_says_that_the_machine_is_stopped_and_how_to_continue_it(lab: Lab) -> None:
    machine = lab.up(vm=[{"name": f"vm{n}", "disk": [{"ram": "4MiB"}], "nic": [{"switch": "s0"}]} for n in (1, 2)],
                     switch=[{"name": "s0"}])
    before = pids(lab, machine)
    pid = before["machine"][0]
    told = f'vmbus-emu: error: "m" does not answer: its machine process (pid {pid}) is stopped; kill -CONT {pid}\n'
    with stopped(pid):
        asking = [(verb, lab.program(*words(verb))) for verb in ASKING]
        for verb, program in asking:
            said = program.communicate(timeout=60)
            assert (program.returncode, said) == (1, (b"", told.encode())), verb
        status, out, errors = lab.cli("shell", "--name", "m", "vm1", stdin=b"echo\n")
        assert (status, out, errors) == (1, b"", told)
        status, out, errors = lab.cli("up", "--name", "m")
        assert (status, out, errors.count("\n")) == (1, b"", 1)
        assert f'"m" is already running, and stopped (microkernel, 2 VMs, pid {pid}); kill -CONT {pid}' in errors
        for verb, word in READING:
            status, out, errors = lab.cli(*words(verb))
            assert (status, word in out.decode()) == (0, True), verb
            assert (f"kill -CONT {pid}" in errors) is (verb == ["ls"])
    assert pids(lab, machine) == before             # it goes on, and nobody was killed
    assert machine.exec("vm1", "ping -c 1 vm2").status == 0
    assert lab.cli("ls")[1].decode().splitlines()[1].split()[:2] == ["m", "running"]


def test_the_api_says_it_long_before_its_deadline(lab: Lab) -> None:
    machine = lab.up()
    pid = machine.info()["pid"]
    with stopped(pid):
        begin = time.monotonic()
        with pytest.raises(MachineError, match=rf"machine process \(pid {pid}\) is stopped") as raised:
            machine.info()
        assert STOPPED_S <= time.monotonic() - begin < DEADLINE_S
    assert raised.value.hint == f"kill -CONT {pid}"
    assert machine.info()["state"] == "ready"


def test_a_stop_shorter_than_patience_only_delays_the_answer(lab: Lab) -> None:
    machine = lab.up()
    pid = machine.info()["pid"]
    program = lab.program("exec", "--name", "m", "vm1", "--", "ping", "-c", "8", "-i", "0.1", "vm2")
    assert program.stdout is not None
    first = program.stdout.readline()
    with stopped(pid), pytest.raises(MachineError):     # longer than who had no answer waits; this one had some
        machine.info()
    out, said = program.communicate(timeout=60)
    assert (program.returncode, said) == (0, b"")
    assert b"8 packets transmitted, 8 received" in first + out, (first + out).decode()


def test_down_says_that_it_will_kill_it_and_does(lab: Lab) -> None:
    machine = lab.up()
    pid = machine.info()["pid"]
    os.kill(pid, signal.SIGSTOP)
    status, out, errors = lab.cli("down", "--name", "m", "--timeout", "3")
    assert (status, out) == (0, b"m: down\n")
    assert errors.splitlines() == [
        f'"m" does not answer: its machine process (pid {pid}) is stopped; kill -CONT {pid} continues it: otherwise it '
        "is killed",
        f"machine (pid {pid}, stopped): does not answer, killed",
    ]
    assert lab.leftovers() == []


def test_a_machine_that_is_continued_during_down_ends_in_order(lab: Lab) -> None:
    machine = lab.up()
    pid = machine.info()["pid"]
    steps: list[Mapping[str, Any]] = []

    def progress(step: Mapping[str, Any]) -> None:
        steps.append(step)
        if step["step"] == "suspended":
            os.kill(pid, signal.SIGCONT)

    os.kill(pid, signal.SIGSTOP)
    machine.down(progress=progress, timeout=30)
    assert [step["step"] for step in steps] == ["suspended", "stopped"]
    assert steps[-1]["killed"] == []
    assert lab.leftovers() == []


def test_a_front_door_that_is_stopped_and_not_replaced_is_named(lab: Lab) -> None:
    machine = lab.up(hang_after="never")
    front = lab.rows(machine)["machine"]["counters"]["front_pid"]
    with stopped(front):
        status, out, errors = lab.cli("ps", "--name", "m")
        assert (status, out) == (1, b"")
        assert errors == (
            f'vmbus-emu: error: "m" does not answer: its front door (pid {front}) is stopped; kill -CONT {front}\n'
        )
    assert lab.cli("ps", "--name", "m")[0] == 0
