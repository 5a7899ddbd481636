"""Records of points: what is written by one process is read by another, in order, and never beyond the file."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from vmbus_emu.witness.traces import DRIVER, SEND, SUBMIT, Record, TraceFile, identity


@pytest.fixture
def trace() -> Iterator[TraceFile]:
    made = TraceFile.create(8)
    yield made
    made.close()


def test_what_is_written_through_one_mapping_is_read_through_another(trace: TraceFile) -> None:
    writer = TraceFile.open(trace.path)
    writer.put(writer.take(), SUBMIT, 1, 7, 42, 1000, 0, 0)
    writer.put(writer.take(), SEND, 0, 7, (1 << 64) - 1, 2000, 2100, 2200)
    writer.close()
    assert trace.records() == [
        Record(SUBMIT, 1, 7, 42, (1000, 0, 0)), Record(SEND, 0, 7, (1 << 64) - 1, (2000, 2100, 2200)),
    ]  # fmt: skip


def test_records_of_a_while(trace: TraceFile) -> None:
    for ns in (100, 200, 300):
        trace.put(trace.take(), DRIVER, 0, 1, ns, ns, 0, 0)
    assert [record.number for record in trace.records(200, 300)] == [200]
    assert trace.records(400) == []


def test_what_finds_no_room_is_noticed_and_changes_nothing(trace: TraceFile) -> None:
    for number in range(1, 9):
        trace.put(trace.take(), DRIVER, 0, 1, number, 5, 0, 0)
    assert not trace.full
    for number in range(9, 30):
        trace.put(trace.take(), DRIVER, 0, 1, number, 5, 0, 0)
    assert trace.full
    assert [record.number for record in trace.records()] == list(range(1, 9))


def test_threads_never_share_a_place() -> None:
    trace = TraceFile.create(4000)

    def write(disk: int) -> None:
        for number in range(1000):
            trace.put(trace.take(), DRIVER, 0, disk, number, 1, 0, 0)

    threads = [threading.Thread(target=write, args=(disk,)) for disk in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = {(record.disk, record.number) for record in trace.records()}
    trace.close()
    assert written == {(disk, number) for disk in range(4) for number in range(1000)}


def test_an_observer_that_is_gone(trace: TraceFile) -> None:
    with pytest.raises(OSError, match="No such file"):
        TraceFile.open(f"/proc/{os.getpid()}/fd/999999")


def test_disks_have_names_of_their_own() -> None:
    names = {identity(f"vm{vm}", f"disk{disk}") for vm in range(1, 65) for disk in range(8)}
    assert len(names) == 64 * 8
    assert 0 not in names
