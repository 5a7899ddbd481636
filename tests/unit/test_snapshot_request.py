"""A snapshot without the guest's help: who is stopped while a medium is copied, and what ends a copy without a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_stops import Box
from vmbus_emu.loop import Loop
from vmbus_emu.machine import integration
from vmbus_emu.machine.media import Medium

SIZE = 4096


class Pauses:
    """In the place of :class:`vmbus_emu.machine.standstill.Standstill`: notes what it is told."""

    told: list[str]
    stops = True

    def __init__(self, loop: Loop, supervisor: Any, beats: Any, process: Any) -> None:
        self._name = process.name

    async def begin(self) -> bool:
        self.told.append(f"stop {self._name}")
        return self.stops

    def end(self) -> None:
        self.told.append(f"continue {self._name}")


@pytest.fixture
def box(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    made = Box(loop)
    fd = os.memfd_create("medium")
    os.pwrite(fd, b"x" * SIZE, 0)
    made.media = {"vm1.disk0": Medium("vm1.disk0", fd, SIZE // 512, False, "s")}
    Pauses.told = []
    Pauses.stops = True
    monkeypatch.setattr(integration, "Standstill", Pauses)
    yield made
    os.close(fd)


def copied(box: Box, loop: Loop, path: Path, meanwhile: Any = None) -> dict[str, Any]:
    async def copy(source: int, target: int, size: int, turn: Any) -> int:
        Pauses.told.append("copy")
        if meanwhile is not None:
            meanwhile()
        return size

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integration, "copy", copy)
        box.request("snapshot", path=str(path), quiesce=False)
        assert loop.run_until(lambda: bool(box.replies), 5)
    return box.replies.pop()


def test_the_vm_stands_still_for_the_copy_and_for_nothing_else(box: Box, loop: Loop, tmp_path: Path) -> None:
    report = copied(box, loop, tmp_path / "a")["snapshot"]
    assert Pauses.told == ["stop vm1", "copy", "continue vm1"]
    assert (report["quiesced"], report["frozen_ms"]) == (False, None)
    assert report["stopped_ms"] >= 0
    assert (tmp_path / "a").exists()


def test_who_does_not_stop_is_not_copied(box: Box, loop: Loop, tmp_path: Path) -> None:
    Pauses.stops = False
    assert copied(box, loop, tmp_path / "a")["error"] == "vm1 cannot be stopped"
    assert Pauses.told == ["stop vm1"]
    assert list(tmp_path.iterdir()) == []


def test_a_medium_that_cannot_be_copied_leaves_nobody_stopped(box: Box, loop: Loop, tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    reply = copied(box, loop, tmp_path / "a", fail)
    assert (reply["error"], reply["hint"]) == (
        f"cannot write {tmp_path / 'a'}: No space left on device", "look for room, or another place")
    assert Pauses.told == ["stop vm1", "copy", "continue vm1"]
    assert list(tmp_path.iterdir()) == []


def test_who_is_off_is_not_stopped(box: Box, loop: Loop, tmp_path: Path) -> None:
    box.exited("vm1", 0)
    assert copied(box, loop, tmp_path / "a")["snapshot"]["stopped_ms"] is None
    assert Pauses.told == ["copy"]


def test_a_vm_that_comes_or_goes_meanwhile_may_have_written_so_there_is_no_copy(
    box: Box, loop: Loop, tmp_path: Path
) -> None:
    process: Any = box.processes["vm1"]
    why = "vm1 died or was started while its disk was copied"
    assert copied(box, loop, tmp_path / "a", lambda: box.exited("vm1", 0))["error"] == why
    assert copied(box, loop, tmp_path / "b", lambda: box.running.update(vm1=process))["error"] == why
    assert copied(box, loop, tmp_path / "c", lambda: box.vm_hosts.pop("vm1"))["error"] == why
    assert list(tmp_path.iterdir()) == []
