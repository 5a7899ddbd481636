"""The guest's serial console: it runs commands for the machine, each a task with its own input and output.

Output leaves in chunks of at most 32 KiB and only as far as the reader gave credit; input arrives the same way. A
command is ``async def command(session, arguments) -> status``; the table is :mod:`partitions.child.commands`.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmbus_emu.lifeline import CHUNK, WINDOW
from vmbus_emu.task import Cancelled, Future, Task

if TYPE_CHECKING:
    from partitions.child.guest import Guest

STATUS_USAGE = 2
STATUS_UNKNOWN_COMMAND = 127
STATUS_CANCELLED = 130

Send = Callable[[dict[str, Any]], Any]


class Usage(Exception):
    """A command was called wrongly; the text says how."""


class CommandError(Exception):
    """A command failed; the text says why, on standard error, and the status is 1."""


class Session:
    """One running command's streams."""

    def __init__(self, guest: Guest, number: int, send: Send) -> None:
        self.guest = guest
        #: The command is to end: for one that waits where nothing can be thrown into it.
        self.cancelled = False
        self._number = number
        self._send = send
        self._credit = WINDOW
        self._input: deque[bytes] = deque()
        self._input_ended = False
        self._wake: Future[None] | None = None

    # -- for commands -------------------------------------------------------------------------------

    async def write(self, data: bytes | memoryview, stream: int = 1) -> None:
        """Write all of ``data``; waits while the reader gives no credit."""
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            while not self._credit:
                await self._woken()
            self._credit -= 1
            chunk = bytes(view[start:start + CHUNK])
            self._send({"t": "out", "session": self._number, "stream": stream, "data": chunk})

    async def print(self, text: str = "") -> None:
        await self.write((text + "\n").encode())

    async def complain(self, text: str) -> None:
        """A line on standard error."""
        await self.write((text + "\n").encode(), stream=2)

    async def read(self) -> bytes:
        """The next piece of standard input; empty at its end."""
        while not self._input and not self._input_ended:
            await self._woken()
        if not self._input:
            return b""
        self._send({"t": "need", "session": self._number, "chunks": 1})
        return self._input.popleft()

    async def read_exactly(self, count: int) -> bytes:
        """``count`` bytes of standard input, fewer at its end."""
        pieces: list[bytes] = []
        have = 0
        while have < count and (piece := await self.read()):
            pieces.append(piece)
            have += len(piece)
        data = b"".join(pieces)
        if have > count:
            self._input.appendleft(data[count:])
        return data[:count]

    async def _woken(self) -> None:
        if self._wake is None:  # one command may have several tasks waiting at its streams
            self._wake = Future()
        await self._wake

    # -- from the machine -----------------------------------------------------------------------------

    def add_credit(self, chunks: int) -> None:
        self._credit = min(self._credit + chunks, WINDOW)
        self._stir()

    def add_input(self, data: bytes, end: bool) -> None:
        if data and len(self._input) <= 2 * WINDOW:
            self._input.append(data)
        self._input_ended = self._input_ended or end
        self._stir()

    def _stir(self) -> None:
        if self._wake is not None:
            wake, self._wake = self._wake, None
            wake.resolve(None)


class Console:
    """All sessions of one guest."""

    def __init__(self, guest: Guest, send: Send) -> None:
        self._guest = guest
        self._send = send
        self._sessions: dict[int, tuple[Session, Task[int]]] = {}
        self._closed = False
        self.commands_run = 0

    def handle(self, message: dict[str, Any]) -> None:
        """One console message of the machine: ``exec``, ``stdin``, ``credit``, ``cancel``."""
        number = message["session"]
        if message["t"] == "exec":
            self._start(number, message["argv"])
            return
        if number not in self._sessions:
            return
        session, task = self._sessions[number]
        if message["t"] == "stdin":
            session.add_input(message.get("data", b""), bool(message.get("end")))
        elif message["t"] == "credit":
            session.add_credit(int(message.get("chunks", 1)))
        elif message["t"] == "cancel":
            _cancel(session, task)

    def _start(self, number: int, argv: list[str]) -> None:
        self.commands_run += 1
        session = Session(self._guest, number, self._send)
        task: Task[int] = Task(self._guest.loop, self._run(session, argv))
        self._sessions[number] = (session, task)
        task.then(lambda future: self._ended(number, task))

    async def _run(self, session: Session, argv: list[str]) -> int:
        from partitions.child import commands  # which need this module

        if self._closed:
            await session.complain(f"{self._guest.name} is shutting down and takes no commands")
            return 1
        if not argv:
            await session.complain("no command; try help")
            return STATUS_USAGE
        command = commands.find(argv[0])
        if command is None:
            await session.complain(f"{argv[0]}: no such command; try help")
            return STATUS_UNKNOWN_COMMAND
        if any(word in ("-h", "--help") for word in argv[1:]):
            await session.print(f"usage: {command.usage}\n{command.summary}")
            return 0
        try:
            return await command.run(session, argv[1:])
        except Usage as error:
            await session.complain(f"{argv[0]}: {error}; usage: {command.usage}")
            return STATUS_USAGE
        except CommandError as error:
            await session.complain(f"{argv[0]}: {error}")
            return 1

    def _ended(self, number: int, task: Task[int]) -> None:
        del self._sessions[number]
        try:
            status = task.result()
        except Cancelled:
            status = STATUS_CANCELLED
        self._send({"t": "exit", "session": number, "status": status})

    async def end_all(self, patience_s: float) -> None:
        """Run no further commands. Those that run may end by themselves for so long, then they are cancelled."""
        self._closed = True
        running = list(self._sessions.values())

        def cancel() -> None:
            for session, task in running:
                _cancel(session, task)

        timer = self._guest.loop.call_later(patience_s, cancel)
        for _, task in running:
            with contextlib.suppress(Cancelled):
                await task
        timer.cancel()


def _cancel(session: Session, task: Task[int]) -> None:
    session.cancelled = True
    task.cancel()
