"""The guest's channels over shared memory: :class:`~partitions.child.links.Links` on ``ring``.

The region of I/O memory that a VSP may see holds everything the two have to do with each other: the rings of each
channel, a NIC's receive and send buffer, and buffers for data. A process that does not need this does not load it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from partitions.child.links import BUFFER_PAGES, COPIES, RECEIVE, RESERVE_PAGES, RING, SEND, Links, Place
from partitions.child.process import ChildProcess
from vmbus_emu.channel import Channel
from vmbus_emu.guest_ring import GuestRing
from vmbus_emu.lifeline import Message
from vmbus_emu.memory import PAGE, Pool, Region
from vmbus_emu.node import Node
from vmbus_emu.polling import Poller
from vmbus_emu.protocol.vmbus import OfferChannel
from vmbus_emu.ring import RingFault, reset
from vmbus_emu.ring_channel import hang_up

#: Loaded with this module, so that a zygote shares its code between all VMs.
_SHARED = (Poller,)


class RingLinks(Links):
    """``ring``. Takes over the memory files the machine gave this partition."""

    nic_needs = (RECEIVE, SEND, RING)
    disk_needs = (RING,)

    def __init__(self, node: Node, regions: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(node.loop, node.context, "", {region["vsp"]: region["gpa"] for region in regions})
        self._node = node
        self._regions = {
            region["vsp"]: Region(fd, region["gpa"], region["pages"])
            for region, fd in zip(regions, node.io_memory, strict=True)
        }
        self._disk_pools: tuple[Pool, ...] = ()
        storage = self._regions.get("storvsp")
        if storage is not None:
            # allocate() takes from the first alone: what has to be copied finds room even when that is all lent out.
            self._disk_pools = Pool(storage, 0, BUFFER_PAGES), Pool(storage, BUFFER_PAGES, RESERVE_PAGES)

    def allocate(self, nbytes: int) -> memoryview | None:
        return self._disk_pools[0].allocate(nbytes)

    def memory(self, vsp: str, place: Place, purpose: str) -> memoryview | None:
        first, pages = place.parts[purpose]
        return self._regions[vsp].view[first * PAGE : (first + pages) * PAGE]

    def prepare(self, vsp: str, place: Place) -> None:
        """Both rings empty: the host looks at them when it opens the channel."""
        first, _ = place.parts[RING]
        for page in (first, first + place.downstream):
            reset(self._regions[vsp].view[page * PAGE :])

    def connect(self, vsp: str, place: Place, offer: OfferChannel, open_id: int) -> Channel | str:
        node = self._node
        bell, peer_bell = self._doorbells(offer)
        if bell is None or peer_bell is None:
            hang_up(bell, peer_bell)
            return "its doorbells were not handed over"
        first, pages = place.parts[RING]
        middle = first + place.downstream
        region = self._regions[vsp]
        to_host, to_guest = region.ring(range(first, middle)), region.ring(range(middle, first + pages))
        pools = self._disk_pools if vsp == "storvsp" else ()
        if COPIES in place.parts:
            pools = (Pool(region, *place.parts[COPIES]),)
        try:
            channel = GuestRing(node.loop, node.poller, to_guest, to_host, bell, peer_bell, region, pools)
        except RingFault as fault:
            return str(fault)
        self._counters.add(channel)
        return channel

    def _doorbells(self, offer: OfferChannel) -> tuple[int | None, int | None]:
        inbox = self._node.inbox
        return inbox.take_port(offer.connection_id), inbox.take_connection(offer.connection_id)

    def forget(self, offer: OfferChannel) -> None:
        hang_up(*self._doorbells(offer))

    def _also(self) -> dict[str, int]:
        return {"missed_doorbells": self._node.poller.missed_doorbells}


class RingChildProcess(ChildProcess):
    """The component of a VM whose devices are reached through shared memory."""

    def links(self, node: Node, config: Message, guest: Message) -> Links:
        node.poll = config["poll"]
        return RingLinks(node, guest["io_memory"])
