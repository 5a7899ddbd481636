"""The hypervisor as a process: hypercalls in, SynIC messages out, over one ROUTER socket.

Who calls is the kernel's word. The machine tells which pid stands in for which virtual processor; each
message's ``Peer-Address`` says which pid sent it; the ROUTER's own routing id is only the way back. A message
from a pid that is bound to nothing is counted and dropped.

With the machine it speaks over its lifeline: ``bind``, ``powered``, ``died`` come in, ``bound``, ``power_on``,
``power_off`` go out. Memory descriptors leave over a second inherited socket, one per partition, and only
for a grant that the table holds.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from typing import Any

import msgpack
import zmq

from vmbus_emu.hypervisor.calls import execute
from vmbus_emu.hypervisor.core import Deliver, Effect, HandOut, Hypervisor, PowerOff, PowerOn, Raise, Reply
from vmbus_emu.hypervisor.tables import Vp
from vmbus_emu.lifeline import Message
from vmbus_emu.node import Node
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.zmqport import ZmqPort, peer_pid


class HypervisorProcess:
    """The component ``hypervisor`` of the microkernel and disaggregated placements."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._state = Hypervisor()
        self._vps: dict[int, Vp] = {}                # pid -> virtual processor
        self._routes: dict[Vp, bytes] = {}           # where its answers go
        self._undelivered: dict[Vp, list[tuple[Any, ...]]] = {}  # until the VP first speaks
        self._memory: dict[int, int] = {}            # partition -> descriptor of its I/O memory
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
            self._bind((message["partition"], message["vp"]), message["pid"], message.get("memory"), fds)
        elif kind == "powered":
            vp = (message["partition"], message["vp"])
            pid = message["pid"]
            effects = self._state.powered(vp, pid)
            if pid is not None:
                self._adopt(vp, pid, message.get("memory"), fds)
            self._apply(effects)
        elif kind == "died":
            vp_of_dead = self._vps.pop(message["pid"], None)
            effects = self._state.died(message["pid"])
            if vp_of_dead is not None:
                self._routes.pop(vp_of_dead, None)
                self._undelivered.pop(vp_of_dead, None)
            self._apply(effects)

    def _bind(self, vp: Vp, pid: int, memory: Any, fds: list[int]) -> None:
        if self._state.bind(vp, pid):
            self._adopt(vp, pid, memory, fds)

    def _adopt(self, vp: Vp, pid: int, memory: Any, fds: list[int]) -> None:
        """``fds``: the partition's descriptor socket, then its I/O memory if it has any."""
        self._vps[pid] = vp
        self._routes.pop(vp, None)
        old = self._descriptor_sockets.pop(vp[0], None) if vp[1] == 0 else None
        if old is not None:
            old.close()
        if fds and vp[1] == 0:
            self._descriptor_sockets[vp[0]] = socket.socket(fileno=fds[0])
        if memory is not None and len(fds) > 1:
            if vp[0] in self._memory:
                os.close(self._memory[vp[0]])
            self._memory[vp[0]] = fds[1]
            self._state.add_memory(vp[0], memory["gpa"], memory["pages"])
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
                    self._hand_out(grant.owner, grant.grantee, grant.gpa, grant.pages, int(grant.access))

    def _send(self, vp: Vp, *envelope: Any) -> None:
        route = self._routes.get(vp)
        if route is None:  # at most 16 per port: the messages' buffers are counted
            self._undelivered.setdefault(vp, []).append(envelope)
        elif not self._port.send(route, self._pack(envelope)):
            self._unreachable += 1  # its process is dead, or does not read: the machine will tell

    def _hand_out(self, owner: int, grantee: int, gpa: int, pages: int, access: int) -> None:
        target = self._descriptor_sockets.get(grantee)
        memory = self._memory.get(owner)
        if target is None or memory is None:
            return
        raw = msgpack.packb({"owner": owner, "gpa": gpa, "pages": pages, "access": access})
        fd = os.open(f"/proc/self/fd/{memory}", os.O_RDWR | os.O_CLOEXEC) if access & 2 else os.open(
            f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC
        )
        try:
            socket.send_fds(target, [raw], [fd], socket.MSG_DONTWAIT)
        except OSError:
            self._unreachable += 1
        finally:
            os.close(fd)

    def stats(self) -> dict[str, dict[str, Any]]:
        counters = dataclasses.asdict(self._state.stats())
        counters |= {"strangers": self._strangers, "unreachable": self._unreachable}
        return {"hypervisor": {"counters": counters}}
