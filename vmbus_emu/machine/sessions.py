"""``exec``: a command on a VM's console, or why that VM has none now."""

from __future__ import annotations

from collections.abc import Mapping

from vmbus_emu.lifeline import Message
from vmbus_emu.machine.consoles import VM_DIED, Consoles
from vmbus_emu.machine.drain import Drain
from vmbus_emu.machine.intake import Refused
from vmbus_emu.machine.recovery import Recovery
from vmbus_emu.machine.requests import Reply
from vmbus_emu.machine.roster import Roster
from vmbus_emu.machine.supervisor import Process, Supervisor


class Sessions:
    """``fallen`` and ``taken_along``: VMs that died by themselves and with somebody else, and why."""

    def __init__(
        self, roster: Roster, supervisor: Supervisor, recovery: Recovery, drain: Drain, consoles: Consoles,
        reply: Reply, fallen: Mapping[str, str], taken_along: Mapping[str, str],
    ) -> None:
        self._roster = roster
        self._supervisor = supervisor
        self._recovery = recovery
        self._drain = drain
        self._consoles = consoles
        self._reply = reply
        self._fallen = fallen
        self._taken_along = taken_along

    def begin(self, client: bytes, number: int, request: Message) -> None:
        """Raises :class:`Refused`; a VM that died is no refusal, but how its command ended."""
        vm = request["vm"]
        if vm not in self._roster.vms:
            raise Refused(f"no VM {vm!r} here", f"the VMs are: {', '.join(self._roster.vms) or 'none'}")
        host = self._supervisor.processes.get(self._roster.hosts[vm])
        ending = self._ending(vm, host)
        if ending or host is None:
            reason = f"{vm} {ending or 'was never started'}"
            self._reply(client, {"id": number, "t": "exit", "session": 0, "status": VM_DIED, "reason": reason})
        elif not self._recovery.power.ready[vm].done:
            raise Refused(f"{vm} is still starting", "try again in a moment")
        else:
            self._consoles.start(client, number, vm, host, request.get("argv", []))

    def _ending(self, vm: str, host: Process | None) -> str:
        if vm in self._drain.off:
            return "is off: it was shut down"
        if host is not None and not host.running:
            return f"is dead: {self._taken_along.get(vm) or f'{host.name} was {host.ending}'}"
        return f"is dead: {self._fallen[vm]}" if vm in self._fallen else ""
