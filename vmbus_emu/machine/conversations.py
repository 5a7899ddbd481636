"""Conversations between clients and the machine, which outlive the front door that carries them.

When a front door dies, requests and replies die with it. So both ends number what they say and keep it until the other
has heard it; through the next door they say it again. A request is carried out once, and a reply arrives once, in
order. That holds for every verb, so nobody above this knows of doors.

A request carries ``talk`` (the client's name for the conversation: :data:`KEY_BYTES` random bytes), ``id`` (1, 2 …) and
``heard`` (the number of the last reply that arrived). A reply carries ``number`` (1, 2 …) and ``taken`` (the ``id`` of
the last request that arrived here). A request with ``id`` 0 asks for nothing: it says ``heard``, and that the client is
still there, which is how the machine learns of its way through a new door. A reply without ``number`` answers that:
what is later than ``taken`` is to be sent again; or, with ``error``, that this conversation has ended.

A request without ``talk`` is one of a client that wants none of this: it is carried out and answered on its connection.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgpack

if TYPE_CHECKING:
    from vmbus_emu.lifeline import Message
    from vmbus_emu.loop import Loop

KEY_BYTES = 16
#: Bytes of replies that are kept for a client that does not say it heard them; with more its conversation ends.
MOST_UNHEARD = 16 << 20
#: Conversations of one process; one that begins more has closed the first ones.
MOST_OF_ONE = 256
#: The verb of a request that asks for nothing.
HEARD = "heard"

_ENDED: Mapping[str, Any] = {
    "id": 0, "error": "the machine does not know this client any more: its replies were not read for too long",
    "hint": "try again",
}  # fmt: skip


class _Conversation:
    """One. ``route``: its connection at the front door; ``None``: that door is gone, and no other one known yet."""

    __slots__ = ("kept", "pid", "route", "sent", "size", "taken", "unheard")

    def __init__(self, pid: int, route: bytes, kept: bool) -> None:
        self.pid = pid
        self.route: bytes | None = route
        self.kept = kept
        self.taken = self.sent = self.size = 0
        self.unheard: deque[tuple[int, bytes]] = deque()

    def heard(self, number: int) -> None:
        while self.unheard and self.unheard[0][0] <= number:
            self.size -= len(self.unheard.popleft()[1])


class Conversations:
    """``send(message)`` reaches the front door, if there is one. ``carry_out(client, request)`` is told of each request
    once, ``gone(client)`` when a client will not be heard of again."""

    def __init__(
        self, loop: Loop, send: Callable[[Message], Any], carry_out: Callable[[bytes, Message], Any],
        gone: Callable[[bytes], Any],
    ) -> None:
        self._loop = loop
        self._send = send
        self._carry_out = carry_out
        self._gone = gone
        self._known: dict[bytes, _Conversation] = {}
        self._watched: set[int] = set()             # pids of clients

    # -- from clients ---------------------------------------------------------------------------------

    def arrived(self, route: bytes, pid: int, request: Message) -> None:
        """A request came in by the connection ``route`` of process ``pid``."""
        key, number, heard = request.get("talk"), request.get("id"), request.get("heard")
        if not (isinstance(key, bytes) and len(key) == KEY_BYTES and type(number) is int and type(heard) is int):
            if route not in self._known:
                self._begin(route, pid, route, kept=False)
            self._carry_out(route, request)
            return
        one = self._known.get(key)
        begins = one is None
        if heard if one is None else one.pid != pid:
            self._to(route, msgpack.packb(_ENDED))  # it has ended; or the name is somebody else's
            return
        if one is None:
            one = self._begin(key, pid, route, kept=True)
        one.heard(heard)
        moved = one.route != route
        if moved:
            one.route = route
            for _, raw in one.unheard:
                self._to(route, raw)
        if number == one.taken + 1:
            one.taken = number
            if request.get("verb") != HEARD:
                self._carry_out(key, request)
        elif moved or begins:                       # requests before this one were lost with a door
            self._to(route, msgpack.packb({"id": 0, "taken": one.taken}))

    def _begin(self, key: bytes, pid: int, route: bytes, kept: bool) -> _Conversation:
        one = self._known[key] = _Conversation(pid, route, kept)
        of_one = [name for name, other in self._known.items() if other.pid == pid]
        for name in of_one[:-MOST_OF_ONE]:
            self._end(name)
        self._watch(pid)
        return one

    def _watch(self, pid: int) -> None:
        """ZeroMQ does not say when a client is gone, and a silent command would run on for nobody. The kernel does."""
        if pid in self._watched or not pid:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return                                  # gone already: the front door will find nobody to tell
        self._watched.add(pid)
        self._loop.watch(pidfd, lambda events: self._process_ended(pid, pidfd))

    def _process_ended(self, pid: int, pidfd: int) -> None:
        self._loop.unwatch(pidfd)
        os.close(pidfd)
        self._watched.discard(pid)
        for key in [key for key, one in self._known.items() if one.pid == pid]:
            self._end(key)

    def _end(self, key: bytes) -> None:
        if self._known.pop(key, None) is not None:
            self._gone(key)

    # -- to clients -----------------------------------------------------------------------------------

    def reply(self, client: bytes, reply: Message) -> None:
        """Say something to a client, now or when it has found the next door. Of no effect if it is gone."""
        one = self._known.get(client)
        if one is None:
            return
        if not one.kept:
            self._to(client, msgpack.packb(reply))
            return
        one.sent += 1
        raw = msgpack.packb({**reply, "number": one.sent, "taken": one.taken})
        one.unheard.append((one.sent, raw))
        one.size += len(raw)
        if one.size > MOST_UNHEARD:
            self._loop.call_soon(self._end, client)  # not now: whoever replies may be about to tell others, too
        elif one.route is not None:
            self._to(one.route, raw)

    def _to(self, route: bytes, raw: bytes) -> None:
        self._send({"t": "reply", "client": route, "reply": raw})

    # -- of the front door ----------------------------------------------------------------------------

    def unreachable(self, route: bytes) -> None:
        """The front door has no such connection any more: the client has closed it."""
        for key in [key for key, one in self._known.items() if one.route == route]:
            self._end(key)

    def front_gone(self) -> None:
        """The front door died, and all connections with it. Clients connect to the next one."""
        for key, one in list(self._known.items()):
            if one.kept:
                one.route = None
            else:
                self._end(key)
