"""How a VSP gets a channel to a guest, and what the guest lends to it.

On ``zmq`` the channel's name is in the offer; the guest adds its open id, so that no two opens ever share a socket
file. Only the process that the hypervisor names as that partition may speak on it. Nothing is lent but a number.
:mod:`partitions.parent.ring_vsp_channels` is the same on ``ring``.
"""
from __future__ import annotations

import os
from typing import NamedTuple, Protocol

import zmq

from vmbus_emu.channel import Channel, ChannelCounters, ZmqChannel
from vmbus_emu.memory import Lent
from vmbus_emu.node import Node


class OpenRequest(NamedTuple):
    """What is said of a channel to be opened (:meth:`partitions.parent.vsplink.VspSide.open`)."""

    endpoint: str
    pid: int
    doorbell: int
    ring_gpadl: int
    downstream: int


class Described(NamedTuple):
    """A GPADL as the provider describes it (:meth:`partitions.parent.vsplink.VspSide.accept_gpadl`)."""

    nbytes: int
    offset: int
    partition: int
    gpa: int
    pages: int
    runs: bytes


class Channels(Protocol):
    """A transport, as a VSP uses it. ``key`` is its device."""

    def open(self, key: int, request: OpenRequest) -> Channel | str:
        """The channel, or why there is none."""

    def decline(self, request: OpenRequest) -> None:
        """Not :meth:`open`: let go of what came for it."""

    def lend(self, key: int, gpadl: int, described: Described) -> Lent | str:
        """What the guest lends, or why it cannot."""

    def take_back(self, key: int, gpadl: int) -> None:
        """The guest takes a GPADL back."""

    def forget(self, partition: int) -> None:
        """The partition is gone, and its memory."""

    def counters(self) -> dict[str, int]:
        """What the transport counts, for ``ps``."""


class ZmqChannels:
    """``folder`` is where the socket files are."""

    def __init__(self, node: Node, folder: str) -> None:
        self._node = node
        self._folder = folder
        self._counters = ChannelCounters()

    def open(self, key: int, request: OpenRequest) -> Channel | str:
        channel = ZmqChannel(self._node.loop, self._node.context, request.pid)
        try:
            channel.bind(os.path.join(self._folder, request.endpoint))
        except zmq.ZMQError as error:  # something lies in the way, or the file system is full
            channel.close()
            return str(error)
        self._counters.add(channel)
        return channel

    def decline(self, request: OpenRequest) -> None:
        """Nothing came."""

    def lend(self, key: int, gpadl: int, described: Described) -> Lent | str:
        return Lent(described.nbytes)

    def take_back(self, key: int, gpadl: int) -> None:
        """The guest takes a GPADL back."""

    def forget(self, partition: int) -> None:
        """The partition is gone, and its memory."""

    def counters(self) -> dict[str, int]:
        """What the transport counts, for ``ps``."""
        return self._counters.counters()
