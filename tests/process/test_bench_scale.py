"""``bench scale``, ``boot`` and ``network`` on real machines, with windows that are too short to say anything."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench import boot, scale
from bench.boot import Contender, booted
from bench.costs import costs, processes
from bench.machines import Configuration, Unmeasured
from bench.scale import Lengths

if TYPE_CHECKING:
    from conftest import Lab

CALL = Configuration("monolithic", "call")
RING = Configuration("microkernel", "ring", "adaptive")
SHORT = Lengths(0.05, 0.1)


@pytest.fixture(autouse=True)
def _below_the_lab(lab: Lab) -> None:
    """Machines that the benchmark starts are looked after like the lab's own."""


def test_scale_measures_one_and_two_vms_everywhere() -> None:
    run = scale.run((CALL, RING), (1, 2), 1, 1, lengths=SHORT)
    assert len(run["scale"]) == 4
    for row in run["scale"]:
        told = f"{row['vms']} VMs on {row['arch']} {row['transport']}"
        assert row["failed"] == [], told
        assert 0 < row["boot_ms"] < row["first_io_ms"], told
        assert row["ops_per_s"] > 100, told
        assert 0 < row["fairness"] <= 1, told
        assert row["p50_us"] > 0, told
        assert row["cpu_us_per_op"] > 0, told
        assert 0 <= row["idle_cpu_percent"] < 100, told
        assert (row["uss_per_vm_bytes"] is None) == (told == "1 VMs on monolithic call"), told
    assert (run["results"], run["baselines"], run["ratios"]) == ([], [], [])


def test_every_vm_runs_in_the_whole_window_and_only_that_is_counted() -> None:
    """A VM that is told to begin when the others have long begun makes the machine unmeasured, not the share small."""
    with booted(Contender(CALL, 2)) as up:
        pids = processes(up.machine.ps(window=0)["partitions"])
        assert set(costs(pids)) >= {"machine", "front"}
        busy = scale.load_all(up.machine, pids, 2, 0.1)
        assert len(busy.shares) == 2
        assert sum(busy.shares) == len(busy.latencies_ns)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scale, "_START_S", -1.0)
            with pytest.raises(Unmeasured, match=r"vm1: .*began \d+ ms late"):
                scale.load_all(up.machine, pids, 2, 0.1)


def test_boot_times_a_user_s_commands_and_leaves_nothing(lab: Lab) -> None:
    run = boot.run((CALL,), (1,), 1, 1)
    (row,) = run["boot"]
    assert row["failed"] == []
    assert 0 < row["up_ms"] < row["first_io_ms"]
    assert row["down_ms"] is not None
    assert lab.json("ls")["machines"] == []


def test_a_host_that_is_too_small_makes_a_row_and_no_end(lab: Lab, tmp_path: Path) -> None:
    kept = tmp_path / "run.json"
    program = lab.program(
        "bench", "scale", "--arch", "monolithic", "--vms", "1,64", "--rounds", "1", "--seconds", "0.1", "--idle", "0.1",
        "--json", str(kept), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)),
    )  # fmt: skip
    out, errors = program.communicate(timeout=60)
    assert program.returncode == 0, errors
    run = json.loads(kept.read_text())
    assert run["command"][:3] == ["vmbus-emu", "bench", "scale"]
    assert f"--seed {run['seed']}" in out.decode()
    one, many = run["scale"]
    assert (one["vms"], one["repetitions"], one["failed"]) == (1, 1, [])
    assert (many["vms"], many["repetitions"], many["ops_per_s"]) == (64, 0, None)
    assert "descriptors" in many["failed"][0]
    assert many["failed"][0] in out.decode()


def test_the_network_verb_shows_what_the_receiver_saw(lab: Lab, tmp_path: Path) -> None:
    kept = tmp_path / "run.json"
    status, out, errors = lab.cli("bench", "network", "--arch", "microkernel", "--transport", "ring", "--rounds", "1",
                                  "--seconds", "0.05", "--json", str(kept))  # fmt: skip
    assert status == 0, errors
    assert b"microkernel ring received " in out
    run: dict[str, Any] = json.loads(kept.read_text())
    (row,) = [row for row in run["results"] if row["job"] == "bulk"]
    assert row["received"]["lost_frames"] == row["received"]["wrong_frames"] == 0
    moved = row["ops_per_s"] * row["size"] * 8 / 1e6
    assert row["received"]["mbit_per_s"] == pytest.approx(moved, rel=0.5)
