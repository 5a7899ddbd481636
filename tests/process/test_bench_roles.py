"""``bench roles`` on real machines: the role answers, its limit is what is in force, and nothing of it is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench import busyrole
from bench.busyrole import flooded
from bench.machines import Unmeasured

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]


def test_the_verb_measures_without_a_role_beside_a_busy_one_and_beside_a_limited_one(lab: Lab, tmp_path: Path) -> None:
    kept = tmp_path / "run.json"
    status, out, errors = lab.cli("bench", "roles", "--transport", "zmq", "--rounds", "1", "--seconds", "0.05",
                                  "--json", str(kept))  # fmt: skip
    assert status == 0, errors
    run: dict[str, Any] = json.loads(kept.read_text())
    rows = {(row["job"], row["arm"]): row for row in run["roles"]}
    assert len(rows) == 9
    for (job, arm), row in rows.items():
        assert (row["failed"], row["repetitions"]) == ([], 1), (job, arm)
        assert row["ops_per_s"] > 0, (job, arm)
        if arm == "none":
            assert (row["role"], row["queries_per_s"], row["held_by"], row["times"]) == (None, None, None, None)
            continue
        assert row["queries_per_s"] > 0, (job, arm)
        assert 0 < row["load_cpu"] < row["role_cpu"], (job, arm)
        assert row["times"]["p50_us"]["value"] > 0, (job, arm)
    assert {row["held_by"] for row in rows.values() if row["arm"] == "busy"} == {"no limit"}
    (held_by,) = {row["held_by"] for row in rows.values() if row["arm"] == "limited"}
    # The kernel's limit, or what is done where there is none.
    assert held_by.startswith(("0.2 cores, by cgroup v", "idle priority; 0.2 cores cannot"))
    assert f"Limited: {held_by}." in out.decode()
    assert lab.json("ls")["machines"] == []


def test_a_load_is_at_work_and_ends_with_its_measurement(lab: Lab, wait: Wait) -> None:
    machine = lab.up()
    role = machine.add_role("dns")
    with flooded(machine, role) as load:
        before = load.look()
        counted = lab.rows(machine)["dns"]["counters"]["answered"]
        wait(lambda: load.look()[1]["answered"] >= before[1]["answered"] + 500, "500 more are answered")
        busy = load.since(before)
        assert lab.rows(machine)["dns"]["counters"]["answered"] - counted >= 400
    assert busy.queries_per_s > 0
    assert 0 < busy.load_cpu < busy.role_cpu <= 1.01
    assert not Path(f"/proc/{load.pid}").exists()
    with pytest.raises(Unmeasured, match="the load on the role ended"):
        load.look()


def test_a_role_that_is_gone_is_not_measured(
    lab: Lab, wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = lab.up()
    role = machine.add_role("dns")
    machine.remove_role("dns")
    with pytest.raises(Unmeasured, match="the role does not answer"), flooded(machine, role):
        pass
    role = machine.add_role("dns")
    monkeypatch.setattr(busyrole, "understood", lambda machine, port: (b"\0\0no query at all", b"\0\0no answer"))
    with flooded(machine, role) as load:
        before = load.look()
        wait(lambda: load.look()[1]["wrong"] > before[1]["wrong"], "an answer is found wrong")
        with pytest.raises(Unmeasured, match="wrong answers"):
            load.since(before)
