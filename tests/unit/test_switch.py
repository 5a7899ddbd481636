"""The virtual switch and the loopback card: where do frames go, what is counted, and can delivery recurse?"""

import pytest

from drivers import switch as switch_module
from drivers.nic import LoopbackNic
from drivers.switch import Switch
from vmbus_emu.device import Status

ALL = b"\xff" * 6


def mac(number):
    return bytes((0x02, 0, 0, 0, number >> 8, number & 255))


def frame(to, source, payload=b"data"):
    return to + source + b"\x08\x00" + payload


class Station:
    """Plugs into a port and keeps what arrives."""

    def __init__(self, port, accept=True):
        self.port, self.accept, self.seen = port, accept, []
        port.connect(self.receive)

    def receive(self, data):
        self.seen.append(bytes(data))
        return self.accept


@pytest.fixture
def switch():
    return Switch("s0")


@pytest.fixture
def stations(switch):
    return [Station(switch.port(f"p{n}", mac(n))) for n in range(4)]


def test_an_unknown_address_is_flooded_to_all_but_the_sender(stations):
    sent = frame(mac(3), mac(0))
    assert stations[0].port.transmit(sent) is Status.OK
    assert [len(one.seen) for one in stations] == [0, 1, 1, 1]
    assert stations[1].seen == [sent]


def test_a_learned_address_gets_its_frames_alone(switch, stations):
    stations[3].port.transmit(frame(ALL, mac(3)))
    stations[0].port.transmit(frame(mac(3), mac(0)))
    assert [len(one.seen) for one in stations] == [1, 1, 1, 1]
    assert switch.table() == {mac(3): "p3", mac(0): "p0"}


def test_broadcast_and_multicast_are_flooded_even_when_used_as_a_source(switch, stations):
    stations[0].port.transmit(frame(b"\x01\0\x5e\0\0\1", ALL))
    assert [len(one.seen) for one in stations] == [0, 1, 1, 1]
    assert switch.table() == {}


def test_an_address_that_moved_is_followed(switch, stations):
    stations[0].port.transmit(frame(ALL, mac(9)))
    stations[1].port.transmit(frame(ALL, mac(9)))
    assert switch.table()[mac(9)] == "p1"


def test_a_frame_for_the_ingress_port_goes_nowhere(stations):
    stations[0].port.transmit(frame(ALL, mac(9)))
    stations[0].port.transmit(frame(mac(9), mac(0)))
    assert [len(one.seen) for one in stations] == [0, 1, 1, 1]


def test_a_removed_port_is_forgotten_and_says_gone(switch, stations):
    stations[3].port.transmit(frame(ALL, mac(3)))
    switch.remove(stations[3].port)
    switch.remove(stations[3].port)
    assert stations[3].port.transmit(frame(ALL, mac(3))) is Status.GONE
    assert switch.table() == {}
    stations[0].port.transmit(frame(mac(3), mac(0)))
    assert [len(one.seen) for one in stations] == [1, 2, 2, 0]
    switch.port("p3", mac(3))  # the name is free again


def test_removing_the_old_port_of_a_name_leaves_the_new_one(switch):
    old = switch.port("x", mac(1))
    switch.remove(old)
    new = switch.port("x", mac(1))
    switch.remove(old)
    assert new.transmit(frame(ALL, mac(1))) is Status.OK


def test_the_table_is_bounded_and_forgets_the_oldest(switch, stations, monkeypatch):
    monkeypatch.setattr(switch_module, "TABLE_SIZE", 3)
    for number in (10, 11, 12, 13):
        stations[0].port.transmit(frame(ALL, mac(number)))
    assert list(switch.table()) == [mac(11), mac(12), mac(13)]


@pytest.mark.parametrize("size", [0, 13, 1515, 70000])
def test_what_is_no_frame_of_the_port_is_invalid(stations, size):
    assert stations[0].port.transmit(bytes(size)) is Status.INVALID
    assert not any(one.seen for one in stations[1:])


def test_drops_are_counted_where_the_frame_could_not_be_taken(switch, stations):
    stations[1].accept = False
    idle = switch.port("idle", mac(7))
    small = switch.port("small", mac(8), mtu=50)
    small.connect(lambda data: True)
    stations[0].port.transmit(frame(ALL, mac(0), bytes(100)))
    assert stations[1].port.stats().rx_drops == 1
    assert idle.stats().rx_drops == 1
    assert small.stats().rx_drops == 1
    assert stations[2].port.stats().rx_frames == 1
    assert stations[2].port.stats().rx_bytes == 114
    assert stations[0].port.stats().tx_frames == 1
    assert stations[0].port.stats().tx_bytes == 114


def test_stations_that_answer_each_other_for_ever_cost_no_stack(stations):
    rounds = 0

    def answer(port, to, source):
        def receive(data):
            nonlocal rounds
            rounds += 1
            if rounds < 20_000:
                port.transmit(frame(to, source))
            return True
        return receive

    stations[0].port.connect(answer(stations[0].port, mac(1), mac(0)))
    stations[1].port.connect(answer(stations[1].port, mac(0), mac(1)))
    stations[0].port.transmit(frame(mac(1), mac(0)))
    assert rounds == 20_000


def test_frames_that_wait_are_copies_and_are_bounded(stations, monkeypatch):
    monkeypatch.setattr(switch_module, "PENDING_FRAMES", 10)

    def storm(data):
        buffer = bytearray(frame(mac(2), mac(1)))
        for number in range(15):
            buffer[14:15] = bytes((number,))
            assert stations[1].port.transmit(buffer) is Status.OK
        return True

    stations[1].port.connect(storm)
    stations[2].port.transmit(frame(mac(1), mac(2)))  # floods to 0 and 3 too
    assert [data[14] for data in stations[2].seen] == list(range(10))
    assert stations[1].port.stats().tx_drops == 5
    assert stations[1].port.stats().tx_frames == 10


def test_a_port_removed_during_delivery_gets_nothing_more(switch, stations):
    def unplug(data):
        switch.remove(stations[2].port)
        return True

    stations[1].port.connect(unplug)
    stations[0].port.transmit(frame(ALL, mac(0)))
    assert stations[2].seen == []
    assert len(stations[3].seen) == 1


def test_names_and_addresses_of_ports_are_checked(switch):
    switch.port("a", mac(1))
    with pytest.raises(ValueError, match="already"):
        switch.port("a", mac(2))
    for bad in (b"", bytes(5), ALL, b"\x01" + bytes(5)):
        with pytest.raises(ValueError, match="individual"):
            switch.port("b", bad)


# -- the loopback card ----------------------------------------------------------------------------------


def test_the_loopback_card_returns_each_frame_unchanged():
    station = Station(LoopbackNic(mac(1)))
    sent = frame(mac(2), mac(1), bytes(1500))
    assert station.port.transmit(sent) is Status.OK
    assert station.seen == [sent]
    assert station.port.transmit(sent + b"x") is Status.INVALID
    station.accept = False
    station.port.transmit(sent)
    stats = station.port.stats()
    assert (stats.tx_frames, stats.rx_frames, stats.rx_drops) == (2, 1, 1)


def test_a_workload_that_sends_what_it_receives_does_not_recurse():
    card = LoopbackNic(mac(1))
    seen = 0

    def again(data):
        nonlocal seen
        seen += 1
        if seen < 20_000:
            card.transmit(data)
        return True

    card.connect(again)
    card.transmit(frame(mac(1), mac(1)))
    assert seen == 20_000


def test_the_loopback_cards_queue_is_bounded():
    card = LoopbackNic(mac(1))
    seen = 0

    def double(data):
        nonlocal seen
        seen += 1
        if seen < 1000:
            card.transmit(data)
            card.transmit(data)
        return True

    card.connect(double)
    card.transmit(frame(mac(1), mac(1)))
    stats = card.stats()
    assert stats.tx_drops > 0
    assert stats.tx_frames == stats.rx_frames == seen
