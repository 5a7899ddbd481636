"""``vmbus-emu bench``: what is refused before anything is measured, and what a comparison of kept runs says."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bench import ab, runner, tracing
from bench.compare import doubts
from bench.jobs import STANDARD
from tests import measured_runs
from vmbus_emu.cli.main import cli


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", *arguments])


@pytest.mark.parametrize(("arguments", "told"), [
    (["--rounds", "3", "list"], "--rounds goes behind list"), (["--pin", "none", "list"], "--pin goes behind list"),
    (["latency", "--arch", "mono"], '"mono": say all, or some of monolithic'),
    (["latency", "--size", "5q"], "'5q' is not a size"), (["latency", "--qd", "x"], '"x" is not a list'),
    (["latency", "--qd", "65"], "depth of 65"), (["latency", "--job", "nope"], "no job 'nope'"),
    (["--pin", "apart", "list"], "--pin goes behind list"), (["scale", "--pin", "apart"], "pins nobody"),
    (["latency", "--qd", ","], '"," holds no depth'), (["latency", "--size", ","], '"," holds no size'),
    (["latency", "--job", "null", "--size", "4k"], "null: without a size, so leave --size out"),
    (["latency", "--poll", "always", "--transport", "zmq"], "no ring is measured"),
    (["latency", "--poll", "always", "--arch", "monolithic"], "no ring is measured"),
    (["scale", "--transport", "ring", "--arch", "monolithic"], "leave --transport out"),
    (["latency", "--job", "null", "--rate", "1e-9"], "at 1e-09 requests per second none is due within"),
    (["latency", "--json", "-", "--trace", "-"], "--json goes to standard output already"),
    (["latency", "--json", "/nowhere/run.json"], "No such file or directory"),
    (["compare", "a", "b", "--poll", "never"], "--poll goes with --ab"),
    (["latency", "--pin", "left"], "'left' is not one of"), (["latency", "--rounds", "0"], "1<=x<=1000"),
    (["compare", "a", "b", "--rounds", "3"], "--rounds goes with --ab"),
    (["compare", "--ab", "a", "b", "--job", "nope"], "no job 'nope'"), (["compare", "a"], "Missing argument 'AFTER'"),
])
def test_what_cannot_be_measured_is_refused_in_one_line(arguments: list[str], told: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert told in line


@pytest.mark.parametrize(("before", "told"), [
    ("missing.json", "No such file"), ("bad.json", "no run of vmbus-emu bench"), ("new.json", "its schema is 99"),
])
def test_what_is_no_kept_run_fails_with_advice(
    before: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text("[]")
    Path("new.json").write_text('{"schema": 99, "results": []}')
    result = bench("compare", before, before)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert told in line
    assert "--json FILE makes one" in line


def kept(path: Path, p50: float, pin: str) -> str:
    row: dict[str, Any] = {
        "job": "null", "arch": "monolithic", "transport": "call", "poll": None, "size": 0, "depth": 1, "rate": None,
        "vms": 2, "p50_us": p50, "sets": {"p50_us": [p50 + step / 100 for step in range(10)]}, "failed": [],
    }  # fmt: skip
    environment = {"cpu": "x", "cores": 2, "python": "3.11", "pinning": {"asked": pin}}
    run = {"schema": 1, "environment": environment, "stable": pin == "apart", "reasons": ["it rained"],
           "results": [row], "baselines": [], "ratios": []}  # fmt: skip
    path.write_text(json.dumps(run))
    return str(path)


def test_two_kept_runs_are_compared_and_what_they_do_not_share_is_said(tmp_path: Path) -> None:
    before, after = kept(tmp_path / "a.json", 1.0, "apart"), kept(tmp_path / "b.json", 2.0, "none")
    result = bench("compare", before, after)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert f"{after}:" in lines
    assert "  UNSTABLE: it rained." in lines
    assert "NOT ALIKE: the runs differ in pinning: apart before, none after." in lines
    (row,) = [line for line in lines if "p50_us" in line]
    assert "1.04 ->      2.04" in row
    assert "not significant" not in row
    told = json.loads(bench("compare", before, after, "--json").stdout)
    assert [one["metric"] for one in told["rows"]] == ["p50_us"]
    assert told["doubts"] == ["the runs differ in pinning: apart before, none after"]
    assert told["runs"] == [
        {"name": before, "stable": True, "reasons": ["it rained"], "failed": []},
        {"name": after, "stable": False, "reasons": ["it rained"], "failed": []},
    ]  # fmt: skip
    alike = bench("compare", before, before).stdout
    assert "NOT ALIKE" not in alike
    assert "0 of 1 figures differ significantly." in alike


def test_runs_that_have_nothing_in_common_are_not_compared(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("jobs.json", "other.json", "scale.json")]
    for path, run in zip(paths, (
        measured_runs.run([STANDARD["null"]]), measured_runs.run([STANDARD["ping"]]),
        measured_runs.document(scale=measured_runs.scale()),
    ), strict=True):  # fmt: skip
        path.write_text(json.dumps(run))
    jobs, other, scale = map(str, paths)
    for pair, told in (
        ((jobs, other), f"{jobs} has results of null, baselines; {other} has results of ping, baselines; "),
        ((scale, scale), f"{scale} has scale; {scale} has scale; "),
    ):  # fmt: skip
        result = bench("compare", *pair)
        assert (result.exit_code, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        assert told in line
        result = bench("compare", *pair, "--json")
        assert (result.exit_code, json.loads(result.stdout)["rows"]) == (1, [])


@pytest.mark.parametrize("damaged", [
    {"results": [{}]}, {"environment": None}, {"results": [{"job": "null"}]}, {"reasons": 3}, {"baselines": {}},
])  # fmt: skip
@pytest.mark.parametrize("verb", ["compare", "report"])
def test_a_damaged_run_is_told_in_one_line(tmp_path: Path, damaged: dict[str, Any], verb: str) -> None:
    path, html = tmp_path / "run.json", tmp_path / "page.html"
    html.write_text("the last one")
    path.write_text(json.dumps(measured_runs.document(**damaged)))
    result = bench(verb, str(path), *([str(path)] if verb == "compare" else ["--html", str(html)]))
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"vmbus-emu: error: {path}: ")
    assert html.read_text() == "the last one"


def test_a_page_never_replaces_its_run(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(measured_runs.document()))
    before = path.read_text()
    assert bench("report", str(path), "--html", str(path)).exit_code == 2
    assert path.read_text() == before


def test_runs_of_two_hosts_are_not_alike() -> None:
    here, there = ({"environment": {"cpu": cpu, "cores": cores}} for cpu, cores in (("x", 2), (None, 8)))
    assert doubts(here, there) == [
        "the runs differ in processor: x before, unknown after",
        "the runs differ in number of cores: 2 before, 8 after",
    ]  # fmt: skip


# -- what becomes of a run ------------------------------------------------------------------------------------------

Asked = dict[str, Any]


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Asked]]:
    """Whatever is asked for is not measured, but ``run`` is found, or ``run()``; the list says what was asked for."""

    def made(run: Any = None) -> list[Asked]:
        asked: list[Asked] = []

        def measured(configurations: Any, jobs: Any, baselines: Any, *others: Any, **named: Any) -> Any:
            asked.append({"configurations": configurations, "jobs": jobs, "baselines": baselines})
            return run() if callable(run) else run or measured_runs.half_failed()

        monkeypatch.setattr(runner, "run", measured)
        return asked

    return made


@pytest.mark.parametrize(("arguments", "baselines"), [
    ("latency", ["call", "pyzmq-msgpack", "shm-spin"]), ("network --arch monolithic", ["call"]),
    ("throughput --arch microkernel --transport ring --poll never", ["eventfd"]),
    ("macro", ["call", "pyzmq-msgpack", "shm-spin"]),
])  # fmt: skip
def test_what_bounds_the_configurations_is_measured_with_them(
    measuring: Callable[..., list[Asked]], arguments: str, baselines: list[str]
) -> None:
    asked = measuring()
    assert bench(*arguments.split()).exit_code == 0
    assert asked[0]["baselines"] == baselines


def test_sizes_that_are_not_for_every_job_are_told(measuring: Callable[..., list[Asked]]) -> None:
    asked = measuring()
    result = bench("latency", "--job", "null", "--job", "read-4k", "--size", "512", "--arch", "monolithic,monolithic")
    assert result.stderr == "vmbus-emu: null: without a size, so --size is for the other jobs\n"
    assert [job.size for job in asked[0]["jobs"]] == [0, 512]
    assert len(asked[0]["configurations"]) == 1


@pytest.mark.parametrize("changed", [
    {"results": [{**measured_runs.run([STANDARD["null"]], rounds=1, count=10)["results"][0], "p50_us": None,
                  "repetitions": 0, "failed": ["no machine"]}]},
    {}, {"boot": [{**measured_runs.boot()[0], "repetitions": 0}]},
])  # fmt: skip
def test_a_run_that_measured_nothing_fails_when_it_was_shown(
    measuring: Callable[..., list[Asked]], tmp_path: Path, changed: Asked
) -> None:
    measuring(measured_runs.document(**changed))
    result = bench("latency", "--json", str(tmp_path / "run.json"))
    assert (result.exit_code, "Again: " in result.stdout) == (1, True)
    assert result.stderr == "vmbus-emu: error: nothing was measured; the table says why\n"
    assert json.loads((tmp_path / "run.json").read_text())["schema"] == 1


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("arguments", [["latency"], ["compare", "--ab", "a", "b"]])
def test_a_run_that_is_interrupted_cleans_up_says_so_and_leaves_files_as_they_are(
    measuring: Callable[..., list[Asked]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: signal.Signals,
    arguments: list[str],
) -> None:
    cleaned = []

    def interrupted(*given: Any, **named: Any) -> Any:
        try:
            signal.raise_signal(ending)
        finally:
            cleaned.append(True)

    measuring(interrupted)
    monkeypatch.setattr(ab, "run", interrupted)
    kept = tmp_path / "run.json"
    kept.write_text("the last one")
    result = bench(*arguments, *(["--json", str(kept)] if arguments == ["latency"] else []))
    assert (result.exit_code, cleaned) == (130, [True])
    assert result.stderr.strip() == "vmbus-emu: interrupted: nothing of this run is kept"
    assert kept.read_text() == "the last one"


@pytest.mark.parametrize("to", ["file", "standard output"])
def test_a_run_is_kept_before_its_requests_are_taken_apart(
    measuring: Callable[..., list[Asked]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    kept, trace = tmp_path / "run.json", tmp_path / "trace.json"
    early: list[str] = []

    def interrupted(*given: Any) -> Any:
        early.append(kept.read_text() if to == "file" else "")
        signal.raise_signal(signal.SIGTERM)

    measuring()
    monkeypatch.setattr(tracing, "trace", interrupted)
    result = bench("latency", "--trace", str(trace), "--json", str(kept) if to == "file" else "-")
    assert result.exit_code == 130
    assert "interrupted: the run is complete, but no request of it is taken apart" in result.stderr
    assert "null request" in (result.stdout if to == "file" else result.stderr)
    run = json.loads(early[0] if to == "file" else result.stdout)
    assert (run["schema"], "waterfalls" in run) == (1, False)
    assert not trace.exists()


def test_waterfalls_are_in_what_is_kept_in_the_end(
    measuring: Callable[..., list[Asked]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring()
    monkeypatch.setattr(tracing, "trace", lambda *given: tracing.Traced(measured_runs.waterfalls(), [], []))
    result = bench("latency", "--trace", str(tmp_path / "trace.json"), "--json", "-", "--html", "/dev/full")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["waterfalls"] == measured_runs.waterfalls()
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert "/dev/full was not written: No space left on device" in line
    assert result.stderr.index("Again: ") < result.stderr.index(line)
