"""What a topology file and flags make, and what is said of the ones that make nothing."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

from partitions.parent.process import MAX_CHANNELS
from vmbus_emu.topology import Overrides, Topology, TopologyErrors, build, check_limits, load, parse
from vmbus_emu.topology import data as data
from vmbus_emu.topology.limits import MAX_SOCKETS, Demand

Lab = Callable[[str], Path]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Writes ``lab.toml`` into a fresh working folder and gives the path as a user there would."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("lab.toml").write_text(text)
        return Path("lab.toml")

    return write


def errors_of(path: Path | None, flags: Overrides | None = None, limits: bool = False) -> list[str]:
    with pytest.raises(TopologyErrors) as caught:
        build(path, flags or Overrides(), limits)
    return caught.value.lines


def test_without_a_file_there_are_two_vms_with_a_ram_disk_and_a_nic() -> None:
    topology = build(None, Overrides())
    assert (topology.name, topology.arch, topology.transport) == ("default", "microkernel", "zmq")
    assert topology.poll == "adaptive"
    assert [vm.name for vm in topology.vms] == ["vm1", "vm2"]
    assert [switch.name for switch in topology.switches] == ["s0"]
    vm = topology.vms[0]
    assert (vm.memory_bytes, vm.integration_services, vm.vmbus_version) == (16 << 20, True, None)
    assert vm.disks == (data.DiskSpec("ram", None, 64 << 20, False),)
    assert vm.nics == (data.NicSpec("s0", bytes.fromhex("00155d000001")),)
    assert [vm.address for vm in topology.vms] == ["10.0.0.1", "10.0.0.2"]


def test_a_topology_survives_msgpack() -> None:
    topology = build(None, Overrides(transport="ring", vms=3, policies=("parent=standby",), poll="always"))
    assert topology.poll == "always"
    assert Topology.from_dict(topology.to_dict()) == topology
    assert Topology.from_dict(msgpack.unpackb(msgpack.packb(topology.to_dict()))) == topology


def test_roles_are_read_and_survive_msgpack() -> None:
    topology = parse({"role": {"dns": {"cpu_limit": 1}, "files": {"port": 8080}}})
    assert topology.roles == {"dns": data.RoleSpec(1.0, 0), "files": data.RoleSpec(None, 8080)}
    assert Topology.from_dict(msgpack.unpackb(msgpack.packb(topology.to_dict()))) == topology


@pytest.mark.parametrize(
    "junk", [{}, {"name": "x"}, {"vms": 3}, {"vms": [1], "switches": []}, {"vms": [], "switches": [{}]}]
)
def test_a_mapping_that_is_no_topology_is_a_value_error(junk: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a topology"):
        Topology.from_dict(junk)


def test_generated_addresses_and_macs_are_unique_and_skip_0_and_255() -> None:
    topology = build(None, Overrides(vms=1200))
    addresses = [vm.address for vm in topology.vms]
    assert len(set(addresses)) == 1200
    assert not {"0", "255"} & {address.rsplit(".", 1)[1] for address in addresses}
    assert addresses[253:255] == ["10.0.0.254", "10.0.1.1"]
    assert len({nic.mac for vm in topology.vms for nic in vm.nics}) == 1200
    assert data.default_address(data.MAX_VMS - 1) == "10.0.255.254"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 64 << 20), ("1TiB", 1 << 40), ("512", 512), ("16MB", 16_000_000), (" 4 kib ", 4096), (512, 512),
        ("0", 0), ("-1", None), (-1, None), ("1.5GiB", None), ("12M", None), ("", None), (True, None), (1.0, None),
        ("٣", None), ("9" * 5000, None), (None, None), ([], None),
    ],
)
def test_what_is_a_size(text: object, size: int | None) -> None:
    assert data.parse_size(text) == size


def test_a_full_file_is_read_as_it_says(lab: Lab) -> None:
    Path("a.img").write_bytes(bytes(1024))
    topology = load(lab("""
        name = "lab"
        arch = "disaggregated"
        transport = "zmq"
        [policy]
        parent = "standby"
        hypervisor = "degraded"
        [[vm]]
        name = "web"
        memory = "32MiB"
        integration_services = true
        address = "10.0.9.9"
        vmbus_version = "4.0"
        disk = [{file = "a.img", read_only = true}, {ram = "1MiB"}, {null = "1TiB"}, {file = "new.img", size = "1GiB"}]
        [[vm.nic]]
        switch = "inner"
        mac = "02:00:00:00:00:07"
        [[vm]]
        name = "bare"
        disk = []
        nic = []
        [[switch]]
        name = "outer"
        [[switch]]
        name = "inner"
    """))
    assert (topology.name, topology.arch, dict(topology.policy)) == (
        "lab", "disaggregated", {"parent": "standby", "hypervisor": "degraded"},
    )
    web, bare = topology.vms
    assert (web.memory_bytes, web.address, web.vmbus_version) == (32 << 20, "10.0.9.9", "4.0")
    assert web.disks == (
        data.DiskSpec("file", str(Path("a.img").absolute()), 0, True),
        data.DiskSpec("ram", None, 1 << 20),
        data.DiskSpec("null", None, 1 << 40),
        data.DiskSpec("file", str(Path("new.img").absolute()), 1 << 30),
    )
    assert web.nics == (data.NicSpec("inner", bytes.fromhex("020000000007")),)
    assert (bare.disks, bare.nics) == ((), ())
    assert not Path("new.img").exists()


def test_relative_images_are_relative_to_the_file_and_those_of_flags_to_the_working_folder(lab: Lab) -> None:
    Path("sub").mkdir()
    Path("sub/a.img").write_bytes(bytes(512))
    Path("b.img").write_bytes(bytes(512))
    Path("sub/lab.toml").write_text('vm = [{name = "vm1", disk = [{file = "a.img"}]}, {name = "vm2"}]')
    topology = build("sub/lab.toml", Overrides(disks=("vm2=b.img",)))
    assert [vm.disks[0].path for vm in topology.vms] == [os.path.abspath("sub/a.img"), os.path.abspath("b.img")]


def test_flags_override_the_file(lab: Lab) -> None:
    Path("a=b.img").write_bytes(bytes(512))
    path = lab('name = "lab"\narch = "nonsense"\ntransport = 3\n[policy]\nparent = "halt"\n[[vm]]\nname = "web"')
    topology = build(path, Overrides("x", "monolithic", "zmq", 3, ("./a=b.img",), ("parent=restart", "child=halt")))
    assert (topology.name, topology.arch, topology.transport) == ("x", "monolithic", "zmq")
    assert [vm.name for vm in topology.vms] == ["web", "vm2", "vm3"]
    assert topology.vms[0].disks == (data.DiskSpec("file", os.path.abspath("a=b.img")),)
    assert dict(topology.policy) == {"parent": "restart", "child": "halt"}
    assert [vm.name for vm in build(path, Overrides(arch="monolithic", transport="zmq", vms="1")).vms] == ["web"]


def test_the_monolith_takes_any_transport_because_it_uses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmbus_emu.topology.file.host_machine", lambda: "aarch64")
    assert build(None, Overrides(arch="monolithic", transport="ring")).arch == "monolithic"
    assert build(None, Overrides(arch="monolithic", poll="never")).poll == "never"


@pytest.mark.parametrize("arch", ["microkernel", "disaggregated"])
@pytest.mark.parametrize("poll", data.POLLS)
def test_the_ring_is_a_transport_of_both_that_have_channels(lab: Lab, arch: str, poll: str) -> None:
    made = load(lab(f'arch = "{arch}"\ntransport = "ring"\npoll = "{poll}"'))
    assert (made.transport, made.poll) == ("ring", poll)
    assert build(lab('poll = "never"'), Overrides(arch=arch, transport="ring")).poll == "never"
    assert build(lab('transport = "ring"\npoll = "never"'), Overrides(arch=arch, poll=poll)).poll == poll


def test_a_poll_that_nobody_would_use_is_told_where_it_stands(lab: Lab) -> None:
    told = "only transport ring polls; add --transport ring"
    assert errors_of(None, Overrides(poll="never")) == [f"flags:--poll: {told}"]
    assert errors_of(lab('transport = "ring"'), Overrides(transport="zmq", poll="never")) == [f"flags:--poll: {told}"]
    path = lab('transport = "ring"\npoll = "never"')
    assert build(path, Overrides(transport="zmq")).transport == "zmq"   # the same file, tried without the ring
    assert errors_of(lab('transport = "zmq"\npoll = "never"')) == [f"lab.toml:poll: {told}"]


def test_a_machine_that_reorders_stores_has_no_ring(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmbus_emu.topology.file.host_machine", lambda: "aarch64")
    told = "the ring needs a machine with total store order (x86-64); use zmq"
    assert errors_of(lab('transport = "ring"')) == [f"lab.toml:transport: {told}"]
    assert errors_of(None, Overrides(transport="ring", poll="never")) == [f"flags:--transport: {told}"]
    assert build(None, Overrides()).transport == "zmq"


ONE_FAULT = {
    'nam = "x"': ("nam", 'did you mean "name"?'),
    'name = "Lab"': ("name", "lower-case"),
    'name = "lab\\n"': ("name", "lower-case"),
    "name = 3": ("name", "is 3"),
    'arch = "microkernal"': ("arch", 'did you mean "microkernel"?'),
    'transport = "rign"': ("transport", 'did you mean "ring"?'),
    'transport = "rign"\npoll = "always"': ("transport", 'did you mean "ring"?'),
    'transport = "ring"\npoll = "allways"': ("poll", 'did you mean "always"?'),
    'poll = "adaptive"': ("poll", "only transport ring polls; add --transport ring"),
    'arch = "disaggregated"\ntransport = "zmq"\npoll = "never"': ("poll", "only transport ring polls"),
    "vm = 3": ("vm", "not a list"),
    "vm = [3]": ("vm[0]", "not a table"),
    "vm = []": ("vm", "no VMs"),
    "[[vm]]\nmemory = 4096000": ("vm[0].name", "is missing"),
    '[[vm]]\nname = "parent"': ("vm[0].name", "component"),
    '[[vm]]\nname = "vm1"\n[[vm]]\nname = "vm1"': ("vm[1].name", '"vm1" is taken by vm[0]'),
    '[[vm]]\nname = "vm1"\ncolour = 1': ("vm1.colour", "unknown key"),
    '[[vm]]\nname = "vm1"\nmemory = "16Mi"': ("vm1.memory", "a size is"),
    '[[vm]]\nname = "vm1"\nmemory = 1048577': ("vm1.memory", "try 1052672"),
    '[[vm]]\nname = "vm1"\nmemory = 0': ("vm1.memory", "is 0 bytes"),
    '[[vm]]\nname = "vm1"\nintegration_services = 1': ("vm1.integration_services", "true or false"),
    '[[vm]]\nname = "vm1"\naddress = "10.1.0.1"': ("vm1.address", "10.0.0.0/16"),
    '[[vm]]\nname = "vm1"\naddress = "10.0.0.2"\n[[vm]]\nname = "vm2"': ("vm2.address", "also the address of vm1"),
    '[[vm]]\nname = "vm1"\nvmbus_version = 4.0': ("vm1.vmbus_version", "one of 2.4"),
    '[[vm]]\nname = "vm1"\n[[vm.disk]]\n': ("vm1.disk0", "nothing of its medium"),
    '[[vm]]\nname = "vm1"\n[[vm.disk]]\nram = 512\nnull = 512': ("vm1.disk0", "ram and null at once"),
    '[[vm]]\nname = "vm1"\n[[vm.disk]]\nram = 513': ("vm1.disk0.ram", "not a multiple of 512; try 1024"),
    '[[vm]]\nname = "vm1"\n[[vm.disk]]\nram = 512\nsize = 512': ("vm1.disk0.size", "belongs to a file"),
    '[[vm]]\nname = "vm1"\n[[vm.disk]]\nnull = "1024PiB"\nread_only = "no"': ("vm1.disk0.read_only", "true or false"),
    '[[vm]]\nname = "vm1"\n[[vm.disk]]\nfile = "none.img"': ("vm1.disk0.file", "does not exist"),
    '[[vm]]\nname = "vm1"\n[[vm.disk]]\nfile = "no/a.img"\nsize = 512': ("vm1.disk0.file", "cannot be created in"),
    '[[vm]]\nname = "vm1"\n[[vm.disk]]\nfile = "a"\nsize = 512\nread_only = true': ("vm1.disk0.file", "is read_only"),
    '[[vm]]\nname = "vm1"\n[[vm.disk]]\nfile = "odd.img"': ("vm1.disk0.file", "is 700 bytes, not a multiple of 512"),
    '[[vm]]\nname = "vm1"\n[[vm.disk]]\nfile = "good.img"\nsize = 512': ("vm1.disk0.file", "1024 bytes, not 512"),
    '[[vm]]\nname = "vm1"\n[[vm.disk]]\nfile = "empty.img"': ("vm1.disk0.file", "is empty"),
    '[[vm]]\nname = "vm1"\n[[vm.disk]]\nfile = "."': ("vm1.disk0.file", "not a regular file"),
    '[[vm]]\nname = "vm1"\n[[vm.disk]]\nfile = "kept.img"': ("vm1.disk0.file", "is write-protected"),
    '[[vm]]\nname = "vm1"\n[[vm.disk]]\nfile = "a\\u0000b"': ("vm1.disk0.file", "give the path"),
    '[[vm]]\nname = "vm1"\n[[vm.nic]]\nswitch = "s9"': ("vm1.nic0.switch", "one of s0"),
    '[[vm]]\nname = "vm1"\n[[vm.nic]]\nmac = "01:00:00:00:00:00"': ("vm1.nic0.mac", "unicast"),
    '[[vm]]\nname = "vm1"\n[[vm.nic]]\nmac = "00:15:5d:01:00:01"\n[[vm.nic]]\n': ("vm1.nic1.mac", "MAC of vm1.nic0"),
    '[[switch]]\nname = "s0"\n[[switch]]\nname = "s0"': ("switch[1].name", "taken by switch[0]"),
    '[policy]\nparnt = "halt"': ("policy.parnt", 'did you mean "parent"?'),
    '[policy]\nparent = "retsart"': ("policy.parent", 'did you mean "restart"?'),
    "policy = 3": ("policy", "not a table"),
    "[role.dsn]": ("role.dsn", 'did you mean "dns"?'),
    "[role.dns]\ncpu_limit = 0": ("role.dns.cpu_limit", "give a number of cores from 0.01"),
    "[role.dns]\nport = 65536": ("role.dns.port", "to 65535"),
    "[role.dns]\nlimit = 1": ("role.dns.limit", 'did you mean "cpu_limit"?'),
    'arch = "monolithic"\n[role.dns]': ("role.dns", "a monolithic hypervisor takes no roles"),
    '[[vm]]\nname = "dns"': ("vm[0].name", "is the name of a component"),
    '[hardware.nic0]\nmodel = "8086"': ("hardware.nic0.model", 'is "8086"; give a model'),
    "[hardware.nic0]": ("hardware.nic0.model", "is missing"),
    '[hardware.gpu0]\nmodel = "8086:100e"': ("hardware.gpu0", "is no device"),
    '[hardware.storage0]\nmodel = "8086:2922"\ncable = "a.nic0"': ("hardware.storage0.cable", "unknown key"),
    '[hardware.nic0]\nmodel = "8086:100e"\ncable = "b"': ("hardware.nic0.cable", 'like "other.nic0"'),
    '[hardware.nic0]\nmodel = "8086:100e"\ncable = "default.nic1"': ("hardware.nic0.cable", "leads back"),
    '[hardware.nic0]\nmodel = "8086:100e"\nswitch = "s9"': ("hardware.nic0.switch", '"s9"'),
}


@pytest.mark.parametrize("text", ONE_FAULT)
def test_one_fault_is_one_line_with_file_key_and_what_to_try(lab: Lab, text: str) -> None:
    Path("good.img").write_bytes(bytes(1024))
    Path("odd.img").write_bytes(bytes(700))
    Path("empty.img").touch()
    Path("kept.img").write_bytes(bytes(512))
    Path("kept.img").chmod(0o444)
    key, words = ONE_FAULT[text]
    (line,) = errors_of(lab(text))
    assert line.startswith(f"lab.toml:{key}: ")
    assert words in line
    assert "; " in line
    assert line.isprintable()


def test_all_faults_of_file_and_flags_come_at_once(lab: Lab) -> None:
    path = lab('arch = "x"\nvm = [{name = "a", memory = "1"}, {name = "a"}]\n[policy]\nparent = "x"')
    policies = ("parent", "x=halt", "role=x")
    flags = Overrides(name="X", transport="tcp", poll="x", disks=("b=i.img", "none.img"), policies=policies)
    assert [line.partition(": ")[0] for line in errors_of(path, flags)] == [
        "flags:--name", "lab.toml:arch", "flags:--transport", "flags:--poll", "lab.toml:vm[1].name", "flags:--disk",
        "lab.toml:a.memory", "flags:--disk", "lab.toml:policy.parent", *["flags:--policy"] * 3,
    ]


@pytest.mark.parametrize("second", ["a.img", "./sub/../a.img", "hard.img", "soft.img"])
def test_two_writers_of_one_image_are_refused_under_whatever_name(lab: Lab, second: str) -> None:
    Path("a.img").write_bytes(bytes(512))
    Path("sub").mkdir()
    os.link("a.img", "hard.img")
    os.symlink("a.img", "soft.img")
    text = 'vm = [{{name="vm1", disk=[{{file="{}"{}}}]}}, {{name="vm2", disk=[{{file="{}"{}}}]}}]'
    read_only = ", read_only=true"
    for marks in (("", ""), (read_only, ""), ("", read_only)):
        (line,) = errors_of(lab(text.format("a.img", marks[0], second, marks[1])))
        assert "is also the image of vm1.disk0" in line
    assert len(load(lab(text.format("a.img", read_only, second, read_only))).vms) == 2


def test_two_disks_that_are_still_to_be_created_in_one_file_are_refused(lab: Lab) -> None:
    path = lab('vm = [{name="vm1", disk=[{file="n.img", size=512}, {file="./n.img", size=512}]}]')
    assert "is also the image of" in errors_of(path)[0]


def test_the_same_image_twice_on_the_command_line_is_refused(lab: Lab) -> None:
    Path("a.img").write_bytes(bytes(512))
    assert len(errors_of(None, Overrides(disks=("vm1=a.img", "vm2=a.img")))) == 1


@pytest.mark.parametrize("text", ["name = ", "a = [" * 3000, "x = " + "9" * 5000, "name = 'a'\nname = 'b'"])
def test_a_file_that_is_no_toml_is_one_line(lab: Lab, text: str) -> None:
    (line,) = errors_of(lab(text))
    assert line.startswith("lab.toml:syntax: ")


def test_a_file_that_is_not_there_or_not_text_is_one_line(lab: Lab) -> None:
    (line,) = errors_of(Path("none.toml"))
    assert line == "none.toml:file: No such file or directory; give the path of a topology file"
    assert errors_of(Path("."))[0].startswith(".:file: Is a directory")
    Path("lab.toml").write_bytes(b"\xff\xfe\0")
    assert errors_of(Path("lab.toml"))[0].startswith("lab.toml:syntax: ")


@pytest.mark.parametrize("vms", ["0", 0, "-1", "x", "70000", 10**12, "1e3", "٣"])
def test_how_many_vms_are_no_number_of_vms(vms: int | str) -> None:
    (line,) = errors_of(None, Overrides(vms=vms))
    assert line.startswith("flags:--vms: ")


def test_parse_takes_a_mapping_of_the_files_shape() -> None:
    assert parse({"name": "api", "vm": [{"name": "a"}]}).vms[0].name == "a"
    with pytest.raises(TopologyErrors, match="topology:colour: unknown key"):
        parse({"colour": 1})


# -- limits -----------------------------------------------------------------------------------------

ENOUGH = (1 << 30, 1 << 30)


def test_a_plain_machine_fits_a_plain_host() -> None:
    for arch in data.ARCHES:
        assert check_limits(build(None, Overrides(arch=arch)), (1024, 1024), (1024, 1024)) == []


def test_too_many_vms_for_descriptors_are_told_with_both_numbers_and_what_fits() -> None:
    topology = build(None, Overrides(vms=4000))
    lines = check_limits(topology, (1024, 20000), ENOUGH, max_sockets=10**6)
    assert [line.partition(":")[0] for line in lines] == ["limits"] * len(lines)
    parent = next(line for line in lines if "(parent)" in line)
    assert "4000 VMs need 152040 descriptors in one process" in parent
    assert "the limit is 20000" in parent
    fits = int(parent.partition("try --vms ")[2].partition(",")[0])
    assert check_limits(build(None, Overrides(vms=fits)), (1024, 20000), ENOUGH, max_sockets=10**6) == []
    over = check_limits(build(None, Overrides(vms=fits + 1)), (1024, 20000), ENOUGH, max_sockets=10**6)
    assert any("(parent)" in line for line in over)


def test_sockets_and_processes_are_limits_too() -> None:
    topology = build(None, Overrides(vms=600))
    assert "4208 ZeroMQ sockets" in check_limits(topology, ENOUGH, ENOUGH, max_sockets=1023)[0]
    assert "610 processes" in check_limits(topology, ENOUGH, (100, 609), max_sockets=10**6)[0]
    assert check_limits(topology, ENOUGH, (100, 610), max_sockets=10**6) == []
    infinite = (1, resource.RLIM_INFINITY)
    assert check_limits(topology, infinite, infinite, max_sockets=10**6) == []


def test_a_parent_asks_libzmq_for_as_many_sockets_as_the_limit_promises() -> None:
    assert MAX_CHANNELS == MAX_SOCKETS


def test_the_monolith_needs_no_process_per_vm() -> None:
    topology = build(None, Overrides(arch="monolithic", vms=600))
    assert check_limits(topology, ENOUGH, (20, 20)) == []


def test_the_model_is_a_table_that_can_be_replaced() -> None:
    topology = build(None, Overrides(vms=2))
    demands = {"microkernel": (Demand("toy", base=1, per_vm=2, per_disk=3, per_nic=4),)}
    assert check_limits(topology, (19, 19), ENOUGH, demands=demands) == []
    (line,) = check_limits(topology, (18, 18), ENOUGH, demands=demands)
    assert "2 VMs need 19 descriptors in one process (toy); the limit is 18; try --vms 1" in line


def test_limits_are_reported_together_with_the_other_faults() -> None:
    lines = errors_of(None, Overrides(vms=60000, name="X"), limits=True)
    assert lines[0].startswith("flags:--name")
    assert any(line.startswith("limits:vms: 60000 VMs need") for line in lines[1:])


@pytest.mark.parametrize(("value", "seconds"), [("2s", 2.0), ("20ms", 0.02), ("60s", 60.0), ("1min", 60.0)])
def test_the_time_between_heartbeats_can_be_chosen(value: str, seconds: float) -> None:
    assert parse({"heartbeat": value}).heartbeat_s == seconds


@pytest.mark.parametrize(("value", "ppm"), [("50ppm", 50.0), ("-0.5 ppm", -0.5), ("200000ppm", 200000.0)])
def test_a_vms_clock_may_drift(value: str, ppm: float) -> None:
    assert parse({"vm": [{"name": "a", "clock_drift": value}]}).vms[0].clock_drift_ppm == ppm


@pytest.mark.parametrize(("document", "line"), [
    ('heartbeat = "1ms"', 'lab.toml:heartbeat: is "1ms"; give a time from "20ms" to "60s"'),
    ("heartbeat = 2", 'lab.toml:heartbeat: is 2; give a time from "20ms" to "60s"'),
    ('[[vm]]\nname = "a"\nclock_drift = "fast"',
     'lab.toml:a.clock_drift: is "fast"; give a rate from "-200000ppm" to "200000ppm"'),
    ('[[vm]]\nname = "a"\nclock_drift = "200001ppm"',
     'lab.toml:a.clock_drift: is "200001ppm"; give a rate from "-200000ppm" to "200000ppm"'),
])
def test_wrong_heartbeats_and_drifts_are_told(lab: Lab, document: str, line: str) -> None:
    assert errors_of(lab(document)) == [line]
