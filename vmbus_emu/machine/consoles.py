"""The VMs' serial consoles: command sessions between clients and guests, over the lifelines.

They do not pass the parent partition or the hypervisor, so they survive both. A session is one guest command.
Both directions are bounded by credit: whoever consumes a chunk gives its sender one back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vmbus_emu.lifeline import Message
from vmbus_emu.machine.supervisor import Process

#: The status of a command whose VM died under it, as a shell reports a process killed by SIGKILL.
VM_DIED = 137

Reply = Callable[[bytes, Message], Any]


@dataclass(slots=True)
class _Session:
    client: bytes
    request: int
    vm: str
    process: Process


class Consoles:
    """The open sessions. ``reply(client, message)`` answers a client."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._numbers = itertools.count(1)
        self._sessions: dict[int, _Session] = {}

    def start(self, client: bytes, request: int, vm: str, process: Process, argv: list[str]) -> None:
        """Run ``argv`` in ``vm``, carried by ``process``. The client learns the session's number first."""
        number = next(self._numbers)
        self._sessions[number] = _Session(client, request, vm, process)
        self._reply(client, {"id": request, "session": number})
        process.line.send({"t": "exec", "session": number, "vm": vm, "argv": argv})

    def from_client(self, client: bytes, message: Message) -> None:
        """``stdin``, ``credit`` or ``cancel`` for a session of this client; anything else is ignored."""
        session = self._sessions.get(message.get("session", 0))
        if session is not None and session.client == client:
            session.process.line.send({"t": message["verb"], **{k: v for k, v in message.items() if k != "verb"}})

    def from_guest(self, message: Message) -> None:
        """``out``, ``need`` (credit for stdin) or ``exit`` of a session."""
        number = message["session"]
        session = self._sessions.get(number)
        if session is None:
            return
        self._reply(session.client, {"id": session.request, **message})
        if message["t"] == "exit":
            del self._sessions[number]

    def client_gone(self, client: bytes) -> None:
        """A client cannot be reached any more: its commands are cancelled."""
        for number, session in list(self._sessions.items()):
            if session.client == client:
                del self._sessions[number]
                session.process.line.send({"t": "cancel", "session": number})

    def process_died(self, process: Process) -> None:
        """End the sessions that ``process`` carried."""
        for vm in {session.vm for session in self._sessions.values() if session.process is process}:
            self.vm_died(vm, f"{vm} died: {process.name} (pid {process.pid}) was {process.ending}")

    def vm_died(self, vm: str, reason: str) -> None:
        """End the sessions in ``vm``."""
        for number, session in list(self._sessions.items()):
            if session.vm == vm:
                del self._sessions[number]
                ending = {"t": "exit", "session": number, "status": VM_DIED, "reason": reason}
                self._reply(session.client, {"id": session.request, **ending})
