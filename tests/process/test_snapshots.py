"""Snapshots of a disk with a database that is being written: what is in the copy, for the system's SQLite and for a VM
that boots from it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import sqlite3
import threading
from array import array
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from vmbus_emu.client import Machine, MachineError
from vmbus_emu.procfs import is_stopped
from vmbus_emu.witness.samples import Samples

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

MIB = 1 << 20
_HEADER_WORDS = 3
places = pytest.mark.parametrize(
    ("arch", "transport"),
    [("monolithic", "zmq"), ("microkernel", "zmq"), ("microkernel", "ring"), ("disaggregated", "ring")],
)


def up(lab: Lab, arch: str, transport: str, nbytes: int) -> Machine:
    """vm1's disk is full of something, so that there is more than a moment's work in copying it."""
    image = lab.folder / "disk.img"
    image.write_bytes(random.Random(arch).randbytes(nbytes))
    return lab.up(arch, transport=transport, vm=[{"name": "vm1", "disk": [{"file": str(image)}]}])


class Committing:
    """``sqlitebench`` in vm1, without end, on a thread and a connection of its own."""

    def __init__(self, lab: Lab) -> None:
        self._machine = lab.attach()
        self._samples = Samples.create(100_000)
        self._command = f"sqlitebench -T 600 -S {self._samples.path} disk0"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(MachineError):
            self._machine.exec("vm1", self._command, timeout=60)

    @property
    def acknowledged(self) -> int:
        """Transactions whose COMMIT has returned in the guest, which has written down how long each took."""
        words = array("q", Path(self._samples.path).read_bytes())[_HEADER_WORDS:]
        return next((number for number, ns in enumerate(words) if not ns), len(words))

    def ended(self) -> None:
        """When its VM is off."""
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._samples.close()


class Found(NamedTuple):
    commits: int
    hot: bool           #: there was a journal


def extracted(lab: Lab, image: Path) -> Found:
    """The database in a copy, as the system's SQLite sees it."""
    target = lab.folder / "db.sqlite"
    status, out, errors = lab.cli("image", "extract", str(image), str(target), "--force")
    assert status == 0, errors
    hot = Path(f"{target}-journal").exists()
    assert (b"rolls it back" in out) is hot
    with closing(sqlite3.connect(target)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        ((commits,),) = connection.execute("SELECT commits FROM counter").fetchall()
        assert connection.execute("SELECT count(*) FROM event").fetchall() == [(commits,)]
    return Found(commits, hot)


@places
def test_a_quiesced_copy_of_a_database_that_is_written_needs_no_recovery_and_a_vm_boots_from_it(
    lab: Lab, wait: Wait, arch: str, transport: str
) -> None:
    machine = up(lab, arch, transport, 8 * MIB)
    committing = Committing(lab)
    wait(lambda: committing.acknowledged > 10, "transactions are committed")
    machine.fault("storvsp", "slow=2ms")    # a copy of any moment would need its journal, most of the time
    for number in range(3):
        copy, before = lab.folder / f"copy{number}.img", committing.acknowledged
        report = machine.snapshot("vm1", copy)
        assert (report["quiesced"], report["stopped_ms"]) == (True, None)
        after = committing.acknowledged
        wait(lambda after=after: committing.acknowledged > after + 3, "it goes on")  # type: ignore[misc]
        found = extracted(lab, copy)
        assert not found.hot
        assert before <= found.commits <= after
    machine.clear_faults()
    machine.stop("vm1")
    committing.ended()
    machine.add_vm("vm3", [str(copy)])
    assert machine.vm("vm3").disk.sha256() == hashlib.sha256(copy.read_bytes()).hexdigest()
    checked = machine.exec("vm3", "sqlitecheck disk0")
    assert (checked.status, checked.stdout.decode()) == (0, f"ok: {found.commits} transactions\n")


@places
def test_a_copy_without_quiesce_is_what_a_power_failure_leaves_and_sqlite_recovers_it(
    lab: Lab, wait: Wait, arch: str, transport: str
) -> None:
    machine = up(lab, arch, transport, 8 * MIB)
    committing = Committing(lab)
    wait(lambda: committing.acknowledged > 10, "transactions are committed")
    machine.fault("storvsp", "slow=2ms")    # most of the time a transaction is under way
    found = Found(0, False)
    for number in range(30):
        copy, before = lab.folder / f"copy{number}.img", committing.acknowledged
        report = machine.snapshot("vm1", copy, quiesce=False)
        assert (report["quiesced"], report["frozen_ms"]) == (False, None)
        assert 0 < report["stopped_ms"] <= report["ms"]
        after = committing.acknowledged
        found = extracted(lab, copy)
        assert before <= found.commits <= after + 1, "nothing acknowledged is lost, and one may be committed untold"
        if found.hot and number >= 3:
            break
    assert found.hot, "no copy was made in the middle of a transaction"
    machine.clear_faults()
    wait(lambda: committing.acknowledged > after + 3, "it goes on")
    machine.stop("vm1")
    committing.ended()
    machine.add_vm("vm3", [str(copy)])
    checked = machine.exec("vm3", "sqlitecheck disk0")
    told = f"ok: {found.commits} transactions, one rolled back by its journal\n"
    assert (checked.status, checked.stdout.decode()) == (0, told)
    assert machine.exec("vm3", "sqlitecheck disk0").stdout.decode() == f"ok: {found.commits} transactions\n"


@pytest.mark.parametrize("arch", ["monolithic", "microkernel"])
def test_a_vm_that_is_not_asked_is_stopped_while_its_disk_is_copied_and_no_longer(lab: Lab, arch: str) -> None:
    machine = up(lab, arch, "zmq", 64 * MIB)
    pid = lab.rows(machine)["vm1"]["pid"]
    seen, other = [], lab.attach()
    copying = threading.Thread(target=lambda: other.snapshot("vm1", lab.folder / "a.img", quiesce=False))
    copying.start()
    while copying.is_alive():
        seen.append(is_stopped(pid))
    assert any(seen)
    assert not is_stopped(pid)
    assert (lab.folder / "a.img").read_bytes() == (lab.folder / "disk.img").read_bytes()
    assert machine.exec("vm1", "true").status == 0
    assert lab.rows(machine)["vm1"]["incarnation"] == 1


def test_who_was_stopped_by_somebody_else_stays_so_and_who_was_off_is_not_stopped(lab: Lab, wait: Wait) -> None:
    machine = lab.up(vm=[{"name": "vm1", "disk": [{"ram": "1MiB"}]}])
    pid = lab.rows(machine)["vm1"]["pid"]
    assert machine.snapshot("vm1", lab.folder / "a.img", quiesce=False)["stopped_ms"] > 0
    assert machine.exec("vm1", "true").status == 0
    os.kill(pid, signal.SIGSTOP)
    wait(lambda: is_stopped(pid), "it is stopped")
    machine.snapshot("vm1", lab.folder / "b.img", quiesce=False)
    assert is_stopped(pid)
    os.kill(pid, signal.SIGCONT)
    machine.stop("vm1")
    assert machine.snapshot("vm1", lab.folder / "c.img", quiesce=False)["stopped_ms"] is None
