"""The descriptors the hypervisor holds for partitions, and hands to others: of memory, and of doorbells.

They leave over an inherited socket, one per process: of memory, only for a grant that the table holds; of a doorbell,
to the two ends of its connection and to nobody else.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Container, Mapping, Sequence
from typing import Any

import msgpack

from vmbus_emu.hypervisor.core import HandDoorbell
from vmbus_emu.hypervisor.tables import Grant, Vp
from vmbus_emu.protocol.hypercall import Access


class Descriptors:
    """Partitions' descriptor sockets and memory files, which belong to it from :meth:`adopt` on."""

    def __init__(self) -> None:
        self._sockets: dict[Vp, socket.socket] = {}
        self._memory: dict[int, dict[int, int]] = {}  # partition -> gpa of a region -> its memory file
        #: What could not be handed out: there is nobody, or it does not read, or there is no memory yet.
        self.unreachable = 0

    def adopt(self, vp: Vp, regions: Sequence[Mapping[str, int]], fds: Sequence[int]) -> None:
        """``fds``: the process's descriptor socket, then a memory file for each region of the partition's I/O
        memory."""
        partition = vp[0]
        old = self._sockets.pop(vp, None)
        if old is not None:
            old.close()
        if fds:
            ours = self._sockets[vp] = socket.socket(fileno=fds[0])
            ours.setblocking(False)  # a guest that does not read must not stop us; send_fds ignores its flags in 3.11
        files = self._memory.setdefault(partition, {})
        for region, file in zip(regions, fds[1:], strict=True):
            gpa = region["gpa"]
            if gpa in files:
                os.close(files[gpa])
            files[gpa] = file

    def keep(self, partitions: Container[int]) -> None:
        """Let go of what is of none of ``partitions``."""
        for partition in [one for one in self._memory if one not in partitions]:
            for file in self._memory.pop(partition).values():
                os.close(file)
        for vp in [one for one in self._sockets if one[0] not in partitions]:
            self._sockets.pop(vp).close()

    def hand_out(self, grant: Grant) -> None:
        """Send the grantee a descriptor of the owner's region, which allows what the grant does."""
        file = self._memory.get(grant.owner, {}).get(grant.gpa)
        if file is None:  # the owner died while there was no hypervisor; its next process brings the file along
            self.unreachable += 1
            return
        # Opened anew, because a received descriptor has the access of the one that was sent.
        mode = os.O_RDWR if grant.access & Access.WRITE else os.O_RDONLY
        fd = os.open(f"/proc/self/fd/{file}", mode | os.O_CLOEXEC)
        region = {"owner": grant.owner, "gpa": grant.gpa, "pages": grant.pages}
        self._send((grant.grantee, grant.vp), {"t": "memory", **region, "access": int(grant.access)}, fd)
        os.close(fd)

    def hand_doorbell(self, doorbell: HandDoorbell) -> None:
        """Make a doorbell, and send both ends to whom they are for."""
        # Not an eventfd: both sides would share one open file, and with it O_NONBLOCK. A guest could clear that and
        # fill the counter, and the VSP would block in its next ring (docs/decisions/0011-doorbells-are-pipes.md).
        rung, ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._send((doorbell.owner, 0), {"t": "doorbell", "port": doorbell.port}, rung)
        self._send((doorbell.partition, 0), {"t": "doorbell", "connection": doorbell.connection}, ring)
        os.close(rung)
        os.close(ring)

    def _send(self, vp: Vp, message: Mapping[str, Any], fd: int) -> None:
        """Send to the VP's process; one that is not there, or does not read, goes without."""
        target = self._sockets.get(vp)
        if target is None:
            self.unreachable += 1
            return
        try:
            socket.send_fds(target, [msgpack.packb(message)], [fd])
        except OSError:
            self.unreachable += 1
