"""The VMs' serial consoles: command sessions between clients and guests, over the lifelines.

They do not pass the parent partition or the hypervisor, so they survive both. A session is one guest command.
Both directions are bounded by credit: whoever consumes a chunk gives its sender one back. A guest that writes
without credit loses the session, for what its client has not read would pile up here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vmbus_emu.lifeline import WINDOW, Message
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
    #: Chunks of output that the client has not given back; chunks of input that the guest has not.
    unread: int = 0
    fed: int = 0


#: What a client may say in a session, with the fields that the guest gets.
_FROM_CLIENT = {"stdin": ("data", "end"), "credit": ("chunks",), "cancel": ()}


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

    def from_client(self, client: bytes, request: int, message: Message) -> None:
        """``stdin``, ``credit`` or ``cancel`` for a session of this client; anything else is ignored."""
        number = message.get("session", 0)
        session = self._sessions.get(number)
        if session is None or session.client != client:
            return
        verb = message["verb"]
        session.fed += verb == "stdin"
        if verb == "credit":
            session.unread = max(0, session.unread - message.get("chunks", 1))
        fields = {name: message[name] for name in _FROM_CLIENT[verb] if name in message}
        session.process.line.send({"t": verb, "session": number, **fields})

    def from_guest(self, process: Process, message: Message) -> bool:
        """``out``, ``need`` (credit for stdin) or ``exit``. ``False``: not a session of ``process``, or no credit."""
        number = message["session"]
        session = self._sessions.get(number)
        if session is None or session.process is not process:
            return False
        answer: Message = {"id": session.request, "t": message["t"], "session": number}
        match message["t"]:
            case "out":
                session.unread += 1
                if session.unread > WINDOW:
                    process.line.send({"t": "cancel", "session": number})
                    self._end(number, session, 1, f"{session.vm} wrote more than its reader allowed")
                    return False
                self._reply(session.client, {**answer, "stream": message["stream"], "data": message["data"]})
            case "need":
                if not 0 < message["chunks"] <= session.fed:
                    return False
                session.fed -= message["chunks"]
                self._reply(session.client, {**answer, "chunks": message["chunks"]})
            case "exit":
                status = message["status"] if 0 <= message["status"] <= 255 else 1
                self._reply(session.client, {**answer, "status": status})
                del self._sessions[number]
        return True

    def _end(self, number: int, session: _Session, status: int, reason: str) -> None:
        del self._sessions[number]
        ending = {"t": "exit", "session": number, "status": status, "reason": reason}
        self._reply(session.client, {"id": session.request, **ending})

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
                self._end(number, session, VM_DIED, reason)
