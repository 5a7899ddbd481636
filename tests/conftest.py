"""What the folders of tests share: the options, and a hypervisor with virtual processors in one process."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, TypeVar

import msgpack
import pytest

from vmbus_emu.envelopes import apart
from vmbus_emu.hypervisor import recovery
from vmbus_emu.hypervisor.calls import execute, handed, receive
from vmbus_emu.hypervisor.changes import snapshot
from vmbus_emu.hypervisor.core import (
    Deliver,
    Effect,
    HandDoorbell,
    HandOut,
    Hypervisor,
    Interrupt,
    PowerOff,
    PowerOn,
    Raise,
    Reply,
)
from vmbus_emu.hypervisor.ledger import Ledger
from vmbus_emu.hypervisor.tables import Vp
from vmbus_emu.loop import Loop
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Code
from vmbus_emu.task import Future
from vmbus_emu.vp import VirtualProcessor

T = TypeVar("T")

#: About how many cases the numbers in ``tests/fuzz`` add up to.
FUZZ_CASES = 205_300


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-cases",
        type=int,
        metavar="N",
        default=int(os.environ.get("VMBUS_EMU_FUZZ_CASES", FUZZ_CASES)),
        help=f"about how many cases tests/fuzz runs in all; the environment variable VMBUS_EMU_FUZZ_CASES sets the "
        f"default, {FUZZ_CASES:,} without it",
    )


@pytest.fixture(scope="session", autouse=True)
def _interrupts_count() -> None:
    """A shell that runs the suite in its background ignores SIGINT, and so would every program that a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture(scope="session")
def fuzz_scale(pytestconfig: pytest.Config) -> float:
    """By how much the numbers of cases in ``tests/fuzz`` are multiplied."""
    cases: int = pytestconfig.getoption("--fuzz-cases")
    return cases / FUZZ_CASES


#: Fuzz cases that ran, by file.
_counts: dict[str, int] = {}


@pytest.fixture(scope="session")
def fuzz_counts() -> dict[str, int]:
    return _counts


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What one of several workers counted is for the process that sums up."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["fuzz"] = _counts


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    for name, count in getattr(node, "workeroutput", {}).get("fuzz", {}).items():
        _counts[name] = _counts.get(name, 0) + count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _counts:
        files = ", ".join(f"{name} {count:,}" for name, count in sorted(_counts.items()))
        terminalreporter.write_line(f"fuzz: {sum(_counts.values()):,} cases ({files})")


class Died(BaseException):
    """The hypervisor died at this moment."""


class Wires:
    """Virtual processors on a hypervisor in this process: the real tables and the real VPs, no sockets between.

    ``processor(partition, index)`` is a VP of a bound process. What is delivered to a VP nobody made waits.

    The hypervisor keeps a real ledger. It may die at every moment between an event, its record and each of its effects:
    ``dies()`` is asked there. Then it is gone with all envelopes on their way, and :meth:`die` makes another one.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vmbus_emu.vp.ZmqPort", self._port)
        self.loop = Loop()
        self._file = os.memfd_create("ledger")
        self._ledger = Ledger(self._file, keep=False, half=1 << 16)
        self.hypervisor = Hypervisor(recorded=True)
        self.waiting: dict[Vp, list[tuple[Any, ...]]] = {}
        self.started: list[str] = []
        #: What lies in the inboxes: ("memory", grantee, owner, gpa), ("port", owner, number) or ("connection",
        #: partition, number) -> the number of the handout. The two ends of one pipe have the same.
        self.handed: dict[tuple[Any, ...], int] = {}
        self.cut = False                    # the hypervisor is gone: nothing can be sent
        self.dies: Callable[[], bool] = lambda: False
        self.deaths = 0
        self._processors: dict[Vp, VirtualProcessor] = {}
        self._living: dict[Vp, int] = {}    # the machine's view: who stands in for which VP
        self._handlers: dict[Vp, Callable[[list[Any]], Any]] = {}
        self._pids = itertools.count(100)
        self._handouts = itertools.count(1)

    def processor(self, partition: int = hv.PARTITION_ROOT, index: int = 0) -> VirtualProcessor:
        vp = partition, index
        if vp not in self.hypervisor.callers:
            self._living[vp] = next(self._pids)
            self.hypervisor.bind(vp, self._living[vp])
            self._write()
        made = self._processors[vp] = VirtualProcessor(self.loop, vp)  # type: ignore[arg-type]
        made.connect("incarnation 0")
        self._deliver_waiting(vp)
        return made

    def result(self, future: Future[T]) -> T:
        assert self.loop.run_until(lambda: future.done, 5.0)
        return future.result()

    def settle(self) -> None:
        """Run until nothing is left to do now."""
        for _ in range(50):
            self.loop.step(0.0)

    def child(self, name: str = "vm1") -> int:
        """A new partition, as management makes one."""
        (reply,) = execute(self.hypervisor, (1, 0), 0, Code.CREATE_PARTITION,
                           hv.CREATE_PARTITION.pack(0, 0, 0, name.encode()))
        self._write()
        assert isinstance(reply, Reply)
        return int.from_bytes(reply.output, "little")

    def end(self, partition: int, index: int = 0) -> None:
        """The process of a VP dies."""
        vp = partition, index
        del self._living[vp]
        self._processors.pop(vp, None)
        self._handlers.pop(vp, None)
        self.waiting.pop(vp, None)
        self.apply(self.hypervisor.ended(vp))

    # -- the hypervisor's death -------------------------------------------------------------------------

    def die(self) -> None:
        """Kill the hypervisor, and start the next one, which may die while it comes back."""
        while True:
            self.deaths += 1
            self.waiting.clear()
            self._handlers.clear()
            try:
                self._come_back()
            except Died:
                continue
            for vp in self._processors:
                self.loop.call_soon(self._reconnect, vp, self.deaths)
            return

    def _come_back(self) -> None:
        self._ledger = Ledger(self._file, keep=True)
        state = self.hypervisor = recovery.restore(self._ledger.changes())
        again = [effect for vp, pid in list(self._living.items()) for effect in recovery.bind_again(state, vp, pid)]
        for vp in sorted(state.callers.keys() - self._living.keys()):
            state.ended(vp)
        self._moment()
        self._apply([effect for effect in again if isinstance(effect, PowerOff)])
        self._apply(recovery.outstanding(state))
        self._settle()

    def _reconnect(self, vp: Vp, death: int) -> None:
        if death == self.deaths and vp in self._processors:
            self._processors[vp].reconnect(f"incarnation {death}")

    def _moment(self) -> None:
        if self.dies():
            raise Died

    # -- both ways --------------------------------------------------------------------------------------

    def _port(self, loop: Loop, vp: Vp, kind: int, handler: Callable[[list[Any]], Any], **limits: int) -> Any:
        self._handlers[vp] = handler
        incarnation = self.deaths

        def send(raw: bytes) -> bool:
            for envelope in apart(raw):
                if not self.cut and incarnation == self.deaths:  # otherwise it is lost, and nobody knows
                    self._received(vp, envelope)
            return not self.cut

        return SimpleNamespace(send=send, connect=lambda path: None, close=lambda: None)

    def _received(self, vp: Vp, envelope: tuple[Any, ...]) -> None:
        state = self.hypervisor
        effects: list[Effect] = []
        try:
            self._moment()
            self._deliver_waiting(vp)
            if vp not in state.callers:
                return
            match envelope:
                case (hv.TO_HYPERVISOR_CALL, sequence, control, block):
                    effects = receive(state, vp, sequence, control, block)
                case (hv.TO_HYPERVISOR_TRAP, sequence, block):
                    effects = receive(state, vp, sequence, None, block)
                case (hv.TO_HYPERVISOR_EOI, vector):
                    state.end_of_interrupt(vp, vector)
                case (hv.TO_HYPERVISOR_EOM, port, number):
                    state.end_of_message(vp, port, number)
                case (hv.TO_HYPERVISOR_EVENT_SEEN, sint, flag):
                    state.events_seen(vp, sint, flag)
                case (hv.TO_HYPERVISOR_ANSWERED, sequence):
                    state.answered(vp, sequence)
            self._moment()
        except Died:
            self.die()
            return
        self.apply(effects)

    def apply(self, effects: list[Effect]) -> None:
        try:
            self._apply(effects)
        except Died:
            self.die()

    def _write(self) -> None:
        if self.hypervisor.changes:
            self._ledger.append(self.hypervisor.changes, lambda: snapshot(self.hypervisor))
            self.hypervisor.changes.clear()

    def _settle(self) -> None:
        self._moment()
        if handed(self.hypervisor):
            self._write()
            self._moment()

    def _apply(self, effects: list[Effect]) -> None:
        self._write()
        for effect in effects:
            self._moment()
            match effect:
                case Reply(vp, sequence, status, output):
                    self._settle()
                    self._send(vp, hv.TO_PARTITION_RESULT, sequence, int(status), output)
                case Deliver(vp, sint, message, number):
                    self._send(vp, hv.TO_PARTITION_MESSAGE, sint, message.encode(), number)
                case Raise(vp, sint, flag):
                    self._send(vp, hv.TO_PARTITION_EVENT, sint, flag)
                case Interrupt(vp, vector):
                    self._send(vp, hv.TO_PARTITION_INTERRUPT, vector)
                case PowerOn(partition, index, name):
                    vp = partition, index
                    if vp not in self._living:  # the machine has it made once
                        self.started.append(name)
                        self._living[vp] = next(self._pids)
                    self._moment()
                    self._apply(self.hypervisor.powered(vp, self._living[vp]))
                case PowerOff(_, pids):
                    for vp in [vp for vp, pid in self._living.items() if pid in pids]:
                        del self._living[vp]
                        self._processors.pop(vp, None)
                case HandOut(grant):
                    self.handed["memory", grant.grantee, grant.owner, grant.gpa] = next(self._handouts)
                case HandDoorbell(owner, port, partition, connection):
                    pipe = next(self._handouts)
                    self.handed["port", owner, port] = pipe
                    self._moment()
                    self.handed["connection", partition, connection] = pipe

    def _deliver_waiting(self, vp: Vp) -> None:
        for envelope in self.waiting.pop(vp, ()):
            self._send(vp, *envelope)

    def _send(self, vp: Vp, *envelope: Any) -> None:
        handler = self._handlers.get(vp)
        if handler is None:
            self.waiting.setdefault(vp, []).append(envelope)
        else:
            self.loop.call_soon(self._arrive, self.deaths, handler, msgpack.packb(envelope))

    def _arrive(self, incarnation: int, handler: Callable[[list[Any]], Any], raw: bytes) -> None:
        if incarnation == self.deaths:
            handler([SimpleNamespace(buffer=raw)])

    def close(self) -> None:
        self.loop.close()
        os.close(self._file)


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wires]:
    made = Wires(monkeypatch)
    yield made
    made.close()
