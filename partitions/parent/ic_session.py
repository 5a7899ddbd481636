"""The host's end of one integration component's channel: it offers versions, then asks, and takes answers.

No I/O of its own: it acts when a packet arrives or its owner wants something. What breaks the protocol ends the
channel with a reason (:meth:`Channel.fail`). An answer that nobody waits for any more is taken and dropped; one to
nothing that was ever asked is not.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

from vmbus_emu.channel import Channel
from vmbus_emu.device import Memory
from vmbus_emu.protocol import ic
from vmbus_emu.protocol.ic import Component, Kind, Message, Version
from vmbus_emu.protocol.packets import IN_BAND

#: Requests of one channel without an answer; the guest is not asked more.
MAX_UNANSWERED = 32


class State(enum.Enum):
    NEGOTIATING = "versions offered"
    READY = "versions agreed"
    REFUSED = "no version in common"


class Answer(NamedTuple):
    status: int
    body: bytes


#: Called once: with the answer, or ``None`` when there will be none.
Then = Callable[[Answer | None], Any]


class IcSession:
    """Serves one guest; ``on_state()`` is called when the negotiation has ended, either way. ``newest``: of the
    framework, for a host of an earlier generation."""

    def __init__(
        self, channel: Channel, component: Component, on_state: Callable[[], Any], newest: Version | None = None
    ) -> None:
        self._channel = channel
        self._component = component
        self._on_state = on_state
        self._offered = component.up_to(newest)
        self._unanswered: dict[int, Then] = {}
        self._last = 0
        self._closed = False
        self.state = State.NEGOTIATING
        self.framework: Version = (0, 0)
        self.version: Version = (0, 0)
        #: Messages that came while versions were negotiated and were no part of that.
        self.dropped = 0
        channel.on_packet = self._packet

    def begin(self) -> bool:
        """Offer our versions. ``False``: the guest has not connected yet; try again."""
        offer = Message((0, 0), Kind.NEGOTIATE, (0, 0), 0, 0, ic.REQUEST, ic.encode_versions(self._offered))
        return self._closed or self._channel.send(IN_BAND, 0, 0, ic.encode(offer))

    @property
    def unanswered(self) -> int:
        """Requests that have no answer."""
        return len(self._unanswered)

    def request(self, body: bytes, then: Then) -> bool:
        """Ask. ``False``: not now (no versions yet, or too much is unanswered); ``then`` is not called."""
        if self._closed or self.state is not State.READY or len(self._unanswered) >= MAX_UNANSWERED:
            return False
        number = self._number()
        message = Message(self.framework, self._component.kind, self.version, 0, number, ic.REQUEST, body)
        if not self._channel.send(IN_BAND, 0, 0, ic.encode(message)):
            return False
        self._unanswered[number] = then
        return True

    def _number(self) -> int:
        while True:
            self._last = self._last % 255 + 1       # 0 is the negotiation's
            if self._last not in self._unanswered:
                return self._last

    def close(self) -> None:
        """The channel is gone: whoever waits is told. Idempotent."""
        self._closed = True
        waiting, self._unanswered = self._unanswered, {}
        for then in waiting.values():
            then(None)

    # -- from the guest -------------------------------------------------------------------------------

    def _packet(self, packet_type: int, flags: int, transaction_id: int, raw: bytes, data: Memory | None) -> None:
        if self._closed:
            return
        message = ic.decode(raw) if packet_type == IN_BAND and data is None else None
        if message is None:
            self._channel.fail(f"malformed {self._component.name} message")
        elif self.state is State.NEGOTIATING:
            self._negotiated(message)
        elif message.kind != self._component.kind or message.flags != ic.RESPONSE:
            self._channel.fail(f"a message of kind {message.kind} with flags {message.flags:#x} is no answer")
        else:
            then = self._unanswered.pop(message.transaction, None)
            if then is None:
                self._channel.fail(f"an answer to transaction {message.transaction}, which was not asked")
                return
            then(Answer(message.status, message.body))

    def _negotiated(self, message: Message) -> None:
        if message.kind != Kind.NEGOTIATE:
            self.dropped += 1
            return
        chosen = ic.decode_versions(message.body)
        if message.transaction or message.flags != ic.RESPONSE or chosen is None:
            self._channel.fail("malformed choice of versions")
            return
        if not chosen.frameworks or not chosen.versions:
            self.state = State.REFUSED
        elif (
            len(chosen.frameworks) > 1 or len(chosen.versions) > 1
            or chosen.frameworks[0] not in self._offered.frameworks
            or chosen.versions[0] not in self._offered.versions
        ):
            self._channel.fail("a choice of versions that were not offered")
            return
        else:
            self.state = State.READY
            self.framework, self.version = chosen.frameworks[0], chosen.versions[0]
        self._on_state()
