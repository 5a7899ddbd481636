"""A physical NIC between a switch and a cable: frames cross, wait for room, and move to another driver."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drivers import e1000, rtl8139
from drivers.switch import Switch
from partitions.uplinks import Uplinks
from vmbus_emu.hardware import Uplink
from vmbus_emu.loop import Loop

FAR = "00155d000009"


def frame(to: str, sender: str, size: int = 60) -> bytes:
    return bytes.fromhex(to + sender + "0800").ljust(size, b"x")


def described(name: str, model: str) -> dict[str, Any]:
    return {"name": name, "version": "1.0", "entry": f"drivers.{name}:DRIVER", "path": ""}


class Bench:
    """A switch with a VM's port and an uplink, and a socket at the far end of its cable."""

    def __init__(self, folder: Path, loop: Loop) -> None:
        self.loop = loop
        near, far = str(folder / "near"), str(folder / "far")
        self.far = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.far.bind(far)
        self.far.settimeout(5)
        self.near = near
        end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        end.bind(near)
        self.switch = Switch("s0")
        self.port = self.switch.port("vm1.nic0", bytes.fromhex("00155d000001"))
        self.received: list[bytes] = []
        self.port.connect(lambda data: bool(self.received.append(bytes(data))) or True)
        self.log: list[str] = []
        nics = {
            "nic0": {"model": "8086:100e", "switch": "s0", "driver": described("e1000", "8086:100e")},
            "nic1": {"model": "10ec:8139", "switch": "s0", "driver": None},
        }
        self.uplinks = Uplinks(loop, nics, {"nic0": (end.detach(), far)}, {"s0": self.switch}, self.log.append)

    def close(self) -> None:
        cable = self.uplinks._nics["nic0"].cable
        self.loop.unwatch(cable._socket.fileno())
        cable._socket.close()
        self.far.close()

    def send(self, data: bytes) -> None:
        self.far.sendto(data, self.near)


@pytest.fixture
def bench(tmp_path: Path, loop: Loop) -> Iterator[Bench]:
    made = Bench(tmp_path, loop)
    yield made
    made.close()


def test_a_frame_for_somebody_unknown_leaves_over_the_cable_and_his_answer_comes_back(bench: Bench) -> None:
    question = frame(FAR, "00155d000001")
    bench.port.transmit(question)
    assert bench.far.recv(2000) == question
    answer = frame("00155d000001", FAR)
    bench.send(answer)
    assert bench.loop.run_until(lambda: bool(bench.received), 5)
    assert bench.received == [answer]
    assert bench.switch.table()[bytes.fromhex(FAR)] == "hw.nic0"
    assert bench.uplinks.counters() == {"cable_out": 1, "cable_in": 1, "cable_lost": 0}


def test_what_does_not_come_from_the_far_end_is_dropped(bench: Bench, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.bind(str(tmp_path / "stranger"))
        stranger.sendto(frame("00155d000001", FAR), bench.near)
    bench.send(b"short")
    bench.send(frame("00155d000001", FAR))
    assert bench.loop.run_until(lambda: bool(bench.received), 5)
    assert len(bench.received) == 1
    assert bench.uplinks.counters()["cable_lost"] == 1


def test_nobody_at_the_far_end_is_a_lost_frame(bench: Bench, tmp_path: Path) -> None:
    os.unlink(tmp_path / "far")
    bench.port.transmit(frame(FAR, "00155d000001"))
    assert bench.uplinks.counters() == {"cable_out": 0, "cable_in": 0, "cable_lost": 1}


def test_frames_wait_for_room_and_leave_in_order_through_the_next_driver(bench: Bench) -> None:
    sent = [frame(FAR, "00155d000001") + bytes((number >> 8, number & 255)) for number in range(2000)]
    taken = []
    for one in sent:
        drops = bench.switch._ports["hw.nic0"].stats().rx_drops
        bench.port.transmit(one)
        if bench.switch._ports["hw.nic0"].stats().rx_drops == drops:
            taken.append(one)
    assert len(taken) < len(sent)   # the far socket's queue and 256 descriptors are full
    _, why = bench.uplinks.change("nic0", described("e1000", "8086:100e"))
    assert why == ""
    got: list[bytes] = []
    bench.far.settimeout(0)

    def all_there() -> bool:
        try:
            while True:
                got.append(bench.far.recv(2000))
        except BlockingIOError:
            return len(got) >= len(taken)

    assert bench.loop.run_until(all_there, 5)
    assert got == taken


def test_a_driver_that_does_not_fit_leaves_the_former_one(bench: Bench) -> None:
    for wrong in (
        described("rtl8139", "8086:100e"), {**described("e1000", ""), "entry": "drivers.nowhere:DRIVER"},
        {**described("e1000", ""), "entry": "drivers.e1000:LONGEST"},
    ):
        _, why = bench.uplinks.change("nic0", wrong)
        assert why.startswith("hw.nic0: driver ")
    bench.port.transmit(frame(FAR, "00155d000001"))
    assert bench.far.recv(2000) == frame(FAR, "00155d000001")


def test_a_nic_without_a_cable_may_have_no_driver_and_gets_one(bench: Bench) -> None:
    assert bench.log == []
    assert bench.uplinks.change("nic1", described("rtl8139", ""))[1] == ""
    assert bench.uplinks.store.driver("nic1").name == "rtl8139"


def test_models_differ_in_what_waits_and_how_long_a_frame_is() -> None:
    class Full:
        on_room: Any = None

        def send(self, data: bytes) -> bool:
            return False

    def most(uplink: Uplink) -> int:
        return sum(uplink.transmit(bytes(60)) for _ in range(1000))

    assert most(e1000.attach("8086:100e", Full(), lambda data: None)) == 256
    assert most(rtl8139.attach("10ec:8139", Full(), lambda data: None)) == 4
    assert e1000.attach("8086:100e", Full(), lambda data: None).transmit(bytes(9000))
    assert not rtl8139.attach("10ec:8139", Full(), lambda data: None).transmit(bytes(9000))
