"""Stamps: whole sectors say what they are, and no mixture of two of them, nor any flipped bit, passes for whole."""

from __future__ import annotations

import json
import random

import pytest

from vmbus_emu.witness import stamp
from vmbus_emu.witness.stamp import Stamp, Torn

SECTOR = 512


def made(writer: int, sequence: int, lba: int, sectors: int = 1) -> bytearray:
    buffer = bytearray(sectors * SECTOR)
    stamp.fill(buffer, writer, sequence, lba)
    return buffer


@pytest.mark.parametrize("writer", [1, (1 << 32) - 1])
@pytest.mark.parametrize("sequence", [0, 1, (1 << 64) - 1])
@pytest.mark.parametrize("lba", [0, 7, (1 << 63)])
def test_every_sector_of_a_block_says_who_wrote_it_when_and_where(writer: int, sequence: int, lba: int) -> None:
    content = made(writer, sequence, lba, 8)
    assert stamp.read_all(content) == [Stamp(writer, sequence, lba + index) for index in range(8)]
    assert all(isinstance(state, Stamp) for state in stamp.read_all(memoryview(content)))


def test_zeros_are_empty_and_anything_else_is_torn() -> None:
    assert stamp.read(bytes(SECTOR)) is None
    assert stamp.read(memoryview(bytearray(SECTOR))) is None
    assert stamp.read(bytes(511) + b"\1") == Torn(Stamp(0, 0, 0))
    assert stamp.read(b"\xff" * SECTOR) == Torn(Stamp(0, 0, 0))


def test_a_torn_sector_is_no_whole_one_and_tells_what_its_head_claims() -> None:
    torn = made(3, 5, 9)
    torn[-1] ^= 1
    assert stamp.read(torn) == Torn(Stamp(3, 5, 9))
    assert stamp.read(torn) != Stamp(3, 5, 9)


def test_no_flipped_bit_passes() -> None:
    whole = made(3, 5, 9)
    for bit in range(SECTOR * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        assert isinstance(stamp.read(flipped), Torn), bit


@pytest.mark.parametrize("other", [(3, 6, 9), (4, 5, 9), (3, 5, 10), None])
def test_no_two_halves_make_a_whole(other: tuple[int, int, int] | None) -> None:
    one, two = made(3, 5, 9), bytearray(SECTOR) if other is None else made(*other)
    for cut in range(1, SECTOR):
        for mixed, wholes in ((one[:cut] + two[cut:], (one, two)), (two[:cut] + one[cut:], (one, two))):
            assert mixed in wholes or isinstance(stamp.read(mixed), Torn), cut


def test_the_filler_of_neighbours_and_successors_differs() -> None:
    fillers = {bytes(made(1, sequence, lba)[28:-4]) for sequence in range(8) for lba in range(8)}
    assert len(fillers) > 48


def test_in_brief_and_back() -> None:
    torn = made(3, 5, 11)
    torn[100] ^= 1
    content = made(3, 4, 9, 2) + torn + bytes(SECTOR)
    told = stamp.brief(content)
    assert len(told) == 4 * 24
    expected = {9: Stamp(3, 4, 9), 10: Stamp(3, 4, 10), 11: Torn(Stamp(3, 5, 11)), 12: None}
    assert stamp.from_brief(told, 9) == expected
    assert stamp.load(json.loads(json.dumps(stamp.dump(expected)))) == expected
    assert [type(state) for state in stamp.from_brief(told, 9).values()] == [Stamp, Stamp, Torn, type(None)]


@pytest.mark.parametrize("data", [b"x", bytes(23), b"\3" + bytes(23)])
def test_what_is_no_brief_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"whole records|not a sector's state"):
        stamp.from_brief(data, 0)


@pytest.mark.parametrize("row", [[], [1, 2], [1, 9, 0, 0, 0], [-1], [1, 1, "x", 1, 1], [True]])
def test_what_was_not_dumped_is_refused(row: list[object]) -> None:
    with pytest.raises(ValueError, match="not a sector's state"):
        stamp.load([row])  # type: ignore[list-item]


def test_random_bytes_are_never_a_stamp() -> None:
    chance = random.Random(1)
    for _ in range(2000):
        assert isinstance(stamp.read(b"vmbuswit" + chance.randbytes(SECTOR - 8)), Torn)
