"""The verb fault on real machines: what a driver is given shows in the guests, is listed, and really goes again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from vmbus_emu.client import Machine, MachineError

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

ARCHES = ("monolithic", "microkernel", "disaggregated")
SLOW_MS = 30


def fastest_ms(machine: Machine) -> float:
    """The least of three null requests' times."""
    result = machine.exec("vm1", "null disk0 3")
    assert result.status == 0, result.stderr
    return float(result.stdout.split(b"min ")[1].split()[0]) / 1000


def on(machine: Machine) -> list[tuple[str, str]]:
    return [(one["component"], one["fault"]) for one in machine.faults()]


def networked() -> dict[str, Any]:
    vms = [{"name": f"vm{n}", "disk": [{"ram": "4MiB"}], "nic": [{"switch": "s0"}]} for n in (1, 2)]
    return {"vm": vms, "switch": [{"name": "s0"}]}


@pytest.mark.parametrize("arch", ARCHES)
def test_a_slow_disk_is_slow_until_its_time_is_over(lab: Lab, wait: Wait, arch: str) -> None:
    machine = lab.up(arch)
    assert fastest_ms(machine) < SLOW_MS
    status, out, errors = lab.cli("fault", "--name", "m", "storvsp", f"slow={SLOW_MS}ms", "--for", "1500ms", "--json")
    assert (status, errors) == (0, "")
    (told,) = json.loads(out)["faults"]
    row = lab.rows(machine)["storvsp"]
    assert (told["component"], told["fault"], told["host"], told["pid"], told["incarnation"], told["seed"]) == (
        "storvsp", f"slow={SLOW_MS}ms", row["host"], row["pid"], 1, 0)
    assert 0 < told["left_s"] <= 1.5
    assert fastest_ms(machine) >= SLOW_MS
    wait(lambda: on(machine) == [], "its time is over")
    assert fastest_ms(machine) < SLOW_MS


@pytest.mark.parametrize("arch", ARCHES)
def test_errors_and_losses_until_they_are_cleared(lab: Lab, arch: str) -> None:
    machine = lab.up(arch, **networked())
    assert machine.fault("storvsp", "error=100%", "slow=1us", seed=3) == machine.faults()
    machine.fault("netvsp", "drop=100%")
    assert on(machine) == [("storvsp", "error=100%"), ("storvsp", "slow=1us"), ("netvsp", "drop=100%")]
    assert machine.exec("vm1", "null disk0 1").status == 1
    assert machine.exec("vm1", "ping -c 1 -W 0.2 vm2").status != 0
    assert [one["component"] for one in machine.clear_faults("storvsp")] == ["netvsp"]
    assert machine.exec("vm1", "null disk0 100").status == 0
    status, out, _ = lab.cli("fault", "--name", "m", "--clear")
    assert (status, out) == (0, b"no faults are on\n")
    assert machine.exec("vm1", "ping -c 1 -W 5 vm2").status == 0


def test_a_fault_that_replaces_another_is_not_cleared_in_its_time(lab: Lab, wait: Wait) -> None:
    machine = lab.up("microkernel")
    with machine.watch() as events:
        machine.fault("storvsp", "slow=1ms", seconds=0.05)
        machine.fault("storvsp", f"slow={SLOW_MS}ms")
        machine.fault("storvsp", "error=100%", seconds=0.2)     # ends after the first one would have
        assert on(machine) == [("storvsp", f"slow={SLOW_MS}ms"), ("storvsp", "error=100%")]
        cleared = []
        while not cleared or cleared[-1] != "error":
            event = events.next(10)
            assert event is not None
            if event["event"] == "faults cleared":
                cleared.append(event["fault"])
    assert cleared == ["error"]
    assert on(machine) == [("storvsp", f"slow={SLOW_MS}ms")]
    assert fastest_ms(machine) >= SLOW_MS


def test_the_next_incarnation_begins_without_faults(lab: Lab, wait: Wait) -> None:
    machine = lab.up("disaggregated")
    machine.fault("storvsp", "error=100%")
    pid = lab.rows(machine)["storvsp"]["pid"]
    machine._connected().ask("kill", component="storvsp")
    wait(lambda: lab.rows(machine)["storvsp"]["pid"] != pid and lab.rows(machine)["storvsp"]["state"] == "ready",
         "it is back")
    lab.note()
    assert on(machine) == []
    assert machine.exec("vm1", "null disk0 100").status == 0


def test_refusals_say_why_and_what_to_try_and_change_nothing(lab: Lab) -> None:
    machine = lab.up("microkernel")

    def refused(*arguments: str) -> str:
        status, out, errors = lab.cli("fault", "--name", "m", *arguments)
        assert (status, out, errors.count("\n")) == (1, b"", 1)
        return errors.removeprefix("vmbus-emu: error: ").strip()

    assert refused("storvsp", "panic") == (
        "panic does not last, it strikes once; vmbus-emu kill storvsp --fault panic")
    assert "a storvsp" in refused("storvsp", "drop=1%") or "try error=1%" in refused("storvsp", "drop=1%")
    assert "try storvsp or netvsp" in refused("vm1", "slow=1ms")
    assert "slow=soon: it takes a time such as 50ms" in refused("storvsp", "slow=soon")
    assert "there is no component 'vm9'; there are " in refused("vm9", "slow=1ms")
    assert "there is no component 'vm9'" in refused("--clear", "vm9")
    refused("storvsp", "error=100%", "panic")
    assert on(machine) == [], "all of them, or none"
    assert machine.exec("vm1", "null disk0 10").status == 0
    for seconds in (-1.0, float("nan"), 1e9):
        with pytest.raises(MachineError, match="seconds must be from 0 to"):
            machine.fault("storvsp", "slow=1ms", seconds=seconds)


@pytest.mark.parametrize("arguments", [
    ["storvsp"], ["--clear", "storvsp", "slow=1ms"], ["--clear", "--for", "1s"], ["--for", "1s"],
    ["storvsp", "slow=1ms", "--for", "soon"], ["storvsp", "slow=1ms", "--seed", "x"],
])  # fmt: skip
def test_a_wrong_command_line_is_status_2(lab: Lab, arguments: list[str]) -> None:
    status, _, errors = lab.cli("fault", "--name", "m", *arguments)
    assert (status, errors.count("\n")) == (2, 1)


def test_a_wrong_grace_of_drain_is_status_2(lab: Lab) -> None:
    for grace in ("soon", "0s", "-1s", "2d"):
        assert lab.cli("drain", "--name", "m", "--grace", grace)[0] == 2
