"""Jobs from options and from files: what can be measured, and what is refused with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.jobs import STANDARD, BadJob, Job, checked, load, size_of, varied


def test_the_standard_jobs_are_fit_to_be_measured() -> None:
    assert list(STANDARD) == ["null", "read-4k", "write-flush-4k", "ping", "read-1m"]
    assert all(job.fault() == "" for job in STANDARD.values())


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
