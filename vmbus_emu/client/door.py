"""A client's connection to a running machine: requests out, replies in, a deadline on everything.

Used by :mod:`vmbus_emu.client`. A machine that does not answer is described, not waited for: dead, stopped by a
signal (with its pid and how to continue it), or silent.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import msgpack
import zmq

from vmbus_emu.client.errors import DEADLINE_S, MachineError, NotRunning, checked
from vmbus_emu.lifeline import MAX_MESSAGE
from vmbus_emu.procfs import process_state
from vmbus_emu.runfolder import RunFolder

Reply = dict[str, Any]


class Door:
    """One connection. Not for several threads at once."""

    def __init__(self, folder: RunFolder) -> None:
        """Raises :class:`NotRunning`."""
        self._folder = folder
        pid = folder.holder()
        if pid is None:
            raise NotRunning(f'"{folder.name}" is not running', "start it with vmbus-emu up")
        self.pid = pid
        try:
            self.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise NotRunning(f'"{folder.name}" is not running', "start it with vmbus-emu up") from None
        self._numbers = itertools.count(1)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(1)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 16 * MAX_MESSAGE)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)  # bounded by credit and by the number of requests
        self._socket.connect("ipc://" + folder.socket("front.sock"))
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self.pidfd, zmq.POLLIN)

    def send(self, verb: str, **fields: Any) -> int:
        """Send a request; its number."""
        number = next(self._numbers)
        self._socket.send(msgpack.packb({"id": number, "verb": verb, **fields}))
        return number

    def receive(self, deadline: float | None, also: int | None = None) -> Reply | None:
        """The next reply; ``None`` when ``deadline`` (monotonic seconds) passed, or descriptor ``also`` is readable.

        Raises :class:`MachineError` when the machine dies first.
        """
        if also is not None:
            self._poller.register(also, zmq.POLLIN)
        try:
            while True:
                left = None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000) + 1)
                ready = dict(self._poller.poll(left))
                if self._socket in ready:
                    reply: Reply = msgpack.unpackb(self._socket.recv())
                    return reply
                if self.pidfd in ready:
                    raise MachineError(f'"{self._folder.name}" died: its machine process (pid {self.pid}) is gone')
                return None
        finally:
            if also is not None:
                self._poller.unregister(also)

    def ask(self, verb: str, timeout: float = DEADLINE_S, **fields: Any) -> Reply:
        """A request with one reply. Raises :class:`MachineError` for a refusal, or when there is no answer."""
        number = self.send(verb, **fields)
        deadline = time.monotonic() + timeout
        while (reply := self.receive(deadline)) is not None:
            if reply.get("id") == number:
                return checked(reply)
        raise self.silence(timeout)

    def silence(self, timeout: float) -> MachineError:
        """Why the machine does not answer, as far as can be seen from outside."""
        what = f'"{self._folder.name}" did not answer within {timeout:g} s'
        if process_state(self.pid) in ("T", "t"):
            return MachineError(f"{what}: its machine process (pid {self.pid}) is stopped", f"kill -CONT {self.pid}")
        return MachineError(f"{what}: its machine process (pid {self.pid}) is busy or stuck",
                            "try again, or take it down with vmbus-emu down")

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()
        os.close(self.pidfd)
