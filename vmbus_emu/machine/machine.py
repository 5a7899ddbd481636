"""The machine: the stand-in for the physical box. It belongs to no architecture and is on no data path.

It powers processes on and watches them die, owns the media and the serial consoles, and answers the management
socket through its front door. It is the direct parent of every process of the machine and asks the kernel to
kill them all should it die: the plug was pulled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop
from vmbus_emu.machine.deaths import Deaths
from vmbus_emu.machine.drain import DEFAULT_GRACE_S
from vmbus_emu.machine.media import Medium
from vmbus_emu.machine.messages import Messages
from vmbus_emu.machine.parts import Parts
from vmbus_emu.machine.power import BOOT_DEADLINE_S, BootFailed, Power
from vmbus_emu.machine.requests import Handler, Requests
from vmbus_emu.machine.shutdown import Shutdown, phases
from vmbus_emu.machine.supervisor import Process
from vmbus_emu.machine.wires import Plug
from vmbus_emu.runfolder import RunFolder
from vmbus_emu.task import DeadlinePassed, Future, Task, within
from vmbus_emu.topology.data import Topology


class Machine:
    """One machine, from power-on to power-off. Implements :class:`~vmbus_emu.machine.parts.Hooks`."""

    def __init__(
        self, loop: Loop, topology: Topology, folder: RunFolder, media: dict[str, Medium], plugs: Mapping[str, Plug]
    ) -> None:
        self.loop = loop
        self.folder = folder
        self.progress: Callable[[str, int, int], Any] = lambda component, done, total: None
        self._parts = Parts(loop, topology, folder, media, plugs, self)
        self._deaths = Deaths(self._parts)
        self._messages = Messages(self._parts, self._deaths)
        self._requests = Requests(self._parts.reply, self._handlers(), self._parts.standing.settle)
        self.supervisor = self._parts.supervisor
        self.log = self._parts.log

    def info(self) -> Message:
        """What is told of a machine that came up."""
        return self._parts.telling.described()

    # -- power on -------------------------------------------------------------------------------------

    async def boot(self) -> None:
        """Bring everything up. Raises :class:`BootFailed`."""
        self._parts.beats.begin()
        await self._parts.power.boot(self.progress)
        roles: Future[None] = Future()
        self._parts.roles.begin(lambda why: roles.resolve(None) if why is None else roles.reject(BootFailed(why)))
        try:
            await within(self.loop, BOOT_DEADLINE_S, roles)
        except DeadlinePassed:
            raise BootFailed(f"the roles do not serve after {BOOT_DEADLINE_S:.0f} s") from None
        self._up()

    def _up(self) -> None:
        self._parts.standing.word = "ready"
        self.log("ready")
        self._parts.events.emit("up")
        self._parts.recovery.booted()
        self._parts.drain.up()

    def reboot(self) -> Power:
        """Everything has ended: a fresh start, with the media as they are."""
        parts = self._parts
        parts.fates.fallen.clear()
        parts.comings.all_ended()
        power = parts.new_power()
        self.loop.call_soon(parts.comings.boots_again)

        def booted(future: Future[None]) -> None:
            try:
                future.result()
            except BootFailed as error:
                parts.recovery.boot_failed(str(error))
                parts.drain.stop(f"the VMs are drained, but the reboot failed: {error}", "it is tried again")
                return
            self._up()
            parts.roles.begin(lambda why: None if why is None else self.log(why))

        Task(self.loop, power.boot(lambda component, done, total: None)).then(booted)
        return power

    # -- what comes in --------------------------------------------------------------------------------

    def received(self, process: Process, message: Message, fds: list[int]) -> None:
        self._messages.received(process, message, fds)

    def exited(self, process: Process) -> None:
        self._deaths.exited(process)

    def requested(self, client: bytes, request: Message) -> None:
        self._requests.arrived(client, request)

    def vms_changed(self) -> None:
        """A VM has come, or is gone."""
        roster, fallen = self._parts.roster, self._parts.fates.fallen
        self.folder.update_vms(list(roster.vms))
        self._parts.roles.vms_changed(roster.addresses())
        for vm in fallen.keys() - roster.vms.keys():
            del fallen[vm]
        self._parts.standing.settle()

    def _handlers(self) -> dict[str, Handler]:
        """Who carries out which verb."""
        parts = self._parts
        telling, orders, integration, consoles = parts.telling, parts.orders, parts.integration, parts.consoles
        return {
            "info": telling.info, "ps": telling.ps, "audit": telling.audit, "watch": parts.events.watch,
            "kill": orders.kill, "fault": orders.fault, "start": orders.start, "stop": integration.stop,
            "kvp": integration.kvp, "snapshot": integration.snapshot, "vm": parts.comings.carry_out,
            "services": parts.services.begin, "role": self._role, "driver": parts.bindings.carry_out,
            "drain": self._drain, "exec": parts.sessions.begin, "stdin": consoles.from_client,
            "credit": consoles.from_client, "cancel": consoles.from_client, "down": self._down,
        }  # fmt: skip

    def _role(self, client: bytes, number: int, request: Message) -> None:
        self._parts.roles.order(request, lambda answer: self._parts.reply(client, {"id": number, **answer}))

    def _drain(self, client: bytes, number: int, request: Message) -> None:
        """All VMs shut down in turn, then the machine reboots: a monolith from another image, if it is given one."""
        if "image" in request:
            self._parts.drain.must_be_possible()
            self._parts.bindings.install(request)
        self._parts.drain.begin(client, number, request.get("grace_s", DEFAULT_GRACE_S))

    # -- power off ----------------------------------------------------------------------------------

    def _down(self, client: bytes, number: int, request: Message) -> None:
        self.power_off(lambda step: self._parts.reply(client, {"id": number, **step}))

    def power_off(self, report: Callable[[Message], Any]) -> None:
        """Stop every process, in order, naming what is waited for; then the front door, then the machine itself."""
        parts = self._parts
        if parts.shutdown is not None:
            parts.shutdown.listeners.append(report)
            return
        parts.standing.word = "stopping"
        parts.power.off = True
        parts.drain.stop("the machine is taken down")
        parts.beats.end()
        ordered = phases(parts.roster.specs, list(parts.roster.vm_hosts.values()))
        ordered[0] += parts.roles
        parts.shutdown = Shutdown(self.loop, self.supervisor, ordered, report, self._gone)
        parts.shutdown.begin()

    def _gone(self) -> None:
        self._parts.roles.close()
        self.loop.stop()
