"""Starting a machine's process and seeing one off: what :mod:`vmbus_emu.client` does around its connection."""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from vmbus_emu import lifeline
from vmbus_emu.client.errors import STOPPED_S, MachineError, Stopped
from vmbus_emu.procfs import has_ended, is_stopped
from vmbus_emu.runfolder import RunFolder, RunFolderError, sweep
from vmbus_emu.topology.data import Topology

if TYPE_CHECKING:
    from vmbus_emu.client.door import Door

_CODE = "import vmbus_emu.machine.quietfork; from vmbus_emu.machine.poweron import main; main()"
#: After SIGKILL of the machine the kernel ends its processes at once; this is for a busy host.
_KILLED_DEADLINE_S = 5.0

Progress = Callable[[Mapping[str, Any]], Any]


def start(
    folder: RunFolder, topology: Topology, progress: Progress, environment: Mapping[str, str] | None = None
) -> int:
    """Start the machine's process and wait until it is up; its pid. ``environment`` is added to ours. Raises
    :class:`MachineError`.

    If this process goes away or is interrupted before, the machine takes itself down.
    """
    _refuse_if_running(folder)
    try:
        sweep(folder.name)
    except RunFolderError as error:
        raise MachineError(str(error), error.hint) from None
    near, far = lifeline.pair()
    description = _memory("topology", msgpack.packb(topology.to_dict()))
    errors = _memory("errors", b"")
    try:
        pid = _spawn(far, description, errors, environment or {})
        far.close()
        for module in ("vmbus_emu.client.door", "vmbus_emu.client.observe"):
            importlib.import_module(module)  # needed next; the machine boots meanwhile
        return _wait_until_up(near, pid, errors, progress)
    finally:
        for end in (near, far):
            end.close()
        for fd in (description, errors):
            os.close(fd)


def _refuse_if_running(folder: RunFolder) -> None:
    pid = folder.holder()
    if pid is None:
        return
    info = folder.info()
    vms = len(info.get("vms", ()))
    what = f"{info['arch']}, {vms} VM{'s' if vms != 1 else ''}, pid {pid}" if info else f"starting, pid {pid}"
    if is_stopped(pid):
        raise MachineError(f'"{folder.name}" is already running, and stopped ({what})', f"kill -CONT {pid}")
    named = "" if folder.name == "default" else f" --name {folder.name}"
    raise MachineError(
        f'"{folder.name}" is already running ({what})',
        f"vmbus-emu ps{named} shows it, vmbus-emu down{named} ends it, --name starts another",
    )


def _memory(name: str, content: bytes) -> int:
    fd = os.memfd_create(name)
    os.pwrite(fd, content, 0)
    return fd


def _spawn(line: socket.socket, description: int, errors: int, added: Mapping[str, str]) -> int:
    """A fresh interpreter, so that the machine has only its own modules in memory, in a session of its own."""
    environment = {**os.environ, **added}
    package = str(Path(__file__).resolve().parents[2])
    # What `site` would find out again is known here already: without it an interpreter starts in half the time.
    environment["PYTHONPATH"] = os.pathsep.join([package, *(entry for entry in sys.path if entry)])
    os.set_inheritable(line.fileno(), True)
    os.set_inheritable(description, True)
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-S", "-P", "-c", _CODE, str(line.fileno()), str(description)],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, errors, 1),
            (os.POSIX_SPAWN_DUP2, errors, 2),
        ],
        setsid=True,
    )


def _wait_until_up(line: socket.socket, pid: int, errors: int, progress: Progress) -> int:
    try:
        while raw := line.recv(lifeline.MAX_MESSAGE):
            message = msgpack.unpackb(raw)
            if message["t"] == "progress":
                progress(message)
            elif message["t"] == "up":
                return pid
            elif message["t"] == "failed":
                _reap(line, pid)
                raise MachineError(message["error"], message.get("hint", ""))
    except BaseException:
        _reap(line, pid)
        raise
    _, status = os.waitpid(pid, 0)
    last = os.pread(errors, 65536, 0).decode(errors="replace").strip().splitlines()
    code = os.waitstatus_to_exitcode(status)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    raise MachineError(f"the machine process (pid {pid}) {how} while starting" + (f": {last[-1]}" if last else ""))


def _reap(line: socket.socket, pid: int) -> None:
    """Close the boot line, which tells the machine to take itself down, and wait until it has."""
    line.close()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def wait_for_end(folder: RunFolder, door: Door, progress: Progress, timeout: float) -> None:
    """Ask the machine to power off and wait until it and all its processes are gone; kill it if it does not answer."""
    recorded = recorded_processes(folder)
    number = door.send("down")
    deadline = time.monotonic() + timeout
    told = stopped = False
    while not stopped:
        try:
            reply = door.receive(deadline, patience=STOPPED_S)
        except Stopped as error:
            if not told:
                told = True
                progress({"step": "suspended", "waiting": [f"{error}; {error.hint} continues it"]})
            continue
        except MachineError:
            break  # it is gone, which is what we wanted
        if reply is None:
            state = "stopped" if is_stopped(door.pid) else "silent"
            progress({"step": "killing", "waiting": [f"machine (pid {door.pid}, {state})"]})
            signal.pidfd_send_signal(door.pidfd, signal.SIGKILL)
            deadline = time.monotonic() + _KILLED_DEADLINE_S
        elif reply.get("id") == number:
            progress(reply)
            stopped = reply.get("step") == "stopped"
            deadline = time.monotonic() + timeout
    _wait_for_processes(folder, door, {**recorded, **recorded_processes(folder)}, deadline)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(door.pid, 0)
    with contextlib.suppress(RunFolderError):
        sweep(folder.name)  # only if the machine was killed; otherwise it has removed its folder itself


def _wait_for_processes(folder: RunFolder, door: Door, recorded: Mapping[int, int], deadline: float) -> None:
    ending = select.poll()  # not select(), which knows no descriptor above 1023
    ending.register(door.pidfd, select.POLLIN)
    machine_gone = bool(ending.poll(max(0.0, deadline - time.monotonic()) * 1000))
    alive = [pid for pid, started in recorded.items() if not has_ended(pid, started)]
    while alive and time.monotonic() < deadline:
        time.sleep(0.005)  # they are not our children: the kernel gives no event for them without a pidfd race
        alive = [pid for pid in alive if not has_ended(pid, recorded[pid])]
    if alive or not machine_gone:
        names = ", ".join(map(str, alive or [door.pid]))
        raise MachineError(f'"{folder.name}" is not down: still running: pid {names}', f"kill -9 {names}")


def recorded_processes(folder: RunFolder) -> dict[int, int]:
    """Pid to start time of every process the machine recorded."""
    try:
        text = (folder.path / "pids").read_text()
    except OSError:
        return {}
    lines = [line.split() for line in text.splitlines()]
    return {int(words[0]): int(words[1]) for words in lines if len(words) == 3}
