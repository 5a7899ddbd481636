"""What the folders of tests share: the options, and a hypervisor with virtual processors in one process."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, TypeVar

import msgpack
import pytest

from vmbus_emu.hypervisor.calls import execute
from vmbus_emu.hypervisor.core import Deliver, Effect, Hypervisor, PowerOn, Raise, Reply
from vmbus_emu.hypervisor.tables import Vp
from vmbus_emu.loop import Loop
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Code
from vmbus_emu.task import Future
from vmbus_emu.vp import VirtualProcessor

T = TypeVar("T")

#: About how many cases the numbers in ``tests/fuzz`` add up to.
FUZZ_CASES = 203_800


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-cases",
        type=int,
        metavar="N",
        default=int(os.environ.get("VMBUS_EMU_FUZZ_CASES", FUZZ_CASES)),
        help=f"about how many cases tests/fuzz runs in all; the environment variable VMBUS_EMU_FUZZ_CASES sets the "
        f"default, {FUZZ_CASES:,} without it",
    )


@pytest.fixture(scope="session")
def fuzz_scale(pytestconfig: pytest.Config) -> float:
    """By how much the numbers of cases in ``tests/fuzz`` are multiplied."""
    cases: int = pytestconfig.getoption("--fuzz-cases")
    return cases / FUZZ_CASES


class Wires:
    """Virtual processors on a hypervisor in this process: the real tables and the real VPs, no sockets between.

    ``processor(partition, index)`` is a VP of a bound process. What is delivered to a VP nobody made waits.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vmbus_emu.vp.ZmqPort", self._port)
        self.loop = Loop()
        self.hypervisor = Hypervisor()
        self.waiting: dict[Vp, list[tuple[Any, ...]]] = {}
        self.started: list[str] = []
        self.cut = False                    # the hypervisor is gone: nothing can be sent
        self._handlers: dict[Vp, Callable[[list[Any]], Any]] = {}
        self._pids = itertools.count(100)

    def processor(self, partition: int = hv.PARTITION_ROOT, index: int = 0) -> VirtualProcessor:
        vp = partition, index
        self.hypervisor.bind(vp, next(self._pids))
        made = VirtualProcessor(self.loop, vp)  # type: ignore[arg-type]
        for envelope in self.waiting.pop(vp, ()):
            self._send(vp, *envelope)
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
        assert isinstance(reply, Reply)
        return int.from_bytes(reply.output, "little")

    def _port(self, loop: Loop, vp: Vp, kind: int, handler: Callable[[list[Any]], Any], **limits: int) -> Any:
        self._handlers[vp] = handler

        def send(raw: bytes) -> bool:
            if not self.cut:
                self._received(vp, msgpack.unpackb(raw))
            return not self.cut

        return SimpleNamespace(send=send, connect=lambda path: None, close=lambda: None)

    def _received(self, vp: Vp, envelope: list[Any]) -> None:
        match envelope:
            case [hv.TO_HYPERVISOR_CALL, sequence, control, block]:
                self.apply(execute(self.hypervisor, vp, sequence, control, block))
            case [hv.TO_HYPERVISOR_EOM, port, count]:
                self.hypervisor.end_of_message(vp, port, count)
            case [hv.TO_HYPERVISOR_EVENT_SEEN, sint, flag]:
                self.hypervisor.events_seen(vp, sint, flag)

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Reply(vp, sequence, status, output):
                    self._send(vp, hv.TO_PARTITION_RESULT, sequence, int(status), output)
                case Deliver(vp, sint, message):
                    self._send(vp, hv.TO_PARTITION_MESSAGE, sint, message.encode())
                case Raise(vp, sint, flag):
                    self._send(vp, hv.TO_PARTITION_EVENT, sint, flag)
                case PowerOn(partition, index, name):
                    self.started.append(name)
                    self.apply(self.hypervisor.powered((partition, index), next(self._pids)))
                case _:
                    pass

    def _send(self, vp: Vp, *envelope: Any) -> None:
        handler = self._handlers.get(vp)
        if handler is None:
            self.waiting.setdefault(vp, []).append(envelope)
        else:
            self.loop.call_soon(handler, [SimpleNamespace(buffer=msgpack.packb(envelope))])


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wires]:
    made = Wires(monkeypatch)
    yield made
    made.loop.close()
