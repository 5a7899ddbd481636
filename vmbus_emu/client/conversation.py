"""A client's end of its conversation with the machine: what it said and may have to say again. No I/O.

:mod:`vmbus_emu.machine.conversations` is the other end, and says what the fields mean.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import msgpack

from vmbus_emu.client.errors import Forgotten
from vmbus_emu.machine.conversations import HEARD, KEY_BYTES

Message = dict[str, Any]
#: After so many replies the machine is told, which keeps them until then; most often a request says it before.
_TOLD_AFTER = 64


class Conversation:
    """``request``, ``here`` and ``arrived`` give messages, packed, that are to be sent now."""

    def __init__(self) -> None:
        self._key = os.urandom(KEY_BYTES)
        self._count = 0
        self._heard = self._told = 0                # the last reply that came; the last that the machine was told of
        self._unheard: deque[Message] = deque()     # requests that may not have arrived

    def request(self, verb: str, fields: Message) -> tuple[int, bytes]:
        """A new request: its number, and the message."""
        self._count += 1
        self._unheard.append({"id": self._count, "verb": verb, **fields})
        return self._count, self._packed(self._unheard[-1])

    def here(self) -> bytes:
        """A message that asks for nothing. If the front door is a new one, what was lost with the old one follows."""
        return self._packed({"id": 0, "verb": HEARD})

    def withdraw(self, number: int) -> None:
        """Nobody waits for the answer to that request any more: it is not said again."""
        for request in self._unheard:
            if request["id"] == number:
                request.clear()
                request.update(id=number, verb=HEARD)

    def arrived(self, raw: bytes) -> tuple[Message | None, list[bytes]]:
        """A message of the machine: the reply in it, unless it came before or there is none; and what to send.

        Raises :class:`Forgotten`.
        """
        reply: Message = msgpack.unpackb(raw)
        number, taken = reply.pop("number", 0), reply.pop("taken", 0)
        while self._unheard and self._unheard[0]["id"] <= taken:
            self._unheard.popleft()
        if not number:
            if "error" in reply:
                raise Forgotten(reply["error"], reply.get("hint", ""))
            return None, [self._packed(request) for request in self._unheard]
        if number <= self._heard:
            return None, []
        self._heard = number
        return reply, [self.here()] if number - self._told >= _TOLD_AFTER else []

    def _packed(self, request: Message) -> bytes:
        self._told = self._heard
        packed: bytes = msgpack.packb({**request, "talk": self._key, "heard": self._heard})
        return packed
