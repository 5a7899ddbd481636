"""The roles of the parent partition: what runs beside the VMs, added and removed while the machine runs.

Each role is a process, a child of the machine like any other, without a virtual processor. It is none of the parts that
a machine needs: it starts after them, ends before them, and its death is nobody's business but its own, by the policy
of role ``role``. The machine tells it the VMs' names. A little long: to start, die and be removed is one story.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop
from vmbus_emu.machine.beats import Beats
from vmbus_emu.machine.events import Events
from vmbus_emu.machine.figures import Figures, process_row
from vmbus_emu.machine.intake import Refused
from vmbus_emu.machine.policy import FIRST_DELAY_S, Backoff
from vmbus_emu.machine.shutdown import GRACE_S
from vmbus_emu.machine.supervisor import Process, Supervisor
from vmbus_emu.placement import ROLE_ENTRIES
from vmbus_emu.topology.data import DEFAULT_POLICY, NO_ROLES, RoleSpec, Topology, parse_cpu_limit

if TYPE_CHECKING:
    from vmbus_emu.machine.cpulimit import CpuLimits

#: What holds a role without a limit back.
_UNLIMITED: Mapping[str, Any] = {"kind": "none", "cores": None, "words": "no limit"}
#: The module that a role cannot do without, and the extra that brings it.
NEEDS: Mapping[str, tuple[str, str]] = {"dns": ("dns", "roles")}
_MOST_TEXT = 200
#: Incarnations in a row that die before they are ready, while somebody waits for the first one.
MOST_STARTS = 3

#: Told once: ``None`` when the role is ready, or why it is not going to be.
Waiter = Callable[[str | None], Any]


class _Role:
    """One that was asked for. ``fault``: why it does not run and is not started again."""

    def __init__(self, spec: RoleSpec) -> None:
        self.spec = spec
        self.process: Process | None = None
        self.in_force = _UNLIMITED
        self.ready = False
        self.port = 0                               # where the incarnation before listened
        self.listens: list[str] = []
        self.hint = ""
        self.fault = ""
        self.waiters: list[Waiter] = []
        self.removed: list[Callable[[], Any]] = []  # who waits for its end
        self.restarting = False

    def settle(self, why: str | None) -> None:
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter(why)

    @property
    def state(self) -> str:
        if self.process is not None and self.process.running:
            return "ready" if self.ready else "starting"
        return "restarting" if self.restarting else "dead"


class Roles:
    """``topology``: the machine's, with the roles it begins with."""

    def __init__(
        self, loop: Loop, topology: Topology, supervisor: Supervisor, events: Events, record: Path,
        say: Callable[[str], Any], is_off: Callable[[], bool],
    ) -> None:
        """``record``: see :mod:`vmbus_emu.machine.cpulimit`; ``say`` writes to the machine's log; ``is_off``: whether
        nothing is to start, because the machine is being powered off, for good or to reboot."""
        self._loop = loop
        self._machine = topology.name
        self._monolith = topology.arch == "monolithic"
        self._policy = topology.policy.get("role", DEFAULT_POLICY["role"])
        self._hosts = {vm.name: vm.address for vm in topology.vms}
        self._supervisor = supervisor
        self._events = events
        self._record = record
        self._limits: CpuLimits | None = None
        self._say = say
        self._is_off = is_off
        self._backoff = Backoff()
        self._roles = {name: _Role(spec) for name, spec in topology.roles.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._roles

    def __len__(self) -> int:
        return len(self._roles)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._roles))

    # -- starting -------------------------------------------------------------------------------------

    def begin(self, done: Waiter) -> None:
        """The machine is up: start what it is to have. ``done`` hears of the first that cannot start, or of all."""
        waiting = set(self._roles)
        if not waiting:
            done(None)

        def settled(name: str, why: str | None) -> None:
            if waiting and why is not None:
                waiting.clear()
                done(f"{name} cannot start: {why}")
            elif name in waiting:
                waiting.remove(name)
                if not waiting:
                    done(None)

        for name, role in list(self._roles.items()):
            role.waiters.append(lambda why, name=name: settled(name, why))  # type: ignore[misc]
            missing = self._missing(name)
            if missing:
                role.fault = " ".join(missing)
                role.settle("; ".join(missing))
            else:
                self._start(name, role)

    def _start(self, name: str, role: _Role) -> None:
        if self._is_off() or self._roles.get(name) is not role or (role.process and role.process.running):
            return
        role.restarting = role.ready = False
        role.fault = ""
        process = role.process = self._supervisor.spawn(name, ROLE_ENTRIES[name])
        if role.spec.cpu_limit is not None:
            role.in_force = self._limited(name, process, role.spec.cpu_limit)
        if process.incarnation > 1:
            self._events.emit(
                "starting", component=name, pid=process.pid, incarnation=process.incarnation, spare=False
            )
        config = {"machine": self._machine, "hosts": self._hosts, "port": role.spec.port, "fallback": role.port}
        process.line.send({"t": "start", "config": config})

    def _limited(self, name: str, process: Process, cores: float) -> Mapping[str, Any]:
        if self._limits is None:
            from vmbus_emu.machine.cpulimit import CpuLimits  # a machine is forked: most have no use for it

            self._limits = CpuLimits(self._record, self._say)
        return self._limits.apply(name, process.pid, cores)._asdict()

    def _release(self, name: str) -> None:
        if self._limits is not None:
            self._limits.release(name)

    @staticmethod
    def _missing(name: str) -> tuple[str, str] | None:
        """What is not installed that the role needs, and how to install it."""
        from importlib.machinery import PathFinder

        module, extra = NEEDS.get(name, ("", ""))
        if not module or PathFinder.find_spec(module) is not None:
            return None
        return (f"role {name} needs a library that is not installed",
                f"pip install 'vmbus-emu[{extra}]' (in a checkout: pip install -e '.[{extra}]')")  # fmt: skip

    # -- what happens -----------------------------------------------------------------------------------

    def became_ready(self, process: Process, message: Message) -> None:
        """It listens. What it says of that is shown to users, so it is made to fit."""
        role = self._roles.get(process.name)
        if role is None or role.process is not process:
            return
        port, listens, hint = message.get("port"), message.get("listens"), message.get("hint")
        role.port = port if type(port) is int and 0 < port < 1 << 16 else 0
        role.listens = [one[:_MOST_TEXT] for one in listens if type(one) is str][:8] if type(listens) is list else []
        role.hint = hint[:_MOST_TEXT] if type(hint) is str else ""
        role.ready = True
        self._backoff.good(process.name)
        self._events.emit("ready", component=process.name, pid=process.pid, incarnation=process.incarnation)
        role.settle(None)

    def not_started(self, process: Process, why: str) -> None:
        """It said that it cannot start, and why: another one could not either."""
        role = self._roles.get(process.name)
        if role is not None and role.process is process:
            role.fault = why[:_MOST_TEXT]
            self._supervisor.kill(process)

    def exited(self, process: Process) -> None:
        """It was reaped."""
        role = self._roles.get(process.name)
        if role is None or role.process is not process:
            return
        if role.removed:
            self._gone(process.name, role)
        elif self._is_off():
            role.settle("the machine is powered off")
        elif role.fault:
            role.settle(role.fault)
        elif self._policy == "halt" or (role.waiters and self._backoff.failures(process.name) >= MOST_STARTS):
            role.settle(f"it {process.ending}" if process.signal is None else f"it was {process.ending}")
        else:
            role.restarting = True
            delay = self._backoff.died(process.name)
            if delay:
                self._say(f"{process.name}: next incarnation in {max(delay, FIRST_DELAY_S) * 1000:.0f} ms")
            self._loop.call_later(delay, self._start, process.name, role)

    def close(self) -> None:
        """Every process has ended for good."""
        if self._limits is not None:
            self._limits.close()

    def leaves(self, process: Process) -> bool:
        """Whether it ends because it was told to."""
        role = self._roles.get(process.name)
        return role is not None and role.process is process and bool(role.removed)

    def vms_changed(self, hosts: Mapping[str, str]) -> None:
        """The machine's VMs are others now: name -> address."""
        self._hosts = dict(hosts)
        for role in self._roles.values():
            if role.process is not None and role.process.running:
                role.process.line.send({"t": "hosts", "hosts": self._hosts})

    # -- orders ---------------------------------------------------------------------------------------

    def order(self, request: Message, answer: Callable[[Message], Any]) -> None:
        """``add``, ``remove`` or ``list``. Raises :class:`Refused`."""
        match request.get("action", "list"):
            case "list":
                answer({"roles": [self._describe(name, role) for name, role in self._roles.items()]})
            case "add":
                self._add(request, answer)
            case "remove":
                self._remove(request.get("role", ""), answer)
            case action:
                raise Refused(f"roles know no {action[:40]!r}", "add, list or remove")

    def _add(self, request: Message, answer: Callable[[Message], Any]) -> None:
        name, limit = request.get("role", ""), request.get("cpu_limit", 0)
        if self._monolith:
            raise Refused(NO_ROLES, "vmbus-emu up --arch microkernel has one")
        if name not in ROLE_ENTRIES:
            raise Refused(f"there is no role {name[:40]!r}", f"there are {', '.join(ROLE_ENTRIES)}")
        if name in self._roles and not self._roles[name].fault:
            raise Refused(f"{name} is there already", f"vmbus-emu role remove {name} ends it")
        if limit and parse_cpu_limit(limit) is None:
            raise Refused(f"{limit:g} cores are no limit", "give a number such as 0.5")
        port = request.get("port", 0)
        if not 0 <= port < 1 << 16:
            raise Refused(f"{port} is no port", "give a number from 0 (one that is free) to 65535")
        missing = self._missing(name)
        if missing:
            raise Refused(*missing)
        if self._is_off():
            raise Refused("the machine has no power now: it reboots, or has halted", "vmbus-emu ps shows its state")
        role = self._roles[name] = _Role(RoleSpec(parse_cpu_limit(limit), port))

        def settled(why: str | None) -> None:
            if why is None:
                answer({"roles": [self._describe(name, role)]})
                return
            if self._roles.get(name) is role:
                del self._roles[name]
                self._release(name)
            what, _, hint = why.partition("; ")
            answer({"error": f"{name} cannot start: {what}", "hint": hint or f"vmbus-emu logs {name} has more"})

        role.waiters.append(settled)
        self._start(name, role)

    def _remove(self, name: str, answer: Callable[[Message], Any]) -> None:
        role = self._roles.get(name)
        if role is None:
            there = ", ".join(self._roles)
            raise Refused(f"there is no role {name[:40]!r}", f"there are {there}" if there else "there is none")
        role.removed.append(lambda: answer({"removed": name}))
        process = role.process
        if process is None or not process.running:
            self._gone(name, role)
            return
        process.line.send({"t": "stop"})
        self._loop.call_later(GRACE_S, self._supervisor.kill, process)

    def _gone(self, name: str, role: _Role) -> None:
        self._roles.pop(name)
        self._release(name)
        role.settle("it was removed")
        for told in role.removed:
            told()

    # -- looking ----------------------------------------------------------------------------------------

    def _describe(self, name: str, role: _Role) -> Message:
        process = role.process
        return {
            "name": name, "state": role.state, "pid": process.pid if process and process.running else None,
            "incarnation": process.incarnation if process else 0, "policy": self._policy, **asdict(role.spec),
            "in_force": role.in_force, "listens": role.listens if role.ready else [],
            "hint": role.hint if role.ready else "", "fault": role.fault,
        }  # fmt: skip

    async def rows(self, figures: Figures, beats: Beats, now: float) -> list[Message]:
        """Rows of ``ps``."""
        alive = {name: role.process for name, role in self._roles.items() if role.process and role.process.running}
        stats = await figures.collect(alive) if alive else {}
        rows = []
        for name, role in self._roles.items():
            row = process_row(name, "role", name, role.process, role.ready, stats.get(name, {}), now)
            if row["state"] == "dead":
                row["state"] = role.state
            beats.show(row, role.process, name in figures.hung)
            rows.append(row)
        return rows
