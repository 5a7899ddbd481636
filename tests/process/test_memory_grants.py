"""Memory grants and doorbells, live: a hypervisor process hands descriptors to whom they are for, before it answers.

The program below plays the machine and the root partition for a real hypervisor process, in an interpreter of its
own (what forks must not have used ZeroMQ before).
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vmbus_emu.machine.identities import Identities
from vmbus_emu.topology import parse

PROGRAM = r"""
import mmap, os, socket, sys
from pathlib import Path
from vmbus_emu import lifeline
from vmbus_emu.loop import Loop
from vmbus_emu.machine.supervisor import Supervisor
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Code, HvStatus

folder = Path(sys.argv[1])
(folder / "logs").mkdir()
loop = Loop()
said = []
supervisor = Supervisor(
    loop, "grants", folder, lambda process, message, fds: said.append(message), lambda process: None
)
hypervisor = supervisor.spawn("hypervisor", "vmbus_emu.hypervisor.process:HypervisorProcess")
hypervisor.line.send({"t": "start", "config": {"socket": str(folder / "hv.sock")}})

def wait(condition):
    assert loop.run_until(condition, 10.0), said

wait(lambda: any(message["t"] == "ready" for message in said))
ours, theirs = lifeline.pair()
hypervisor.line.send({"t": "bind", "partition": 1, "vp": 0, "pid": os.getpid()}, [theirs.fileno()])
wait(lambda: any(message["t"] == "bound" for message in said))

from vmbus_emu.node import Context
from vmbus_emu.vp import VirtualProcessor
root = VirtualProcessor(loop, Context(1))
root.connect(str(folder / "hv.sock"))

def call(code, block):
    future = root.call(code, block)
    wait(lambda: future.done)
    return future.result()

status, output = call(Code.CREATE_PARTITION, hv.CREATE_PARTITION.pack(0, 0, 0, b"vm1"))
child, = hv.PARTITION_ID.unpack(output)
call(Code.INITIALIZE_PARTITION, hv.PARTITION_ID.pack(child))
starting = root.call(Code.START_VIRTUAL_PROCESSOR, hv.START_VP.pack(child, 0, 0))
wait(lambda: said[-1]["t"] == "power_on")
assert said[-1]["name"] == "vm1"

def memory_file(pages, text):
    fd = os.memfd_create("io")
    os.ftruncate(fd, pages * 4096)
    os.pwrite(fd, text, 0)
    return fd

memory, other = memory_file(16, b"the guest's storage"), memory_file(4, b"the guest's network")
near, childs = lifeline.pair()
near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)     # room for few messages
regions = [{"gpa": 1 << 32, "pages": 16}, {"gpa": 1 << 33, "pages": 4}]
hypervisor.line.send({"t": "powered", "partition": child, "vp": 0, "pid": 2 ** 22 - 1, "memory": regions},
                     [near.fileno(), memory, other])
wait(lambda: starting.done)
assert starting.result()[0] is HvStatus.SUCCESS

from vmbus_emu.inbox import DescriptorInbox
inbox = DescriptorInbox(loop, ours)
guests = DescriptorInbox(loop, childs)

def grant(pages=16, access=3, gpa=1 << 32, code=Code.MAP_GPA_PAGES):
    return call(code, hv.GRANT.pack(child, 1, gpa, pages, access))[0].name

def taken(gpa=1 << 32):     # as soon as the call is answered, the descriptor is there
    return inbox.take_memory(child, gpa)

print(grant(access=1))
fd = taken()
print(mmap.mmap(fd, 16 * 4096, prot=mmap.PROT_READ)[:19])
try:
    mmap.mmap(fd, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)
except PermissionError:
    print("read-only")
print(grant())
mmap.mmap(taken(), 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)[:5] = b"hello"
print(os.pread(memory, 5, 0))
print(grant(pages=4, gpa=1 << 33), os.pread(taken(1 << 33), 19, 0))
print(grant())
print(grant(pages=15), grant(gpa=1 << 33), grant(gpa=0))
print(grant(code=Code.UNMAP_GPA_PAGES))
print(grant(code=Code.UNMAP_GPA_PAGES))
print("more:", taken(), taken(1 << 33), inbox.malformed)

def connect(partition, number, owner, port):
    return call(Code.CONNECT_PORT, hv.CONNECT_PORT.pack(partition, number, 0, owner, port, b"", 0))[0].name

def doorbell(owner, peer, number):
    call(Code.CREATE_PORT, hv.CREATE_PORT.pack(owner, number, 0, 0, 0, peer, 4, 0, 0, 0, 0, 0, 0, 0))
    return connect(peer, number, owner, number)

print(doorbell(1, child, 77), doorbell(child, 1, 77))
ends = inbox.take_port(77), guests.take_connection(77), guests.take_port(77), inbox.take_connection(77)
print(connect(child, 78, 1, 77), "more:", inbox.take_port(77), guests.take_connection(78))
ours_rung, childs_rings, childs_rung, ours_rings = ends
os.write(childs_rings, b"x")
print(os.read(ours_rung, 10))
try:
    os.read(childs_rung, 1)
except BlockingIOError:
    print("the other doorbell is quiet")
os.write(ours_rings, b"yy")
print(os.read(childs_rung, 10))

# A guest that does not read what it is handed: the hypervisor goes on, and counts.
loop.unwatch(childs.fileno())
print({doorbell(1, child, number) for number in range(100, 200)})
hypervisor.line.send({"t": "stats", "id": 1})
wait(lambda: said[-1]["t"] == "stats")
counters = said[-1]["stats"]["hypervisor"]["counters"]
print(0 < counters["unreachable"] < 100, all(inbox.take_port(number) for number in range(100, 200)))
"""

EXPECTED = """\
SUCCESS
b"the guest's storage"
read-only
SUCCESS
b'hello'
SUCCESS b"the guest's network"
OBJECT_IN_USE
INVALID_PARAMETER INVALID_PARAMETER INVALID_PARAMETER
SUCCESS
NOT_FOUND
more: None None 0
SUCCESS SUCCESS
OBJECT_IN_USE more: None None
b'x'
the other doorbell is quiet
b'yy'
{'SUCCESS'}
True True
"""


def test_what_is_handed_out_is_the_real_thing_with_no_more_than_the_granted_access(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "import vmbus_emu.machine.quietfork\n" + PROGRAM, str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (EXPECTED, "", 0)


@pytest.mark.parametrize(("transport", "expected"), [
    ("ring", {"vm1": [2336, 128, 30], "vm2": [128, 30], "vm3": [30], "parent": []}),
    ("zmq", {"vm1": [], "vm2": [], "vm3": [], "parent": []}),
])
def test_the_io_memory_of_a_vm_is_there_on_the_ring_only_and_cannot_be_cut_short(
    transport: str, expected: dict[str, list[int]]
) -> None:
    vms = [{"name": "vm1"}, {"name": "vm2", "disk": []}, {"name": "vm3", "disk": [], "nic": []}]
    topology = parse({"transport": transport, "vm": vms})
    nobody: Any = None
    identities = Identities(topology, nobody, recovers=False)
    files = {name: identities.io_memory(name) for name in expected}
    assert files == {name: identities.io_memory(name) for name in expected}, "a VM that starts anew has the same memory"
    assert {name: [os.fstat(fd).st_size // 4096 for fd in fds] for name, fds in files.items()} == expected
    for fd in [fd for fds in files.values() for fd in fds]:
        for size in (0, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        os.pwrite(fd, b"it can be written", 0)
        os.close(fd)


def test_the_hypervisor_loads_nothing_for_taking_descriptors() -> None:
    program = "import sys, vmbus_emu.hypervisor.process as p; print('vmbus_emu.inbox' in sys.modules, p.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False vmbus_emu.hypervisor.process\n"
