"""Random accesses to every register of the emulated devices, over memory that is random too. Nothing may raise, and no
byte outside of the guest's memory may change.

A case is a sequence of :data:`ACCESSES` accesses, so ``--fuzz-cases`` or ``VMBUS_EMU_FUZZ_CASES`` of 4,100,000 makes
more than a million of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from drivers.disk import NullDisk
from drivers.switch import Switch
from partitions.parent.chipset import Chipset
from partitions.parent.guest_memory import GuestMemory
from vmbus_emu.device import BlockInfo, BlockRequest, Status
from vmbus_emu.protocol import ata, tulip

Fuzz = Callable[[int], Iterator[int]]

ACCESSES = 50
GPA, SIZE = 0x100000, 0x10000
MARGIN = 4096
MAC, FAR = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"
PORTS = [port for first, last in Chipset.ports(2) for port in range(first, last + 1)]
#: Weighted: where commands are given, and where they are started.
HOT = [0x1F7, 0x1F7, 0x1F6, 0x1F2, 0x1F0, 0x1F0, 0x3F6, 0xFFA0, 0xFFA4, 0xEC00, 0xEC08, 0xEC18, 0xEC20, 0xEC28, 0xEC30,
       0xEC38, 0xEC48]
COMMANDS = [int(command) for command in ata.Command]


class LazyDisk(NullDisk):
    """Completes some requests at once, some later, and some with an error."""

    def __init__(self, info: BlockInfo, rng: random.Random) -> None:
        super().__init__(info)
        self._rng = rng
        self.later: list[BlockRequest] = []

    def submit(self, request: BlockRequest) -> None:
        choice = self._rng.random()
        if choice < 0.6:
            super().submit(request)
        elif choice < 0.8:
            self.later.append(request)
        else:
            request.finish(self._rng.choice([status for status in Status if status is not Status.OK]))


def random_memory(rng: random.Random) -> bytearray:
    """Descriptors and PRD tables that are nearly sensible, in front of noise."""
    memory = bytearray(rng.randbytes(SIZE + 2 * MARGIN))
    for place in range(MARGIN, MARGIN + 1024, 16):
        address = rng.choice((GPA + rng.randrange(SIZE), rng.randrange(1 << 32), 0))
        if rng.random() < 0.5:
            tulip.DESCRIPTOR.pack_into(memory, place, rng.choice((tulip.OWN, tulip.OWN, 0)),
                                       rng.randrange(1 << 32), address, GPA + rng.randrange(1024))
        else:
            ata.PRD.pack_into(memory, place, address, rng.choice((0, 512, rng.randrange(1 << 16))),
                              rng.choice((0, 0x8000)))
    return memory


def random_value(rng: random.Random, port: int) -> int:
    if port in (0x1F7, 0x177) and rng.random() < 0.9:
        return rng.choice(COMMANDS)
    return rng.choice((0, 1, 9, 0xE0, 0xF0, 0x40, 0xFFFFFFFF, GPA, GPA + 16 * rng.randrange(64), 1 << 13 | 2,
                       rng.randrange(1 << 32)))


def test_no_sequence_of_accesses_raises_or_leaves_the_guests_memory(fuzz: Fuzz) -> None:
    for case in fuzz(1000):
        rng = random.Random(case)
        memory = random_memory(rng)
        before, after = bytes(memory[:MARGIN]), bytes(memory[-MARGIN:])
        switch, interrupts = Switch("s"), []
        far = switch.port("far", FAR)
        disks = [LazyDisk(BlockInfo(rng.choice((1, 1000, 1 << 40)), read_only=rng.random() < 0.2), rng)
                 for _ in range(rng.randrange(5))]
        nics = [switch.port(f"nic{number}", MAC) for number in range(2)]
        chipset = Chipset(disks, nics, GuestMemory(GPA, memoryview(memory)[MARGIN:-MARGIN]), interrupts.append)
        for _ in range(ACCESSES):
            port = rng.choice(HOT if rng.random() < 0.7 else PORTS if rng.random() < 0.95 else range(1 << 16))
            size = rng.choice((1, 1, 2, 4, 4, 3))
            choice = rng.random()
            if choice < 0.25:
                assert 0 <= chipset.read(port, size) < 1 << 32
            elif choice < 0.8:
                chipset.write(port, size, random_value(rng, port))
            elif choice < 0.95:
                count = rng.choice((0, 1, 256, 512, 70_000, rng.randrange(4096)))
                move = rng.choice((chipset.read_string, chipset.write_string))
                assert move(port, size, count, rng.choice((GPA, GPA + rng.randrange(SIZE), rng.randrange(1 << 64)))) \
                    in (0, count)
            else:
                far.transmit((rng.choice((MAC, tulip.BROADCAST)) + FAR).ljust(rng.choice((14, 60, 1514)), b"f"))
            for disk in disks:
                if disk.later and rng.random() < 0.3:
                    disk.later.pop(0).finish(rng.choice((Status.OK, Status.IO_ERROR)))
        assert memory[:MARGIN] == before
        assert memory[-MARGIN:] == after


@pytest.mark.parametrize("length", [0, 1, 191, 192, 193])
def test_setup_frames_of_any_length_are_read_or_none(length: int) -> None:
    assert (tulip.decode_setup(bytes(length)) is None) == (length != 192)


def test_identities_of_any_bytes_are_read_or_none(fuzz: Fuzz) -> None:
    good = ata.encode_identity(1000, "fuzz", False)
    for case in fuzz(500):
        rng = random.Random(case)
        raw = bytearray(good)
        for _ in range(rng.randrange(4)):
            raw[rng.randrange(512)] = rng.randrange(256)
        raw[511] = -sum(raw[:511]) & 0xFF
        ata.decode_identity(bytes(raw[: rng.choice((512, 512, rng.randrange(513)))]))
