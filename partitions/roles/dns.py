"""The role ``dns``: a DNS server on the host's loopback for the names of the VMs (:mod:`partitions.roles.zone`).

One loop, sockets that never block. Who connects over TCP has a time and a number of connections, so that nobody holds
the server up.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from typing import Any

from partitions.roles.listening import LOOPBACK, ListenFailed, same_port
from partitions.roles.zone import Zone
from vmbus_emu.lifeline import Message
from vmbus_emu.loop import READ, WRITE, Timer
from vmbus_emu.node import Node

#: The largest UDP datagram there is.
_LARGEST = 65535
#: Datagrams answered before the loop looks at anything else.
_TURN = 64
#: TCP connections at a time, and how long one may take, in seconds.
MOST_CONNECTIONS = 32
CONNECTION_S = 5.0


class DnsRole:
    """Told the machine's name and its VMs at its start, and the VMs again whenever they change."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._zone: Zone | None = None
        self._counters = dict.fromkeys(("answered", "ignored", "connections", "refused_connections"), 0)
        self._last: float | None = None
        self._connections: set[_Connection] = set()

    def start(self, config: Message) -> None:
        self._zone = Zone(config["machine"], config["hosts"])
        try:
            self._udp, self._tcp = same_port(config["port"], config["fallback"])
        except ListenFailed as error:
            self._node.lifeline.send({"t": "not_started", "component": self._node.name, "why": str(error)})
            return
        self._node.loop.watch(self._udp.fileno(), self._datagrams)
        self._node.loop.watch(self._tcp.fileno(), self._connected)
        port = self._udp.getsockname()[1]
        self._node.ready(
            self._node.name, port=port, listens=[f"udp {LOOPBACK}:{port}", f"tcp {LOOPBACK}:{port}"],
            hint=f"dig @{LOOPBACK} -p {port} {next(iter(config['hosts']), 'NAME')}.{self._zone.origin.to_text(True)}",
        )  # fmt: skip

    def handle(self, message: Message, fds: list[int]) -> None:
        if message["t"] == "hosts" and self._zone is not None:
            self._zone.replace(message["hosts"])

    def stats(self) -> Mapping[str, Mapping[str, Any]]:
        figures = {"io": self._counters["answered"], "last_io": self._last, "counters": self._counters}
        return {self._node.name: figures}

    def answer(self, query: bytes, udp: bool) -> bytes | None:
        """The answer to a query, counted."""
        assert self._zone is not None
        answer = self._zone.answer(query, udp)
        self._counters["ignored" if answer is None else "answered"] += 1
        if answer is not None:
            self._last = self._node.loop.now
        return answer

    def _datagrams(self, events: int) -> None:
        for _ in range(_TURN):
            try:
                query, sender = self._udp.recvfrom(_LARGEST)
            except BlockingIOError:
                return
            except OSError:                         # what an earlier answer met at a port that is closed
                continue
            answer = self.answer(query, udp=True)
            if answer is not None:
                with contextlib.suppress(OSError):  # its sender is gone, or does not read: UDP loses
                    self._udp.sendto(answer, sender)

    def _connected(self, events: int) -> None:
        with contextlib.suppress(OSError):          # it is gone already
            connection, _ = self._tcp.accept()
            if len(self._connections) >= MOST_CONNECTIONS:
                self._counters["refused_connections"] += 1
                connection.close()
                return
            self._counters["connections"] += 1
            self._connections.add(_Connection(self._node, connection, self))

    def closed(self, connection: _Connection) -> None:
        self._connections.discard(connection)


class _Connection:
    """One TCP connection: queries with two bytes of length before each (RFC 1035, 4.2.2), answered in order."""

    def __init__(self, node: Node, end: socket.socket, role: DnsRole) -> None:
        self._loop = node.loop
        self._end = end
        self._role = role
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._timer: Timer = self._loop.call_later(CONNECTION_S, self._close)
        end.setblocking(False)
        self._loop.watch(end.fileno(), self._ready)

    def _ready(self, events: int) -> None:
        try:
            if events & WRITE and self._outgoing:
                del self._outgoing[: self._end.send(self._outgoing)]
            if not self._outgoing:                  # who does not read its answers is not read from
                data = self._end.recv(_LARGEST)
                self._incoming += data
                if not data:
                    self._close()
                    return
                self._answer()
        except BlockingIOError:
            pass
        except OSError:
            self._close()
            return
        self._loop.watch(self._end.fileno(), self._ready, WRITE if self._outgoing else READ)

    def _answer(self) -> None:
        while len(self._incoming) >= 2:
            size = 2 + int.from_bytes(self._incoming[:2], "big")
            if len(self._incoming) < size:
                return
            answer = self._role.answer(bytes(self._incoming[2:size]), udp=False)
            del self._incoming[:size]
            if answer is not None:
                self._outgoing += len(answer).to_bytes(2, "big") + answer

    def _close(self) -> None:
        self._timer.cancel()
        self._loop.unwatch(self._end.fileno())
        self._end.close()
        self._role.closed(self)
