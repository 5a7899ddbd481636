"""What ``bench compare --ab`` takes for a version of the program."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench import ab


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@localhost"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def test_a_version_is_a_revision_or_a_directory_and_bench_is_the_present_one(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("vmbus_emu", "partitions", "drivers", "bench"):
        (checkout / name).mkdir(parents=True)
        (checkout / name / "__init__.py").write_text("of the revision")
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "one")
    (checkout / "drivers" / "__init__.py").write_text("of the directory")
    revision = ab.tree("HEAD", checkout, tmp_path / "a")
    directory = ab.tree(str(checkout), checkout, tmp_path / "b")
    assert (revision / "drivers" / "__init__.py").read_text() == "of the revision"
    assert (directory / "drivers" / "__init__.py").read_text() == "of the directory"
    for side in (revision, directory):
        assert (side / "bench" / "ab.py").read_bytes() == Path(ab.__file__).read_bytes()
    with pytest.raises(ab.BadVersion, match=r"'nope' is no revision of .*checkout, and no directory"):
        ab.tree("nope", checkout, tmp_path / "c")
    with pytest.raises(ab.BadVersion, match="it holds no vmbus_emu, partitions, drivers"):
        ab.tree(str(tmp_path), checkout, tmp_path / "d")
