"""Histories: what was attempted is there whatever became of who wrote it, and a full one overwrites nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmbus_emu.device import Status
from vmbus_emu.witness import history, stamp
from vmbus_emu.witness.history import FLUSH, PART, PENDING, READ, REQUEST, WRITE, History


@pytest.fixture
def observed() -> Iterator[History]:
    made = History.create(8, first=100)
    yield made
    made.close()


def test_an_attempt_is_there_before_its_completion_and_for_everybody(observed: History) -> None:
    writer = History.open(observed.path)
    assert writer.append(WRITE, 7, 80, 8, 1000, 1005) == 0
    (seen,) = observed
    assert seen == (WRITE, PENDING, 0, history.UNSEEN, 8, 1, 1000, 1005, 0, 100, 80, 0, 7, 0)
    assert not seen.acknowledged
    assert not seen.failed
    writer.complete(0, Status.OK, 2000)
    (seen,) = observed
    assert (seen.completed_ns, seen.completions, seen.status) == (2000, 1, Status.OK)
    assert (seen.acknowledged, seen.failed) == (True, False)
    writer.close()
    assert len(list(observed)) == 1


def test_it_outlives_its_writer(observed: History) -> None:
    writer = History.open(observed.path)
    writer.append(WRITE, 1, 0, 1, 10, 11)
    writer.complete(0, Status.OK, 12)
    writer.append(FLUSH, 1, 0, 0, 20, 21)
    writer.close()
    assert [(one.kind, one.sequence, one.completed_ns) for one in observed] == [(WRITE, 100, 12), (FLUSH, 101, 0)]


def test_the_next_writer_goes_on_where_the_last_one_ended(observed: History) -> None:
    first = History.open(observed.path)
    first.append(WRITE, 1, 0, 1, 1, 1)
    second = History.open(observed.path)
    assert second.next_sequence == 101
    assert second.append(WRITE, 1, 0, 1, 2, 2) == 1
    assert [one.sequence for one in observed] == [100, 101]


def test_an_error_a_second_completion_and_tries_are_told(observed: History) -> None:
    observed.append(WRITE, 1, 0, 1, 10, 11, 2)
    observed.append(REQUEST, 0, 0, 0, 20, 21)
    observed.retry(1)
    observed.retry(1)
    observed.complete(0, Status.IO_ERROR, 30)
    observed.count_completion(0)
    write, request = observed
    assert (write.tries, write.completions, write.failed, write.refused) == (2, 2, True, False)
    assert (request.submitted_ns, request.tries, request.completions) == (21, 3, 0)
    observed.append(WRITE, 1, 0, 1, 10, 11)
    observed.complete(2, Status.BUSY, 30)
    busy = list(observed)[2]
    assert (busy.refused, busy.failed, busy.acknowledged) == (True, False, False)
    for _ in range(300):
        observed.count_completion(0)
    assert next(iter(observed)).completions == 255


def test_a_full_one_says_so_and_keeps_what_it_has() -> None:
    small = History.create(2)
    assert [small.append(WRITE, 1, lba, 1, 1, 1) for lba in range(2)] == [0, 1]
    assert not small.full
    before = list(small)
    assert small.append(WRITE, 1, 9, 1, 1, 1) == -1
    assert small.full
    assert list(small) == before
    small.close()


def test_a_read_of_one_thing_is_one_record(observed: History) -> None:
    content = bytearray(4 * 512)
    stamp.fill(content, 3, 55, 40)
    observed.append(READ, 1, 40, 4, 1, 1)
    observed.observe(0, content, 9)
    observed.complete(0, Status.OK, 9)
    (read,) = observed
    assert (read.seen, read.observed, read.observed_writer) == (history.WHOLE, 55, 3)


@pytest.mark.parametrize(("content", "seen"), [(bytes(512), history.EMPTY), (b"x" * 512, history.TORN)])
def test_a_read_of_no_stamp_says_which(observed: History, content: bytes, seen: int) -> None:
    observed.append(READ, 1, 40, 1, 1, 1)
    observed.observe(0, content, 9)
    assert next(iter(observed)).seen == seen


def test_a_read_of_several_things_tells_them_apart(observed: History) -> None:
    content = bytearray(6 * 512)
    stamp.fill(memoryview(content)[:1024], 3, 55, 40)
    stamp.fill(memoryview(content)[1024:1536], 3, 54, 42)
    stamp.fill(memoryview(content)[1536:2048], 3, 54, 99)
    content[-1] = 1
    observed.append(READ, 1, 40, 6, 5, 6)
    observed.observe(0, content, 9)
    observed.complete(0, Status.OK, 9)
    read, *parts = observed
    assert (read.kind, read.seen, read.acknowledged) == (READ, history.MIXED, True)
    assert [(one.lba, one.blocks, one.seen, one.observed) for one in parts] == [
        (40, 2, history.WHOLE, 55), (42, 1, history.WHOLE, 54), (43, 1, history.MISPLACED, 54),
        (44, 1, history.EMPTY, 0), (45, 1, history.TORN, 0),
    ]  # fmt: skip
    assert {(one.kind, one.sequence, one.submitted_ns, one.completed_ns, one.acknowledged) for one in parts} == {
        (PART, 100, 6, 9, True)
    }


def test_nobody_can_cut_off_what_others_have_mapped(observed: History) -> None:
    with open(observed.path, "r+b") as file, pytest.raises(PermissionError):
        file.truncate(64)


@pytest.mark.parametrize("content", [b"", b"x" * 64, b"vmbushis" + bytes(56), b"vmbushis\1\0\0\0\x40" + bytes(51)])
def test_what_is_no_history_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="history"):
        History.open(str(path))
    assert path.read_bytes() == content


def test_a_count_beyond_the_end_is_not_believed(observed: History) -> None:
    observed.append(WRITE, 1, 0, 1, 1, 1)
    with open(observed.path, "r+b") as file:
        file.seek(24)
        file.write(b"\xff" * 8)
    assert len(list(observed)) == 8


def test_it_is_kept_as_json(observed: History) -> None:
    observed.append(WRITE, 7, 80, 8, 1000, 1005)
    observed.complete(0, Status.OK, 2000)
    observed.append(READ, 7, 80, 8, 1001, 1006)
    kept = history.load(json.loads(json.dumps(history.dump(observed))))
    assert kept == (False, list(observed))
    assert kept.operations[0].acknowledged


def broken(**changes: Any) -> Any:
    made = History.create(1)
    made.append(WRITE, 1, 0, 1, 1, 1)
    data = history.dump(made) | changes
    made.close()
    return data


@pytest.mark.parametrize(
    "data",
    [
        None, [], {}, broken(schema=2), broken(fields=["kind"]), broken(full=1), broken(operations={}),
        broken(operations=[[1]]), broken(operations=[[2] * 13 + ["x"]]), broken(operations=[[2] * 13 + [-1]]),
        broken(operations=[[99] + [2] * 13]), broken(operations=[3]),
    ],
)  # fmt: skip
def test_what_was_not_dumped_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match=r"history|schema|operation"):
        history.load(data)
