"""Several machines side by side, names that are taken, and a ``down`` that always comes to an end."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from vmbus_emu.client import MachineError, NotRunning
from vmbus_emu.client.door import Door
from vmbus_emu.runfolder import RunFolder

if TYPE_CHECKING:
    from conftest import Lab

PLACEMENTS = ("monolithic", "microkernel", "disaggregated")


def test_two_machines_run_side_by_side_and_know_nothing_of_each_other(lab: Lab) -> None:
    one, two = lab.up("microkernel", name="one"), lab.up("monolithic", name="two", vms=3)
    one.vm("vm1").disk.write(0, b"one")
    two.vm("vm1").disk.write(0, b"two")
    assert (one.vm("vm1").disk.read(0, 3), two.vm("vm1").disk.read(0, 3)) == (b"one", b"two")
    assert [len(machine.pingall()["pairs"]) for machine in (one, two)] == [2, 6]
    pids = [{row["pid"] for row in lab.rows(machine).values()} for machine in (one, two)]
    assert not pids[0] & pids[1]
    listed = {m["name"]: (m["arch"], m["vms"], m["stale"]) for m in lab.json("ls")["machines"]}
    assert listed == {
        "one": ("microkernel", ["vm1", "vm2"], False), "two": ("monolithic", ["vm1", "vm2", "vm3"], False)
    }
    one.down()
    assert two.exec("vm3", "ping -c 1 vm1").status == 0
    assert [m["name"] for m in lab.json("ls")["machines"]] == ["two"]


@pytest.mark.parametrize("arch", PLACEMENTS)
def test_a_second_up_of_a_running_name_says_what_runs_and_what_to_do(lab: Lab, arch: str) -> None:
    machine = lab.up(arch, vms=3)
    pid = machine.info()["pid"]
    status, out, errors = lab.cli("up", "--name", "m")
    assert (status, out, errors.count("\n")) == (1, b"", 1)
    for word in ('"m" is already running', arch, "3 VMs", f"pid {pid}", "down --name m", "--name"):
        assert word in errors
    with pytest.raises(MachineError, match=rf"already running \({arch}, 3 VMs, pid {pid}\)") as raised:
        lab.up(arch)
    assert "down" in raised.value.hint
    assert machine.exec("vm3", "echo unharmed").stdout == b"unharmed\n"


def test_down_of_nothing_is_done_and_says_so(lab: Lab) -> None:
    assert lab.cli("down", "--name", "m") == (0, b"m: nothing to do, it is not running\n", "")
    with pytest.raises(NotRunning):
        lab.attach("m")
    for verb in (["ps"], ["exec", "vm1", "--", "echo"], ["pingall"]):
        status, out, errors = lab.cli(verb[0], "--name", "m", *verb[1:])
        assert (status, out, '"m" is not running' in errors) == (1, b"", True)


@pytest.mark.parametrize("arch", PLACEMENTS)
def test_down_leaves_nothing_and_the_name_can_be_used_again_at_once(lab: Lab, arch: str) -> None:
    for _ in range(3):
        machine = lab.up(arch)
        assert lab.leftovers() != []
        machine.down()
        assert lab.leftovers() == []


def down_and_its_steps(lab: Lab, timeout: float) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    machine = lab.attach()
    machine.down(progress=lambda step: steps.append(dict(step)), timeout=timeout)
    return steps


@pytest.mark.parametrize(("arch", "stopped"), [
    ("monolithic", "hypervisor"), ("microkernel", "vm2"), ("microkernel", "parent"), ("disaggregated", "netvsp"),
])
def test_down_names_a_process_that_does_not_stop_and_kills_it(lab: Lab, arch: str, stopped: str) -> None:
    machine = lab.up(arch)
    pid = lab.rows(machine)[stopped]["pid"]
    os.kill(pid, signal.SIGSTOP)
    steps = down_and_its_steps(lab, timeout=10)
    assert [step["waiting"] for step in steps if step["step"] == "escalated"] == [[f"{stopped} (pid {pid})"]]
    assert steps[-1]["step"] == "stopped"
    assert steps[-1]["killed"] == [f"{stopped} (pid {pid})"]
    assert lab.leftovers() == []


def test_the_program_says_whom_down_had_to_kill_and_still_succeeds(lab: Lab) -> None:
    machine = lab.up()
    pid = lab.rows(machine)["vm1"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    status, out, errors = lab.cli("down", "--name", "m")
    assert (status, out) == (0, b"m: down\n")
    assert f"vm1 (pid {pid})" in errors
    assert lab.leftovers() == []


@pytest.mark.parametrize("arch", PLACEMENTS)
def test_down_of_a_machine_whose_own_process_is_stopped_kills_it_and_leaves_nothing(lab: Lab, arch: str) -> None:
    machine = lab.up(arch)
    pid = machine.info()["pid"]
    os.kill(pid, signal.SIGSTOP)
    steps = down_and_its_steps(lab, timeout=0.5)
    assert steps == [{"step": "killing", "waiting": [f"machine (pid {pid}, stopped)"]}]
    assert lab.leftovers() == []


def test_a_stopped_machine_is_described_not_waited_for(lab: Lab) -> None:
    machine = lab.up()
    pid = machine.info()["pid"]
    door = Door(RunFolder("m"))
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(MachineError, match=rf"machine process \(pid {pid}\) is stopped") as raised:
            door.ask("info", timeout=0.3)  # every verb has a deadline; this is a short one
    finally:
        door.close()
    assert raised.value.hint == f"kill -CONT {pid}"
    os.kill(pid, signal.SIGCONT)
    assert machine.info()["state"] == "ready"


def test_a_reply_that_nobody_waits_for_any_more_does_not_hold_up_the_next_request(lab: Lab) -> None:
    machine = lab.up()
    pid = machine.info()["pid"]
    for _ in range(15):
        door = Door(RunFolder("m"))
        os.kill(pid, signal.SIGSTOP)
        door.send("info")
        door.receive(time.monotonic() + 0.02)  # nothing comes; the request is on its way
        door.close()
        os.kill(pid, signal.SIGCONT)  # now it answers, and a request arrives while that answer fails
        assert machine.info()["state"] == "ready"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_machine_asked_to_end_by_signal_powers_off(lab: Lab, number: signal.Signals) -> None:
    machine = lab.up()
    pid = machine.info()["pid"]
    os.kill(pid, number)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert lab.leftovers() == []
