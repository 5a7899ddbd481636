"""Faults are real: what the kernel and the logs say about a process that carries one out on itself.

Each is a fresh interpreter, without a machine around it: the test says what is shared and what is private, and sends
what the machine would.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest

from vmbus_emu.placement import configuration, processes
from vmbus_emu.procfs import stat_fields
from vmbus_emu.topology import parse

Wait = Callable[..., None]

DEADLINE_S = 30.0
BEFORE = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\nfrom vmbus_emu.wreck import carry_out\n"
#: A process of a machine, as far as it matters here: a node on a lifeline, and the message that arrives there.
NODE = """
import msgpack, os, socket, sys
from vmbus_emu.node import Birth, Node

class Plain:
    def __init__(self, node): pass
    def handle(self, message, fds): print("handled", message["t"], flush=True); os._exit(0)

class Driven(Plain):
    has_drivers = True

ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
loaded = "vmbus_emu.wreck" in sys.modules
ours.send(msgpack.packb({"t": "fault", "fault": "exit", "components": ["m"]}))
print("loaded before:", loaded, flush=True)
Node(Birth("m", "m", "__main__:" + sys.argv[1], "/", 1, 0), theirs, None).run()
"""
#: The real monolith on a lifeline whose other end is the test.
MONOLITHIC_NODE = """
import socket
from vmbus_emu.node import Birth, Node
Node(Birth("m", "m", "partitions.monolith:Monolith", "/", 1, 0), socket.socket(fileno={fd}), None).run()
"""
#: A process that carries VSPs, as the machine makes it: handed media, a configuration, and faults.
CARRIER = """
import os, socket, sys
from partitions.parent.process import VspCarrier
from vmbus_emu.device import BlockRequest, Op
from vmbus_emu.node import Birth, Node
from vmbus_emu.placement import configuration, processes
from vmbus_emu.topology import parse

arch, name = sys.argv[1:]
vms = [{"name": vm, "disk": [{"null": "1MiB"}], "nic": [{"switch": "s0"}]} for vm in ("vm1", "vm2")]
topology = parse({"name": "m", "arch": arch, "vm": vms, "switch": [{"name": "s0"}]})
(spec,) = (spec for spec in processes(topology) if spec.name == name)
node = Node(Birth("m", name, spec.entry, "/", 1, 0), socket.socketpair()[0], None)
carrier = VspCarrier(node)
for vm in topology.vms:
    carrier.handle({"t": "medium", "name": vm.name + ".disk0", "info": {"block_count": 2048}}, [])
carrier.prepare(configuration(topology, spec, 1, "", ""))

def fault(component, fault, value):
    carrier.handle({"t": "fault", "fault": fault, "value": value, "components": [component]}, [])

def look():
    requests = [BlockRequest(Op.READY) for _ in topology.vms]
    for request, driver in zip(requests, carrier.disks.drivers.values()):
        driver.submit(request)
    statuses = ", ".join(request.status.name for request in requests)
    print(f"[{statuses}] drivers.faulty loaded: {'drivers.faulty' in sys.modules}")

look()
fault("storvsp", "error", 1.0)
look()
carrier.handle({"t": "fault", "clear": True}, [])
look()
slow = False
if "netvsp" in carrier.vsps:
    fault("netvsp", "slow", 1.0)
    slow = "forward" in vars(carrier.vsps["netvsp"].drivers()["s0"])
print(f"the switch is slow: {slow}, loaded: {'drivers.switch' in sys.modules}")
fault("storvsp", "panic", None)
try:
    look()
except Exception as bug:
    print(type(bug).__name__, flush=True)
os._exit(0)
"""
#: What a driver finds where guests are threads beside it, and a memory file that two processes would share.
MONOLITH = """
import os
from vmbus_emu.canary import Canary
from vmbus_emu.memory import PAGE, Region
from vmbus_emu.wreck import carry_out
canaries = [Canary() for _ in range(3)]
fd = os.memfd_create("shared")
os.truncate(fd, 8 * PAGE)
medium = os.memfd_create("medium")
os.write(medium, b"safe" * 1024)
region = Region(os.dup(fd), 0, 8)
ring = region.ring([0, 1, 2])
os.truncate(fd, 6 * PAGE)
carry_out("scribble")
print([canary.damage() for canary in canaries])
print({bytes(os.pread(fd, 1, at)) for at in range(6 * PAGE)}, os.pread(medium, 4096, 0) == b"safe" * 1024)
canaries.append(Canary())
print(canaries[3].damage(), sum(range(1000)))
"""
#: The same driver in a process of its own: a guest's private memory is another process's.
APART = """
import os
from vmbus_emu.canary import Canary
child = os.fork()
if child == 0:
    from vmbus_emu.wreck import carry_out
    carry_out("scribble")
    os._exit(0)
guest = Canary()
os.waitpid(child, 0)
print(guest.damage())
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, timeout=DEADLINE_S,
                          check=False)  # fmt: skip


def test_segv_is_the_kernels_signal() -> None:
    ended = run(BEFORE + 'carry_out("segv")')
    assert ended.returncode == -signal.SIGSEGV
    assert b"*** fault injected: segv" in ended.stderr


def test_exit_says_so_and_cleans_nothing_up() -> None:
    ended = run(BEFORE + 'import atexit; atexit.register(print, "cleaned up"); carry_out("exit")')
    assert (ended.returncode, ended.stdout) == (3, b"")
    assert b"*** fault injected: exit" in ended.stderr


def test_panic_is_an_exception_that_nobody_catches() -> None:
    ended = run(BEFORE + 'carry_out("panic")')
    assert ended.returncode == 1
    assert b"InjectedBug" in ended.stderr


@pytest.mark.parametrize("headroom", [None, 8 << 20])
def test_memory_really_ends(headroom: int | None) -> None:
    # Not ru_maxrss, which begins with what the parent of the process had.
    peak = "open('/proc/self/status').read().split('VmHWM:')[1].split()[0]"
    report = f"\nimport atexit; atexit.register(lambda: print({peak}))\n"
    ended = run(BEFORE + report + f'carry_out("oom", {headroom})')
    assert ended.returncode == 1
    assert b"*** fault injected: oom" in ended.stderr
    assert b"MemoryError" in ended.stderr
    touched = int(ended.stdout) * 1024
    # Some of what was in use before was never touched, so the end may come a little early, but not late.
    assert touched > (headroom or 64 << 20) - (4 << 20)
    assert touched < (headroom or 64 << 20) + (128 << 20)


@pytest.mark.parametrize("busy", [False, True])
def test_a_hang_lives_and_never_returns(wait: Wait, busy: bool) -> None:
    code = BEFORE + f'carry_out("hang", {"busy" if busy else None!r})\nprint("returned")'
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stderr.readline() == b"*** fault injected: hang\n"
            before = ticks(process.pid)
            with pytest.raises(subprocess.TimeoutExpired):  # one that returned would be gone by then
                process.wait(0.3)
            if busy:
                wait(lambda: ticks(process.pid) > before + 10, "it computes")
            else:
                assert ticks(process.pid) <= before + 2
        finally:
            process.kill()
        assert process.wait(DEADLINE_S) == -signal.SIGKILL
        assert process.stdout.read() == b""


def ticks(pid: int) -> int:
    """CPU time of a process in user code, in clock ticks."""
    return int(stat_fields(pid)[11])


def test_in_one_address_space_a_scribbler_finds_everybody() -> None:
    ended = run(MONOLITH)
    damage, shared, after = ended.stdout.decode().splitlines()
    assert damage == "[" + ", ".join(["Damage(size=65536, first=0, last=65535)"] * 3) + "]"
    assert shared == "{b'\\xdb'} True"      # all that is shared, and no medium
    assert after == "None 499500"           # and the interpreter goes on
    assert ended.returncode == 0
    # Six of the region's eight pages are there, and the ring's five are the same memory mapped again.
    assert f"scribbled over {(6 + 5) * 4096} shared bytes and 3 guests' memory" in ended.stderr.decode()


def test_in_a_process_of_its_own_it_finds_nobody() -> None:
    ended = run(APART)
    assert ended.stdout == b"None\n"
    assert b"scribbled over 0 shared bytes and 0 guests' memory" in ended.stderr


def test_a_node_without_drivers_loads_the_wreck_only_when_told() -> None:
    ended = run(NODE, "Plain")
    assert (ended.returncode, ended.stdout) == (3, b"loaded before: False\n")
    assert b"*** fault injected: exit" in ended.stderr


def test_a_node_with_drivers_sees_to_its_faults_itself() -> None:
    ended = run(NODE, "Driven")
    assert (ended.returncode, ended.stdout) == (0, b"loaded before: False\nhandled fault\n")


@pytest.mark.parametrize(("arch", "carrier"), [("microkernel", "parent"), ("disaggregated", "storvsp")])
def test_a_vsps_process_gives_its_drivers_the_fault(arch: str, carrier: str) -> None:
    ended = run(CARRIER, arch, carrier)
    assert ended.stderr.decode() == ""
    assert ended.stdout.decode().splitlines() == [
        "[OK, OK] drivers.faulty loaded: False",
        "[IO_ERROR, IO_ERROR] drivers.faulty loaded: True",
        "[OK, OK] drivers.faulty loaded: True",
        f"the switch is slow: {arch == 'microkernel'}, loaded: {arch == 'microkernel'}",
        "DriverBug",
    ]


class Monolith:
    """The monolith in a process, and the test in the machine's place at the other end of its lifeline."""

    def __init__(self, vms: int = 2) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line = ours
        ours.settimeout(DEADLINE_S)
        code = MONOLITHIC_NODE.format(fd=theirs.fileno())
        self.process = subprocess.Popen([sys.executable, "-c", code], pass_fds=(theirs.fileno(),),
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
        theirs.close()
        topology = parse({"name": "m", "arch": "monolithic", "vm": [
            {"name": f"vm{n}", "disk": [{"null": "1MiB"}]} for n in range(1, vms + 1)]})  # fmt: skip
        (spec,) = processes(topology)
        for vm in topology.vms:
            self.send({"t": "medium", "name": f"{vm.name}.disk0", "info": {"block_count": 2048}})
        self.send({"t": "start", "config": configuration(topology, spec, 1, "", "")})
        for _ in spec.components:
            self.until(lambda message: message["t"] == "ready")
        self.session = 0

    def send(self, message: dict[str, Any]) -> None:
        self.line.send(msgpack.packb(message))

    def fault(self, component: str, name: str, value: Any = None) -> None:
        self.send({"t": "fault", "fault": name, "value": value, "components": [component]})

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            message: dict[str, Any] = msgpack.unpackb(self.line.recv(1 << 17))
            if wanted(message):
                return message

    def start(self, vm: str, command: str) -> int:
        self.session += 1
        self.send({"t": "exec", "vm": vm, "session": self.session, "argv": command.split()})
        return self.session

    def exec(self, vm: str, command: str) -> tuple[int, bytes]:
        """Exit status and all output of a guest command."""
        session, out = self.start(vm, command), b""
        while True:
            message = self.until(lambda message: message.get("session") == session)
            if message["t"] == "exit":
                return message["status"], out
            out += message.get("data", b"")

    def ending(self) -> tuple[int, str]:
        """Exit status (negative: signal) and what it said, once it has ended."""
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, errors.decode()


@pytest.fixture
def monolith() -> Iterator[Monolith]:
    made = Monolith()
    yield made
    made.process.kill()
    made.process.communicate()
    made.line.close()


def test_a_scribbling_driver_of_the_monolith_hits_every_guest(monolith: Monolith) -> None:
    assert [monolith.exec(vm, "memcheck") for vm in ("vm1", "vm2")] == [(0, b"intact\n")] * 2
    monolith.fault("storvsp", "scribble")
    corrupt = (1, b"CORRUPT 65536 bytes at 0x0 to 0xffff\n")
    assert [monolith.exec(vm, "memcheck") for vm in ("vm1", "vm2")] == [corrupt] * 2


def test_a_guests_bug_ends_that_guest_alone(monolith: Monolith) -> None:
    monolith.fault("vm1", "panic")
    died = monolith.until(lambda message: message["t"] == "component_died")
    assert died["component"] == "vm1"
    assert "InjectedBug" in died["why"]
    assert monolith.exec("vm2", "null disk0 1")[0] == 0


def test_a_guest_that_hangs_keeps_nobody_else(monolith: Monolith) -> None:
    monolith.fault("vm1", "hang")
    stuck = monolith.start("vm1", "true")
    assert monolith.exec("vm2", "null disk0 100")[0] == 0
    monolith.send({"t": "stats", "id": 1})
    assert monolith.until(lambda message: message["t"] == "stats" or message.get("session") == stuck)["t"] == "stats"


def test_a_drivers_bug_is_the_hosts_panic_at_the_next_request(monolith: Monolith) -> None:
    monolith.fault("storvsp", "panic")
    assert monolith.exec("vm1", "true")[0] == 0
    monolith.start("vm2", "null disk0 1")
    status, said = monolith.ending()
    assert status == -signal.SIGABRT
    assert "*** HOST PANIC in vm2.disk0" in said
    assert "DriverBug" in said


def test_a_hanging_driver_keeps_only_who_asks_it(monolith: Monolith, wait: Wait) -> None:
    files = f"/proc/{monolith.process.pid}/fd"
    before = len(os.listdir(files))
    monolith.fault("storvsp", "hang")
    monolith.start("vm1", "null disk0 1")
    wait(lambda: len(os.listdir(files)) == before + 2, "the driver opened the pipe it hangs at")
    monolith.send({"t": "fault", "clear": True})
    assert monolith.exec("vm2", "null disk0 1")[0] == 0
    monolith.fault("hypervisor", "exit")
    assert "vm1.disk0 hangs: its faults stay as they are" in monolith.ending()[1]


def test_a_slow_driver_and_one_with_errors_until_they_are_cleared(monolith: Monolith) -> None:
    monolith.fault("storvsp", "error", 1.0)
    status, said = monolith.exec("vm1", "null disk0 1")
    assert (status, b"I/O error" in said) == (1, True)
    monolith.send({"t": "fault", "clear": True, "fault": "error"})
    monolith.fault("storvsp", "slow", 0.05)
    status, said = monolith.exec("vm1", "null disk0 2")
    assert status == 0
    assert float(said.split(b"min ")[1].split()[0]) >= 50_000
    monolith.send({"t": "fault", "clear": True, "components": ["storvsp"]})
    status, said = monolith.exec("vm1", "null disk0 100")
    assert float(said.split(b"min ")[1].split()[0]) < 50_000


@pytest.mark.parametrize(("fault", "status"), [("segv", -signal.SIGSEGV), ("exit", 3), ("oom", 1), ("panic", 1)])
def test_a_fault_of_any_part_of_the_host_is_the_whole_processes(monolith: Monolith, fault: str, status: int) -> None:
    monolith.fault("management", fault)
    ended, said = monolith.ending()
    assert ended == status
    assert f"*** fault injected: {fault}" in said
