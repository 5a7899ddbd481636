"""What a user wants of one VM through its integration services: stop it, exchange keys and values, copy its disk.

The services are in the parent partition, or in the monolith (whoever :data:`carrier` is): the machine asks there, over
the lifeline, and has a deadline of its own for every answer. It also keeps what is said of the VMs' heartbeats.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop
from vmbus_emu.machine.beats import Beats
from vmbus_emu.machine.drain import Drain
from vmbus_emu.machine.events import Events
from vmbus_emu.machine.intake import Refused
from vmbus_emu.machine.media import Medium
from vmbus_emu.machine.mediumcopy import NewFile, copy
from vmbus_emu.machine.requests import Reply
from vmbus_emu.machine.roster import Roster
from vmbus_emu.machine.standstill import Standstill
from vmbus_emu.machine.stops import Stops
from vmbus_emu.machine.supervisor import Process, Supervisor
from vmbus_emu.task import Future, Task, sleep

#: How long a service may take to be there and to answer, in seconds; a freeze has to wait for a flush.
ANSWER_S, FREEZE_S = 3.0, 5.0
#: What the machine waits longer than those it asks.
_LATER_S = 3.0
#: Pools as they are read: auto, guest, external.
_POOLS = (2, 1, 0)
_MAX_WHY = 200


@dataclass(slots=True)
class _Asked:
    process: Process
    came: Future[Message]


class Integration:
    """``fallen``: VMs that are dead although their process lives; ``carrier``: of the process with the services, its
    name."""

    def __init__(
        self, loop: Loop, roster: Roster, fallen: Container[str], carrier: str, supervisor: Supervisor, beats: Beats,
        drain: Drain, events: Events, reply: Reply,
    ) -> None:
        self._loop = loop
        self._roster = roster
        self._hosts = roster.vm_hosts
        self._fallen = fallen
        self._carrier = carrier
        self._supervisor = supervisor
        self._beats = beats
        self._drain = drain
        self._events = events
        self._reply = reply
        self._numbers = itertools.count(1)
        self._asked: dict[int, _Asked] = {}
        self._copying: set[str] = set()
        self._hearts: dict[str, str] = {}
        self.stops = Stops(loop, roster.vm_hosts, supervisor, drain, events, reply, self.ask)

    # -- heartbeats -----------------------------------------------------------------------------------

    def heartbeat(self, vm: str) -> str | None:
        """``ok``, ``lost``, or ``None``: it has no heartbeat service, nobody is there to listen, or it is off."""
        return None if vm in self._drain.off else self._hearts.get(vm)

    def beat(self, vm: str, state: str) -> bool:
        """Said of a VM. ``False``: that is nothing to be said of any."""
        if vm not in self._hosts or state not in ("", "ok", "lost"):
            return False
        before = self._hearts.pop(vm, "")
        if state:
            self._hearts[vm] = state
        if "lost" in (before, state) and before != state and state:
            self._events.emit("heartbeat", component=vm, state=state)
        return True

    # -- asking ---------------------------------------------------------------------------------------

    def ask(self, vm: str, do: str, timeout_s: float, **more: Any) -> Future[Message]:
        """``{"ok", "why", "items"}``, always."""
        came: Future[Message] = Future()
        process = self._supervisor.running.get(self._carrier)
        if process is None:
            came.resolve(_failed(f"{vm} cannot be reached: {self._carrier} is not running"))
            return came
        number = next(self._numbers)
        self._asked[number] = _Asked(process, came)
        process.line.send({"t": "integration", "id": number, "vm": vm, "do": do, "timeout_s": timeout_s, **more})
        late = _failed(f"{self._carrier} did not answer for {vm}")
        self._loop.call_later(timeout_s + _LATER_S, self._answer, number, late)
        return came

    def done(self, process: Process, message: Message) -> bool:
        """An answer. ``False``: to nothing that this process was asked."""
        asked = self._asked.get(message["id"])
        if asked is None or asked.process is not process:
            return asked is None and message["id"] > 0      # late ones are no offence
        why = str(message["why"])[:_MAX_WHY]
        self._answer(message["id"], {"ok": message["ok"], "why": why, "items": message["items"]})
        return True

    def _answer(self, number: int, outcome: Message) -> None:
        asked = self._asked.pop(number, None)
        if asked is not None:
            asked.came.resolve(outcome)

    def exited(self, process: Process) -> None:
        """A process was reaped."""
        for number in [number for number, asked in self._asked.items() if asked.process is process]:
            self._answer(number, _failed(f"{process.name} died while it was asked"))
        if process.name == self._carrier:
            self._hearts.clear()
        self._hearts.pop(process.name, None)

    def fell(self, vm: str) -> None:
        """A VM that is a thread has ended."""
        self._hearts.pop(vm, None)
        self.stops.fell(vm)

    # -- requests of clients ----------------------------------------------------------------------------

    def stop(self, client: bytes, number: int, request: Message) -> None:
        """A VM shuts down in order, or has its plug pulled (``force``). Raises :class:`Refused`."""
        vm, force = self._asked_of(request), request.get("force", False)
        self._must_run(vm)
        if not force:
            self._must_have_services(vm, f"vmbus-emu stop {vm} --force pulls the plug")
        self.stops.begin(client, number, vm, force, request.get("grace_s", 10.0))

    def kvp(self, client: bytes, number: int, request: Message) -> None:
        """What it and its host have told each other. Raises :class:`Refused`."""
        vm = self._asked_of(request)
        self._must_run(vm)
        self._must_have_services(vm)
        Task(self._loop, self._kvp(client, number, vm, request))

    def _asked_of(self, request: Message) -> str:
        vm: str = request.get("vm", "")
        if vm not in self._hosts:
            raise Refused(f"there is no VM {vm!r}", f"the VMs are {', '.join(self._hosts) or 'none'}")
        if self._drain.active:
            raise Refused("the machine is being drained", f"{vm} boots again at the end of it")
        return vm

    def _must_have_services(self, vm: str, otherwise: str = "") -> None:
        if not self._roster.vms[vm].integration_services:
            install = f"vmbus-emu services install {vm} restarts it with them"
            raise Refused(f"{vm} has no integration services", f"{install}; {otherwise}" if otherwise else install)

    def _carried_by(self, vm: str) -> Process | None:
        """The process in which it runs; ``None``: it is off."""
        on = vm in self._hosts and vm not in self._fallen and vm not in self._drain.off
        return self._supervisor.running.get(self._hosts[vm]) if on else None

    def _must_run(self, vm: str) -> None:
        if self._carried_by(vm) is None:
            raise Refused(f"{vm} is not running", f"vmbus-emu start {vm} starts it")

    async def _kvp(self, client: bytes, number: int, vm: str, request: Message) -> None:
        fields = {name: request[name] for name in ("key", "value") if name in request}
        outcome = await self.ask(vm, "kvp", ANSWER_S, pools=list(_POOLS), **fields)
        if outcome["ok"]:
            self._reply(client, {"id": number, "items": outcome["items"]})
        else:
            self._reply(client, {"id": number, "error": outcome["why"], "hint": "vmbus-emu ps shows whether it lives"})

    # -- snapshots --------------------------------------------------------------------------------------

    def snapshot(self, client: bytes, number: int, request: Message) -> None:
        """Copy a disk of a VM into a new file. It holds still meanwhile; if ``quiesce`` is false, it is stopped. Raises
        :class:`Refused`."""
        vm, media = self._asked_of(request), self._roster.media
        disk, path = request.get("disk", "disk0"), request.get("path", "")
        quiesce = bool(request.get("quiesce", True)) and self._carried_by(vm) is not None
        if quiesce:
            self._must_have_services(vm, "--no-quiesce copies the disk as it is")
        medium = media.get(f"{vm}.{disk}")
        if medium is None:
            known = ", ".join(name.partition(".")[2] for name in media if name.partition(".")[0] == vm)
            raise Refused(f"{vm} has no disk {disk!r}", f"its disks are {known or 'none'}")
        if medium.fd < 0:
            raise Refused(f"{vm}.{disk} is a null disk, which keeps nothing", "choose another disk")
        if not os.path.isabs(path):
            raise Refused("the path of a snapshot is absolute", "vmbus-emu snapshot makes it so")
        if medium.name in self._copying:
            raise Refused(f"{medium.name} is being copied already", "try again when that is done")
        try:
            file = NewFile(path)
        except FileExistsError:
            raise Refused(f"{path} exists", "choose another name, or remove it") from None
        except OSError as error:
            raise Refused(f"cannot write {path}: {error.strerror}", "choose another place") from None
        self._copying.add(medium.name)
        copying = Task(self._loop, self._copy(vm, medium, file, quiesce), watched=True)
        copying.then(lambda future: self._copied(client, number, medium, file, copying))

    async def _copy(self, vm: str, medium: Medium, file: NewFile, quiesce: bool) -> Message:
        began = time.monotonic_ns()
        carrier = self._carried_by(vm)
        standstill: Standstill | None = None
        if quiesce:
            frozen = await self.ask(vm, "freeze", FREEZE_S)
            if not frozen["ok"]:
                hint = f"vmbus-emu exec {vm} -- dmesg may say why; --no-quiesce copies the disk as it is"
                raise Refused(f"{vm} did not hold still: {frozen['why']}", hint)
        elif carrier is not None:
            standstill = Standstill(self._loop, self._supervisor, self._beats, carrier)
            if not await standstill.begin():
                raise Refused(f"{vm} cannot be stopped", "vmbus-emu ps shows what it does; try again")
        froze = time.monotonic_ns()
        trouble: OSError | None = None
        copied = 0
        try:
            copied = await copy(medium.fd, file.fd, medium.size_bytes, lambda: sleep(self._loop, 0))
        except OSError as error:
            trouble = error
        finally:
            if standstill is not None:
                standstill.end()
        held_ms = _ms(froze)
        if trouble is None and self._carried_by(vm) is not carrier:
            raise Refused(f"{vm} died or was started while its disk was copied", "try again")
        if quiesce:
            thawed = await self.ask(vm, "thaw", ANSWER_S)
            held_ms = _ms(froze)
            if not thawed["ok"] and trouble is None:
                raise Refused(f"{vm} did not hold still until the copy was made: {thawed['why']}", "try again")
        try:
            if trouble is not None:
                raise trouble
            file.keep()
        except OSError as error:
            raise Refused(f"cannot write {file.path}: {error.strerror}", "look for room, or another place") from None
        return {
            "disk": medium.name, "path": file.path, "bytes": medium.size_bytes, "data_bytes": copied,
            "quiesced": quiesce, "frozen_ms": held_ms if quiesce else None,
            "stopped_ms": held_ms if standstill is not None else None, "ms": _ms(began),
        }  # fmt: skip

    def _copied(self, client: bytes, number: int, medium: Medium, file: NewFile, copying: Task[Message]) -> None:
        self._copying.discard(medium.name)
        file.close()
        try:
            self._reply(client, {"id": number, "snapshot": copying.result()})
        except Refused as refused:
            error, hint = refused.args
            self._reply(client, {"id": number, "error": error, "hint": hint})


def _failed(why: str) -> Message:
    return {"ok": False, "why": why, "items": []}


def _ms(since: int) -> float:
    return round((time.monotonic_ns() - since) / 1e6, 3)
