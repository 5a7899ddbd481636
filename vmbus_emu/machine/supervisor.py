"""Powering processes on and watching them die.

The supervisor forks from the machine, which is warm (third-party libraries are loaded) and clean (it owns no
ZeroMQ context and no thread), or has a zygote bear the process; its parent is the machine either way. It learns
of a death through a pidfd, reaps, and reports what the kernel says: exit code or signal. Every start of a
component is an incarnation with a number that is never used again.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmbus_emu import lifeline, node
from vmbus_emu.lifeline import Lifeline, Message
from vmbus_emu.loop import Loop
from vmbus_emu.machine.logs import LogFile
from vmbus_emu.procfs import start_time
from vmbus_emu.task import Future

#: The largest message in memory that the machine reads from a process; the figures of 1,000 guests need 1 MB.
MAX_IN_MEMORY = 32 << 20
#: Of a dead process's log, so many pieces of 64 KiB are still waited for: a pipe holds no more than a MiB.
_LAST_READS = 16
#: What the name of a process ends with that waits to take another one's place. No VM's name has a dot.
SPARE = ".spare"


@dataclass(slots=True)
class Process:
    """One process the machine started: running while ``exit_code`` and ``signal`` are both ``None``."""

    name: str
    pid: int
    incarnation: int
    pidfd: int
    line: Lifeline
    exit_code: int | None = None
    signal: str | None = None

    @property
    def running(self) -> bool:
        return self.exit_code is None and self.signal is None

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        if self.signal is not None:
            return f"killed by {self.signal}"
        return f"exited with status {self.exit_code}"


def signal_name(number: int) -> str:
    """``SIGKILL``; the real-time signals between the first and the last have no names."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}" if number > signal.SIGRTMIN else f"SIG{number}"


OnMessage = Callable[["Process", Message, list[int]], Any]
OnExit = Callable[["Process"], Any]


class Supervisor:
    """Starts processes for one machine. ``on_message`` and ``on_exit`` are the machine's."""

    def __init__(self, loop: Loop, name: str, folder: Path, on_message: OnMessage, on_exit: OnExit) -> None:
        self._loop = loop
        self._machine = name
        self._folder = folder
        #: Every process ever started, with its start time: who must be gone when the machine is.
        self._record = os.open(folder / "pids", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._on_message = on_message
        self._on_exit = on_exit
        self._incarnations: dict[str, int] = {}
        self._logs: dict[str, LogFile] = {}
        #: By name and incarnation: reads on what a process wrote to its log; whether there was anything.
        self._pipes: dict[tuple[str, int], Callable[[], bool]] = {}
        #: By zygote, name and incarnation.
        self._unborn: dict[
            tuple[str, str, int], tuple[node.Birth, socket.socket, bool, Future[Process | None]]
        ] = {}
        #: The latest process of each name, running or dead.
        self.processes: dict[str, Process] = {}

    def log(self, name: str) -> LogFile:
        """The log of a component; made on first use."""
        if name not in self._logs:
            self._logs[name] = LogFile(str(self._folder / "logs" / f"{name}.log"))
        return self._logs[name]

    def spawn(self, name: str, entry: str, descriptors: socket.socket | None = None, spare: bool = False) -> Process:
        """Fork a process that runs component ``entry``. ``descriptors`` is its end of the hypervisor's second socket.

        A ``spare`` is known by another name until it is wanted (:meth:`promote`).
        Raises ``OSError`` when the system has no process or descriptor left.
        """
        birth, near, far, writing = self._conceive(name, entry)
        pid = os.fork()
        if pid == 0:
            node.enter(birth, far, descriptors, writing)
        for end in (far, descriptors):
            if end is not None:
                end.close()
        os.close(writing)
        return self._register(birth, pid, near, spare)

    def spawn_from(
        self, zygote: Process, name: str, entry: str, descriptors: socket.socket, spare: bool = False
    ) -> Future[Process | None]:
        """The same through a zygote that has loaded ``entry``; ``None`` if it dies before."""
        birth, near, far, writing = self._conceive(name, entry)
        fds = [far.fileno(), writing, descriptors.fileno()]
        zygote.line.send({"t": "bear", "birth": birth.describe()}, fds)
        far.close()
        descriptors.close()
        os.close(writing)
        born: Future[Process | None] = Future()
        self._unborn[zygote.name, name, birth.incarnation] = (birth, near, spare, born)
        return born

    def born(self, zygote: str, name: str, incarnation: int, pid: int) -> bool:
        """A zygote's answer: the process exists, and is our child. ``False`` if nobody asked for it."""
        birth, near, spare, born = self._unborn.pop((zygote, name, incarnation), (None, None, False, None))
        if birth is None or near is None or born is None:
            return False
        born.resolve(self._register(birth, pid, near, spare))
        return True

    def awaits(self, zygote: str) -> bool:
        """Whether that zygote was asked for a process, and has not answered."""
        return any(key[0] == zygote for key in self._unborn)

    def stillborn(self, zygote: str) -> None:
        """That zygote is dead: it bears nobody any more."""
        for key in [key for key in self._unborn if key[0] == zygote]:
            _, near, _, born = self._unborn.pop(key)
            near.close()
            born.resolve(None)

    def promote(self, spare: Process) -> None:
        """A spare takes the place of the process it was kept for."""
        del self.processes[spare.name]
        spare.name = spare.name.removesuffix(SPARE)
        self.processes[spare.name] = spare

    def _conceive(self, name: str, entry: str) -> tuple[node.Birth, socket.socket, socket.socket, int]:
        """What a new process needs: its birth, both ends of its lifeline, the writing end of its log."""
        incarnation = self._incarnations[name] = self._incarnations.get(name, 0) + 1
        near, far = lifeline.pair()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self._follow(reading, name, incarnation)
        return node.Birth(self._machine, name, entry, str(self._folder), incarnation, os.getpid()), near, far, writing

    def _register(self, birth: node.Birth, pid: int, near: socket.socket, spare: bool) -> Process:
        name = birth.name + SPARE if spare else birth.name
        os.write(self._record, f"{pid} {start_time(pid)} {name}\n".encode())
        pidfd = os.pidfd_open(pid)

        def received(message: Message, fds: list[int]) -> None:
            self._on_message(process, message, fds)

        line = Lifeline(self._loop, near, received, lambda: None, MAX_IN_MEMORY)
        process = Process(name, pid, birth.incarnation, pidfd, line)
        self.processes[name] = process
        self._loop.watch(pidfd, lambda events: self._reap(process))
        return process

    def _follow(self, reading: int, name: str, incarnation: int) -> None:
        os.set_blocking(reading, False)
        log = self.log(name)

        def read() -> bool:
            try:
                data = os.read(reading, 65536)
            except BlockingIOError:
                return False
            if data:
                log.write(data)
                return True
            self._pipes.pop((name, incarnation), None)
            self._loop.unwatch(reading)
            os.close(reading)
            log.end_of_stream()
            return False

        self._pipes[name, incarnation] = read
        self._loop.watch(reading, lambda events: read())

    def _reap(self, process: Process) -> None:
        try:
            result = os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return  # a zygote's, whose middle process has not ended yet: it becomes our child in a moment
        if result is None:
            return
        self._loop.unwatch(process.pidfd)
        os.close(process.pidfd)
        if result.si_code == os.CLD_EXITED:
            process.exit_code = result.si_status
        else:
            process.signal = signal_name(result.si_status)
        read = self._pipes.get((process.name.removesuffix(SPARE), process.incarnation))
        for _ in range(_LAST_READS):  # the pipe's whole buffer; somebody else may hold that end, and still write
            if read is None or not read():
                break
        process.line.drain()  # its last words may have come after we last looked
        self._on_exit(process)

    def kill(self, process: Process, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process we started, through its pidfd: never to a recycled pid."""
        if process.running:
            signal.pidfd_send_signal(process.pidfd, number)

    @property
    def running(self) -> Mapping[str, Process]:
        return {name: process for name, process in self.processes.items() if process.running}

    def forget(self, name: str) -> None:
        """Nobody asks for that component any more. Its process, if it had one of its own, is dead; a later one of that
        name counts on."""
        self.processes.pop(name, None)
        if name in self._logs:
            self._logs[name].close()  # what still comes opens it again

    def close(self) -> None:
        os.close(self._record)
        for log in self._logs.values():
            log.close()
