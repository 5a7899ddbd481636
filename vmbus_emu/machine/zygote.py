"""A zygote: a process that has loaded one role's code and forks processes of that role, in a few milliseconds.

VMs are many and alike, so their code is loaded once, here; the machine itself stays free of it, and so does every
process of another role. A zygote forks twice: the process in the middle ends at once, and the new one becomes a
child of the machine (the reaper of its orphans), which so keeps the parent-death signal, the exit status and
the signal of every process. It owns no ZeroMQ context and no thread.

**Why it does so little.** A page stays shared between processes until one of them writes to it, and running Python
writes to every object it touches. Whatever the zygote touches between two births is a private page of the child
born before. So between births it runs a blocking receive, a fork and a wait, and nothing else: the request is
taken apart in the child. That is worth about half a megabyte per VM.
"""

from __future__ import annotations

import ctypes
import gc
import os
import socket
from typing import Any, NoReturn

import msgpack

from vmbus_emu import node
from vmbus_emu.lifeline import MAX_MESSAGE, Message
from vmbus_emu.node import EVIDENCE, Birth, Node, load

_M_ARENA_MAX = -8
_STOP = msgpack.packb({"t": "stop"})


class Zygote:
    """Told what to load (``entries``) at its start; from then on every message but ``stop`` is a birth, or the
    question what it has loaded."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def start(self, config: Message) -> None:
        for entry in config["entries"]:
            load(entry)
        # ZeroMQ's threads would each get a malloc arena of their own, in every one of many small processes.
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
        self._node.ready(self._node.name)
        line = self._node.lifeline.take_over()
        gc.collect()
        gc.freeze()
        _bear_for_ever(line)

    def handle(self, message: Message, fds: list[int]) -> None:
        """Nothing arrives here: the lifeline is read directly after the start."""

    def stats(self) -> dict[str, dict[str, Any]]:
        return {}


def _bear_for_ever(line: socket.socket) -> NoReturn:
    while True:
        raw, fds, _, _ = socket.recv_fds(line, MAX_MESSAGE, 3)
        if not raw or raw == _STOP:
            os._exit(0)
        middle = os.fork()
        if middle == 0:
            _bear(line, raw, fds)
        for fd in fds:
            os.close(fd)
        os.waitpid(middle, 0)  # from here on the new process is the machine's child


def _bear(line: socket.socket, raw: bytes, fds: list[int]) -> NoReturn:
    """In the middle process. ``fds``: the new one's lifeline, its log, and its descriptor socket."""
    order = msgpack.unpackb(raw)
    if order["t"] == "loaded":  # a copy has everything in memory that the zygote has, and so can answer for it
        line.send(msgpack.packb({"t": "loaded", "id": order["id"], "files": load(EVIDENCE)()}))
        os._exit(0)
    middle = os.getpid()
    pid = os.fork()
    birth = Birth(**order["birth"])
    if pid == 0:
        node.enter(birth, socket.socket(fileno=fds[0]), socket.socket(fileno=fds[2]), fds[1], middle)
    line.send(msgpack.packb({"t": "born", "name": birth.name, "incarnation": birth.incarnation, "pid": pid}))
    os._exit(0)
