"""The IDE controller register by register, and what its driver pays in accesses (protocol sheet 7)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from drivers.disk import NullDisk
from partitions.parent.guest_memory import GuestMemory
from partitions.parent.ide import IdeController
from tests.legacy import IdeBench
from vmbus_emu.device import BlockInfo, BlockRequest, BlockStats, Op, Status, fill
from vmbus_emu.loop import Loop
from vmbus_emu.protocol import ata

COMMAND, CONTROL, MASTER = 0x1F0, 0x3F6, 0xFFA0
STATUS, DEVICE = COMMAND + 7, COMMAND + 6
READY, WITH_DATA, BUSY = 0x50, 0x58, 0xC0
GPA = 0x10000
BLOCKS = 1 << 29


class SlowDisk:
    """Completes a request when told to; sector n of it reads as bytes of n."""

    def __init__(self, info: BlockInfo) -> None:
        self.info = info
        self.requests: list[BlockRequest] = []

    def submit(self, request: BlockRequest) -> None:
        self.requests.append(request)

    def complete(self, status: Status = Status.OK) -> None:
        request = self.requests.pop(0)
        if request.op is Op.READ and status is Status.OK:
            assert request.buffer is not None
            fill(request.buffer, b"".join(bytes((request.lba + n & 255,)) * 512 for n in range(request.blocks)))
        request.finish(status)

    def allocate(self, nbytes: int) -> memoryview:
        return memoryview(bytearray(nbytes))

    def stats(self) -> BlockStats:
        return BlockStats()


class Bench:
    """A controller with one slow disk, and 256 KiB of the guest's memory."""

    def __init__(self, drives: int = 1) -> None:
        self.disks = [SlowDisk(BlockInfo(BLOCKS, serial=f"s{number}")) for number in range(drives)]
        self.disk = self.disks[0]
        self.memory = bytearray(256 * 1024)
        self.interrupts: list[tuple[int, bool]] = []
        self.ide = IdeController(
            self.disks, GuestMemory(GPA, memoryview(self.memory)), lambda *what: self.interrupts.append(what)
        )

    def out(self, *pairs: tuple[int, int]) -> None:
        for port, value in pairs:
            self.ide.write(port, 1, value)

    def command(self, code: int, lba: int = 0, count: int = 1, device: int = 0xE0) -> None:
        self.out((DEVICE, device | lba >> 24 & 15), (COMMAND + 2, count & 255), (COMMAND + 3, lba & 255))
        self.out((COMMAND + 4, lba >> 8 & 255), (COMMAND + 5, lba >> 16 & 255), (STATUS, code))

    @property
    def status(self) -> int:
        return self.ide.read(CONTROL, 1)

    @property
    def error(self) -> int:
        return self.ide.read(COMMAND + 1, 1)

    def table(self, *entries: tuple[int, int, int], at: int = GPA) -> None:
        for index, entry in enumerate(entries):
            ata.PRD.pack_into(self.memory, at - GPA + 8 * index, *entry)
        self.ide.write(MASTER + 4, 4, at)


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- PIO ---------------------------------------------------------------------------------------------------------------


def test_a_read_gives_a_sector_at_a_time_with_an_interrupt_each(bench: Bench) -> None:
    bench.command(0x20, lba=0x0ABCDEF, count=2)
    assert bench.status == BUSY
    assert bench.interrupts == []
    (request,) = bench.disk.requests
    assert (request.op, request.lba, request.blocks) == (Op.READ, 0x0ABCDEF, 2)
    bench.disk.complete()
    for value in (0xEF, 0xF0):
        assert bench.interrupts.pop() == (14, True)
        assert bench.ide.read(STATUS, 1) == WITH_DATA
        assert bench.interrupts.pop() == (14, False)
        assert {bench.ide.read(COMMAND, 2) for _ in range(256)} == {value * 0x101}
    assert bench.status == READY
    assert bench.ide.read(COMMAND, 2) == 0
    assert bench.interrupts == []


def test_a_write_asks_for_the_first_sector_at_once_and_interrupts_after_each(bench: Bench) -> None:
    bench.command(0x30, lba=7, count=2)
    assert (bench.status, bench.interrupts) == (WITH_DATA, [])
    bench.ide.write_string(COMMAND, 2, b"ab" * 256)
    assert bench.status == BUSY
    assert bytes(bench.disk.requests[0].buffer) == b"ab" * 256  # type: ignore[arg-type]
    bench.disk.complete()
    assert (bench.status, bench.interrupts) == (WITH_DATA, [(14, True)])
    bench.ide.read(STATUS, 1)
    for _ in range(128):
        bench.ide.write(COMMAND, 4, 0x64636261)
    assert (bench.disk.requests[0].lba, bytes(bench.disk.requests[0].buffer)) == (8, b"abcd" * 128)  # type: ignore
    bench.disk.complete()
    assert (bench.status, bench.interrupts[-1]) == (READY, (14, True))


def test_an_extended_read_takes_two_bytes_of_each_register(bench: Bench) -> None:
    for port, high, low in ((2, 0x00, 0x03), (3, 0x04, 0x01), (4, 0x05, 0x02), (5, 0x06, 0x03)):
        bench.out((COMMAND + port, high), (COMMAND + port, low))
    bench.out((DEVICE, 0xE0))
    assert bench.ide.read(COMMAND + 3, 1) == 0x01
    bench.out((CONTROL, 0x80))
    assert bench.ide.read(COMMAND + 3, 1) == 0x04
    bench.out((STATUS, 0x24))
    assert bench.ide.read(COMMAND + 3, 1) == 0x01, "a command ends the view of the older bytes"
    (request,) = bench.disk.requests
    assert (request.lba, request.blocks) == (0x060504030201, 3)


@pytest.mark.parametrize(("code", "count", "sectors"), [(0x20, 0, 256), (0x20, 255, 255), (0x24, 0, 256)])
def test_no_sectors_are_as_many_as_can_be_and_are_read_in_pieces(
    bench: Bench, code: int, count: int, sectors: int
) -> None:
    bench.command(code, count=count)
    assert bench.disk.requests[0].blocks == sectors


def test_identify_needs_no_medium(bench: Bench) -> None:
    bench.command(0xEC)
    raw = bench.ide.read_string(COMMAND, 2, 256)
    identity = ata.decode_identity(raw)
    assert identity is not None
    assert (identity.block_count, identity.serial) == (BLOCKS, "s0")
    assert (bench.disk.requests, bench.status) == ([], READY)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "status", "error", "seen"), [
    (0x20, Status.OUT_OF_RANGE, 0x10, 0x51),
    (0x20, Status.IO_ERROR, 0x40, 0x51),
    (0x20, Status.GONE, 0x04, 0x71),
    (0xE7, Status.IO_ERROR, 0x04, 0x71),
    (0xE5, Status.IO_ERROR, 0x04, 0x71),
])
def test_what_the_medium_says_stands_in_status_and_error(
    bench: Bench, code: int, status: Status, error: int, seen: int
) -> None:
    bench.command(code)
    bench.disk.complete(status)
    assert (bench.status, bench.error, bench.interrupts) == (seen, error, [(14, True)])


def test_a_write_protected_medium_says_so_with_the_bit_of_a_write(bench: Bench) -> None:
    bench.command(0x30)
    bench.ide.write_string(COMMAND, 2, bytes(512))
    bench.disk.complete(Status.READ_ONLY)
    assert (bench.status, bench.error) == (0x51, 0x40)


@pytest.mark.parametrize(("code", "device"), [(0xA0, 0xE0), (0x00, 0xE0), (0xEF, 0xE0), (0x20, 0xA0), (0x06, 0xE0)])
def test_what_it_cannot_do_is_aborted(bench: Bench, code: int, device: int) -> None:
    bench.command(code, device=device, count=9)
    assert (bench.status, bench.error, bench.disk.requests) == (0x51, 0x04, [])


# -- DMA ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("master_first", [False, True])
def test_dma_goes_straight_into_the_guests_memory(bench: Bench, master_first: bool) -> None:
    bench.table((GPA + 0x1000, 512, 0), (GPA + 0x4000, 512, 0x8000))
    steps = [lambda: bench.command(0xC8, lba=3, count=2), lambda: bench.out((MASTER, 0x09))]
    for step in steps[::-1] if master_first else steps:
        step()
    assert bench.status == BUSY
    bench.disk.complete()
    assert bench.memory[0x1000:0x1200] == b"\3" * 512
    assert bench.memory[0x4000:0x4200] == b"\4" * 512
    assert bench.interrupts == [(14, True)]
    assert bench.ide.read(MASTER + 2, 1) == 0x04
    bench.out((MASTER + 2, 0x64))
    assert bench.ide.read(MASTER + 2, 1) == 0x60, "the interrupt is cleared by writing 1; two bits are the software's"
    assert bench.ide.read(STATUS, 1) == READY


def test_dma_out_of_the_guests_memory(bench: Bench) -> None:
    bench.memory[0x2000:0x2200] = b"w" * 512
    bench.table((GPA + 0x2000, 512, 0x8000))
    bench.command(0xCA, lba=9)
    bench.out((MASTER, 0x01))
    assert bytes(bench.disk.requests[0].buffer) == b"w" * 512  # type: ignore[arg-type]


def test_a_table_longer_than_the_transfer_leaves_the_master_active(bench: Bench) -> None:
    bench.table((GPA + 0x1000, 0, 0x8000))                      # 64 KiB
    bench.command(0xC8)
    bench.out((MASTER, 0x09))
    bench.disk.complete()
    assert bench.ide.read(MASTER + 2, 1) == 0x05


@pytest.mark.parametrize("entries", [
    [(GPA + 0x1000, 512, 0x8000)],                              # too short
    [(GPA + 0x1000, 512, 0), (GPA - 512, 512, 0x8000)],         # before the memory
    [(GPA + 256 * 1024 - 511, 1024, 0x8000)],                   # beyond it
    [(0xFFFFFFFE, 0, 0x8000)],
])
def test_a_table_that_does_not_do_is_an_error_and_nothing_is_moved(
    bench: Bench, entries: list[tuple[int, int, int]]
) -> None:
    bench.table(*entries)
    bench.command(0xC8, count=2)
    bench.out((MASTER, 0x09))
    assert (bench.disk.requests, bench.status, bench.error) == ([], 0x51, 0x04)
    assert bench.ide.read(MASTER + 2, 1) & 0x03 == 0x02


@pytest.mark.parametrize("place", [GPA + 256 * 1024 - 8, GPA + 256 * 1024, 0, 0xFFFFFFFC])
def test_a_table_that_leads_out_of_memory_ends(bench: Bench, place: int) -> None:
    bench.ide.write(MASTER + 4, 4, place)
    bench.command(0xC8, count=0)
    bench.out((MASTER, 0x09))
    assert bench.status == 0x51


def test_a_master_for_the_other_direction_moves_nothing(bench: Bench) -> None:
    bench.table((GPA + 0x1000, 512, 0x8000))
    bench.command(0xC8)
    bench.out((MASTER, 0x01))
    assert (bench.disk.requests, bench.status) == ([], 0x51)


def test_trim_unmaps_its_ranges_one_after_the_other(bench: Bench) -> None:
    for index, (lba, count) in enumerate([(5, 3), (0, 0), (1 << 40, 65535)]):
        ata.TRIM_RANGE.pack_into(bench.memory, 0x1000 + 8 * index, lba | count << 48)
    bench.table((GPA + 0x1000, 512, 0x8000))
    bench.out((COMMAND + 1, 1))
    bench.command(0x06)
    bench.out((MASTER, 0x01))
    for lba, count in ((5, 3), (1 << 40, 65535)):
        (request,) = bench.disk.requests
        assert (request.op, request.lba, request.blocks) == (Op.UNMAP, lba, count)
        bench.disk.complete()
    assert (bench.status, bench.disk.requests) == (READY, [])


# -- who is meant, and when --------------------------------------------------------------------------------------------


def test_selecting_another_drive_during_a_command_changes_nothing_about_it() -> None:
    bench = Bench(drives=2)
    bench.command(0x20, lba=5)
    bench.out((DEVICE, 0xF0))                                   # while it is busy: lost
    bench.disk.complete()
    bench.out((DEVICE, 0xF0))
    assert bench.ide.read_string(COMMAND, 2, 256) == b"\5" * 512
    bench.command(0x30, device=0xF0)
    bench.out((DEVICE, 0xE0))
    bench.ide.write_string(COMMAND, 2, bytes(512))
    assert (bench.disks[0].requests, len(bench.disks[1].requests)) == ([], 1)


def test_a_place_without_a_drive_reads_as_zeros_and_takes_no_command(bench: Bench) -> None:
    bench.command(0xEC, device=0xF0)
    assert (bench.ide.read(STATUS, 1), bench.interrupts) == (0, [])
    assert bench.ide.read(0x177, 1) == 0


def test_no_interrupt_when_it_is_masked(bench: Bench) -> None:
    bench.out((CONTROL, 0x02))
    bench.command(0xEC)
    assert (bench.interrupts, bench.ide.read(MASTER + 2, 1)) == ([], 0)
    bench.out((CONTROL, 0))
    assert bench.interrupts == [(14, True)]


def test_a_reset_waits_for_what_the_medium_is_doing(bench: Bench) -> None:
    bench.table((GPA + 0x1000, 512, 0x8000))
    bench.command(0xC8)
    bench.out((MASTER, 0x09), (CONTROL, 0x04), (CONTROL, 0x00))
    assert bench.status == 0x80
    bench.command(0xEC)
    bench.disk.complete()
    assert (bench.status, bench.error, bench.interrupts) == (READY, 1, [])
    bench.command(0xEC)
    assert bench.status == WITH_DATA


# -- the driver --------------------------------------------------------------------------------------------------------


@pytest.fixture
def driven(loop: Loop) -> Iterator[IdeBench]:
    made = IdeBench(loop, [NullDisk(BlockInfo(BLOCKS, serial="d"))])
    yield made
    made.close()


@pytest.mark.parametrize(("mode", "op", "lba", "accesses"), [
    ("words", Op.READ, 0, 2064),
    ("string", Op.READ, 0, 24),
    ("dma", Op.READ, 0, 26),
    ("dma", Op.READ, (1 << 28) - 1, 31),                        # LBA48 from here on
    ("words", Op.WRITE, 0, 2065),                               # its end is one more look at the status
    ("string", Op.WRITE, 0, 25),
    ("dma", Op.WRITE, 0, 26),
])
def test_four_kib_cost_the_accesses_that_the_sheet_counts(
    loop: Loop, driven: IdeBench, mode: str, op: Op, lba: int, accesses: int
) -> None:
    driven.disk.mode = mode
    request = BlockRequest(op, lba, 8, bytearray(4096))
    before = driven.ports.accesses
    driven.disk.submit(request)
    assert loop.run_until(lambda: request.status is not None, 5)
    assert request.status is Status.OK
    assert driven.ports.accesses - before == accesses


def test_word_by_word_moves_the_same_bytes(loop: Loop) -> None:
    slow = SlowDisk(BlockInfo(1000))
    bench = IdeBench(loop, [slow])
    bench.disk.mode = "words"
    buffer = bytearray(1024)
    request = BlockRequest(Op.READ, 6, 2, buffer)
    bench.disk.submit(request)
    assert loop.run_until(lambda: bool(slow.requests), 5)
    slow.complete()
    assert loop.run_until(lambda: request.status is not None, 5)
    assert bytes(buffer) == b"\6" * 512 + b"\7" * 512
    bench.close()


def test_four_drives_on_two_channels_are_four_disks(loop: Loop) -> None:
    bench = IdeBench(loop, [NullDisk(BlockInfo(100 + number, serial=f"d{number}")) for number in range(4)])
    assert [(name, disk.info.block_count, disk.info.serial) for name, disk in bench.disks.items()] == [
        (f"disk{number}", 100 + number, f"d{number}") for number in range(4)
    ]
    requests = [BlockRequest(Op.READ, 0, 8, bytearray(4096)) for _ in range(8)]
    for index, request in enumerate(requests):
        bench.disks[f"disk{index % 4}"].submit(request)
    assert loop.run_until(lambda: all(request.status is Status.OK for request in requests), 5)
    bench.close()


def test_a_driver_that_reaches_no_drive_says_so(loop: Loop) -> None:
    bench = IdeBench(loop, [])
    assert bench.disks == {}
    bench.close()


def test_dma_in_place_and_by_the_bounce_buffer(loop: Loop) -> None:
    slow = SlowDisk(BlockInfo(1000))
    bench = IdeBench(loop, [slow])
    for buffer in (bench.disk.allocate(4096), memoryview(bytearray(4096))):
        request = BlockRequest(Op.READ, 1, 8, buffer)
        bench.disk.submit(request)
        assert loop.run_until(lambda: bool(slow.requests), 5)
        slow.complete()
        assert loop.run_until(lambda request=request: request.status is not None, 5)  # type: ignore[misc]
        assert bytes(buffer[:513]) == b"\1" * 512 + b"\2"
    bench.close()
