"""What can go wrong with a machine, seen from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: How long a verb waits for its reply, in seconds.
DEADLINE_S = 10.0


class MachineError(Exception):
    """Something about a machine failed. One line; ``hint`` says what to try, possibly empty."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


class NotRunning(MachineError):
    """There is no such machine."""


def checked(reply: Mapping[str, Any]) -> dict[str, Any]:
    """The reply, unless it is a refusal, which is raised."""
    if "error" in reply:
        raise MachineError(reply["error"], reply.get("hint", ""))
    return dict(reply)
