"""Power-on: the machine's process from its first moment to its last.

:func:`main` runs with two inherited descriptors as its arguments. LINE is the boot line to whoever started it
(progress, then up or failed; end-of-file before "up" means "never mind"), TOPOLOGY a memory file with the topology
in msgpack. It takes the run folder's lock, opens the media, runs the machine, and removes the folder.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping

import msgpack
import setproctitle

from vmbus_emu.lifeline import Lifeline
from vmbus_emu.loop import Loop
from vmbus_emu.machine.machine import Machine
from vmbus_emu.machine.media import MediaError, Medium, open_all
from vmbus_emu.machine.power import BootFailed
from vmbus_emu.machine.wires import Plug, WireError, plug_in
from vmbus_emu.placement import unsupported
from vmbus_emu.runfolder import RunFolder, RunFolderError
from vmbus_emu.task import Future, Task
from vmbus_emu.topology.data import Topology

_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """The machine's process: boot, serve, power off, leave nothing behind."""
    line = socket.socket(fileno=int(sys.argv[1]))
    with open(int(sys.argv[2]), "rb") as memory:
        memory.seek(0)
        topology = Topology.from_dict(msgpack.unpackb(memory.read(), use_list=False))
    setproctitle.setproctitle(f"vmbus-emu {topology.name}: machine")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what a zygote bears becomes our child
    loop = Loop()
    sys.exit(_Boot(loop, topology, line).run())


class _Boot:
    """The machine's first moments: the boot line, the run folder, the media; and its last."""

    def __init__(self, loop: Loop, topology: Topology, line: socket.socket) -> None:
        self._loop = loop
        self._topology = topology
        self._machine: Machine | None = None
        self._line = Lifeline(loop, line, lambda message, fds: None, self._never_mind)
        self._failed: str | None = None
        self._up = False

    def run(self) -> int:
        try:
            folder = RunFolder(self._topology.name)
            lock = folder.acquire(self._topology)
        except RunFolderError as error:
            return self._fail(str(error), error.hint)
        try:
            missing = unsupported(self._topology) if self._topology.arch == "monolithic" else {}
            if missing:
                image = self._topology.image or "the monolith's own image"
                lacks = ", ".join(f"hw.{device} ({model})" for device, model in missing.items())
                return self._fail(
                    f"{image} has no driver for {lacks}: a monolith boots only on hardware in its image's list",
                    "vmbus-emu image build --drivers makes an image with one, and up --image boots it",
                )
            try:
                media = open_all(self._topology)
                plugs = plug_in(self._topology, folder)
            except (MediaError, WireError) as error:
                return self._fail(str(error))
            log = os.open(folder.logs / "machine.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
            self._serve(folder, media, plugs)
        finally:
            folder.remove()
            folder.release(lock)
        return self._fail(self._failed) if self._failed is not None else 0

    def _serve(self, folder: RunFolder, media: dict[str, Medium], plugs: Mapping[str, Plug]) -> None:
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *arguments: None)
        machine = self._machine = Machine(self._loop, self._topology, folder, media, plugs)

        def signalled(events: int) -> None:
            os.read(reading, 64)
            machine.power_off(lambda step: None)

        self._loop.watch(reading, signalled)
        machine.progress = lambda component, done, total: self._line.send(
            {"t": "progress", "component": component, "state": "ready", "done": done, "total": total}
        )
        Task(self._loop, machine.boot()).then(self._booted)
        self._loop.run()
        machine.supervisor.close()

    def _booted(self, future: Future[None]) -> None:
        assert self._machine is not None
        try:
            future.result()
        except BootFailed as error:
            if self._failed is None:
                self._failed = str(error)
            self._machine.power_off(lambda step: None)
            return
        self._up = True
        self._line.send({"t": "up", "info": self._machine.info()})
        self._line.close()

    def _never_mind(self) -> None:
        """Whoever started us is gone before we were up: nobody wants this machine."""
        if not self._up and self._machine is not None:
            self._failed = self._failed or "interrupted"
            self._machine.power_off(lambda step: None)

    def _fail(self, reason: str, hint: str = "") -> int:
        self._line.send({"t": "failed", "error": reason, "hint": hint})
        return 1
