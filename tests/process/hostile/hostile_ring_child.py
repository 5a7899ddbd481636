"""The guest of ``hostile_child.py`` where memory is shared, with the attacks that this allows."""

from __future__ import annotations

import hostile_child
import ring_attacks

from partitions.child.console import Session
from partitions.child.links import Links
from partitions.child.ring_links import RingChildProcess
from vmbus_emu.lifeline import Message
from vmbus_emu.node import Node


class HostileRingChild(hostile_child.HostileChild, RingChildProcess):
    def links(self, node: Node, config: Message, guest: Message) -> Links:
        return RingChildProcess.links(self, node, config, guest)


async def ring(session: Session) -> None:
    """An attack on our own disk's channel (:mod:`ring_attacks`), by its name."""
    driver, relid = hostile_child.disk_relid(session)
    channel = driver._channels[relid]
    ring_attacks.deafen(channel)
    ring_attacks.BY_NAME[hostile_child.HERE["pids"][0]](channel)


async def memory_in_pieces(session: Session) -> None:
    driver, relid = hostile_child.disk_relid(session)
    await ring_attacks.memory_in_pieces(driver._vp, relid, driver._channels[relid]._region)


async def unfit_rings(session: Session) -> None:
    driver, relid = hostile_child.disk_relid(session)
    answers = await ring_attacks.unfit_rings(driver, relid)
    await session.print(" ".join("refused" if status else "opened" for status in answers))


hostile_child.ATTACKS.update({attack.__name__: attack for attack in (ring, memory_in_pieces, unfit_rings)})
