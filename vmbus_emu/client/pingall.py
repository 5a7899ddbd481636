"""The result of ``pingall``: what each VM's ``fping`` printed, as one matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_ALIVE = re.compile(r"(\S+) is alive \(([0-9.]+) ms\), (\d+)/\d+ answered")
_NOT = re.compile(r"(\S+) is (unreachable: .*|unknown)")


def ping_matrix(vms: list[str], outputs: Mapping[str, bytearray], count: int, elapsed: float) -> dict[str, Any]:
    pairs = []
    received = 0
    for vm in vms:
        found: dict[str, dict[str, Any]] = {}
        for line in outputs.get(vm, bytearray()).decode(errors="replace").splitlines():
            if alive := _ALIVE.match(line):
                answered = int(alive[3])
                received += answered
                error = None if answered == count else f"{count - answered} of {count} lost"
                found[alive[1]] = {"ok": answered == count, "rtt_ms": float(alive[2]), "error": error}
            elif failed := _NOT.match(line):
                found[failed[1]] = {"ok": False, "rtt_ms": None, "error": failed[2]}
        missing = {"ok": False, "rtt_ms": None, "error": "no result in time"}
        pairs += [{"from": vm, "to": other, **found.get(other, missing)} for other in vms if other != vm]
    return {
        "schema": 1, "vms": vms, "pairs": pairs, "sent": len(pairs) * count, "received": received,
        "elapsed_s": round(elapsed, 6),
    }
