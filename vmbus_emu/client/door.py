"""A client's connection to a running machine: requests out, replies in, a deadline on everything.

Used by :mod:`vmbus_emu.client`. A machine that does not answer is described, not waited for: dead, stopped by a
signal (with its pid and how to continue it), or silent. A front door that dies and is replaced meanwhile only costs
time (:mod:`vmbus_emu.client.conversation`).
"""

from __future__ import annotations

import os
import time
from typing import Any

import zmq

from vmbus_emu.client.conversation import Conversation
from vmbus_emu.client.errors import DEADLINE_S, STOPPED_S, MachineError, NotRunning, Stopped, checked
from vmbus_emu.lifeline import MAX_MESSAGE
from vmbus_emu.procfs import is_stopped, start_time
from vmbus_emu.runfolder import RunFolder

Reply = dict[str, Any]
#: While nothing comes, the machine's processes are looked at so often before patience ends.
_LOOKS = 6
#: Who waits and hears nothing for so many seconds says that it is there: the front door may be a new one.
_HERE_S = 0.5


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
        self._conversation = Conversation()
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
        self._next_look = 0.0
        self._stopped_since: float | None = None      # monotonic seconds
        self._quiet_since = time.monotonic()

    def send(self, verb: str, **fields: Any) -> int:
        """Send a request; its number."""
        number, message = self._conversation.request(verb, fields)
        self._send(message)
        return number

    def _send(self, message: bytes) -> None:
        self._socket.send(message)
        self._quiet_since = time.monotonic()

    def withdraw(self, number: int) -> None:
        """Nobody waits for that request any more: if it was lost with a front door, it stays lost."""
        self._conversation.withdraw(number)

    def receive(
        self, deadline: float | None, also: int | None = None, patience: float = DEADLINE_S
    ) -> Reply | None:
        """The next reply; ``None`` when ``deadline`` (monotonic seconds) passed, or descriptor ``also`` is readable.

        Raises :class:`MachineError` when the machine dies first, :class:`Stopped` when it has been seen stopped for
        ``patience`` seconds, and :class:`Forgotten` when it has ended this conversation.
        """
        if also is not None:
            self._poller.register(also, zmq.POLLIN)
        try:
            while True:
                left = min(patience / _LOOKS, _HERE_S)
                if deadline is not None:
                    left = min(left, deadline - time.monotonic())
                ready = dict(self._poller.poll(max(0, int(left * 1000) + 1)))
                if self._socket in ready:
                    self._stopped_since = None
                    reply = self._take(self._socket.recv())
                    if reply is not None:
                        return reply
                    continue
                if self.pidfd in ready:
                    raise MachineError(f'"{self._folder.name}" died: its machine process (pid {self.pid}) is gone')
                if not ready:
                    self._look(patience)
                    if time.monotonic() - self._quiet_since >= _HERE_S:
                        self._send(self._conversation.here())
                if ready or (deadline is not None and time.monotonic() >= deadline):
                    return None
        finally:
            if also is not None:
                self._poller.unregister(also)

    def _take(self, message: bytes) -> Reply | None:
        self._quiet_since = time.monotonic()
        reply, answers = self._conversation.arrived(message)
        for answer in answers:
            self._send(answer)
        return reply

    def ask(self, verb: str, timeout: float = DEADLINE_S, **fields: Any) -> Reply:
        """A request with one reply. Raises :class:`MachineError` for a refusal, or when there is no answer."""
        number = self.send(verb, **fields)
        deadline = time.monotonic() + timeout
        while (reply := self.receive(deadline, patience=STOPPED_S)) is not None:
            if reply.get("id") == number:
                return checked(reply)
        self.withdraw(number)
        raise self.silence(timeout)

    def _look(self, patience: float) -> None:
        """Is there anybody who could answer? Two looks decide, ``patience`` apart: a moment's stop concerns nobody."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + patience / _LOOKS
        stopped = self._stopped()
        if not stopped:
            self._stopped_since = None
        elif self._stopped_since is None:
            self._stopped_since = now
        elif now - self._stopped_since >= patience:
            raise Stopped(f'"{self._folder.name}" does not answer: {stopped[0]}', stopped[1])

    def _stopped(self) -> tuple[str, str] | None:
        """Who is stopped, and how to continue it."""
        what, pid = "machine process", self.pid
        if not is_stopped(pid):
            what, pid = "front door", self._front()
        return (f"its {what} (pid {pid}) is stopped", f"kill -CONT {pid}") if is_stopped(pid) else None

    def _front(self) -> int:
        """The pid of the front door; 0 if it is not known. The machine recorded it, and those before."""
        try:
            lines = (self._folder.path / "pids").read_text().splitlines()
        except OSError:
            return 0
        for words in (line.split() for line in reversed(lines)):
            if words[2:] == ["front"]:
                return int(words[0]) if start_time(int(words[0])) == int(words[1]) else 0
        return 0

    def silence(self, timeout: float) -> MachineError:
        """Why the machine does not answer, as far as can be seen from outside."""
        what = f'"{self._folder.name}" did not answer within {timeout:g} s'
        stopped = self._stopped()
        if stopped:
            return Stopped(f"{what}: {stopped[0]}", stopped[1])
        return MachineError(f"{what}: its machine process (pid {self.pid}) is busy or stuck",
                            "try again, or take it down with vmbus-emu down")

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()
        os.close(self.pidfd)
