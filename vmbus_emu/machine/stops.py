"""``stop``: one VM shuts down in order through its shutdown service, or has its plug pulled. No policy follows.

A VM that was asked and takes longer than somebody waits for it is still one that was asked: whenever it ends as it was
told to, it stays off. ``start`` brings it back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop, Timer
from vmbus_emu.machine.drain import Drain
from vmbus_emu.machine.events import Events
from vmbus_emu.machine.intake import Refused
from vmbus_emu.machine.supervisor import Process, Supervisor
from vmbus_emu.task import Future

#: How long the shutdown service may take to answer, in seconds, and a thread to end when its power is cut.
_ANSWER_S, _CUT_S = 3.0, 1.0
_MAX_REASONS, _MAX_REASON = 64, 200


@dataclass(slots=True)
class _Stopping:
    vm: str
    process: Process
    client: bytes
    number: int
    force: bool
    grace_s: float
    began_ns: int = field(default_factory=time.monotonic_ns)
    #: What the guest said of its disks, once it has.
    unflushed: list[str] | None = None
    timer: Timer | None = None
    #: Somebody waits for the end.
    awaited: bool = True


class Stops:
    """``ask`` is that of :class:`vmbus_emu.machine.integration.Integration`."""

    def __init__(
        self, loop: Loop, hosts: Mapping[str, str], supervisor: Supervisor, drain: Drain, events: Events,
        reply: Callable[[bytes, Message], Any], ask: Callable[..., Future[Message]],
    ) -> None:
        self._loop = loop
        self._hosts = hosts
        self._supervisor = supervisor
        self._drain = drain
        self._events = events
        self._reply = reply
        self._ask = ask
        self._stopping: dict[str, _Stopping] = {}

    def begin(self, client: bytes, number: int, vm: str, force: bool, grace_s: float) -> None:
        """``vm`` runs. Raises :class:`Refused`."""
        under_way = self._stopping.get(vm)
        if under_way is not None and under_way.awaited and not force:
            raise Refused(f"{vm} is being stopped already", "vmbus-emu watch shows when it is off")
        if under_way is not None:
            self._tell(under_way, {"error": f"{vm}: somebody pulled the plug", "hint": ""})
            self._forget(under_way)
        process = self._supervisor.processes[self._hosts[vm]]
        stopping = self._stopping[vm] = _Stopping(vm, process, client, number, force, grace_s)
        if not force:
            self._ask(vm, "shutdown", _ANSWER_S, grace_s=grace_s).then(
                lambda future: self._answered(stopping, future.result())
            )
            stopping.timer = self._loop.call_later(grace_s, self._too_late, stopping)
        elif process.name == vm:
            self._supervisor.kill(process)
        else:
            self._ask(vm, "cut", _CUT_S).then(lambda future: self._cut(stopping, future.result()))

    def _tell(self, stopping: _Stopping, message: Message) -> None:
        if stopping.awaited:
            stopping.awaited = False
            self._reply(stopping.client, {"id": stopping.number, **message})

    def _forget(self, stopping: _Stopping) -> None:
        if stopping.timer is not None:
            stopping.timer.cancel()
        if self._stopping.get(stopping.vm) is stopping:
            del self._stopping[stopping.vm]

    def _answered(self, stopping: _Stopping, outcome: Message) -> None:
        if not outcome["ok"] and self._stopping.get(stopping.vm) is stopping:
            hint = f"vmbus-emu stop {stopping.vm} --force pulls the plug"
            self._tell(stopping, {"error": f"{stopping.vm} does not shut down: {outcome['why']}", "hint": hint})
            self._forget(stopping)

    def _too_late(self, stopping: _Stopping) -> None:
        error = f"{stopping.vm} has not shut down within {stopping.grace_s:g} s, and still tries to"
        self._tell(stopping, {"error": error, "hint": f"vmbus-emu stop {stopping.vm} --force pulls the plug"})

    def _cut(self, stopping: _Stopping, outcome: Message) -> None:
        if outcome["ok"]:
            self._off(stopping)
            return
        self._forget(stopping)
        hint = "its thread never comes back to where it can be ended; vmbus-emu drain reboots all"
        self._tell(stopping, {"error": f"{stopping.vm} is unkillable: {outcome['why']}", "hint": hint})

    def _off(self, stopping: _Stopping) -> None:
        self._forget(stopping)
        self._drain.off.add(stopping.vm)
        ms = round((time.monotonic_ns() - stopping.began_ns) / 1e6, 3)
        how = "plug pulled" if stopping.force else "off"
        told: Message = {"how": how, "ms": ms, "unflushed": stopping.unflushed or []}
        self._events.emit("stopped", component=stopping.vm, **told)
        self._tell(stopping, {"stopped": stopping.vm, **told})

    # -- what is heard of them --------------------------------------------------------------------------

    def said(self, vm: str, unflushed: list[Any]) -> None:
        """A guest says that it is ready to lose its power. Of no effect if it was not asked."""
        stopping = self._stopping.get(vm)
        if stopping is None or stopping.force or stopping.unflushed is not None:
            return
        stopping.unflushed = [str(reason)[:_MAX_REASON] for reason in unflushed[:_MAX_REASONS]]
        if self._hosts[vm] != vm:  # a thread of the monolith ends with that, a process has yet to
            self._off(stopping)

    def fell(self, vm: str) -> None:
        """A VM that is a thread of the monolith ended by a bug of its own."""
        stopping = self._stopping.get(vm)
        if stopping is not None:
            self._tell(stopping, {"error": f"{vm} died before it had shut down"})
            self._forget(stopping)

    def as_asked(self, process: Process) -> bool:
        """Whether a process that was reaped is a VM that ended because it was asked to."""
        stopping = self._stopping.get(process.name)
        if stopping is None or stopping.process is not process:
            return False
        return stopping.force or (stopping.unflushed is not None and process.exit_code == 0)

    def exited(self, process: Process) -> bool:
        """A process was reaped. ``True``: it was told to, and no policy follows."""
        as_asked = self.as_asked(process)
        for stopping in [one for one in self._stopping.values() if one.process is process]:
            if as_asked:
                self._off(stopping)
                continue
            self._tell(stopping, {"error": f"{stopping.vm} died before it had shut down: {process.ending}"})
            self._forget(stopping)
        return as_asked
