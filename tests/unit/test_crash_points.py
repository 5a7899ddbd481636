"""The steps at which a component can be made to die: the table, how one is written, and where in the code each is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import vmbus_emu
from drivers.disk import NullDisk
from partitions import crashpoints as in_partitions
from partitions.parent.storage import StorageVsp
from partitions.parent.storvsp import StorVspSession
from vmbus_emu import crashpoints, faults
from vmbus_emu.channel import MemoryChannel, channel_pair
from vmbus_emu.cli.main import cli
from vmbus_emu.crashpoints import INSTALLERS, STEPS, At, fitting, parse, refusal
from vmbus_emu.device import BlockInfo, BlockRequest
from vmbus_emu.hypervisor import crashpoints as in_hypervisor
from vmbus_emu.machine import intake
from vmbus_emu.node import load
from vmbus_emu.protocol import scsi, vstor
from vmbus_emu.protocol.packets import COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND
from vmbus_emu.protocol.vstor import Direction, Operation
from vmbus_emu.trap import Patches, Trap

# -- the table --------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", INSTALLERS)
def test_every_step_of_a_role_is_somewhere_in_the_code_and_no_other(role: str) -> None:
    hooks: Any = in_hypervisor.HOOKS if role == "hypervisor" else in_partitions.HOOKS[role]
    assert set(fitting(role)) == set(hooks)
    assert callable(load(INSTALLERS[role]))


def test_every_step_has_a_role_and_words() -> None:
    assert all(row.what and row.roles and set(row.roles) <= set(INSTALLERS) for row in STEPS.values())
    assert {"fetch", "submit", "complete", "signal", "negotiate"} <= set(STEPS)
    assert set(crashpoints.FAULTS) <= set(faults.ENDING)


@pytest.mark.parametrize(("text", "at"), [
    ("fetch", At("fetch", 1)), ("open:3", At("open", 3)), ("negotiate:1000000", At("negotiate", 1_000_000)),
])  # fmt: skip
def test_a_step_as_it_is_typed(text: str, at: At) -> None:
    assert parse(text) == parse(str(at)) == at


@pytest.mark.parametrize("text", ["", "lunch", "fetch:", "fetch:0", "fetch:-1", "fetch:1.5", "fetch:٣", "fetch:1000001",
                                  "fetch:1:2", "Fetch"])  # fmt: skip
def test_what_is_no_step_is_told_so(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse(text)
    assert "the steps are fetch, submit" in str(refused.value) or "counts from 1" in str(refused.value)


@pytest.mark.parametrize(("arch", "transport"), [
    (arch, transport) for arch in ("microkernel", "disaggregated", "monolithic") for transport in ("zmq", "ring")
])  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_does(arch: str, transport: str) -> None:
    for component in (*INSTALLERS, "vm1", "management", "machine"):
        fits = fitting(component, arch, transport)
        for step in STEPS:
            why = refusal(component, step, arch, transport)
            assert (why == "") == (step in fits), (component, step)
            assert not why or "; try " in why
    assert (fitting("storvsp", arch, transport) == []) == (arch == "monolithic")
    assert ("gpadl" in fitting("storvsp", arch, transport)) == (arch != "monolithic" and transport == "ring")


def test_only_who_can_be_armed_may_say_that_it_was_struck() -> None:
    said = {"t": "struck", "component": "storvsp", "at": "fetch:1", "ns": 1}
    assert intake.accepts("storvsp", {"storvsp"}, said)
    assert intake.accepts("parent", {"parent", "storvsp"}, said)
    assert not intake.accepts("child", {"vm1"}, {**said, "component": "vm1"})
    assert not intake.accepts("netvsp", {"netvsp"}, said)


# -- the command line -------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "said"), [
    (["storvsp", "--at", "lunch"], ", ".join(STEPS)),
    (["storvsp", "--at", "fetch:0"], "counts from 1"),
    (["storvsp", "--at", "contact"], f"try {', '.join(fitting('storvsp'))}"),
    (["hypervisor", "--at", "fetch"], "try hypercall, execute, reply"),
    (["vm1", "--at", "fetch"], "try parent, storvsp, netvsp, management, hypervisor"),
    (["management", "--at", "open"], "try create, attach, initialize, start"),
    (["machine", "--at", "fetch"], "machine cannot die at fetch"),
    (["storvsp", "--at", "fetch", "--fault", "hang"], "try kill, exit, segv, panic"),
])  # fmt: skip
def test_a_wrong_step_is_one_line_and_status_2(words: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["kill", *words], catch_exceptions=False)
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert said in result.output


def test_the_help_lists_every_step_of_every_component() -> None:
    text = " ".join(CliRunner().invoke(cli, ["kill", "--help"]).output.split())
    for role in INSTALLERS:
        assert f"{', '.join(fitting(role))} ({role})" in text


def test_the_document_has_the_table() -> None:
    text = (Path(vmbus_emu.__file__).parents[1] / "docs" / "architecture.md").read_text()
    missing = [step for step, row in STEPS.items() if f"| `{step}` | {', '.join(row.roles)} | {row.what} |" not in text]
    assert missing == []


# -- where the steps are ----------------------------------------------------------------------------


class Died(Exception):
    """In the place of the signal."""


class Line:
    """A lifeline that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.said.append(message)
        raise Died(message["at"])


class HeldDisk(NullDisk):
    """Keeps every request until the test completes it."""

    def __init__(self) -> None:
        super().__init__(BlockInfo(block_count=1000))
        self.held: list[BlockRequest] = []

    def submit(self, request: BlockRequest) -> None:
        self.held.append(request)


class RingLike(MemoryChannel):
    """An end with a ring's signals: what was in the channel, published and rung, in order."""

    def __init__(self, room: int) -> None:
        super().__init__(room)
        self.story: list[str] = []

    def publish(self) -> None:
        self.story.append(f"publish {len(self.peer.inbox)}")

    def ring_peer(self) -> None:
        self.story.append("ring")

    def settle(self) -> None:
        """What the poller does after a round."""
        self.publish()
        self.ring_peer()


class Setup:
    """A session that is ready, and a request that waits for it."""

    def __init__(self, make: Callable[[], tuple[MemoryChannel, MemoryChannel]] = channel_pair) -> None:
        self.near, self.far = make()
        self.disk = HeldDisk()
        self.session = StorVspSession(self.far, self.disk)
        for packet in (
            vstor.encode(Operation.BEGIN_INIT),
            vstor.encode(Operation.QUERY_PROTOCOL_VERSION, next(iter(vstor.VERSIONS)), 0),
            vstor.encode(Operation.QUERY_PROPERTIES), vstor.encode(Operation.END_INIT),
        ):  # fmt: skip
            self.near.send(IN_BAND, COMPLETION_REQUESTED, 1, packet)
            self.far.deliver()
        assert self.session.stats().state == "READY"
        self.near.inbox.clear()
        self.vsps = {"storvsp": self}
        self._sessions = {1: self.session}

    def write(self) -> None:
        """A write arrives."""
        packet = vstor.execute_srb(scsi.write_16(0, 1), Direction.OUT, 512)
        self.near.send(GPA_DIRECT, COMPLETION_REQUESTED, 7, packet, bytes(512))
        self.far.deliver()

    @property
    def answers(self) -> int:
        return len(self.near.inbox)


@pytest.fixture
def patches() -> Iterator[Patches]:
    made = Patches()
    yield made
    made.clear()


def arm(setup: Setup, patches: Patches, step: str, count: int = 1) -> Line:
    line = Line()
    order = {"component": "storvsp", "step": step, "count": count, "fault": "kill"}
    in_partitions.install(step, Trap(order, line), patches, "storvsp", setup)  # type: ignore[arg-type]
    return line


def test_fetch_comes_before_anything_is_done(patches: Patches) -> None:
    setup = Setup()
    line = arm(setup, patches, "fetch")
    with pytest.raises(Died):
        setup.write()
    assert (setup.disk.held, setup.session.stats().requests, setup.answers) == ([], 0, 0)
    assert (line.said[0]["at"], line.said[0]["component"]) == ("fetch:1", "storvsp")
    assert line.said[0]["ns"] > 0


def test_submit_comes_when_the_request_is_understood_and_the_driver_has_not_got_it(patches: Patches) -> None:
    setup = Setup()
    arm(setup, patches, "submit")
    with pytest.raises(Died):
        setup.write()
    assert (setup.disk.held, setup.session.stats().requests, setup.answers) == ([], 1, 0)


def test_complete_comes_when_the_driver_is_done_and_the_channel_has_nothing(patches: Patches) -> None:
    setup = Setup()
    arm(setup, patches, "complete")
    setup.write()
    (request,) = setup.disk.held
    with pytest.raises(Died):
        setup.disk._succeed(request)
    assert (setup.answers, setup.disk.stats().writes) == (0, 1)


def test_signal_comes_when_the_completion_is_in_the_channel(patches: Patches) -> None:
    setup = Setup()
    arm(setup, patches, "signal")
    setup.write()
    with pytest.raises(Died):
        setup.disk._succeed(setup.disk.held[0])
    assert setup.answers == 1


def ring_like() -> tuple[MemoryChannel, MemoryChannel]:
    near, far = MemoryChannel(512), RingLike(512)
    near.peer, far.peer = far, near
    return near, far


@pytest.mark.parametrize(("step", "story"), [("signal", []), ("signalled", ["publish 1", "ring"])])
def test_on_a_ring_index_and_doorbell_are_between_signal_and_signalled(
    patches: Patches, step: str, story: list[str]
) -> None:
    setup = Setup(ring_like)
    arm(setup, patches, step)
    setup.write()
    far = setup.far
    assert isinstance(far, RingLike)
    far.shares_memory = True        # from here on: the request itself came without a page list
    far.settle()
    far.story.clear()               # a round in which nothing was completed is no signal
    setup.disk._succeed(setup.disk.held[0])
    with pytest.raises(Died):
        far.settle()
    assert (setup.answers, far.story) == (1, story)


def test_the_number_counts_from_the_arming_on(patches: Patches) -> None:
    setup = Setup()
    setup.write()
    arm(setup, patches, "fetch", 3)
    setup.write()
    setup.write()
    with pytest.raises(Died, match="fetch:3"):
        setup.write()
    assert len(setup.disk.held) == 3
    setup.write()                   # whoever survived, which only a test does, is not struck again
    assert len(setup.disk.held) == 4


def test_what_is_cleared_leaves_no_trace_and_never_strikes(patches: Patches) -> None:
    setup = Setup()
    methods = dict(vars(StorVspSession))
    offered = "open" in vars(StorageVsp)
    for step in in_partitions.HOOKS["storvsp"]:
        arm(setup, patches, step)
        patches.clear()
        assert dict(vars(StorVspSession)) == methods
        assert ("open" in vars(StorageVsp)) is offered is False
    assert setup.far.on_packet == setup.session._received
    setup.write()
    setup.disk._succeed(setup.disk.held[0])
    assert setup.answers == 1


def test_a_packet_of_the_handshake_is_no_service(patches: Patches) -> None:
    setup = Setup()
    arm(setup, patches, "fetch")
    other = Setup()                 # a session that begins while the step is armed
    assert other.session.stats().state == "READY"
