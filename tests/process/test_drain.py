"""drain of real machines: in every placement, with and without a hypervisor; what stays, and what is said.

And policy degraded, of which it is the orderly end: what goes on without a hypervisor, and what is refused.
"""

from __future__ import annotations

import os
import random
import re
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from vmbus_emu.client import ExecResult, Machine, MachineError

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

PLACES = [("monolithic", None), ("microkernel", "zmq"), ("microkernel", "ring"), ("disaggregated", "zmq"),
          ("disaggregated", "ring")]
APART = PLACES[1:]


def up(lab: Lab, arch: str, transport: str | None, **document: Any) -> Machine:
    """Two VMs with an image file each, and a network."""
    for vm in ("vm1", "vm2"):
        (lab.folder / f"{vm}.img").write_bytes(bytes(1 << 20))
    vms = [{"name": vm, "disk": [{"file": str(lab.folder / f"{vm}.img")}], "nic": [{"switch": "s0"}]}
           for vm in ("vm1", "vm2")]
    chosen = {} if transport is None else {"transport": transport}
    return lab.up(arch, vm=vms, switch=[{"name": "s0"}], **chosen, **document)


def kill_hypervisor(lab: Lab, machine: Machine) -> None:
    lab.kill(machine, "hypervisor")
    assert machine.info()["state"] == "degraded"


class Aside:
    """A call on a thread of its own; :meth:`end` gives what it returned or raises what it raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._result: Any = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._call()
        except Exception as error:
            self._result = error

    def end(self) -> Any:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self._result


@pytest.mark.parametrize("hypervisor", ["alive", "dead"])
@pytest.mark.parametrize(("arch", "transport"), PLACES)
def test_vms_shut_down_in_order_and_boot_again_from_what_they_wrote(
    lab: Lab, arch: str, transport: str | None, hypervisor: str
) -> None:
    if arch == "monolithic" and hypervisor == "dead":
        pytest.skip("everything is dead then")
    policy = {} if arch == "monolithic" else {"hypervisor": "degraded", "child": "restart"}
    machine = up(lab, arch, transport, policy=policy)
    before = lab.rows(machine)
    if hypervisor == "dead":
        kill_hypervisor(lab, machine)
    for vm in ("vm1", "vm2"):
        assert machine.exec(vm, f"write disk0 1000 written-by-{vm}").status == 0
    with lab.attach().watch() as events:
        steps: list[Any] = []
        report = machine.drain(20, steps.append)
        lab.note()
        seen: list[dict[str, Any]] = []
        while not seen or seen[-1]["event"] != "up":
            event = events.next(10)
            assert event is not None, seen
            seen.append(event)
    assert [(vm["vm"], vm["how"], vm["unflushed"]) for vm in report["vms"]] == [("vm1", "off", []), ("vm2", "off", [])]
    assert [step["step"] for step in steps] == ["draining", "vm", "vm", "rebooting"]
    assert (report["degraded_s"] is None) is (hypervisor == "alive")
    assert 0 < report["reboot_ms"] < 60_000
    told = [(event["event"], event.get("component")) for event in seen
            if event["event"] in ("draining", "drained", "rebooting", "up") or event.get("component") in ("vm1", "vm2")]
    assert told[:4] == [("draining", None), ("drained", "vm1"), ("drained", "vm2"), ("rebooting", None)]
    assert ("died", "vm1") not in told, "a VM that shut down is not one that died"
    after = lab.rows(machine)
    assert machine.info()["state"] == "ready"
    for name in ("hypervisor", "vm1", "vm2"):
        assert (after[name]["state"], after[name]["incarnation"]) == ("ready", before[name]["incarnation"] + 1)
    for vm in ("vm1", "vm2"):
        assert (lab.folder / f"{vm}.img").read_bytes()[1000:1014] == f"written-by-{vm}".encode()
        assert machine.exec(vm, "read disk0 1000 14").stdout == f"written-by-{vm}".encode()
    machine.down()
    assert lab.leftovers() == []


@pytest.mark.parametrize(("arch", "transport"), PLACES)
def test_commands_that_run_are_ended_and_what_they_wrote_is_on_the_image(
    lab: Lab, wait: Wait, arch: str, transport: str | None
) -> None:
    machine = up(lab, arch, transport)
    started = lab.rows(machine)["vm1"]["counters"]["commands"]
    machine_1, machine_2 = lab.attach(), lab.attach()
    endless = Aside(lambda: machine_1.exec("vm1", "sleep 1000"))
    data = random.Random(arch).randbytes(512 << 10)
    feeding, fed = os.pipe()
    with os.fdopen(feeding, "rb") as pipe, os.fdopen(fed, "wb", 0) as feed:
        writer = Aside(lambda: machine_2.exec("vm1", "dd if=- of=disk0 bs=512", stdin=pipe))
        feed.write(data)
        wait(lambda: lab.rows(machine)["vm1"]["counters"]["disk_writes"] >= 2, "it has written")
        assert lab.rows(machine)["vm1"]["counters"]["commands"] == started + 2
        report = machine.drain(20)
        lab.note()
    assert [vm["how"] for vm in report["vms"]] == ["off", "off"]
    assert report["vms"][0]["ms"] < 15_000
    ended = [endless.end(), writer.end()]
    assert [type(one) for one in ended] == [ExecResult] * 2
    assert [one.status for one in ended] == [130] * 2
    assert (lab.folder / "vm1.img").read_bytes()[:len(data)] == data


@pytest.mark.parametrize(("arch", "transport"), APART)
def test_a_vm_that_does_not_shut_down_is_killed_and_reported_so(lab: Lab, arch: str, transport: str) -> None:
    machine = up(lab, arch, transport)
    os.kill(lab.rows(machine)["vm1"]["pid"], signal.SIGSTOP)
    status, out, errors = lab.cli("drain", "--name", "m", "--grace", "200ms")
    lab.note()
    assert (status, errors) == (1, "")
    first, second, third = out.decode().splitlines()
    assert re.fullmatch(r"vm1  killed after [2-9][0-9][0-9] ms: did not shut down", first)
    assert second.startswith("vm2  flushed and off after ")
    assert third.startswith("rebooted in ")
    assert {row["state"] for row in lab.rows(machine).values()} == {"ready"}
    assert machine.exec("vm1", "null disk0 10").status == 0


def test_a_thread_that_hangs_ends_with_the_reboot(lab: Lab) -> None:
    machine = up(lab, "monolithic", None)
    lab.attach()._connected().ask("kill", component="vm1", fault="hang")
    report = machine.drain(0.2)
    lab.note()
    assert [vm["how"] for vm in report["vms"]] == ["killed", "off"]
    assert machine.exec("vm1", "null disk0 10").status == 0


def test_a_vm_that_is_dead_already_is_passed_over_and_boots_again(lab: Lab) -> None:
    machine = up(lab, "microkernel", "zmq")
    lab.kill(machine, "vm1")
    assert [vm["how"] for vm in machine.drain()["vms"]] == ["not running", "off"]
    lab.note()
    assert machine.exec("vm1", "null disk0 10").status == 0


def test_meanwhile_others_are_refused_and_ctrl_c_stops_nothing(lab: Lab, wait: Wait) -> None:
    machine = up(lab, "microkernel", "zmq")
    vm2 = lab.rows(machine)["vm2"]["pid"]
    os.kill(vm2, signal.SIGSTOP)
    program = lab.program("drain", "--name", "m", "--grace", "1m")
    wait(lambda: lab.rows(machine)["vm1"]["state"] == "halted", "vm1 is off")
    assert machine.info()["state"] == "draining"
    assert (lab.rows(machine)["vm1"]["exit_code"], lab.rows(machine)["vm1"]["signal"]) == (0, None)
    with pytest.raises(MachineError, match="a drain is under way already"):
        lab.attach().drain()
    with pytest.raises(MachineError, match="being drained"):
        machine.start("vm1")
    refused = machine.exec("vm1", "true")
    assert (refused.status, refused.stderr) == (137, b"vm1 is off: it was shut down\n")
    program.send_signal(signal.SIGINT)
    out, errors = program.communicate(timeout=20)
    assert (program.returncode, errors) == (
        130, b"the drain goes on without you; vmbus-emu watch --name m shows it\n")
    assert out.startswith(b"vm1  flushed and off after ")
    assert machine.info()["state"] == "draining"
    os.kill(vm2, signal.SIGCONT)
    wait(lambda: machine.info()["state"] == "ready", "it has rebooted")
    lab.note()
    assert lab.rows(machine)["vm2"]["incarnation"] == 2


def test_down_ends_a_drain(lab: Lab, wait: Wait) -> None:
    machine = up(lab, "microkernel", "zmq")
    os.kill(lab.rows(machine)["vm1"]["pid"], signal.SIGSTOP)
    draining = lab.attach()
    drain = Aside(lambda: draining.drain(60))
    wait(lambda: machine.info()["state"] == "draining", "it has begun")
    machine.down()
    assert isinstance(drain.end(), MachineError)
    assert lab.leftovers() == []


# -- degraded -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "transport"), APART)
def test_without_a_hypervisor_vms_go_on_and_new_ones_are_refused_in_one_line(
    lab: Lab, arch: str, transport: str
) -> None:
    machine = up(lab, arch, transport, policy={"hypervisor": "degraded"})
    kill_hypervisor(lab, machine)
    rows = lab.rows(machine)
    assert {name for name, row in rows.items() if row["state"] == "dead"} == {"hypervisor"}
    for vm, other in (("vm1", "vm2"), ("vm2", "vm1")):
        assert machine.exec(vm, "null disk0 100").status == 0
        assert machine.exec(vm, f"ping -c 1 -W 5 {other}").status == 0
    assert lab.json("ps", "--name", "m")["state"] == "degraded"
    status, out, _ = lab.cli("kill", "--name", "m", "vm1", "--timeout", "5")
    assert "vmbus-emu start" not in out.decode(), "it would be refused"
    assert "nothing took its place; vmbus-emu drain reboots all" in out.decode()
    status, out, errors = lab.cli("start", "--name", "m", "vm1")
    assert (status, out) == (1, b"")
    assert errors == (
        "vmbus-emu: error: vm1 cannot be started: the hypervisor is dead, and policy degraded replaces it by none; "
        "vmbus-emu drain shuts the VMs down in order and reboots\n"
    )
    assert machine.exec("vm2", "null disk0 100").status == 0
    status, out, errors = lab.cli("drain", "--name", "m")
    lab.note()
    told = out.decode().splitlines()
    assert (status, errors, told[1]) == (0, "", "vm1  was not running")
    assert told[0].startswith("degraded for ")
    assert machine.exec("vm1", "null disk0 10").status == 0


@pytest.mark.parametrize(("arch", "transport"), APART)
def test_without_a_hypervisor_nobody_brings_a_vsp_back_and_guests_are_told(
    lab: Lab, wait: Wait, arch: str, transport: str
) -> None:
    machine = up(lab, arch, transport, policy={"hypervisor": "degraded"})
    kill_hypervisor(lab, machine)
    victim = lab.rows(machine)["storvsp"]["host"]
    lab.kill(machine, victim)
    for vm in ("vm1", "vm2"):
        result = machine.exec(vm, "read disk0 0 512", timeout=20)
        assert (result.status, b"the disk is gone" in result.stderr) == (1, True)
    assert [vm["unflushed"] for vm in machine.drain(20)["vms"]] == [["disk0: flush: the disk is gone"]] * 2
    lab.note()
    assert machine.exec("vm1", "null disk0 10").status == 0


def test_a_start_that_is_under_way_when_the_hypervisor_dies_has_an_end(lab: Lab, wait: Wait) -> None:
    machine = up(lab, "microkernel", "zmq", policy={"hypervisor": "degraded"}, hang_after="never")
    lab.kill(machine, "vm1")
    rows = lab.rows(machine)
    os.kill(rows["hypervisor"]["pid"], signal.SIGSTOP)      # so it takes the calls, and answers none
    starting = lab.attach()
    start = Aside(lambda: starting.start("vm1", 20))
    wait(lambda: lab.rows(machine)["vm1"]["state"] == "restarting", "management was asked")
    os.kill(rows["hypervisor"]["pid"], signal.SIGKILL)
    assert "vm1 did not start" in str(start.end())
    assert machine.exec("vm2", "null disk0 10").status == 0
