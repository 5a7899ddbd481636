"""A guest's private memory: does it tell what was written over it, and only that?"""

from __future__ import annotations

import ctypes

import pytest

from vmbus_emu.canary import MAGIC, PAGE, SIZE, Canary, Damage, is_canary
from vmbus_emu.scribble import SCRIBBLE


def test_it_is_intact_until_somebody_writes() -> None:
    canary = Canary()
    assert len(canary.memory) == SIZE
    assert canary.damage() is None


@pytest.mark.parametrize(("offset", "data", "damage"), [
    (0, b"\xff", Damage(1, 0, 0)),
    (SIZE - 1, b"\xff", Damage(1, SIZE - 1, SIZE - 1)),
    (4095, b"\xff\xff", Damage(2, 4095, 4096)),
    (0, SCRIBBLE * SIZE, Damage(SIZE, 0, SIZE - 1)),
], ids=["the first byte", "the last byte", "over a page's end", "all of it"])
def test_it_tells_how_much_and_where(offset: int, data: bytes, damage: Damage) -> None:
    canary = Canary()
    canary.memory[offset : offset + len(data)] = data
    assert canary.damage() == damage
    assert Canary().damage() is None


def test_what_is_the_same_is_not_damaged() -> None:
    canary = Canary()
    canary.memory[100:200] = bytes(canary.memory[100:200])
    assert canary.damage() is None


def test_its_first_page_and_nothing_else_is_recognised() -> None:
    canary = Canary()
    view = memoryview(canary.memory)
    assert [is_canary(view[at : at + PAGE]) for at in range(0, SIZE, PAGE)] == [True] + [False] * 15
    canary.memory[PAGE - 1 : PAGE] = b"\xff"
    assert not is_canary(view[:PAGE])
    assert not is_canary(memoryview(MAGIC + bytes(PAGE - len(MAGIC))))


def test_its_memory_is_private_and_no_view_of_it_is_left_anywhere() -> None:
    canary = Canary()
    start = ctypes.addressof(ctypes.c_char.from_buffer(canary.memory))
    with open("/proc/self/maps") as maps:
        lines = [line.split() for line in maps]
    (rights,) = {words[1] for words in lines if in_range(start, words[0])}
    assert rights == "rw-p"
    assert canary.damage() is None
    canary.memory.close()  # raises while there is a view


def in_range(address: int, place: str) -> bool:
    start, end = (int(number, 16) for number in place.split("-"))
    return start <= address < end
