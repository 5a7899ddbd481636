"""The hypervisor as a process: hypercalls in, SynIC messages out, over one ROUTER socket.

Who calls is the kernel's word. The machine tells which pid stands in for which virtual processor; each
message's ``Peer-Address`` says which pid sent it; the ROUTER's own routing id is only the way back. A message
from a pid that is bound to nothing is counted and dropped.

With the machine it speaks over its lifeline: ``bind``, ``powered``, ``died`` come in, ``bound``, ``power_on``,
``power_off`` go out. Descriptors leave over a second inherited socket, one per partition (``descriptors``).

If the machine sends a memory file with ``start``, every event is written down in it before its effects are carried out.
A later incarnation is started with the same file and ``recover``. The machine then tells it who is alive (``bind`` with
``again`` for each process, and ``complete``), it does once more what may not have been done (``recovery``), and only
then has a socket and is ready.
"""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack
import zmq

from vmbus_emu.envelopes import MAX_MESSAGE, apart, together
from vmbus_emu.hypervisor import recovery
from vmbus_emu.hypervisor.calls import handed, receive
from vmbus_emu.hypervisor.changes import Change, snapshot
from vmbus_emu.hypervisor.core import (
    Deliver,
    Effect,
    HandDoorbell,
    HandOut,
    Hypervisor,
    Interrupt,
    PowerOff,
    PowerOn,
    Raise,
    Reply,
)
from vmbus_emu.hypervisor.descriptors import Descriptors
from vmbus_emu.hypervisor.ledger import Ledger
from vmbus_emu.hypervisor.tables import Vp
from vmbus_emu.lifeline import Message
from vmbus_emu.node import Node
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.zmqport import ZmqPort, peer_pid

#: Envelopes that wait for one VP: the buffers of 4,096 ports. Only one that says EOM and does not read has more.
_MOST_WAITING = 4096 * hv.MESSAGE_BUFFERS_PER_PORT


class HypervisorProcess:
    """The component ``hypervisor`` of the microkernel and disaggregated placements."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._state = Hypervisor()
        self._ledger: Ledger | None = None
        self._path = ""
        #: While recovering: whom the ledger says to run, and the machine did not mention yet.
        self._missing: set[Vp] | None = None
        self._vps: dict[int, Vp] = {}                # pid -> virtual processor
        self._routes: dict[Vp, bytes] = {}           # where its answers go
        self._undelivered: dict[Vp, deque[bytes]] = {}  # until the VP speaks
        self._outgoing: dict[Vp, list[bytes]] = {}   # what leaves when all that came together has been done
        self._descriptors = Descriptors()
        self._partitions = 0
        self._strangers = 0
        self._unreachable = 0
        self._pack = msgpack.Packer(autoreset=True).pack
        self._port = ZmqPort(
            node.loop, node.context, zmq.ROUTER, self._received, max_message=MAX_MESSAGE, queue=512
        )

    def start(self, config: Message) -> None:
        """``socket``: where to listen; ``recover``: go on with what the memory file holds."""
        self._path = config["socket"]
        recover = bool(config.get("recover"))
        if self._node.io_memory:
            ledger = self._ledger = Ledger(self._node.io_memory[0], keep=recover)
            self._state = recovery.restore(ledger.changes())
        elif recover:
            raise ValueError("nothing to recover from: no memory file came with the start")
        if recover:
            self._missing = set(self._state.callers)
        else:
            self._open()

    def _open(self) -> None:
        self._port.bind(self._path)
        self._node.ready("hypervisor")

    # -- lifeline -----------------------------------------------------------------------------------

    def handle(self, message: Message, fds: list[int]) -> None:
        match message["t"]:
            case "bind" | "powered" as kind:
                vp, pid = (message["partition"], message["vp"]), message["pid"]
                if kind == "powered":
                    effects = self._state.powered(vp, pid)
                elif message.get("again") or self._missing is not None:
                    effects = recovery.bind_again(self._state, vp, pid)
                else:
                    self._state.bind(vp, pid)
                    effects = []
                if pid is not None:
                    self._adopt(vp, pid, message.get("memory", ()), fds)
                self._apply(effects)
            case "died":
                dead = self._vps.pop(message["pid"], None)
                effects = self._state.died(message["pid"])
                if dead is not None:
                    self._routes.pop(dead, None)
                    self._undelivered.pop(dead, None)
                self._apply(effects)
            case "complete" if self._missing is not None:
                self._go_on(self._missing)
        self._flush()

    def _adopt(self, vp: Vp, pid: int, regions: Sequence[dict[str, int]], fds: list[int]) -> None:
        """Take what comes with a process that was just bound to ``vp``, if it was."""
        partition = self._state.partitions.get(vp[0])
        if partition is None or partition.vps.get(vp[1]) != pid:
            for fd in fds:
                os.close(fd)
            return
        if self._missing is not None:
            self._missing.discard(vp)
        self._vps[pid] = vp
        self._routes.pop(vp, None)
        self._descriptors.adopt(vp, regions, fds)
        for region in regions:
            self._state.add_memory(vp[0], region["gpa"], region["pages"])
        self._write()  # "bound" is an effect, too
        self._node.lifeline.send({"t": "bound", "pid": pid})

    def _go_on(self, missing: set[Vp]) -> None:
        """The machine has named everybody who lives."""
        for vp in sorted(missing & self._state.callers.keys()):
            self._state.ended(vp)  # whom it concerns is told below, out of the tables
        self._missing = None
        self._write()
        self._apply(recovery.outstanding(self._state))
        self._settle()
        self._open()

    # -- partitions ---------------------------------------------------------------------------------

    def _received(self, frames: list[zmq.Frame]) -> None:
        pid = peer_pid(frames[-1])
        if pid not in self._vps:  # the machine lets a process speak as soon as it has told us of it
            self._node.lifeline.look()
        vp = self._vps.get(pid)
        if vp is None or len(frames) != 2 or vp not in self._state.callers:
            self._strangers += 1
            return
        try:
            envelopes = apart(frames[1].buffer)
        except (ValueError, TypeError, msgpack.UnpackException):
            envelopes = (None,)
        self._routes[vp] = frames[0].bytes
        if vp in self._undelivered:
            self._deliver_waiting(vp)
        for envelope in envelopes:
            self._one(vp, envelope)
        self._flush()

    def _one(self, vp: Vp, envelope: Any) -> None:
        state = self._state
        match envelope:
            case (hv.TO_HYPERVISOR_CALL, int(sequence), int(control), bytes(block)):
                self._apply(receive(state, vp, sequence, control, block))
                return
            case (hv.TO_HYPERVISOR_TRAP, int(sequence), bytes(block)):
                self._apply(receive(state, vp, sequence, None, block))
                return
            case (hv.TO_HYPERVISOR_EOI, int(vector)):
                state.end_of_interrupt(vp, vector)
            case (hv.TO_HYPERVISOR_EOM, int(port), int(number)):
                state.end_of_message(vp, port, number)
            case (hv.TO_HYPERVISOR_EVENT_SEEN, int(sint), int(flag)):
                state.events_seen(vp, sint, flag)
            case (hv.TO_HYPERVISOR_ANSWERED, int(sequence)):
                state.answered(vp, sequence)
            case _:
                self._strangers += 1
        self._write()

    def _write(self) -> None:
        changes = self._state.changes
        if changes:
            if self._ledger is not None:
                self._ledger.append(changes, self._snapshot)
            changes.clear()

    def _snapshot(self) -> Iterator[Change]:
        return snapshot(self._state)

    def _apply(self, effects: list[Effect]) -> None:
        """In their order, after they are certain: a descriptor is in its socket before the reply that says so leaves.

        While recovering there are only those for the machine. The others follow from the tables, in :meth:`_go_on`.
        """
        self._write()
        for effect in effects:
            if self._missing is not None and not isinstance(effect, PowerOff):
                continue
            match effect:
                case Reply(vp, sequence, status, output):
                    self._settle()
                    self._send(vp, hv.TO_PARTITION_RESULT, sequence, int(status), output)
                case Deliver(vp, sint, message, number):
                    self._send(vp, hv.TO_PARTITION_MESSAGE, sint, message.encode(), number)
                case Raise(vp, sint, flag):
                    self._send(vp, hv.TO_PARTITION_EVENT, sint, flag)
                case Interrupt(vp, vector):
                    self._send(vp, hv.TO_PARTITION_INTERRUPT, vector)
                case PowerOn(partition, index, name):
                    self._node.lifeline.send({"t": "power_on", "partition": partition, "vp": index, "name": name})
                case PowerOff(partition, pids):
                    self._node.lifeline.send({"t": "power_off", "partition": partition, "pids": pids})
                case HandOut(grant):
                    self._descriptors.hand_out(grant)
                case HandDoorbell():
                    self._descriptors.hand_doorbell(effect)

    def _settle(self) -> None:
        """What the call owed has been handed out, so it can be answered."""
        if handed(self._state):
            self._write()

    def _send(self, vp: Vp, *envelope: Any) -> None:
        packed = self._pack(envelope)
        waiting = self._undelivered.get(vp)
        if waiting is None:
            self._outgoing.setdefault(vp, []).append(packed)
        elif len(waiting) >= (hv.MAX_CALLS if envelope[0] == hv.TO_PARTITION_RESULT else _MOST_WAITING):
            self._unreachable += 1
        else:
            waiting.append(packed)

    def _flush(self) -> None:
        if len(self._state.partitions) != self._partitions:  # of one that was deleted nobody asks any more
            self._partitions = len(self._state.partitions)
            self._descriptors.keep(self._state.partitions)
        outgoing, self._outgoing = self._outgoing, {}
        for vp, envelopes in outgoing.items():
            left = self._deliver(vp, envelopes)
            if left:  # it has not spoken yet, or does not read, or is dead, which the machine will tell
                self._undelivered[vp] = deque(left)

    def _deliver(self, vp: Vp, envelopes: Sequence[bytes]) -> Sequence[bytes]:
        """What could not be sent."""
        route = self._routes.get(vp)
        sent = 0
        for message, some in together(envelopes):
            if route is None or not self._port.send(route, message):
                return envelopes[sent:]
            sent += len(some)
        return ()

    def _deliver_waiting(self, vp: Vp) -> None:
        left = self._deliver(vp, list(self._undelivered.pop(vp)))
        if left:  # when it speaks again
            self._undelivered[vp] = deque(left)

    def stats(self) -> dict[str, dict[str, Any]]:
        counters = dataclasses.asdict(self._state.stats())
        counters |= {"strangers": self._strangers, "unreachable": self._unreachable + self._descriptors.unreachable}
        return {"hypervisor": {"counters": counters}}
