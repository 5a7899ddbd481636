"""Whole machines over shared memory: who holds which memory and which doorbell, and who is disturbed by whom."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmbus_emu.client import Machine, starter

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]
#: In fcntl.h, and in Python from 3.14 on.
F_GET_SEALS, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW = 1034, 1, 2, 4
ARCHES = pytest.mark.parametrize("arch", ["microkernel", "disaggregated"])
_MEMORY = re.compile(r"/memfd:(vm\d\.(?:storvsp|netvsp)) ")

STORAGE = {"vm1.storvsp", "vm2.storvsp"}
NETWORK = {"vm1.netvsp", "vm2.netvsp"}
#: arch -> component -> whose I/O memory it holds as a descriptor, and which it has mapped.
HOLDS = {
    "microkernel": {
        "hypervisor": (STORAGE | NETWORK, set()),
        "parent": (STORAGE | NETWORK, STORAGE | NETWORK),
        "management": (set(), set()),
        "zygote": (set(), set()),
        "vm1": ({"vm1.storvsp", "vm1.netvsp"}, {"vm1.storvsp", "vm1.netvsp"}),
        "vm2": ({"vm2.storvsp", "vm2.netvsp"}, {"vm2.storvsp", "vm2.netvsp"}),
    },
}
HOLDS["disaggregated"] = HOLDS["microkernel"] | {
    "parent": (set(), set()),
    "storvsp": (STORAGE, STORAGE),
    "netvsp": (NETWORK, NETWORK),
}


def descriptors(pid: int) -> dict[int, str]:
    """A process's descriptors but the standard streams, and what each is of."""
    folder = Path(f"/proc/{pid}/fd")
    return {int(entry.name): str(entry.readlink()) for entry in folder.iterdir() if int(entry.name) > 2}


def memory_in(text: str) -> set[str]:
    return set(_MEMORY.findall(text))


def pipes(pid: int) -> set[str]:
    return {target for target in descriptors(pid).values() if target.startswith("pipe:")}


@ARCHES
def test_a_process_holds_the_memory_that_was_granted_to_it_and_no_other(lab: Lab, arch: str) -> None:
    machine = lab.up(arch, transport="ring")
    pids = {name: row["pid"] for name, row in lab.rows(machine).items()}
    found = {
        name: (memory_in(" \n".join(descriptors(pids[name]).values())),
               memory_in(Path(f"/proc/{pids[name]}/maps").read_text()))
        for name in HOLDS[arch]
    }
    assert found == HOLDS[arch]


@ARCHES
def test_the_two_ends_of_a_channel_and_nobody_else_hold_its_doorbells(lab: Lab, arch: str) -> None:
    machine = lab.up(arch, transport="ring")
    pids = {name: row["pid"] for name, row in lab.rows(machine).items()}
    held = {name: pipes(pid) for name, pid in pids.items() if name != "machine"}
    vsps = {"storvsp", "netvsp"} if arch == "disaggregated" else {"parent"}
    assert {len(held[vm]) for vm in ("vm1", "vm2")} == {4}, "a pipe each way for the disk and for the NIC"
    assert not held["vm1"] & held["vm2"]
    assert set.union(*(held[vsp] for vsp in vsps)) >= held["vm1"] | held["vm2"]
    others = {name: held[name] & (held["vm1"] | held["vm2"]) for name in set(held) - vsps - {"vm1", "vm2"}}
    if arch == "microkernel":
        for part in ("storvsp", "netvsp"):  # which the parent carries
            others.pop(part)
    assert not any(others.values())
    if arch == "disaggregated":
        assert not held["storvsp"] & held["netvsp"]


def test_a_guest_cannot_make_its_memory_shorter_or_longer(lab: Lab) -> None:
    machine = lab.up(transport="ring")
    pid = lab.rows(machine)["vm1"]["pid"]
    held = descriptors(pid)
    found = [fd for fd, target in held.items() if memory_in(target + " ")]
    assert {held[fd] for fd in found} == {"/memfd:vm1.storvsp (deleted)", "/memfd:vm1.netvsp (deleted)"}
    for fd in found:
        own = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR)
        seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW
        assert fcntl.fcntl(own, F_GET_SEALS) & seals == seals
        for size in (0, 4096, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(own, size)
        os.close(own)
    assert machine.exec("vm1", "iobench -o write -n 100 disk0").status == 0


@ARCHES
def test_a_stopped_guest_holds_up_nobody_and_goes_on_where_it_was(lab: Lab, wait: Wait, arch: str) -> None:
    machine = lab.up(arch, vms=3, transport="ring")
    other = lab.attach()
    pid = lab.rows(machine)["vm1"]["pid"]
    results: list[int] = []
    load = "iobench -o write -d 32 -n 100000 disk0"
    writing = threading.Thread(target=lambda: results.append(other.exec("vm1", load, timeout=60).status))
    writing.start()
    wait(lambda: lab.rows(machine)["vm1"]["counters"]["commands"] == 1, "it writes")
    os.kill(pid, signal.SIGSTOP)
    try:
        assert not results, "it was stopped in the middle"
        for _ in range(3):
            assert machine.exec("vm2", "iobench -o write -d 16 -n 500 disk0").status == 0
            assert machine.exec("vm3", "ping -c 2 -i 0.01 vm2").status == 0
        assert machine.exec("vm2", "ping -c 1 -W 0.2 vm1").status == 1
    finally:
        os.kill(pid, signal.SIGCONT)
    writing.join(60)
    assert results == [0]
    wait(lambda: machine.exec("vm2", "ping -c 1 -W 0.5 vm1").status == 0, "vm1 answers again")


@ARCHES
def test_guests_whose_memory_is_scattered_are_served_like_any(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    """Their GPADLs have more pieces than one message to a VSP in a partition of its own has room for."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "hostile"))
    guests = "from vmbus_emu import placement; placement.ENTRIES['child/ring'] = 'scattered_child:ScatteredChild'; "
    monkeypatch.setattr(starter, "_CODE", guests + starter._CODE)
    machine = lab.up(arch, transport="ring")
    pattern = bytes(range(256)) * 1024
    machine.vm("vm1").disk.write(512, pattern)
    assert machine.vm("vm1").disk.read(512, len(pattern)) == pattern
    assert machine.exec("vm1", "iobench -o read -b 64k -d 32 -n 2000 disk0").status == 0
    assert machine.exec("vm2", "ping -c 5 -i 0.01 -s 1400 vm1").status == 0
    rows = lab.rows(machine)
    host = rows[rows["storvsp"]["host"]]["pid"]
    lines = [line for line in Path(f"/proc/{host}/maps").read_text().splitlines() if "/memfd:vm1.storvsp" in line]
    assert len(lines) > 32, "the VSP really maps page by page"


@pytest.mark.alone
@pytest.mark.parametrize("poll", ["never", "always"])
def test_rings_that_never_spin_and_rings_that_never_sleep(lab: Lab, poll: str) -> None:
    machine = lab.up(transport="ring", poll=poll)
    machine.vm("vm1").disk.write(0, b"still here")
    assert machine.vm("vm1").disk.read(0, 10) == b"still here"
    done = json.loads(machine.exec("vm1", "iobench -o write -b 128k -d 16 -n 300 -j disk0").stdout)
    assert done["requests"] == 300
    assert machine.exec("vm2", "ping -c 3 -i 0.01 vm1").status == 0
    rows = {row["name"]: row for row in machine.ps(window=0.2)["partitions"]}
    busy = [name for name in ("parent", "vm1", "vm2") if rows[name]["cpu_percent"] > 25]
    if poll == "never":
        assert busy == []
    else:
        assert busy, "with three on two processors each gets its part"
    counters: Mapping[str, Any] = rows["storvsp"]["counters"]
    assert counters["missed_doorbells"] == 0


@pytest.mark.parametrize(("flags", "message"), [
    (["--poll", "never"], "flags:--poll: only transport ring polls; add --transport ring"),
    (["--transport", "zmq", "--poll", "always"], "flags:--poll: only transport ring polls; add --transport ring"),
    (["--transport", "ring", "--poll", "often"], 'flags:--poll: is "often"; one of never, adaptive, always'),
    (["--transport", "rings"], 'flags:--transport: is "rings"; did you mean "ring"?'),
])
def test_what_does_not_go_together_is_refused_before_anything_starts(
    lab: Lab, flags: list[str], message: str
) -> None:
    status, out, errors = lab.cli("up", *flags)
    assert (status, out) == (2, b"")
    assert message in errors
    assert lab.leftovers() == []


def test_the_monolith_takes_the_flags_and_has_no_use_for_them(lab: Lab) -> None:
    machine: Machine = lab.up("monolithic", transport="ring", poll="never")
    assert machine.ps(window=0)["transport"] == "call"
    assert machine.exec("vm1", "iobench -n 100 disk0").status == 0
