"""The ledger: what was written is there after a death at any instant, whole events in order; its size is bounded."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from vmbus_emu.hypervisor.ledger import Ledger

PAGE = 4096
Event = list[tuple[Any, ...]]


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("ledger")
    yield fd
    os.close(fd)


def event(number: int, size: int = 20) -> Event:
    return [("message", number, bytes(size)), ("result", 1, 0, number, 0, b"")]


def nothing() -> Event:
    raise AssertionError("nobody needs a snapshot")


def read(fd: int) -> Event:
    ledger = Ledger(fd, keep=True, half=PAGE)
    found = list(ledger.changes())
    return found


def written(fd: int, count: int) -> Event:
    ledger = Ledger(fd, keep=False, half=PAGE)
    for number in range(count):
        ledger.append(event(number), nothing)
    return [change for number in range(count) for change in event(number)]


def image(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def test_what_was_written_is_read_and_gone_on_with(file: int) -> None:
    expected = written(file, 3)
    for number in range(3, 6):
        ledger = Ledger(file, keep=True)
        assert list(ledger.changes()) == expected
        ledger.append(event(number), nothing)
        expected += event(number)
    assert read(file) == expected


def test_a_file_that_is_none_or_is_not_kept_begins_empty(file: int) -> None:
    assert read(file) == []
    written(file, 3)
    Ledger(file, keep=False, half=PAGE)
    assert read(file) == []
    ledger = Ledger(file, keep=False, half=PAGE)
    ledger.append(event(0), nothing)    # as long as one of those that lie behind it
    assert read(file) == event(0)
    os.pwrite(file, bytes(8), 0)    # died while it was made
    assert read(file) == []


def test_a_record_torn_at_any_byte_is_dropped_whole_and_written_over(file: int) -> None:
    expected = written(file, 3)
    before = image(file)
    ledger = Ledger(file, keep=True)
    ledger.append(event(3), nothing)
    after = image(file)
    places = [place for place in range(len(after)) if before[place] != after[place]]
    begin = min(places)     # the length: the first of the record, and stored last
    assert begin % 8 == 0
    for end in range(begin + 4, max(places) + 1):           # memory as it is stored, without the length
        os.pwrite(file, before, 0)
        os.pwrite(file, after[begin + 4:end], begin + 4)
        assert read(file) == expected
        ledger = Ledger(file, keep=True)
        ledger.append(event(7, end % 9), nothing)
        assert read(file) == expected + event(7, end % 9)
    for place in places:                                    # and with it: anything that is not what was written
        os.pwrite(file, after, 0)
        os.pwrite(file, before[place:place + 1], place)
        assert read(file) == expected
    os.pwrite(file, after, 0)
    assert read(file) == expected + event(3)


def test_a_full_half_is_left_for_the_other_one_and_the_file_does_not_grow(file: int) -> None:
    ledger = Ledger(file, keep=False, half=PAGE)
    size = os.fstat(file).st_size
    snapshots = 0
    for number in range(2000):
        def snapshot(number: int = number) -> Event:
            nonlocal snapshots
            snapshots += 1
            return [("snapshot", number)]
        ledger.append(event(number), snapshot)
        if number % 97 == 0:
            (kind, first, *_), *later = read(file)
            assert kind == ("message" if snapshots == 0 else "snapshot")
            assert later[-1] == event(number)[-1] or first == number
            assert [change[1] for change in later if change[0] == "message"] == list(
                range(first + (snapshots > 0), number + 1))[snapshots == 0:]
    assert snapshots > 20
    assert os.fstat(file).st_size == size


def test_a_snapshot_that_needs_more_gets_more_and_the_file_stays_within_a_multiple_of_it(file: int) -> None:
    ledger = Ledger(file, keep=False, half=PAGE)
    table: Event = []
    for number in range(3000):
        table.append(("port", number, bytes(50)))
        ledger.append(table[-1:], lambda: table)
        if number % 300 == 0:
            assert read(file) == table
    assert read(file) == table
    assert 3000 * 50 < os.fstat(file).st_size < 3000 * 70 * 16
    del table[10:]
    size = os.fstat(file).st_size
    for number in range(30_000):
        ledger.append([("port", number, bytes(50))], lambda: table)
    assert os.fstat(file).st_size == size


def test_a_death_at_any_step_of_a_change_of_halves_leaves_the_old_or_the_new(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each record of the snapshot, and the last store, may be the one that never happens. Also when the half grows."""
    class Dead(Exception):
        pass

    table = [("port", number, bytes(3)) for number in range(1000)]
    put = Ledger._put
    for half, steps in itertools.product((PAGE, 16 * PAGE), range(5)):
        ledger = Ledger(file, keep=False, half=half)
        count = 0

        def full() -> Event:
            raise Dead

        with contextlib.suppress(Dead):
            for count in itertools.count():
                ledger.append(event(count), full)
        before = read(file)
        assert len(before) == 2 * count
        left = steps

        def dying(self: Ledger, payload: bytes) -> None:
            nonlocal left
            if left == 0:
                raise Dead
            left -= 1
            put(self, payload)

        monkeypatch.setattr(Ledger, "_put", dying)
        if steps < 4:
            with pytest.raises(Dead):
                ledger.append(event(count), lambda: table)
        else:
            ledger.append(event(count), lambda: table)
        monkeypatch.setattr(Ledger, "_put", put)
        assert read(file) == (before if steps < 4 else table)
        if steps == 4:      # all but the generation in the header
            generation = int.from_bytes(os.pread(file, 8, 8), "little")
            os.pwrite(file, (generation - 1).to_bytes(8, "little"), 8)
            assert read(file) == before
        again = Ledger(file, keep=True)
        again.append(event(9999), lambda: table)
        assert read(file) in (table, before + event(9999))


@pytest.mark.parametrize("seed", range(20))
def test_events_of_any_size_survive_deaths_between_them(file: int, seed: int) -> None:
    rng = random.Random(seed)
    table: list[tuple[Any, ...]] = []
    ledger = Ledger(file, keep=False, half=PAGE)
    for number in range(300):
        if rng.random() < 0.2:
            ledger = Ledger(file, keep=True)
            assert list(ledger.changes()) == table
        changes = [("x", number, rng.randbytes(rng.choice((0, 1, 7, 8, 300))), (1, (2, "ü"), None, 1 << 63))]
        table.extend(changes)
        ledger.append(changes, lambda: table)
