"""After a real death: who comes back, what the guests see of it, and that nothing acknowledged is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from vmbus_emu.client import ExecResult, Machine

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

TRANSPORTS = pytest.mark.parametrize("transport", ["zmq", "ring"])
#: (arch, what is killed): everything that VMs need, and that has a process of its own.
SERVING = [("microkernel", "parent"), ("disaggregated", "parent"), ("disaggregated", "storvsp"),
           ("disaggregated", "netvsp")]


class Writing:
    """A guest that writes and reads back, over and over, on a thread and a connection of its own."""

    def __init__(self, lab: Lab, vm: str) -> None:
        self.machine = lab.attach()
        self.vm = vm
        self.rounds = 0
        self.failures: list[ExecResult] = []
        self._stop = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop:
            text = f"round-{self.rounds:08}"
            for command in f"write disk0 4096 {text}", "sync disk0", "read disk0 4096 14":
                result = self.machine.exec(self.vm, command, timeout=20)
                if result.status or (command.startswith("read") and result.stdout.decode() != text):
                    self.failures.append(result)
            self.rounds += 1

    def more(self, wait: Wait, rounds: int = 2) -> None:
        """Wait until it has done so many more."""
        until = self.rounds + rounds
        wait(lambda: self.rounds >= until, "the guest goes on")

    def end(self) -> None:
        self._stop = True
        self._thread.join(30)
        assert not self._thread.is_alive()
        assert self.failures == []


def recovered(lab: Lab, machine: Machine, name: str, incarnation: int) -> bool:
    rows = lab.rows(machine)
    return all(row["state"] == "ready" for row in rows.values()) and rows[name]["incarnation"] == incarnation


def pings(machine: Machine) -> bool:
    return machine.exec("vm1", "ping -c 1 -W 1 vm2").status == 0


@TRANSPORTS
@pytest.mark.parametrize("policy", ["restart", "standby"])
@pytest.mark.parametrize(("arch", "victim"), SERVING)
def test_guests_see_a_pause_and_no_error(
    lab: Lab, wait: Wait, arch: str, victim: str, policy: str, transport: str
) -> None:
    machine = lab.up(arch, transport=transport, policy={victim: policy})
    writing = Writing(lab, "vm1")
    writing.more(wait)
    before = lab.rows(machine)
    for incarnation in range(2, 5):
        if policy == "standby":
            wait(lambda: f"{victim}.spare" in lab.rows(machine), "there is a spare")
        dead = lab.rows(machine)[victim]["pid"]
        os.kill(dead, signal.SIGKILL)
        wait(lambda: recovered(lab, machine, victim, lab.rows(machine)[victim]["incarnation"])
             and lab.rows(machine)[victim]["pid"] != dead, f"{victim} is back")  # noqa: B023
        assert lab.rows(machine)[victim]["incarnation"] >= incarnation
        writing.more(wait)
    lab.note()
    writing.end()
    wait(lambda: pings(machine), "the network works")
    after = lab.rows(machine)
    carried = {name for name, row in before.items() if row["host"] == before[victim]["host"]}
    for name, row in before.items():
        if name not in carried and not name.endswith(".spare"):
            assert (after[name]["pid"], after[name]["incarnation"]) == (row["pid"], 1), name
    machine.down()
    assert lab.leftovers() == []


@TRANSPORTS
@pytest.mark.parametrize("victims", [("parent", "storvsp"), ("storvsp", "parent"), ("netvsp", "storvsp", "parent"),
                                     ("management", "parent")], ids="-".join)
def test_several_deaths_at_once_are_recovered_from(
    lab: Lab, wait: Wait, victims: tuple[str, ...], transport: str
) -> None:
    machine = lab.up("disaggregated", transport=transport)
    writing = Writing(lab, "vm2")
    writing.more(wait)
    before = lab.rows(machine)
    for _ in range(2):
        rows = lab.rows(machine)
        for victim in victims:
            os.kill(rows[victim]["pid"], signal.SIGKILL)
        wait(lambda: all(row["state"] == "ready" for row in lab.rows(machine).values())
             and all(lab.rows(machine)[v]["pid"] != rows[v]["pid"] for v in victims), "all are back")  # noqa: B023
        writing.more(wait)
    lab.note()
    writing.end()
    wait(lambda: pings(machine), "the network works")
    assert {name: lab.rows(machine)[name]["pid"] for name in ("vm1", "vm2")} == {
        name: before[name]["pid"] for name in ("vm1", "vm2")
    }


@pytest.mark.parametrize("victim", ["standby", "both"])
def test_the_death_of_the_standby_is_nobodys_pause(lab: Lab, wait: Wait, victim: str) -> None:
    machine = lab.up("disaggregated", policy={"storvsp": "standby"})
    wait(lambda: "storvsp.spare" in lab.rows(machine), "there is a spare")
    rows = lab.rows(machine)
    os.kill(rows["storvsp.spare"]["pid"], signal.SIGKILL)
    if victim == "both":
        os.kill(rows["storvsp"]["pid"], signal.SIGKILL)
    first = rows["storvsp.spare"]
    wait(lambda: lab.rows(machine).get("storvsp.spare", first)["pid"] != first["pid"], "there is another spare")
    wait(lambda: lab.rows(machine)["storvsp"]["state"] == "ready", "storvsp serves")
    lab.note()
    assert (lab.rows(machine)["storvsp"]["pid"] == rows["storvsp"]["pid"]) is (victim == "standby")
    assert machine.exec("vm1", "null disk0 10").status == 0


@TRANSPORTS
@pytest.mark.parametrize("arch", ["microkernel", "disaggregated"])
def test_a_dead_vm_is_started_again_and_finds_its_disk(lab: Lab, wait: Wait, arch: str, transport: str) -> None:
    machine = lab.up(arch, transport=transport)
    for incarnation in range(1, 4):
        assert machine.exec("vm1", f"write disk0 0 incarnation-{incarnation}").status == 0
        lab.kill(machine, "vm1")
        assert machine.exec("vm2", "null disk0 10").status == 0
        machine.start("vm1")
        lab.note()
        assert machine.exec("vm1", "read disk0 0 13").stdout.decode() == f"incarnation-{incarnation}"
        assert lab.rows(machine)["vm1"]["incarnation"] == incarnation + 1
        wait(lambda: pings(machine), "the network works")
    wait(lambda: lab.rows(machine)["hypervisor"]["counters"]["partitions"]
         == (3 if arch == "microkernel" else 5), "no partition is left over")


@TRANSPORTS
@pytest.mark.parametrize(("arch", "victim"), [("microkernel", "hypervisor"), ("disaggregated", "hypervisor"),
                                              ("monolithic", "storvsp")])
def test_the_machine_reboots_and_vms_boot_again_from_their_disks(
    lab: Lab, wait: Wait, arch: str, victim: str, transport: str
) -> None:
    machine = lab.up(arch, transport=transport)
    assert machine.exec("vm1", "write disk0 512 before-the-crash").status == 0
    before = lab.rows(machine)
    os.kill(before[victim]["pid"], signal.SIGKILL)
    wait(lambda: lab.rows(machine)[victim]["pid"] != before[victim]["pid"] and machine.info()["state"] == "ready",
         "it is up again")
    lab.note()
    after = lab.rows(machine)
    assert after["machine"]["pid"] == before["machine"]["pid"]
    for name in set(before) - {"machine"}:
        assert after[name]["pid"] != before[name]["pid"], name
    assert machine.exec("vm1", "read disk0 512 16").stdout == b"before-the-crash"
    wait(lambda: pings(machine), "the network works")
    machine.down()
    assert lab.leftovers() == []


def test_a_component_that_dies_at_every_start_is_tried_again_and_again_with_pauses(lab: Lab, wait: Wait) -> None:
    machine = lab.up("disaggregated")
    deaths = 0
    dead = 0
    while deaths < 6:
        row = lab.rows(machine)["storvsp"]
        if row["pid"] != dead and row["state"] in ("starting", "ready"):
            dead = row["pid"]
            os.kill(dead, signal.SIGKILL)
            deaths += 1
    wait(lambda: lab.rows(machine)["storvsp"]["state"] == "ready" and lab.rows(machine)["storvsp"]["pid"] != dead,
         "it is back")
    lab.note()
    assert machine.exec("vm1", "null disk0 10", timeout=20).status == 0


def test_a_reboot_waits_for_no_spare(lab: Lab, wait: Wait) -> None:
    machine = lab.up("disaggregated", policy={"storvsp": "standby", "netvsp": "standby", "parent": "standby"})
    for _ in range(5):
        wait(lambda: sum(name.endswith(".spare") for name in lab.rows(machine)) == 3, "there are spares")
        dead = lab.rows(machine)["hypervisor"]["pid"]
        os.kill(dead, signal.SIGKILL)
        wait(lambda: lab.rows(machine)["hypervisor"]["pid"] != dead and machine.info()["state"] == "ready",  # noqa: B023
             "it is up again")
    lab.note()


def test_a_zygote_that_dies_before_it_is_ready_is_made_again(lab: Lab, wait: Wait) -> None:
    machine = lab.up("disaggregated")
    for _ in range(4):
        row = lab.rows(machine)["zygote.storvsp"]
        os.kill(row["pid"], signal.SIGKILL)
        wait(lambda: lab.rows(machine)["zygote.storvsp"]["pid"] != row["pid"], "there is another one")  # noqa: B023
    storvsp = lab.rows(machine)["storvsp"]["pid"]
    os.kill(storvsp, signal.SIGKILL)
    wait(lambda: lab.rows(machine)["storvsp"]["state"] == "ready" and lab.rows(machine)["storvsp"]["pid"] != storvsp,
         "storvsp is back")
    assert machine.exec("vm1", "null disk0 10").status == 0
    lab.note()
