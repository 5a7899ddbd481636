"""Envelopes between a partition and the hypervisor travel together: one ZeroMQ message has one, or an array of several.

What a process has to say in one round of its loop leaves at once. Each message costs both ends four wake-ups (of a
process, and of a ZeroMQ thread), which is more than all there is to do about what it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgpack

from vmbus_emu.protocol.hypercall import MAX_ENVELOPE

#: Envelopes in one message: as many as the shortest header of an array can say.
MOST = 15
#: Bytes of the longest message.
MAX_MESSAGE = MOST * MAX_ENVELOPE + 1
_ARRAY = 0x90


def together(envelopes: Sequence[bytes]) -> Iterator[tuple[bytes, Sequence[bytes]]]:
    """The messages that carry packed ``envelopes``, in their order, each with those that are in it."""
    for begin in range(0, len(envelopes), MOST):
        some = envelopes[begin : begin + MOST]
        yield (some[0] if len(some) == 1 else bytes((_ARRAY | len(some),)) + b"".join(some)), some


def apart(message: Any) -> Sequence[Any]:
    """The envelopes in a message, unpacked. Those of a stranger may be anything.

    Raises ``ValueError``, ``TypeError`` or ``msgpack.UnpackException`` if it is not msgpack, or more than :data:`MOST`.
    """
    unpacked = msgpack.unpackb(message, use_list=False)
    if not isinstance(unpacked, tuple) or not unpacked or not isinstance(unpacked[0], tuple):
        return (unpacked,)
    if len(unpacked) > MOST:
        raise ValueError(f"{len(unpacked)} envelopes in one message")
    return unpacked
