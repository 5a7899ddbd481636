"""Can a child offer an older VMBus version than its neighbours, and does everything still work?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmbus_emu.topology.data import VMBUS_VERSIONS

if TYPE_CHECKING:
    from conftest import Lab


@pytest.mark.parametrize("arch", ["microkernel", "disaggregated"])
def test_old_and_new_versions_live_in_one_machine(lab: Lab, arch: str) -> None:
    wanted = {f"v{version.replace('.', '-')}": version for version in ("2.4", "3.0", "4.0", "5.3")}
    vms = [{"name": name, "disk": [{"ram": "1MiB"}], "vmbus_version": version} for name, version in wanted.items()]
    machine = lab.up(arch, vm=[*vms, {"name": "newest", "disk": [{"ram": "1MiB"}]}])
    for name, version in {**wanted, "newest": VMBUS_VERSIONS[-1]}.items():
        assert f"vmbus: connected, version {version}\n" in machine.exec(name, "dmesg").stdout.decode(), name
        listed = machine.exec(name, "lsvmbus").stdout.decode().splitlines()[1:]
        assert [line.split()[-1] for line in listed if "Synthetic" in line] == ["open", "open"]
        machine.vm(name).disk.write(0, name.encode())
        assert machine.vm(name).disk.read(0, len(name)) == name.encode()
    assert all(pair["ok"] for pair in machine.pingall()["pairs"])


def test_the_monolith_has_no_vmbus_and_says_so(lab: Lab) -> None:
    result = lab.up("monolithic").exec("vm1", "lsvmbus")
    assert (result.status, result.stdout) == (1, b"")
    assert b"there is no VMBus here" in result.stderr
