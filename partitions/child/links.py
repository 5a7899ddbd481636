"""How the guest reaches the other end of a channel, and what it lends for that.

On ``zmq`` a channel is a socket file, named in the offer, with the open id behind it. Nothing is shared; the page
numbers in a GPADL describe memory that nobody looks at. :mod:`partitions.child.ring_links` is the same on ``ring``.
Where things lie in a region of I/O memory is decided here, for both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from vmbus_emu.channel import Channel, ChannelCounters, ZmqChannel
from vmbus_emu.loop import Loop
from vmbus_emu.protocol.hypercall import PAGE
from vmbus_emu.protocol.vmbus import OfferChannel
from vmbus_emu.vmbus.gpadl import Range, contiguous
from vmbus_emu.zmqport import Context

# What a GPADL is for.
RING, RECEIVE, SEND = "ring", "receive", "send"
#: Room for copies of what a NIC sends from elsewhere.
COPIES = "copies"

# A storage region (vmbus_emu/placement.py): buffers, then the reserve, then each disk's rings.
BUFFER_PAGES, RESERVE_PAGES = 2048, 256
_DISK_RING_PAGES = 13, 13  # as many as one message describes
#: Page 0 of each NIC's part of the network region: its rings, receive buffer, send buffer, and room for copies.
_NIC_PAGES = 128
_NIC_RING_PAGES = 12, 12
#: Of an integration component: its messages are short, and one is under way at a time.
_COMPONENT_RING_PAGES = 3, 3
_RECEIVE_PAGES, _SEND_PAGES = 26, 48    # 57 full frames; 32 sections


class Place(NamedTuple):
    """Where one device's part of its region begins, by what it is for: first page of the region, pages."""

    parts: Mapping[str, tuple[int, int]]
    #: Pages of the guest-to-host ring.
    downstream: int


def disk_place(index: int) -> Place:
    up, down = _DISK_RING_PAGES
    first = BUFFER_PAGES + RESERVE_PAGES + index * (up + down)
    return Place({RING: (first, up + down)}, up)


def nic_place(index: int) -> Place:
    up, down = _NIC_RING_PAGES
    first = index * _NIC_PAGES
    rings = up + down
    return Place({
        RING: (first, rings),
        RECEIVE: (first + rings, _RECEIVE_PAGES),
        SEND: (first + rings + _RECEIVE_PAGES, _SEND_PAGES),
        COPIES: (first + rings + _RECEIVE_PAGES + _SEND_PAGES, _NIC_PAGES - rings - _RECEIVE_PAGES - _SEND_PAGES),
    }, up)


def component_place(index: int) -> Place:
    up, down = _COMPONENT_RING_PAGES
    return Place({RING: (index * (up + down), up + down)}, up)


class Links:
    """``zmq``. ``gpas``: where each VSP's region is, by the VSP's name."""

    #: What is lent for a NIC before its channel can be opened, and for a disk.
    nic_needs: tuple[str, ...] = (RECEIVE,)
    disk_needs: tuple[str, ...] = ()

    def __init__(self, loop: Loop, context: Context, folder: str, gpas: Mapping[str, int]) -> None:
        self._loop = loop
        self._context = context
        self._folder = folder
        self._gpas = gpas
        self._counters = ChannelCounters(self._also)

    def allocate(self, nbytes: int) -> memoryview | None:
        """A buffer for a disk's data that need not be copied; ``None`` when there is none to be had."""
        return None

    def range(self, vsp: str, place: Place, purpose: str) -> Range:
        """What a GPADL describes."""
        first, pages = place.parts[purpose]
        return contiguous(self._gpas[vsp] // PAGE + first, pages * PAGE)

    def memory(self, vsp: str, place: Place, purpose: str) -> memoryview | None:
        """The guest's own view of it; ``None`` where nothing is shared."""
        return None

    def prepare(self, vsp: str, place: Place) -> None:
        """Before anything is lent for a channel that is to be opened."""

    def connect(self, vsp: str, place: Place, offer: OfferChannel, open_id: int) -> Channel | str:
        """The opened channel's end, or why there is none."""
        endpoint = offer.user_data.rstrip(b"\0").decode("ascii", "replace")
        channel = ZmqChannel(self._loop, self._context)
        channel.connect(os.path.join(self._folder, f"{endpoint}.{open_id:x}"))
        self._counters.add(channel)
        return channel

    def forget(self, offer: OfferChannel) -> None:
        """The channel goes: what was handed over for it and not used goes with it."""

    def counters(self) -> dict[str, int]:
        """What the transport counts, for ``ps``."""
        return self._counters.counters()

    def _also(self) -> dict[str, int]:
        """What is counted beside the channels."""
        return {}
