"""Who runs where: halves of the processors for guests and hosts, threads of the monolith by their VMs' names."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import setproctitle

from bench import pins
from bench.pins import Places, Unpinnable, places


@pytest.mark.parametrize(("way", "cpus", "placed"), [
    ("none", [0, 1], None), ("together", [3, 5], Places((3,), (3,))), ("apart", [0, 1], Places((0,), (1,))),
    ("apart", [0, 2, 4, 6, 8], Places((0, 2), (4, 6, 8))),
])
def test_ways(way: str, cpus: list[int], placed: Places | None) -> None:
    assert places(way, cpus) == placed


def test_one_processor_keeps_nobody_apart() -> None:
    with pytest.raises(Unpinnable, match="--pin together"):
        places("apart", [0])


def test_processors_are_some_that_we_may_use() -> None:
    found = pins.processors()
    assert found
    assert set(found) <= os.sched_getaffinity(0)


def row(name: str, role: str, host: str = "", pid: int | None = 1) -> dict[str, Any]:
    return {"name": name, "role": role, "host": host or name, "pid": pid}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[int]]:
    """The kernel's table: by thread. Processes are 10, 20 … and have one thread each, but 99: its threads are vm1, vm2
    and one more."""
    table: dict[int, set[int]] = {}
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cpus: table.__setitem__(thread, set(cpus)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: table.get(thread, {0, 1, 2, 3}))
    monkeypatch.setattr(pins, "threads", lambda pid: iter(
        [(99, "vmbus"), (991, "vm1"), (992, "vm2"), (993, "ZMQbg")] if pid == 99 else [(pid, "vmbus")]))
    return table


DISAGGREGATED = [
    row("machine", "machine", pid=10), row("hypervisor", "hypervisor", pid=20), row("parent", "parent", pid=30),
    row("storvsp", "storvsp", pid=40), row("netvsp", "netvsp", pid=50), row("vm1", "child", pid=60),
    row("vm2", "child", pid=70), row("gone", "role", pid=None),
]  # fmt: skip


def test_guests_and_hosts_take_turns_on_their_halves_and_the_data_path_comes_first(
    asked: dict[int, set[int]]
) -> None:
    pins.pin(DISAGGREGATED, Places((0, 1), (2, 3)))
    assert asked == {60: {0}, 70: {1}, 40: {2}, 50: {3}, 30: {2}, 20: {3}, 10: {2}}
    assert pins.misplaced(DISAGGREGATED, Places((0, 1), (2, 3))) == []


def test_the_monoliths_vms_are_threads(asked: dict[int, set[int]]) -> None:
    rows = [row(name, role, "monolith", 99) for name, role in (
        ("hypervisor", "hypervisor"), ("storvsp", "storvsp"), ("vm1", "child"), ("vm2", "child"))]  # fmt: skip
    pins.pin(rows, Places((0,), (1,)))
    assert asked == {99: {1}, 991: {0}, 992: {0}, 993: {1}}


def test_who_was_not_pinned_is_named(asked: dict[int, set[int]]) -> None:
    where = Places((0,), (1,))
    pins.pin(DISAGGREGATED, where)
    asked[60] = {0, 1}
    assert pins.misplaced(DISAGGREGATED, where) == ["vm1 is not pinned to processor 0"]


@contextmanager
def named_thread(name: str) -> Iterator[int]:
    ready, stop, found = threading.Event(), threading.Event(), []

    def run() -> None:
        setproctitle.setthreadtitle(name)
        found.append(threading.get_native_id())
        ready.set()
        stop.wait()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    yield found[0]
    stop.set()
    thread.join()


def test_threads_are_told_apart_by_their_names() -> None:
    with named_thread("vm7") as thread:
        assert dict(pins.threads(os.getpid()))[thread] == "vm7"
    assert list(pins.threads(1 << 22)) == []
