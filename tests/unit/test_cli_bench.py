"""``vmbus-emu bench``: what is refused before anything is measured, and what a comparison of kept runs says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bench.compare import doubts
from vmbus_emu.cli.main import cli


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", *arguments])


@pytest.mark.parametrize(("arguments", "told"), [
    (["--rounds", "3", "list"], "--rounds goes behind list"), (["--pin", "none", "list"], "--pin goes behind list"),
    (["latency", "--arch", "mono"], '"mono": say all, or some of monolithic'),
    (["latency", "--size", "5q"], "'5q' is not a size"), (["latency", "--qd", "x"], '"x" is not a list'),
    (["latency", "--qd", "65"], "depth of 65"), (["latency", "--job", "nope"], "no job 'nope'"),
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
    (rows,) = json.loads(bench("compare", before, after, "--json").stdout),
    assert [one["metric"] for one in rows] == ["p50_us"]
    alike = bench("compare", before, before).stdout
    assert "NOT ALIKE" not in alike
    assert "0 of 1 figures differ significantly." in alike


def test_runs_of_two_hosts_are_not_alike() -> None:
    here, there = ({"environment": {"cpu": cpu, "cores": cores}} for cpu, cores in (("x", 2), (None, 8)))
    assert doubts(here, there) == [
        "the runs differ in processor: x before, unknown after",
        "the runs differ in number of cores: 2 before, 8 after",
    ]  # fmt: skip
