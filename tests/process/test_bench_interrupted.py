"""Benchmarks that are ended from outside leave nothing: no machine, no folder with its image, nobody who spins."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmbus_emu.runfolder import list_machines

if TYPE_CHECKING:
    from conftest import Lab


@pytest.mark.parametrize(("ending", "arguments"), [
    (signal.SIGTERM, ["latency", "--arch", "monolithic", "--job", "null", "--seconds", "20", "--rounds", "1"]),
    (signal.SIGHUP, ["scale", "--arch", "monolithic", "--vms", "1", "--idle", "20"]),
])  # fmt: skip
def test_a_signal_ends_a_run_with_its_machine(
    lab: Lab, tmp_path: Path, wait: Callable[..., None], ending: signal.Signals, arguments: list[str]
) -> None:
    program = lab.program("bench", *arguments, env=os.environ | {"TMPDIR": str(tmp_path)})
    wait(lambda: any(not entry.stale and "vms" in entry.info for entry in list_machines()), "a machine is there")
    for entry in list_machines():
        lab.note(entry.name)
    program.send_signal(ending)
    program.send_signal(ending)
    _, errors = program.communicate(timeout=30)
    assert program.returncode == 130
    assert b"interrupted: nothing of this run is kept" in errors
    assert list_machines() == []
    assert list(tmp_path.glob("vmbus-emu-bench-*")) == []
    wait(lambda: lab.survivors() == [], "all its processes have ended")


def test_who_answers_ends_with_who_asks(wait: Callable[..., None]) -> None:
    asking = subprocess.Popen([sys.executable, "-m", "bench.baselines", "shm-spin", "30"], stdout=subprocess.DEVNULL)
    with asking:
        try:
            children = Path(f"/proc/{asking.pid}/task/{asking.pid}/children")
            wait(lambda: children.read_text().split(), "somebody answers")
            (child,) = map(int, children.read_text().split())
            answering = os.pidfd_open(child)
        finally:
            asking.kill()
    ended, _, _ = select.select([answering], [], [], 10)
    if not ended:
        signal.pidfd_send_signal(answering, signal.SIGKILL)
    os.close(answering)
    assert ended
