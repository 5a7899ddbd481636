"""The cable between a VM's emulated adapter and the switch: frames pass, or are lost and counted."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from drivers.switch import Switch
from partitions.cable import CablePort, SwitchCable
from vmbus_emu.device import PortInfo, Status
from vmbus_emu.loop import Loop

MAC, OTHER = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"


class Bench:
    """A switch with an open port, and an adapter's end on the same loop."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        switch = Switch("s0")
        self.port = switch.port("vm2.nic0", MAC)
        self.far = switch.port("far", OTHER)
        self.at_far: list[bytes] = []
        self.at_guest: list[bytes] = []
        self.far.connect(lambda frame: self.at_far.append(bytes(frame)) is None)
        self.adapter = CablePort(loop, PortInfo(MAC))
        self.adapter.connect(lambda frame: self.at_guest.append(bytes(frame)) is None)
        self.plug()

    def plug(self) -> None:
        near, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.raw = near.fileno()
        self.adapter.plug(near.detach())
        self.cable = SwitchCable(self.loop, self.port, end.detach())

    def turn(self) -> None:
        for _ in range(5):
            self.loop.step(0)


@pytest.fixture
def bench(loop: Loop) -> Iterator[Bench]:
    made = Bench(loop)
    yield made
    made.cable.close()
    made.turn()


def frame(to: bytes, source: bytes, size: int = 60) -> bytes:
    return (to + source + b"\x08\x00").ljust(size, b"c")


def test_frames_pass_both_ways(bench: Bench) -> None:
    assert bench.adapter.transmit(frame(OTHER, MAC)) is Status.OK
    bench.far.transmit(frame(MAC, OTHER, 1514))
    bench.turn()
    assert bench.at_far == [frame(OTHER, MAC)]
    assert bench.at_guest == [frame(MAC, OTHER, 1514)]
    stats = bench.adapter.stats()
    assert (stats.tx_frames, stats.rx_frames, stats.tx_drops, stats.rx_drops) == (1, 1, 0, 0)


def test_the_switch_takes_frames_from_its_ports_own_address_only(bench: Bench) -> None:
    bench.adapter.transmit(frame(OTHER, OTHER))
    bench.turn()
    assert (bench.at_far, bench.cable.spoofed) == ([], 1)


@pytest.mark.parametrize("size", [0, 13, 1515])
def test_what_is_no_frame_is_invalid(bench: Bench, size: int) -> None:
    assert bench.adapter.transmit(bytes(size)) is Status.INVALID


def test_without_a_cable_and_without_its_other_end_frames_are_lost_and_counted(bench: Bench, loop: Loop) -> None:
    loose = CablePort(loop, PortInfo(MAC))
    assert loose.transmit(frame(OTHER, MAC)) is Status.OK
    assert loose.stats().tx_drops == 1
    bench.cable.close()
    bench.turn()
    bench.adapter.transmit(frame(OTHER, MAC))
    bench.far.transmit(frame(MAC, OTHER))
    assert (bench.adapter.stats().tx_drops, bench.port.stats().rx_drops) == (1, 1)
    bench.plug()
    bench.adapter.transmit(frame(OTHER, MAC))
    bench.turn()
    assert bench.at_far == [frame(OTHER, MAC)]


def test_an_end_that_does_not_keep_up_loses_frames_and_blocks_nobody(bench: Bench) -> None:
    sent = 3000
    for _ in range(sent):
        bench.adapter.transmit(frame(OTHER, MAC, 1514))
    lost = bench.adapter.stats().tx_drops
    assert 0 < lost < sent
    assert bench.loop.run_until(lambda: len(bench.at_far) == sent - lost, 5)
