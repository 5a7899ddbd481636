"""The guest's end of an integration component's channel: it chooses versions, and answers what the host asks.

A device as the bus driver knows it: attached to a channel, detached when that is gone, attached again. What the
component does is its service's, which is told the version that was agreed on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from vmbus_emu.channel import Channel
from vmbus_emu.device import Memory
from vmbus_emu.protocol import ic
from vmbus_emu.protocol.ic import Component, Kind, Message, Status, Version
from vmbus_emu.protocol.packets import IN_BAND
from vmbus_emu.task import Future

#: Answers that may wait for the host to make room: more than it asks for without having them.
MAX_WAITING = 64

#: Takes the answer, once: status and body.
Respond = Callable[[int, bytes], Any]
#: ``service(body, version, respond)`` answers now or later.
Service = Callable[[bytes, Version, Respond], Any]


class IcDevice:
    """``on_gone()`` is called when a channel is lost; what the host had asked for is void then."""

    #: Nothing of it is sent again.
    resubmitted = 0

    def __init__(
        self, component: Component, service: Service, log: Callable[[str], Any], newest: Version | None = None,
        on_gone: Callable[[], Any] = lambda: None,
    ) -> None:
        """``newest``: of the framework, for a guest of an earlier generation."""
        self.name = component.name
        self._component = component
        self._service = service
        self._log = log
        self._own = component.up_to(newest)
        self._on_gone = on_gone
        self._channel: Channel | None = None
        self._attached: Future[bool] = Future()
        self._waiting: deque[bytes] = deque()
        self.framework: Version = (0, 0)
        #: (0, 0): none is agreed on.
        self.version: Version = (0, 0)

    def attach(self, channel: Channel) -> Future[bool]:
        """Use ``channel``, freshly opened. Settled when versions were negotiated, with or without one in common."""
        self.detach()
        self._channel = channel
        self._attached = Future()
        channel.on_packet = lambda *packet: self._packet(channel, *packet)
        channel.on_room = lambda: self._send_waiting(channel)
        return self._attached

    def detach(self) -> None:
        """The channel is gone. Idempotent."""
        channel, self._channel = self._channel, None
        self._waiting.clear()
        self.framework = self.version = (0, 0)
        if channel is not None:
            self._on_gone()

    def give_up(self) -> None:
        """There will be no other channel."""
        self.detach()

    # -- from the host --------------------------------------------------------------------------------

    def _packet(
        self, channel: Channel, packet_type: int, flags: int, transaction_id: int, raw: bytes, data: Memory | None
    ) -> None:
        if channel is not self._channel:
            return
        message = ic.decode(raw) if packet_type == IN_BAND and data is None else None
        if message is None or message.flags != ic.REQUEST:
            self._fail(channel, f"malformed {self.name} message")
        elif message.kind == Kind.NEGOTIATE:
            self._negotiate(channel, message)
        elif not any(self.version):
            self._fail(channel, "a request before versions were agreed on")
        elif message.kind != self._component.kind:
            self._respond(channel, message, Status.NOT_SUPPORTED, message.body)
        else:
            answered = False

            def respond(status: int, body: bytes) -> None:
                nonlocal answered
                if not answered:
                    answered = True
                    self._respond(channel, message, status, body)

            self._service(message.body, self.version, respond)

    def _negotiate(self, channel: Channel, message: Message) -> None:
        offered = ic.decode_versions(message.body)
        if offered is None:
            self._fail(channel, "malformed offer of versions")
            return
        framework = ic.choose(offered.frameworks, self._own.frameworks)
        version = ic.choose(offered.versions, self._own.versions)
        if framework is None or version is None:
            choice = ic.Offered((), ())
            self._log(f"{self.name}: integration component: no version in common with the host")
        else:
            choice = ic.Offered((framework,), (version,))
            self.framework, self.version = framework, version
            self._log(f"{self.name}: integration component, version {version[0]}.{version[1]}")
        self._respond(channel, message, Status.OK, ic.encode_versions(choice))
        self._attached.resolve(True)

    def _respond(self, channel: Channel, request: Message, status: int, body: bytes) -> None:
        if channel is not self._channel:
            return
        self._waiting.append(ic.encode(request._replace(status=status, flags=ic.RESPONSE, body=body)))
        self._send_waiting(channel)
        if len(self._waiting) > MAX_WAITING:
            self._fail(channel, "the host takes no answers")

    def _send_waiting(self, channel: Channel) -> None:
        while channel is self._channel and self._waiting and channel.send(IN_BAND, 0, 0, self._waiting[0]):
            self._waiting.popleft()

    def _fail(self, channel: Channel, reason: str) -> None:
        self.detach()
        channel.fail(reason)
