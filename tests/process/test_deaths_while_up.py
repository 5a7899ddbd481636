"""Deaths in the middle of ``up``: whoever is replaced by policy delays it, whoever is not ends it at once.

A process that is stopped before it has done anything holds the moment still.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from tests.process.test_deaths_while_starting import LEVEL, PLACES
from tests.process.test_recovery import pings
from vmbus_emu.client import MachineError
from vmbus_emu.client.starter import recorded_processes
from vmbus_emu.runfolder import RunFolder

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

#: A machine that fails says so long before the deadline for what never comes.
FAILS_WITHIN_S = 10.0


class Boot:
    """``up`` on a thread, in which process ``held`` is stopped before it says a word."""

    def __init__(self, lab: Lab, wait: Wait, held: str, arch: str, transport: str, **document: Any) -> None:
        self._lab = lab
        self._wait = wait
        vms = [{"name": f"vm{n + 1}", "disk": [{"ram": "4MiB"}], "nic": [{"switch": "s0"}]} for n in range(2)]
        topology = {
            "name": "m", "arch": arch, "transport": transport, "vm": vms, "switch": [{"name": "s0"}],
            "hang_after": "never", **document,
        }  # fmt: skip
        self.held = 0
        while not self.held:                            # a busy host may have let it speak: then once more
            self.machine = lab.machine(topology)
            self._error: BaseException | None = None
            self._ready: set[str] = set()
            self._thread = threading.Thread(target=self._run)
            self._thread.start()
            wait(lambda: held in self.pids(), f"{held} is there")
            pid = self.pids()[held]
            os.kill(pid, signal.SIGSTOP)
            wait(self._attach, "the machine answers")
            self.rows()                                 # what it had still said has arrived now
            if held not in self._ready and (held != "zygote" or "vm1" not in self.pids()):
                self.held = pid
            else:
                os.kill(pid, signal.SIGCONT)
                assert self.end() is None
                self.machine.down()

    def _run(self) -> None:
        try:
            self.machine.up(lambda event: self._ready.add(event["component"]))
        except MachineError as error:
            self._error = error

    def _attach(self) -> bool:
        with contextlib.suppress(MachineError):
            self.other = self._lab.attach()
            return True
        return False

    @staticmethod
    def pids() -> dict[str, int]:
        """Processes by component name, as the machine records them."""
        folder = RunFolder("m").path / "pids"
        lines = folder.read_text().splitlines() if folder.exists() else []
        return {words[2]: int(words[0]) for words in (line.split() for line in lines) if len(words) == 3}

    def rows(self) -> dict[str, Mapping[str, Any]]:
        return self._lab.rows(self.other)

    def state(self, name: str) -> str:
        return str(self.rows()[name]["state"])

    def partitions(self) -> int:
        """How many the hypervisor has; 0: it does not say."""
        return int((self.rows()["hypervisor"]["counters"] or {}).get("partitions", 0))

    def kill(self, *names: str) -> None:
        pids = self.pids()                              # ``ps`` would wait for whoever is stopped
        for name in names:
            os.kill(pids[name], signal.SIGKILL)

    def goes_on(self) -> None:
        os.kill(self.held, signal.SIGCONT)

    def end(self) -> MachineError | None:
        """How ``up`` ended: ``None`` is well."""
        self._thread.join(40)
        assert not self._thread.is_alive()
        if self._error is None:
            self._lab.note()
        assert self._error is None or isinstance(self._error, MachineError)
        return self._error

    def assert_up(self, arch: str, **incarnations: int) -> None:
        """All of it came up: in the first incarnation but for those named."""
        assert self.end() is None
        rows = self._lab.rows(self.machine)
        assert self.machine.info()["state"] == "ready"
        assert {name: row["state"] for name, row in rows.items()} == dict.fromkeys(rows, "ready")
        expected = {name: incarnations.get(row["host"], 1) for name, row in rows.items()}
        assert {name: row["incarnation"] for name, row in rows.items()} == expected
        assert rows["hypervisor"]["counters"]["partitions"] == LEVEL[arch]
        assert all(self.machine.exec(vm, "null disk0 10").status == 0 for vm in ("vm1", "vm2"))
        self._wait(lambda: pings(self.machine), "the network works")
        self.machine.down()
        assert self._lab.leftovers() == []


@PLACES
@pytest.mark.parametrize("victims", [("management",), ("parent",), ("management", "parent")], ids="-".join)
def test_up_goes_on_after_a_death_while_vms_are_started(
    lab: Lab, wait: Wait, arch: str, transport: str, victims: tuple[str, ...]
) -> None:
    """Every partition is there, and waits for its process."""
    boot = Boot(lab, wait, "zygote", arch, transport)
    wait(lambda: boot.partitions() == LEVEL[arch], "all partitions are there")
    boot.kill(*victims)
    wait(lambda: not set(victims) & dead(boot), "they are replaced")
    boot.goes_on()
    boot.assert_up(arch, **dict.fromkeys(victims, 2))


def dead(boot: Boot) -> set[str]:
    return {name for name, row in boot.rows().items() if row["pid"] is None or row["incarnation"] == 1}


@PLACES
@pytest.mark.parametrize("victims", [("management",), ("parent",), ("parent", "management")], ids="-".join)
def test_up_goes_on_after_a_death_while_partitions_are_made(
    lab: Lab, wait: Wait, arch: str, transport: str, victims: tuple[str, ...]
) -> None:
    """Management has made them, and waits for the parent, which is stopped."""
    boot = Boot(lab, wait, "management", arch, transport)
    wait(lambda: boot.state("parent") == "ready", "the parent is ready")
    parent = boot.pids()["parent"]
    os.kill(parent, signal.SIGSTOP)
    boot.goes_on()
    wait(lambda: boot.partitions() == LEVEL[arch], "partitions are made")
    boot.kill(*victims)
    if "parent" not in victims:
        os.kill(parent, signal.SIGCONT)
    boot.assert_up(arch, **dict.fromkeys(victims, 2))


@PLACES
@pytest.mark.parametrize("victim", ["parent", "management"])
def test_up_goes_on_after_a_death_before_the_first_word(
    lab: Lab, wait: Wait, arch: str, transport: str, victim: str
) -> None:
    boot = Boot(lab, wait, victim, arch, transport)
    boot.kill(victim)
    boot.assert_up(arch, **{victim: 2})


@pytest.mark.parametrize("transport", ["zmq", "ring"])
@pytest.mark.parametrize("victims", [("management",), ("storvsp",), ("storvsp", "management")], ids="-".join)
def test_up_goes_on_after_a_death_while_a_vsp_is_started(
    lab: Lab, wait: Wait, transport: str, victims: tuple[str, ...]
) -> None:
    boot = Boot(lab, wait, "storvsp", "disaggregated", transport)
    wait(lambda: boot.partitions() == LEVEL["disaggregated"], "all partitions are there")
    boot.kill(*victims)
    if "storvsp" not in victims:
        boot.goes_on()
    boot.assert_up("disaggregated", **dict.fromkeys(victims, 2))


@pytest.mark.parametrize("transport", ["zmq", "ring"])
@pytest.mark.parametrize("held", ["hypervisor", "parent", "zygote"])
def test_up_goes_on_after_the_death_of_a_hypervisor_that_is_recovered(
    lab: Lab, wait: Wait, held: str, transport: str
) -> None:
    boot = Boot(lab, wait, held, "microkernel", transport, policy={"hypervisor": "recover"})
    if held == "zygote":
        wait(lambda: boot.partitions() == LEVEL["microkernel"], "all partitions are there")
    boot.kill("hypervisor")
    if held != "hypervisor":
        wait(lambda: boot.state("hypervisor") == "ready", "it is back")
        boot.goes_on()
    boot.assert_up("microkernel", hypervisor=2)


@pytest.mark.parametrize(("victim", "held", "policy"), [
    ("hypervisor", "hypervisor", {}), ("hypervisor", "parent", {}), ("hypervisor", "zygote", {}),
    ("parent", "zygote", {"parent": "halt"}), ("management", "zygote", {"management": "halt"}),
    ("vm1", "vm1", {}),
])  # fmt: skip
def test_up_fails_at_once_without_whom_nobody_replaces_and_leaves_nothing(
    lab: Lab, wait: Wait, victim: str, held: str, policy: dict[str, str]
) -> None:
    boot = Boot(lab, wait, held, "microkernel", "zmq", policy=policy)
    wait(lambda: boot.state("hypervisor") == "ready" or held == "hypervisor", "the hypervisor is there")
    if held == "zygote":
        wait(lambda: boot.partitions() == LEVEL["microkernel"], "all partitions are there")
    killed = time.monotonic()
    recorded = recorded_processes(RunFolder("m"))
    boot.kill(victim)
    if held == "zygote":
        boot.goes_on()
    error = boot.end()
    assert f"{victim} (pid " in str(error)
    assert "was killed by SIGKILL" in str(error)
    assert time.monotonic() - killed < FAILS_WITHIN_S
    assert len(recorded) > 3
    assert lab.leftovers() == []


def test_a_reboot_goes_on_too(lab: Lab, wait: Wait) -> None:
    """Of a machine that was up: the same deaths in its second boot."""
    machine = lab.up("microkernel", hang_after="never")
    before = lab.rows(machine)
    os.kill(before["hypervisor"]["pid"], signal.SIGKILL)
    wait(lambda: Boot.pids()["zygote"] != before["zygote"]["pid"], "it boots again")
    zygote = Boot.pids()["zygote"]
    os.kill(zygote, signal.SIGSTOP)
    wait(lambda: lab.rows(machine)["management"]["state"] == "ready", "management is there")
    for name in ("management", "parent"):
        pid = lab.rows(machine)[name]["pid"]
        os.kill(pid, signal.SIGKILL)
        wait(lambda: lab.rows(machine)[name]["pid"] not in (None, pid), f"{name} is replaced")  # noqa: B023
    os.kill(zygote, signal.SIGCONT)
    wait(lambda: machine.info()["state"] == "ready", "it is up again")
    lab.note()
    rows = lab.rows(machine)
    assert all(row["state"] == "ready" for row in rows.values())
    assert (rows["hypervisor"]["incarnation"], rows["management"]["incarnation"]) == (2, 3)
    assert rows["hypervisor"]["counters"]["partitions"] == LEVEL["microkernel"]
    assert machine.exec("vm1", "null disk0 10").status == 0
