"""Guests that break the rules of shared memory, as processes against a real VSP: who else notices?

Each attacker boots and opens its channel like any guest, then obeys ``attack ring NAME`` (``hostile/ring_attacks.py``).
All the while vm1 reads and writes its disk. Afterwards the VSP has the same pid, has named the reason if there was
one to close the channel, serves vm1, and is idle.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmbus_emu.client import Machine, starter

if TYPE_CHECKING:
    from conftest import Lab

HOSTILE = Path(__file__).parent / "hostile"
OTHER_GUESTS = (
    "from vmbus_emu import placement; placement.ENTRIES['child/ring'] = 'hostile_ring_child:HostileRingChild'; "
)
sys.path.insert(0, str(HOSTILE))
try:
    from ring_attacks import ATTACKS
finally:
    sys.path.remove(str(HOSTILE))

Wait = Callable[..., None]
#: Percent of one processor that a VSP may use over a moment in which nobody asks anything of it.
IDLE = 15.0
REASONS = {attack.__name__: reason for attack, reason in ATTACKS.items()}


@pytest.fixture
def hostile(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The laboratory; VMs of its machines know the command ``attack``."""
    monkeypatch.syspath_prepend(str(HOSTILE))  # the machine's process gets our path
    monkeypatch.setattr(starter, "_CODE", OTHER_GUESTS + starter._CODE)
    return lab


class Traffic:
    """vm1 writes and reads its disk until it is told to stop; what did not work."""

    def __init__(self, lab: Lab) -> None:
        self._machine = lab.attach()
        self._stop = threading.Event()
        self.failures: list[bytes] = []
        self.rounds = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set() and not self.failures:
            for op in ("write", "read"):
                done = self._machine.exec("vm1", f"iobench -o {op} -b 16k -d 8 -n 200 disk0", timeout=20)
                if done.status:
                    self.failures.append(done.stderr)
            self.rounds += 1

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(30)


def machine_of(lab: Lab, arch: str, attackers: int) -> Machine:
    vms: list[dict[str, Any]] = [
        {"name": f"vm{number + 1}", "disk": [{"ram": "4MiB"}], "nic": []} for number in range(attackers + 1)
    ]
    return lab.up(arch, vm=vms, transport="ring")


def errors(rows: Mapping[str, Mapping[str, Any]]) -> int:
    count: int = rows["storvsp"]["counters"]["protocol_errors"]
    return count


def attacks(arch: str) -> Iterator[tuple[str, str]]:
    """Who does what: a VM each."""
    return ((f"vm{number + 2}", name) for number, name in enumerate(REASONS))


@pytest.mark.parametrize("arch", ["microkernel", "disaggregated"])
def test_what_a_guest_does_to_its_rings_is_its_own_loss(hostile: Lab, wait: Wait, arch: str) -> None:
    machine = machine_of(hostile, arch, len(REASONS))
    before = hostile.rows(machine)
    host = before["storvsp"]["host"]
    log = hostile.run / "m" / "logs" / f"{host}.log"
    for vm, name in attacks(arch):
        failed = errors(hostile.rows(machine))
        with Traffic(hostile) as traffic:
            result = machine.exec(vm, f"attack ring {name}", timeout=20)
            assert result.status == 0, (name, result.stderr)
            reason = REASONS[name]
            if reason:
                wait(lambda: errors(hostile.rows(machine)) > failed, f"{name} is counted")  # noqa: B023
                lines = [line for line in log.read_text().splitlines() if f"{vm}.disk0: channel closed: " in line]
                assert len(lines) == 1, (name, lines)
                assert reason in lines[0], name
            else:
                assert errors(hostile.rows(machine)) == failed, name
            seen = traffic.rounds
            wait(lambda: traffic.rounds > seen or traffic.failures, f"vm1 goes on after {name}")  # noqa: B023
        assert traffic.failures == [], name
        rows = machine.ps(window=0.2)["partitions"]
        after = {row["name"]: row for row in rows}
        for other in set(before) - {vm}:
            assert (after[other]["pid"], after[other]["state"]) == (before[other]["pid"], "ready"), (name, other)
        assert after["storvsp" if arch == "disaggregated" else "parent"]["cpu_percent"] < IDLE, name
    assert after["storvsp"]["counters"]["missed_doorbells"] == 0
    machine.down()
    assert hostile.leftovers() == []


@pytest.mark.parametrize("arch", ["microkernel", "disaggregated"])
def test_rings_that_are_not_fit_for_use_are_not_opened_and_may_be_mended(hostile: Lab, arch: str) -> None:
    machine = machine_of(hostile, arch, 1)
    hostile.integrated(machine)
    before = hostile.rows(machine)
    host = before["storvsp"]["host"]
    held = len(list(Path(f"/proc/{before[host]['pid']}/fd").iterdir()))
    result = machine.exec("vm2", "attack unfit_rings", timeout=20)
    assert result.stdout == b"refused refused refused opened\n", result.stderr
    assert machine.exec("vm1", "iobench -o write -n 200 disk0").status == 0
    after = hostile.rows(machine)
    assert after[host]["pid"] == before[host]["pid"]
    assert {row["state"] for row in after.values()} == {"ready"}
    assert after["hypervisor"]["counters"]["ports"] == before["hypervisor"]["counters"]["ports"]
    assert len(list(Path(f"/proc/{before[host]['pid']}/fd").iterdir())) == held


@pytest.mark.parametrize("arch", ["microkernel", "disaggregated"])
def test_memory_in_too_many_pieces_is_not_taken(hostile: Lab, wait: Wait, arch: str) -> None:
    machine = machine_of(hostile, arch, 2)
    before = hostile.rows(machine)
    host = before["storvsp"]["host"]
    with Traffic(hostile) as traffic:
        for vm in ("vm2", "vm3"):
            assert machine.exec(vm, "attack memory_in_pieces", timeout=30).status == 0
        seen = traffic.rounds
        wait(lambda: traffic.rounds > seen or traffic.failures, "vm1 goes on")
    assert traffic.failures == []
    assert b"refused: " in (hostile.run / "m" / "logs" / f"{host}.log").read_bytes()
    maps = Path(f"/proc/{before[host]['pid']}/maps").read_text().count("\n")
    assert maps < 8192, "and its address space has room for everybody"
    assert {row["state"] for row in hostile.rows(machine).values()} == {"ready"}
