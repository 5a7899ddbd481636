"""What every VSP does the same way: offer its devices, bind a channel when a guest opens one, let go when told.

A subclass says what its devices are and how a session serves one. The channel's name is in the offer; the guest
adds its open id, so that no two opens ever share a socket file. Only the process that the hypervisor names as
that partition may speak on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import zmq

from partitions.parent.vsplink import ProviderSide
from vmbus_emu.channel import Channel, ZmqChannel
from vmbus_emu.node import Node


@dataclass(slots=True)
class Device:
    """One device of one VM, and its channel while it is open."""

    key: int
    vm: str
    name: str
    instance: bytes
    endpoint: str
    gpadls: dict[int, int] = field(default_factory=dict)
    channel: Channel | None = None
    revoked: bool = False


class Vsp:
    """Base of the VSPs; implements :class:`~partitions.parent.vsplink.VspSide`."""

    #: The interface id of every device of this VSP.
    INTERFACE: UUID
    #: Prefix of its channels' socket files; short, for socket paths have 107 bytes.
    PREFIX: str

    def __init__(self, node: Node, config: dict[str, Any]) -> None:
        self._node = node
        self._folder = config["channels"]
        self._devices: dict[int, Device] = {}
        self._protocol_errors = 0
        self._provider: ProviderSide | None = None

    # -- for subclasses -------------------------------------------------------------------------------

    def open_session(self, device: Device, channel: Channel) -> None:
        """Serve ``device`` on ``channel``."""
        raise NotImplementedError

    def close_session(self, device: Device, closed: Callable[[], Any]) -> None:
        """Stop serving; call ``closed`` when nothing of the session is in use any more."""
        raise NotImplementedError

    # -- offering -----------------------------------------------------------------------------------

    def add(self, vm: str, name: str, instance: bytes) -> Device:
        """A device to offer. Its key is its number."""
        key = len(self._devices) + 1
        endpoint = f"{self.PREFIX}{self._node.incarnation}-{key}"
        device = self._devices[key] = Device(key, vm, name, instance, endpoint)
        return device

    def offer_all(self, provider: ProviderSide) -> None:
        """Hand every device to the provider."""
        self._provider = provider
        for device in self._devices.values():
            provider.offer(device.key, device.vm, self.INTERFACE.bytes_le, device.instance, device.endpoint.encode())

    # -- what the provider asks -----------------------------------------------------------------------

    def open(self, key: int, ticket: int, pid: int, openid: int) -> None:
        provider, device = self._of(key)
        if device.channel is not None or device.revoked or not pid:
            provider.opened(key, ticket, False)
            return
        channel = ZmqChannel(self._node.loop, self._node.context, pid)
        channel.on_failed = lambda reason: self._failed(device, reason)
        try:
            channel.bind(os.path.join(self._folder, f"{device.endpoint}.{openid:x}"))
        except zmq.ZMQError as error:  # something lies in the way, or the file system is full
            channel.close()
            self._node.log(f"{device.vm}.{device.name}: not opened: {error}")
            provider.opened(key, ticket, False)
            return
        device.channel = channel
        self.open_session(device, channel)
        provider.opened(key, ticket, True)

    def close(self, key: int, ticket: int) -> None:
        provider, device = self._of(key)
        channel, device.channel = device.channel, None
        if channel is None:
            provider.closed(key, ticket)
            return
        channel.close()
        self.close_session(device, lambda: provider.closed(key, ticket))

    def accept_gpadl(self, key: int, gpadl: int, ticket: int, nbytes: int) -> None:
        provider, device = self._of(key)
        device.gpadls[gpadl] = nbytes
        provider.gpadl_accepted(key, gpadl, ticket, True)

    def tear_down_gpadl(self, key: int, gpadl: int, ticket: int) -> None:
        provider, device = self._of(key)
        device.gpadls.pop(gpadl, None)
        provider.gpadl_torn_down(key, gpadl, ticket)

    def _of(self, key: int) -> tuple[ProviderSide, Device]:
        assert self._provider is not None
        return self._provider, self._devices[key]

    def _failed(self, device: Device, reason: str) -> None:
        """The guest broke the protocol on this channel: it loses the device, and nobody else notices."""
        self._protocol_errors += 1
        device.revoked = True
        self._node.log(f"{device.vm}.{device.name}: channel closed: {reason}")
        if self._provider is not None:
            self._provider.revoke(device.key, reason)
