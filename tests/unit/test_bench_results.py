"""What a run stores, what it is compared to, and how it reads. No process is started."""

from __future__ import annotations

import json
import random
from array import array
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bench.compare import compare, pace
from bench.costs import _counted
from bench.jobs import STANDARD
from bench.machines import STANDARD as CONFIGURATIONS
from bench.machines import Configuration, Measured
from bench.report.stored import Run
from bench.results import BOUNDS, SCHEMA, BadResults, baseline, load, ratios, result
from bench.runner import failures
from bench.table import compare_lines, number, run_lines

CALL, ZMQ = CONFIGURATIONS[0], CONFIGURATIONS[1]


def measured(chance: random.Random, us: float, count: int = 2000) -> Measured:
    latencies = array("q", (round(us * 1000 * chance.lognormvariate(0, 0.2)) for _ in range(count)))
    counters = {"packets": 2.0, "hypercalls": 0.5, "bytes": 99.0}
    by_process = {"vm1": us, "parent": us * 0.2}
    return Measured(latencies, sum(latencies) / 1e9, us * 1.2, by_process, 2.0, counters, memory_bytes=1e6)


def made(pace: float = 1.0, seed: int = 1, slower: float = 1.0, baselines: bool = True) -> dict[str, Any]:
    """A run on a host of that pace, in which zmq took ``slower`` times as long; the caller's own."""
    return deepcopy(_made(pace, seed, slower, baselines))


@cache
def _made(pace: float, seed: int, slower: float, baselines: bool) -> dict[str, Any]:
    chance = random.Random(seed)
    moods = [pace * chance.lognormvariate(0, 0.1) for _ in range(10)]
    rows = [
        result(job, of, [measured(chance, us * mood) for mood in moods])
        for job in (STANDARD["null"], STANDARD["read-4k"]) for of, us in ((CALL, 1.0), (ZMQ, 100.0 * slower))
    ]  # fmt: skip
    bases = [baseline("pyzmq-msgpack", [measured(chance, 80 * mood).latencies_ns for mood in moods]),
             baseline("call", [measured(chance, 0.1 * mood).latencies_ns for mood in moods])]  # fmt: skip
    bases = bases if baselines else []
    described = {"cpu": None, "cores": 2, "python": "3", "gil": True, "zmq": "4", "load": 0.0}
    return {"schema": SCHEMA, "environment": described, "stable": True, "reasons": [], "results": rows,
            "baselines": bases, "ratios": ratios(rows, bases)}  # fmt: skip


def test_a_row_has_what_is_documented_and_null_for_what_was_not_measured() -> None:
    row = result(STANDARD["null"], ZMQ, ["no machine", "no machine"])
    figures = ("ops_per_s", "p50_us", "p99_us", "p999_us", "cpu_us_per_op", "interval_p50_us")
    assert [row[name] for name in figures] == [None] * len(figures)
    assert (row["repetitions"], row["failed"]) == (0, ["no machine", "no machine"])
    good = result(STANDARD["null"], ZMQ, [measured(random.Random(1), 100)])
    assert (good["crossings_per_op"], good["per_op"]["bytes"], good["memory_bytes"]) == (2.5, 99.0, 1e6)
    few = result(STANDARD["null"], ZMQ, [measured(random.Random(1), 100, 50)] * 3)
    assert few["p50_us"] == pytest.approx(100, rel=0.2)
    assert (few["p99_us"], few["p999_us"]) == (None, None)


def test_each_configuration_is_held_against_the_first_and_messages_against_their_bound() -> None:
    run = made()
    tax = [one for one in run["ratios"] if one["metric"] == "p50_us" and one["to"] == {
        "arch": "monolithic", "transport": "call", "poll": None, "devices": "synthetic"}]
    assert [(one["job"], round(one["value"], -1), one["significant"]) for one in tax] == [
        ("null", 100, True), ("read-4k", 100, True)]
    bounds = {one["to"]["baseline"]: one["value"] for one in run["ratios"] if "baseline" in one["to"]}
    assert bounds == {"call": pytest.approx(10, rel=0.1), "pyzmq-msgpack": pytest.approx(1.25, rel=0.1)}
    assert {(one.transport, one.poll) for one in CONFIGURATIONS} <= set(BOUNDS)


def test_a_run_is_loaded_as_it_was_stored_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    run = made()
    path.write_text(json.dumps(run))
    assert load(path) == json.loads(json.dumps(run))
    for text, told in (("{", "Expecting"), ("[]", "no run"), ('{"results": [], "schema": 99}', "schema is 99")):
        path.write_text(text)
        with pytest.raises(BadResults, match=told):
            load(path)
    with pytest.raises(BadResults, match="No such file"):
        load(tmp_path / "none")


def significant(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["significant"]]


def test_a_slower_day_is_not_a_slower_program_but_a_slower_program_is() -> None:
    before = made()
    assert significant(compare(before, made(pace=1.6, seed=2))) == []
    changed = significant(compare(before, made(pace=1.6, seed=2, slower=1.5)))
    assert {(row["job"], row["transport"]) for row in changed} == {("null", "zmq"), ("read-4k", "zmq")}
    for row in changed:
        assert row["value"] == pytest.approx(1 / 1.5 if row["metric"] == "ops_per_s" else 1.5, rel=0.15)


def test_without_baselines_two_days_are_compared_as_they_are() -> None:
    rows = compare(made(baselines=False), made(pace=1.6, seed=2, baselines=False))
    assert len(significant(rows)) == len(rows) == 12


def test_the_table_has_a_line_for_everything_and_says_what_is_unstable() -> None:
    run = made() | {"stable": False, "reasons": ["somebody else was there: go away"]}
    text = "\n".join(run_lines(run))
    for word in ("null request", "4 KiB random read", "monolithic", "microkernel zmq", "pyzmq-msgpack",
                 "times pyzmq-msgpack", "UNSTABLE: somebody else was there: go away."):  # fmt: skip
        assert word in text
    assert "not significant" in "\n".join(compare_lines(compare(made(), made(seed=5))))


def test_names_of_configurations() -> None:
    assert [one.name for one in CONFIGURATIONS] == [
        "monolithic", "microkernel zmq", "microkernel ring", "disaggregated zmq", "disaggregated ring"]
    assert Configuration("microkernel", "ring", "never").name == "microkernel ring --poll never"


DMA, WORDS = Configuration("microkernel", "zmq", None, "dma"), Configuration("monolithic", "call", None, "words")


def test_emulated_devices_are_a_configuration_of_their_own() -> None:
    assert [of.name for of in (DMA, WORDS)] == ["microkernel, IDE by DMA", "monolithic, IDE by words"]
    assert [Configuration.of(of.fields) for of in (ZMQ, DMA, WORDS)] == [ZMQ, DMA, WORDS]
    rows = [
        result(STANDARD["read-4k"], of, [measured(random.Random(1), us)] * 8) for of, us in ((ZMQ, 100), (DMA, 4000))
    ]
    found = ratios(rows, [baseline("pyzmq-msgpack", [[80_000]] * 8)])
    assert [(Configuration.of(one["of"]), one["metric"]) for one in found if "arch" in one["to"]] == [
        (DMA, "p50_us"), (DMA, "cpu_us_per_op"), (DMA, "ops_per_s")]  # fmt: skip
    # No bare mechanism bounds a chain of intercepts.
    assert [Configuration.of(one["of"]) for one in found if "baseline" in one["to"]] == [ZMQ]
    run = made() | {"results": rows, "ratios": found}
    assert {Configuration.of(one) for one in compare(run, run)} == {ZMQ, DMA}
    (line,) = [line for line in run_lines(run) if line.startswith("  microkernel, IDE by DMA")]
    assert line.split()[4] == number(rows[1]["p50_us"])


def test_an_intercept_crosses_four_times_and_an_interrupt_twice() -> None:
    """The worker's answer is a hypercall, and so is its interrupt; the hypervisor delivers both."""
    one = measured(random.Random(1), 100)
    one.counters = {"packets": 0.0, "hypercalls": 27.0, "intercepts": 26.0, "interrupts": 1.0, "frames": 0.0}
    row = result(STANDARD["read-4k"], DMA, [one])
    assert row["crossings_per_op"] == 4 * 26 + 2
    assert row["per_op"] == {"hypercalls": 27.0, "intercepts": 26.0, "interrupts": 1.0}


def test_what_passes_through_the_hypervisor_is_counted_once() -> None:
    def counters(intercepts: float, packets: float = 0.0) -> dict[str, float]:
        return {"intercepts": intercepts, "hypercalls": intercepts, "interrupts": 1.0, "packets": packets}

    rows = [{"role": role, "counters": told} for role, told in (
        ("machine", None), ("hypervisor", counters(26)), ("child", counters(26, 2)), ("worker", counters(26)),
    )]  # fmt: skip
    counted = _counted(rows)
    assert {name: value for name, value in counted.items() if value} == counters(26, 2)
    monolith = [{"role": "hypervisor", "counters": counters(0)}, {"role": "child", "counters": {"accesses": 26}}]
    assert (_counted(monolith)["intercepts"], _counted(monolith)["accesses"]) == (0, 26)


def test_runs_from_before_emulated_devices_are_of_synthetic_ones(tmp_path: Path) -> None:
    run = made()
    for row in [*run["results"], *(ratio[end] for ratio in run["ratios"] for end in ("of", "to"))]:
        row.pop("devices", None)
    path = tmp_path / "old.json"
    path.write_text(json.dumps(run))
    old = load(path)
    assert list(run_lines(old)) == list(run_lines(made()))
    rows = compare(old, made())
    assert len(rows) == 3 * len(old["results"])
    assert {row["devices"] for row in rows} == {"synthetic"}
    assert Run(old).times(Run(old).groups[0], Run(old).groups[0].rows[1]) == Run(made()).times(
        Run(made()).groups[0], Run(made()).groups[0].rows[1])


def test_what_failed_in_a_round_is_paired_with_nothing() -> None:
    """Two arms alike on a host that drifts: each lost a set, in different rounds."""
    pace = [1 + round / 10 for round in range(10)]
    columns = [[10 * value for value in pace] for _ in range(2)]
    sets: list[list[Measured | str]] = [
        [measured(random.Random(1), us) for us in column] for column in columns
    ]
    sets[0][0], sets[1][9] = "it died", "it died"
    rows = [result(STANDARD["null"], of, some) for of, some in zip((CALL, ZMQ), sets, strict=True)]
    (ratio,) = [one for one in ratios(rows, []) if one["metric"] == "p50_us"]
    assert ratio["value"] == pytest.approx(1.0, abs=0.01)
    assert not ratio["significant"]
    assert rows[0]["sets"]["p50_us"][0] is None
    assert rows[0]["repetitions"] == 9


def test_a_baseline_that_failed_says_why_and_keeps_its_place() -> None:
    row = baseline("pipe", [[1000], "no such thing", [3000]])
    assert (row["failed"], row["repetitions"], row["p50_us"]) == (["no such thing"], 2, 2.0)
    assert row["sets"]["p50_us"] == [1.0, None, 3.0]
    assert baseline("pipe", ["no"])["p50_us"] is None


def test_a_row_that_failed_is_a_reason_to_doubt_the_run() -> None:
    rows = [result(STANDARD["null"], of, ["vm1 died", measured(random.Random(1), 9)]) for of in (CALL, ZMQ)]
    (reason,) = failures(rows, [])
    assert "null on monolithic failed 1 times: vm1 died" in reason
    assert "1 more" in reason
    assert failures([], [baseline("pipe", ["no"])]) == ["baseline pipe failed 1 times: no"]
    assert failures([result(STANDARD["null"], CALL, [measured(random.Random(1), 9)])], []) == []


@pytest.mark.parametrize("damage", [
    {"environment": None}, {"stable": "yes"}, {"reasons": None}, {"results": [1]}, {"results": [{"job": "null"}]},
    {"scale": 3}, {"baselines": [1]},
])
def test_damaged_runs_are_refused(damage: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(made() | damage))
    with pytest.raises(BadResults, match=r"run\.json: (its|one of its) "):
        load(path)


def test_the_pace_of_the_host_is_known_no_better_than_its_baselines_agree() -> None:
    before, after = made(), made(seed=2)
    for row, factor in zip(after["baselines"], (0.9, 1.1), strict=True):
        row["p50_us"] = before["baselines"][after["baselines"].index(row)]["p50_us"] * factor
    assert pace(before, after) == pytest.approx((1.0, 0.9, 1.1))
    # Five percent either way may be the host's.
    for row in after["results"]:
        old = next(one for one in before["results"] if (one["job"], one["arch"]) == (row["job"], row["arch"]))
        row["sets"] = {name: [1.05 * value for value in column] for name, column in old["sets"].items()}
    assert significant(compare(before, after)) == []
    rows = compare(before, after)
    assert all(row["after"] == pytest.approx(row["before"] * 1.05) for row in rows)
