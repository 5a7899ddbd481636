"""Tracing that is off costs nothing, by construction: no method is another one, and the code that would wrap them is
not even loaded. Tracing that is on wraps them, and what is unwrapped is what it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from partitions import tracepoints
from vmbus_emu import node, tracing
from vmbus_emu.node import TRACE_VARIABLE, Node
from vmbus_emu.trap import Patches
from vmbus_emu.witness.traces import TraceFile

GUEST = {"components": ["vm1"], "guests": [{"name": "vm1"}]}
SERVER: dict[str, Any] = {"components": ["storvsp"], "storvsp": {}, "guests": []}
MONOLITH = {**SERVER, **GUEST, "transport": "zmq"}
PLACES = [
    {**role, "transport": transport} for role in (GUEST, SERVER) for transport in ("zmq", "ring")
] + [MONOLITH]  # fmt: skip


class Listed:
    """In the place of :class:`vmbus_emu.trap.Patches`: wraps nothing, and says what would be."""

    def __init__(self) -> None:
        self.points: list[tuple[Any, str]] = []

    def wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        self.points.append((owner, name))


@pytest.fixture
def trace() -> Iterator[TraceFile]:
    made = TraceFile.create(1)
    yield made
    made.close()


def points(trace: TraceFile, config: dict[str, Any]) -> list[tuple[Any, str]]:
    listed = Listed()
    tracepoints.install(trace, listed, config)
    return listed.points


@pytest.mark.parametrize("config", PLACES, ids=lambda one: f"{one['components'][0]}-{one['transport']}")
def test_what_was_wrapped_is_the_identical_function_again(trace: TraceFile, config: dict[str, Any]) -> None:
    places = points(trace, config)
    assert len(places) >= 4
    before = [vars(owner)[name] for owner, name in places]
    for (owner, _), method in zip(places, before, strict=True):
        assert getattr(method, "__wrapped__", method).__module__ == owner.__module__  # and no wrapper's
    patches = Patches()
    tracepoints.install(trace, patches, config)
    during = [vars(owner)[name] for owner, name in places]
    patches.clear()
    assert not any(one is other for one, other in zip(before, during, strict=True))
    assert all(one is vars(owner)[name] for one, (owner, name) in zip(before, places, strict=True))


def test_who_serves_no_disk_and_is_no_guest_has_no_points(trace: TraceFile) -> None:
    assert points(trace, {"components": ["netvsp"], "guests": [], "transport": "ring"}) == []


class Component:
    def __init__(self) -> None:
        self.started: list[Any] = []

    def start(self, config: Any) -> None:
        self.started.append(config)


def started(config: dict[str, Any]) -> Component:
    """A process that is told to start."""
    process = Node.__new__(Node)
    process.name = "vm1"
    component: Any = Component()
    process._component = component
    process._handle({"t": "start", "config": config}, [])
    return component  # type: ignore[no-any-return]


def test_a_process_that_is_not_traced_loads_nothing_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.delenv(TRACE_VARIABLE, raising=False)
    monkeypatch.setattr(node, "load", loaded.append)
    assert started({"a": 1}).started == [{"a": 1}]
    assert loaded == []


def test_only_who_is_named_is_traced(monkeypatch: pytest.MonkeyPatch, trace: TraceFile) -> None:
    installed: list[Any] = []

    def install(file: TraceFile, patches: Patches, config: Any) -> None:
        installed.append((config, component.started[:]))
        file.close()

    component: Any = Component()
    monkeypatch.setattr(tracing, "load", lambda path: install)
    for name in ("parent", "vm1"):
        (variable, value), = tracing.environment({name: trace}).items()
        monkeypatch.setenv(variable, value)
        started({"t": name})
    assert [config for config, _ in installed] == [{"t": "vm1"}]


def test_methods_are_wrapped_before_anything_is_made(monkeypatch: pytest.MonkeyPatch, trace: TraceFile) -> None:
    order: list[str] = []
    monkeypatch.setattr(node, "load", lambda path: lambda name, config: order.append(path))
    monkeypatch.setattr(Component, "start", lambda self, config: order.append("start"))
    for variable, value in tracing.environment({"vm1": trace}).items():
        monkeypatch.setenv(variable, value)
    started({})
    assert order == ["vmbus_emu.tracing:begin", "start"]
