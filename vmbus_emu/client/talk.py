"""Many requests under way at one door, and the guest commands among them, without a thread.

Each reply goes to whoever asked. :class:`GuestCommand` runs one command in a guest and keeps what it says,
:class:`Attempt` runs it until it succeeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmbus_emu.client.errors import DEADLINE_S, STOPPED_S, checked

if TYPE_CHECKING:
    from vmbus_emu.client.door import Door

Reply = dict[str, Any]
#: Before a guest command that failed is tried again.
_RETRY_S = 0.05
#: How often a condition is looked at that no reply announces, in seconds: at first, and at last.
_FIRST_LOOK_S, _LAST_LOOK_S = 0.002, 0.1


class Talk:
    """One conversation with a machine. Whatever waits raises :class:`MachineError` when the machine dies."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self._handlers: dict[int, Callable[[Reply], Any]] = {}

    def begin(self, handler: Callable[[Reply], Any], verb: str, **fields: Any) -> int:
        """Send a request; ``handler`` gets every reply to it. Its number."""
        number = self.door.send(verb, **fields)
        self._handlers[number] = handler
        return number

    def ask(self, verb: str, timeout: float, **fields: Any) -> Reply:
        """A request with one reply, which is given here. Raises :class:`MachineError` for a refusal or no answer."""
        replies: list[Reply] = []
        number = self.begin(replies.append, verb, **fields)
        answered = self.until(lambda: bool(replies), time.monotonic() + timeout, STOPPED_S)
        del self._handlers[number]
        if not answered:
            self.door.withdraw(number)
            raise self.door.silence(timeout)
        return checked(replies[0])

    def until(self, condition: Callable[[], bool], deadline: float, patience: float = DEADLINE_S) -> bool:
        """Handle replies until ``condition`` holds, or ``deadline`` (monotonic seconds) passed; whether it holds.

        ``patience``: that of :meth:`Door.receive`.
        """
        look = _FIRST_LOOK_S
        while not condition():
            now = time.monotonic()
            if now >= deadline:
                return False
            heard = self._turn(min(deadline, now + look), patience)
            look = _FIRST_LOOK_S if heard else min(2 * look, _LAST_LOOK_S)
        return True

    def listen(self, seconds: float) -> None:
        """Handle replies for so long."""
        self.until(lambda: False, time.monotonic() + seconds)

    def _turn(self, deadline: float, patience: float) -> bool:
        reply = self.door.receive(deadline, patience=patience)
        if reply is None:
            return False
        handler = self._handlers.get(reply.get("id", 0))
        if handler is not None:
            handler(reply)
        return True


class GuestCommand:
    """A command in a guest. ``status`` is ``None`` until it has ended; 137 is that of one whose VM died."""

    def __init__(self, talk: Talk, vm: str, argv: list[str]) -> None:
        self.vm = vm
        self.status: int | None = None
        self.output = bytearray()
        self.errors = bytearray()
        self._talk = talk
        self._session = 0
        talk.begin(self._handle, "exec", vm=vm, argv=argv)

    @property
    def ended(self) -> bool:
        return self.status is not None

    @property
    def complaint(self) -> str:
        """What it said on its standard error, in one line."""
        return " ".join(self.errors.decode(errors="replace").split())

    def cancel(self) -> None:
        """End it, if it has begun and has not ended."""
        if self._session and not self.ended:
            self._talk.door.send("cancel", session=self._session)

    def _handle(self, reply: Reply) -> None:
        if "error" in reply:
            self.errors += str(reply["error"]).encode()
            self.status = 1
        elif reply.get("t") == "out":
            (self.output if reply["stream"] == 1 else self.errors).extend(reply["data"])
            self._talk.door.send("credit", session=self._session, chunks=1)
        elif reply.get("t") == "exit":
            self.errors += str(reply.get("reason", "")).encode()
            self.status = int(reply["status"])
        elif "session" in reply:
            self._session = reply["session"]


class Attempt:
    """A guest command that is tried until it succeeds."""

    def __init__(self, talk: Talk, vm: str, argv: list[str]) -> None:
        self._talk = talk
        self._argv = argv
        self._command = GuestCommand(talk, vm, argv)
        self._begun = time.monotonic()

    def succeeded(self) -> bool:
        """Whether it has. To be asked now and then: that is when it is tried again."""
        if self._command.status == 0:
            return True
        if self._command.ended and time.monotonic() >= self._begun + _RETRY_S:
            self._command = GuestCommand(self._talk, self._command.vm, self._argv)
            self._begun = time.monotonic()
        return False
