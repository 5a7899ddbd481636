"""A correct guest whose lent memory is in as many pieces as it has pages: every GPADL lists them backwards."""

from __future__ import annotations

from collections.abc import Sequence

from partitions.child.links import RING, Links, Place
from partitions.child.ring_links import RingChildProcess, RingLinks
from vmbus_emu.lifeline import Message
from vmbus_emu.memory import PAGE, Region
from vmbus_emu.node import Node
from vmbus_emu.vmbus.gpadl import Range


def backwards(part: tuple[int, int]) -> Sequence[int]:
    first, pages = part
    return range(first + pages - 1, first - 1, -1)


class ScatteredLinks(RingLinks):
    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._backwards: dict[int, int] = {}
        for region in self._regions.values():
            region.ring = lambda pages, region=region: Region.ring(  # type: ignore[method-assign,misc]
                region, [self._backwards[page] for page in pages]
            )

    def range(self, vsp: str, place: Place, purpose: str) -> Range:
        pages = backwards(place.parts[purpose])
        first = self._regions[vsp].first_pfn
        return Range(len(pages) * PAGE, 0, tuple(first + page for page in pages))

    def memory(self, vsp: str, place: Place, purpose: str) -> memoryview:
        return self._regions[vsp].linear(backwards(place.parts[purpose]))

    def prepare(self, vsp: str, place: Place) -> None:
        first, pages = place.parts[RING]
        self._backwards |= dict(zip(range(first, first + pages), backwards((first, pages)), strict=True))
        super().prepare(vsp, place)
        for page in (first, first + place.downstream):
            at = self._backwards[page] * PAGE
            self._regions[vsp].view[at : at + PAGE] = bytes(PAGE)


class ScatteredChild(RingChildProcess):
    def links(self, node: Node, config: Message, guest: Message) -> Links:
        node.poll = config["poll"]
        return ScatteredLinks(node, guest["io_memory"])
