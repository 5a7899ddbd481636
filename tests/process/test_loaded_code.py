"""Loaded code is evidence: what is in a running process's memory is what it can do, and what its death can take.

The processes looked at are a real machine's. The test puts a few lines before those with which its interpreter
starts; they make SIGUSR1 write the names in ``sys.modules`` to a file. Signal handlers are inherited over ``fork``, so
every process of the machine can be asked, at any time, and nothing of it is replaced.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

PROBE = """
import os
import signal
import sys


def tell(number, frame):
    draft = os.path.join({folder!r}, f"draft.{{os.getpid()}}")
    with open(draft, "w") as file:
        file.write("\\n".join(sys.modules))
    os.replace(draft, os.path.join({folder!r}, f"modules.{{os.getpid()}}"))


signal.signal(signal.SIGUSR1, tell)
exec({code!r})
"""

DRIVERS = ("drivers.disk", "drivers.switch")
PARENT, CHILD = "partitions.parent", "partitions.child"
#: Everything that a hypervisor without drivers must not know: devices, their interfaces, their protocols, VMBus.
DEVICE_CODE = (
    "drivers", "partitions", "vmbus_emu.device", "vmbus_emu.channel", "vmbus_emu.vmbus", "vmbus_emu.protocol.vmbus",
    "vmbus_emu.protocol.vstor", "vmbus_emu.protocol.scsi", "vmbus_emu.protocol.nvsp", "vmbus_emu.protocol.rndis",
    "vmbus_emu.protocol.guids",
)
#: component -> what its process must have loaded (or the probe proves nothing), and what it must not have.
EXPECTED: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "microkernel": {
        "machine": (("vmbus_emu.machine.supervisor",), (*DEVICE_CODE, "vmbus_emu.hypervisor", "vmbus_emu.cli")),
        "hypervisor": (("vmbus_emu.hypervisor.core",), (*DEVICE_CODE, "vmbus_emu.cli")),
        "parent": ((PARENT + ".provider", PARENT + ".storvsp", PARENT + ".netvsp", *DRIVERS),
                   (CHILD, "vmbus_emu.hypervisor")),
        "management": ((PARENT + ".management",),
                       (CHILD, "drivers", PARENT + ".storvsp", PARENT + ".netvsp", "vmbus_emu.hypervisor")),
        "zygote": ((CHILD + ".process",), (PARENT, "drivers", "vmbus_emu.hypervisor")),
        "vm1": ((CHILD + ".storvsc", CHILD + ".netvsc", "vmbus_emu.vmbus.client"),
                (PARENT, "drivers", "vmbus_emu.hypervisor")),
    },
    "disaggregated": {
        "machine": (("vmbus_emu.machine.supervisor",), (*DEVICE_CODE, "vmbus_emu.hypervisor", "vmbus_emu.cli")),
        "hypervisor": (("vmbus_emu.hypervisor.core",), (*DEVICE_CODE, "vmbus_emu.cli")),
        "parent": ((PARENT + ".provider",),
                   (CHILD, *DRIVERS, PARENT + ".storvsp", PARENT + ".netvsp", "vmbus_emu.hypervisor")),
        "storvsp": ((PARENT + ".storvsp", "drivers.disk"),
                    (CHILD, "drivers.switch", PARENT + ".netvsp", "vmbus_emu.hypervisor")),
        "netvsp": ((PARENT + ".netvsp", "drivers.switch"),
                   (CHILD, "drivers.disk", PARENT + ".storvsp", "vmbus_emu.hypervisor")),
        "vm2": ((CHILD + ".storvsc",), (PARENT, "drivers", "vmbus_emu.hypervisor")),
    },
    "monolithic": {
        "machine": (("vmbus_emu.machine.supervisor",), (*DEVICE_CODE, "vmbus_emu.hypervisor", "vmbus_emu.cli")),
        # One address space holds it all, but what makes up a VMBus is not needed.
        "hypervisor": (("vmbus_emu.hypervisor.core", "partitions.monolith", CHILD + ".guest", *DRIVERS),
                       (PARENT, CHILD + ".storvsc", CHILD + ".netvsc", CHILD + ".bus", "vmbus_emu.vmbus")),
    },
}


@pytest.fixture
def probed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that are started from now on can be asked."""
    spawn = os.posix_spawn

    def probing(path: str, argv: list[str], *arguments: Any, **options: Any) -> int:
        if "-c" not in argv:  # newer versions of subprocess come through here, too
            return spawn(path, argv, *arguments, **options)
        place = argv.index("-c") + 1
        code = PROBE.format(folder=str(lab.folder), code=argv[place])
        return spawn(path, [*argv[:place], code, *argv[place + 1:]], *arguments, **options)

    monkeypatch.setattr(os, "posix_spawn", probing)


def modules_of(lab: Lab, wait: Wait, pid: int) -> set[str]:
    """What process ``pid`` says it has loaded."""
    answer = lab.folder / f"modules.{pid}"
    os.kill(pid, signal.SIGUSR1)
    wait(answer.exists, f"process {pid} answers")
    return set(answer.read_text().split("\n"))


def within(modules: set[str], package: str) -> set[str]:
    """The modules that are ``package`` or in it."""
    return {name for name in modules if name == package or name.startswith(package + ".")}


@pytest.mark.usefixtures("probed")
@pytest.mark.parametrize("arch", list(EXPECTED))
def test_a_process_holds_the_code_of_its_role_and_no_other(lab: Lab, wait: Wait, arch: str) -> None:
    machine = lab.up(arch)
    assert machine.vm("vm1").disk.sha256()  # code that is loaded on first use has been
    assert machine.exec("vm1", "ping -c 1 vm2").status == 0
    rows = lab.rows(machine)
    front = modules_of(lab, wait, rows["machine"]["counters"]["front_pid"])
    assert not within(front, "partitions") | within(front, "drivers")
    wrong = {}
    # The machine comes last: it takes every signal that has a handler as a wish to end, after having answered.
    for component, (needed, forbidden) in reversed(EXPECTED[arch].items()):
        modules = modules_of(lab, wait, rows[component]["pid"])
        missing = {name for name in needed if name not in modules}
        surplus = set().union(*(within(modules, package) for package in forbidden))
        if missing or surplus:
            wrong[component] = {"missing": sorted(missing), "must not be there": sorted(surplus)}
    assert not wrong


def test_the_process_that_forks_owns_no_thread(lab: Lab) -> None:
    for arch in EXPECTED:
        machine = lab.up(arch, name=arch)
        rows = lab.rows(machine)
        for name in {"machine", "zygote"} & set(rows):
            assert len(os.listdir(f"/proc/{rows[name]['pid']}/task")) == 1


def test_processes_carry_readable_titles(lab: Lab) -> None:
    machine = lab.up("disaggregated")
    for name, row in lab.rows(machine).items():
        with open(f"/proc/{row['pid']}/cmdline", "rb") as file:
            assert file.read().rstrip(b"\0").decode() == f"vmbus-emu m: {name}"
