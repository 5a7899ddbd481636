"""The front door: the small process that holds the management socket, so that the machine needs no ZeroMQ.

The machine forks, and what forks must own no ZeroMQ context. So this process speaks ZeroMQ with the clients (the
CLI, the Python API) and the lifeline with the machine, and understands nothing of what it relays. It keeps nothing
either: whatever dies with it is said again through the next one (:mod:`vmbus_emu.machine.conversations`).
"""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import zmq

from vmbus_emu.lifeline import MAX_MESSAGE, Message
from vmbus_emu.node import Node
from vmbus_emu.zmqport import ZmqPort, peer_pid

#: Messages that wait for one client, or for us; the machine has its own bound on the former.
_QUEUE = 20_000


class Front:
    """Requests: one frame of msgpack from a DEALER. Replies: the same, any number per request, packed by the machine.

    The machine learns from which connection a request came, and of which process that is by the kernel's word.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lost = 0
        self._port = ZmqPort(
            node.loop, node.context, zmq.ROUTER, self._received, max_message=MAX_MESSAGE, queue=_QUEUE
        )

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
            route, pid = frames[0].bytes, peer_pid(frames[1])
            with contextlib.suppress(ValueError):  # what is nested too deeply can be read but not written
                self._node.lifeline.send({"t": "request", "client": route, "pid": pid, "request": request})

    def handle(self, message: Message, fds: list[int]) -> None:
        if message["t"] == "reply" and not self._port.send(message["client"], message["reply"]):
            self._lost += 1
            self._node.lifeline.send({"t": "client_gone", "client": message["client"]})

    def stop(self) -> None:
        """The last reply must reach the client before the process ends; a client that is gone costs 0.2 s."""
        self._port.flush_and_close(0.2)

    def stats(self) -> dict[str, dict[str, Any]]:
        return {"front": {"counters": {"lost_replies": self._lost}}}
