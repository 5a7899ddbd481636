"""Jobs from options and from files: what can be measured, and what is refused with its reason."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from bench import machines, operations, results
from bench.jobs import MACRO, STANDARD, BadJob, Job, checked, load, size_of, varied
from bench.operations import OPERATIONS


def test_the_standard_jobs_are_fit_to_be_measured() -> None:
    assert list(STANDARD) == ["null", "read-4k", "write-flush-4k", "ping", "read-1m", "sqlite-commit"]
    assert all(job.fault() == "" for job in STANDARD.values())


def test_the_whole_workloads_are_fit_to_be_measured() -> None:
    assert list(MACRO) == ["sqlite-commit", "kv-put", "file-server"]
    assert MACRO["sqlite-commit"] is STANDARD["sqlite-commit"]
    assert all(job.fault() == "" for job in MACRO.values())
    assert [OPERATIONS[job.operation].command(job, "-d 1 -S f") for job in MACRO.values()] == [
        "sqlitebench -d 1 -S f disk3", "kvlog -d 1 -S f disk3", "fileserver -d 1 -S f disk3",
    ]


def test_what_must_be_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OPERATIONS["null"].lacking() == ""
    monkeypatch.setattr(operations, "find_spec", lambda name: None)
    assert "vmbus-emu[macro]" in OPERATIONS["sqlite"].lacking()


def test_a_job_that_lacks_something_has_no_figures_and_the_others_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(operations, "find_spec", lambda name: None)
    fake: Any = nullcontext(SimpleNamespace(ps=lambda window: {"partitions": []}))
    monkeypatch.setattr(machines, "running", lambda *arguments, **more: fake)
    monkeypatch.setattr(machines, "measured", lambda machine, job, *more: f"measured {job.name}")
    one = machines.STANDARD[0]
    jobs = [STANDARD["null"], STANDARD["sqlite-commit"]]
    found = machines.sample_set(one, jobs, tmp_path, Random(1))
    assert str(found[jobs[0]]) == "measured null"
    assert found[jobs[1]] == OPERATIONS["sqlite"].lacking()
    row = results.result(jobs[1], one, [str(found[jobs[1]])])
    assert (row["p50_us"], row["ops_per_s"], row["failed"]) == (None, None, [OPERATIONS["sqlite"].lacking()])


@pytest.mark.parametrize(("text", "nbytes"), [
    ("512", 512), ("4k", 4096), ("1m", 1 << 20), ("1M", 1 << 20), ("64KiB", 65536), (4096, 4096),
])
def test_sizes(text: str | int, nbytes: int) -> None:
    assert size_of(text) == nbytes


@pytest.mark.parametrize("text", ["", "k", "-1", "4x", "1.5k"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(BadJob, match="not a size"):
        size_of(text)


def test_sizes_and_depths_are_multiplied_and_nothing_is_measured_twice() -> None:
    made = varied([STANDARD["null"], STANDARD["read-4k"]], [512, 4096], [1, 32], 0)
    assert [(job.name, job.size, job.depth) for job in made] == [
        ("null", 0, 1), ("null", 0, 32), ("read-4k", 512, 1), ("read-4k", 512, 32), ("read-4k", 4096, 1),
        ("read-4k", 4096, 32),
    ]  # fmt: skip


@pytest.mark.parametrize(("job", "told"), [
    (Job("x", "scan"), "none of null"), (Job("x", "read", 100), "no whole sectors"), (Job("x", "read"), "not 0"),
    (Job("x", "read", 2 << 20), "1 to 1048576 bytes"), (Job("x", "null", depth=65), "depth of 65"),
    (Job("x", "null", depth=0), "depth of 0"), (Job("x", "null", seconds=0), "above 0"),
    (Job("x", "sqlite", depth=2), "between 1 and 1"), (Job("x", "kvlog", rate=5), "no rate"),
    (Job("x", "ping", 70000), "65507"), (Job("x", "null", rate=-1), "rate"),
])
def test_what_cannot_be_measured(job: Job, told: str) -> None:
    with pytest.raises(BadJob, match=told):
        checked(job)


def test_jobs_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "jobs.toml"
    path.write_text(
        '[[job]]\nname = "scan"\noperation = "read"\nsize = "64k"\ndepth = 8\nrandom = false\nseconds = 0.5\n')
    assert load(path) == [Job("scan", "read", 65536, 8, random=False, seconds=0.5)]


@pytest.mark.parametrize(("text", "told"), [
    ("", "[[job]]"), ("job = 3", "[[job]]"), ("[[job]]\nname = 'x'", "needs a operation"), ("x = ", "Invalid"),
    ("[[job]]\nname = 'x'\noperation = 'null'\ncolour = 3", "no 'colour'"),
    ("[[job]]\nname = 'x'\noperation = 'null'\ndepth = true", "not of type int"),
    ("[[job]]\nname = 'x'\noperation = 'read'\nsize = '4q'", "not a size"), ("[[other]]\n", "[[job]]"),
])
def test_files_that_hold_no_jobs(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "jobs.toml"
    path.write_text(text)
    with pytest.raises(BadJob) as error:
        load(path)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
