"""What a run is said to have cost: made-up events and histories, whose true gaps, steps and losses are known."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from vmbus_emu.client.aftermath import Expected, outstanding
from vmbus_emu.client.judging import NotARun, failed, judged
from vmbus_emu.device import Status
from vmbus_emu.witness import stamp
from vmbus_emu.witness.history import PENDING, READ, REQUEST, UNSEEN, WRITE, Operation
from vmbus_emu.witness.stamp import Stamp

MS = 1_000_000
OK = int(Status.OK)


def operation(kind: int, sequence: int, submitted_ms: float, completed_ms: float = 0, **fields: Any) -> list[int]:
    """One that begins as planned. ``completed_ms`` 0: it does not complete."""
    submitted, completed = round(submitted_ms * MS), round(completed_ms * MS)
    plain = Operation(kind, OK if completed else PENDING, int(bool(completed)), UNSEEN, 1, 1, submitted, submitted,
                      completed, sequence, 0, 0, 1, 0)  # fmt: skip
    return list(plain._replace(**fields))


def dumped(*operations: list[int], full: bool = False) -> dict[str, Any]:
    return {"schema": 1, "fields": list(Operation._fields), "full": full, "operations": list(operations)}


def event(ms: float, what: str, component: str, **fields: Any) -> dict[str, Any]:
    return {"n": 1, "ns": round(ms * MS), "event": what, "component": component, **fields}


def died(ms: float, component: str, *carried: str, pid: int = 7) -> dict[str, Any]:
    return event(ms, "died", component, carried=list(carried or [component]), pid=pid, incarnation=1,
                 signal="SIGSEGV", exit_code=None, reason="")  # fmt: skip


def kill(ms: float, component: str = "storvsp", **fields: Any) -> dict[str, Any]:
    plain = {"component": component, "host": component, "pid": 7, "incarnation": 1, "fault": "segv", "signal": None}
    return {**plain, "killed_ns": round(ms * MS), "missing": [], "waited_s": 15.0, **fields}


#: Death at 102 ms, detached at 103, again there at 130; request 2 is answered at 101: it was on its way.
EVENTS = [
    died(102, "storvsp"), event(103, "detached", "vm1", device="disk0", resent=0),
    event(110, "starting", "storvsp", pid=8, incarnation=2, spare=False),
    event(120, "ready", "storvsp", pid=8, incarnation=2), event(130, "attached", "vm1", device="disk0", resent=2),
]  # fmt: skip
DISK = dumped(
    operation(READ, 1, 10, 11), operation(READ, 2, 99, 101), operation(READ, 3, 99.5, 135), operation(READ, 4, 150, 151)
)
NETWORK = dumped(operation(REQUEST, 1, 98, 99), operation(REQUEST, 2, 100.5, 102, tries=3))


def run(**changed: Any) -> dict[str, Any]:
    plain = {
        "schema": 1, "machine": {}, "begun_ns": 0, "ended_ns": 200 * MS, "operations": {}, "findings": [],
        "kills": [kill(100)], "vms": {"vm1": {"survived": True}}, "events": EVENTS,
        "histories": {"vm1": {"disk": DISK, "network": NETWORK}}, "read_back": {}, "start_state": {},
    }  # fmt: skip
    return copy.deepcopy({**plain, **changed})


def test_the_steps_of_a_restart_and_the_gap_that_it_made() -> None:
    found = judged(run())
    one = found["kills"][0]
    assert [one[f"{step}_ms"] for step in ("detect", "start", "renegotiate", "first_reply")] == [2, 18, 10, 35]
    assert (one["signal"], one["starting_ns"], one["first_reply_ns"]) == ("SIGSEGV", 110 * MS, 135 * MS)
    vm = found["vms"]["vm1"]
    assert (vm["disk_gap_ms"], vm["network_gap_ms"]) == (35, 2)
    assert (vm["in_flight"], vm["resubmitted"], vm["failed"], vm["lost"]) == (2, 2, 0, 0)
    assert (vm["p50_ms"], vm["p99_ms"]) == (2, 35.5)
    counts = found["operations"]
    assert (counts["attempted"], counts["acknowledged"], counts["network_lost"]) == (4, 4, 2)
    assert not failed(found)
    assert judged(found) == found


def test_what_never_came_back_has_no_gap_and_no_reply() -> None:
    histories = {"vm1": {"disk": dumped(operation(READ, 1, 10, 11), operation(READ, 2, 99))}}
    found = judged(run(histories=histories, kills=[kill(100, missing=["vm1.disk0"])]))
    assert (found["vms"]["vm1"]["disk_gap_ms"], found["vms"]["vm1"]["network_gap_ms"]) == (None, None)
    assert found["kills"][0]["first_reply_ms"] is None
    assert found["findings"] == ["storvsp (segv): 15 s passed without vm1.disk0"]
    assert failed(found)


def test_a_hang_that_nobody_noticed_is_no_short_gap() -> None:
    late = dumped(operation(READ, 1, 10, 11), operation(READ, 2, 99, 100.5), operation(READ, 3, 101))
    silent = dumped(*(operation(REQUEST, n, 99 + n, 100 + n) for n in (1, 2)), operation(REQUEST, 3, 900))
    one = kill(100, missing=["the end of storvsp (pid 7)"])
    found = judged(run(histories={"vm1": {"disk": late, "network": silent}}, kills=[one], events=[]))
    vm = found["vms"]["vm1"]
    assert (vm["disk_gap_ms"], vm["network_gap_ms"], vm["in_flight"]) == (None, None, 1)


def test_the_longest_of_several_gaps_counts() -> None:
    kills = [kill(5, "management"), kill(100)]
    found = judged(run(kills=kills))
    assert found["vms"]["vm1"]["disk_gap_ms"] == 35
    assert [one["first_reply_ms"] for one in found["kills"]] == [94, 35]    # nobody was interrupted: any reply


def test_the_replies_of_disks_and_network_are_also_told_apart() -> None:
    (one,) = judged(run(kills=[kill(100)]))["kills"]
    assert (one["disk_reply_ms"], one["network_reply_ms"]) == (35, None)   # the network was not interrupted
    detached = event(101, "detached", "vm1", device="nic0", resent=0)
    (one,) = judged(run(kills=[kill(100)], events=[EVENTS[0], detached, *EVENTS[1:]]))["kills"]
    assert (one["disk_reply_ms"], one["network_reply_ms"]) == (35, 2)


def test_a_vm_that_was_killed_and_started_again_is_judged_over_both_lives() -> None:
    events = [died(101, "vm1"), event(110, "starting", "vm1", pid=8), event(115, "attached", "vm1", device="disk0",
              resent=0), event(118, "ready", "vm1", pid=8)]  # fmt: skip
    histories = {"vm1": {"disk": dumped(
        operation(READ, 1, 99, 100.5), operation(READ, 2, 100), operation(READ, 3, 140, 141)
    )}}  # fmt: skip
    found = judged(run(kills=[kill(100, "vm1")], events=events, histories=histories, vms={"vm1": {"survived": False}}))
    one = found["kills"][0]
    assert (one["detect_ms"], one["start_ms"], one["renegotiate_ms"], one["first_reply_ms"]) == (1, 17, 0, 41)
    vm = found["vms"]["vm1"]
    assert (vm["survived"], vm["disk_gap_ms"], vm["lost"]) == (False, 41, 0)    # its request died with it


def test_a_request_that_a_living_vm_never_saw_completed_is_lost() -> None:
    histories = {"vm1": {"disk": dumped(operation(READ, 1, 99), operation(READ, 2, 140, 141))}}
    found = judged(run(histories=histories))
    assert (found["operations"]["lost"], found["vms"]["vm1"]["lost"]) == (1, 1)
    assert found["findings"] == ["vm1: lost: read 1 never completed"]


WRITES = dumped(operation(WRITE, 1, 10, 11), operation(WRITE, 2, 20, 21), operation(WRITE, 3, 30))


@pytest.mark.parametrize(("sequence", "lost", "recovered"), [(1, 1, 0), (2, 0, 0), (3, 0, 1)])
def test_writes_are_judged_by_what_was_read_back(sequence: int, lost: int, recovered: int) -> None:
    read_back = {"vm1": stamp.dump({0: Stamp(1, sequence, 0)})}
    counts = judged(run(histories={"vm1": {"disk": WRITES}}, read_back=read_back))["operations"]
    assert (counts["attempted"], counts["acknowledged"]) == (3, 2)
    assert (counts["lost"], counts["recovered"], counts["unexpected"]) == (lost, recovered, 0)


def test_writes_that_nobody_read_back_are_one_finding_with_its_reason() -> None:
    found = judged(run(histories={"vm1": {"disk": WRITES}}, unread={"vm1": "vm1 is dead"}))
    assert found["findings"] == ["vm1: what was written could not be read back: vm1 is dead"]


def test_a_full_and_a_destroyed_history_are_told() -> None:
    torn = dumped([219] * len(Operation._fields))
    found = judged(run(histories={"vm1": {"disk": {**DISK, "full": True}, "network": torn}}))
    assert found["findings"] == [
        "vm1: the network history was destroyed, or is none: operation 0 is of no known kind",
        "vm1: the disk history was full",
    ]


@pytest.mark.parametrize("wrong", [
    None, [], {}, run(schema=2), run(kills=3), run(kills=[{}]), run(events=[{}]), run(vms={"vm1": {}}),
    run(read_back={"vm1": [[1, 2]]}), run(histories=[]), run(histories={"vm1": []}), run(read_back=None),
    {key: value for key, value in run().items() if key != "events"},
])  # fmt: skip
def test_what_is_no_run_is_refused_with_a_reason(wrong: Any) -> None:
    with pytest.raises(NotARun, match=r"."):
        judged(wrong)


# -- what is still to come --------------------------------------------------------------------------

STORVSP = Expected("storvsp", 7, "restart", [("vm1", "disk0"), ("vm2", "disk0")])


def test_a_restart_is_over_when_all_devices_have_their_channels_again() -> None:
    waiting = [len(outstanding(STORVSP, EVENTS[:number])) for number in range(len(EVENTS) + 1)]
    assert waiting == [1, 3, 3, 3, 2, 1]
    assert outstanding(STORVSP, EVENTS) == ["vm2.disk0"]
    assert outstanding(STORVSP, [*EVENTS, died(131, "vm2", pid=9)]) == []
    assert outstanding(STORVSP, [*EVENTS, event(131, "given up", "vm2", device="disk0")]) == []


def test_a_replacement_that_dies_is_waited_for_again() -> None:
    again = [*EVENTS, event(131, "attached", "vm2", device="disk0"), died(132, "storvsp", pid=8)]
    assert outstanding(STORVSP, again[:-1]) == []
    assert outstanding(STORVSP, again) == ["a new storvsp"]
    detached = [*again[:-1], event(132, "detached", "vm2", device="disk0")]
    assert outstanding(STORVSP, detached) == ["vm2.disk0"]


def test_without_a_replacement_only_who_noticed_is_waited_for() -> None:
    halt = STORVSP._replace(policy="halt")
    assert outstanding(halt, EVENTS[:1]) == ["vm1.disk0", "vm2.disk0"]
    assert outstanding(halt, EVENTS[:1], noticed=False) == []
    assert outstanding(halt, EVENTS[:2], noticed=False) == ["vm1.disk0"]


def test_a_death_that_takes_another_along_is_over_with_both() -> None:
    worker = Expected("vm2-worker", 7, "halt", [], ["vm2"])
    events = [died(101, "vm2-worker"), died(102, "vm2", pid=9)]
    assert [outstanding(worker, events[:number]) for number in range(3)] == [
        ["the end of vm2-worker (pid 7)"], ["the end of vm2"], [],
    ]
    back = worker._replace(policy="restart", successor="vm2")
    events.append(event(120, "ready", "vm2"))
    assert [outstanding(back, events[:number]) for number in (1, 2, 3)] == [
        ["the end of vm2", "a new vm2"], ["a new vm2"], [],
    ]


def test_a_reboot_is_over_when_all_is_up_and_a_halt_at_once() -> None:
    hypervisor = Expected("hypervisor", 7, "reboot", [])
    events = [died(101, "hypervisor"), event(102, "rebooting", ""), died(103, "vm1", pid=9), event(140, "up", "")]
    assert [bool(outstanding(hypervisor, events[:number])) for number in range(5)] == [True, True, True, True, False]
    assert outstanding(hypervisor._replace(policy="halt"), [events[0], event(102, "halted", "")]) == []
    assert outstanding(STORVSP, [*EVENTS[:1], *events[1:2]]) == ["the machine's reboot"]
