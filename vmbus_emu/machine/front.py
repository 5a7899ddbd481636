"""The front door: the small process that holds the management socket, so that the machine needs no ZeroMQ.

The machine forks, and what forks must own no ZeroMQ context. So this process speaks ZeroMQ with the clients (the
CLI, the Python API) and the lifeline with the machine, and understands nothing of what it relays.

ZeroMQ does not say when a client is gone, and a silent command would run on for nobody. So the process of each client
is watched through a pidfd; the kernel's word says which it is.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from typing import Any

import msgpack
import zmq

from vmbus_emu.lifeline import MAX_MESSAGE, Message
from vmbus_emu.node import Node
from vmbus_emu.zmqport import ZmqPort, peer_pid

#: Connections of one client process that are remembered; a process that makes more has closed the first ones.
MAX_CONNECTIONS = 64


class Front:
    """Requests: one frame of msgpack from a DEALER. Replies: the same, any number per request."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pack = msgpack.Packer(autoreset=True).pack
        self._lost = 0
        self._clients: dict[int, deque[bytes]] = {}     # pid -> its connections' routes, the newest last
        self._port = ZmqPort(node.loop, node.context, zmq.ROUTER, self._received, max_message=MAX_MESSAGE)

    def start(self, config: Message) -> None:
        self._port.bind(config["socket"])
        self._node.ready("front")

    def _received(self, frames: list[zmq.Frame]) -> None:
        if len(frames) != 2:
            return
        try:
            request = msgpack.unpackb(frames[1].buffer)
        except (ValueError, TypeError, msgpack.UnpackException):
            return
        if isinstance(request, dict):
            self._watch(peer_pid(frames[1]), frames[0].bytes)
            with contextlib.suppress(ValueError):  # what is nested too deeply can be read but not written
                self._node.lifeline.send({"t": "request", "client": frames[0].bytes, "request": request})

    def _watch(self, pid: int, route: bytes) -> None:
        routes = self._clients.get(pid)
        if routes is not None:
            if route not in routes:
                routes.append(route)
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return  # gone already: the next reply will find out
        self._clients[pid] = deque([route], MAX_CONNECTIONS)
        self._node.loop.watch(pidfd, lambda events: self._gone(pid, pidfd))

    def _gone(self, pid: int, pidfd: int) -> None:
        self._node.loop.unwatch(pidfd)
        os.close(pidfd)
        for route in self._clients.pop(pid):
            self._node.lifeline.send({"t": "client_gone", "client": route})

    def handle(self, message: Message, fds: list[int]) -> None:
        if message["t"] == "reply" and not self._port.send(message["client"], self._pack(message["reply"])):
            self._lost += 1
            self._node.lifeline.send({"t": "client_gone", "client": message["client"]})

    def stop(self) -> None:
        """The last reply must reach the client before the process ends; a client that is gone costs 0.2 s."""
        self._port.flush_and_close(0.2)

    def stats(self) -> dict[str, dict[str, Any]]:
        return {"front": {"counters": {"lost_replies": self._lost}}}
