"""A role's CPU limit: where it can be set, what is written there, and what is said where it cannot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from vmbus_emu.machine import cpulimit
from vmbus_emu.machine.cpulimit import Controller, CpuLimits, controllers, quota_us

V1 = "30 29 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V1_OTHER = "31 29 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
V2 = "32 29 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
OWN = "5:cpu,cpuacct:/lab\n3:pids:/\n0::/user.slice/lab.scope\n"


def test_the_cpu_controllers_folder_is_that_of_our_own_group() -> None:
    assert controllers(V1_OTHER + V1, OWN) == [Controller(1, "/sys/fs/cgroup/cpu,cpuacct/lab")]
    assert controllers(V2, OWN) == [Controller(2, "/sys/fs/cgroup/user.slice/lab.scope")]
    assert controllers(V1, "3:pids:/\n") == controllers("", OWN) == controllers("nonsense\n1 2 - x\n", OWN) == []


def test_in_a_container_the_mount_begins_at_our_group() -> None:
    assert controllers(V2.replace(" / /sys", " /user.slice /sys"), OWN) == [Controller(2, "/sys/fs/cgroup/lab.scope")]


@pytest.mark.parametrize(("cores", "quota"), [(0.5, (5000, 10000)), (0.01, (1000, 100000)), (2, (20000, 10000))])
def test_a_quota_is_a_share_of_a_short_period_and_never_less_than_allowed(cores: float, quota: tuple[int, int]) -> None:
    assert quota_us(cores) == quota


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A group of ours in plain files, and what the scheduler was told."""
    told: dict[str, Any] = {"own": tmp_path / "own", "said": []}
    told["own"].mkdir()
    monkeypatch.setattr(cpulimit.os, "sched_setscheduler", lambda pid, policy, _: told.update(policy=(pid, policy)))
    monkeypatch.setattr(cpulimit.os, "setpriority", lambda _, pid, nice: told.update(nice=(pid, nice)))
    make = os.mkdir

    def mkdir(path: str) -> None:
        make(path)
        for name in ("cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.max", "cgroup.procs"):
            Path(path, name).touch()
        Path(path, "cgroup.type").write_text("domain invalid\n")

    monkeypatch.setattr(cpulimit.os, "mkdir", mkdir)
    return told


def limits(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch, version: int) -> CpuLimits:
    monkeypatch.setattr(cpulimit, "controllers", lambda *_: [Controller(version, str(world["own"]))])
    return CpuLimits(world["own"] / "record", world["said"].append)


def test_with_version_1_quota_and_period_are_set_before_the_process_enters(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_force = limits(world, monkeypatch, 1).apply("dns", 77, 0.5)
    (group,) = world["own"].glob("vmbus-emu-*")
    assert group.name == f"vmbus-emu-{os.getpid()}-dns"
    assert [(group / f"{name}").read_text() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us", "cgroup.procs")] == [
        "5000", "10000", "77",
    ]
    assert (in_force.kind, in_force.cores) == ("cgroup", 0.5)
    assert (world["own"] / "record").read_text() == f"{group}\n"
    assert "policy" not in world


def test_with_version_2_the_controller_is_enabled_and_the_group_threaded(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (world["own"] / "cgroup.subtree_control").write_text("")
    assert limits(world, monkeypatch, 2).apply("dns", 77, 0.2).kind == "cgroup"
    (group,) = world["own"].glob("vmbus-emu-*")
    assert (world["own"] / "cgroup.subtree_control").read_text() == "+cpu"
    assert (group / "cgroup.type").read_text().startswith("threaded")
    assert (group / "cpu.max").read_text() == "2000 10000"


def test_where_no_group_can_be_made_it_runs_at_idle_priority_and_no_limit_is_claimed(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_force = limits(world, monkeypatch, 2).apply("dns", 77, 0.2)       # there is no cgroup.subtree_control to write
    assert (in_force.kind, in_force.cores) == ("priority", None)
    assert "cannot be enforced" in in_force.words
    assert (world["policy"], world["nice"]) == ((77, os.SCHED_IDLE), (77, 19))
    assert world["said"] == [f"dns: no limit by {world['own']}: No such file or directory"]
