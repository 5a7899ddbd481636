"""Many VMs, boots, throughput: what a run stores of them, and how it reads. No machine is started."""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import boot, costs, scale
from bench.boot import Contender, Times
from bench.doubt import Watch
from bench.jobs import STANDARD, Job
from bench.machines import Configuration, Measured, Unmeasured
from bench.measurement import Measurement
from bench.results import load, result
from bench.scale import Busy, Lengths, One, fairness
from bench.scaletable import boot_lines, scale_lines, throughput_lines
from bench.table import run_lines
from tests import measured_runs
from vmbus_emu.cli.bench import bench
from vmbus_emu.cli.bench.rates import throughput_jobs
from vmbus_emu.client import ExecResult

CALL, ZMQ = Configuration("monolithic", "call"), Configuration("microkernel", "zmq")
MIB = 1 << 20


def machine(shares: Sequence[int] = (100, 80), us: float = 10.0, memory: Sequence[int] = (4 * MIB, 6 * MIB)) -> One:
    latencies = array("q", [round(us * 1000)] * sum(shares))
    return One(0.3, 0.31, memory, 0.5, Busy(shares, 0.5, latencies, 12.0))


@pytest.mark.parametrize(("shares", "fair"), [
    ([10, 10], 1.0), ([5, 10, 20], 0.25), ([0, 10], 0.0), ([7], 1.0), ([0, 0], None), ([], None),
])
def test_fairness_is_the_smallest_share_over_the_largest(shares: list[int], fair: float | None) -> None:
    assert fairness(shares) == fair


def test_a_row_of_scale_has_what_is_documented() -> None:
    row = scale.row(Contender(ZMQ, 2), [machine(), machine((60, 60), 20.0), machine((90, 90)), "too many VMs"])
    assert row == {
        "arch": "microkernel", "transport": "zmq", "poll": None, "vms": 2, "boot_ms": 300.0,
        "interval_boot_ms": [300.0, 300.0], "first_io_ms": 310.0, "uss_per_vm_bytes": 5 * MIB,
        "idle_cpu_percent": 0.5, "ops_per_s": 360.0, "interval_ops_per_s": [240.0, 360.0], "fairness": 1.0,
        "p50_us": 10.0, "p99_us": None, "cpu_us_per_op": 12.0, "repetitions": 3, "failed": ["too many VMs"],
    }  # fmt: skip
    many = scale.row(Contender(ZMQ, 2), [machine((1000, 1000))])
    assert (many["p99_us"], many["interval_ops_per_s"]) == (10.0, None)


def test_what_was_not_measured_is_null() -> None:
    row = scale.row(Contender(ZMQ, 64), ["no descriptors"] * 3)
    assert (row["repetitions"], len(row["failed"])) == (0, 3)
    told = ("arch", "transport", "vms", "repetitions", "failed")
    assert [name for name, value in row.items() if value is not None] == list(told)
    times = boot.row(Contender(ZMQ, 64), ["no descriptors"])
    assert [times[name] for name in ("up_ms", "interval_up_ms", "first_io_ms", "down_ms")] == [None] * 4


def test_a_vm_of_the_monolith_weighs_what_the_process_grows_by() -> None:
    grown = [machine(memory=[40 * MIB])]
    assert scale.row(Contender(CALL, 11), grown, (1, 10 * MIB))["uss_per_vm_bytes"] == 3 * MIB
    assert scale.row(Contender(CALL, 1), grown, (1, 10 * MIB))["uss_per_vm_bytes"] is None
    assert scale.row(Contender(CALL, 11), grown)["uss_per_vm_bytes"] is None
    assert scale.row(Contender(ZMQ, 11), grown, (1, 10 * MIB))["uss_per_vm_bytes"] == 40 * MIB


def test_a_run_of_scale_measures_every_machine_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Contender] = []

    def measured(watch: Watch, lengths: Lengths, one: Contender) -> One | str:
        assert lengths == Lengths(0.1, 0.2)
        asked.append(one)
        return "one too many" if one.vms == 4 else machine(memory=[(10 + 2 * one.vms) * MIB])

    monkeypatch.setattr(scale, "measured", measured)
    told: list[tuple[int, int, str]] = []
    run = scale.run([CALL, ZMQ], (4, 1, 2), 3, 7, lambda *step: told.append(step), ["vmbus-emu", "bench"],
                    Lengths(0.1, 0.2))  # fmt: skip
    six = {Contender(of, vms) for of in (CALL, ZMQ) for vms in (1, 2, 4)}
    assert [set(asked[at : at + 6]) for at in (0, 6, 12)] == [six] * 3
    assert asked[:6] != asked[6:12]                 # in random order
    assert [step[:2] for step in told] == [(18, done) for done in range(18)]
    found = {(row["arch"], row["vms"]): row for row in run["scale"]}
    assert found["monolithic", 2]["uss_per_vm_bytes"] == 2 * MIB
    assert found["microkernel", 2]["uss_per_vm_bytes"] == 14 * MIB
    assert found["microkernel", 4]["failed"] == ["one too many"] * 3
    again = scale.run([CALL, ZMQ], (4, 1, 2), 3, 7, lengths=Lengths(0.1, 0.2))
    assert asked[18:] == asked[:18]                 # the seed is the order
    assert again["seed"] == 7


def test_a_run_has_all_that_a_run_has_and_is_loaded_and_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(boot, "measured", lambda watch, one: Times(300.0, 310.0, 50.0))
    run = boot.run([CALL, ZMQ], (1, 4), 3, command=["vmbus-emu", "bench", "boot"])
    assert set(measured_runs.document()) == set(run) - {"boot"}
    assert run["environment"]["pinning"] == {"asked": "none"}
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run))
    text = "\n".join(run_lines(load(path)))
    assert text.count("(300 to 300)") == 4
    assert "monolithic: VMs" in text


def test_rounds_give_each_contender_what_was_found_of_it() -> None:
    measurement = Measurement(3, ())
    found = measurement.rounds(["a", "b"], 4, lambda one: one * 2, str, lambda total, done, what: None)
    assert found == {"a": ["aa"] * 4, "b": ["bb"] * 4}


def test_a_run_is_doubted_for_its_scatter_and_for_what_else_is_known() -> None:
    document = Measurement(None, ()).document({"boot of x": [1, 1, 9, 1, 9, 9]}, reasons=["somebody said so"])
    assert not document["stable"]
    assert document["reasons"][0] == "somebody said so"
    assert any("boot of x varied" in reason for reason in document["reasons"])


def test_a_machine_that_does_not_come_up_is_a_row_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "limits:vms: 64 VMs need 872 descriptors; raise it"

    def fails(command: Sequence[str]) -> float:
        if "up" in command:
            raise Unmeasured(why)
        return 0.1

    monkeypatch.setattr(boot, "_seconds", fails)
    one = Contender(ZMQ, 64)
    assert boot.measured(Watch(), one) == scale.measured(Watch(), Lengths(), one) == why
    assert f"64        - {why}" in "\n".join(boot_lines([boot.row(one, [why])]))
    assert f"64        - {why}" in "\n".join(scale_lines([scale.row(one, [why])]))


def test_times_are_beyond_that_of_a_python_with_the_same_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[Sequence[str]] = []

    def seconds(command: Sequence[str]) -> float:
        commands.append(command)
        return 0.1 if "-c" in command else 0.7 if "up" in command else 0.15

    class Up:
        name = "x"

        def exec(self, vm: str, command: str, timeout: float) -> ExecResult:
            return ExecResult(0, json.dumps({"ended_ns": time.monotonic_ns() + 2_000_000_000}).encode(), b"")

        def down(self) -> None:
            commands.append(["left"])

        def close(self) -> None:
            pass

    monkeypatch.setattr(boot, "_seconds", seconds)
    monkeypatch.setattr(boot.Machine, "attach", lambda name: Up())
    with boot.booted(Contender(Configuration("microkernel", "ring", "never"), 3)) as up:
        up.down()
    assert up.up_s == pytest.approx(0.6)
    assert up.first_io_s == pytest.approx(1.9, abs=0.05)
    assert up.down_s == pytest.approx(0.05)
    words = " ".join(commands[1])
    for told in ("--arch microkernel", "--transport ring", "--poll never", "--vms 3"):
        assert told in words
    assert commands[-1] == ["left"]


def test_tables_have_a_line_for_each_number_of_vms_and_a_dash_for_null() -> None:
    rows = [scale.row(Contender(of, vms), [machine()] * 3 + ["lost"] * (vms == 2)) for vms in (2, 1)
            for of in (ZMQ, CALL)]  # fmt: skip
    lines = list(scale_lines(rows))
    assert [line.split(":")[0].strip() for line in lines if "VMs" in line] == ["microkernel zmq", "monolithic"]
    assert [line.split()[0] for line in lines if line[:26].strip().isdigit()] == ["1", "2", "1", "2"]
    assert sum("1 not measured: lost" in line for line in lines) == 2
    (alone,) = [line.split() for line in scale_lines(rows[3:]) if line[:26].strip() == "1"]
    assert alone[3:5] == ["-", "0.50"]              # memory of the only VM of the monolith; idle
    assert len({len(line) for line in lines if " 0.80 " in line or "CPU us" in line}) == 1


def test_throughput_has_a_column_for_each_depth_and_the_bytes_of_the_best() -> None:
    def rows(job: Job, of: Configuration, per_s: float) -> dict[str, object]:
        latencies = array("q", [1000] * round(per_s))
        return result(job, of, [Measured(latencies, 1.0, 1.0, {}, 0.0, {})] * 3)

    jobs = [Job("read-4k", "read", 4096, depth) for depth in (1, 8)]
    run = measured_runs.document(results=[rows(job, of, rate * job.depth) for job in jobs for of, rate in (
        (CALL, 5000), (ZMQ, 100))] + [result(Job("null", "null"), ZMQ, ["it fell"])])  # fmt: skip
    lines = list(throughput_lines(run))
    assert [line.split() for line in lines if "monolithic" in line] == [["monolithic", "5,000", "40,000", "164"]]
    assert [line.split()[2:] for line in lines if "microkernel zmq" in line] == [["100", "800", "3.28"], ["-"]]
    assert "    not measured: it fell" in lines


def test_depths_are_bounded_by_the_bytes_that_are_under_way() -> None:
    jobs = throughput_jobs((1, 8, 64), 0.1)
    assert [(job.name, job.depth) for job in jobs] == [
        ("null", 1), ("null", 8), ("null", 64), ("read-4k", 1), ("read-4k", 8), ("read-4k", 64), ("read-1m", 1),
        ("read-1m", 8)]
    assert {job.seconds for job in jobs} == {0.1}


def test_what_the_receiver_says_of_a_transfer_is_kept_and_shown() -> None:
    told = [{"mbit_per_s": rate, "frames_per_s": 30000.0, "lost_frames": lost, "wrong_frames": 0}
            for rate, lost in ((300.0, 0), (400.0, 3), (350.0, 1))]  # fmt: skip
    sets = [Measured(array("q", [1000] * 100), 1.0, 1.0, {}, 0.0, {}, received=one) for one in told]
    row = result(Job("bulk", "bulk", 65536, 2), ZMQ, sets)
    assert row["received"] == {"mbit_per_s": 350.0, "frames_per_s": 30000.0, "lost_frames": 1, "wrong_frames": 0}
    text = "\n".join(run_lines(measured_runs.document(results=[row])))
    assert "microkernel zmq received 350 Mbit/s, 30,000 frames/s, lost 1 frame" in text
    assert "received" not in result(STANDARD["null"], ZMQ, sets[:0])


def test_processes_are_those_that_ps_shows_and_the_front_door() -> None:
    rows = [{"pid": 7, "host": "machine", "counters": {"front_pid": 8}}, {"pid": 9, "host": "vm1", "counters": None},
            {"pid": None, "host": "vm2", "counters": {}}]  # fmt: skip
    assert costs.processes(rows) == {7: "machine", 8: "front", 9: "vm1"}
    assert costs.used_ns({"a": (5, 0), "gone": (3, 0)}, {"a": (12, 1), "new": (100, 0)}) == 7


@pytest.mark.parametrize(("arguments", "told"), [
    ("scale --vms 0", "numbers of VMs"), ("scale --vms ,", "numbers of VMs"), ("boot --vms 1,x", "numbers of VMs"),
    ("scale --trace /dev/null", "takes no requests apart"), ("boot --pin together", "pins nobody"),
    ("throughput --qd 0", "a depth of 0"), ("throughput --qd ,", "no depth"), ("throughput --seconds 0", "0"),
    ("network --arch esx", "say all, or some of"), ("scale --idle 0", "0"),
])
def test_what_cannot_be_asked_for(arguments: str, told: str) -> None:
    ended = CliRunner().invoke(bench, arguments.split())
    assert ended.exit_code == 2
    assert told in ended.output
