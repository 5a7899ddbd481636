"""kill, start, watch, chaos and check against real machines: who survived, what it cost, and is the judge awake?

Gaps are not held against figures here, only against each other: the host is shared.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from vmbus_emu.client import Machine, MachineError
from vmbus_emu.runfolder import RunFolder

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

STEPS = ("detect_ms", "start_ms", "renegotiate_ms", "first_reply_ms")
PLACES = [("microkernel", "zmq"), ("microkernel", "ring"), ("disaggregated", "zmq"), ("disaggregated", "ring")]


def networked(count: int) -> dict[str, Any]:
    vms = [{"name": f"vm{n + 1}", "disk": [{"ram": "4MiB"}], "nic": [{"switch": "s0"}]} for n in range(count)]
    return {"vm": vms, "switch": [{"name": "s0"}]}


def up(lab: Lab, arch: str, transport: str = "zmq", **document: Any) -> Machine:
    chosen = {} if arch == "monolithic" else {"transport": transport}
    return lab.up(arch, **networked(2), **chosen, **document)


def guests_running(machine: Machine) -> set[str]:
    return {vm for vm in ("vm1", "vm2") if machine.exec(vm, "echo").status == 0}


@pytest.mark.parametrize(("arch", "transport"), PLACES)
@pytest.mark.parametrize("victim", ["parent", "storvsp", "netvsp"])
def test_a_replaced_component_costs_every_vm_a_gap_and_no_request(
    lab: Lab, arch: str, transport: str, victim: str
) -> None:
    machine = up(lab, arch, transport)
    pid = lab.rows(machine)[victim]["pid"]
    run = machine.kill(victim)
    assert (run["schema"], run["findings"], run["operations"]["lost"]) == (1, [], 0)
    told = run["machine"]
    assert (told["name"], told["arch"], told["transport"]) == ("m", arch, transport)
    assert told["policy"]["parent"] == "restart"
    (kill,) = run["kills"]
    assert (kill["component"], kill["pid"], kill["fault"], kill["signal"]) == (victim, pid, "kill", "SIGKILL")
    spans = [kill[step] for step in STEPS]
    assert all(span > 0 for span in spans)
    if victim == "storvsp":     # a NIC carries frames before its handshake is over
        assert sum(spans[:3]) <= spans[3] + 0.001
    gaps = {"parent": ("disk", "network"), "storvsp": ("disk",), "netvsp": ("network",)}[victim]
    for vm in ("vm1", "vm2"):
        report = run["vms"][vm]
        assert (report["survived"], report["failed"], report["lost"]) == (True, 0, 0)
        assert all(kill["detect_ms"] < report[f"{gap}_gap_ms"] <= kill["first_reply_ms"] for gap in gaps)
        assert report["p50_ms"] <= report["p99_ms"]
    assert run["operations"]["attempted"] == run["operations"]["acknowledged"] > 200
    assert lab.rows(machine)[victim]["incarnation"] == 2


@pytest.mark.parametrize("victim", ["storvsp", "management"])
def test_the_monolith_reboots_whatever_is_killed_and_no_vm_survives(lab: Lab, victim: str) -> None:
    machine = up(lab, "monolithic")
    run = machine.kill(victim)
    lab.note()
    (kill,) = run["kills"]
    assert (kill["host"], run["findings"]) == ("hypervisor", [])
    assert kill["first_reply_ms"] > kill["start_ms"] > 0
    for vm in run["vms"].values():
        assert (vm["survived"], vm["lost"]) == (False, 0)
        assert vm["disk_gap_ms"] >= kill["start_ms"]
    assert guests_running(machine) == {"vm1", "vm2"}


@pytest.mark.parametrize(("arch", "transport"), PLACES)
def test_a_killed_vm_dies_alone_and_start_brings_it_back(lab: Lab, arch: str, transport: str) -> None:
    machine = up(lab, arch, transport)
    status, out, errors = lab.cli("kill", "--name", "m", "vm1", "--json")
    assert (status, errors) == (0, "")
    report = json.loads(out)
    assert {vm: one["survived"] for vm, one in report["vms"].items()} == {"vm1": False, "vm2": True}
    assert (report["vms"]["vm1"]["disk_gap_ms"], report["kills"][0]["first_reply_ms"]) == (None, None)
    assert report["vms"]["vm2"]["disk_gap_ms"] is not None
    assert report["operations"]["lost"] == 0
    assert guests_running(machine) == {"vm2"}
    status, _, errors = lab.cli("kill", "--name", "m", "vm1")
    assert (status, "vm1 is dead already; vmbus-emu start vm1" in errors) == (1, True)
    status, out, _ = lab.cli("start", "--name", "m", "vm1")
    pid = lab.rows(machine)["vm1"]["pid"]
    assert (status, out) == (0, f"vm1: ready (pid {pid}, incarnation 2)\n".encode())
    assert guests_running(machine) == {"vm1", "vm2"}
    with pytest.raises(MachineError, match="running already"):
        machine.start("vm1")


def test_a_policy_of_halt_ends_the_kill_at_once_and_requests_fail_without_being_lost(lab: Lab) -> None:
    machine = up(lab, "disaggregated", "ring", policy={"storvsp": "halt", "hypervisor": "halt"})
    run = machine.kill("storvsp")
    assert (run["findings"], run["operations"]["lost"], run["kills"][0]["ready_ns"]) == ([], 0, None)
    for vm in run["vms"].values():
        assert (vm["survived"], vm["disk_gap_ms"]) == (True, None)
        assert vm["failed"] > 0
        assert vm["network_gap_ms"] is not None
    run = machine.kill("hypervisor")
    assert [one["event"] for one in run["events"] if one["event"] == "halted"] == ["halted"]
    assert {vm["survived"] for vm in run["vms"].values()} == {False}


def test_killing_the_machine_takes_everything_and_says_so(lab: Lab) -> None:
    up(lab, "microkernel")
    status, out, errors = lab.cli("kill", "--name", "m", "machine", "--json")
    assert (status, errors) == (0, "")
    report = json.loads(out)
    (death,) = (one for one in report["events"] if one["event"] == "died")
    assert {"hypervisor", "parent", "storvsp", "vm1", "vm2"} <= set(death["carried"])
    assert {vm["survived"] for vm in report["vms"].values()} == {False}
    assert lab.survivors() == []
    assert RunFolder("m").holder() is None
    assert lab.cli("down", "--name", "m")[0] == 0


def test_what_nobody_noticed_ends_with_the_deadline_and_status_1(lab: Lab) -> None:
    machine = up(lab, "microkernel")
    pid = lab.rows(machine)["vm1"]["pid"]
    status, out, _ = lab.cli("kill", "--name", "m", "vm1", "--fault", "stop", "--timeout", "0.5")
    assert status == 1
    assert f"! vm1 (stop): 0.5 s passed without the end of vm1 (pid {pid})" in out.decode()
    os.kill(pid, signal.SIGCONT)


def test_an_interrupted_kill_leaves_no_load_behind(lab: Lab, wait: Wait) -> None:
    machine = up(lab, "microkernel")
    pid = lab.rows(machine)["vm1"]["pid"]
    program = lab.program("kill", "--name", "m", "vm1", "--fault", "stop", "--timeout", "30")
    wait(lambda: any(event["event"] == "killed" for event in past(machine)), "the kill was made")
    program.send_signal(signal.SIGINT)
    assert program.wait(20) == 130
    os.kill(pid, signal.SIGCONT)
    wait(lambda: lab.rows(machine)["storvsp"]["last_io_age_s"] > 0.2, "no guest reads any more")


def past(machine: Machine) -> list[dict[str, Any]]:
    """The machine's events so far."""
    with machine.watch(past=True) as events:
        found = []
        while (event := events.next(0.05)) is not None:
            found.append(event)
    return found


def test_watch_shows_the_whole_story_of_a_kill_in_its_order_and_ends_with_the_machine(lab: Lab) -> None:
    machine = up(lab, "disaggregated", "ring")
    program = lab.program("watch", "--name", "m", "--json", "--past")
    assert program.stdout is not None
    first = program.stdout.readline()               # now it watches
    machine.kill("storvsp")
    machine.down()
    rest, errors = program.communicate(timeout=20)
    out = first + rest
    assert (program.returncode, errors) == (0, b"")
    told = [json.loads(line) for line in out.splitlines()]
    story = [one["event"] for one in told if one.get("component") in ("storvsp", "vm1") and one.get("device") != "nic0"]
    after = story[story.index("killed"):]
    begin = [after.index(what) for what in ("killed", "died", "starting", "ready", "attached")]
    assert begin == sorted(begin)
    assert "detached" in after


def test_a_plain_kill_9_is_watched_too(lab: Lab) -> None:
    machine = up(lab, "microkernel")
    with machine.watch() as events:
        os.kill(lab.rows(machine)["parent"]["pid"], signal.SIGKILL)
        seen = following(events, lambda event: event["event"] == "ready")
    assert [(event["event"], event["component"]) for event in seen if event["event"] in ("died", "ready")] == [
        ("died", "parent"), ("ready", "parent"),
    ]
    assert "killed" not in [event["event"] for event in seen]


def following(events: Any, last: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    while not seen or not last(seen[-1]):
        event = events.next(10)
        assert event is not None, seen
        seen.append(event)
    return seen


# -- chaos and check --------------------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "transport"), [*PLACES, ("monolithic", "zmq")])
def test_chaos_loses_no_write_whatever_is_killed(lab: Lab, arch: str, transport: str) -> None:
    machine = up(lab, arch, transport)
    run = machine.chaos(["storvsp", "hypervisor"] + ["vm2"] * (arch != "monolithic"), 0.6, 3.0, seed=3)
    lab.note()
    counts = run["operations"]
    assert (run["findings"], counts["lost"], counts["unexpected"], counts["duplicated"]) == ([], 0, 0, 0)
    assert counts["attempted"] >= counts["acknowledged"] > 500
    assert len({kill["component"] for kill in run["kills"]}) >= 2
    assert run["kills"][0]["first_reply_ms"] > 0        # of the last one the load may not see the end
    assert set(run["read_back"]) == set(run["start_state"]) == {"vm1", "vm2"}
    again = machine.chaos("storvsp", 0.3, 0.6, seed=4)      # on disks that are full of stamps
    assert (again["findings"], len(again["kills"]) > 0) == ([], True)
    assert guests_running(machine) == {"vm1", "vm2"}


def test_chaos_kills_at_the_same_moments_with_the_same_seed(lab: Lab) -> None:
    machine = up(lab, "disaggregated")
    told: list[list[float]] = []
    for _ in range(2):
        run = machine.chaos("management", 0.8, 2.4, seed=11)
        first = run["kills"][0]["killed_ns"]
        told.append([(kill["killed_ns"] - first) / 1e9 for kill in run["kills"]])
    assert len(told[0]) == len(told[1]) > 1
    assert told[0] == pytest.approx(told[1], abs=0.2)


def test_a_stored_run_is_judged_again_and_a_planted_loss_is_found(lab: Lab) -> None:
    up(lab, "microkernel", "ring")
    kept = lab.folder / "run.json"
    words = ["--every", "300ms", "--for", "900ms", "--json", str(kept)]
    status, out, errors = lab.cli("chaos", "--name", "m", "--kill", "storvsp", *words)
    assert (status, errors) == (0, "")
    assert b"overwriting vm1.disk0, vm2.disk0; seed " in out
    status, again, _ = lab.cli("check", str(kept))
    assert status == 0
    assert again.splitlines()[-1] == out.splitlines()[-1]
    run = json.loads(kept.read_text())
    assert lab.json("check", str(kept))["operations"] == run["operations"]

    written = next(sector for sector in run["read_back"]["vm1"] if len(sector) == 5)
    written[:] = written[:1]                                # the sector is empty again
    kept.write_text(json.dumps(run))
    status, out, _ = lab.cli("check", str(kept))
    assert status == 1
    assert f"! vm1: lost: sector {written[0]}: what was there at the start".encode() in out
    assert b"! not as stored: lost: stored 0, found 1" in out


def test_chaos_spares_image_files_unless_told(lab: Lab) -> None:
    image = lab.folder / "a.img"
    image.write_bytes(b"precious" * (1 << 17))
    disks = [{"name": "vm1", "disk": [{"file": str(image)}]}]
    machine = lab.up("microkernel", vm=disks)
    with pytest.raises(MachineError, match="no living VM has a RAM disk"):
        machine.chaos("storvsp", 0.3, 0.3)
    machine.kill("storvsp")
    assert image.read_bytes() == b"precious" * (1 << 17)
    run = machine.chaos("storvsp", 0.3, 0.6, overwrite=True)
    assert (run["findings"], run["operations"]["attempted"] > 50) == ([], True)
    assert image.read_bytes() != b"precious" * (1 << 17)


@pytest.mark.parametrize(("words", "said"), [
    (["kill", "nobody"], 'has no component "nobody"; one of machine, hypervisor, parent'),
    (["start", "vm9"], 'has no VM "vm9"; one of vm1, vm2'),
    (["start", "vm1"], "vm1 is running already"),
    (["chaos", "--kill", "nobody", "--for", "1s"], 'has no component "nobody"'),
])
def test_a_mistake_is_one_line_and_leaves_nothing_running(lab: Lab, words: list[str], said: str) -> None:
    machine = up(lab, "microkernel")
    status, out, errors = lab.cli(words[0], "--name", "m", *words[1:])
    assert (status, out, errors.count("\n"), said in errors) == (1, b"", 1, True), errors
    assert guests_running(machine) == {"vm1", "vm2"}
