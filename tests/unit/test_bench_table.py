"""A run as text: what is not significant says so, what bounds a figure is beside it, and it fits a window."""

from __future__ import annotations

from typing import Any

import pytest

from bench.jobs import STANDARD, Job
from bench.scaletable import throughput_lines
from bench.table import run_lines
from tests import measured_runs


def lines(run: dict[str, Any]) -> list[str]:
    return list(run_lines(run))


def test_a_ratio_that_is_not_significant_says_so() -> None:
    run = measured_runs.run([STANDARD["null"]])
    for ratio in run["ratios"]:
        ratio["significant"] = ratio["of"]["transport"] == "zmq"
    rows = [line for line in lines(run) if line.startswith("  ") and ("microkernel" in line)]
    assert {("n.s." in line, "ring" in line) for line in rows} == {(True, True), (False, False)}
    run["ratios"] = []
    assert not any("n.s." in line for line in lines(run))


@pytest.mark.parametrize("pace", [1, 100, 1000])
def test_a_table_is_at_most_120_columns_wide(pace: int) -> None:
    run = measured_runs.run(list(STANDARD.values()))
    for row in [*run["results"], *run["baselines"]]:
        for name in ("p50_us", "p99_us", "cpu_us_per_op"):
            if row.get(name) is not None:
                row[name] *= pace
        row["interval_p50_us"] = [bound * pace for bound in row["interval_p50_us"]]
    for ratio in run["ratios"]:
        ratio["significant"] = False
    assert {line for line in lines(run) if len(line) > 120 and not line.startswith("UNSTABLE")} == set()


def test_every_job_at_depth_1_that_has_a_bound_is_held_against_it() -> None:
    jobs = [STANDARD["null"], STANDARD["read-4k"], Job("null", "null", rate=100.0, seconds=1)]
    run = measured_runs.run(jobs)
    bounds = [ratio for ratio in run["ratios"] if "baseline" in ratio["to"]]
    assert {(one["job"], one["rate"]) for one in bounds} == {("null", None), ("read-4k", None), ("null", 100.0)}
    for number, one in enumerate(bounds):
        one["value"] = 1000.0 + number
    told = [line.split(" is ")[1].split(" (")[0] for line in lines(run) if " times " in line and " is " in line]
    assert told == [f"1,{number:03} times {one['to']['baseline']}" for number, one in enumerate(bounds)]


def test_throughput_shows_bounds_at_depth_1_and_baselines() -> None:
    told = list(throughput_lines(measured_runs.depths()))
    assert sum(" times pyzmq-msgpack (" in line for line in told) == 2
    assert any(line.startswith("  pyzmq-msgpack ") for line in told)


def test_a_baseline_that_failed_says_why() -> None:
    run = measured_runs.run([STANDARD["null"]])
    run["baselines"].append({"baseline": "iceoryx2", "p50_us": None, "p99_us": None, "interval_p50_us": None,
                             "repetitions": 0, "failed": ["no shared memory", "no shared memory"]})  # fmt: skip
    (line,) = [line for line in lines(run) if "iceoryx2" in line]
    assert line.split() == ["iceoryx2", "-", "no", "shared", "memory"]
