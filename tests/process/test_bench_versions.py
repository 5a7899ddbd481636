"""What ``bench compare --ab`` takes for a version of the program."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench import ab
from vmbus_emu.runfolder import list_machines

if TYPE_CHECKING:
    from conftest import Lab


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


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_comparison_that_is_ended_takes_its_machine_down(
    lab: Lab, wait: Callable[..., None], end: signal.Signals
) -> None:
    root = str(Path(ab.__file__).parents[1])
    comparing = lab.program(
        "bench", "compare", "--ab", root, root, "--arch", "monolithic", "--job", "null", "--seconds", "30",
        "--rounds", "1",
    )  # fmt: skip
    wait(lambda: any(one.pid for one in list_machines()), "a machine to run")
    comparing.send_signal(end)
    assert comparing.wait(30) != 0
    assert list_machines() == []
