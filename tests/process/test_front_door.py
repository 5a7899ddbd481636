"""The front door is killed in the middle of watch, kill, chaos, exec: they go on, and nothing is lost or done twice."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from vmbus_emu.client import Machine, MachineError
from vmbus_emu.client.conversation import Conversation
from vmbus_emu.client.door import Door
from vmbus_emu.client.events import EventStream
from vmbus_emu.runfolder import RunFolder

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

MIB = 1 << 20


def front_pid(lab: Lab, machine: Machine) -> int:
    pid = lab.rows(machine)["machine"]["counters"]["front_pid"]
    assert isinstance(pid, int)
    return pid


def kill_front(lab: Lab, machine: Machine) -> None:
    os.kill(front_pid(lab, machine), signal.SIGKILL)


def until(events: EventStream, what: str, component: str | None) -> list[Mapping[str, Any]]:
    """The events up to that one, in their order."""
    found: list[Mapping[str, Any]] = []
    while not found or (found[-1]["event"], found[-1].get("component")) != (what, component):
        event = events.next(20)
        assert event is not None, f"no {what} of {component} after {found}"
        found.append(event)
    return found


# -- watch ----------------------------------------------------------------------------------------------


def test_watch_misses_no_event_though_they_happen_while_there_is_no_door(lab: Lab) -> None:
    machine = lab.up("disaggregated")
    rows = lab.rows(machine)
    with machine.watch(past=True) as events:
        seen = until(events, "up", None)
        for victim in ("netvsp", "storvsp"):
            front = front_pid(lab, machine)
            os.kill(front, signal.SIGKILL)
            os.kill(rows[victim]["pid"], signal.SIGKILL)
            seen += until(events, "ready", victim)
    lab.note()
    assert [event["n"] for event in seen] == list(range(1, len(seen) + 1))
    died = [event["component"] for event in seen if event["event"] == "died"]
    assert died == ["netvsp", "storvsp"]
    assert lab.rows(machine)["machine"]["counters"]["front_restarts"] == 2


def test_the_program_watch_goes_on_too(lab: Lab) -> None:
    machine = lab.up("microkernel")
    program = lab.program("watch", "--name", "m", "--past", "--json")
    assert program.stdout is not None
    while json.loads(program.stdout.readline())["event"] != "up":
        pass
    pid = lab.rows(machine)["vm1"]["pid"]
    kill_front(lab, machine)
    os.kill(pid, signal.SIGKILL)
    event = json.loads(program.stdout.readline())
    assert (event["event"], event["component"], event["pid"]) == ("died", "vm1", pid)
    machine.down()
    assert program.wait(20) == 0


# -- kill and chaos -------------------------------------------------------------------------------------


def test_a_kill_during_which_the_door_dies_has_its_answer_and_kills_once(lab: Lab) -> None:
    machine = lab.up("microkernel")
    runs: list[dict[str, Any]] = []
    with machine.watch() as events:
        killing = threading.Thread(target=lambda: runs.append(machine.kill("storvsp")))
        front = front_pid(lab, machine)
        killing.start()
        until(events, "killed", "storvsp")
        os.kill(front, signal.SIGKILL)
        killing.join(30)
        told = until(events, "ready", "parent")
    lab.note()
    (run,) = runs
    assert (run["findings"], run["operations"]["lost"]) == ([], 0)
    (kill,) = run["kills"]
    assert kill["first_reply_ms"] > kill["detect_ms"] > 0
    assert [event["event"] for event in told].count("killed") == 0      # a second one
    assert lab.rows(machine)["parent"]["incarnation"] == 2


def test_chaos_goes_on_through_deaths_of_the_door_and_loses_nothing(lab: Lab) -> None:
    machine = lab.up("disaggregated")
    other = lab.attach()
    deaths: list[int] = []

    def told(step: Mapping[str, Any]) -> None:
        if step["step"] == "killed":                # the next order to kill goes to a dead door
            deaths.append(front_pid(lab, other))
            os.kill(deaths[-1], signal.SIGKILL)

    run = machine.chaos("storvsp", 0.7, 4.2, seed=3, progress=told)
    lab.note()
    assert (run["findings"], run["operations"]["lost"]) == ([], 0)
    assert all(vm["survived"] for vm in run["vms"].values())
    assert run["operations"]["acknowledged"] > 500
    assert len(set(deaths)) == len(run["kills"]) >= 2
    numbers = [event["n"] for event in run["events"]]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    killed = [event["pid"] for event in run["events"] if event["event"] == "killed"]
    assert killed == [kill["pid"] for kill in run["kills"]]
    assert lab.rows(machine)["storvsp"]["incarnation"] == 1 + len(killed)


@pytest.mark.parametrize("victim", ["the request", "the answer"])
def test_a_start_is_answered_whichever_half_of_it_died_with_the_door(lab: Lab, victim: str) -> None:
    machine = lab.up("microkernel")
    lab.kill(machine, "vm1")
    front = front_pid(lab, machine)
    if victim == "the request":
        os.kill(front, signal.SIGSTOP)              # it has the request and does not pass it on
        threading.Timer(0.1, os.kill, (front, signal.SIGKILL)).start()
    else:
        threading.Timer(0.005, os.kill, (front, signal.SIGKILL)).start()
    assert machine.start("vm1")["incarnation"] == 2
    lab.note()
    assert machine.exec("vm1", "echo").status == 0


# -- exec -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["monolithic", "microkernel"])
def test_exec_goes_on_and_prints_every_line_once(lab: Lab, arch: str) -> None:
    machine = lab.up(arch)
    program = lab.program("exec", "--name", "m", "vm1", "--", "ping", "-c", "20", "-i", "0.1", "vm2")
    assert program.stdout is not None
    lines = [program.stdout.readline() for _ in range(3)]
    kill_front(lab, machine)
    out, errors = program.communicate(timeout=30)
    assert (program.returncode, errors) == (0, b"")
    text = b"".join(lines) + out
    assert [text.count(b"seq=%d " % n) for n in range(1, 21)] == [1] * 20, text.decode()
    assert b"20 packets transmitted, 20 received" in text


def test_bytes_pass_both_ways_unchanged_while_doors_die(lab: Lab) -> None:
    machine = lab.up("microkernel")
    other = lab.attach()
    data = random.Random(5).randbytes(24 * MIB)
    arrived, killed = 0, 0

    def take(piece: bytes) -> None:
        nonlocal arrived, killed
        echoed.extend(piece)
        arrived += len(piece)
        if arrived > (killed + 1) * 6 * MIB:
            killed += 1
            kill_front(lab, other)

    echoed = bytearray()
    result = machine.exec("vm1", "cat", stdin=data, on_stdout=take, timeout=60)
    assert (result.status, killed) == (0, 3)
    assert echoed == data


def test_a_client_that_is_killed_while_there_is_no_door_takes_its_command_with_it(lab: Lab, wait: Wait) -> None:
    machine = lab.up("microkernel")
    program = lab.program("exec", "--name", "m", "vm1", "--", "ping", "-q", "-i", "0.01", "vm2")
    assert program.stdout is not None
    assert program.stdout.readline().startswith(b"PING vm2")
    front = front_pid(lab, machine)
    program.kill()
    os.kill(front, signal.SIGKILL)
    program.communicate(timeout=20)

    def quiet() -> bool:
        """No frame leaves vm1 for ten times the interval of its pings."""
        (row,) = (row for row in machine.ps(window=0.1)["partitions"] if row["name"] == "vm1")
        return row["io_per_s"] == 0

    wait(quiet, "the guest has stopped pinging")


def test_a_session_that_the_machine_does_not_know_any_more_ends_with_one_line(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.up("microkernel")
    door = Door(RunFolder("m"))
    try:
        door.ask("info")
        monkeypatch.setattr(door, "_conversation", stranger := Conversation())
        monkeypatch.setattr(stranger, "_heard", 1)  # as one that has been ended
        with pytest.raises(MachineError, match="does not know this client any more") as raised:
            door.ask("info")
    finally:
        door.close()
    assert "\n" not in str(raised.value)
