"""``--json`` of every reader against the contract that later checks rest on: keys, types, roles, states."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Lab

PLACEMENTS = ("monolithic", "microkernel", "disaggregated")
TOP_KEYS = {"schema", "name", "arch", "transport", "state", "partitions"}
NUMBER = (int, float)
ROW: dict[str, tuple[type, ...]] = {
    "name": (str,), "role": (str,), "host": (str,), "pid": (int,), "state": (str,), "incarnation": (int,),
    "signal": (str, type(None)), "exit_code": (int, type(None)), "cpu_percent": (*NUMBER, type(None)),
    "uss_bytes": (int, type(None)), "io_per_s": (*NUMBER, type(None)), "last_io_age_s": (*NUMBER, type(None)),
    "restarts": (int,), "counters": (dict,), "heartbeat": (str, type(None)),
}
HOSTS = {
    "monolithic": {
        "machine": "machine", "hypervisor": "hypervisor", "management": "hypervisor", "storvsp": "hypervisor",
        "netvsp": "hypervisor", "vm1": "hypervisor", "vm2": "hypervisor",
    },
    "microkernel": {
        "machine": "machine", "zygote": "zygote", "zygote.parent": "zygote.parent", "hypervisor": "hypervisor",
        "parent": "parent", "storvsp": "parent", "netvsp": "parent", "management": "management",
        "vm1": "vm1", "vm2": "vm2",
    },
    "disaggregated": {name: name for name in (
        "machine", "zygote", "zygote.parent", "zygote.storvsp", "zygote.netvsp", "hypervisor", "parent", "storvsp",
        "netvsp", "management", "vm1", "vm2",
    )},
}


def check_row(row: dict[str, Any]) -> None:
    assert set(row) == set(ROW)
    wrong = {key: row[key] for key, types in ROW.items() if not isinstance(row[key], types)}
    assert not wrong, row["name"]
    assert row["role"] == ("child" if row["name"].startswith("vm") else row["name"].partition(".")[0])


@pytest.mark.parametrize("arch", PLACEMENTS)
def test_ps_has_one_row_per_component_with_the_keys_of_the_contract(lab: Lab, arch: str) -> None:
    machine = lab.up(arch, policy=lab.NOTHING_FOLLOWS)
    machine.vm("vm1").disk.read(0, 512)
    report = lab.json("ps", "--name", "m")
    assert set(report) == TOP_KEYS
    head = {key: report[key] for key in TOP_KEYS - {"partitions"}}
    transport = "call" if arch == "monolithic" else "zmq"
    assert head == {"schema": 1, "name": "m", "arch": arch, "transport": transport, "state": "ready"}
    rows = {row["name"]: row for row in report["partitions"]}
    assert len(rows) == len(report["partitions"])
    assert {name: row["host"] for name, row in rows.items()} == HOSTS[arch]
    for name, row in rows.items():
        check_row(row)
        assert (row["state"], row["incarnation"], row["restarts"]) == ("ready", 1, 0)
        assert (row["signal"], row["exit_code"]) == (None, None)
        assert row["pid"] == rows[row["host"]]["pid"]
        on_host_row = row["host"] == name
        assert (row["uss_bytes"] is not None, row["cpu_percent"] is not None) == (on_host_row, on_host_row)
    assert rows["storvsp"]["last_io_age_s"] < 60
    assert rows["vm1"]["counters"]["disk_reads"] >= 1

    lab.kill(machine, "vm1")
    rows = {row["name"]: row for row in lab.json("ps", "--name", "m")["partitions"]}
    for row in rows.values():
        check_row(row)
    dead = rows["vm1"]
    assert (dead["state"], dead["signal"], dead["exit_code"], dead["uss_bytes"]) == ("dead", "SIGKILL", None, None)


def test_io_per_second_is_what_the_guest_does(lab: Lab) -> None:
    machine = lab.up()
    assert lab.rows(machine)["vm1"]["io_per_s"] is None  # a rate takes a while to measure; there was none
    program = lab.program("exec", "--name", "m", "vm1", "--", "ping", "-i", "0.005", "vm2")
    assert program.stdout is not None
    program.stdout.readline()
    report = {row["name"]: row["io_per_s"] for row in machine.ps(window=0.5)["partitions"]}
    assert 50 < report["vm1"] < 2000  # 200 frames out and 200 in would be the ideal
    assert report["netvsp"] > 50
    assert report["machine"] is None


def test_the_other_readers_answer_in_json_too(lab: Lab) -> None:
    status, out, errors = lab.cli("up", "--name", "m", "--json")
    assert (status, errors) == (0, "")
    assert out.startswith(b"{")
    machine = lab.attach()
    (entry,) = lab.json("ls")["machines"]
    assert set(entry) == {"name", "pid", "stale", "arch", "transport", "vms", "created"}
    assert (entry["pid"], entry["vms"], entry["transport"]) == (machine.info()["pid"], ["vm1", "vm2"], "zmq")

    report = lab.json("pingall", "--name", "m")
    assert (report["schema"], report["vms"], report["sent"], report["received"]) == (1, ["vm1", "vm2"], 2, 2)
    assert {(pair["from"], pair["to"], pair["ok"]) for pair in report["pairs"]} == {
        ("vm1", "vm2", True), ("vm2", "vm1", True)
    }
    logs = lab.json("logs", "--name", "m", "vm1")
    assert (logs["schema"], logs["name"], {line["component"] for line in logs["lines"]}) == (1, "m", {"vm1"})

    planned = lab.json("plan", "--name", "m")
    assert {process["name"] for process in planned["processes"]} >= {"machine", "hypervisor", "parent", "vm1", "vm2"}


def test_pingall_ends_with_1_and_names_the_pairs_when_a_vm_is_dead(lab: Lab) -> None:
    machine = lab.up(vms=3)
    lab.kill(machine, "vm3")
    status, out, _ = lab.cli("pingall", "--name", "m", "--timeout", "20", "--json")
    assert status == 1
    pairs = {(pair["from"], pair["to"]): pair["ok"] for pair in json.loads(out)["pairs"]}
    assert pairs == {
        ("vm1", "vm2"): True, ("vm2", "vm1"): True,
        ("vm1", "vm3"): False, ("vm2", "vm3"): False, ("vm3", "vm1"): False, ("vm3", "vm2"): False,
    }
