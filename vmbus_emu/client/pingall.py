"""``pingall``: one ``fping`` in every VM at the same time, and what they printed as one matrix."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmbus_emu.client.errors import STOPPED_S

if TYPE_CHECKING:
    from vmbus_emu.client.door import Door


@dataclass(slots=True)
class _Sender:
    """One VM's fping."""

    vm: str
    session: int = 0
    output: bytearray = field(default_factory=bytearray)
    #: Why it has no results, if the VM is dead or the machine refused.
    reason: str | None = None


class Pingall:
    """``run`` it once."""

    def __init__(self, door: Door, vms: list[str], count: int) -> None:
        self._door = door
        self._vms = vms
        self._count = count
        self._waiting: dict[int, _Sender] = {}

    def run(self, timeout: float) -> dict[str, Any]:
        """The matrix; ``timeout`` is the longest silence, in seconds."""
        begin = time.monotonic()
        for index, vm in enumerate(self._vms):
            others = self._vms[index + 1:] + self._vms[:index]  # so that not everybody starts with vm1
            if others:
                argv = ["fping", "-c", str(self._count), *others]
                self._waiting[self._door.send("exec", vm=vm, argv=argv)] = _Sender(vm)
        senders = list(self._waiting.values())
        try:
            while self._waiting:
                reply = self._door.receive(time.monotonic() + timeout, patience=STOPPED_S)
                if reply is None:
                    break
                if reply.get("id") in self._waiting:
                    self._handle(reply)
        finally:
            for sender in self._waiting.values():
                if sender.session:
                    self._door.send("cancel", session=sender.session)
        return ping_matrix(self._vms, senders, self._count, time.monotonic() - begin)

    def _handle(self, reply: dict[str, Any]) -> None:
        sender = self._waiting[reply["id"]]
        if "error" in reply or reply.get("t") == "exit":
            sender.reason = reply.get("error") or reply.get("reason")
            del self._waiting[reply["id"]]
        elif reply.get("t") == "out":
            sender.output.extend(reply["data"])
            self._door.send("credit", session=reply["session"], chunks=1)
        elif "session" in reply:
            sender.session = reply["session"]


_ALIVE = re.compile(r"(\S+) is alive \(([0-9.]+) ms\), (\d+)/\d+ answered")
_NOT = re.compile(r"(\S+) is (unreachable: .*|unknown)")


def ping_matrix(vms: list[str], senders: list[_Sender], count: int, elapsed: float) -> dict[str, Any]:
    """What ``pingall --json`` prints."""
    by_vm: Mapping[str, _Sender] = {sender.vm: sender for sender in senders}
    pairs = []
    received = 0
    for vm in vms:
        found: dict[str, dict[str, Any]] = {}
        sender = by_vm.get(vm, _Sender(vm))
        for line in sender.output.decode(errors="replace").splitlines():
            if alive := _ALIVE.match(line):
                answered = int(alive[3])
                received += answered
                error = None if answered == count else f"{count - answered} of {count} lost"
                found[alive[1]] = {"ok": answered == count, "rtt_ms": float(alive[2]), "error": error}
            elif failed := _NOT.match(line):
                found[failed[1]] = {"ok": False, "rtt_ms": None, "error": failed[2]}
        missing = {"ok": False, "rtt_ms": None, "error": sender.reason or "no result in time"}
        pairs += [{"from": vm, "to": other, **found.get(other, missing)} for other in vms if other != vm]
    return {
        "schema": 1, "vms": vms, "pairs": pairs, "sent": len(pairs) * count, "received": received,
        "elapsed_s": round(elapsed, 6),
    }
