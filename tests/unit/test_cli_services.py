"""What stop, kvp and snapshot ask of the client, print, and end with. The client is a stand-in."""

from __future__ import annotations

import json
import tempfile
import types
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result

from vmbus_emu.cli.main import cli
from vmbus_emu.runfolder import RunFolder
from vmbus_emu.topology import Overrides, build

ITEMS = [{"pool": "auto", "key": "OSName", "value": "x\ny"}, {"pool": "external", "key": "a", "value": "b"}]
COPY = {"disk": "vm1.disk0", "path": "/a", "bytes": 1024, "data_bytes": 512, "quiesced": True, "frozen_ms": 2.4,
        "stopped_ms": None, "ms": 3.4}  # fmt: skip


class FakeMachine:
    calls: ClassVar[list[tuple[Any, ...]]] = []
    answers: ClassVar[dict[str, Any]] = {}

    @classmethod
    def attach(cls, name: str) -> FakeMachine:
        return cls()

    def __getattr__(self, verb: str) -> Any:
        def asked(*arguments: Any, **named: Any) -> Any:
            self.calls.append((verb, *arguments, *named.values()))
            return self.answers.get(verb)

        return asked

    def close(self) -> None:
        """Nothing is open."""


def run(*arguments: str) -> Result:
    try:
        runner = CliRunner(mix_stderr=False)  # type: ignore[call-arg, unused-ignore]
    except TypeError:
        runner = CliRunner()
    return runner.invoke(cli, arguments, catch_exceptions=False)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import vmbus_emu.client

    monkeypatch.setattr(vmbus_emu.client, "Machine", types.SimpleNamespace(attach=FakeMachine.attach))
    FakeMachine.calls.clear()
    FakeMachine.answers = {"kvp": ITEMS, "snapshot": COPY}
    with tempfile.TemporaryDirectory(prefix="ve-", dir="/tmp") as base:
        monkeypatch.setenv("VMBUS_EMU_RUN", base)
        folder = RunFolder("default")
        lock = folder.acquire(build(None, Overrides()))
        yield
        folder.release(lock)


def test_stop_says_how_it_went() -> None:
    FakeMachine.answers["stop"] = {"vm": "vm1", "how": "off", "ms": 12.3, "unflushed": []}
    result = run("stop", "vm1", "--grace", "3s")
    assert (result.exit_code, result.stdout) == (0, "vm1: off after 12 ms\n")
    assert FakeMachine.calls == [("stop", "vm1", False, 3.0)]
    assert json.loads(run("stop", "vm1", "--json").stdout)["how"] == "off"
    FakeMachine.answers["stop"] = {"vm": "vm1", "how": "off", "ms": 12.3, "unflushed": ["disk0: flush: I/O error"]}
    result = run("stop", "vm1")
    assert (result.exit_code, result.stdout) == (
        1, "vm1: off after 12 ms; 1 disk not flushed: disk0: flush: I/O error\n")
    FakeMachine.answers["stop"] = {"vm": "vm1", "how": "plug pulled", "ms": 1, "unflushed": []}
    assert run("stop", "vm1", "--force").stdout == "vm1: plug pulled after 1 ms\n"


def test_kvp_lists_gets_and_sets() -> None:
    assert run("kvp", "vm1").stdout.splitlines() == [
        "POOL      KEY     VALUE", "auto      OSName  x?y", "external  a       b"]
    assert json.loads(run("kvp", "vm1", "--json").stdout)["items"] == ITEMS
    FakeMachine.answers["kvp"] = ITEMS[1:]
    assert run("kvp", "vm1", "get", "a").stdout == "b\n"
    assert run("kvp", "vm1", "set", "a", "b").stdout == ""
    assert FakeMachine.calls[-2:] == [("kvp", "vm1", "a"), ("set_kvp", "vm1", "a", "b")]
    FakeMachine.answers["kvp"] = []
    result = run("kvp", "vm1", "get", "z")
    assert (result.exit_code, result.stderr) == (
        1, "vmbus-emu: error: vm1 has no key 'z'; vmbus-emu kvp vm1 lists those that there are\n")


@pytest.mark.parametrize("words", [
    ("get",), ("set", "a"), ("put", "a"), ("get", "a", "b"), ("get", ""), ("set", "a", "b", "c"),
])  # fmt: skip
def test_kvp_used_wrongly_is_told_so(words: tuple[str, ...]) -> None:
    result = run("kvp", "vm1", *words)
    assert result.exit_code == 2
    assert result.stderr.startswith("vmbus-emu: error: ")
    assert FakeMachine.calls == []


def test_snapshot_says_how_long_the_vm_held_still() -> None:
    result = run("snapshot", "vm1", "out.img")
    assert result.stdout == "vm1.disk0: 1024 bytes (512 of data) in 3 ms, vm1 held still for 2 ms\n"
    assert FakeMachine.calls == [("snapshot", "vm1", "out.img", "disk0", True)]
    FakeMachine.answers["snapshot"] = {**COPY, "quiesced": False, "frozen_ms": None, "stopped_ms": 1.6}
    result = run("snapshot", "vm1", "out.img", "--no-quiesce", "--disk", "disk1")
    assert result.stdout == "vm1.disk0: 1024 bytes (512 of data) in 3 ms, vm1 was stopped for 2 ms\n"
    assert FakeMachine.calls[-1] == ("snapshot", "vm1", "out.img", "disk1", False)
    FakeMachine.answers["snapshot"] = {**COPY, "quiesced": False, "frozen_ms": None}
    assert run("snapshot", "vm1", "out.img").stdout == "vm1.disk0: 1024 bytes (512 of data) in 3 ms\n", "it is off"
    assert json.loads(run("snapshot", "vm1", "o", "--json").stdout)["schema"] == 1


def test_a_vm_that_is_not_there_is_told_with_those_that_are() -> None:
    for verb in (("stop", "vm9"), ("kvp", "vm9"), ("snapshot", "vm9", "f")):
        result = run(*verb)
        assert (result.exit_code, result.stderr) == (
            1, 'vmbus-emu: error: "default" has no VM "vm9"; one of vm1, vm2\n')
