"""The legacy network adapter register by register, with its rings, and what its driver pays in accesses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from drivers.switch import Switch
from partitions.child.tulip import TX_RING
from partitions.parent.guest_memory import GuestMemory
from partitions.parent.tulip import Tulip
from tests.legacy import NicBench
from vmbus_emu.device import Status
from vmbus_emu.loop import Loop
from vmbus_emu.protocol import tulip

MAC, OTHER = b"\x02\x15\x5d\x00\x00\x01", b"\x02\x15\x5d\x00\x00\x02"
GPA, SIZE = 0x10000, 0x10000
RX, TX, DATA = GPA, GPA + 0x400, GPA + 0x1000
OWN = 1 << 31


class Bench:
    """An adapter on a switch whose other port is ours."""

    def __init__(self) -> None:
        switch = Switch("s0")
        self.memory = bytearray(SIZE)
        self.lines: list[bool] = []
        self.behind = switch.port("vm1.nic0", MAC)
        self.far = switch.port("far", OTHER)
        self.arrived: list[bytes] = []
        self.far.connect(lambda frame: self.arrived.append(bytes(frame)) is None)
        self.nic = Tulip(self.behind, GuestMemory(GPA, memoryview(self.memory)), self.lines.append)

    def csr(self, number: int, value: int) -> None:
        self.nic.write(number * 8, 4, value)

    def get(self, number: int) -> int:
        return self.nic.read(number * 8, 4)

    def describe(self, place: int, *words: int) -> None:
        tulip.DESCRIPTOR.pack_into(self.memory, place - GPA, *words)

    def status_of(self, place: int) -> int:
        return int.from_bytes(self.memory[place - GPA : place - GPA + 4], "little")

    def put(self, place: int, data: bytes) -> None:
        self.memory[place - GPA : place - GPA + len(data)] = data

    def up(self) -> None:
        """Filter set, both halves started, one receive buffer of 2,047 bytes, all interrupts on."""
        self.put(DATA, tulip.encode_setup([MAC, tulip.BROADCAST]))
        self.describe(TX, OWN, 192 | tulip.TX_SETUP | tulip.END_OF_RING, DATA, 0)
        self.describe(RX, OWN, 2047 | tulip.END_OF_RING, DATA + 0x1000, 0)
        self.csr(3, RX)
        self.csr(4, TX)
        self.csr(6, tulip.MODE_TX)
        self.csr(5, 0xFFFFFFFF)
        self.csr(7, tulip.NORMAL | tulip.ABNORMAL | tulip.TX_DONE | tulip.RX_DONE | tulip.RX_NO_BUFFER)
        self.csr(6, tulip.MODE_TX | tulip.MODE_RX)

    def send(self, *pieces: bytes, control: int = 0) -> None:
        """A frame out of one descriptor per piece, the last one the ring's end."""
        place = DATA + 0x3000
        for index, piece in enumerate(pieces):
            self.put(place, piece)
            flags = (tulip.TX_FIRST if not index else 0) | (
                tulip.TX_LAST | tulip.END_OF_RING if index == len(pieces) - 1 else 0
            )
            self.describe(TX + 16 * index, OWN, len(piece) | flags | control, place, 0)
            place += len(piece)
        self.csr(1, 1)


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.up()
    return made


def frame(to: bytes = OTHER, source: bytes = MAC, size: int = 64) -> bytes:
    return (to + source + b"\x08\x00").ljust(size, b"x")


def test_a_frame_is_gathered_from_its_descriptors_and_they_come_back(bench: Bench) -> None:
    sent = frame(size=200)
    bench.send(sent[:50], sent[50:60], sent[60:])
    assert bench.arrived == [sent]
    assert [bench.status_of(TX + 16 * index) for index in range(3)] == [0, 0, 0]
    assert bench.lines == []


def test_two_buffers_of_one_descriptor_and_a_chain(bench: Bench) -> None:
    sent = frame(size=100)
    bench.put(DATA, sent)
    bench.describe(TX, OWN, tulip.TX_FIRST | 40 | 10 << 11, DATA, DATA + 40)
    bench.describe(TX + 16, OWN, tulip.TX_LAST | tulip.CHAINED | 50, DATA + 50, TX)
    bench.csr(1, 1)
    assert bench.arrived == [sent]
    bench.describe(TX, OWN, tulip.TX_FIRST | tulip.TX_LAST | 100, DATA, 0)
    bench.csr(1, 1)
    assert bench.arrived == [sent, sent], "the chain led back to the first"


def test_an_interrupt_tells_of_the_frames_that_asked_for_it(bench: Bench) -> None:
    bench.send(frame(), control=tulip.TX_INTERRUPT)
    assert bench.lines == [True]
    assert bench.get(5) & (tulip.NORMAL | tulip.TX_DONE) == tulip.NORMAL | tulip.TX_DONE
    bench.csr(5, tulip.TX_DONE)
    assert bench.lines == [True, False]
    assert not bench.get(5) & (tulip.NORMAL | tulip.TX_DONE)


def test_a_frame_that_arrives_is_in_the_buffer_with_its_length(bench: Bench) -> None:
    sent = frame(MAC, OTHER, 77)
    assert bench.far.transmit(sent) is Status.OK
    assert bench.memory[0x2000 : 0x2000 + 77] == sent
    status = bench.status_of(RX)
    assert status == tulip.RX_FIRST | tulip.RX_LAST | (77 + 4) << 16
    assert bench.lines == [True]
    assert bench.behind.stats().rx_frames == 1


def test_a_frame_is_spread_over_descriptors_and_the_first_comes_back_last(bench: Bench) -> None:
    for index in range(3):
        end = tulip.END_OF_RING if index == 2 else 0
        bench.describe(RX + 16 * index, OWN, 20 | 20 << 11 | end, DATA + 100 * index, DATA + 100 * index + 50)
    sent = frame(tulip.BROADCAST, OTHER, 90)
    bench.far.transmit(sent)
    data = bytes(bench.memory[0x1000:0x1000 + 300])
    assert data[:20] + data[50:70] + data[100:120] + data[150:170] + data[200:210] == sent
    statuses = [bench.status_of(RX + 16 * index) for index in range(3)]
    assert statuses == [tulip.RX_FIRST | tulip.RX_MULTICAST, tulip.RX_MULTICAST,
                        tulip.RX_LAST | tulip.RX_MULTICAST | 94 << 16]


def test_without_a_free_descriptor_a_frame_is_missed_and_counted(bench: Bench) -> None:
    bench.far.transmit(frame(MAC, OTHER))
    bench.csr(5, 0xFFFFFFFF)
    bench.far.transmit(frame(MAC, OTHER))
    assert bench.behind.stats().rx_drops == 1
    assert bench.get(5) & tulip.RX_NO_BUFFER
    assert (bench.get(8), bench.get(8)) == (1, 0), "reading clears it"
    bench.describe(RX, OWN, 2047 | tulip.END_OF_RING, DATA + 0x1000, 0)
    bench.far.transmit(frame(MAC, OTHER))
    assert bench.behind.stats().rx_frames == 2


def test_the_filter_takes_its_addresses_and_promiscuity_takes_all(bench: Bench) -> None:
    bench.far.transmit(frame(b"\x02\0\0\0\0\x09", OTHER))
    bench.far.transmit(frame(b"\x01\0\x5e\0\0\x01", OTHER))
    assert bench.status_of(RX) == OWN
    bench.csr(6, tulip.MODE_TX | tulip.MODE_RX | tulip.MODE_ALL_MULTICAST)
    bench.far.transmit(frame(b"\x01\0\x5e\0\0\x01", OTHER))
    assert bench.status_of(RX) & tulip.RX_MULTICAST
    bench.describe(RX, OWN, 2047 | tulip.END_OF_RING, DATA + 0x1000, 0)
    bench.csr(6, tulip.MODE_TX | tulip.MODE_RX | tulip.MODE_PROMISCUOUS)
    bench.far.transmit(frame(b"\x02\0\0\0\0\x09", OTHER))
    assert bench.status_of(RX) & OWN == 0


@pytest.mark.parametrize("sent", [frame(source=OTHER), frame()[:10], frame(size=1515), b""])
def test_what_is_no_frame_of_this_adapter_is_refused_and_counted(bench: Bench, sent: bytes) -> None:
    bench.send(sent)
    assert bench.arrived == []
    assert bench.nic.refused == 1
    assert bench.status_of(TX) == 0


@pytest.mark.parametrize("place", [GPA - 16, GPA + SIZE - 8, 0xFFFFFFF0])
@pytest.mark.parametrize("csr", [3, 4])
def test_a_ring_outside_of_memory_stops_its_half(bench: Bench, csr: int, place: int) -> None:
    bench.csr(7, tulip.ABNORMAL | tulip.BUS_ERROR)
    bench.csr(csr, place)
    bench.csr(1, 1)
    bench.far.transmit(frame(MAC, OTHER))
    assert bench.get(5) & tulip.BUS_ERROR
    assert bench.lines[-1] is True
    half = tulip.MODE_RX if csr == 3 else tulip.MODE_TX
    assert bench.get(6) & (tulip.MODE_RX | tulip.MODE_TX) == (tulip.MODE_RX | tulip.MODE_TX) & ~half


def test_a_ring_that_never_ends_is_left(bench: Bench) -> None:
    bench.describe(TX, OWN, tulip.CHAINED | 100, DATA, TX)

    def give_again(place: int) -> None:
        bench.describe(TX, OWN, tulip.CHAINED | 100, DATA, TX)

    bench.nic._give_back = lambda descriptor, status: give_again(TX)  # type: ignore[method-assign]  # as a guest's CPU
    bench.csr(1, 1)
    assert bench.status_of(TX) == OWN


def test_what_is_left_after_an_acknowledgement_interrupts_again(bench: Bench) -> None:
    bench.send(frame(), control=tulip.TX_INTERRUPT)
    bench.far.transmit(frame(MAC, OTHER))
    assert bench.lines == [True]
    bench.csr(5, tulip.TX_DONE)
    assert bench.lines == [True, True]


def test_a_reset_forgets_all_but_the_address(bench: Bench) -> None:
    bench.csr(0, 1)
    assert [bench.get(number) for number in (0, 3, 5, 6, 7)] == [0xFE000000, 0, 0, 0x32000000, 0]
    assert bench.far.transmit(frame(MAC, OTHER)) is Status.OK
    assert bench.behind.stats().rx_drops == 1


def test_parts_of_registers_can_be_read_and_not_written(bench: Bench) -> None:
    assert bench.nic.read(3 * 8, 2) == RX & 0xFFFF
    assert bench.nic.read(3 * 8 + 2, 2) == RX >> 16
    assert bench.nic.read(3 * 8 + 4, 4) == 0
    bench.nic.write(3 * 8, 2, 0)
    assert bench.get(3) == RX


# -- the driver --------------------------------------------------------------------------------------------------------


@pytest.fixture
def driven(loop: Loop) -> Iterator[tuple[NicBench, Switch]]:
    switch = Switch("s0")
    made = NicBench(loop, switch.port("vm1.nic0", MAC, 4000), print)
    yield made, switch
    made.close()


def test_the_driver_reads_address_and_mtu_out_of_the_rom(driven: tuple[NicBench, Switch]) -> None:
    assert (driven[0].nic.info.mac, driven[0].nic.info.mtu) == (MAC, 4000)


def test_a_frame_out_costs_one_access_and_a_frame_in_two(loop: Loop, driven: tuple[NicBench, Switch]) -> None:
    bench, switch = driven
    far, arrived, kept = switch.port("far", OTHER), [], []
    far.connect(lambda data: arrived.append(bytes(data)) is None)
    bench.nic.connect(lambda data: kept.append(bytes(data)) is None)
    before = bench.ports.accesses
    bench.nic.transmit(frame())
    assert loop.run_until(lambda: bool(arrived), 5)
    assert bench.ports.accesses - before == 1
    far.transmit(frame(MAC, OTHER))
    assert loop.run_until(lambda: bool(kept), 5)
    loop.step(0)
    assert bench.ports.accesses - before == 3
    assert (arrived, kept) == ([frame()], [frame(MAC, OTHER)])


def test_what_the_vm_had_queued_before_it_died_is_not_sent_in_its_next_life(
    loop: Loop, driven: tuple[NicBench, Switch]
) -> None:
    bench, switch = driven
    arrived: list[bytes] = []
    switch.port("far", OTHER).connect(lambda data: arrived.append(bytes(data)) is None)
    bench.chipset.write(tulip.BASE_PORT + tulip.CSR_MODE * tulip.CSR_STRIDE, 4, 0)     # so what is queued stays there
    for _ in range(6):
        bench.nic.transmit(frame(size=70))
    assert loop.run_until(lambda: not bench.nic._telling, 5)    # told, and it sends nothing
    bench.boot(loop, print)
    sent = [frame(size=100 + index) for index in range(2 * TX_RING)]
    for count, one in enumerate(sent, 1):
        bench.nic.transmit(one)
        assert loop.run_until(lambda count=count: len(arrived) >= count, 5)
    assert loop.run_until(lambda: not (bench.nic._telling or bench.nic._serving), 5)
    assert arrived == sent
