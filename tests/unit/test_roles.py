"""Orders for roles that are refused, and how roles are told to users. No process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vmbus_emu.cli.role import role_lines
from vmbus_emu.loop import Loop
from vmbus_emu.machine import roles as module
from vmbus_emu.machine.events import Events
from vmbus_emu.machine.intake import Refused, accepts, understood
from vmbus_emu.machine.roles import Roles
from vmbus_emu.placement import ROLE_ENTRIES
from vmbus_emu.plan import plan
from vmbus_emu.topology import parse
from vmbus_emu.topology.data import ROLES


def roles(tmp_path: Path, arch: str = "microkernel", off: bool = False, **document: Any) -> Roles:
    supervisor: Any = None                          # of no use for what is refused
    events = Events(lambda client, message: None)
    return Roles(
        Loop(), parse({"arch": arch, **document}), supervisor, events, tmp_path / "cgroups", lambda text: None,
        lambda: off,
    )  # fmt: skip


def refusal(roles: Roles, **order: Any) -> str:
    with pytest.raises(Refused) as refused:
        roles.order({"verb": "role", **order}, lambda answer: None)
    return "; ".join(refused.value.args)


def test_a_library_that_is_missing_is_named_by_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEEDS", {"dns": ("no_such_library", "roles")})
    assert "vmbus-emu[roles]" in refusal(roles(tmp_path), action="add", role="dns")
    told: list[str | None] = []
    wanted = roles(tmp_path, role={"dns": {}})
    wanted.begin(told.append)
    assert len(told) == 1
    assert "vmbus-emu[roles]" in str(told[0])
    wanted.order({"verb": "role"}, lambda answer: told.append(answer["roles"][0]["fault"]))
    assert "not installed" in str(told[1])


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({"action": "add", "role": "dhcp"}, "there is no role 'dhcp'; there are dns, files"),
        ({"action": "add", "role": "files", "cpu_limit": 1e9}, "are no limit"),
        ({"action": "add", "role": "files", "cpu_limit": float("nan")}, "are no limit"),
        ({"action": "add", "role": "files", "port": 65536}, "is no port"),
        ({"action": "add", "role": "files", "port": -1}, "is no port"),
        ({"action": "remove", "role": "dns"}, "there is no role 'dns'; there is none"),
        ({"action": "burn"}, "add, list or remove"),
    ],
)
def test_a_wrong_order_is_refused_with_what_to_try(tmp_path: Path, order: dict[str, Any], words: str) -> None:
    assert words in refusal(roles(tmp_path), **order)


def test_the_monolith_takes_none_and_says_why(tmp_path: Path) -> None:
    assert "there is no parent partition" in refusal(roles(tmp_path, "monolithic"), action="add", role="files")


def test_none_starts_while_the_machine_has_no_power(tmp_path: Path) -> None:
    assert "no power now" in refusal(roles(tmp_path, off=True), action="add", role="files")


def test_a_machine_without_roles_waits_for_none(tmp_path: Path) -> None:
    told: list[str | None] = []
    roles(tmp_path).begin(told.append)
    assert told == [None]


def test_every_role_has_its_code_and_stands_in_the_plan() -> None:
    assert tuple(ROLE_ENTRIES) == ROLES
    planned = plan(parse({"role": {name: {} for name in ROLES}})).processes
    assert [process.name for process in planned if process.role == "role"] == list(ROLES)


def test_a_role_speaks_for_nobody_and_owns_no_vm() -> None:
    assert accepts("role", ("dns",), {"t": "ready", "component": "dns"})
    for message in ({"t": "component_died", "component": "dns", "why": ""}, {"t": "bound", "pid": 1},
                    {"t": "lost", "component": "dns", "vm": "vm1", "device": "disk0", "pid": 1}):  # fmt: skip
        assert not accepts("role", ("dns",), message)
    assert understood({"verb": "role", "action": "add", "role": 5})
    assert not understood({"verb": "role", "action": "add", "role": "dns", "cpu_limit": 0.5, "port": 53})


def test_the_list_says_what_is_in_force_and_not_what_was_wished() -> None:
    one = {"name": "dns", "state": "ready", "pid": 7, "incarnation": 2, "listens": ["udp 127.0.0.1:53"], "fault": "",
           "in_force": {"kind": "priority", "cores": None, "words": "idle priority"}}  # fmt: skip
    dead = {**one, "name": "files", "state": "dead", "pid": None, "listens": [], "fault": "no port"}
    lines = role_lines([one, dead])
    assert lines[1].split() == ["dns", "ready", "7", "2", "udp", "127.0.0.1:53", "idle", "priority"]
    assert lines[2].split() == ["files", "dead", "-", "2", "-", "-"]
    assert lines[3] == "files: no port"
