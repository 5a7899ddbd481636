"""What every VSP does the same way: offer its devices, open a channel when a guest asks, let go when told.

A subclass says what its devices are and how a session serves one. How a channel comes about is the transport's:
:class:`partitions.parent.vsp_channels.Channels`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from partitions.parent.vsp_channels import Channels, Described, OpenRequest, ZmqChannels
from partitions.parent.vsplink import ProviderSide
from vmbus_emu.channel import Channel
from vmbus_emu.memory import Lent
from vmbus_emu.node import Node, load


@dataclass(slots=True)
class Device:
    """One device of one VM, and its channel while it is open."""

    key: int
    vm: str
    name: str
    instance: bytes
    endpoint: str
    gpadls: dict[int, Lent] = field(default_factory=dict)
    channel: Channel | None = None
    #: The process that opened the channel last.
    pid: int = 0
    #: The guest broke the protocol: it has lost the device.
    revoked: bool = False
    #: Its VM is no more. What the provider still asks about it is answered.
    removed: bool = False
    #: What follows when nothing of a channel that is closed is in use any more. Until then nobody gets the device.
    ending: Callable[[], Any] | None = None


class Vsp:
    """Base of the VSPs; implements :class:`~partitions.parent.vsplink.VspSide`."""

    #: Its name, by which the provider knows it.
    NAME: str
    #: The interface id of every device of this VSP.
    INTERFACE: UUID
    #: Ranges that a page list on a ring may have (protocol sheet 3.3).
    MAX_RANGES = 1

    def __init__(self, node: Node, config: dict[str, Any]) -> None:
        self._node = node
        self._loop = node.loop
        #: What it is called towards the machine.
        self.component = self.NAME
        self._names: str = config[self.NAME]["channels"]    # how those of its channels begin
        self._channels: Channels
        if config["transport"] == "ring":
            self._channels = load("partitions.parent.ring_vsp_channels:RingChannels")(node, self.MAX_RANGES)
        else:
            self._channels = ZmqChannels(node, config["channels"])
        self._devices: dict[int, Device] = {}
        self._last_key = 0
        self._protocol_errors = 0
        self._was_good = False
        self._provider: ProviderSide | None = None
        self._parts: dict[tuple[int, int], bytes] = {}     # of GPADLs whose pages come in several messages

    # -- for subclasses -------------------------------------------------------------------------------

    def interface(self, device: Device) -> UUID:
        return self.INTERFACE

    def open_session(self, device: Device, channel: Channel) -> None:
        """Serve ``device`` on ``channel``."""
        raise NotImplementedError

    def close_session(self, device: Device, closed: Callable[[], Any]) -> None:
        """Stop serving; call ``closed`` when nothing of the session is in use any more."""
        raise NotImplementedError

    def take_out(self, device: Device) -> Callable[[], Any]:
        """The VM of ``device`` is no more: forget it, for another one may come that has its name. What is returned lets
        go of what is behind it, and is called when nothing of a session is in use."""
        raise NotImplementedError

    def good(self) -> None:
        """This process has done what it is for: whoever counts its deaths may begin anew. Once is enough."""
        if not self._was_good:
            self._was_good = True
            self._node.lifeline.send({"t": "good", "component": self.component})

    # -- offering -----------------------------------------------------------------------------------

    def add(self, vm: str, name: str, instance: bytes) -> Device:
        """A device to offer. Its key is its number."""
        self._last_key += 1
        key = self._last_key
        endpoint = f"{self._names}{key}"
        device = self._devices[key] = Device(key, vm, name, instance, endpoint)
        return device

    def offer_all(self, provider: ProviderSide) -> None:
        """Hand every device to the provider; one that is still in use, when it is not any more."""
        self._provider = provider
        for device in self._devices.values():
            self._offer(device)

    def _offer(self, device: Device) -> None:
        if self._provider is not None and device.ending is None and not device.removed:
            device.revoked = False
            self._provider.offer(
                device.key, device.vm, self.interface(device).bytes_le, device.instance, device.endpoint.encode()
            )

    def provider_gone(self) -> None:
        """The provider died, and with it all that the guests had opened and lent. :meth:`offer_all` begins again."""
        self._provider = None
        for device in [device for device in self._devices.values() if not device.removed]:
            if device.ending is not None:
                device.ending = lambda device=device: self._begin_again(device)
            elif device.channel is not None:
                device.channel.close()
                self._end(device, lambda device=device: self._begin_again(device))  # type: ignore[misc]
            else:
                self._take_all_back(device)

    def _begin_again(self, device: Device) -> None:
        self._take_all_back(device)
        self._offer(device)

    # -- VMs come and go at run time ------------------------------------------------------------------

    def has(self, vm: str) -> bool:
        """Whether it serves devices of that VM."""
        return any(device.vm == vm and not device.removed for device in self._devices.values())

    def add_now(self, vm: str, name: str, instance: bytes) -> Device:
        """Like :meth:`add`, while it serves others. What is behind the device is there; it is offered at once."""
        device = self.add(vm, name, instance)
        self._loop.call_soon(self._offer, device)
        return device

    def remove_vm(self, vm: str) -> None:
        """That VM is no more, and its process has ended: take its devices back, and let go of what is behind them."""
        for device in [device for device in self._devices.values() if device.vm == vm and not device.removed]:
            device.removed = device.revoked = True
            let_go = partial(self._let_go, device, self.take_out(device))
            if self._provider is not None:
                self._provider.revoke(device.key, "its VM was removed")
            if device.channel is not None:
                device.channel.close()
                self._end(device, let_go)
            elif device.ending is not None:
                device.ending = partial(_both, device.ending, let_go)
            else:
                let_go()

    def _let_go(self, device: Device, behind: Callable[[], Any]) -> None:
        self._take_all_back(device)
        behind()

    # -- what the provider asks -----------------------------------------------------------------------

    def open(
        self, key: int, ticket: int, pid: int, openid: int, doorbell: int, ring_gpadl: int, downstream: int
    ) -> None:
        provider, device = self._of(key)
        request = OpenRequest(f"{device.endpoint}.{openid:x}", pid, doorbell, ring_gpadl, downstream)
        if device.channel is not None or device.ending is not None or device.revoked or not pid:
            self._channels.decline(request)
            provider.opened(key, ticket, False)
            return
        channel = self._channels.open(key, request)
        if isinstance(channel, str):
            self._node.log(f"{device.vm}.{device.name}: not opened: {channel}")
            provider.opened(key, ticket, False)
            return
        channel.on_failed = lambda reason: self._failed(device, reason)
        device.channel = channel
        device.pid = pid
        self.open_session(device, channel)
        provider.opened(key, ticket, True)

    def close(self, key: int, ticket: int) -> None:
        provider, device = self._of(key)
        if device.channel is None:
            provider.closed(key, ticket)
            return
        device.channel.close()
        self._end(device, lambda: provider.closed(key, ticket))

    def accept_gpadl(
        self, key: int, gpadl: int, ticket: int, nbytes: int, offset: int,
        partition: int, gpa: int, pages: int, runs: bytes,
    ) -> None:
        provider, device = self._of(key)
        runs = self._parts.pop((key, gpadl), b"") + runs
        if device.revoked:  # nobody would take it back
            provider.gpadl_accepted(key, gpadl, ticket, False)
            return
        lent = self._channels.lend(key, gpadl, Described(nbytes, offset, partition, gpa, pages, runs))
        if isinstance(lent, str):
            self._node.log(f"{device.vm}.{device.name}: GPADL {gpadl:#x} refused: {lent}")
        else:
            device.gpadls[gpadl] = lent
        provider.gpadl_accepted(key, gpadl, ticket, not isinstance(lent, str))

    def gpadl_pages(self, key: int, gpadl: int, part: bytes) -> None:
        self._parts[key, gpadl] = self._parts.get((key, gpadl), b"") + part

    def tear_down_gpadl(self, key: int, gpadl: int, ticket: int) -> None:
        provider, device = self._of(key)

        def let_go() -> None:
            device.gpadls.pop(gpadl, None)
            self._channels.take_back(key, gpadl)
            provider.gpadl_torn_down(key, gpadl, ticket)

        before = device.ending
        if before is None:
            let_go()
            return

        def ended() -> None:  # until then the driver may still write into it
            before()
            let_go()

        device.ending = ended

    def revoked(self, key: int) -> None:
        """Only now the device is lost to its guest. One that closed its channel because the provider died looks like
        one that broke the protocol, until we hear of that death, too; and a dead provider gives no answer.

        The rescind alone would let the guest wait for the next offer, which it does not get.
        """
        device = self._devices[key]
        if device.revoked and not device.removed:
            lost = {"component": self.component, "vm": device.vm, "device": device.name, "pid": device.pid}
            self._node.lifeline.send({"t": "lost", **lost})

    def partition_gone(self, partition: int, vm: str) -> None:
        self._channels.forget(partition)
        for device in self._devices.values():
            if device.vm == vm and device.revoked:  # its guest was the one that broke the protocol; the next may not
                self._offer(device)

    def _of(self, key: int) -> tuple[ProviderSide, Device]:
        assert self._provider is not None
        return self._provider, self._devices[key]

    def _failed(self, device: Device, reason: str) -> None:
        """The guest broke the protocol on this channel: it loses the device, and nobody else notices."""
        self._protocol_errors += 1
        device.revoked = True
        self._node.log(f"{device.vm}.{device.name}: channel closed: {reason}")
        # The guest hears of it when nothing uses its memory any more, and may use that for something else then.
        self._end(device, lambda: self._revoke(device, reason))

    def _end(self, device: Device, following: Callable[[], Any]) -> None:
        """Stop serving a device whose channel is closed."""
        device.channel = None
        device.ending = following
        self.close_session(device, lambda: self._ended(device))

    def _ended(self, device: Device) -> None:
        following, device.ending = device.ending, None
        assert following is not None
        following()

    def _revoke(self, device: Device, reason: str) -> None:
        self._take_all_back(device)
        if self._provider is not None:
            self._provider.revoke(device.key, reason)

    def _take_all_back(self, device: Device) -> None:
        for gpadl in device.gpadls:
            self._channels.take_back(device.key, gpadl)
        device.gpadls.clear()


def _both(first: Callable[[], Any], second: Callable[[], Any]) -> None:
    first()
    second()
