"""What the audit reads: texts of /proc, the kernel's socket tables, lines of code; and what it says of them."""

from __future__ import annotations

import io
import struct
import sys
import tokenize
from pathlib import Path
from typing import Any

import pytest

from partitions.driver_store import DriverStore
from vmbus_emu.cli.audit import audit_lines, compare_lines
from vmbus_emu.client.audit import below, code, module_name, trusted
from vmbus_emu.client.codelines import code_lines, count
from vmbus_emu.client.proctexts import (
    CAPABILITIES,
    Privileges,
    capabilities,
    extent,
    inet_addresses,
    mappings,
    privileges,
    unix_paths,
)
from vmbus_emu.client.unixpeers import read_entries
from vmbus_emu.evidence import OF_DRIVERS, loaded_files
from vmbus_emu.hardware import BROUGHT
from vmbus_emu.machine.intake import files
from vmbus_emu.topology import Overrides, parse

SMAPS = """\
7f5d3ab46000-7f5d3ab52000 rw-s 0000c000 00:01 842983                     /memfd:vm2.netvsp (deleted)
Size:                 48 kB
Rss:                  12 kB
Shared_Clean:          0 kB
Shared_Dirty:         12 kB
Private_Clean:         0 kB
Private_Dirty:         0 kB
VmFlags: rd wr sh mr mw me ms
55d0c2a00000-55d0c2a01000 rw-p 00000000 00:00 0                          [heap]
Shared_Clean:          4 kB
Private_Clean:         8 kB
Private_Dirty:        16 kB
Private_Hugetlb:      64 kB
7ffc1d5d9000-7ffc1d5db000 r-xp 00000000 00:00 0
nonsense
"""
STATUS = """\
Name:\tpython3
Uid:\t1000\t1001\t1000\t1000
Gid:\t100\t101\t100\t100
CapEff:\t0000000000002401
NoNewPrivs:\t1
Seccomp:\t2
"""
UNIX = """\
Num       RefCount Protocol Flags    Type St Inode Path
000000000582a085: 00000003 00000000 00000000 0001 03 8351309 /run/m/s/hv-1.sock
00000000a7297ea2: 00000003 00000000 00000000 0001 03 8351293
0000000035046dd7: 00000002 00000000 00010000 0001 01 77 /run/with blank/front.sock
broken line
"""
UDP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
   14: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0 0
   15: 0100007F:0036 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0 2 0 0
"""


def test_mappings_are_read_with_what_is_resident_of_them() -> None:
    ring, heap, code = mappings(SMAPS)
    assert (ring.file, ring.path, ring.offset) == (("00:01", 842983), "/memfd:vm2.netvsp", 0xC000)
    assert (ring.end - ring.begin, ring.is_shared, ring.private, ring.shared) == (0xC000, True, 0, 12 << 10)
    assert (heap.is_shared, heap.private, heap.shared) == (False, 24 << 10, 4 << 10)
    assert (code.access, code.path) == ("r-xp", "")
    assert mappings("") == mappings("Private_Dirty: 4 kB\n") == []


def test_privileges_are_those_in_force() -> None:
    assert privileges(STATUS) == Privileges(1001, 101, ("chown", "net_bind_service", "net_raw"), True, "filter")
    assert privileges("Name:\tx\n") is None
    assert privileges(STATUS.replace("2401", "zz")) is None


def test_a_capability_that_is_younger_than_the_list_has_a_number() -> None:
    newer = len(CAPABILITIES)
    assert capabilities(1 << newer | 1) == ("chown", str(newer))
    assert CAPABILITIES[21] == "sys_admin"          # linux/capability.h
    assert newer == 41


def test_only_sockets_with_a_path_are_named() -> None:
    assert unix_paths(UNIX) == {8351309: "/run/m/s/hv-1.sock", 77: "/run/with blank/front.sock"}


def test_an_address_is_read_as_the_kernel_prints_it() -> None:
    loopback = struct.pack("=I", int("0100007F", 16)) == b"\x7f\0\0\1"
    assert inet_addresses(UDP, "udp") == {4711: f"udp {'127.0.0.1' if loopback else '1.0.0.127'}:53"}


def test_a_file_that_is_mapped_twice_counts_once() -> None:
    assert extent([(0, 10), (5, 20), (30, 40), (30, 35)]) == 30
    assert extent([]) == 0


def entry(inode: int, *attributes: bytes) -> bytes:
    body = struct.pack("=BBBBIII", 1, 1, 1, 0, inode, 0, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), 20, 2, 1, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def test_the_kernels_answer_names_the_other_end_of_each_connection() -> None:
    name, peer = attribute(0, b"/tmp/x"), attribute(2, struct.pack("=I", 9))
    assert read_entries(entry(7, name, peer) + entry(8, name)) == {7: 9}
    assert read_entries(b"") == {}
    assert read_entries(struct.pack("=IHHII", 16, 3, 2, 1, 0)) is None
    with pytest.raises(ValueError, match="does not tell"):
        read_entries(struct.pack("=IHHIIi", 20, 2, 2, 1, 0, -2))


@pytest.mark.parametrize("raw", [entry(7, b"\1"), entry(7, struct.pack("=HH", 0, 2)), entry(7)[:20], b"\xff" * 15])
def test_a_cut_answer_names_nobody(raw: bytes) -> None:
    assert read_entries(raw) == {}


def lines_of(text: str) -> int:
    return count(tokenize.generate_tokens(io.StringIO(text).readline))


def test_a_line_of_code_is_one_with_a_token() -> None:
    assert lines_of("") == 0
    assert lines_of('"""Module.\n\nMore.\n"""\n\n# comment\nx = 1  # one\n') == 1
    assert lines_of('def f():\n    """Says."""\n    return """two\nlines"""\n') == 3
    assert lines_of("x = (\n    1,\n    # why\n\n    2,\n)\n") == 4


def test_a_file_that_is_no_python_has_no_lines(tmp_path: Any) -> None:
    (tmp_path / "bad.py").write_text("x = '''")
    assert code_lines(str(tmp_path / "bad.py")) is None
    assert code_lines(str(tmp_path / "missing.py")) is None
    assert code_lines("/x/_ssl.cpython-311-x86_64-linux-gnu.so") is None


def test_a_process_says_which_files_it_has_loaded() -> None:
    loaded = loaded_files()
    mine = [folder for folder, paths in loaded.items() if "vmbus_emu/evidence.py" in paths]
    assert len(mine) == 1
    assert any("tokenize.py" in paths for paths in loaded.values())
    assert files(loaded) == loaded


def test_a_driver_of_another_package_is_told_apart_from_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_vendor"
    package.mkdir()
    (package / "__init__.py").write_text("from some_vendor.card import DRIVER\n")
    (package / "card.py").write_text(
        "from vmbus_emu.hardware import Driver\n"
        "DRIVER = Driver('card', '1', 'storage', ('1000:0001',), lambda model, disk: disk)\n"
    )
    before = set(sys.modules)
    for module in list(sys.modules.values()):   # other tests of this process may have brought drivers, too
        if BROUGHT in getattr(module, "__dict__", ()):
            monkeypatch.delattr(module, BROUGHT)
    described = {"name": "card", "version": "1", "entry": "some_vendor:DRIVER", "path": str(tmp_path)}
    store = DriverStore({"storage0": {"model": "1000:0001", "driver": described}})
    assert store.driver("storage0").name == "card"
    try:
        loaded = loaded_files()
    finally:
        for name in sys.modules.keys() - before:
            monkeypatch.delitem(sys.modules, name)
    assert loaded[OF_DRIVERS + str(tmp_path)] == ["some_vendor/__init__.py", "some_vendor/card.py"]
    found = code([loaded])
    assert {"some_vendor", "some_vendor.card"} <= set(found["drivers"]["modules"])
    without = code([{folder: paths for folder, paths in loaded.items() if not folder.startswith(OF_DRIVERS)}])
    assert found["drivers"]["lines"] - without["drivers"]["lines"] == 3
    assert found["ours"]["lines"] - without["ours"]["lines"] == 3
    assert found["libraries"] == without["libraries"]
    assert found["ours"]["parts"]["other drivers"] == 3


@pytest.mark.parametrize("said", [{1: []}, {"/": "x"}, {"/": [1]}, {"/": ["x"] * 5000}])
def test_what_is_no_list_of_files_is_not_believed(said: dict[Any, Any]) -> None:
    assert files(said) is None


def test_modules_have_the_names_of_their_files() -> None:
    assert module_name("vmbus_emu/client/__init__.py") == "vmbus_emu.client"
    assert module_name("drivers/disk.py") == "drivers.disk"
    assert module_name("zmq/backend/cython/_zmq.cpython-311-x86_64-linux-gnu.so") == "zmq.backend.cython._zmq"
    assert below("drivers.disk", "drivers")
    assert not below("drivers2", "drivers")


@pytest.fixture
def tree(tmp_path: Any) -> str:
    """Code of three packages: a line, two lines, four lines."""
    for path, lines in (("vmbus_emu/machine/power.py", 1), ("vmbus_emu/loop.py", 2), ("drivers/disk.py", 4)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x = 1\n" * lines)
    return str(tmp_path)


def test_code_of_several_processes_counts_once_and_the_machines_own_apart(tree: str) -> None:
    hypervisor = {tree: ["vmbus_emu/machine/power.py", "vmbus_emu/loop.py"], "": ["/lib/fast.so"]}
    parent = {tree: [*hypervisor[tree], "drivers/disk.py"]}
    both = code([hypervisor, parent])
    assert (both["ours"]["lines"], both["ours"]["inherited"]) == (7, 1)
    assert both["ours"]["parts"] == {"drivers": 4, "vmbus_emu": 2, "vmbus_emu.machine": 1}
    assert both["drivers"] == {"modules": ["drivers.disk"], "lines": 4}
    assert both["libraries"] == {"modules": 0, "lines": 0, "compiled": 1}
    assert code([hypervisor], forked=False)["ours"]["inherited"] == 0


@pytest.mark.parametrize(
    ("arch", "policy", "ends", "interrupts"),
    [
        ("microkernel", (), ["hypervisor"], ["parent"]),
        ("microkernel", ("hypervisor=recover",), [], ["parent"]),
        ("disaggregated", (), ["hypervisor"], ["parent", "storvsp", "netvsp"]),
        ("monolithic", (), ["hypervisor"], []),
    ],
)
def test_what_must_not_fail_follows_from_placement_and_policy(
    tree: str, arch: str, policy: tuple[str, ...], ends: list[str], interrupts: list[str]
) -> None:
    wanted = parse({"arch": arch}, flags=Overrides(policies=policy))
    loaded = {name: {tree: ["vmbus_emu/loop.py"]} for name in ("machine", "hypervisor", "parent", "storvsp", "netvsp")}
    found = trusted(wanted, loaded)
    assert found["ends_every_vm"]["processes"] == ends
    assert found["interrupts_every_vm"]["processes"] == interrupts
    assert found["ends_every_vm"]["code"]["ours"]["lines"] == (2 if ends else 0)
    assert trusted(wanted, {**loaded, "hypervisor": None})["ends_every_vm"]["code"] == (None if ends else code([]))


def process(name: str, **fields: Any) -> dict[str, Any]:
    loaded = {"ours": {"modules": 2, "lines": 1500, "parts": {}, "inherited": 500},
              "drivers": {"modules": [], "lines": 0}, "libraries": {"modules": 1, "lines": 20000, "compiled": 0},
              "modules": []}  # fmt: skip
    return {
        "name": name, "role": name, "pid": 12, "components": [name], "answered": True, "code": loaded,
        "memory": {"private_bytes": 2 << 20, "copy_on_write_bytes": 0, "shared": []},
        "privileges": {"uid": 0, "gid": 0, "capabilities": ["chown"], "no_new_privs": False, "seccomp": "off"},
        "reaches": [{"kind": "unix", "what": "hv-1.sock", "to": ["machine"]},
                    {"kind": "memory", "what": "vm1.storvsp", "to": []}],
        **fields,
    }  # fmt: skip


def report(*processes: dict[str, Any], arch: str = "microkernel") -> dict[str, Any]:
    share = {"processes": ["hypervisor"], "why": "policy reboot", "code": processes[0]["code"]}
    nothing = {"processes": [], "why": "", "code": None}
    return {
        "schema": 1, "name": "lab", "arch": arch, "transport": "zmq", "state": "ready", "sees_peers": True,
        "processes": list(processes),
        "trusted": {"ends_every_vm": share, "interrupts_every_vm": nothing, "box": share, "all": share},
    }  # fmt: skip


def test_a_report_is_told_in_lines() -> None:
    shared = [{"name": "vm1.storvsp", "bytes": 9 << 20, "access": "rw", "with": ["parent"]}]
    vm = process("vm1", role="child", memory={"private_bytes": 1 << 20, "copy_on_write_bytes": 0, "shared": shared})
    lines = audit_lines(report(process("hypervisor"), vm))
    assert lines[0] == "lab: microkernel over zmq, ready"
    assert [line.split() for line in lines[2:4]] == [
        ["hypervisor", "hypervisor", "12", "1,000", "-", "20,000", "2.0M", "-", "-"],
        ["vm1", "child", "12", "1,000", "-", "20,000", "1.0M", "9.0M", "parent"],
    ]
    assert "must not fail: hypervisor: 1,000 lines, none of them a driver's (policy reboot)" in lines
    assert "may: uid 0, capabilities: chown, seccomp off, new privileges allowed: all 2 processes" in lines
    assert "  vm1: machine (hv-1.sock) [vm1.storvsp]" in lines


def test_who_does_not_answer_or_cannot_be_read_is_named() -> None:
    silent = process("vm1", answered=False, code=None, memory=None, privileges=None, reaches=None)
    lines = audit_lines(report(process("hypervisor"), silent))
    assert "did not answer, so of its code nothing is known: vm1 (pid 12)" in lines
    assert "  vm1: unknown" in lines
    assert any(line.startswith("vm1") and "no answer" in line for line in lines)


def test_placements_stand_side_by_side() -> None:
    vm = process("vm1", role="child")
    machines = {"microkernel": report(process("hypervisor"), vm), "monolithic": report(process("hypervisor"))}
    lines = compare_lines({"placements": list(machines), "machines": machines})
    assert lines[0].split() == ["microkernel", "monolithic"]
    assert lines[2].split() == ["lines", "of", "code", "1,000", "1,000"]
    shared = next(line for line in lines if line.startswith("memory shared"))
    assert shared.split("  ")[-1].strip() == "all of it"
