"""Whatever a topology file holds, the answer is a topology or a list of one-line faults."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vmbus_emu.topology import Overrides, Topology, TopologyErrors, build, parse
from vmbus_emu.topology import data as data

Fuzz = Callable[[int], Iterator[int]]
WORDS = (
    "name", "arch", "transport", "poll", "policy", "hardware", "vm", "switch", "role", "memory", "integration_services",
    "address", "vmbus_version", "disk", "nic", "file", "ram", "null", "read_only", "size", "mac", "model", "parent",
    "child", "vm1", "vm2", "s0", "microkernel", "monolithic", "zmq", "ring", "never", "restart", "16MiB", "512",
    "10.0.0.1", "00:15:5d:00:00:01", "4.0", "a.img", "", "x" * 100, "\0", "\n", "..", "/", "=",
)
TEMPLATE = """name = "lab"
[policy]
parent = "standby"
[[vm]]
name = "vm1"
memory = "16MiB"
[[vm.disk]]
ram = "64MiB"
[[vm.nic]]
switch = "s0"
[[switch]]
name = "s0"
"""


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 4 else 5)
    if kind < 2:
        return rng.choice(WORDS)
    if kind == 2:
        return rng.choice((0, 1, -1, 512, 513, 4096, 1 << 20, 1 << 40, 1 << 63, 1 << 70, 10**300))
    if kind == 3:
        return rng.choice((True, False, 1.5, float("nan"), float("inf"), None, b"x"))
    if kind == 4:
        return "".join(chr(rng.randrange(1, 0x500)) for _ in range(rng.randrange(20)))
    if kind == 5:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(WORDS): random_value(rng, depth + 1) for _ in range(rng.randrange(6))}


def likely_document(rng: random.Random) -> dict[str, Any]:
    """A document of the right outline, so that the inner checks are reached, with anything in its values."""

    def table(*keys: str) -> dict[str, Any]:
        return {key: random_value(rng, 2) for key in keys if rng.random() < 0.5}

    vms = [
        {
            "name": rng.choice(("vm1", "vm2", "web", "parent")),
            **table("memory", "integration_services", "address", "vmbus_version"),
            "disk": [table("file", "ram", "null", "read_only", "size") for _ in range(rng.randrange(3))],
            "nic": [table("switch", "mac") for _ in range(rng.randrange(3))],
        }
        for _ in range(rng.randrange(4))
    ]
    return {"vm": vms, "switch": [{"name": "s0"}], "policy": table("parent", "child"),
            **table("name", "arch", "transport", "poll", "role")}


def outcome(make: Callable[[], Topology]) -> Topology | list[str]:
    try:
        return make()
    except TopologyErrors as error:
        return error.lines


def check(document: dict[str, Any], flags: Overrides) -> bool:
    """The contract; whether the document made a topology."""
    topology = outcome(lambda: parse(document, "lab.toml", flags=flags))
    if isinstance(topology, list):
        assert topology
        for line in topology:
            assert line.isprintable(), line
            assert line.startswith(("lab.toml:", "flags:")), line
            assert "; " in line, line
        return False
    assert Topology.from_dict(topology.to_dict()) == topology
    assert topology.transport in data.TRANSPORTS
    assert topology.poll in data.POLLS
    assert 1 <= len(topology.vms) <= data.MAX_VMS
    names = [vm.name for vm in topology.vms]
    assert len(set(names)) == len(names)
    assert all(data.is_name(name) and name not in data.RESERVED_NAMES for name in names)
    macs = [nic.mac for vm in topology.vms for nic in vm.nics]
    assert len(set(macs)) == len(macs)
    switches = {switch.name for switch in topology.switches}
    assert all(nic.switch in switches for vm in topology.vms for nic in vm.nics)
    assert all(disk.size_bytes % 512 == 0 for vm in topology.vms for disk in vm.disks)
    return True


def test_any_document_is_a_topology_or_faults(fuzz: Fuzz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.img").write_bytes(bytes(512))
    made = asked = 0
    for case in fuzz(3000):
        asked += 1
        rng = random.Random(f"document {case}")
        document = likely_document(rng) if rng.random() < 0.7 else {
            rng.choice(WORDS): random_value(rng) for _ in range(rng.randrange(6))
        }
        text = [rng.choice(WORDS) + rng.choice(("", "=", "=x", "=a.img")) for _ in range(rng.randrange(3))]
        flags = Overrides(
            name=rng.choice((None, "x", *WORDS)), arch=rng.choice((None, "monolithic", *WORDS)),
            transport=rng.choice((None, "ring", *WORDS)), poll=rng.choice((None, None, *data.POLLS, *WORDS)),
            vms=rng.choice((None, None, None, 0, 3, "2", "x", 10**30)),
            disks=tuple(text) if rng.random() < 0.3 else (), policies=tuple(text) if rng.random() < 0.3 else (),
        )
        made += check(document, Overrides() if rng.random() < 0.5 else flags)
    assert asked < 500 or made > 0, "the generator never reached a topology: it tests nothing behind the first check"


def test_any_bytes_in_a_file_are_a_topology_or_faults(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    for case in fuzz(3000):
        rng = random.Random(f"file {case}")
        raw = bytearray(TEMPLATE.encode())
        for _ in range(rng.randrange(1, 6)):
            start = rng.randrange(len(raw))
            match rng.randrange(3):
                case 0:
                    raw[start] = rng.randrange(256)
                case 1:
                    del raw[start : start + rng.randrange(1, 30)]
                case _:
                    raw[start:start] = rng.choice(WORDS).encode() + rng.choice((b"", b"=", b"[", b'"', b"\n"))
            raw = raw or bytearray(b"\n")
        path.write_bytes(raw)
        made = outcome(lambda: build(path, Overrides()))
        assert isinstance(made, Topology) or (made and all(line.startswith(f"{path}:") for line in made))
