"""Memory grants, live: a hypervisor process hands the grantee, and nobody else, a descriptor of the owner's pages.

The program below plays the machine and the root partition for a real hypervisor process, in an interpreter of its
own (what forks must not have used ZeroMQ before).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = r"""
import mmap, os, socket, sys
from pathlib import Path
import msgpack
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

memory = os.memfd_create("io")
os.ftruncate(memory, 16 * 4096)
os.pwrite(memory, b"the guest's page 3", 3 * 4096)
_, childs = lifeline.pair()
hypervisor.line.send({"t": "powered", "partition": child, "vp": 0, "pid": 2 ** 22 - 1,
                      "memory": {"gpa": 1 << 32, "pages": 16}}, [childs.fileno(), memory])
wait(lambda: starting.done)
assert starting.result()[0] is HvStatus.SUCCESS

def grant(code, pages, access, gpa=1 << 32):
    return call(code, hv.GRANT.pack(child, 1, gpa, pages, access))[0].name

ours.settimeout(10.0)
def received():
    raw, (fd,), _, _ = socket.recv_fds(ours, 1024, 1)
    return msgpack.unpackb(raw), fd

print(grant(Code.MAP_GPA_PAGES, 8, 1))
told, fd = received()
print(told == {"owner": child, "gpa": 1 << 32, "pages": 8, "access": 1})
print(mmap.mmap(fd, 4 * 4096, prot=mmap.PROT_READ)[3 * 4096:][:18])
try:
    mmap.mmap(fd, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)
except PermissionError:
    print("read-only")
print(grant(Code.MAP_GPA_PAGES, 8, 3))
_, fd = received()
mmap.mmap(fd, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)[:5] = b"hello"
print(os.pread(memory, 5, 0))
print(grant(Code.MAP_GPA_PAGES, 8, 3))
print(grant(Code.MAP_GPA_PAGES, 17, 1))
print(grant(Code.MAP_GPA_PAGES, 8, 1, gpa=0))
print(grant(Code.UNMAP_GPA_PAGES, 8, 3))
print(grant(Code.UNMAP_GPA_PAGES, 8, 3))
ours.setblocking(False)
try:
    ours.recv(1)
except BlockingIOError:
    print("nothing more was handed out")
"""

EXPECTED = """\
SUCCESS
True
b"the guest's page 3"
read-only
SUCCESS
b'hello'
OBJECT_IN_USE
INVALID_PARAMETER
INVALID_PARAMETER
SUCCESS
NOT_FOUND
nothing more was handed out
"""


def test_a_granted_page_is_the_owners_own_page_with_no_more_than_the_granted_access(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "import vmbus_emu.machine.quietfork\n" + PROGRAM, str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (EXPECTED, "", 0)
