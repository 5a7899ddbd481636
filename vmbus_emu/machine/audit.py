"""The machine's share of ``vmbus-emu audit``: which processes there are, and what each says it has loaded.

What the kernel knows of them, who asked reads for himself in /proc (:mod:`vmbus_emu.client.audit`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

import msgpack

from vmbus_emu.evidence import loaded_files
from vmbus_emu.lifeline import Message
from vmbus_emu.machine.supervisor import Process


def processes(
    running: Mapping[str, Process], carried: Mapping[str, tuple[str, Collection[str]]], answers: Mapping[str, Any]
) -> Message:
    """For the reply: ``processes``, each with ``loaded``, an index into ``files`` or ``None`` for who did not answer.

    VMs are many and alike, so what several have loaded stands there once. The machine answers for itself.
    """
    files: list[Any] = []
    known: dict[bytes, int] = {}

    def row(name: str, role: str, pid: int, components: Collection[str], answer: Any) -> Message:
        loaded = None
        if answer is not None:
            loaded = known.setdefault(msgpack.packb(answer), len(files))
            if loaded == len(files):
                files.append(answer)
        return {"name": name, "role": role, "pid": pid, "components": sorted(components), "loaded": loaded}

    rows = [row("machine", "machine", os.getpid(), ["machine"], loaded_files())]
    rows += [
        row(name, *carried[name][:1], process.pid, carried[name][1], answers.get(name))
        for name, process in running.items()
    ]
    return {"processes": rows, "files": files}
