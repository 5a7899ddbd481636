"""Integration services of real VMs, in every placement and over both transports: heartbeat, stop, keys and values, the
time, snapshots; and what becomes of them when the parent dies."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmbus_emu.client import Machine, MachineError

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]
APART = [("microkernel", "zmq"), ("microkernel", "ring"), ("disaggregated", "zmq"), ("disaggregated", "ring")]
PLACES = [*APART, ("monolithic", "zmq")]
MIB = 1 << 20

places = pytest.mark.parametrize(("arch", "transport"), PLACES)
apart = pytest.mark.parametrize(("arch", "transport"), APART)


def up(lab: Lab, arch: str, transport: str, **document: Any) -> Machine:
    return lab.up(arch, **{"transport": transport, "heartbeat": "50ms", **document})


def beats(lab: Lab, machine: Machine) -> dict[str, str | None]:
    return {name: row["heartbeat"] for name, row in lab.rows(machine).items() if row["role"] == "child"}


# -- heartbeat ------------------------------------------------------------------------------------------


@apart
def test_a_hung_guest_is_noticed_left_alone_and_heard_again(lab: Lab, wait: Wait, arch: str, transport: str) -> None:
    machine = up(lab, arch, transport)
    wait(lambda: beats(lab, machine) == {"vm1": "ok", "vm2": "ok"}, "both answer")
    pid = lab.rows(machine)["vm1"]["pid"]
    with lab.attach().watch() as events:
        os.kill(pid, signal.SIGSTOP)
        wait(lambda: beats(lab, machine) == {"vm1": "lost", "vm2": "ok"}, "one has stopped to")
        assert b" lost " in lab.cli("ps", "--name", "m")[1]
        os.kill(pid, signal.SIGCONT)
        wait(lambda: beats(lab, machine) == {"vm1": "ok", "vm2": "ok"}, "it is heard again")
        told = [events.next(5) for _ in range(2)]
    assert [(one["event"], one["component"], one["state"]) for one in told if one] == [
        ("heartbeat", "vm1", "lost"), ("heartbeat", "vm1", "ok")]
    row = lab.rows(machine)["vm1"]
    assert (row["pid"], row["state"], row["incarnation"]) == (pid, "ready", 1)
    lab.kill(machine, "vm1")
    assert beats(lab, machine) == {"vm1": None, "vm2": "ok"}


def test_in_the_monolith_a_guest_that_hangs_is_noticed_too(lab: Lab, wait: Wait) -> None:
    machine = up(lab, "monolithic", "zmq")
    wait(lambda: beats(lab, machine) == {"vm1": "ok", "vm2": "ok"}, "both answer")
    lab.attach()._connected().ask("kill", component="vm1", fault="hang")
    wait(lambda: beats(lab, machine) == {"vm1": "lost", "vm2": "ok"}, "one has stopped to")
    with pytest.raises(MachineError, match="vm1 does not shut down: vm1 does not answer"):
        machine.stop("vm1", grace_s=5)
    with pytest.raises(MachineError, match="vm1 is unkillable"):
        machine.stop("vm1", force=True)


# -- stop -----------------------------------------------------------------------------------------------


@places
def test_a_stopped_vm_has_flushed_stays_off_and_starts_again(
    lab: Lab, wait: Wait, arch: str, transport: str
) -> None:
    image = lab.folder / "vm1.img"
    image.write_bytes(bytes(MIB))
    vms = [{"name": "vm1", "disk": [{"file": str(image)}]}, {"name": "vm2", "disk": [{"ram": "1MiB"}]}]
    policy = {} if arch == "monolithic" else {"child": "restart"}
    machine = up(lab, arch, transport, vm=vms, policy=policy)
    machine.vm("vm1").disk.write(512, b"written")
    endless = lab.program("exec", "--name", "m", "vm1", "--", "sleep", "1000")
    wait(lambda: lab.rows(machine)["vm1"]["counters"]["commands"] == 2, "it runs")
    status, out, errors = lab.cli("stop", "--name", "m", "vm1")
    assert (status, errors) == (0, "")
    assert out.startswith(b"vm1: off after ")
    assert endless.wait(10) in (130, 137), "the command was ended"
    assert image.read_bytes()[512:519] == b"written"
    row = lab.rows(machine)["vm1"]
    assert (row["state"], row["heartbeat"], row["signal"]) == ("halted", None, None)
    assert row["exit_code"] == (None if arch == "monolithic" else 0)
    assert machine.info()["state"] == "ready", "nothing is wrong with it"
    assert machine.exec("vm1", "true").stderr == b"vm1 is off: it was shut down\n"
    for verb in (lambda: machine.stop("vm1"), lambda: machine.kvp("vm1")):
        with pytest.raises(MachineError, match="vm1 is not running"):
            verb()
    assert machine.exec("vm2", "null disk0 10").status == 0
    machine.start("vm1")
    assert machine.vm("vm1").disk.read(512, 7) == b"written"
    assert machine.exec("vm1", "ping -c 1 vm2").status == 0


@places
def test_force_pulls_the_plug(lab: Lab, arch: str, transport: str) -> None:
    policy = {} if arch == "monolithic" else {"child": "restart"}
    machine = up(lab, arch, transport, policy=policy)
    assert machine.stop("vm1", force=True)["how"] == "plug pulled"
    row = lab.rows(machine)["vm1"]
    assert (row["state"], row["signal"]) == ("halted", None if arch == "monolithic" else "SIGKILL")
    assert machine.exec("vm2", "null disk0 10").status == 0
    machine.start("vm1")
    assert machine.exec("vm1", "null disk0 10").status == 0


def test_a_vm_that_does_not_answer_is_not_stopped_and_says_how_it_could_be(lab: Lab) -> None:
    machine = up(lab, "microkernel", "zmq")
    pid = lab.rows(machine)["vm1"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    status, out, errors = lab.cli("stop", "--name", "m", "vm1")
    assert (status, out) == (1, b"")
    assert errors == (
        "vmbus-emu: error: vm1 does not shut down: the shutdown service of vm1 does not answer; "
        "vmbus-emu stop vm1 --force pulls the plug\n"
    )
    assert machine.stop("vm1", force=True)["how"] == "plug pulled"
    assert lab.cli("stop", "--name", "m", "vm9")[0] == 1


# -- keys and values ------------------------------------------------------------------------------------


@places
def test_keys_and_values_go_both_ways(lab: Lab, arch: str, transport: str) -> None:
    machine = up(lab, arch, transport)
    said = {item["key"]: item["value"] for item in lab.json("kvp", "--name", "m", "vm1")["items"]}
    assert said["FullyQualifiedDomainName"] == "vm1"
    assert said["NetworkAddressIPv4"] == "10.0.0.1"
    assert said["OSName"] == "vmbus-emu guest"
    assert lab.cli("kvp", "--name", "m", "vm1", "set", "Owner", "Physik, Zürich") == (0, b"", "")
    assert machine.exec("vm1", "kvp get Owner").stdout.decode() == "Physik, Zürich\n"
    assert machine.exec("vm1", ["kvp", "set", "Mood", "v" * 1023]).status == 0
    assert machine.kvp("vm1", "Mood") == [{"pool": "guest", "key": "Mood", "value": "v" * 1023}]
    assert lab.cli("kvp", "--name", "m", "vm1", "get", "Owner")[1].decode() == "Physik, Zürich\n"
    status, _, errors = lab.cli("kvp", "--name", "m", "vm1", "get", "Nobody")
    assert (status, errors.startswith("vmbus-emu: error: vm1 has no key 'Nobody'")) == (1, True)
    with pytest.raises(MachineError, match="a key has 1 to 255 characters"):
        machine.set_kvp("vm1", "k" * 256, "v")
    assert machine.kvp("vm2", "Owner") == []
    for number in range(50):
        machine.set_kvp("vm2", f"key{number}", "v" * 1000)
    assert len([item for item in machine.kvp("vm2") if item["pool"] == "external"]) == 50


# -- time -----------------------------------------------------------------------------------------------


def off_by(machine: Machine, vm: str) -> float:
    """Seconds by which the guest's clock is fast; the time that the question takes counts for it."""
    before = time.time_ns()
    shown = int(machine.exec(vm, "date -n").stdout)
    after = time.time_ns()
    return (shown - min(max(shown, before), after)) / 1e9


@places
def test_a_clock_that_runs_far_too_fast_is_stepped_once_and_then_kept(
    lab: Lab, wait: Wait, arch: str, transport: str
) -> None:
    vms = [{"name": "vm1", "clock_drift": "100000ppm"}, {"name": "vm2", "clock_drift": "-100000ppm"}]
    machine = up(lab, arch, transport, vm=vms)

    def kept(vm: str) -> bool:
        clock = machine.exec(vm, "clock").stdout.decode()
        samples = int(clock.split("set ")[1].split("times,")[1].split()[0])
        return samples >= 4 and abs(off_by(machine, vm)) < 0.005

    for vm in ("vm1", "vm2"):
        wait(lambda vm=vm: kept(vm), f"{vm} shows the time")
        assert "set         1 times" in machine.exec(vm, "clock").stdout.decode(), "it was slewed, not set again"
        assert machine.exec(vm, "date").stdout.decode().startswith(time.strftime("%Y-%m-", time.gmtime()))


# -- snapshots ------------------------------------------------------------------------------------------

_A, _B = 0, 60 * MIB


class Pairs:
    """A workload whose disk is consistent if its two places, far apart, differ by at most one: the first is always
    written first. It notes whether a write ever failed."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._ended = threading.Event()
        self.done = self.failed = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            for place in (_A, _B):
                data = f"{self.done + 1:020}"
                self.failed += self._machine.exec("vm1", ["write", "disk0", str(place), data]).status != 0
            self.done += 1

    def end(self) -> None:
        self._ended.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


def numbers(image: Path) -> tuple[int, int]:
    with image.open("rb") as file:
        found = []
        for place in (_A, _B):
            file.seek(place)
            found.append(int(file.read(20)))
    return found[0], found[1]


@places
def test_a_snapshot_of_a_vm_that_writes_is_of_one_moment(lab: Lab, wait: Wait, arch: str, transport: str) -> None:
    image = lab.folder / "vm1.img"
    image.write_bytes(random.Random(arch).randbytes(48 * MIB))
    os.truncate(image, 64 * MIB)
    machine = up(lab, arch, transport, vm=[{"name": "vm1", "disk": [{"file": str(image)}]}])
    for place in (_A, _B):
        assert machine.exec("vm1", ["write", "disk0", str(place), f"{0:020}"]).status == 0
    pairs = Pairs(lab.attach())
    try:
        wait(lambda: pairs.done >= 3, "it writes")
        for number in range(3):
            copy = lab.folder / f"copy{number}.img"
            before = pairs.done
            report = lab.json("snapshot", "--name", "m", "vm1", str(copy))
            assert report["quiesced"]
            assert 0 < report["frozen_ms"] <= report["ms"] < 5000
            assert (report["disk"], report["bytes"]) == ("vm1.disk0", 64 * MIB)
            first, second = numbers(copy)
            assert second <= first <= second + 1
            assert first >= before, "what was acknowledged before is in it"
            assert copy.stat().st_size == 64 * MIB
            assert copy.stat().st_blocks * 512 < 52 * MIB, "holes stay holes"
            wait(lambda before=pairs.done: pairs.done > before + 1, "it goes on")
    finally:
        pairs.end()
    assert pairs.failed == 0
    with copy.open("rb") as made, image.open("rb") as medium:
        made.seek(MIB)
        medium.seek(MIB)
        assert made.read(47 * MIB) == medium.read(47 * MIB)


def test_what_cannot_be_copied_leaves_no_file(lab: Lab) -> None:
    vms = [{"name": "vm1", "disk": [{"ram": "1MiB"}, {"null": "1GiB"}]}, {"name": "vm2"}]
    machine = up(lab, "microkernel", "zmq", vm=vms)
    taken = lab.folder / "taken.img"
    taken.write_bytes(b"mine")
    for arguments, why in (
        (("vm1", str(taken)), f"{taken} exists; choose another name, or remove it"),
        (("vm1", str(lab.folder / "none" / "a.img")), f"cannot write {lab.folder / 'none' / 'a.img'}: No such file"),
        (("vm1", str(lab.folder / "a.img"), "--disk", "disk9"), "vm1 has no disk 'disk9'; its disks are disk0, disk1"),
        (("vm1", str(lab.folder / "a.img"), "--disk", "disk1"), "vm1.disk1 is a null disk, which keeps nothing"),
    ):
        status, out, errors = lab.cli("snapshot", "--name", "m", *arguments)
        assert (status, out) == (1, b"")
        assert errors.startswith(f"vmbus-emu: error: {why}")
    os.kill(lab.rows(machine)["vm1"]["pid"], signal.SIGSTOP)
    with pytest.raises(MachineError, match="vm1 did not hold still: the vss service of vm1 does not answer"):
        machine.snapshot("vm1", lab.folder / "a.img")
    assert [path.name for path in lab.folder.iterdir()] == ["taken.img"]
    assert taken.read_bytes() == b"mine"
    os.kill(lab.rows(machine)["vm1"]["pid"], signal.SIGCONT)
    assert machine.snapshot("vm1", lab.folder / "a.img")["quiesced"]
    assert not machine.snapshot("vm1", lab.folder / "b.img", quiesce=False)["quiesced"]
    machine.stop("vm1")
    assert not machine.snapshot("vm1", lab.folder / "c.img")["quiesced"], "nobody is there to write"


# -- deaths ---------------------------------------------------------------------------------------------


def agreed_after(machine: Machine, vm: str, moment: float) -> list[float]:
    """When ``vm`` has agreed on a version of a component since ``moment``, in ns of the monotonic clock."""
    log = machine.exec(vm, "dmesg").stdout.decode().splitlines()
    uptime = float(machine.exec(vm, "uptime").stdout.split()[1])
    now = time.monotonic_ns()
    agreed = [float(line[1:13]) for line in log if "integration component, version" in line]
    return [now - (uptime - at) * 1e9 for at in agreed if now - (uptime - at) * 1e9 > moment]


@pytest.mark.parametrize("policy", ["restart", "standby"])
@apart
def test_after_the_parents_death_they_come_back_and_the_disks_before_them(
    lab: Lab, wait: Wait, arch: str, transport: str, policy: str
) -> None:
    machine = up(lab, arch, transport, policy={"parent": policy})
    wait(lambda: beats(lab, machine) == {"vm1": "ok", "vm2": "ok"}, "both answer")
    machine.set_kvp("vm1", "before", "1")
    if policy == "standby":
        wait(lambda: "parent.spare" in lab.rows(machine), "there is a spare")
    with lab.attach().watch() as events:
        killed = time.monotonic_ns()
        os.kill(lab.rows(machine)["parent"]["pid"], signal.SIGKILL)
        attached: dict[tuple[str, str], int] = {}
        while len(attached) < 4:
            event = events.next(10)
            assert event is not None, attached
            if event["event"] == "attached":
                attached[event["component"], event["device"]] = event["ns"]
    lab.note()
    wait(lambda: beats(lab, machine) == {"vm1": "ok", "vm2": "ok"}, "they answer again")
    for vm in ("vm1", "vm2"):
        wait(lambda vm=vm: len(agreed_after(machine, vm, killed)) >= 3, "all three are there again")  # type: ignore[misc]
        # The uptime was read before `now`, so what is reckoned lies late by that at most.
        disks_and_nics = max(ns for (name, _), ns in attached.items() if name == vm)
        assert min(agreed_after(machine, vm, killed)) > disks_and_nics
    assert machine.kvp("vm1", "before"), "what the guest knew it knows still"
    assert machine.stop("vm1")["how"] == "off"


def test_a_parent_that_dies_while_a_guest_is_frozen_leaves_it_free_and_no_file(lab: Lab, wait: Wait) -> None:
    image = lab.folder / "vm1.img"
    image.write_bytes(b"x" * MIB)
    machine = up(lab, "microkernel", "zmq", vm=[{"name": "vm1", "disk": [{"file": str(image)}]}])
    assert machine.snapshot("vm1", lab.folder / "good.img")["quiesced"]     # so its channel is there
    parent, box = lab.rows(machine)["parent"]["pid"], machine.info()["pid"]
    os.kill(lab.rows(machine)["vm1"]["pid"], signal.SIGSTOP)
    snapshot = lab.program("snapshot", "--name", "m", "vm1", str(lab.folder / "a.img"))

    def is_under_way() -> bool:
        """The machine has the copy open, which has no name yet."""
        opened = [os.readlink(fd) for fd in Path(f"/proc/{box}/fd").iterdir() if fd.is_symlink()]
        return any(path.startswith(f"{lab.folder}/#") or "/.a.img." in path for path in opened)

    wait(is_under_way, "it waits for the guest")
    os.kill(parent, signal.SIGKILL)
    out, errors = snapshot.communicate(timeout=20)
    lab.note()
    assert (snapshot.returncode, out) == (1, b"")
    assert b"vm1 did not hold still: parent died while it was asked" in errors
    os.kill(lab.rows(machine)["vm1"]["pid"], signal.SIGCONT)
    machine.vm("vm1").disk.write(0, b"goes on")
    assert not (lab.folder / "a.img").exists()


def test_an_old_guest_speaks_the_oldest_versions(lab: Lab, wait: Wait) -> None:
    vms = [{"name": "vm1", "vmbus_version": "2.4"}, {"name": "vm2"}]
    machine = up(lab, "microkernel", "zmq", vm=vms)
    wait(lambda: beats(lab, machine) == {"vm1": "ok", "vm2": "ok"}, "both answer")
    assert machine.kvp("vm1", "OSName")[0]["value"] == "vmbus-emu guest"
    spoken = {}
    for vm in ("vm1", "vm2"):
        lines = machine.exec(vm, "dmesg").stdout.decode().splitlines()
        spoken[vm] = {line.split()[-5].rstrip(":"): line.split()[-1] for line in lines if "component, version" in line}
    assert spoken["vm1"] == {"heartbeat": "1.0", "shutdown": "1.0", "timesync": "1.0", "kvp": "3.0"}
    assert spoken["vm2"] == {"heartbeat": "3.0", "shutdown": "3.2", "timesync": "4.0"}
    wait(lambda: abs(off_by(machine, "vm1")) < 0.05, "it shows the time, if less exactly")
    assert machine.stop("vm1")["how"] == "off"


@pytest.mark.parametrize(("arch", "transport"), [PLACES[1], PLACES[2], PLACES[4]])
def test_a_vm_that_comes_at_run_time_has_them_and_when_it_goes_they_do(
    lab: Lab, wait: Wait, arch: str, transport: str
) -> None:
    machine = up(lab, arch, transport)
    machine.add_vm("vm3")
    wait(lambda: beats(lab, machine).get("vm3") == "ok", "the new one answers")
    assert {item["value"] for item in machine.kvp("vm3", "FullyQualifiedDomainName")} == {"vm3"}
    assert machine.stop("vm3")["how"] == "off"
    assert machine.info()["state"] == "ready", "who was stopped is not missing"
    machine.start("vm3")
    wait(lambda: beats(lab, machine).get("vm3") == "ok", "it answers again")
    machine.remove_vm("vm3")
    assert "vm3" not in beats(lab, machine)
    machine.add_vm("vm3")
    wait(lambda: beats(lab, machine) == dict.fromkeys(("vm1", "vm2", "vm3"), "ok"), "another one of that name answers")


@pytest.mark.parametrize("transport", ["zmq", "ring"])
def test_services_that_are_installed_bring_them_and_take_them_along(lab: Lab, wait: Wait, transport: str) -> None:
    machine = up(lab, "microkernel", transport, vm=[{"name": "vm1"}, {"name": "vm2", "integration_services": False}])
    wait(lambda: beats(lab, machine) == {"vm1": "ok", "vm2": None}, "only vm1 has a heart")
    for verb in (["kvp", "vm2"], ["stop", "vm2"], ["snapshot", "vm2", str(lab.folder / "a.img")]):
        status, out, errors = lab.cli(verb[0], "--name", "m", *verb[1:])
        assert (status, out) == (1, b""), verb
        assert "vm2 has no integration services" in errors
        assert "services install vm2" in errors
    machine.services("vm2", install=True)
    wait(lambda: beats(lab, machine) == {"vm1": "ok", "vm2": "ok"}, "vm2 has one now")
    assert machine.kvp("vm2", "OSName")
    machine.services("vm2", install=False)
    wait(lambda: beats(lab, machine) == {"vm1": "ok", "vm2": None}, "and none again")
    assert machine.stop("vm2", force=True)["how"] == "plug pulled"
    wait(lambda: lab.rows(machine)["vm2-worker"]["state"] == "halted", "its worker ends with it")
    assert machine.info()["state"] == "ready"


def test_a_thread_that_stops_and_starts_leaves_nothing(lab: Lab, wait: Wait) -> None:
    machine = up(lab, "monolithic", "zmq")
    pid = lab.rows(machine)["hypervisor"]["pid"]

    def held() -> tuple[int, int]:
        return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))

    wait(lambda: beats(lab, machine)["vm2"] == "ok", "it answers")
    before = held()
    for _ in range(3):
        machine.stop("vm2")
        machine.start("vm2")
        wait(lambda: beats(lab, machine)["vm2"] == "ok", "it answers again")
    wait(lambda: held() == before, f"as many descriptors and threads as before, {before}")
