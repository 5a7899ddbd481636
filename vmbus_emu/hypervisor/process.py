"""The hypervisor as a process: hypercalls in, SynIC messages out, over one ROUTER socket.

Who calls is the kernel's word. The machine tells which pid stands in for which virtual processor; each
message's ``Peer-Address`` says which pid sent it; the ROUTER's own routing id is only the way back. A message
from a pid that is bound to nothing is counted and dropped.

With the machine it speaks over its lifeline: ``bind``, ``powered``, ``died`` come in, ``bound``, ``power_on``,
``power_off`` go out. Descriptors leave over a second inherited socket, one per partition: of memory, only for a
grant that the table holds; of a doorbell, to the two ends of its connection and to nobody else.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import zmq

from vmbus_emu.hypervisor.calls import execute
from vmbus_emu.hypervisor.core import (
    Deliver,
    Effect,
    HandDoorbell,
    HandOut,
    Hypervisor,
    PowerOff,
    PowerOn,
    Raise,
    Reply,
)
from vmbus_emu.hypervisor.tables import Grant, Vp
from vmbus_emu.lifeline import Message
from vmbus_emu.node import Node
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Access
from vmbus_emu.zmqport import ZmqPort, peer_pid


class HypervisorProcess:
    """The component ``hypervisor`` of the microkernel and disaggregated placements."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._state = Hypervisor()
        self._vps: dict[int, Vp] = {}                # pid -> virtual processor
        self._routes: dict[Vp, bytes] = {}           # where its answers go
        self._undelivered: dict[Vp, list[tuple[Any, ...]]] = {}  # until the VP first speaks
        self._memory: dict[int, dict[int, int]] = {}  # partition -> gpa of a region -> its memory file
        self._descriptor_sockets: dict[int, socket.socket] = {}
        self._strangers = 0
        self._unreachable = 0
        self._pack = msgpack.Packer(autoreset=True).pack
        self._port = ZmqPort(
            node.loop, node.context, zmq.ROUTER, self._received, max_message=hv.MAX_ENVELOPE, queue=4096
        )

    def start(self, config: Message) -> None:
        self._port.bind(config["socket"])
        self._node.ready("hypervisor")

    # -- lifeline -----------------------------------------------------------------------------------

    def handle(self, message: Message, fds: list[int]) -> None:
        kind = message["t"]
        if kind == "bind":
            self._bind((message["partition"], message["vp"]), message["pid"], message.get("memory", ()), fds)
        elif kind == "powered":
            vp = (message["partition"], message["vp"])
            pid = message["pid"]
            effects = self._state.powered(vp, pid)
            if pid is not None:
                self._adopt(vp, pid, message.get("memory", ()), fds)
            self._apply(effects)
        elif kind == "died":
            vp_of_dead = self._vps.pop(message["pid"], None)
            effects = self._state.died(message["pid"])
            if vp_of_dead is not None:
                self._routes.pop(vp_of_dead, None)
                self._undelivered.pop(vp_of_dead, None)
            self._apply(effects)

    def _bind(self, vp: Vp, pid: int, regions: Sequence[Mapping[str, int]], fds: list[int]) -> None:
        if self._state.bind(vp, pid):
            self._adopt(vp, pid, regions, fds)

    def _adopt(self, vp: Vp, pid: int, regions: Sequence[Mapping[str, int]], fds: list[int]) -> None:
        """``fds``: the partition's descriptor socket, then a memory file for each region of its I/O memory."""
        self._vps[pid] = vp
        self._routes.pop(vp, None)
        old = self._descriptor_sockets.pop(vp[0], None) if vp[1] == 0 else None
        if old is not None:
            old.close()
        if fds and vp[1] == 0:
            ours = self._descriptor_sockets[vp[0]] = socket.socket(fileno=fds[0])
            ours.setblocking(False)  # a guest that does not read must not stop us; send_fds ignores its flags in 3.11
        files = self._memory.setdefault(vp[0], {})
        for region, file in zip(regions, fds[1:], strict=True):
            gpa = region["gpa"]
            if gpa in files:
                os.close(files[gpa])
            files[gpa] = file
            self._state.add_memory(vp[0], gpa, region["pages"])
        self._node.lifeline.send({"t": "bound", "pid": pid})

    # -- partitions ---------------------------------------------------------------------------------

    def _received(self, frames: list[zmq.Frame]) -> None:
        vp = self._vps.get(peer_pid(frames[-1]))
        if vp is None or len(frames) != 2:
            self._strangers += 1
            return
        try:
            envelope = msgpack.unpackb(frames[1].buffer, use_list=False)
        except (ValueError, TypeError, msgpack.UnpackException):
            envelope = None
        route = frames[0].bytes
        if self._routes.get(vp) != route:
            self._routes[vp] = route
            for waiting in self._undelivered.pop(vp, ()):
                self._send(vp, *waiting)
        match envelope:
            case (hv.TO_HYPERVISOR_CALL, int(sequence), int(control), bytes(block)):
                self._apply(execute(self._state, vp, sequence, control, block))
            case (hv.TO_HYPERVISOR_EOM, int(port), int(count)):
                self._state.end_of_message(vp, port, count)
            case (hv.TO_HYPERVISOR_EVENT_SEEN, int(sint), int(flag)):
                self._state.events_seen(vp, sint, flag)
            case _:
                self._strangers += 1

    def _apply(self, effects: list[Effect]) -> None:
        """In their order: a descriptor is in its socket before the reply that says so leaves."""
        for effect in effects:
            match effect:
                case Reply(vp, sequence, status, output):
                    self._send(vp, hv.TO_PARTITION_RESULT, sequence, int(status), output)
                case Deliver(vp, sint, message):
                    self._send(vp, hv.TO_PARTITION_MESSAGE, sint, message.encode())
                case Raise(vp, sint, flag):
                    self._send(vp, hv.TO_PARTITION_EVENT, sint, flag)
                case PowerOn(partition, index, name):
                    self._node.lifeline.send({"t": "power_on", "partition": partition, "vp": index, "name": name})
                case PowerOff(partition, pids):
                    self._node.lifeline.send({"t": "power_off", "partition": partition, "pids": pids})
                case HandOut(grant):
                    self._hand_out(grant)
                case HandDoorbell(owner, port, partition, connection):
                    self._hand_doorbell(owner, port, partition, connection)

    def _send(self, vp: Vp, *envelope: Any) -> None:
        route = self._routes.get(vp)
        if route is None:  # at most 16 per port: the messages' buffers are counted
            self._undelivered.setdefault(vp, []).append(envelope)
        elif not self._port.send(route, self._pack(envelope)):
            self._unreachable += 1  # its process is dead, or does not read: the machine will tell

    # -- descriptors --------------------------------------------------------------------------------

    def _hand_out(self, grant: Grant) -> None:
        file = self._memory[grant.owner][grant.gpa]
        # Opened anew, because a received descriptor has the access of the one that was sent.
        mode = os.O_RDWR if grant.access & Access.WRITE else os.O_RDONLY
        fd = os.open(f"/proc/self/fd/{file}", mode | os.O_CLOEXEC)
        region = {"owner": grant.owner, "gpa": grant.gpa, "pages": grant.pages}
        self._send_descriptor(grant.grantee, {"t": "memory", **region, "access": int(grant.access)}, fd)
        os.close(fd)

    def _hand_doorbell(self, owner: int, port: int, partition: int, connection: int) -> None:
        # Not an eventfd: both sides would share one open file, and with it O_NONBLOCK. A guest could clear that and
        # fill the counter, and the VSP would block in its next ring (docs/decisions/0011-doorbells-are-pipes.md).
        rung, ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._send_descriptor(owner, {"t": "doorbell", "port": port}, rung)
        self._send_descriptor(partition, {"t": "doorbell", "connection": connection}, ring)
        os.close(rung)
        os.close(ring)

    def _send_descriptor(self, partition: int, message: Mapping[str, Any], fd: int) -> None:
        """Send to the process of the partition's VP 0; one that is not there, or does not read, goes without."""
        target = self._descriptor_sockets.get(partition)
        if target is None:
            self._unreachable += 1
            return
        try:
            socket.send_fds(target, [msgpack.packb(message)], [fd])
        except OSError:
            self._unreachable += 1

    def stats(self) -> dict[str, dict[str, Any]]:
        counters = dataclasses.asdict(self._state.stats())
        counters |= {"strangers": self._strangers, "unreachable": self._unreachable}
        return {"hypervisor": {"counters": counters}}
