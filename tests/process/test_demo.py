"""``demo isolation`` against real machines: who died and who lived in each cell, and that nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from vmbus_emu.client.demo import NAMES, rows
from vmbus_emu.procfs import stat_fields
from vmbus_emu.runfolder import RunFolder

if TYPE_CHECKING:
    from conftest import Lab

Cell = dict[str, Any]


def outcomes(cell: Cell) -> set[str]:
    return {vm["outcome"] for vm in cell["vms"].values()}


def test_who_dies_with_whom_in_the_microkernel_and_in_the_monolith(lab: Lab) -> None:
    kept, page, table = (lab.folder / name for name in ("isolation.json", "isolation.html", "isolation.md"))
    lab.up(name="default", vms=1)
    mine = lab.rows(lab.attach("default"))
    status, out, errors = lab.cli(
        "demo", "isolation", "--arch", "microkernel", "--arch", "monolithic",
        "--json", str(kept), "--html", str(page), "--markdown", str(table),
    )  # fmt: skip
    assert status == 0, out.decode() + errors
    report = json.loads(kept.read_text())
    counts = report["operations"]
    assert (report["findings"], counts["lost"], counts["unexpected"], counts["duplicated"]) == ([], 0, 0, 0)
    assert counts["attempted"] >= counts["acknowledged"] > 3000
    assert len(report["rows"]) == len(rows())

    killed = 0
    for row in report["rows"]:
        micro, mono = row["cells"]["microkernel"], row["cells"]["monolithic"]
        killed += micro["killed"] + mono["killed"]
        component, policy = row["component"], row["policy"]
        if component in ("storvsp", "netvsp", "parent"):
            # The parent carries both VSPs: every VM loses both devices, waits, and lives. The one with emulated devices
            # has its disk in its worker, and loses the cable to the switch.
            assert (micro["host"], micro["rebooted"], outcomes(micro)) == ("parent", False, {"interrupted"})
            assert {"storvsp", "netvsp"} <= set(micro["carried"])
            for name, vm in micro["vms"].items():
                assert (vm["disk_gap_ms"] is None) is (name == "vm3")
                assert vm["network_gap_ms"] > 0
        if component == "vm3-worker":
            assert (micro["host"], micro["carried"], micro["rebooted"]) == ("vm3-worker", ["vm3-worker"], False)
            died = micro["vms"]["vm3"]
            assert (died["outcome"], died["runs_again"], died["disk_gap_ms"] > 0) == ("died", True, True)
            for name in ("vm1", "vm2"):
                neighbour = micro["vms"][name]
                assert neighbour["outcome"] in ("went on", "interrupted")
                assert (neighbour["disk_gap_ms"], neighbour["network_gap_ms"]) == (None, None)
        if component in ("management", "files") or policy == "recover":
            # No channel is lost. How long it was silent is the host's affair: it is shared.
            assert (micro["host"], micro["rebooted"]) == (component, False)
            assert outcomes(micro) <= {"went on", "interrupted"}
            assert {vm["disk_gap_ms"] for vm in micro["vms"].values()} == {None}
            assert (micro["start_ms"] > 0, micro["missing"]) == (True, [])      # there is another one
        if component == "hypervisor" and policy is None:
            assert (micro["rebooted"], outcomes(micro)) == (True, {"died"})
            assert all(vm["runs_again"] for vm in micro["vms"].values())
        if component == "vm1":
            for cell in (micro, mono):
                died, *neighbours = cell["vms"].values()
                assert (died["outcome"], cell["carried"], cell["rebooted"]) == ("died", ["vm1"], False)
                assert {one["outcome"] for one in neighbours} <= {"went on", "interrupted"}
                assert {one["disk_gap_ms"] for one in neighbours} == {None}
            assert (micro["vms"]["vm1"]["runs_again"], mono["vms"]["vm1"]["runs_again"]) == (True, False)
        elif mono["killed"]:
            assert (mono["host"], mono["rebooted"], outcomes(mono)) == ("hypervisor", True, {"died"})
            assert {"storvsp", "management", "vm1", "vm2", "vm3", "vm3-worker"} <= set(mono["carried"])
            assert all(vm["runs_again"] and vm["disk_gap_ms"] > 0 for vm in mono["vms"].values())
    unlikely = [row["component"] for row in report["rows"] if not row["cells"]["monolithic"]["killed"]]
    assert killed == 2 * len(rows()) - len(unlikely)
    assert unlikely == ["parent", "vm3-worker", "files", *(["hypervisor"] if any(row.policy for row in rows()) else [])]

    assert out.splitlines()[0].split() == [b"KILLED", b"MICROKERNEL", b"MONOLITHIC"]
    assert "all 3 VMs live" in table.read_text()
    assert "vm3-worker died<br>vm3 died" in table.read_text()
    assert "served after" in page.read_text()
    # Whatever else runs is not touched.
    assert {name: row["pid"] for name, row in lab.rows(lab.attach("default")).items()} == {
        name: row["pid"] for name, row in mine.items()
    }
    assert [name for name in NAMES.values() if RunFolder(name).exists()] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demonstration_leaves_nothing(
    lab: Lab, wait: Callable[..., None], number: signal.Signals
) -> None:
    program = lab.program("demo", "isolation", "--arch", "monolithic")
    folder = RunFolder(NAMES["monolithic"])
    wait(lambda: "vms" in folder.info(), "the machine is up")
    lab.note(folder.name)
    pid = folder.holder()
    assert pid is not None
    assert int(stat_fields(pid)[1]) == program.pid
    os.kill(program.pid, number)
    assert program.wait(20) == 130
    assert lab.leftovers() == []


def test_a_demonstration_that_cannot_start_takes_nobody_elses_machine_down(lab: Lab) -> None:
    machine = lab.up("microkernel", name=NAMES["microkernel"])
    status, out, errors = lab.cli("demo", "isolation", "--arch", "microkernel", "--arch", "monolithic")
    assert (status, out, errors.count("\n")) == (1, b"", 1)
    assert 'demo-microkernel" is already running' in errors
    assert machine.exec("vm1", "echo").status == 0
    assert RunFolder(NAMES["monolithic"]).holder() is None
