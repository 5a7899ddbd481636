"""Where the VMBus provider and a VSP meet: offer, open, GPADL, close, revoke, each with its answer.

In one process the two are each other's objects and this is a call. In two (the disaggregated placement) each
holds a proxy that packs the call into a SynIC control message of at most 240 bytes, ``[operation, *arguments]``
in msgpack, and :func:`dispatch` makes it a call again. Data never goes this way.

``key`` names a device within its VSP; ``ticket`` is used once and comes back with the answer, so that a late
answer is recognised.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgpack

from vmbus_emu.protocol.hypercall import MAX_PAYLOAD

#: Posts a control message; where it matters whether it arrived, what comes back is a future of the status.
Send = Callable[[bytes], Any]

# -- the ports and connections over which it goes, by number --------------------------------------------

MANAGEMENT_CONNECTION = 0x10        # management -> provider, and the port it leads to
MANAGEMENT_ANSWERS = 0x11           # provider -> management
#: Port and connection numbers in the root for partition N are this + N.
FIRST_PARTITION_PORT = 0x1000
#: The number of a VSP partition's own port, and of its connection to the provider.
CONTROL_PORT = 0x10
CHILD_PORT = 1


_RUN = struct.Struct("<QI")
RUN_BYTES = _RUN.size
#: Bytes of runs in one message, whole ones: what 240 bytes leave beside the other arguments.
RUNS_BYTES = 12 * RUN_BYTES


class VspSide(Protocol):
    """What the provider asks of a VSP."""

    def open(
        self, key: int, ticket: int, pid: int, openid: int, doorbell: int, ring_gpadl: int, downstream: int
    ) -> None:
        """The guest opened the channel; only process ``pid`` may speak on it. Answer: ``opened``.

        Where memory is shared: the number of the channel's doorbells, the GPADL that holds its rings, and which of its
        pages is the first of the host-to-guest ring.
        """

    def close(self, key: int, ticket: int) -> None:
        """Answer: ``closed``, once nothing of the channel is in use."""

    def accept_gpadl(
        self, key: int, gpadl: int, ticket: int, nbytes: int, offset: int,
        partition: int, gpa: int, pages: int, runs: bytes,
    ) -> None:
        """The guest describes ``nbytes`` of its memory under a handle. Answer: ``gpadl_accepted``.

        Where memory is shared, they begin at ``offset`` in the pages ``runs`` (:func:`encode_pages`), which lie in the
        region of ``partition``'s I/O memory at ``gpa`` with ``pages`` pages, which has been granted.
        """

    def gpadl_pages(self, key: int, gpadl: int, part: bytes) -> None:
        """A part of ``runs`` too long for one message: it comes before those of ``accept_gpadl``. No answer."""

    def revoked(self, key: int) -> None:
        """The answer to ``revoke``: the guest is told that the channel is gone. A dead provider does not give it."""

    def partition_gone(self, partition: int, vm: str) -> None:
        """That partition of ``vm`` and its memory are no more. No answer."""

    def tear_down_gpadl(self, key: int, gpadl: int, ticket: int) -> None:
        """Answer: ``gpadl_torn_down``, once nothing uses the memory."""


class ProviderSide(Protocol):
    """What a VSP asks of, and answers to, the provider."""

    def hello(self, incarnation: int, offers: Sequence[bytes] = ()) -> None:
        """The first word of a VSP in a partition of its own; what the incarnation before it had is gone. ``offers``: as
        many of its ``offer`` messages as find room in this one, for each message is time without a device."""

    def offer(self, key: int, vm: str, interface: bytes, instance: bytes, user_data: bytes) -> None:
        """Offer a device to a VM, now or as soon as it exists."""

    def revoke(self, key: int, reason: str) -> None:
        """Take the offer back; the guest sees its channel rescinded. Answer: ``revoked``."""

    def opened(self, key: int, ticket: int, ok: bool) -> None: ...

    def closed(self, key: int, ticket: int) -> None: ...

    def gpadl_accepted(self, key: int, gpadl: int, ticket: int, ok: bool) -> None: ...

    def gpadl_torn_down(self, key: int, gpadl: int, ticket: int) -> None: ...


#: Operation -> types of its arguments.
TO_VSP: dict[str, tuple[type, ...]] = {
    "open": (int, int, int, int, int, int, int),
    "close": (int, int),
    "accept_gpadl": (int, int, int, int, int, int, int, int, bytes),
    "gpadl_pages": (int, int, bytes),
    "revoked": (int,),
    "partition_gone": (int, str),
    "tear_down_gpadl": (int, int, int),
}
HELLO: dict[str, tuple[type, ...]] = {"hello": (int, list)}
OFFER: dict[str, tuple[type, ...]] = {"offer": (int, str, bytes, bytes, bytes)}
TO_PROVIDER: dict[str, tuple[type, ...]] = HELLO | OFFER | {
    "revoke": (int, str),
    "opened": (int, int, bool),
    "closed": (int, int),
    "gpadl_accepted": (int, int, int, bool),
    "gpadl_torn_down": (int, int, int),
}
MANAGEMENT_TO_PROVIDER: dict[str, tuple[type, ...]] = {"attach": (int, str, str)}
PROVIDER_TO_MANAGEMENT: dict[str, tuple[type, ...]] = {"attached": (int, bool)}


def encode_pages(pfns: Sequence[int]) -> bytes:
    """Page numbers as runs of adjacent ones, ``(first u64, count u32)`` each: what a VSP is told of a GPADL."""
    runs = []
    first = count = 0
    for pfn in pfns:
        if count and pfn == first + count:
            count += 1
            continue
        if count:
            runs.append(_RUN.pack(first, count))
        first, count = pfn, 1
    runs.append(_RUN.pack(first, count))
    return b"".join(runs)


def decode_pages(runs: bytes) -> list[int]:
    """The inverse of :func:`encode_pages`."""
    return [pfn for first, count in _RUN.iter_unpack(runs) for pfn in range(first, first + count)]


def encode(operation: str, *arguments: Any) -> bytes:
    """A control message. A reason that does not fit is cut."""
    payload: bytes = msgpack.packb([operation, *arguments])
    if len(payload) > MAX_PAYLOAD and isinstance(arguments[-1], str):
        payload = msgpack.packb([operation, *arguments[:-1], arguments[-1][:64]])
    return payload


def fitting(incarnation: int, offers: Sequence[bytes]) -> int:
    """How many of ``offers`` find room in a ``hello``."""
    count = 0
    while count < len(offers) and len(encode("hello", incarnation, [*offers[: count + 1]])) <= MAX_PAYLOAD:
        count += 1
    return count


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
    """The provider's proxy of one incarnation of a VSP in another partition."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def end(self) -> None:
        """That incarnation is dead: what somebody still asks of it must not reach the next one."""
        self._send = lambda payload: None

    def open(
        self, key: int, ticket: int, pid: int, openid: int, doorbell: int, ring_gpadl: int, downstream: int
    ) -> None:
        self._send(encode("open", key, ticket, pid, openid, doorbell, ring_gpadl, downstream))

    def close(self, key: int, ticket: int) -> None:
        self._send(encode("close", key, ticket))

    def accept_gpadl(
        self, key: int, gpadl: int, ticket: int, nbytes: int, offset: int,
        partition: int, gpa: int, pages: int, runs: bytes,
    ) -> None:
        while len(runs) > RUNS_BYTES:
            self.gpadl_pages(key, gpadl, runs[:RUNS_BYTES])
            runs = runs[RUNS_BYTES:]
        self._send(encode("accept_gpadl", key, gpadl, ticket, nbytes, offset, partition, gpa, pages, runs))

    def gpadl_pages(self, key: int, gpadl: int, part: bytes) -> None:
        self._send(encode("gpadl_pages", key, gpadl, part))

    def revoked(self, key: int) -> None:
        self._send(encode("revoked", key))

    def partition_gone(self, partition: int, vm: str) -> None:
        self._send(encode("partition_gone", partition, vm))

    def tear_down_gpadl(self, key: int, gpadl: int, ticket: int) -> None:
        self._send(encode("tear_down_gpadl", key, gpadl, ticket))


class RemoteProvider:
    """A VSP's proxy of the provider in the parent partition."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def hello(self, incarnation: int, offers: Sequence[bytes] = ()) -> Any:
        return self._send(encode("hello", incarnation, list(offers)))

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
