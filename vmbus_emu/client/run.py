"""One run: loads in the VMs, kills, what came of them, and the report.

Everything goes over one door, without threads. The histories lie in our memory, so whatever dies can still be judged.

A little long: what is asked of guests and of the machine while a kill is followed shares the state of one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vmbus_emu import crashpoints
from vmbus_emu.client import aftermath
from vmbus_emu.client.errors import DEADLINE_S, MachineError
from vmbus_emu.client.judging import SCHEMA, judged
from vmbus_emu.client.observer import Load, Target, loads
from vmbus_emu.client.plug import pull
from vmbus_emu.client.scene import ALIVE, Scene
from vmbus_emu.client.talk import Attempt, GuestCommand, Talk
from vmbus_emu.device import BLOCK_SIZE
from vmbus_emu.runfolder import RunFolder
from vmbus_emu.witness import stamp
from vmbus_emu.witness.stamp import State

if TYPE_CHECKING:
    from vmbus_emu.client.door import Door

#: Loads run for so long before the first kill, and after the last answer that a kill was waiting for.
_WARM_UP_S, _SETTLE_S = 0.25, 0.05
#: How long guests may take to begin or end what they are asked to, and to say what is on their disks.
_GUEST_S, _STAMPS_S = 5.0, 60.0
#: How long requests of a load that has ended may take.
_LAST_S = 1.0

#: A fault after which a process may go on; whether it does is seen within so many seconds.
GOES_ON = ("scribble",)
_GOES_ON_S = 1.0
_NOTICED_S = 1.0
#: How long a process may take to come to the step at which it is to die.
_STEP_S = 5.0

#: The adapter that leads to a neighbour.
NIC = "nic0"

Kill = dict[str, Any]
Row = dict[str, Any]


class Run:
    """Use it in the order of its methods, and :meth:`close` it. All of them raise :class:`MachineError`."""

    def __init__(self, folder: RunFolder, door: Door) -> None:
        """Takes the door over."""
        self._folder = folder
        self._talk = Talk(door)
        self._events: list[dict[str, Any]] = []
        self._kills: list[Kill] = []
        self._targets: dict[str, Target] = {}
        self._loads: dict[str, dict[str, Load]] = {}
        self._ends = 0.0                                # when the loads end, monotonic seconds
        self._start_state: dict[str, dict[int, State]] = {}
        self._read_back: dict[str, dict[int, State]] = {}
        self._extra: dict[str, Any] = {}
        self._vms: dict[str, dict[str, Any]] = {}
        self._gone = False                              # the machine
        self._begun_ns = time.monotonic_ns()
        self.scene = Scene(self._talk.ask("info", DEADLINE_S)["info"])

    # -- before -----------------------------------------------------------------------------------------

    def prepare(self, overwrite: bool | None, seed: int = 1) -> list[Target]:
        """Look at the living VMs and choose what to load; ``overwrite`` is that of :meth:`Scene.target`."""
        self._talk.begin(self._heard, "watch", past=False)
        alive = [vm for vm in self.scene.vms if self.rows()[vm]["state"] in ALIVE]
        for vm, command in self._in_guests({vm: ["lsblk"] for vm in alive}, _GUEST_S).items():
            if command.status == 0:
                self._targets[vm] = self.scene.target(vm, bytes(command.output), overwrite, alive)
        writing = [target for target in self._targets.values() if target.mix != "read"]
        self._start_state, failures = self._stamps(writing)
        for vm, why in failures.items():
            raise MachineError(f"{vm}: its disk cannot be read: {why}", "vmbus-emu ps shows what is dead")
        first = {vm: 1 + max(map(_sequence, states.values()), default=0) for vm, states in self._start_state.items()}
        self._loads = loads(self._talk, self._targets.values(), first, seed)
        return writing

    def begin(self, seconds: float) -> None:
        """Begin the loads, to run for so long, and wait until they are served."""
        self._ends = time.monotonic() + seconds
        running = list(self._all_loads())
        for load in running:
            load.begin(seconds)
        self._talk.until(lambda: all(load.served or not load.running for load in running),
                         time.monotonic() + _GUEST_S)  # fmt: skip
        self._talk.listen(_WARM_UP_S)

    def _heard(self, reply: dict[str, Any]) -> None:
        if "event" in reply:
            self._events.append(reply["event"])

    def rows(self) -> dict[str, Row]:
        """``ps`` by component name."""
        return {row["name"]: row for row in self._talk.ask("ps", DEADLINE_S)["rows"]}

    def wait_until(self, moment: float) -> None:
        """Until ``moment``, monotonic seconds."""
        self._talk.until(lambda: False, moment)

    # -- kills ------------------------------------------------------------------------------------------

    def kill(self, component: str, fault: str, timeout: float, start: bool, at: str = "") -> Kill:
        """Kill, and wait at most ``timeout`` seconds for what should follow, until all is served again that can be.

        ``start``: dead VMs are started again. ``at``: the step to die at, :mod:`vmbus_emu.crashpoints`; one of
        negotiation makes two kills, of which this gives the second. What did not follow stands in ``missing`` of the
        result.
        """
        rows = self.rows()
        seen = len(self._events)
        step = {"at": at} if at else {}
        killed = self._talk.ask("kill", DEADLINE_S, component=component, fault=fault, **step)["killed"]
        if at:
            killed = self._struck(killed, seen, timeout)
        deadline = time.monotonic() + timeout
        kill = self._made(killed, timeout)
        kill["startable"] = component in self.scene.vms and _alive(rows, "hypervisor", "management")
        expected = self.scene.expected(killed, rows)

        def since() -> list[dict[str, Any]]:
            return [event for event in self._events[seen:] if event["ns"] >= killed["ns"]]

        def over(noticed: bool = True) -> bool:
            kill["missing"] = aftermath.outstanding(expected, since(), noticed)
            return not kill["missing"]

        if fault in GOES_ON:
            kill["waited_s"] = min(timeout, _GOES_ON_S)
            deadline = time.monotonic() + kill["waited_s"]
        # Where nothing comes back, whoever has not noticed within a second goes on without noticing.
        first = deadline if expected.policy in aftermath.REPLACED else min(deadline, time.monotonic() + _NOTICED_S)
        ended = self._talk.until(over, first) or self._talk.until(lambda: over(False), deadline)
        if ended or fault in GOES_ON:
            self._load_again(deadline, start)
            kill["missing"] = self._await_service(since, deadline)
            kill["over_ns"] = time.monotonic_ns()
        self._talk.listen(_SETTLE_S)
        return kill

    def _made(self, killed: Mapping[str, Any], timeout: float) -> Kill:
        """A kill, as it is kept. ``killed``: what the machine said of it."""
        told = {name: killed.get(name) for name in ("component", "host", "pid", "incarnation", "fault", "signal", "at")}
        self._kills.append({**told, "killed_ns": killed["ns"], "waited_s": timeout, "missing": []})
        return self._kills[-1]

    def _struck(self, ordered: Mapping[str, Any], seen: int, timeout: float) -> Mapping[str, Any]:
        """Wait until a process came to the step at which it was to die. The first ``seen`` events are older."""
        component, at = ordered["component"], ordered["at"]

        def came() -> list[dict[str, Any]]:
            return [event for event in self._events[seen:] if event["event"] == "killed" and event.get("at") == at
                    and event["component"] == component]  # fmt: skip

        limit = min(timeout, _STEP_S)
        if not self._talk.until(lambda: bool(came()), time.monotonic() + limit):
            self._talk.ask("kill", DEADLINE_S, component=component, clear=True)
            if not came():
                raise MachineError(f"{component} did not come to {at} within {limit:g} s", _why_not(at))
        (death,) = came()
        if death["pid"] != ordered["pid"]:
            first = self._made({**ordered, "at": None}, limit)
            first["over_ns"] = death["ns"]
        return death

    def _load_again(self, deadline: float, start: bool) -> None:
        """Begin the loads of VMs that live again."""
        ended = [vm for vm, mine in self._loads.items() if any(load.died for load in mine.values())]
        rows = self.rows() if ended or start else {}
        if start and self.scene.can_start_vms(rows):
            for vm in self._loads:
                if rows[vm]["state"] == "dead" and rows[vm]["host"] == vm:
                    self._talk.ask("start", max(deadline - time.monotonic(), _GUEST_S), vm=vm)
                    rows[vm]["state"] = "ready"
        left = self._ends - time.monotonic()
        for vm in self._loads if left > 0 else ():
            # A load whose VM died has had its end told before the machine said that the VM lives again.
            for load in self._loads[vm].values():
                if load.died and rows[vm]["state"] in ALIVE:
                    load.begin(left)

    def _await_service(self, since: Callable[[], list[dict[str, Any]]], deadline: float) -> list[str]:
        """Wait until every device that can work does, in each living VM; those that do not.

        Guests are asked, not the histories: to search these again and again would take CPU from whoever recovers.
        """
        rows = self.rows()
        trying: dict[tuple[str, str], Attempt] = {}
        for target in self._targets.values():
            vm, disk, other = target.vm, target.disk, target.neighbour
            if disk and _alive(rows, vm, "storvsp"):
                trying[vm, disk] = Attempt(self._talk, vm, ["read", disk, "0", str(BLOCK_SIZE)])
            if other and _alive(rows, vm, other, "netvsp"):
                trying[vm, NIC] = Attempt(self._talk, vm, ["ping", "-q", "-c", "1", "-W", "0.2", other])

        def unserved() -> list[tuple[str, str]]:
            gone = {(event["component"], event["device"]) for event in since() if event["event"] == "given up"}
            return [
                (vm, device) for (vm, device), attempt in trying.items()
                if not attempt.succeeded() and (vm, device) not in gone
                and not (device == NIC and (self._targets[vm].neighbour, NIC) in gone)
            ]  # fmt: skip

        self._talk.until(lambda: not unserved(), deadline)
        return [f"an answer from {vm}.{device}" for vm, device in unserved()]

    def pull_the_plug(self) -> Kill:
        """Kill the machine itself, and everything with it."""
        rows = self.rows()
        kill, death = pull(self._folder, self._talk.door, list(rows))
        self._gone = True
        self._events.append(death)
        self._kills.append(kill)
        return kill

    # -- after ------------------------------------------------------------------------------------------

    def finish(self, cancel: bool, timeout: float) -> None:
        """End the loads, or wait for their end; then read back what they wrote and look at the guests' memory."""
        if not self._gone:
            running = list(self._all_loads())
            if not cancel:
                self._all_ended(running, self._ends + timeout)
            self._cancel()
            self._all_ended(running, time.monotonic() + _GUEST_S)
            # What was cancelled has disk requests under way, which complete as long as the VM lives.
            disks = [mine["disk"] for mine in self._loads.values() if "disk" in mine and not mine["disk"].died]
            self._talk.until(lambda: not any(load.unanswered for load in disks), time.monotonic() + _LAST_S)
            self._read_what_was_written()
            self._look_at_memory()
        for vm in self._loads:
            told = {"survived": not self._has_died(vm), "neighbour": self._targets[vm].neighbour or None}
            self._vms.setdefault(vm, {}).update(told)

    def _has_died(self, vm: str) -> bool:
        told = any(
            event["event"] == "died" and vm in (event["component"], *event["carried"]) for event in self._events
        )
        return told or any(load.died_once for load in self._loads[vm].values())

    def _read_what_was_written(self) -> None:
        writing = [target for target in self._targets.values() if target.mix != "read"]
        self._read_back, unread = self._stamps(writing)
        self._extra["unread"] = unread

    def _look_at_memory(self) -> None:
        if any(kill["fault"] == "scribble" for kill in self._kills):
            commands = self._in_guests({vm: ["memcheck"] for vm in self._loads}, _GUEST_S)
            for vm, command in commands.items():
                self._vms.setdefault(vm, {})["memory_intact"] = {0: True, 1: False}.get(command.status or 0)

    def result(self) -> dict[str, Any]:
        """The run, as a run file holds it, judged."""
        return judged({
            "schema": SCHEMA, "machine": self.scene.describe(),
            "begun_ns": self._begun_ns, "ended_ns": time.monotonic_ns(),
            "operations": {}, "findings": [], "kills": self._kills, "vms": self._vms, "events": self._events,
            "histories": {
                vm: {what: load.dump() for what, load in mine.items()} for vm, mine in self._loads.items()
            },
            "read_back": {vm: stamp.dump(states) for vm, states in self._read_back.items()},
            "start_state": {vm: stamp.dump(states) for vm, states in self._start_state.items()},
            **self._extra,
        })  # fmt: skip

    def close(self) -> None:
        """End what still runs in guests, and let go of everything."""
        if not self._gone:
            self._cancel()
        for load in self._all_loads():
            load.close()
        self._talk.door.close()

    # -- guests -----------------------------------------------------------------------------------------

    def _all_loads(self) -> Iterable[Load]:
        return (load for mine in self._loads.values() for load in mine.values())

    def _cancel(self) -> None:
        for load in self._all_loads():
            load.cancel()

    def _all_ended(self, running: list[Load], deadline: float) -> bool:
        return self._talk.until(lambda: not any(load.running for load in running), deadline)

    def _in_guests(self, commands: dict[str, list[str]], timeout: float) -> dict[str, GuestCommand]:
        """A command in each of several guests at the same time, to its end or for so long."""
        begun = {vm: GuestCommand(self._talk, vm, argv) for vm, argv in commands.items()}
        self._talk.until(lambda: all(command.ended for command in begun.values()), time.monotonic() + timeout)
        for command in begun.values():
            command.cancel()
        return begun

    def _stamps(self, targets: Iterable[Target]) -> tuple[dict[str, dict[int, State]], dict[str, str]]:
        """What is on the loads' disks, by VM; and of which it cannot be said, and why."""
        commands = {one.vm: ["stamps", one.disk, "0", str(one.span // BLOCK_SIZE * BLOCK_SIZE)] for one in targets}
        states, failures = {}, {}
        for vm, command in self._in_guests(commands, _STAMPS_S).items():
            if command.status == 0:
                states[vm] = stamp.from_brief(command.output, 0)
            else:
                failures[vm] = command.complaint or f"no answer within {_STAMPS_S:.0f} s"
        return states, failures


def _why_not(at: str) -> str:
    step = crashpoints.parse(at).step
    if crashpoints.STEPS[step].next:
        return "it was killed, and negotiated with fewer steps; a smaller number"
    if step in crashpoints.fitting("hypervisor"):
        return "hypercalls are made when something starts: kill another component meanwhile"
    if step in crashpoints.fitting("management"):
        return "it comes there when a VM starts: start a dead one meanwhile"
    return "is there I/O? vmbus-emu ps shows it"


def _alive(rows: Mapping[str, Row], *names: str) -> bool:
    return all(rows[name]["state"] in ALIVE for name in names)


def _sequence(state: State) -> int:
    """The sequence number that a sector claims; 0: none."""
    if state is None:
        return 0
    return state.sequence if isinstance(state, stamp.Stamp) else state.claims.sequence
