"""The report of a benchmark from the command line, and what is left of it without matplotlib."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
import pytest
from click.testing import CliRunner, Result

from bench import runner
from bench.report.page import page
from tests.measured_runs import CASES, HOSTILE, Document, half_failed
from tests.report_pages import cells, parsed, read, said
from vmbus_emu.cli.main import cli

NEEDS = "matplotlib is not installed; pip install 'vmbus-emu[report]', in a checkout pip install -e '.[report]'"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib is not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_without_matplotlib_it_has_all_tables_and_says_what_to_install(case: Document) -> None:
    html = page(case)
    found = read(html)
    assert "svg" not in found.tags
    assert NEEDS.split("; ")[0] in html
    root = parsed(html)
    assert "pip install 'vmbus-emu[report]'" in said(next(root.iter("main")))
    if case is CASES["full"]:
        assert not list(root.iter("details"))
        for caption in ("Median latency", "CPU time per request", "A single request", "With all VMs", "Started",
                        "From the command", "Round trips", "A null request"):  # fmt: skip
            assert cells(root, caption)


def test_the_page_is_the_same_whatever_a_user_has_set_and_nothing_stays_set() -> None:
    before = page(CASES["failed"])
    with matplotlib.rc_context({"font.size": 40.0, "svg.fonttype": "path", "text.usetex": True}):
        own = dict(matplotlib.rcParams)
        assert page(CASES["failed"]) == before
        assert dict(matplotlib.rcParams) == own


# -- the command line ---------------------------------------------------------------------------------------------


def asked(*words: str) -> Result:
    return CliRunner().invoke(cli, ["bench", *words])


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(half_failed()))
    return path


def test_a_kept_run_is_drawn(kept: Path, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    done = asked("report", str(kept), "--html", str(html))
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("On this machine a null request takes")
    assert html.read_text(encoding="utf-8") == page(half_failed())


def test_the_page_may_go_to_standard_output(kept: Path) -> None:
    done = asked("report", str(kept), "--html", "-")
    assert done.stdout == page(half_failed())
    assert done.stderr.startswith("On this machine")


def test_what_is_no_run_leaves_the_last_report_as_it_is(tmp_path: Path) -> None:
    html, other = tmp_path / "report.html", tmp_path / "other.json"
    html.write_text("the last one")
    other.write_text("[]")
    done = asked("report", str(other), "--html", str(html))
    assert (done.exit_code, "no run of vmbus-emu bench" in done.stderr) == (1, True)
    assert html.read_text() == "the last one"
    assert asked("report", str(other)).exit_code == 2


def test_a_measuring_verb_writes_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run", lambda *arguments, **options: half_failed())
    html = tmp_path / "report.html"
    done = asked("latency", "--job", "null", "--html", str(html))
    assert (done.exit_code, done.stderr) == (0, "")
    assert "null request" in done.stdout
    assert html.read_text(encoding="utf-8") == page(half_failed())


@pytest.mark.usefixtures("undrawn")
def test_without_matplotlib_a_verb_prints_its_table_and_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "run", lambda *arguments, **options: half_failed())
    html = tmp_path / "report.html"
    done = asked("latency", "--job", "null", "--html", str(html))
    assert done.exit_code == 0
    assert done.stderr == f"vmbus-emu: the report has no plots: {NEEDS}\n"
    assert "null request" in done.stdout
    assert "Without plots" in html.read_text(encoding="utf-8")


def test_nothing_hostile_reaches_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(CASES["hostile"]))
    done = asked("report", str(path), "--html", str(tmp_path / "report.html"))
    assert done.exit_code == 0
    assert "\x1b" not in done.stdout
    assert HOSTILE not in done.stdout
