"""The VSC when the sending of a request itself finds the channel broken: no request is left without an end."""

from __future__ import annotations

import pytest

from partitions.child.storvsc import StorVsc
from vmbus_emu.channel import Channel
from vmbus_emu.device import BLOCK_SIZE, BlockRequest, Buffer, Op, Status
from vmbus_emu.loop import Loop

BIG = 1 << 20


class Breaking(Channel):
    """Sends until it is told to break: then the peer is found to have broken the protocol within ``send``."""

    shares_memory = True
    breaks = False
    room = True

    def send(
        self, packet_type: int, flags: int, transaction_id: int, message: Buffer,
        data: Buffer | None = None, room: Buffer | None = None,
    ) -> bool:
        if self.breaks:
            self.fail("read_index is 4")
        return self.room and not self.closed


@pytest.fixture
def breaking(loop: Loop) -> tuple[StorVsc, Breaking]:
    vsc, channel = StorVsc(loop, "disk", lambda line: None), Breaking()
    channel.on_failed = lambda reason: vsc.give_up()    # as the bus driver does
    vsc.attach(channel)
    loop.step(0.0)
    vsc._ready, vsc._in_place = True, True              # the handshake is another test's
    return vsc, channel


def test_a_request_whose_sending_ends_the_channel_is_completed(breaking: tuple[StorVsc, Breaking]) -> None:
    vsc, channel = breaking
    channel.breaks = True
    request = BlockRequest(Op.READY)
    vsc.submit(request)
    assert request.status is Status.GONE


def test_held_requests_whose_release_ends_the_channel_are_completed(breaking: tuple[StorVsc, Breaking]) -> None:
    vsc, channel = breaking
    channel.room = False
    requests = [BlockRequest(Op.READY) for _ in range(3)]
    for request in requests:
        vsc.submit(request)
    channel.breaks = True
    channel.on_room()
    assert [request.status for request in requests] == [Status.GONE] * 3


def test_a_request_does_not_overtake_one_that_found_no_room(breaking: tuple[StorVsc, Breaking]) -> None:
    vsc, channel = breaking
    channel.room = False
    large = BlockRequest(Op.READ, 0, 2048, bytearray(BIG))
    vsc.submit(large)
    channel.room = True     # for small ones
    vsc.submit(BlockRequest(Op.READ, 4096, 1, bytearray(BLOCK_SIZE)))
    assert vsc.link_stats().held in (0, 2)
