"""The checker by its definitions, one small history at a time, and how service is counted from the planned times."""

from __future__ import annotations

import pytest

from vmbus_emu.device import Status
from vmbus_emu.witness import history
from vmbus_emu.witness.check import MAX_FINDINGS, Verdict, judge, service
from vmbus_emu.witness.history import PART, PENDING, READ, REQUEST, UNSEEN, WRITE, Operation
from vmbus_emu.witness.stamp import Stamp, State, Torn

LBA = 40
WRITER = 7


def write(
    sequence: int, submitted: int, completed: int = 0, status: int = Status.OK, completions: int = 1, blocks: int = 1
) -> Operation:
    """A write of ``blocks`` from LBA on; ``completed`` 0: it never was."""
    if not completed:
        status, completions = PENDING, 0
    return Operation(WRITE, status, completions, UNSEEN, blocks, 1, submitted, submitted, completed, sequence, LBA, 0,
                     WRITER, 0)


def read(submitted: int, completed: int, found: int, seen: int = history.WHOLE, kind: int = READ) -> Operation:
    return Operation(kind, Status.OK, 1, seen, 1, 1, submitted, submitted, completed, 1000, LBA, found, WRITER, WRITER)


def holds(sequence: int) -> Stamp:
    return Stamp(WRITER, sequence, LBA)


def found(verdict: Verdict) -> dict[str, int]:
    """What is not zero, of what is found."""
    kinds = ("lost", "unexpected", "duplicated", "recovered", "unread")
    return {kind: getattr(verdict, kind) for kind in kinds if getattr(verdict, kind)}


TWO = [write(1, 10, 11), write(2, 20, 21)]
CUT = [*TWO, write(3, 30)]
FAILED = [*TWO, write(3, 30, 31, Status.IO_ERROR)]


@pytest.mark.parametrize(
    ("operations", "state", "expected"),
    [
        ([], None, {}),
        (TWO, holds(2), {}),
        (TWO, holds(1), {"lost": 1}),
        (TWO, None, {"lost": 1}),
        (CUT, holds(2), {}),
        (CUT, holds(3), {"recovered": 1}),
        (CUT, holds(1), {"lost": 1}),
        (FAILED, holds(2), {}),
        (FAILED, holds(3), {"recovered": 1}),
        (FAILED, None, {"lost": 1}),
        ([write(1, 10)], None, {}),
        ([write(1, 10)], holds(1), {"recovered": 1}),
        (TWO, holds(4), {"unexpected": 1}),
        (TWO, Stamp(WRITER, 2, LBA + 1), {"unexpected": 1}),
        (TWO, Stamp(WRITER + 1, 2, LBA), {"unexpected": 1}),
        (TWO, Torn(holds(2)), {"unexpected": 1}),
        (CUT, Torn(holds(3)), {"unexpected": 1}),
        ([], holds(1), {"unexpected": 1}),
    ],
)
def test_what_is_read_back(operations: list[Operation], state: State, expected: dict[str, int]) -> None:
    verdict = judge(operations, {LBA: state})
    assert found(verdict) == expected
    assert verdict.good is (set(expected) <= {"recovered"})
    assert len(verdict.findings) == sum(expected.values()) - expected.get("recovered", 0)


@pytest.mark.parametrize(
    ("operations", "state", "expected"),
    [
        ([], holds(9), {}),
        ([write(1, 10)], holds(9), {}),
        ([write(1, 10, 11)], holds(9), {"lost": 1}),
        ([write(1, 10)], None, {"unexpected": 1}),
        ([], None, {"unexpected": 1}),
    ],
)
def test_what_was_there_at_the_start_is_the_oldest_value(
    operations: list[Operation], state: State, expected: dict[str, int]
) -> None:
    assert found(judge(operations, {LBA: state}, {LBA: holds(9)})) == expected


@pytest.mark.parametrize("old", [Torn(holds(9)), Torn(Stamp(0, 0, 0)), Stamp(1, 1, LBA + 1)])
def test_what_was_strange_at_the_start_may_stay_and_may_be_read(old: State) -> None:
    seen = history.TORN if isinstance(old, Torn) else history.MISPLACED
    assert found(judge([read(1, 2, 9, seen), write(1, 10)], {LBA: old}, {LBA: old})) == {}
    assert found(judge([write(1, 10, 11)], {LBA: old}, {LBA: old})) == {"lost": 1}
    assert found(judge([read(1, 2, 9, seen)], {LBA: None})) == {"unexpected": 1}


def test_writes_count_by_how_they_ended() -> None:
    verdict = judge([*FAILED, write(4, 40)], {LBA: holds(2)})
    assert (verdict.attempted, verdict.acknowledged, verdict.failed) == (4, 2, 1)


def test_every_sector_is_judged_for_itself() -> None:
    operations = [write(1, 10, 11, blocks=4), write(2, 20, blocks=4)]
    states: dict[int, State] = {LBA: holds(2), LBA + 1: Stamp(WRITER, 1, LBA + 1), LBA + 2: None}
    assert found(judge(operations, states)) == {"recovered": 1, "lost": 1, "unread": 1}
    assert not judge(operations, {}).good


def test_a_write_that_was_busy_may_be_there_and_counts_once() -> None:
    operations = [write(1, 10, 11), write(2, 20, 21, Status.BUSY), write(3, 30, 31), write(4, 40, 41)]
    verdict = judge(operations[:2], {LBA: holds(2)})
    assert (found(verdict), verdict.attempted, verdict.failed) == ({"recovered": 1}, 1, 0)
    assert found(judge([*operations[:3], read(25, 26, 2)], {LBA: holds(3)})) == {}
    assert found(judge(operations, {LBA: holds(2)})) == {"lost": 1}
    assert service(operations, []).unserved == 0


def test_what_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(ValueError, match="writers"):
        judge([write(1, 10), write(2, 20)._replace(writer=8)], {})
    with pytest.raises(ValueError, match="before it was written"):
        judge(TWO, {}, {LBA: holds(2)})


@pytest.mark.parametrize(
    ("reads", "expected"),
    [
        ([read(22, 23, 2)], {}),
        ([read(22, 23, 1)], {"duplicated": 1}),
        ([read(22, 23, 0, history.EMPTY)], {"duplicated": 1}),
        ([read(20, 23, 1)], {}),                                        # 2 was not acknowledged yet
        ([read(21, 23, 1)], {}),                                        # in the same nanosecond: nobody can tell
        ([read(12, 19, 2)], {"unexpected": 1}),                         # not written yet
        ([read(22, 23, 5)], {"unexpected": 1}),
        ([read(22, 23, 2, history.TORN)], {"unexpected": 1}),
        ([read(22, 23, 2, history.MISPLACED)], {"unexpected": 1}),
        ([read(22, 23, 1, kind=PART)], {"duplicated": 1}),
        ([read(22, 23, 1, history.MIXED)], {}),                         # its PARTs tell
        ([read(22, 23, 1, UNSEEN)], {}),
        ([read(22, 23, 1)._replace(status=Status.IO_ERROR)], {}),
    ],
)
def test_what_a_read_found_during_the_run(reads: list[Operation], expected: dict[str, int]) -> None:
    assert found(judge([*TWO, *reads], {LBA: holds(2)})) == expected


@pytest.mark.parametrize(
    ("second", "expected"),
    [(read(35, 36, 3), {}), (read(35, 36, 2), {"duplicated": 1}), (read(31, 36, 2), {})],
)
def test_what_a_read_has_seen_does_not_become_older(second: Operation, expected: dict[str, int]) -> None:
    first = read(31, 32, 3)  # of a write that is still under way
    assert found(judge([*CUT, first, second], {LBA: holds(3)})) == {"recovered": 1, **expected}


def test_the_end_is_not_older_than_what_a_read_has_seen() -> None:
    assert found(judge([*CUT, read(31, 32, 3)], {LBA: holds(2)})) == {"duplicated": 1}
    assert found(judge([*TWO, read(31, 32, 2)], {LBA: holds(1)})) == {"duplicated": 1, "lost": 1}


def test_a_second_completion_is_found_whatever_completed() -> None:
    twice = [write(1, 10, 11, completions=3), read(12, 13, 1)._replace(completions=2)]
    assert found(judge(twice, {LBA: holds(1)})) == {"duplicated": 3}


def request(tries: int, completed: int, planned: int = 1) -> Operation:
    status = Status.OK if completed else PENDING
    done = int(completed > 0)
    return Operation(REQUEST, status, done, UNSEEN, 0, tries, planned, planned, completed, 1, 0, 0, 0, 0)


def test_a_lost_frame_is_counted_apart() -> None:
    verdict = judge([request(1, 5), request(4, 9), request(3, 0)], {})
    assert (verdict.network_requests, verdict.network_answered, verdict.network_lost) == (3, 2, 5)
    assert (found(verdict), verdict.good) == ({}, True)


def test_findings_are_bounded() -> None:
    verdict = judge([write(1, 10, 11, blocks=300)], dict.fromkeys(range(LBA, LBA + 300)))
    assert verdict.lost == 300
    assert len(verdict.findings) == MAX_FINDINGS + 1
    assert verdict.findings[-1] == "and 200 more"


# -- service ------------------------------------------------------------------------------------------------------


def test_latency_from_the_planned_time_contains_the_wait_to_be_submitted() -> None:
    late = write(1, 50, 60)._replace(planned_ns=10)
    told = service([late, write(2, 70, 71), write(3, 80), write(4, 90, 95, Status.IO_ERROR)], [])
    assert told == ([], [1, 10], [1, 50], 2)


def test_a_gap_ends_with_the_first_completion_after_the_kill() -> None:
    operations = [write(1, 10, 20), write(2, 30, 130), write(3, 140, 150)]
    (gap,) = service(operations, [40]).gaps
    assert gap == (40, 90, 1, 90)


def test_an_error_is_no_service() -> None:
    operations = [write(1, 30, 50, Status.IO_ERROR), write(2, 60, 100)]
    assert service(operations, [40]).gaps[0].gap_ns == 60


def test_a_completion_on_its_way_at_the_kill_does_not_hide_the_silence() -> None:
    operations = [write(1, 30, 41), write(2, 35, 500), write(3, 36, 510)]
    (gap,) = service(operations, [40]).gaps
    assert (gap.gap_ns, gap.outstanding, gap.silence_ns) == (1, 3, 459)


def test_each_kill_has_its_own_gap_and_the_last_may_not_end() -> None:
    operations = [write(1, 10, 20), write(2, 90, 110), write(3, 210, 250), write(4, 260)]
    gaps = service(operations, [300, 100, 200]).gaps
    assert [(gap.kill_ns, gap.gap_ns, gap.silence_ns, gap.outstanding) for gap in gaps] == [
        (100, 10, 90, 1), (200, 50, 50, 0), (300, None, None, 1),
    ]  # fmt: skip


def test_parts_are_no_requests_and_what_was_never_sent_is_not_under_way() -> None:
    unsent = request(1, 0, planned=30)._replace(submitted_ns=0)
    told = service([read(1, 2, 1, kind=PART), unsent], [40])
    assert (told.uncorrected, told.unserved, told.gaps[0].outstanding) == ([], 1, 0)
