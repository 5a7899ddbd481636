"""Where the VMBus provider and a VSP meet: offer, open, GPADL, close, revoke, each with its answer.

In one process the two are each other's objects and this is a call. In two (the disaggregated placement) each
holds a proxy that packs the call into a SynIC control message of at most 240 bytes, ``[operation, *arguments]``
in msgpack, and :func:`dispatch` makes it a call again. Data never goes this way.

``key`` names a device within its VSP; ``ticket`` is used once and comes back with the answer, so that a late
answer is recognised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgpack

from vmbus_emu.protocol.hypercall import MAX_PAYLOAD

Send = Callable[[bytes], Any]

# -- the ports and connections over which it goes, by number --------------------------------------------

MANAGEMENT_CONNECTION = 0x10        # management -> provider, and the port it leads to
MANAGEMENT_ANSWERS = 0x11           # provider -> management
#: Port and connection numbers in the root for partition N are this + N.
FIRST_PARTITION_PORT = 0x1000
#: The number of a VSP partition's own port, and of its connection to the provider.
CONTROL_PORT = 0x10
CHILD_PORT = 1


class VspSide(Protocol):
    """What the provider asks of a VSP."""

    def open(self, key: int, ticket: int, pid: int, openid: int) -> None:
        """The guest opened the channel; only process ``pid`` may speak on it. Answer: ``opened``."""

    def close(self, key: int, ticket: int) -> None:
        """Answer: ``closed``, once nothing of the channel is in use."""

    def accept_gpadl(self, key: int, gpadl: int, ticket: int, nbytes: int) -> None:
        """The guest describes ``nbytes`` of its memory under a handle. Answer: ``gpadl_accepted``."""

    def tear_down_gpadl(self, key: int, gpadl: int, ticket: int) -> None:
        """Answer: ``gpadl_torn_down``, once nothing uses the memory."""


class ProviderSide(Protocol):
    """What a VSP asks of, and answers to, the provider."""

    def offer(self, key: int, vm: str, interface: bytes, instance: bytes, user_data: bytes) -> None:
        """Offer a device to a VM, now or as soon as it exists."""

    def revoke(self, key: int, reason: str) -> None:
        """Take the offer back; the guest sees its channel rescinded."""

    def opened(self, key: int, ticket: int, ok: bool) -> None: ...

    def closed(self, key: int, ticket: int) -> None: ...

    def gpadl_accepted(self, key: int, gpadl: int, ticket: int, ok: bool) -> None: ...

    def gpadl_torn_down(self, key: int, gpadl: int, ticket: int) -> None: ...


#: Operation -> types of its arguments.
TO_VSP: dict[str, tuple[type, ...]] = {
    "open": (int, int, int, int),
    "close": (int, int),
    "accept_gpadl": (int, int, int, int),
    "tear_down_gpadl": (int, int, int),
}
TO_PROVIDER: dict[str, tuple[type, ...]] = {
    "offer": (int, str, bytes, bytes, bytes),
    "revoke": (int, str),
    "opened": (int, int, bool),
    "closed": (int, int),
    "gpadl_accepted": (int, int, int, bool),
    "gpadl_torn_down": (int, int, int),
}
MANAGEMENT_TO_PROVIDER: dict[str, tuple[type, ...]] = {"attach": (int, str, str)}
PROVIDER_TO_MANAGEMENT: dict[str, tuple[type, ...]] = {"attached": (int, bool)}


def encode(operation: str, *arguments: Any) -> bytes:
    """A control message. A reason that does not fit is cut."""
    payload: bytes = msgpack.packb([operation, *arguments])
    if len(payload) > MAX_PAYLOAD and isinstance(arguments[-1], str):
        payload = msgpack.packb([operation, *arguments[:-1], arguments[-1][:64]])
    return payload


def dispatch(table: dict[str, tuple[type, ...]], target: object, payload: bytes) -> bool:
    """Call the operation in ``payload`` on ``target``. ``False`` if it is not one of ``table``; nothing happened."""
    try:
        message = msgpack.unpackb(payload)
    except (ValueError, TypeError, msgpack.UnpackException):
        return False
    if not isinstance(message, list) or not message or not isinstance(message[0], str):
        return False
    types = table.get(message[0])
    arguments = message[1:]
    if types is None or tuple(type(argument) for argument in arguments) != types:
        return False
    getattr(target, message[0])(*arguments)
    return True


class RemoteVsp:
    """The provider's proxy of a VSP in another partition."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def open(self, key: int, ticket: int, pid: int, openid: int) -> None:
        self._send(encode("open", key, ticket, pid, openid))

    def close(self, key: int, ticket: int) -> None:
        self._send(encode("close", key, ticket))

    def accept_gpadl(self, key: int, gpadl: int, ticket: int, nbytes: int) -> None:
        self._send(encode("accept_gpadl", key, gpadl, ticket, nbytes))

    def tear_down_gpadl(self, key: int, gpadl: int, ticket: int) -> None:
        self._send(encode("tear_down_gpadl", key, gpadl, ticket))


class RemoteProvider:
    """A VSP's proxy of the provider in the parent partition."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def offer(self, key: int, vm: str, interface: bytes, instance: bytes, user_data: bytes) -> None:
        self._send(encode("offer", key, vm, interface, instance, user_data))

    def revoke(self, key: int, reason: str) -> None:
        self._send(encode("revoke", key, reason))

    def opened(self, key: int, ticket: int, ok: bool) -> None:
        self._send(encode("opened", key, ticket, ok))

    def closed(self, key: int, ticket: int) -> None:
        self._send(encode("closed", key, ticket))

    def gpadl_accepted(self, key: int, gpadl: int, ticket: int, ok: bool) -> None:
        self._send(encode("gpadl_accepted", key, gpadl, ticket, ok))

    def gpadl_torn_down(self, key: int, gpadl: int, ticket: int) -> None:
        self._send(encode("gpadl_torn_down", key, gpadl, ticket))
