"""What a machine is made of: every part, made with those that it needs, in the one order in which that can be done.

The parts know each other by what they were given here, and nobody else by name. What they tell the machine itself comes
through :class:`Hooks`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from vmbus_emu import placement
from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop
from vmbus_emu.machine.beats import Beats
from vmbus_emu.machine.bindings import Bindings
from vmbus_emu.machine.comings import Comings
from vmbus_emu.machine.consoles import Consoles
from vmbus_emu.machine.conversations import Conversations
from vmbus_emu.machine.crashes import Crashes
from vmbus_emu.machine.drain import Drain
from vmbus_emu.machine.events import Events
from vmbus_emu.machine.figures import Figures
from vmbus_emu.machine.integration import Integration
from vmbus_emu.machine.listing import Listing
from vmbus_emu.machine.media import Medium
from vmbus_emu.machine.orders import Orders
from vmbus_emu.machine.policy import policy_of
from vmbus_emu.machine.power import Power
from vmbus_emu.machine.recovery import Recovery
from vmbus_emu.machine.roles import Roles
from vmbus_emu.machine.roster import Roster
from vmbus_emu.machine.services import Services
from vmbus_emu.machine.sessions import Sessions
from vmbus_emu.machine.shutdown import Shutdown
from vmbus_emu.machine.standing import Fates, Standing
from vmbus_emu.machine.supervisor import SPARE, Process, Supervisor
from vmbus_emu.machine.telling import Telling
from vmbus_emu.machine.wires import Plug
from vmbus_emu.runfolder import RunFolder
from vmbus_emu.topology.data import Topology


class Hooks(Protocol):
    """What the machine hears of its parts."""

    def received(self, process: Process, message: Message, fds: list[int]) -> None: ...
    def exited(self, process: Process) -> None: ...
    def requested(self, client: bytes, request: Message) -> None: ...
    def reboot(self) -> Power: ...
    def vms_changed(self) -> None: ...


class Parts:
    """The parts, by name. ``refused``: messages of processes that may not send them; ``front_restarts``: of the front
    door; ``shutdown``: the power-off under way."""

    def __init__(
        self, loop: Loop, topology: Topology, folder: RunFolder, media: dict[str, Medium], plugs: Mapping[str, Plug],
        hooks: Hooks,
    ) -> None:
        self.loop = loop
        self.refused = 0
        self.front_restarts = 0
        self.shutdown: Shutdown | None = None
        self._folder = folder
        self._plugs = plugs
        self.fates = Fates()
        self.roster = Roster(topology, media, lambda changed: self.power.use(changed))
        self.figures = Figures(loop)
        self.conversations = Conversations(loop, self._to_front, hooks.requested, self._client_gone)
        self.reply = self.conversations.reply
        self.events = Events(self.reply)
        self.consoles = Consoles(self.reply)
        self.supervisor = Supervisor(loop, topology.name, folder.path, hooks.received, hooks.exited)
        self.log: Callable[[str], None] = self.supervisor.log("machine").line
        self.beats = Beats(
            loop, self.supervisor, self.events, topology.hang_after_s, lambda name: self.carried(name)[0], self.log
        )
        self.recovery = Recovery(
            loop, topology, self.supervisor, self.roster.specs, self.events, self.new_power(), hooks.reboot, self.log
        )
        self.crashes = Crashes(loop, folder.path / "crashes", topology.name, self.supervisor)
        outlives_hypervisor = policy_of(topology, self.roster.specs["hypervisor"]) == "degraded"
        self.drain = Drain(
            loop, self.roster.vm_hosts, self.fates.fallen, outlives_hypervisor, self.supervisor, self.recovery,
            self.events, self.reply,
        )  # fmt: skip
        self.standing = Standing(self.roster, self.supervisor, self.recovery, self.drain, self.fates)
        self.integration = Integration(
            loop, self.roster, self.fates.fallen, placement.integration_carrier(topology), self.supervisor, self.beats,
            self.drain, self.events, self.reply,
        )  # fmt: skip
        listing = Listing(
            self.supervisor, self.roster.specs, self.figures, self.recovery, self.beats, self.drain, self.integration,
            self.fates.fallen,
        )  # fmt: skip
        self.roles = Roles(
            loop, topology, self.supervisor, self.events, folder.groups_file, self.log, lambda: self.power.off
        )
        self.comings = Comings(
            loop, self.roster, self.supervisor, self.recovery, self.drain, self.events, self.reply, hooks.vms_changed
        )
        self.bindings = Bindings(loop, self.roster, self.supervisor, self.recovery, self.events, self.reply)
        self.services = Services(loop, self.roster, self.supervisor, self.recovery, self.drain, self.reply)
        self.orders = Orders(
            loop, self.roster, self.supervisor, self.recovery, self.drain, self.events, self.reply, self.roles
        )
        self.telling = Telling(
            loop, self.roster, self.supervisor, self.figures, listing, self.roles, self.beats, self.reply,
            lambda: self.standing.word, lambda: {"front_restarts": self.front_restarts, "refused": self.refused},
            self.carried,
        )  # fmt: skip
        self.sessions = Sessions(
            self.roster, self.supervisor, self.recovery, self.drain, self.consoles, self.reply, self.fates.fallen,
            self.fates.taken_along,
        )  # fmt: skip

    @property
    def power(self) -> Power:
        return self.recovery.power

    def new_power(self) -> Power:
        """For a power-on of what the machine is now, with the media and cables as they are."""
        roster = self.roster
        power = Power(self.loop, roster.topology, self._folder, roster.media, self.supervisor, roster.specs)
        power.plugs = self._plugs
        power.on_start = lambda process, spare: self.recovery.starting(process, spare)
        return power

    def carried(self, name: str) -> tuple[str, Collection[str]]:
        """A process's role, and the components for which it may speak."""
        name = name.removesuffix(SPARE)
        if name in self.roster.specs:
            return self.roster.specs[name].role, self.roster.names[name]
        if name in self.roles:
            return "role", (name,)
        return ("front" if name == "front" else "zygote"), (name,)

    def _to_front(self, message: Message) -> None:
        front = self.supervisor.running.get("front")
        if front is not None:
            front.line.send(message)

    def _client_gone(self, client: bytes) -> None:
        self.consoles.client_gone(client)
        self.events.client_gone(client)
