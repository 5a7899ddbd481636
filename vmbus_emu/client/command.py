"""One guest command, from the client's side: two streams with credit, a deadline, an end."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from vmbus_emu.client.errors import DEADLINE_S, STOPPED_S, checked

if TYPE_CHECKING:
    from vmbus_emu.client.door import Door

#: The status of a command that was ended because its deadline passed, as timeout(1) reports it.
TIMED_OUT = 124
#: Chunks of standard input that may be under way before the guest asks for more.
WINDOW = 8
#: How long a command that was cancelled is listened to, in seconds.
LAST_WORD_S = 0.5
#: Bytes of standard input per message; what a lifeline takes.
CHUNK = 32 * 1024


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How a guest command ended. Output that went to a callback is not kept here."""

    status: int
    stdout: bytes
    stderr: bytes


class Command:
    """``run`` it once. Output goes to the callbacks, or into the result where there is none."""

    def __init__(
        self,
        door: Door,
        vm: str,
        argv: list[str],
        stdin: bytes | BinaryIO,
        on_stdout: Callable[[bytes], Any] | None,
        on_stderr: Callable[[bytes], Any] | None,
        timeout: float | None,
    ) -> None:
        self._door = door
        self._input: BinaryIO = io.BytesIO(stdin) if isinstance(stdin, bytes) else stdin
        self._output = {1: bytearray(), 2: bytearray()}
        self._take = {1: on_stdout or self._output[1].extend, 2: on_stderr or self._output[2].extend}
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._request = door.send("exec", vm=vm, argv=argv)
        self._session = 0
        self._credit = WINDOW
        self._input_ended = False

    def run(self) -> ExecResult:
        status = None
        try:
            while status is None:
                patience = DEADLINE_S if self._session else STOPPED_S
                reply = self._door.receive(self._deadline, self._readable_input(), patience)
                if reply is not None:
                    status = self._handle(reply) if reply.get("id") == self._request else None
                elif self._deadline is not None and time.monotonic() >= self._deadline:
                    self._cancel()
                    self._hear_out()
                    status = TIMED_OUT
                else:
                    self._feed()
        except KeyboardInterrupt:
            self._cancel()
            self._hear_out()
            raise
        except BaseException:
            self._cancel()
            raise
        return ExecResult(status, bytes(self._output[1]), bytes(self._output[2]))

    def _cancel(self) -> None:
        if self._session:
            self._door.send("cancel", session=self._session)
        else:
            self._door.withdraw(self._request)

    def _hear_out(self) -> None:
        """A cancelled command may have a last word, such as ping's statistics."""
        deadline = time.monotonic() + LAST_WORD_S
        while time.monotonic() < deadline and (reply := self._door.receive(deadline)) is not None:
            if reply.get("id") == self._request and self._handle(reply) is not None:
                return

    def _readable_input(self) -> int | None:
        """The input's descriptor while the guest may be sent more; input without one is fed at once."""
        if not self._session or self._input_ended or not self._credit:
            return None
        try:
            return self._input.fileno()
        except (OSError, AttributeError):
            while self._credit and not self._input_ended:
                self._feed()
            return None

    def _feed(self) -> None:
        if self._session and not self._input_ended and self._credit:
            try:
                data = os.read(self._input.fileno(), CHUNK)
            except (OSError, AttributeError):
                data = self._input.read(CHUNK)
            self._input_ended = not data
            self._credit -= 1
            self._door.send("stdin", session=self._session, data=data, end=not data)

    def _handle(self, reply: dict[str, Any]) -> int | None:
        checked(reply)
        match reply.get("t"):
            case "out":
                self._take[reply["stream"]](reply["data"])
                self._door.send("credit", session=self._session, chunks=1)
            case "need":
                self._credit += reply["chunks"]
            case "exit":
                if "reason" in reply:
                    self._take[2]((reply["reason"] + "\n").encode())
                return int(reply["status"])
            case None:
                self._session = reply["session"]
        return None
