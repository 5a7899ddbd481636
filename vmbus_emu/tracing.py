"""A process that writes down when requests pass it. Loaded when a machine is started for that, and not before.

Whoever starts such a machine names a :class:`~vmbus_emu.witness.traces.TraceFile` for each process to be traced, in
the environment of the machine (:func:`environment`), from which all its processes inherit it. When such a process is
told to start, its role's code is loaded and nothing of it is made yet: methods on the way of requests are wrapped then.
In all other machines they are what they are in the source, so tracing that is off costs nothing (design: rule 15).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from vmbus_emu.lifeline import Message
from vmbus_emu.node import TRACE_VARIABLE, load
from vmbus_emu.trap import Patches
from vmbus_emu.witness.traces import TraceFile

#: Where the points are.
_INSTALL = "partitions.tracepoints:install"


def environment(files: Mapping[str, TraceFile]) -> dict[str, str]:
    """What a machine is to find in its environment, so that the processes named in ``files`` are traced."""
    return {TRACE_VARIABLE: json.dumps({name: file.path for name, file in files.items()})}


def begin(name: str, config: Message, patches: Patches | None = None) -> None:
    """In process ``name``, which is about to start with ``config``: trace it, if it was named."""
    path = json.loads(os.environ[TRACE_VARIABLE]).get(name)
    if path is not None:
        load(_INSTALL)(TraceFile.open(path), patches or Patches(), config)
