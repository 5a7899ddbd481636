"""Policy ``recover``: the hypervisor dies under running VMs, and its next incarnation goes on with its tables."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.process.test_recovery import Writing, pings
from vmbus_emu.client import Machine
from vmbus_emu.runfolder import RunFolder

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

PLACES = pytest.mark.parametrize(
    ("arch", "transport"), [("microkernel", "zmq"), ("microkernel", "ring"), ("disaggregated", "ring")]
)


def recovering(lab: Lab, arch: str, transport: str, **policy: str) -> Machine:
    return lab.up(arch, transport=transport, policy={"hypervisor": "recover", **policy})


def all_ready(lab: Lab, machine: Machine) -> bool:
    return machine.info()["state"] == "ready" and all(row["state"] == "ready" for row in lab.rows(machine).values())


def kill(lab: Lab, machine: Machine, *names: str, pause: float = 0.0) -> dict[str, int]:
    rows = lab.rows(machine)
    for name in names:
        os.kill(rows[name]["pid"], signal.SIGKILL)
        time.sleep(pause)  # nothing is waited for: where the second death falls is what is tried
    return {name: rows[name]["pid"] for name in names}


def replaced(lab: Lab, machine: Machine, dead: dict[str, int]) -> bool:
    rows = lab.rows(machine)
    return all(rows[name]["pid"] not in (pid, None) for name, pid in dead.items()) and all_ready(lab, machine)


@PLACES
def test_nobody_notices_and_everything_it_kept_is_of_use_afterwards(
    lab: Lab, wait: Wait, arch: str, transport: str
) -> None:
    machine = recovering(lab, arch, transport)
    before = lab.rows(machine)
    writing = Writing(lab, "vm1")
    for _ in range(8):
        dead = kill(lab, machine, "hypervisor")
        wait(lambda: replaced(lab, machine, dead), "the hypervisor is back")  # noqa: B023
    writing.more(wait)
    after = lab.rows(machine)
    assert after["hypervisor"]["incarnation"] == 9
    assert {n: r["pid"] for n, r in after.items() if n != "hypervisor"} == {
        n: r["pid"] for n, r in before.items() if n != "hypervisor"
    }
    served = "storvsp" if arch == "disaggregated" else "parent"  # its next incarnation needs ports, grants, doorbells
    dead = kill(lab, machine, served)
    wait(lambda: replaced(lab, machine, dead), f"{served} is back")
    writing.more(wait)
    lab.note()
    writing.end()
    wait(lambda: pings(machine), "the network works")
    folder = RunFolder(machine.name)
    def left() -> list[str]:
        """Sockets of hypervisors, and of the first incarnation's channels."""
        return [path.name for path in Path(folder.sockets).iterdir() if path.name.startswith(("hv-", "st1-", "nt1-"))]

    living = ["nt1-"] if arch == "disaggregated" else []
    wait(lambda: [name for name in left() if name[:4] not in living] == ["hv-9.sock"], "the sockets of the dead go")


@PLACES
def test_a_second_death_at_any_moment_of_the_first_ones_recovery(
    lab: Lab, wait: Wait, arch: str, transport: str
) -> None:
    machine = recovering(lab, arch, transport)
    writing = Writing(lab, "vm1")
    chance = random.Random(4)
    other = "storvsp" if arch == "disaggregated" else "parent"
    for victims in [("hypervisor", other), (other, "hypervisor"), ("hypervisor", "management"),
                    ("parent", "hypervisor")] * 3:
        dead = kill(lab, machine, *victims, pause=chance.random() * 0.03)
        wait(lambda: replaced(lab, machine, dead), f"{victims} are back")  # noqa: B023
        writing.more(wait, 1)
    lab.note()
    writing.end()
    wait(lambda: pings(machine), "the network works")


@PLACES
def test_a_vm_is_started_across_the_hypervisors_death(lab: Lab, wait: Wait, arch: str, transport: str) -> None:
    machine = recovering(lab, arch, transport)
    chance = random.Random(5)
    for _ in range(4):
        dead = kill(lab, machine, "vm2", "hypervisor", pause=chance.random() * 0.01)
        wait(lambda: lab.rows(machine)["vm2"]["state"] == "dead", "it is seen")
        machine.start("vm2")
        wait(lambda: replaced(lab, machine, dead), "both are back")  # noqa: B023
        assert machine.exec("vm2", "null disk0 10").status == 0
    lab.note()


@pytest.mark.parametrize("fault", ["segv", "exit", "panic", "oom"])
def test_it_recovers_from_every_way_to_die(lab: Lab, wait: Wait, fault: str) -> None:
    machine = recovering(lab, "microkernel", "zmq")
    status, _, errors = lab.cli("kill", "hypervisor", "--fault", fault, "--name", "m")
    assert status == 0, errors
    wait(lambda: all_ready(lab, machine), "the hypervisor is back")
    rows = lab.rows(machine)
    assert (rows["hypervisor"]["incarnation"], rows["vm1"]["incarnation"]) == (2, 1)
    lab.note()


def test_a_wild_write_does_not_find_the_tables(lab: Lab, wait: Wait) -> None:
    machine = recovering(lab, "microkernel", "ring")
    before = lab.rows(machine)
    status, out, errors = lab.cli("kill", "hypervisor", "--fault", "scribble", "--name", "m")
    assert status in (0, 1), errors                     # 1: nobody died of it
    assert b"hypervisor" in out
    dead = kill(lab, machine, "hypervisor", "parent")   # whose next incarnations need what is in them
    wait(lambda: replaced(lab, machine, dead), "both are back")
    assert lab.rows(machine)["vm1"]["pid"] == before["vm1"]["pid"]
    assert machine.exec("vm1", "null disk0 10").status == 0
    lab.note()


def test_tables_that_were_written_over_are_not_gone_on_with(lab: Lab, wait: Wait) -> None:
    machine = recovering(lab, "microkernel", "ring")
    pid = lab.rows(machine)["hypervisor"]["pid"]
    files = [path for path in Path(f"/proc/{pid}/fd").iterdir() if "memfd:ledger" in os.readlink(path)]
    with files[0].open("r+b") as ledger:
        ledger.write(b"\xaa" * 4096)
    kill(lab, machine, "hypervisor")
    wait(lambda: lab.rows(machine)["vm1"]["incarnation"] == 2 and all_ready(lab, machine), "the machine has rebooted")
    assert machine.exec("vm1", "null disk0 10").status == 0
    lab.note()
