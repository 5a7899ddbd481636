"""How a VSP gets a channel over shared memory: :class:`~partitions.parent.vsp_channels.Channels` on ``ring``.

By the time the provider asks, the hypervisor has granted the region of the guest's I/O memory and made the doorbells;
their descriptors wait in the inbox. The rings are in a GPADL that the guest named, and so already accepted. A process
that does not need this does not load it.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from partitions.parent.vsp_channels import Described, OpenRequest
from partitions.parent.vsplink import RUN_BYTES, decode_pages
from vmbus_emu.channel import Channel, ChannelCounters
from vmbus_emu.host_ring import HostRing
from vmbus_emu.memory import Lent, Region
from vmbus_emu.node import Node
from vmbus_emu.ring import RingFault
from vmbus_emu.ring_channel import hang_up


class _Mapped(NamedTuple):
    """A GPADL: its pages, by their number in the region, and the mappings that it may cost."""

    region: Region
    pages: list[int]
    runs: int


#: Mappings that a guest's scattered GPADLs in one region may cost this process. The kernel allows it 65,530 in all, and
#: no guest shall use up what the others need. One that is in one piece costs a few at most, and is not counted: a VM
#: with many NICs has hundreds.
MAX_RUNS = 512


_TOO_MANY = "its pages lie in too many pieces"


class RingChannels:
    """The guests' regions that were granted to this VSP, and the GPADLs in them, by device and handle."""

    def __init__(self, node: Node, max_ranges: int) -> None:
        self._node = node
        self._max_ranges = max_ranges
        self._counters = ChannelCounters(lambda: {"missed_doorbells": node.poller.missed_doorbells})
        self._regions: dict[tuple[int, int], Region] = {}
        self._lent: dict[tuple[int, int], _Mapped] = {}
        self._open: list[tuple[HostRing, Region, int]] = []     # and what their rings cost, also without their GPADLs

    def open(self, key: int, request: OpenRequest) -> Channel | str:
        node = self._node
        lent = self._lent.get((key, request.ring_gpadl))
        bell, peer_bell = self._doorbells(request)
        fault = ""
        if lent is None or bell is None or peer_bell is None:
            fault = "its rings or doorbells are not there"
        elif self._cost(lent.region) + 2 * lent.runs > MAX_RUNS:
            fault = _TOO_MANY
        else:
            try:
                upstream, downstream = lent.pages[: request.downstream], lent.pages[request.downstream :]
                rings = lent.region.ring(upstream), lent.region.ring(downstream)
                channel = HostRing(node.loop, node.poller, *rings, bell, peer_bell, lent.region, self._max_ranges)
            except RingFault as error:
                return str(error)  # it has closed them
            except OSError as error:
                fault = str(error)
        if fault:
            hang_up(bell, peer_bell)
            return fault
        assert lent is not None
        self._counters.add(channel)
        self._open = [one for one in self._open if not one[0].closed] + [(channel, lent.region, 2 * lent.runs)]
        return channel

    def decline(self, request: OpenRequest) -> None:
        hang_up(*self._doorbells(request))

    def _doorbells(self, request: OpenRequest) -> tuple[int | None, int | None]:
        inbox = self._node.inbox
        return inbox.take_port(request.doorbell), inbox.take_connection(request.doorbell)

    def _cost(self, region: Region) -> int:
        """Mappings of scattered pages that the region's GPADLs and open channels take."""
        lent = sum(one.runs for one in self._lent.values() if one.region is region)
        return lent + sum(runs for channel, used, runs in self._open if used is region and not channel.closed)

    def lend(self, key: int, gpadl: int, described: Described) -> Lent | str:
        region = self._region(described.partition, described.gpa, described.pages)
        if region is None:
            return "its memory was not handed over"
        runs = len(described.runs) // RUN_BYTES
        if runs == 1:
            runs = 0
        if self._cost(region) + runs > MAX_RUNS:
            return _TOO_MANY
        pages = [pfn - region.first_pfn for pfn in decode_pages(described.runs)]
        try:
            memory = region.linear(pages)
        except OSError as error:
            return str(error)
        self._lent[key, gpadl] = _Mapped(region, pages, runs)
        return Lent(described.nbytes, memory[described.offset : described.offset + described.nbytes])

    def _region(self, partition: int, gpa: int, pages: int) -> Region | None:
        region = self._regions.get((partition, gpa))
        if region is None:
            fd = self._node.inbox.take_memory(partition, gpa)
            if fd is None:
                return None
            try:
                region = self._regions[partition, gpa] = Region(fd, gpa, pages)
            except (OSError, ValueError) as error:
                os.close(fd)
                self._node.log(f"memory of partition {partition} cannot be mapped: {error}")
        return region

    def take_back(self, key: int, gpadl: int) -> None:
        self._lent.pop((key, gpadl), None)

    def forget(self, partition: int) -> None:
        for name in [name for name in self._regions if name[0] == partition]:
            region = self._regions.pop(name)
            region.close()
            self._lent = {key: lent for key, lent in self._lent.items() if lent.region is not region}

    def counters(self) -> dict[str, int]:
        return self._counters.counters()
