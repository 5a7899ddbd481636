"""What clients ask for, by verb: looked at once here, handed to whoever carries it out, and refused in one way.

A handler answers through the reply that it was given, now or later. What it cannot do it refuses
(:class:`vmbus_emu.machine.intake.Refused`), which is the answer then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vmbus_emu.lifeline import Message
from vmbus_emu.machine import intake
from vmbus_emu.machine.intake import Refused

Reply = Callable[[bytes, Message], Any]
#: Called with the client, the number of its request, and the request, at which :func:`intake.understood` has looked.
Handler = Callable[[bytes, int, Message], Any]


class Requests:
    """``handlers`` by verb, one for each in :data:`intake.REQUESTS`; ``settled()`` is called after each request."""

    def __init__(self, reply: Reply, handlers: Mapping[str, Handler], settled: Callable[[], Any]) -> None:
        self._reply = reply
        self._handlers = handlers
        self._settled = settled
        assert handlers.keys() == intake.REQUESTS.keys(), handlers.keys() ^ intake.REQUESTS.keys()

    def arrived(self, client: bytes, request: Message) -> None:
        number = request.get("id", 0)
        if type(number) is not int:
            number = 0
        wrong = intake.understood(request)
        if wrong:
            self._reply(client, {"id": number, "error": wrong})
            return
        try:
            self._handlers[request["verb"]](client, number, request)
        except Refused as refused:
            error, hint = refused.args
            self._reply(client, {"id": number, "error": error, "hint": hint})
        self._settled()
