"""Waterfalls as text, as a Chrome trace, and in the run's document."""

from __future__ import annotations

import io
import json
from array import array
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import chrometrace, runner, tracing
from bench.breakdown import Request, Segment
from bench.jobs import STANDARD, Job
from bench.machines import Configuration
from bench.waterfall import bar, waterfall_lines
from vmbus_emu.cli.bench import bench, traced

RING = Configuration("microkernel", "ring", "adaptive")


def request(begin: int) -> Request:
    """There and back: 1, 2 and 3 us."""
    cuts = [("encode", "vm1", 1000), ("driver", "parent", 2000), ("callback", "vm1", 3000)]
    segments = []
    for name, process, length in cuts:
        segments.append(Segment(name, process, begin, begin + length))
        begin += length
    return Request(1, tuple(segments))


# -- the run's document, and the text of it ----------------------------------------------------------------------


def row() -> dict[str, Any]:
    return tracing.waterfall(STANDARD["null"], RING, [request(0), request(9000)], 7.0, 5.5)


def test_a_row_has_what_is_documented_and_adds_up() -> None:
    found = row()
    assert found == {
        "job": "null", "arch": "microkernel", "transport": "ring", "poll": "adaptive", "size": 0, "requests": 2,
        "total_us": 6.0, "untraced_p50_us": 5.5, "traced_p50_us": 7.0,
        "segments": [
            {"name": "encode", "process": "vm1", "start_us": 0.0, "us": 1.0},
            {"name": "driver", "process": "parent", "start_us": 1.0, "us": 2.0},
            {"name": "callback", "process": "vm1", "start_us": 3.0, "us": 3.0},
        ],
    }  # fmt: skip


def test_the_text_says_what_it_is_of_and_what_tracing_cost() -> None:
    blank, head, *lines = waterfall_lines([row()])
    assert blank == ""
    assert head == (
        "null, microkernel ring: 6.00 us (mean of the 2 requests in the middle; p50 traced 7.00, untraced 5.50 us)"
    )
    bars = [line.split("|")[1] for line in lines]
    assert [(one.index("#"), one.count("#")) for one in bars] == [(0, 8), (8, 16), (24, 24)]
    assert [line.split("|")[0].split() for line in lines] == [
        ["encode", "vm1", "1.00"], ["driver", "parent", "2.00"], ["callback", "vm1", "3.00"],
    ]  # fmt: skip
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(("start", "share", "expected"), [
    (0.0, 1.0, "##########"), (0.0, 0.001, "#         "), (0.999, 0.001, "         #"), (0.5, 0.3, "     ###  "),
])  # fmt: skip
def test_a_bar_shows_at_least_one_character_and_stays_in_its_place(start: float, share: float, expected: str) -> None:
    assert bar(start, share, 10) == expected


# -- the Chrome trace -------------------------------------------------------------------------------------------


def events(groups: int = 2, found: int = 3) -> list[dict[str, Any]]:
    document = chrometrace.document([
        (f"job {group}", [request(1_000_000 * group + 9000 * index) for index in range(found)])
        for group in range(groups)
    ])  # fmt: skip
    loaded: list[dict[str, Any]] = json.loads(json.dumps(document))["traceEvents"]
    return loaded


def of(kind: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in found if event["ph"] == kind]


def test_each_process_of_each_group_has_a_named_track() -> None:
    found = events()
    names = {event["pid"]: event["args"]["name"] for event in found if event["name"] == "process_name"}
    assert sorted(names.values()) == ["job 0: parent", "job 0: vm1", "job 1: parent", "job 1: vm1"]
    assert {event["pid"] for event in found} == set(names)


def test_times_ascend_and_every_group_begins_at_0() -> None:
    found = [event for event in events() if event["ph"] != "M"]
    assert [event["ts"] for event in found] == sorted(event["ts"] for event in found)
    assert [event["pid"] for event in of("X", found) if event["ts"] == 0 and event["cat"] == "segment"] == [100, 200]


def test_every_arrow_that_starts_ends_in_another_process_and_within_slices() -> None:
    found = events()
    starts, ends = ({event["id"]: event for event in of(kind, found)} for kind in ("s", "f"))
    assert starts.keys() == ends.keys()
    assert len(starts) == len(of("s", found)) == len(of("f", found)) == 2 * 3 * 2
    for flow, start in starts.items():
        assert start["pid"] != ends[flow]["pid"]
        assert start["ts"] <= ends[flow]["ts"]
        assert ends[flow]["bp"] == "e"
        for end in (start, ends[flow]):
            assert any(
                one["pid"] == end["pid"] and one["ts"] <= end["ts"] <= one["ts"] + one["dur"] for one in of("X", found)
            )


def test_slices_of_a_track_nest() -> None:
    slices = of("X", events())
    assert len(slices) == 2 * 3 * (1 + 3)
    for track in {one["pid"] for one in slices}:
        open_ends: list[float] = []
        for one in (one for one in slices if one["pid"] == track):
            while open_ends and open_ends[-1] <= one["ts"]:
                open_ends.pop()
            end = round(one["ts"] + one["dur"], 3)
            assert not open_ends or end <= open_ends[-1]
            open_ends.append(end)


def test_only_the_first_requests_are_exported_and_none_is_no_trouble() -> None:
    assert len(of("X", events(1, chrometrace.MOST_REQUESTS + 5))) == 4 * chrometrace.MOST_REQUESTS
    assert chrometrace.document([("empty", [])]) == {"traceEvents": [], "displayTimeUnit": "ns"}


# -- which jobs, and what is said of the others -------------------------------------------------------------------


@pytest.mark.parametrize(("job", "why"), [
    (STANDARD["null"], ""), (STANDARD["read-4k"], ""), (STANDARD["write-flush-4k"], ""),
    (STANDARD["ping"], "only requests to a disk are, and ping is none"),
    (Job("deep", "read", 4096, depth=8), "only jobs of depth 1 without a rate are"),
    (Job("paced", "read", 4096, rate=100.0), "only jobs of depth 1 without a rate are"),
])  # fmt: skip
def test_what_can_be_taken_apart(job: Job, why: str) -> None:
    assert tracing.untraceable(job) == why


def test_without_a_job_that_can_be_taken_apart_no_machine_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("running", "make_image"):
        monkeypatch.setattr(tracing, name, lambda *arguments, **named: pytest.fail("a machine was started"))
    found = tracing.trace([RING], [STANDARD["ping"]])
    assert (found.waterfalls, found.examples) == ([], [])
    assert found.untraced == ["ping is not taken apart: only requests to a disk are, and ping is none"]


def test_a_machine_that_fails_costs_only_its_own_waterfalls(monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(configuration: Configuration, jobs: Any, *others: Any) -> Any:
        if configuration.transport == "zmq":
            raise tracing.MachineError("it does not start")
        return {job: ([request(0)] * 10, array("q", [5000] * 10)) for job in jobs}

    monkeypatch.setattr(tracing, "_machine", machine)
    monkeypatch.setattr(tracing, "make_image", lambda path: None)
    steps: list[int] = []
    found = tracing.trace(
        [Configuration("microkernel", "zmq"), RING], [STANDARD["null"]],
        told=lambda total, done, what: steps.append(done),
    )  # fmt: skip
    assert [one["transport"] for one in found.waterfalls] == ["ring"]
    assert found.waterfalls[0]["untraced_p50_us"] == 5.0
    assert found.untraced == ["nothing is taken apart on microkernel zmq: it does not start"]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize(("arch", "process"), [
    ("monolithic", "hypervisor"), ("microkernel", "parent"), ("disaggregated", "storvsp"),
])  # fmt: skip
def test_whose_process_carries_the_drivers(arch: str, process: str) -> None:
    assert tracing.server(arch) == process


class File(io.StringIO):
    name = "trace.json"


def test_the_command_line_writes_the_file_and_fills_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def trace(*arguments: Any) -> tracing.Traced:
        asked.append(arguments[:2])
        return tracing.Traced([row()], [("null, microkernel ring", [request(0)])], ["ping is not taken apart: no disk"])

    monkeypatch.setattr(tracing, "trace", trace)
    run: dict[str, Any] = {}
    file = File()
    traced.take_apart(run, [RING], [STANDARD["null"]], "none", file, lambda total, done, what: None)
    assert asked == [([RING], [STANDARD["null"]])]
    assert run["waterfalls"] == [row()]
    assert of("X", json.loads(file.getvalue())["traceEvents"])
    lines = list(traced.lines(run, file))
    assert lines[-2] == "ping is not taken apart: no disk."
    assert lines[-1].startswith("trace.json opens in Perfetto")


def test_a_run_of_which_nothing_was_traced_says_so_in_a_line() -> None:
    (line,) = traced.lines({}, File())
    assert "bench latency --job read-4k" in line


@pytest.mark.parametrize(("arguments", "names"), [
    ([], ["null", "read-4k"]), (["latency", "--job", "read-1m"], ["read-1m"]), (["latency"], ["read-4k"]),
])  # fmt: skip
def test_the_option_takes_a_run_apart_after_it_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], names: list[str]
) -> None:
    steps: list[Any] = []

    def run(*arguments: Any, **named: Any) -> dict[str, Any]:
        steps.append("measured")
        return {"command": ["vmbus-emu"], "seed": 1}

    def trace(configurations: Any, jobs: list[Job], *others: Any) -> tracing.Traced:
        steps.append([job.name for job in jobs])
        return tracing.Traced([row()], [("null, microkernel ring", [request(0)])], [])

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(tracing, "trace", trace)
    monkeypatch.setattr("bench.table.run_lines", lambda run: ["the table"])
    kept, drawn = tmp_path / "run.json", tmp_path / "trace.json"
    told = CliRunner().invoke(bench, [*arguments, "--trace", str(drawn), "--json", str(kept)])
    assert told.exit_code == 0, told.output
    assert steps == ["measured", names]
    assert told.output.index("the table") < told.output.index("null, microkernel ring: 6.00 us")
    assert json.loads(kept.read_text())["waterfalls"] == [row()]
    assert of("X", json.loads(drawn.read_text())["traceEvents"])
    steps.clear()
    assert CliRunner().invoke(bench, arguments).exit_code == 0
    assert steps == ["measured"]
