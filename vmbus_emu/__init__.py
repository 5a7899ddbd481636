"""vmbus-emu: hypervisor architectures as real processes on one Linux machine. ``Machine`` is the Python API."""

from __future__ import annotations

from typing import Any

__all__ = ["Machine", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Loaded on first use: `vmbus-emu --help` and shell completion must not pay for ZeroMQ.
    if name == "Machine":
        from vmbus_emu.client import Machine

        return Machine
    raise AttributeError(name)
